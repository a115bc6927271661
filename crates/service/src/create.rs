//! Managed backups by document: what it asks for, as a request of the engine, and what is to be done besides.
//!
//! Not here: the job (`managed.rs`).
//!
//! Invariant: what is refused for its words is refused before the guest is troubled.

use std::sync::Arc;

use aquifer_api::request::{BackupRequest as Asked, Parent, Start};
use aquifer_api::xml::{BackupMode, Method, Target};
use aquifer_api::{Backup, CreateFlags, Creation, Error, JobState, Result};
use aquifer_engine::qemu::Quiesce;
use aquifer_engine::{BackupOutcome, BackupRequest, Source, VolumeSpec, WantedParent};
use uuid::Uuid;

use crate::managed::Extras;
use crate::restore::volume;
use crate::service::Service;

impl Service {
    pub(crate) async fn create(&self, domain: &str, xml: &str, flags: CreateFlags) -> Result<Creation> {
        flags.check()?;
        let asked = Asked::parse(xml, Start::Managed)?;
        let (request, extras) = self.managed(domain, &asked, flags).await?;
        if flags.contains(CreateFlags::ESTIMATE) {
            return self.estimate(request).await.map(Creation::Estimated);
        }
        let uuid = self.begin_backup(request, xml, extras).await?;
        Ok(Creation::Started(Backup::new(uuid)))
    }

    /// The same for a document of the other call, all of whose targets are repositories.
    pub(crate) async fn pull(
        &self,
        domain: &str,
        xml: &str,
        asked: &Asked,
        flags: CreateFlags,
    ) -> Result<Backup> {
        let (request, extras) = self.managed(domain, asked, flags).await?;
        Ok(Backup::new(self.begin_backup(request, xml, extras).await?))
    }

    /// Runs a backup that a document asks for to its end, in this process.
    ///
    /// # Errors
    /// Those of [`aquifer_api::BackupApi::create_backup`], and what ends the job. What fails after the backup is complete
    /// is an error as well, which says that it is.
    pub async fn backup_document(
        &self,
        domain: &str,
        xml: &str,
        start: Start,
        flags: CreateFlags,
    ) -> aquifer_engine::Result<BackupOutcome> {
        let from = |error: Error| crate::error::from_api(&error);
        let asked = Asked::parse(xml, start).map_err(|error| from(error.into()))?;
        let (mut request, extras) = self.managed(domain, &asked, flags).await.map_err(from)?;
        let uuid =
            *request.uuid.get_or_insert_with(|| aquifer_engine::clock::new_uuid(&*self.context().world));
        let job = self.enter_job(uuid, domain, xml).map_err(from)?;
        let cancel = self.context().cancel.clone();
        let (outcome, besides) = self.run_backup(&job, request, extras, cancel, Arc::default()).await?;
        besides.map(|()| outcome).map_err(|error| {
            from(error).about(format_args!("backup {uuid} is complete, but not what was asked besides"))
        })
    }

    /// A managed backup that a document asks for, and what is to be done besides.
    async fn managed(
        &self,
        domain: &str,
        asked: &Asked,
        flags: CreateFlags,
    ) -> Result<(BackupRequest, Extras)> {
        flags.check()?;
        refuse_unsupported(flags)?;
        let reuse = flags.contains(CreateFlags::REUSE_EXTERNAL);
        let extras = Extras {
            protect: flags.contains(CreateFlags::PROTECT),
            verify: flags.contains(CreateFlags::VERIFY),
            exports: exports(asked, reuse).await?,
            reuse,
        };
        Ok((self.request(domain, asked, flags).await?, extras))
    }

    /// What the engine is asked, for either kind of backup.
    pub(crate) async fn request(
        &self,
        domain: &str,
        asked: &Asked,
        flags: CreateFlags,
    ) -> Result<BackupRequest> {
        self.refresh().await?;
        self.require_domain(domain)?;
        self.settle(domain).await?;
        if let Some(uuid) = asked.uuid {
            self.require_free(uuid)?;
        }
        let parent = self.parent(domain, &asked.parent, flags).await?;
        let mut source = self.source_of(domain)?;
        match asked.method {
            Some(Method::Filter) if self.0.filter.is_none() => {
                let what = "the method `filter`, before `aquifer doctor` has tested it here".to_owned();
                return Err(Error::OperationUnsupported(what));
            }
            Some(Method::Filter) => source.filter.clone_from(&self.0.filter),
            Some(Method::Classic) => source.filter = None,
            None => {}
        }
        if flags.contains(CreateFlags::REQUIRE_QUIESCE) {
            source.quiesce = Quiesce::Require;
        } else if flags.contains(CreateFlags::QUIESCE) && source.agent.is_some() {
            source.quiesce = Quiesce::Try;
        }
        let wanted = asked.disks.as_deref().unwrap_or_default();
        let wanted: Vec<_> = wanted.iter().filter(|disk| !disk.excluded).collect();
        source.disks.only = wanted.iter().map(|disk| disk.name.clone()).collect();
        let is_full = |mode: Option<BackupMode>| mode == Some(BackupMode::Full);
        Ok(BackupRequest {
            domain: domain.to_owned(),
            source: Source::Qmp(Box::new(source)),
            uuid: asked.uuid,
            description: asked.description.clone().unwrap_or_default(),
            labels: std::collections::BTreeMap::new(),
            full: flags.contains(CreateFlags::FULL)
                || is_full(asked.mode) && wanted.iter().all(|disk| disk.mode.is_none()),
            full_disks: wanted
                .iter()
                .filter(|disk| is_full(disk.mode.or(asked.mode)))
                .map(|disk| disk.name.clone())
                .collect(),
            parent,
            namespace: self.namespace(domain, asked)?,
            definition: self.definition(domain),
            recheck_ppm: None,
            fence_after: aquifer_engine::repository::FENCE_AFTER,
        })
    }

