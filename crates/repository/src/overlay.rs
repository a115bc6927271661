//! The index of a reader: what is on disk, and in memory what was published after it.
//!
//! Invariant: it never writes to the disk, so it needs no lock and never makes a writer wait.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use aquifer_format::id::{ChunkId, PackName};
use aquifer_format::segment::SegmentPack;
use aquifer_index::{
    ChunkIndex, IndexStats, Location, MemoryIndex, PackSummary, Position, Result, RocksReader,
};

/// A reader's index.
pub(crate) struct Overlay {
    disk: RwLock<Disk>,
    newer: MemoryIndex,
}

/// What is on disk, without what was removed since.
struct Disk {
    reader: Option<RocksReader>,
    packs: HashSet<PackName>,
    gone: HashSet<PackName>,
}

impl Overlay {
    /// Begins with what `reader` has; `None` begins empty.
    pub(crate) fn new(reader: Option<RocksReader>) -> Self {
        let disk = Disk { reader, packs: HashSet::new(), gone: HashSet::new() };
        Self { disk: RwLock::new(disk), newer: MemoryIndex::new() }
    }

    fn disk(&self) -> RwLockReadGuard<'_, Disk> {
        self.disk.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// The names of the packs on disk, read once when they are first needed.
    fn known(&mut self) -> Result<&HashSet<PackName>> {
        if let (true, Some(reader)) = (self.packs.is_empty(), &self.reader) {
            self.packs = reader.packs()?.into_iter().map(|pack| pack.pack).collect();
        }
        Ok(&self.packs)
    }
}

impl ChunkIndex for Overlay {
    fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let disk = self.disk();
        let newer = self.newer.get_many(ids)?;
        let Some(reader) = &disk.reader else { return Ok(newer) };
        let mut found = reader.get_many(ids)?;
        for (locations, newer) in found.iter_mut().zip(newer) {
            locations.retain(|location| !disk.gone.contains(&location.pack));
            locations.extend(newer);
        }
        Ok(found)
    }

    fn contains_many(
        &self,
        ids: &[ChunkId],
        live: &dyn Fn(&PackName) -> bool,
    ) -> Result<Vec<Option<PackName>>> {
        let disk = self.disk();
        let newer = self.newer.contains_many(ids, live)?;
        let Some(reader) = &disk.reader else { return Ok(newer) };
        let mut found = reader.contains_many(ids, &|pack| live(pack) && !disk.gone.contains(pack))?;
        for (found, newer) in found.iter_mut().zip(newer) {
            *found = found.or(newer);
        }
        Ok(found)
    }

    fn insert_packs(&self, packs: &[SegmentPack]) -> Result<()> {
        let mut disk = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        let known = disk.known()?;
        let fresh: Vec<_> = packs.iter().filter(|pack| !known.contains(&pack.stored_as)).cloned().collect();
        self.newer.insert_packs(&fresh)
    }

    fn remove_packs(&self, packs: &[PackName]) -> Result<()> {
        let mut disk = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        disk.gone.extend(packs);
        self.newer.remove_packs(packs)
    }

    fn packs(&self) -> Result<Vec<PackSummary>> {
        let disk = self.disk();
        let mut packs = match &disk.reader {
            Some(reader) => reader.packs()?,
            None => Vec::new(),
        };
        packs.retain(|pack| !disk.gone.contains(&pack.pack));
        packs.extend(self.newer.packs()?);
        Ok(packs)
    }

    fn position(&self) -> Result<Option<Position>> {
        match (self.newer.position()?, &self.disk().reader) {
            (None, Some(reader)) => reader.position(),
            (newer, _) => Ok(newer),
        }
    }

    fn set_position(&self, position: &Position) -> Result<()> {
        self.newer.set_position(position)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        let mut disk = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        *disk = Disk { reader: None, packs: HashSet::new(), gone: HashSet::new() };
        self.newer.reset()
    }

    fn stats(&self) -> Result<IndexStats> {
        let newer = self.newer.stats()?;
        let Some(disk) = self.disk().reader.as_ref().map(RocksReader::stats).transpose()? else {
            return Ok(newer);
        };
        Ok(IndexStats {
            chunks: disk.chunks.saturating_add(newer.chunks),
            packs: disk.packs.saturating_add(newer.packs),
            disk_bytes: disk.disk_bytes,
        })
    }
}
