//! Restores by document: which disk goes where, and the job around the engine's restore.
//!
//! Invariant: nothing is written before every disk has a place, and that place may be written.

use aquifer_api::domain::{NewDisk, NewDomain, NewSource, rewrite};
use aquifer_api::request::RestoreRequest as Asked;
use aquifer_api::xml::{Definition, ImageFormat, NbdSource, Target};
use aquifer_api::{Error, JobState, Kind, Restore, RestoreFlags, Result};
use aquifer_engine::repository::format::Record;
use aquifer_engine::repository::format::record::DefinitionKind;
use aquifer_engine::{JobContext, RestoreOutcome, RestoreRequest, VolumeSpec};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domains::DomainDefinition;
use crate::error::{journal, repository, to_api};
use crate::journal::{Entry, EntryDisk, Job, JobKind};
use crate::service::{Live, Service};

/// A restore that is ready to be done.
#[derive(Debug)]
pub struct PlannedRestore {
    /// What the engine does.
    pub request: RestoreRequest,
    /// The domain whose disks are written.
    pub domain: String,
    /// With NEW_DOMAIN: its definition.
    pub definition: Option<DomainDefinition>,
}

impl Service {
    pub(crate) async fn restore_document(&self, xml: &str, flags: RestoreFlags) -> Result<Restore> {
        let planned = self.plan_restore(xml, None, flags).await?;
        let (job, domain) = (aquifer_engine::clock::new_uuid(&*self.context().world), planned.domain.clone());
        let entry = Entry::new(job, &domain, JobKind::Restore, xml, self.now_ms());
        let entered = self.0.journal.begin(entry).map_err(journal)?;
        let (ended, over) = watch::channel(false);
        let cancel = self.context().cancel.child_token();
        self.enter(job, Live { cancel: cancel.clone(), over, hand_over: None });
        let service = self.clone();
        let running = tokio::spawn(async move {
            let outcome = service.restore_job(entered, planned, cancel).await;
            service.leave_live(job);
            ended.send_replace(true);
            outcome
        });
        if flags.contains(RestoreFlags::WAIT) {
            let outcome = running.await.map_err(|error| Error::Internal(error.to_string()))?;
            outcome.map_err(|error| to_api(&error, &domain))?;
        }
        Ok(Restore { job, domain })
    }

    /// Does a planned restore, with a job in the journal, and waits for it.
    ///
    /// # Errors
    /// As [`aquifer_engine::restore`].
    pub async fn restore_planned(&self, planned: PlannedRestore) -> aquifer_engine::Result<RestoreOutcome> {
        let job = aquifer_engine::clock::new_uuid(&*self.context().world);
        let entry = Entry::new(job, &planned.domain, JobKind::Restore, "", self.now_ms());
        let entered = self.0.journal.begin(entry).map_err(|error| crate::error::from_api(&journal(error)))?;
        self.restore_job(entered, planned, self.context().cancel.clone()).await
    }

    async fn restore_job(
        &self,
        mut job: Job,
        planned: PlannedRestore,
        cancel: CancellationToken,
    ) -> aquifer_engine::Result<RestoreOutcome> {
        let written = |result: std::result::Result<(), crate::journal::JournalError>| {
            result.map_err(|error| crate::error::from_api(&journal(error)))
        };
        written(job.advance(JobState::Preparing, self.now_ms()))?;
        written(job.advance(JobState::Running, self.now_ms()))?;
        let PlannedRestore { request, definition, .. } = planned;
        let dry_run = request.dry_run;
        let context = JobContext { cancel, ..self.context().clone() };
        let done = async {
            let outcome = aquifer_engine::restore(&context, request).await?;
            written(job.advance(JobState::Finalizing, self.now_ms()))?;
            if let Some(definition) = definition.filter(|_| !dry_run) {
                self.define(&definition).await.map_err(|error| crate::error::from_api(&error))?;
            }
            Ok::<RestoreOutcome, aquifer_engine::Error>(outcome)
        };
        match done.await {
            Ok(outcome) => {
                let disk = |disk: &aquifer_engine::RestoredDisk| EntryDisk {
                    name: disk.name.clone(),
                    size_bytes: disk.size_bytes,
                    zero_bytes: disk.zero_bytes,
                    dup_bytes: disk.skipped_bytes,
                    new_bytes: disk.written_bytes,
                    ..EntryDisk::default()
                };
                written(job.change(|entry| {
                    entry.disks = outcome.disks.iter().map(disk).collect();
                    entry.done_bytes = entry.disks.iter().map(|disk| disk.size_bytes).sum();
                }))?;
                written(job.advance(JobState::Completed, self.now_ms()))?;
                Ok(outcome)
            }
            Err(error) => {
                let end = match error.kind() {
                    aquifer_engine::Kind::Cancelled => JobState::Cancelled,
                    _ => JobState::Failed,
                };
                written(job.fail(end, error.message(), self.now_ms()))?;
                Err(error)
            }
        }
    }

