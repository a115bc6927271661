//! Ending jobs: what `finish_job` does for each kind of job and each place where it can be.

use aquifer_api::{Error, FinishFlags, JobState, Kind, Result};
use aquifer_engine::Exposure;
use uuid::Uuid;

use crate::error::{journal, to_api};
use crate::journal::{Entry, Job, JobKind};
use crate::service::{Live, Service};

impl Service {
    pub(crate) async fn finish(&self, uuid: Uuid, flags: FinishFlags) -> Result<JobState> {
        flags.check()?;
        self.refresh().await?;
        let stored = self.repository().backup(uuid).is_ok_and(|info| info.forgotten.is_none());
        let Some(entry) = self.entry(uuid)? else {
            return Err(if stored { Error::NoBackupJob(uuid) } else { Error::NoBackup(uuid) });
        };
        let cancel = flags.contains(FinishFlags::CANCEL);
        if entry.state == JobState::Cancelled && cancel {
            return Ok(JobState::Cancelled);
        }
        if stored || entry.state.is_final() {
            return Err(Error::NoBackupJob(uuid));
        }
        match entry.kind {
            JobKind::Unmanaged => Box::pin(self.finish_unmanaged(&entry, flags)).await,
            JobKind::Backup | JobKind::Restore => self.finish_managed(&entry, flags).await,
        }
    }

    /// Waits for, or ends, a job that moves data itself.
    async fn finish_managed(&self, entry: &Entry, flags: FinishFlags) -> Result<JobState> {
        let uuid = entry.uuid;
        let cancel = flags.contains(FinishFlags::CANCEL);
        if !cancel && !flags.contains(FinishFlags::WAIT) {
            let what = "it still copies; it is complete by itself, and WAIT waits for that".to_owned();
            return Err(Error::OperationInvalid { backup: uuid, state: entry.state, what });
        }
        match self.live(uuid) {
            Some(Live { cancel: token, .. }) => {
                if cancel {
                    token.cancel();
                }
                self.wait(uuid).await;
            }
            None => {
                if cancel {
                    signal(entry.process, rustix::process::Signal::TERM);
                }
                self.wait_for_others(uuid).await?;
            }
        }
        self.refresh().await?;
        let ended = self.entry(uuid)?.ok_or(Error::NoBackup(uuid))?;
        match ended.state {
            JobState::Completed | JobState::Cancelled => Ok(ended.state),
            _ => Err(Error::Other {
                kind: Kind::Unavailable,
                message: ended.error.unwrap_or_else(|| format!("job {uuid} is {}", ended.state)),
                hint: None,
            }),
        }
    }

    async fn finish_unmanaged(&self, entry: &Entry, flags: FinishFlags) -> Result<JobState> {
        let (exposure, job) = match self.reclaim(entry.uuid).await {
            Some(given) => given,
            None => match self.take_over(entry, flags).await? {
                Taken::Served(served) => *served,
                Taken::Ended(state) => return Ok(state),
            },
        };
        if flags.contains(FinishFlags::CANCEL) {
            return self.cancel(exposure, job).await;
        }
        self.complete(exposure, job, flags.contains(FinishFlags::CHECK)).await
    }

    async fn cancel(&self, exposure: Exposure, mut job: Job) -> Result<JobState> {
        let domain = job.entry().domain.clone();
        job.advance(JobState::Cancelled, self.now_ms()).map_err(journal)?;
        exposure.cancel().await.map_err(|error| to_api(&error, &domain))?;
        Ok(JobState::Cancelled)
    }

    async fn complete(&self, mut exposure: Exposure, mut job: Job, check: bool) -> Result<JobState> {
        let Entry { uuid: backup, domain, state, .. } = job.entry().clone();
        if state != JobState::Finalizing {
            job.advance(JobState::Finalizing, self.now_ms()).map_err(journal)?;
        }
        if check && let Err(error) = exposure.probe().await {
            // What was served cannot be served again, and costs the guest.
            self.give_up(exposure, job, JobState::Failed, error.message()).await;
            return Err(Error::CheckFailed { backup, findings: vec![error.message().to_owned()] });
        }
        match exposure.finish(self.context()).await {
            Ok(_) => {
                job.advance(JobState::Completed, self.now_ms()).map_err(journal)?;
                Ok(JobState::Completed)
            }
            Err(error) => {
                job.fail(JobState::Failed, error.message(), self.now_ms()).map_err(journal)?;
                Err(to_api(&error, &domain))
            }
        }
    }

    /// Gets a served backup from the process that has it, or had it.
    async fn take_over(&self, entry: &Entry, flags: FinishFlags) -> Result<Taken> {
        let uuid = entry.uuid;
        let mut job = match self.0.journal.take(uuid).map_err(journal)? {
            Some(job) => job,
            None => {
                signal(entry.process, rustix::process::Signal::USR1);
                self.wait_for_others(uuid).await?;
                self.0.journal.take(uuid).map_err(journal)?.ok_or(Error::NoBackupJob(uuid))?
            }
        };
        // It may have ended while it was asked for.
        let state = job.entry().state;
        let Some(exposed) = job.entry().exposed.clone().filter(|_| !state.is_final()) else {
            let cancelled = state == JobState::Cancelled && flags.contains(FinishFlags::CANCEL);
            return if cancelled { Ok(Taken::Ended(state)) } else { Err(Error::NoBackupJob(uuid)) };
        };
        match Exposure::resume((*exposed).clone()).await {
            Ok(exposure) => Ok(Taken::Served(Box::new((exposure, job)))),
            Err(error) => {
                // Without its QEMU the instant is gone; only files can be left of it.
                let cleared = exposed.clear().await;
                let cancel = flags.contains(FinishFlags::CANCEL);
                let end = if cancel { JobState::Cancelled } else { JobState::Interrupted };
                job.fail(end, error.message(), self.now_ms()).map_err(journal)?;
                if let Err(left) = cleared {
                    tracing::warn!(%uuid, error = %left, "what the backup left could not be cleared up");
                }
                if cancel { Ok(Taken::Ended(end)) } else { Err(to_api(&error, &entry.domain)) }
            }
        }
    }

    /// Waits until no process has the job.
    async fn wait_for_others(&self, uuid: Uuid) -> Result<()> {
        let journal_of = self.0.journal.clone();
        let waited = tokio::task::spawn_blocking(move || journal_of.wait(uuid)).await;
        waited.map_err(|error| Error::Internal(error.to_string()))?.map_err(journal)
    }
}

/// What came of taking a served backup over.
enum Taken {
    /// It is served, and in this process's hands.
    Served(Box<(Exposure, Job)>),
    /// It is over, as was asked for.
    Ended(JobState),
}

/// Sends a signal to a process that has a job: that it has the job's lock is what makes the number its own.
fn signal(process: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process(pid, signal)
    {
        tracing::debug!(process, %error, "the process that has the job is gone");
    }
}
