//! Managed backups: from a document to a request of the engine, and the job around it.
//!
//! Invariant: whoever is told of a point in time can trust that it exists; whoever is refused leaves nothing behind.

use std::sync::{Arc, Mutex, PoisonError};

use aquifer_api::request::{BackupRequest as Asked, Parent, Start};
use aquifer_api::xml::{BackupMode, Method, Target};
use aquifer_api::{Backup, CreateFlags, Creation, Error, JobState, Result};
use aquifer_engine::qemu::Quiesce;
use aquifer_engine::{
    BackupOutcome, BackupRequest, Event, EventSink, JobContext, Source, VerifyDepth, VerifyJob, WantedParent,
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{journal, repository, to_api};
use crate::journal::{Entry, EntryDisk, Job, JobKind};
use crate::service::{Live, Service};

/// Time between two notes of a running job's progress in its entry, in milliseconds.
const NOTE_MS: u64 = 1000;

/// A job that several parts of this process write down.
type SharedJob = Arc<Mutex<Job>>;

/// What a managed backup is asked to do besides reading.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras {
    /// Protect it from deletion.
    pub protect: bool,
    /// Read back what was stored.
    pub verify: bool,
}

impl Service {
    pub(crate) async fn create(&self, domain: &str, xml: &str, flags: CreateFlags) -> Result<Creation> {
        flags.check()?;
        let asked = Asked::parse(xml, Start::Managed)?;
        refuse_unsupported(flags)?;
        let request = self.request(domain, &asked, flags).await?;
        if flags.contains(CreateFlags::ESTIMATE) {
            return self.estimate(request).await.map(Creation::Estimated);
        }
        let extras = Extras {
            protect: flags.contains(CreateFlags::PROTECT),
            verify: flags.contains(CreateFlags::VERIFY),
        };
        let uuid = self.begin_backup(request, xml, extras).await?;
        Ok(Creation::Started(Backup::new(uuid)))
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
    fn definition(&self, domain: &str) -> Option<Vec<u8>> {
        let known = self.repository().domain(domain)?;
        known.definition.map(|definition| definition.bytes)
    }

    fn require_free(&self, uuid: Uuid) -> Result<()> {
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
                Some(target) => {
                    self.require_store(target)?;
                    if let Target::ChunkStore { namespace, .. } = target {
                        namespaces.push(namespace.clone());
                    }
                }
            }
        }
        namespaces.dedup();
        match namespaces.as_slice() {
            [] => Ok(None),
            [one] => Ok(one.clone()),
            _ => Err(Error::OperationUnsupported("disks of one backup in several namespaces".to_owned())),
        }
    }

    /// Starts a managed backup, and waits for its point in time.
    async fn begin_backup(&self, mut request: BackupRequest, xml: &str, extras: Extras) -> Result<Uuid> {
        let uuid =
            *request.uuid.get_or_insert_with(|| aquifer_engine::clock::new_uuid(&*self.context().world));
        let job = self.enter_job(uuid, &request.domain, xml)?;
        let (started, instant) = oneshot::channel();
        let cancel = CancellationToken::new();
        let (ended, over) = watch::channel(false);
        self.enter(uuid, Live { cancel: cancel.clone(), over, hand_over: None });
        let service = self.clone();
        tokio::spawn(async move {
            // A cancelled service ends its jobs.
            let parent = service.context().cancel.clone();
            let ending = cancel.clone();
            let linked = tokio::spawn(async move {
                parent.cancelled().await;
                ending.cancel();
            });
            let (domain, started) = (request.domain.clone(), Arc::new(Mutex::new(Some(started))));
            let result = service.run_backup(&job, request, extras, cancel, Arc::clone(&started)).await;
            linked.abort();
            let waiting = started.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(job);
            // Whoever still waits has not been told of a job, so there shall be none.
            if let (Some(waiting), Err(error)) = (waiting, result) {
                if let Err(error) = service.0.journal.remove(uuid) {
                    tracing::warn!(%uuid, %error, "a job that was refused is left in the journal");
                }
                let _ = waiting.send(Err(to_api(&error, &domain)));
            }
            service.leave_live(uuid);
            ended.send_replace(true);
        });
        match instant.await {
            Ok(told) => told.map(|()| uuid),
            Err(_) => Err(Error::Internal(format!("the job of backup {uuid} ended without a word"))),
        }
    }

    fn enter_job(&self, uuid: Uuid, domain: &str, xml: &str) -> Result<SharedJob> {
        let entry = Entry::new(uuid, domain, JobKind::Backup, xml, self.now_ms());
        let job = self.0.journal.begin(entry).map_err(journal)?;
        Ok(Arc::new(Mutex::new(job)))
    }

    /// Runs a managed backup to its end, with its job in the journal.
    ///
    /// # Errors
    /// As [`aquifer_engine::backup`]; `Conflict` while the domain has a job.
    pub async fn backup(&self, mut request: BackupRequest) -> aquifer_engine::Result<BackupOutcome> {
        let from = |error: Error| crate::error::from_api(&error);
        self.settle(&request.domain).await.map_err(from)?;
        let uuid =
            *request.uuid.get_or_insert_with(|| aquifer_engine::clock::new_uuid(&*self.context().world));
        self.refresh().await.map_err(from)?;
        self.require_free(uuid).map_err(from)?;
        request.definition = request.definition.or_else(|| self.definition(&request.domain));
        if request.namespace.is_none()
            && let Some(Target::ChunkStore { store, namespace }) =
                self.default_target(&request.domain).map_err(from)?
            && store == self.0.store
        {
            request.namespace = namespace;
        }
        let job = self.enter_job(uuid, &request.domain, "").map_err(from)?;
        let cancel = self.context().cancel.clone();
        self.run_backup(&job, request, Extras::default(), cancel, Arc::default()).await
    }

    /// The job itself. `started` is told when the point in time exists.
    async fn run_backup(
        &self,
        job: &SharedJob,
        request: BackupRequest,
        extras: Extras,
        cancel: CancellationToken,
        started: Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>,
    ) -> aquifer_engine::Result<BackupOutcome> {
        self.step(job, JobState::Preparing)?;
        let events = self.noting(job, started);
        let context = JobContext { events, cancel, ..self.context().clone() };
        let outcome = match aquifer_engine::backup(&context, request).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let end = match error.kind() {
                    aquifer_engine::Kind::Cancelled => JobState::Cancelled,
                    _ => JobState::Failed,
                };
                self.failed(job, end, error.message());
                return Err(error);
            }
        };
        self.step(job, JobState::Finalizing)?;
        self.note_outcome(job, &outcome)?;
        if let Err(error) = self.extras(&context, outcome.uuid, extras).await {
            // The backup is there; what was asked besides is not.
            tracing::warn!(uuid = %outcome.uuid, %error, "the backup is complete, and not as it was asked for");
            let noted = locked(job).change(|entry| entry.error = Some(error.to_string()));
            noted.map_err(|error| crate::error::from_api(&journal(error)))?;
        }
        self.step(job, JobState::Completed)?;
        Ok(outcome)
    }

    /// Writes down the next step; it is not taken when that fails.
    fn step(&self, job: &SharedJob, to: JobState) -> aquifer_engine::Result<()> {
        let written = locked(job).advance(to, self.now_ms());
        written.map_err(|error| crate::error::from_api(&journal(error)))
    }

    fn failed(&self, job: &SharedJob, end: JobState, message: &str) {
        if let Err(error) = locked(job).fail(end, message, self.now_ms()) {
            tracing::warn!(%error, "the end of a job is not in the journal");
        }
    }

    /// Events of the engine, written down and passed on.
    fn noting(&self, job: &SharedJob, started: Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>) -> EventSink {
        let (service, job) = (self.clone(), Arc::clone(job));
        let noted = Mutex::new(0_u64);
        EventSink::new(move |event| {
            if let Err(error) = service.note(&job, &event, &noted) {
                tracing::warn!(%error, "a step of a job is not in the journal");
            }
            if matches!(event, Event::Started { .. })
                && let Some(waiting) = started.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                let _ = waiting.send(Ok(()));
            }
            service.context().events.send(event);
        })
    }

    fn note(
        &self,
        job: &SharedJob,
        event: &Event,
        noted: &Mutex<u64>,
    ) -> std::result::Result<(), crate::journal::JournalError> {
        match event {
            Event::Started { disks, .. } => {
                let now_ms = self.now_ms();
                let mut job = locked(job);
                job.advance(JobState::Running, now_ms)?;
                let disk = |(name, size_bytes): (&String, &u64)| EntryDisk {
                    name: name.clone(),
                    size_bytes: *size_bytes,
                    ..EntryDisk::default()
                };
                job.change(|entry| {
                    entry.instant_ms = Some(now_ms);
                    entry.disks = disks.iter().map(disk).collect();
                })
            }
            Event::Progress { rate_bytes, eta_ms, .. } => {
                let now_ms = self.context().world.monotonic_ms();
                let mut last = noted.lock().unwrap_or_else(PoisonError::into_inner);
                if now_ms.saturating_sub(*last) < NOTE_MS {
                    return Ok(());
                }
                *last = now_ms;
                locked(job).change(|entry| {
                    let total: u64 = entry.disks.iter().map(|disk| disk.size_bytes).sum();
                    let left = eta_ms.map_or(0, |ms| rate_bytes.saturating_mul(ms) / 1000);
                    (entry.rate_bytes, entry.done_bytes) = (*rate_bytes, total.saturating_sub(left));
                })
            }
            Event::Verifying { .. } | Event::Warning { .. } => Ok(()),
        }
    }

    fn note_outcome(&self, job: &SharedJob, outcome: &BackupOutcome) -> aquifer_engine::Result<()> {
        let mode = |mode| match mode {
            aquifer_engine::DiskMode::Full => "full",
            aquifer_engine::DiskMode::Bitmap => "bitmap",
            aquifer_engine::DiskMode::Rescan => "rescan",
        };
        let disks = outcome.disks.iter().map(|disk| EntryDisk {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            mode: mode(disk.mode).to_owned(),
            reason: disk.reason.clone(),
            read_bytes: disk.read_bytes,
            zero_bytes: disk.zero_bytes,
            dup_bytes: disk.kept_bytes + disk.deduplicated_bytes,
            new_bytes: disk.new_bytes,
            stored_bytes: disk.stored_bytes,
        });
        let disks: Vec<EntryDisk> = disks.collect();
        let noted = locked(job).change(|entry| {
            entry.done_bytes = disks.iter().map(|disk| disk.size_bytes).sum();
            entry.disks = disks;
            entry.freeze_ms = outcome.freeze_ms;
        });
        noted.map_err(|error| crate::error::from_api(&journal(error)))
    }

    async fn extras(&self, context: &JobContext, uuid: Uuid, extras: Extras) -> Result<()> {
        if extras.protect {
            self.repository().protect(&[uuid], true).await.map_err(repository)?;
        }
        if extras.verify {
            let job = VerifyJob { backups: vec![uuid], depth: VerifyDepth::Chunks, sample_percent: 100 };
            let outcome = aquifer_engine::verify(context, job).await.map_err(|error| to_api(&error, ""))?;
            if !outcome.clean {
                let findings =
                    vec![format!("run `aquifer verify {uuid} --level chunks` to see what is damaged")];
                return Err(Error::CheckFailed { backup: uuid, findings });
            }
        }
        Ok(())
    }
}

fn locked(job: &SharedJob) -> std::sync::MutexGuard<'_, Job> {
    job.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flags with a meaning that nothing here gives them.
fn refuse_unsupported(flags: CreateFlags) -> Result<()> {
    let unsupported = [
        (
            CreateFlags::REUSE_EXTERNAL,
            "REUSE_EXTERNAL: backups go into repositories, which have no files to reuse",
        ),
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