    /// The definition that a backup of the domain keeps.
    pub(crate) fn definition(&self, domain: &str) -> Option<Vec<u8>> {
        let known = self.repository().domain(domain)?;
        known.definition.map(|definition| definition.bytes)
    }

    pub(crate) fn require_free(&self, uuid: Uuid) -> Result<()> {
        let taken = self.repository().backup(uuid).is_ok() || self.entry(uuid)?.is_some();
        if taken { Err(Error::BackupExists(uuid)) } else { Ok(()) }
    }

    /// The parent that a document names, which must be a completed backup of the domain.
    async fn parent(
        &self,
        domain: &str,
        parent: &Parent,
        flags: CreateFlags,
    ) -> Result<Option<WantedParent>> {
        let missing = |parent: String| Error::NoParent { parent, domain: domain.to_owned() };
        let backup = match parent {
            Parent::Newest => return Ok(None),
            Parent::Backup(uuid) => *uuid,
            // The checkpoint of a backup has its name.
            Parent::Checkpoint(name) => name.parse().map_err(|_| missing(name.clone()))?,
        };
        let items = self.items().await?;
        let item = items.iter().find(|item| item.uuid() == backup && item.domain() == domain);
        let item = item.ok_or_else(|| missing(backup.to_string()))?;
        match item.state() {
            JobState::Completed => {
                Ok(Some(WantedParent { backup, strict: flags.contains(CreateFlags::STRICT_PARENT) }))
            }
            state => Err(Error::ParentNotComplete { parent: backup, state }),
        }
    }

    /// The part of the repository that the backup goes into: what its disks say, else the document, else the domain.
    fn namespace(&self, domain: &str, asked: &Asked) -> Result<Option<String>> {
        let default = self.default_target(domain)?;
        let disks = asked.disks.iter().flatten().filter(|disk| !disk.excluded);
        let own = disks.map(|disk| disk.target.as_ref().or(asked.target.as_ref()).or(default.as_ref()));
        let mut targets: Vec<Option<&Target>> = own.collect();
        if targets.is_empty() {
            targets.push(asked.target.as_ref().or(default.as_ref()));
        }
        let mut namespaces = Vec::new();
        for target in targets {
            match target {
                // An unmanaged backup's disks are served, whatever the default says.
                Some(Target::Nbd(None)) | None => namespaces.push(None),
                Some(target @ Target::ChunkStore { namespace, .. }) => {
                    self.require_store(target)?;
                    namespaces.push(namespace.clone());
                }
                // The disk lies there as well, and in the repository without a namespace of its own.
                Some(_) => {}
            }
        }
        namespaces.dedup();
        match namespaces.as_slice() {
            [] => Ok(None),
            [one] => Ok(one.clone()),
            _ => Err(Error::OperationUnsupported("disks of one backup in several namespaces".to_owned())),
        }
    }
}

/// The disks whose targets are no repository, with these. A volume that is there already is refused before the guest is
/// troubled, unless it may be reused.
async fn exports(asked: &Asked, reuse: bool) -> Result<Vec<(String, VolumeSpec)>> {
    let elsewhere = |target: &&Target| !matches!(target, Target::ChunkStore { .. });
    let shared = asked.target.as_ref().filter(elsewhere);
    let disks: Vec<_> = asked.disks.iter().flatten().filter(|disk| !disk.excluded).collect();
    if shared.is_some() && disks.iter().filter(|disk| disk.target.is_none()).count() != 1 {
        let what = "one <target> outside of a repository for several disks; give each disk its own";
        return Err(Error::OperationUnsupported(what.to_owned()));
    }
    let mut exports = Vec::new();
    for disk in disks {
        let Some(target) = disk.target.as_ref().or(shared).filter(elsewhere) else { continue };
        let place = volume(target).await?;
        if let VolumeSpec::Raw(path) | VolumeSpec::Qcow2(path) = &place
            && !reuse
            && std::fs::metadata(path).is_ok_and(|found| found.len() > 0)
        {
            return Err(Error::TargetExists(place.to_string()));
        }
        exports.push((disk.name.clone(), place));
    }
    Ok(exports)
}

/// Flags with a meaning that nothing here gives them.
fn refuse_unsupported(flags: CreateFlags) -> Result<()> {
    let unsupported = [
        (
            CreateFlags::PRESERVE_SHUTDOWN,
            "PRESERVE_SHUTDOWN: that a domain stays paused after its guest's shutdown is QEMU's option -action shutdown=pause",
        ),
        (
            CreateFlags::OFFLINE_OK,
            "OFFLINE_OK: back up the images of a stopped domain with `aquifer backup --image NAME=PATH`",
        ),
    ];
    match unsupported.iter().find(|(flag, _)| flags.contains(*flag)) {
        Some((_, what)) => Err(Error::OperationUnsupported((*what).to_owned())),
        None => Ok(()),
    }
}