    /// A restore whose disks have their volumes already; `name` is that of a new domain, if there is to be one.
    ///
    /// # Errors
    /// `NoBackup`; those of a new domain, as [`Service::plan_restore`].
    pub async fn plan_into_volumes(
        &self,
        request: RestoreRequest,
        name: Option<&str>,
    ) -> Result<PlannedRestore> {
        let record = self.repository().record(request.backup).await.map_err(repository)?;
        let definition = match name {
            None => None,
            Some(_) => {
                let target = |(disk, volume): &(String, VolumeSpec)| -> Result<(String, Target)> {
                    let path = |path: &std::path::Path| path.display().to_string();
                    let target = match volume {
                        VolumeSpec::Raw(file) => {
                            Target::File { path: path(file), format: Some(ImageFormat::Raw) }
                        }
                        VolumeSpec::Qcow2(file) => {
                            Target::File { path: path(file), format: Some(ImageFormat::Qcow2) }
                        }
                        VolumeSpec::Block(device) => {
                            Target::Block { path: path(device), format: Some(ImageFormat::Raw) }
                        }
                        VolumeSpec::Nbd(uri) => {
                            Target::Nbd(Some(NbdSource { uri: uri.to_string(), context: None }))
                        }
                    };
                    Ok((disk.clone(), target))
                };
                let placed = request.disks.iter().map(target).collect::<Result<Vec<_>>>()?;
                Some(self.new_domain(&record, &placed, name)?)
            }
        };
        let domain = definition.as_ref().map_or(record.domain.name, |definition| definition.name.clone());
        Ok(PlannedRestore { request, domain, definition })
    }

    /// Reads a restore's document, and finds a place for each of its disks. `name` is that of a new domain, where the
    /// document has none.
    ///
    /// # Errors
    /// Those of [`aquifer_api::BackupApi::restore`] that can be told beforehand.
    pub async fn plan_restore(
        &self,
        xml: &str,
        name: Option<&str>,
        flags: RestoreFlags,
    ) -> Result<PlannedRestore> {
        flags.check()?;
        let asked = Asked::parse(xml)?;
        let unsupported = [
            (RestoreFlags::INSTANT, "INSTANT: disks that are served before they are restored"),
            (RestoreFlags::WHOLE, "WHOLE: rewriting without a look at what is there"),
        ];
        if let Some((_, what)) = unsupported.iter().find(|(flag, _)| flags.contains(*flag)) {
            return Err(Error::OperationUnsupported((*what).to_owned()));
        }
        self.refresh().await?;
        let info = self.repository().backup(asked.backup).map_err(|_| Error::NoBackup(asked.backup))?;
        if info.forgotten.is_some() {
            return Err(Error::NoBackup(asked.backup));
        }
        let record = self.repository().record(asked.backup).await.map_err(repository)?;
        let disks = wanted(&asked, &record)?;
        let new_domain = flags.contains(RestoreFlags::NEW_DOMAIN);
        let mut placed = Vec::with_capacity(disks.len());
        for (disk, target) in disks {
            let place = match target {
                Some(target) => target,
                None if new_domain => return Err(untargeted(&disk)),
                None => self.own_disk(&record, &disk, flags)?,
            };
            placed.push((disk, place));
        }
        let definition = match new_domain {
            true => Some(self.new_domain(&record, &placed, asked.name.as_deref().or(name))?),
            false => None,
        };
        let mut volumes = Vec::with_capacity(placed.len());
        for (disk, place) in placed {
            volumes.push((disk, volume(&place).await?));
        }
        let domain = definition.as_ref().map_or(record.domain.name, |definition| definition.name.clone());
        let request = RestoreRequest {
            backup: asked.backup,
            disks: volumes,
            rewrite_existing: flags.contains(RestoreFlags::REWRITE_EXISTING_DISK),
            verify: flags.contains(RestoreFlags::VERIFY),
            dry_run: flags.contains(RestoreFlags::DRY_RUN),
            salvage: flags.contains(RestoreFlags::SALVAGE),
        };
        Ok(PlannedRestore { request, domain, definition })
    }

