//! Verification of what is stored: the repository's own levels, and on top of them a restore into nothing.
//!
//! The three lower levels are the repository's (FORMAT.md, "Verify, repair"): structure, packs, chunks. The
//! fourth reads every disk from end to end through the very pipeline of a restore.

use std::sync::Arc;

use aquifer_repository::format::log::SessionKind;
use aquifer_repository::{TreeSpec, VerifyLevel, VerifyProgress, VerifyReport, VerifyRequest};
use serde::Serialize;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Running;
use crate::error::{Error, Kind, Result};
use crate::plan::Grid;
use crate::progress::Meter;
use crate::restore::copy;
use crate::settings::JobContext;
use crate::target::Target;
use crate::volume::Volume;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyDepth {
    /// Log and trees lead to live packs of the right size; no data is read.
    Structure,
    /// Every pack in use has the hash that it was stored with.
    Packs,
    /// Every chunk decrypts, decompresses, and hashes to its id.
    Chunks,
    /// Every disk reads from end to end as a restore would read it.
    Restore,
}

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyJob {
    /// How deep.
    pub depth: VerifyDepth,
    /// Which backups; empty for all that are not forgotten.
    pub backups: Vec<Uuid>,
    /// Share of the packs to read at the levels above structure, in percent from 1 to 100.
    pub sample_percent: u8,
}

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename = "done")]
pub struct VerifyOutcome {
    /// How deep it looked.
    pub depth: VerifyDepth,
    /// Wall time.
    pub seconds: f64,
    /// True if nothing is damaged.
    pub clean: bool,
    /// What the repository's own levels found.
    pub report: VerifyReport,
    /// Disks that were read from end to end.
    pub disks_read: u64,
    /// Their bytes.
    pub bytes_restored: u64,
    /// Disks that could not be, with the reason.
    pub unreadable: Vec<UnreadableDisk>,
}

/// A disk that a restore would fail on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadableDisk {
    /// The backup.
    pub backup: Uuid,
    /// The disk.
    pub disk: String,
    /// Why.
    pub what: String,
}

/// Verifies backups. Damage is an outcome, not an error.
///
/// # Errors
/// `NotFound` for an unknown backup; whatever keeps the verification from looking; `Cancelled`.
pub fn verify(context: &JobContext, job: VerifyJob) -> Running<'_, Result<VerifyOutcome>> {
    Box::pin(run(context, job))
}

async fn run(context: &JobContext, job: VerifyJob) -> Result<VerifyOutcome> {
    let started_ms = context.world.monotonic_ms();
    let level = match job.depth {
        VerifyDepth::Structure => VerifyLevel::Structure,
        VerifyDepth::Packs => VerifyLevel::Packs,
        VerifyDepth::Chunks | VerifyDepth::Restore => VerifyLevel::Chunks,
    };
    let request = VerifyRequest { level, backups: job.backups, sample_percent: job.sample_percent };
    let events = context.events.clone();
    let progress = move |progress: VerifyProgress| {
        events.send(progress.into());
    };
    let report = tokio::select! {
        biased;
        () = context.cancel.cancelled() => return Err(Error::cancelled()),
        report = Box::pin(context.repository.verify(&request, progress)) => report?,
    };
    let mut outcome = VerifyOutcome {
        depth: job.depth,
        seconds: 0.0,
        clean: report.is_clean(),
        report,
        disks_read: 0,
        bytes_restored: 0,
        unreadable: Vec::new(),
    };
    if job.depth == VerifyDepth::Restore {
        for backup in outcome.report.backups.clone() {
            Box::pin(read_backup(context, backup, &mut outcome)).await?;
        }
        outcome.clean &= outcome.unreadable.is_empty();
    }
    let elapsed_ms = context.world.monotonic_ms().saturating_sub(started_ms);
    outcome.seconds = std::time::Duration::from_millis(elapsed_ms).as_secs_f64();
    Ok(outcome)
}

async fn read_backup(context: &JobContext, backup: Uuid, outcome: &mut VerifyOutcome) -> Result<()> {
    let record = match context.repository.record(backup).await {
        // Whose disks somebody else read: there is nothing here to restore.
        Ok(record) if record.external => return Ok(()),
        Ok(record) => record,
        Err(error) => {
            let error = Error::from(error);
            // The report names it already.
            return if error.kind() == Kind::Corrupt { Ok(()) } else { Err(error) };
        }
    };
    let session = context.repository.begin_read(SessionKind::Verify, vec![backup]).await?;
    let mut ended = Ok(());
    for disk in &record.disks {
        let grid = Grid::new(disk.size_bytes, context.repository.config().chunk_bytes);
        let tree = TreeSpec { root: disk.root, size_bytes: disk.size_bytes };
        let meter = Meter::new(context.events.clone(), disk.size_bytes).disk(&disk.name, disk.size_bytes);
        let target = Arc::new(Target::new(disk.name.clone(), grid, tree, Volume::nowhere(), meter, None));
        let read = Box::pin(copy(context, &[Arc::clone(&target)], JoinSet::new())).await;
        match read.and_then(|()| target.total()) {
            Ok(_) => {
                outcome.disks_read += 1;
                outcome.bytes_restored += disk.size_bytes;
            }
            Err(error) if error.kind() == Kind::Corrupt => {
                let (disk, what) = (disk.name.clone(), error.message().to_owned());
                outcome.unreadable.push(UnreadableDisk { backup, disk, what });
            }
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if let Err(error) = session.close().await {
        tracing::warn!("the verification's session could not be ended in the log: {error}");
    }
    ended
}
