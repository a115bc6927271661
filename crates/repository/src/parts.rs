//! What the data plane needs of its repository: keys, stores, index, the log's state, clock and sizes.
//!
//! Here is also the one rule about copies of a blob: an index says where copies lie, the log's state says
//! which of them may be counted on. Nothing here reads or writes an object.
//!
//! Invariant: deduplication counts on live copies only; a restore prefers them.

use std::sync::{Arc, PoisonError, RwLock};

use aquifer_format::{ChunkId, KeyRing, PackName, State};
use aquifer_index::{ChunkIndex, Location};
use aquifer_store::ObjectStore;

use crate::nodes::MetaCache;
use crate::{Result, Settings, World};

/// The newest fold of the log, shared by everything that asks whether a pack is live.
#[derive(Debug)]
pub(crate) struct StateCell(RwLock<Arc<State>>);

impl StateCell {
    /// A cell that holds `state`.
    pub(crate) fn new(state: Arc<State>) -> Self {
        StateCell(RwLock::new(state))
    }

    /// The state now; it does not change under the caller.
    pub(crate) fn get(&self) -> Arc<State> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the state by a newer one.
    pub(crate) fn set(&self, state: Arc<State>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// What the data plane needs of its repository; cheap to clone.
#[derive(Clone)]
pub(crate) struct Parts {
    /// Keys.
    pub(crate) ring: KeyRing,
    /// Where packs lie.
    pub(crate) packs: Arc<dyn ObjectStore>,
    /// Where each chunk lies.
    pub(crate) index: Arc<dyn ChunkIndex>,
    /// What the log says.
    pub(crate) state: Arc<StateCell>,
    /// Clock and randomness.
    pub(crate) world: Arc<dyn World>,
    /// Sizes and limits.
    pub(crate) settings: Settings,
    /// The repository's chunk size in bytes.
    pub(crate) chunk_bytes: u32,
    /// Recent meta packs.
    pub(crate) meta_cache: Arc<MetaCache>,
}

/// Whether the copy at `location` may be counted on: its pack is live, and it is not quarantined itself.
pub(crate) fn is_live(state: &State, location: &Location) -> bool {
    state.is_live(&location.pack) && !state.is_quarantined(&location.pack, &location.row.id)
}

impl Parts {
    /// For each of `ids` a pack with a live copy. One look-up for all of them.
    pub(crate) fn live_packs(&self, ids: &[ChunkId]) -> Result<Vec<Option<PackName>>> {
        let state = self.state.get();
        let mut packs = self.index.contains_many(ids, &|pack| state.is_live(pack))?;
        if state.quarantined_blobs().is_empty() {
            return Ok(packs);
        }
        // Single blobs are quarantined so rarely that each may cost a look-up of its own.
        for (id, pack) in ids.iter().zip(&mut packs) {
            if pack.is_some_and(|pack| state.is_quarantined(&pack, id)) {
                let copies = self.copies(id)?;
                *pack = copies.first().filter(|copy| is_live(&state, copy)).map(|copy| copy.pack);
            }
        }
        Ok(packs)
    }

    /// Every known copy of a blob, live ones first.
    pub(crate) fn copies(&self, id: &ChunkId) -> Result<Vec<Location>> {
        let state = self.state.get();
        let mut copies =
            self.index.get_many(std::slice::from_ref(id))?.into_iter().next().unwrap_or_default();
        copies.sort_by_key(|copy| !is_live(&state, copy));
        Ok(copies)
    }

    /// One copy of each of `ids`, in order: a live one where there is one, else any, which may still open; `None` where no
    /// copy is known.
    pub(crate) fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let state = self.state.get();
        let best = |copies: Vec<Location>| {
            let live = copies.iter().position(|copy| is_live(&state, copy)).unwrap_or(0);
            copies.get(live).copied()
        };
        Ok(self.index.get_many(ids)?.into_iter().map(best).collect())
    }
}