    /// The disk of the domain itself, which is overwritten on request only and never while the domain runs.
    fn own_disk(&self, record: &Record, disk: &str, flags: RestoreFlags) -> Result<Target> {
        let domain = &record.domain.name;
        if !flags.contains(RestoreFlags::REWRITE_EXISTING_DISK) {
            return Err(Error::TargetExists(format!("disk {disk} of domain {domain}")));
        }
        let defined = self.repository().domain(domain).and_then(|known| known.definition);
        let definition = defined.or_else(|| record.definition.clone());
        let definition = definition.filter(|known| known.kind == DefinitionKind::Xml);
        let source = match definition {
            Some(known) => Definition::parse(&String::from_utf8_lossy(&known.bytes))?.source(disk)?,
            None => None,
        };
        match source {
            Some((NewSource::Block(path), format)) => Ok(Target::Block { path, format: Some(format) }),
            Some((NewSource::File(path), format)) => Ok(Target::File { path, format: Some(format) }),
            None => Err(Error::Other {
                kind: Kind::Unsupported,
                message: format!("where disk {disk} of domain {domain} lies is not known"),
                hint: Some("give the disk a <target>, or define the domain by its libvirt XML: aquifer domain define FILE".to_owned()),
            }),
        }
    }

    /// The definition of a second domain, with the disks where they are restored.
    fn new_domain(
        &self,
        record: &Record,
        placed: &[(String, Target)],
        name: Option<&str>,
    ) -> Result<DomainDefinition> {
        let world = &self.context().world;
        let uuid = aquifer_engine::clock::new_uuid(&**world);
        let name = match name {
            Some(name) => name.to_owned(),
            None => format!("{}-{}", record.domain.name, &uuid.simple().to_string()[24..]),
        };
        if self.require_domain(&name).is_ok() {
            return Err(Error::DomainExists(name));
        }
        let known = record.definition.as_ref().filter(|known| known.kind == DefinitionKind::Xml);
        let known = known.ok_or_else(|| Error::Other {
            kind: Kind::Unsupported,
            message: format!("backup {} keeps no libvirt XML of its domain, so no new one can be made of it", record.backup),
            hint: Some("define the domain by its XML before it is backed up (aquifer domain define FILE), or restore the disks alone".to_owned()),
        })?;
        let text = String::from_utf8_lossy(&known.bytes);
        let disk = |(name, target): &(String, Target)| -> Result<NewDisk> {
            let (source, format) = match target {
                Target::File { path, format } => {
                    (NewSource::File(path.clone()), format.unwrap_or(ImageFormat::Raw))
                }
                Target::Block { path, format } => {
                    (NewSource::Block(path.clone()), format.unwrap_or(ImageFormat::Raw))
                }
                _ => {
                    let what = format!("a new domain with disk {name} elsewhere than in a file or a device");
                    return Err(Error::OperationUnsupported(what));
                }
            };
            Ok(NewDisk { target: name.clone(), source, format })
        };
        let disks = placed.iter().map(disk).collect::<Result<Vec<_>>>()?;
        let new = NewDomain { name: name.clone(), uuid, disks, nvram: None };
        let bytes = rewrite(&text, &new, &mut |buffer| world.random(buffer))
            .map_err(|error| Error::InvalidArg(format!("the definition of the new domain: {error}")))?;
        Ok(DomainDefinition { name, uuid: Some(uuid), bytes: bytes.into_bytes() })
    }
}

