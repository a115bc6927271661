//! Proving that stored backups can be restored, without restoring them (FORMAT.md, "Verify, repair").
//!
//! V0 walks log and trees, V1 reads packs, V2 opens every blob in them; each includes the one before. A missing
//! or damaged object is a finding in the report; an error means that the verification itself could not go on.
//! Nothing is repaired or written here.
//!
//! Invariants: memory is bounded by one node path, one pack a task, the ids of the nodes seen, and the damage;
//! a report names the backups, disks and byte ranges that damage takes along.

mod ages;
mod blame;
mod findings;
mod keyless;
#[cfg(test)]
mod keyless_tests;
mod objects;
mod packs;
mod report;
#[cfg(test)]
mod tests;
pub(crate) mod walk;
#[cfg(test)]
mod whole_tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_format::{ChunkId, PackName, Record};
use aquifer_index::PackSummary;
use aquifer_store::ObjectStore;
use tokio::task::{JoinError, JoinSet};
use uuid::Uuid;

use crate::dedup::IdSet;
use crate::parts::Parts;
use crate::repository::Repository;
use crate::trees::TreeSpec;
use crate::{Error, Result, layout};
use ages::Ages;
use findings::Findings;
use objects::Known;
use packs::PacksRead;
use walk::{LeafCheck, Step, Walk, is_damage};

pub use keyless::verify_keyless;
pub use report::{
    DAMAGE_MAX, Damage, DamagedObject, FOREIGN_MAX, RANGES_MAX, Touched, VerifyLevel, VerifyProgress,
    VerifyReport, VerifyRequest,
};

/// Packs up to which their sizes are asked for one by one instead of listing the store.
const HEADS_MAX: usize = 256;

/// One disk of one backup.
#[derive(Debug, Clone)]
struct Disk {
    backup: Uuid,
    domain: String,
    name: String,
    tree: TreeSpec,
    /// What is known to be clean at the same places.
    base: Option<TreeSpec>,
}

impl Disk {
    fn all_of(record: &Record) -> impl Iterator<Item = Disk> + '_ {
        record.disks.iter().map(|disk| Disk {
            backup: record.backup,
            domain: record.domain.name.clone(),
            name: disk.name.clone(),
            tree: TreeSpec { root: disk.root, size_bytes: disk.size_bytes },
            base: None,
        })
    }
}

impl Repository {
    /// Verifies backups; see [`VerifyLevel`]. `progress` is told about every backup and pack.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`] for an id that is not listed; when a store or the index does not answer.
    pub async fn verify(
        &self,
        request: &VerifyRequest,
        progress: impl Fn(VerifyProgress) + Send + Sync,
    ) -> Result<VerifyReport> {
        self.examine(request, progress).await?.report().await
    }

    /// As [`Repository::verify`], with all that was found.
    pub(crate) async fn examine(
        &self,
        request: &VerifyRequest,
        progress: impl Fn(VerifyProgress) + Send + Sync,
    ) -> Result<Run> {
        self.refresh().await?;
        let state = self.state();
        let mut backups = request.backups.clone();
        if backups.is_empty() {
            let kept = state.backups().iter().filter(|(_, backup)| backup.forgotten.is_none());
            backups = kept.map(|(uuid, _)| *uuid).collect();
        }
        let mut run = Run::new(self.parts().clone(), Ages::load(self.local.as_ref()), backups, request);
        let stores = self.stores();
        run.objects(std::iter::once(&stores.packs).chain(&stores.log)).await?;
        let backups_total = run.backups.len() as u64;
        for (backup, backups_done) in run.backups.clone().into_iter().zip(1..) {
            let id = state.backups().get(&backup).map(|known| known.record);
            run.walk(backup, id, self.record(backup).await).await?;
            progress(VerifyProgress { backups_done, backups_total, ..VerifyProgress::default() });
        }
        run.check_sizes().await?;
        run.read_packs(&progress).await?;
        Ok(run)
    }

