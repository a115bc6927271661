//! The watch over a frozen instant: what ends it, and ending the session at once, before the guest pays for it.
//!
//! Events are hints that make it quick; `query-jobs` is the truth (a concluded job of ours stays until dismissed). A
//! filter has no job: QEMU lets nobody take it out under its snapshot, and one that broke is seen by the reader, who gets
//! errors from then on.
//! Invariant: once an instant is said to be lost it stays lost.

use std::fmt;

use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::address::{MonitorAddress, MonitorOptions};
use crate::cleanup::{CleanupReport, Occasion, Scope, connect_and_sweep, sweep};
use crate::commands::{QueryExports, QueryJobs, QueryStatus};
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};
use crate::names::session_of;
use crate::session::Method;

/// Why a frozen instant is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// A scratch reached its write threshold: the session was ended before the guest had to stop.
    ScratchFull {
        /// File node of the scratch.
        node: String,
    },
    /// The guest stopped on an I/O error; the session was ended, and the guest continued if it was our scratch.
    GuestStopped,
    /// A backup job of ours ended.
    JobEnded {
        /// Job id.
        job: String,
        /// QEMU's reason, or the status.
        reason: String,
    },
    /// An export of ours is gone.
    ExportGone {
        /// Export id.
        export: String,
    },
    /// The monitor's connection ended: QEMU is gone, or nothing can be known any more.
    MonitorClosed(String),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScratchFull { node } => write!(
                f,
                "scratch {node} reached its write threshold, so the backup was ended before the guest had to stop; \
                 give --scratch more room, or back up when the guest writes less"
            ),
            Self::GuestStopped => f.write_str(
                "the guest stopped on an I/O error; the backup was ended, and the guest told to go on if the \
                 scratch was at fault",
            ),
            Self::JobEnded { job, reason } => write!(f, "backup job {job} ended: {reason}"),
            Self::ExportGone { export } => write!(f, "export {export} was removed by somebody else"),
            Self::MonitorClosed(reason) => write!(f, "the monitor closed: {reason}"),
        }
    }
}

/// What belongs to one session, for the watch and the check.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) address: MonitorAddress,
    pub(crate) monitor: Monitor,
    pub(crate) options: MonitorOptions,
    pub(crate) scope: Scope,
    /// Ids that job and export of a disk share.
    pub(crate) ids: Vec<String>,
    /// File nodes of the scratches.
    pub(crate) files: Vec<String>,
    pub(crate) method: Method,
}

/// A running watch.
#[derive(Debug)]
pub(crate) struct Watch {
    task: JoinHandle<()>,
    lost: watch::Receiver<Option<Lost>>,
}

impl Watch {
    /// `events` must have been subscribed before the transaction.
    pub(crate) fn start(watched: Watched, events: broadcast::Receiver<Event>) -> Self {
        let (sender, lost) = watch::channel(None);
        let task = tokio::spawn(async move {
            let reason = watched.first_loss(events).await;
            tracing::warn!(%reason, "the frozen instant is lost");
            let reachable = !matches!(reason, Lost::MonitorClosed(_));
            sender.send_replace(Some(reason));
            // At once, whatever it was: what is left of the session only costs the guest, and may yet stop it.
            if reachable && let Err(error) = watched.end().await {
                tracing::error!(%error, "the session could not be ended at once");
            }
        });
        Self { task, lost }
    }

    pub(crate) fn lost(&self) -> watch::Receiver<Option<Lost>> {
        self.lost.clone()
    }

    /// Ends the watch, so that the session's own end is not taken for a loss. A watch that is ending the session
    /// itself is waited for.
    pub(crate) async fn stop(&mut self) {
        if self.lost.borrow().is_none() {
            self.task.abort();
        }
        // A cancelled task is what was asked for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    async fn first_loss(&self, mut events: broadcast::Receiver<Event>) -> Lost {
        loop {
            let event = tokio::select! {
                closed = self.monitor.closed() => return Lost::MonitorClosed(closed.to_string()),
                event = events.recv() => event,
            };
            let found = match event {
                Ok(event) => self.judge(&event).await,
                // Some were missed: ask for the state instead.
                Err(RecvError::Lagged(_)) => self.check().await.err(),
                Err(RecvError::Closed) => Some(Lost::MonitorClosed("its reader ended".to_owned())),
            };
            if let Some(lost) = found {
                return lost;
            }
        }
    }

