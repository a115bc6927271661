//! Repair: keeping new backups off what is damaged, and storing anew what another copy still has (docs/FORMAT.md,
//! "Verify, repair").
//!
//! It verifies, marks what is damaged in the log, and then looks for each blob that a backup needs and no live pack holds:
//! in quarantined packs, which may still open, and in another repository with the same keys, such as a copy of this one.
//! What it does not find the next backup stores anew, if the disk still has it. Not here: finding damage
//! ([`crate::verify`]).
//!
//! Invariant: repair deletes nothing, and what it stores hashed to the id that was missing.

use std::sync::Arc;

use aquifer_format::log::{BlobPlace, Body, SessionKind};
use aquifer_format::{BlobKind, ChunkId, PackName};
use serde::Serialize;
use uuid::Uuid;

use crate::collect::Tally;
use crate::presence::Purpose;
use crate::repository::{Repository, blocking};
use crate::verify::walk::is_damage;
use crate::verify::{Run, VerifyLevel, VerifyProgress, VerifyReport, VerifyRequest};
use crate::writer::ChunkWriter;
use crate::writing::Writing;
use crate::{Result, open};

/// Marks of one log entry: far below its limit of bytes.
const MARKS_PER_ENTRY: usize = 10_000;

/// Rounds of looking, marking and storing. A tree node that is back shows what is missing below it, a tree has six levels,
/// and the record is above them; what is marked in a round is stored anew in the next.
const ROUNDS: usize = 20;

/// What to repair.
#[derive(Debug, Clone)]
pub struct RepairRequest {
    /// How deep to look for damage.
    pub level: VerifyLevel,
    /// Which backups; empty for all that are not forgotten.
    pub backups: Vec<Uuid>,
    /// Look only: nothing is marked or stored.
    pub dry_run: bool,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Nothing was marked or stored.
    pub dry_run: bool,
    /// Packs that were marked as damaged now, or would be.
    pub quarantined_packs: u64,
    /// Single blobs that were marked as damaged now, or would be.
    pub quarantined_blobs: u64,
    /// Blobs stored anew out of a damaged pack in which they still open, and their bytes.
    pub healed: Tally,
    /// Blobs stored anew out of the other repository, and their bytes.
    pub fetched: Tally,
    /// What is damaged after it.
    pub left: VerifyReport,
}

impl RepairReport {
    fn count(&mut self, marks: &Marks) {
        self.quarantined_packs += marks.packs.len() as u64;
        self.quarantined_blobs += marks.blobs.len() as u64;
    }
}

fn look(level: VerifyLevel, backups: Vec<Uuid>) -> VerifyRequest {
    VerifyRequest { level, backups, sample_percent: 100 }
}

/// What is to be marked.
struct Marks {
    packs: Vec<PackName>,
    blobs: Vec<BlobPlace>,
}

impl Repository {
    /// Repairs backups; `from` is another repository that may have what this one lost.
    ///
    /// # Errors
    /// As [`Repository::verify`]; [`crate::Error::AtomicCreate`], [`crate::Error::Fenced`] and those of the log when something is to be
    /// written.
    pub async fn repair(
        self: &Arc<Self>,
        request: &RepairRequest,
        from: Option<&Arc<Repository>>,
        progress: impl Fn(VerifyProgress) + Send + Sync,
    ) -> Result<RepairReport> {
        let found = self.examine(&look(request.level, request.backups.clone()), progress).await?;
        let backups = found.backups.clone();
        let marks = self.marks(&found);
        let mut report = RepairReport {
            dry_run: request.dry_run,
            quarantined_packs: 0,
            quarantined_blobs: 0,
            healed: Tally::default(),
            fetched: Tally::default(),
            left: found.report().await?,
        };
        if request.dry_run || report.left.is_clean() {
            report.count(&marks);
            return Ok(report);
        }
        open::prove_log_store(&self.stores, &self.config).await?;
        self.quarantine(marks, &mut report).await?;
        report.left = Box::pin(self.heal_all(request.level, backups, from, &mut report)).await?;
        Ok(report)
    }

    /// What of the damage the log does not know yet.
    fn marks(&self, found: &Run) -> Marks {
        let state = self.state();
        // What is whole of a pack with a scar is stored anew, too: it may be the next to go.
        let packs = found.findings.bad_packs.union(&found.findings.scarred_packs).copied();
        let packs: Vec<PackName> = packs.filter(|pack| state.is_live(pack)).collect();
        let blobs = found.findings.sick_blobs.iter().copied();
        let blobs = blobs.filter(|place| state.is_live(&place.pack) && !packs.contains(&place.pack));
        Marks { blobs: blobs.collect(), packs }
    }