    /// Verifies the structure (V0) of a backup that was just committed: only what its parent, which was verified
    /// when it was committed, does not have.
    ///
    /// # Errors
    /// As [`Repository::verify`].
    pub async fn verify_commit(&self, backup: Uuid) -> Result<VerifyReport> {
        let request =
            VerifyRequest { level: VerifyLevel::Structure, backups: vec![backup], sample_percent: 100 };
        let mut run = Run::new(self.parts().clone(), Ages::default(), vec![backup], &request);
        let record = self.record(backup).await?;
        let parent = match record.parent {
            // A parent that is gone saves nothing.
            Some(parent) => self.record(parent).await.ok(),
            None => None,
        };
        for mut disk in Disk::all_of(&record) {
            let before =
                parent.iter().flat_map(|parent| &parent.disks).find(|before| before.name == disk.name);
            disk.base = before.map(|before| TreeSpec { root: before.root, size_bytes: before.size_bytes });
            run.walk_disk(disk).await?;
        }
        run.check_sizes().await?;
        run.report().await
    }
}

/// One verification.
pub(crate) struct Run {
    parts: Parts,
    level: VerifyLevel,
    sample_percent: u8,
    pub(crate) backups: Vec<Uuid>,
    disks: Vec<Disk>,
    seen: IdSet,
    pub(crate) findings: Findings,
    objects: u64,
    listed: Option<BTreeMap<PackName, u64>>,
    foreign: Vec<String>,
    read: PacksRead,
    ages: Ages,
}

impl Run {
    fn new(parts: Parts, ages: Ages, backups: Vec<Uuid>, request: &VerifyRequest) -> Self {
        Run {
            ages,
            parts,
            level: request.level,
            sample_percent: request.sample_percent,
            backups,
            disks: Vec::new(),
            seen: IdSet::default(),
            findings: Findings::default(),
            objects: 0,
            listed: None,
            foreign: Vec::new(),
            read: PacksRead::default(),
        }
    }

    /// Checks what lies outside of the packs, and lists the packs. The first store is the one with the packs.
    async fn objects(&mut self, stores: impl Iterator<Item = &Arc<dyn ObjectStore>>) -> Result<()> {
        for (number, store) in stores.enumerate() {
            let listing = objects::list(&**store).await?;
            let state = self.parts.state.get();
            let known = Known { ring: &self.parts.ring, state: &state };
            self.objects += objects::check(Some(&known), store, &listing, &mut self.findings).await?;
            self.foreign.extend_from_slice(&listing.foreign);
            if number == 0 {
                self.objects +=
                    objects::check_segments(&self.parts, &listing, self.level, &mut self.findings).await?;
                self.listed = Some(listing.packs);
            }
        }
        Ok(())
    }

