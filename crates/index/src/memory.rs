//! An index in memory: the model that the one on disk is held against, and the overlay of a reader that must know
//! what was published after the state it reads.
//!
//! Not for whole repositories: it takes some 150 bytes a chunk.
//!
//! Invariant: pack slots only grow, so the order of slots is the order of insertion.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aquifer_format::id::{ChunkId, PackName};
use aquifer_format::pack::{PackHeader, TableRow};
use aquifer_format::segment::SegmentPack;

use crate::{ChunkIndex, IndexStats, Location, PackSummary, Position, Result};

#[derive(Debug, Clone, Copy)]
struct Pack {
    summary: PackSummary,
    header: PackHeader,
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` where a pack was removed.
    packs: Vec<Option<Pack>>,
    slots: HashMap<PackName, usize>,
    rows: HashMap<ChunkId, Vec<(usize, TableRow)>>,
    position: Option<Position>,
}

/// A chunk index in memory.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    inner: RwLock<Inner>,
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn pack(&self, slot: usize) -> Option<&Pack> {
        self.packs.get(slot).and_then(Option::as_ref)
    }

    fn locations(&self, id: &ChunkId) -> impl Iterator<Item = (&Pack, &TableRow)> {
        let rows = self.rows.get(id).map(Vec::as_slice).unwrap_or_default();
        rows.iter().filter_map(|(slot, row)| Some((self.pack(*slot)?, row)))
    }
}

impl ChunkIndex for MemoryIndex {
    fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let inner = self.read();
        let one = |id| {
            let found = inner.locations(id);
            found
                .map(|(pack, row)| Location { row: *row, pack: pack.summary.pack, header: pack.header })
                .collect()
        };
        Ok(ids.iter().map(one).collect())
    }

    fn contains_many(
        &self,
        ids: &[ChunkId],
        live: &dyn Fn(&PackName) -> bool,
    ) -> Result<Vec<Option<PackName>>> {
        let inner = self.read();
        let one = |id| inner.locations(id).map(|(pack, _)| pack.summary.pack).find(|pack| live(pack));
        Ok(ids.iter().map(one).collect())
    }

    fn insert_packs(&self, packs: &[SegmentPack]) -> Result<()> {
        let mut inner = self.write();
        for pack in packs {
            if inner.slots.contains_key(&pack.stored_as) {
                continue;
            }
            let slot = inner.packs.len();
            inner.packs.push(Some(Pack { summary: PackSummary::of(pack), header: pack.header }));
            inner.slots.insert(pack.stored_as, slot);
            for row in &pack.rows {
                inner.rows.entry(row.id).or_default().push((slot, *row));
            }
        }
        Ok(())
    }

    fn remove_packs(&self, packs: &[PackName]) -> Result<()> {
        let mut inner = self.write();
        for pack in packs {
            if let Some(slot) = inner.slots.remove(pack)
                && let Some(place) = inner.packs.get_mut(slot)
            {
                *place = None;
            }
        }
        let Inner { packs, rows, .. } = &mut *inner;
        rows.retain(|_, locations| {
            locations.retain(|(slot, _)| packs.get(*slot).is_some_and(Option::is_some));
            !locations.is_empty()
        });
        Ok(())
    }

    fn packs(&self) -> Result<Vec<PackSummary>> {
        Ok(self.read().packs.iter().flatten().map(|pack| pack.summary).collect())
    }

    fn position(&self) -> Result<Option<Position>> {
        Ok(self.read().position)
    }

    fn set_position(&self, position: &Position) -> Result<()> {
        self.write().position = Some(*position);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        *self.write() = Inner::default();
        Ok(())
    }

    fn stats(&self) -> Result<IndexStats> {
        let inner = self.read();
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        Ok(IndexStats { chunks: count(inner.rows.len()), packs: count(inner.slots.len()), disk_bytes: 0 })
    }
}

impl PackSummary {
    pub(crate) fn of(pack: &SegmentPack) -> Self {
        Self {
            pack: pack.stored_as,
            name: pack.name,
            kind: pack.kind,
            bytes: pack.bytes,
            rows: u32::try_from(pack.rows.len()).unwrap_or(u32::MAX),
            hash: pack.hash,
        }
    }
}