    async fn quarantine(&self, marks: Marks, report: &mut RepairReport) -> Result<()> {
        report.count(&marks);
        let packs = marks.packs.chunks(MARKS_PER_ENTRY);
        let packs = packs.map(|packs| Body::Quarantine { packs: packs.to_vec(), blobs: Vec::new() });
        let blobs = marks.blobs.chunks(MARKS_PER_ENTRY);
        let blobs = blobs.map(|blobs| Body::Quarantine { packs: Vec::new(), blobs: blobs.to_vec() });
        for body in packs.chain(blobs) {
            self.log.append(|_| Ok(vec![body.clone()])).await?;
        }
        Ok(())
    }

    /// Looks for what is lost until nothing more is found, and says what is left.
    async fn heal_all(
        self: &Arc<Self>,
        level: VerifyLevel,
        backups: Vec<Uuid>,
        from: Option<&Arc<Repository>>,
        report: &mut RepairReport,
    ) -> Result<VerifyReport> {
        let mut parts = self.parts.clone();
        // It may be the only copy.
        parts.settings.self_check = true;
        // What is healed must not be dropped meanwhile.
        let (kind, pins) = (SessionKind::Verify, backups.clone());
        let purpose = Purpose { kind, domain: None, backup: None, pins, alone: None };
        let writing = Writing::open(self, parts, purpose, |_| Ok(())).await?;
        let healed = self.rounds(&writing, level, backups, from, report).await;
        match healed {
            Ok(left) => {
                writing.close().await?;
                Ok(left)
            }
            Err(error) => {
                writing.close_after_failure().await;
                Err(error)
            }
        }
    }

    /// Each round sees what the one before has brought back. Data is read again only where a tree came back, because
    /// nobody has looked below it yet.
    async fn rounds(
        self: &Arc<Self>,
        writing: &Writing,
        level: VerifyLevel,
        backups: Vec<Uuid>,
        from: Option<&Arc<Repository>>,
        report: &mut RepairReport,
    ) -> Result<VerifyReport> {
        let (mut round, mut depth) = (0, VerifyLevel::Structure);
        loop {
            let mut found = self.examine(&look(depth, backups.clone()), |_| {}).await?;
            let lost = std::mem::take(&mut found.findings.lost);
            let marks = self.marks(&found);
            let marked = !(marks.packs.is_empty() && marks.blobs.is_empty());
            let trees = lost.iter().any(|(kind, _)| *kind != BlobKind::Data);
            round += 1;
            if round > ROUNDS {
                return found.report().await;
            }
            self.quarantine(marks, report).await?;
            let healed = self.heal(writing, lost, from, report).await?;
            if !healed && !marked {
                return found.report().await;
            }
            depth = if healed && trees { level } else { VerifyLevel::Structure };
        }
    }

    /// Stores and publishes those of `lost` that can be read somewhere; `false` when there are none.
    async fn heal(
        &self,
        writing: &Writing,
        lost: Vec<(BlobKind, ChunkId)>,
        from: Option<&Arc<Repository>>,
        report: &mut RepairReport,
    ) -> Result<bool> {
        let before = report.healed.objects + report.fetched.objects;
        let mut writer = ChunkWriter::new(Arc::clone(&writing.plane));
        for (kind, id) in lost {
            let (plain, tally) = match readable(self.parts.read_blob(kind, &id).await)? {
                Some(plain) => (plain, &mut report.healed),
                None => match self.read_elsewhere(from, kind, &id).await? {
                    Some(plain) => (plain, &mut report.fetched),
                    None => continue,
                },
            };
            tally.add(plain.len() as u64);
            writer = match kind {
                BlobKind::Data => blocking(move || writer.store_anew(&id, &plain).map(|()| writer)).await?,
                BlobKind::Tree | BlobKind::Record => {
                    writing.plane.store_meta_anew(kind, &id, &plain).await?;
                    writer
                }
            };
        }
        blocking(move || writer.finish()).await?;
        writing.plane.flush().await?;
        writing.publish().await?;
        Ok(report.healed.objects + report.fetched.objects > before)
    }

    async fn read_elsewhere(
        &self,
        from: Option<&Arc<Repository>>,
        kind: BlobKind,
        id: &ChunkId,
    ) -> Result<Option<Vec<u8>>> {
        let Some(other) = from else { return Ok(None) };
        let plain = readable(other.parts.read_blob(kind, id).await)?;
        // The other one may have other keys, under which the same name is that of other bytes.
        Ok(plain.filter(|plain| self.parts.ring.chunk_id(kind, plain) == *id))
    }
}

/// What was read, if it is no damage that kept it from being read.
fn readable(read: Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match read {
        Ok(plain) => Ok(Some(plain)),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