    /// What an event means. A QEMU that ends takes its jobs and exports along: one that goes on is asked what is
    /// missing, and one that does not answer has ended.
    async fn judge(&self, event: &Event) -> Option<Lost> {
        let mine = |list: &[String], key: &str| list.iter().find(|name| *name == event.text(key)).cloned();
        match event.name.as_str() {
            "BLOCK_WRITE_THRESHOLD" => mine(&self.files, "node-name").map(|node| Lost::ScratchFull { node }),
            "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" | "BLOCK_JOB_ERROR" => {
                let job = mine(&self.ids, "device")?;
                let error = Some(event.text("error")).filter(|error| !error.is_empty());
                let lost = Lost::JobEnded { job, reason: error.unwrap_or(&event.name).to_owned() };
                Some(self.check().await.err().unwrap_or(lost))
            }
            "JOB_STATUS_CHANGE" if !job_is_alive(event.text("status")) => {
                let job = mine(&self.ids, "id")?;
                let lost = Lost::JobEnded { job, reason: event.text("status").to_owned() };
                Some(self.check().await.err().unwrap_or(lost))
            }
            "BLOCK_EXPORT_DELETED" => {
                mine(&self.ids, "id")?;
                self.check().await.err()
            }
            "STOP" => self.stopped_on_error().await.then_some(Lost::GuestStopped),
            _ => None,
        }
    }

    async fn stopped_on_error(&self) -> bool {
        let status = self.monitor.execute(QueryStatus(json!({}))).await;
        status.is_ok_and(|status| status.status == "io-error")
    }

    /// Asks QEMU whether what holds the instant still does, without error, and every export is there.
    pub(crate) async fn check(&self) -> std::result::Result<(), Lost> {
        match self.state().await {
            Ok(None) => Ok(()),
            Ok(Some(lost)) => Err(lost),
            Err(error) => Err(Lost::MonitorClosed(error.to_string())),
        }
    }

    async fn state(&self) -> Result<Option<Lost>> {
        if self.method == Method::Classic
            && let Some(lost) = self.lost_job().await?
        {
            return Ok(Some(lost));
        }
        let exports = self.monitor.execute(QueryExports(json!({}))).await?;
        let gone = self.ids.iter().find(|id| !exports.iter().any(|export| export.id == **id));
        Ok(gone.map(|id| Lost::ExportGone { export: id.clone() }))
    }

    async fn lost_job(&self) -> Result<Option<Lost>> {
        let jobs = self.monitor.execute(QueryJobs(json!({}))).await?;
        for id in &self.ids {
            let reason = match jobs.iter().find(|job| job.id == *id) {
                None => Some("it is gone".to_owned()),
                Some(job) if job.error.is_some() => job.error.clone(),
                Some(job) if !job_is_alive(&job.status) => Some(job.status.clone()),
                Some(_) => None,
            };
            if let Some(reason) = reason {
                return Ok(Some(Lost::JobEnded { job: id.clone(), reason }));
            }
        }
        Ok(None)
    }

    /// The end of the session, in the order of [`sweep`].
    pub(crate) async fn end(&self) -> Result<CleanupReport> {
        let session = self.ids.first().map_or("", |id| session_of(id));
        let occasion = Occasion::SessionEnd { session, server: true };
        match sweep(&self.monitor, &self.options, &self.scope, occasion).await {
            // QEMU has ended, or only the way to it: then what it holds for us must not stay.
            Err(Error::MonitorClosed { .. }) => {
                let occasion = Occasion::CutOff { session };
                Box::pin(connect_and_sweep(&self.address, &self.options, &self.scope, occasion)).await
            }
            outcome => outcome,
        }
    }
}

/// Whether a job of this status still keeps its instant. An unknown status is none that keeps anything.
fn job_is_alive(status: &str) -> bool {
    ["created", "running", "paused", "ready", "standby"].contains(&status)
}
