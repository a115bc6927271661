//! The job of a managed backup: from the engine's request to its end, with every step in the journal.
//!
//! Not here: what documents ask for (`create.rs`).
//!
//! Invariant: whoever is told of a point in time can trust that it exists; whoever is refused leaves nothing behind.

use std::sync::{Arc, Mutex, PoisonError};

use aquifer_api::xml::Target;
use aquifer_api::{Error, JobState, Result};
use aquifer_engine::{
    BackupOutcome, BackupRequest, Event, EventSink, JobContext, RestoreRequest, VerifyDepth, VerifyJob,
    VolumeSpec,
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
pub(crate) type SharedJob = Arc<Mutex<Job>>;

/// What a managed backup is asked to do besides reading.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    /// Protect it from deletion.
    pub(crate) protect: bool,
    /// Read back what was stored, and what was written elsewhere.
    pub(crate) verify: bool,
    /// Disks that are to lie elsewhere as well, as images of their own.
    pub(crate) exports: Vec<(String, VolumeSpec)>,
    /// These may exist: what differs is rewritten.
    pub(crate) reuse: bool,
}

impl Service {
    /// Starts a managed backup, and waits for its point in time.
    pub(crate) async fn begin_backup(
        &self,
        mut request: BackupRequest,
        xml: &str,
        extras: Extras,
    ) -> Result<Uuid> {
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

    pub(crate) fn enter_job(&self, uuid: Uuid, domain: &str, xml: &str) -> Result<SharedJob> {
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
        let run = self.run_backup(&job, request, Extras::default(), cancel, Arc::default());
        run.await.map(|(outcome, _)| outcome)
    }

    /// The job itself, and what became of the extras. `started` is told when the point in time exists.
    pub(crate) async fn run_backup(
        &self,
        job: &SharedJob,
        request: BackupRequest,
        extras: Extras,
        cancel: CancellationToken,
        started: Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>,
    ) -> aquifer_engine::Result<(BackupOutcome, Result<()>)> {
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
        self.note_outcome(job, &outcome)?;
        let besides = self.extras(&context, outcome.uuid, extras).await;
        if let Err(error) = &besides {
            // The backup is there; what was asked besides is not.
            tracing::warn!(uuid = %outcome.uuid, %error, "the backup is complete, and not as it was asked for");
            let noted = locked(job).change(|entry| entry.error = Some(error.to_string()));
            noted.map_err(|error| crate::error::from_api(&journal(error)))?;
        }
        self.step(job, JobState::Completed)?;
        Ok((outcome, besides))
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
            Event::Committing { .. } => locked(job).advance(JobState::Finalizing, self.now_ms()),
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
        if !extras.exports.is_empty() {
            let request = RestoreRequest {
                backup: uuid,
                disks: extras.exports,
                rewrite_existing: extras.reuse,
                verify: extras.verify,
                dry_run: false,
                salvage: false,
            };
            aquifer_engine::restore(context, request).await.map_err(|error| to_api(&error, ""))?;
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