    /// Walks the trees of one backup, if its record can be read.
    async fn walk(&mut self, backup: Uuid, id: Option<ChunkId>, record: Result<Record>) -> Result<()> {
        match record {
            Ok(record) => {
                if let Some(id) = id {
                    match self.parts.live_packs(&[id])?.first().copied().flatten() {
                        Some(pack) => drop(self.findings.packs.insert(pack)),
                        None => {
                            self.findings.record(backup, id, "no live copy of it is known".to_owned());
                        }
                    }
                }
                for disk in Disk::all_of(&record) {
                    self.walk_disk(disk).await?;
                }
                Ok(())
            }
            Err(error) if is_damage(&error) => {
                match id {
                    Some(id) => self.findings.record(backup, id, error.to_string()),
                    None => self.findings.note(DamagedObject::Record(backup), error.to_string()),
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Walks one disk's tree; leaves are looked up on other threads meanwhile.
    async fn walk_disk(&mut self, disk: Disk) -> Result<()> {
        let tasks = std::thread::available_parallelism().map_or(2, usize::from);
        let mut walk = Walk::new(&self.parts, disk.tree, disk.base).await?;
        let mut lookups = JoinSet::new();
        while let Some(step) = walk.next(&mut self.seen).await? {
            match step {
                Step::Lost { id, error, .. } => self.findings.node(id, error.to_string()),
                Step::Node(id) => match self.parts.live_packs(&[id])?.first().copied().flatten() {
                    Some(pack) => drop(self.findings.packs.insert(pack)),
                    None => self.findings.node(id, "no live copy of this tree node is known".to_owned()),
                },
                Step::Leaf { number, node, base } => {
                    let (parts, shape) = (self.parts.clone(), walk.shape());
                    let check = move || LeafCheck::run(&parts, shape, number, &node, base.as_deref());
                    if lookups.len() >= tasks
                        && let Some(done) = lookups.join_next().await
                    {
                        self.take(done)?;
                    }
                    lookups.spawn_blocking(check);
                }
            }
        }
        while let Some(done) = lookups.join_next().await {
            self.take(done)?;
        }
        self.findings.nodes += walk.nodes_read();
        self.disks.push(disk);
        Ok(())
    }

    fn take(&mut self, done: std::result::Result<Result<LeafCheck>, JoinError>) -> Result<()> {
        let check = done.map_err(|_| Error::Closed)??;
        self.findings.chunks += check.chunks;
        self.findings.packs.extend(check.packs);
        for (id, what) in check.bad {
            self.findings.chunk(id, what);
        }
        Ok(())
    }

    /// Summaries of the packs in use.
    fn used(&self) -> Result<Vec<PackSummary>> {
        let all = self.parts.index.packs()?;
        Ok(all.into_iter().filter(|pack| self.findings.packs.contains(&pack.pack)).collect())
    }

    /// Holds the sizes of the packs in use against the store's.
    async fn check_sizes(&mut self) -> Result<()> {
        let used = self.used()?;
        if self.listed.is_none() && used.len() > HEADS_MAX {
            self.listed = Some(objects::list(&*self.parts.packs).await?.packs);
        }
        for pack in used {
            let there = match &self.listed {
                Some(listed) => listed.get(&pack.pack).copied(),
                None => match self.parts.packs.head(&layout::pack(&pack.pack)).await {
                    Ok(bytes) => Some(bytes),
                    Err(error) if error.is_not_found() => None,
                    Err(error) => return Err(error.into()),
                },
            };
            match there {
                Some(bytes) if bytes == pack.bytes => {}
                Some(bytes) => {
                    let what = format!(
                        "pack {}: {bytes} bytes are stored, {} were published",
                        pack.pack, pack.bytes
                    );
                    self.findings.pack(pack.pack, what);
                }
                None => {
                    self.findings.pack(pack.pack, format!("pack {}: it is missing from the store", pack.pack))
                }
            }
        }
        Ok(())
    }

    /// Reads the packs in use, or a sample of them, as the level asks.
    async fn read_packs(&mut self, progress: &(impl Fn(VerifyProgress) + Sync)) -> Result<()> {
        if self.level == VerifyLevel::Structure {
            return Ok(());
        }
        let mut chosen = self.used()?;
        chosen.retain(|pack| !self.findings.bad_packs.contains(&pack.pack));
        let (world, level) = (Arc::clone(&self.parts.world), self.level);
        let of = |pack: &PackSummary| (pack.pack, pack.bytes);
        let chosen = self.ages.choose(chosen, of, level, self.sample_percent, &*world);
        let backups = self.backups.len() as u64;
        let mut told =
            VerifyProgress { backups_done: backups, backups_total: backups, ..VerifyProgress::default() };
        told.bytes_total = chosen.iter().map(|pack| pack.bytes).sum();
        let ages = &mut self.ages;
        let tell = |pack: &PackSummary, whole| {
            if whole {
                ages.note(pack.pack, level, world.wall_ms());
            }
            told.bytes_done += pack.bytes;
            progress(told);
        };
        self.read = packs::check(&self.parts, chosen, level, &mut self.findings, tell).await?;
        let known = self.parts.index.packs()?.into_iter().map(|pack| pack.pack).collect();
        self.ages.keep(&known);
        Ok(())
    }

    /// What there is to tell.
    pub(crate) async fn report(self) -> Result<VerifyReport> {
        let touched = match self.findings.is_clean() {
            true => Vec::new(),
            false => blame::touched(&self.parts, &self.disks, &self.findings).await?,
        };
        let (never_read, oldest_read_ms) = match self.level {
            VerifyLevel::Structure => (0, None),
            level => self.ages.oldest(self.findings.packs.iter().copied(), level),
        };
        Ok(VerifyReport {
            never_read,
            oldest_read_ms,
            level: self.level,
            backups: self.backups,
            objects: self.objects,
            nodes: self.findings.nodes,
            chunks: self.findings.chunks,
            packs: self.findings.packs.len() as u64,
            packs_read: self.read.packs,
            bytes_read: self.read.bytes,
            blobs_opened: self.read.blobs,
            damage: self.findings.damage,
            more_damage: self.findings.more_damage,
            foreign: self.foreign,
            touched,
        })
    }
}