/// The disks that are asked for, each with the target that it, or the document, names.
fn wanted(asked: &Asked, record: &Record) -> Result<Vec<(String, Option<Target>)>> {
    let names: Vec<String> = record.disks.iter().map(|disk| disk.name.clone()).collect();
    let listed =
        asked.disks.clone().unwrap_or_else(|| names.iter().map(|name| (name.clone(), None)).collect());
    if let Some((disk, _)) = listed.iter().find(|(disk, _)| !names.contains(disk)) {
        let owner = format!("backup {}", asked.backup);
        return Err(Error::NoDisk { owner, disk: disk.clone(), disks: names });
    }
    if asked.target.is_some() && listed.iter().filter(|(_, own)| own.is_none()).count() > 1 {
        let what = "one <target> for several disks; give each disk its own".to_owned();
        return Err(Error::OperationUnsupported(what));
    }
    let target = |own: Option<Target>| own.or_else(|| asked.target.clone());
    Ok(listed.into_iter().map(|(disk, own)| (disk, target(own))).collect())
}

fn untargeted(disk: &str) -> Error {
    Error::InvalidArg(format!(
        "disk {disk} has no target: a new domain must not share disks with the first one"
    ))
}

/// Where the engine writes.
pub(crate) async fn volume(target: &Target) -> Result<VolumeSpec> {
    match target {
        Target::Block { path, format: Some(ImageFormat::Qcow2) } => Err(Error::OperationUnsupported(
            format!("a qcow2 image on the device {path}: serve it with qemu-nbd and give its URI"),
        )),
        Target::File { path, format: Some(ImageFormat::Qcow2) } => Ok(VolumeSpec::Qcow2(path.into())),
        Target::File { path, .. } => Ok(VolumeSpec::Raw(path.into())),
        Target::Block { path, .. } => Ok(VolumeSpec::Block(path.into())),
        Target::Nbd(Some(source)) => source
            .uri
            .parse()
            .map(VolumeSpec::Nbd)
            .map_err(|error: aquifer_engine::nbd::Error| Error::InvalidArg(error.to_string())),
        Target::Nbd(None) => Err(Error::InvalidArg("an NBD target without <source uri='…'/>".to_owned())),
        Target::Volume { pool, volume } => volume_path(pool, volume).await,
        // The document's reader has taken these for where the backup is.
        Target::ChunkStore { .. } => Err(Error::Internal("a chunkstore is no volume".to_owned())),
    }
}

/// The path of a volume, as libvirt on this host knows it (`virsh vol-path`).
async fn volume_path(pool: &str, volume: &str) -> Result<VolumeSpec> {
    let cannot = |why: String| {
        Error::Other {
        kind: Kind::Unsupported,
        message: format!("volume {volume} of pool {pool}: {why}"),
        hint: Some("give the volume's path as <target type='file'> or type='block'; of another host's volume, run qemu-nbd there and give its nbd:// URI".to_owned()),
    }
    };
    // What follows the two dashes is a name, whatever it begins with.
    let asked =
        tokio::process::Command::new("virsh").args(["vol-path", "--pool", pool, "--", volume]).output().await;
    let answer = asked.map_err(|error| cannot(format!("virsh cannot be run: {error}")))?;
    if !answer.status.success() {
        let said: String = String::from_utf8_lossy(&answer.stderr).trim().chars().take(300).collect();
        return Err(cannot(format!("virsh does not know it: {said}")));
    }
    let path = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    if !path.starts_with('/') {
        return Err(cannot(format!("virsh gives no path but {path:?}")));
    }
    let block = tokio::fs::metadata(&path).await.is_ok_and(|found| {
        use std::os::unix::fs::FileTypeExt;
        found.file_type().is_block_device()
    });
    Ok(if block { VolumeSpec::Block(path.into()) } else { VolumeSpec::Raw(path.into()) })
}
