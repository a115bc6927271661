//! What one session has stored or is about to store, so that nothing is stored twice.
//!
//! Two questions are answered before a chunk is compressed: does this session hold it already
//! ([`InFlight`]), and does the repository (the chunk index, asked in batches by [`Dedup::absent`])?
//! This is not the index: an id leaves the in-flight set as soon as its pack is published and indexed.
//!
//! Invariant: an id is claimed *before* the index is asked, and dropped only *after* the index knows it.
//! Hence of any number of threads that meet a new chunk at one moment exactly one stores it. A claim whose
//! pack is never stored cannot do harm, because every way to lose a pack fails the session, and a failed
//! session does not commit.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aquifer_format::{ChunkId, PackName};

use crate::Result;
use crate::parts::Parts;

/// Shards of the in-flight set; a power of two.
const SHARDS: usize = 64;

/// Takes an id's own bytes as its hash: chunk ids are keyed hashes and need no second one.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((head, _)) = bytes.split_first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*head);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A set of chunk ids.
pub(crate) type IdSet = HashSet<ChunkId, BuildHasherDefault<IdHasher>>;

/// Locks `mutex`; a panic elsewhere does not make plain collections unusable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ids that this session has claimed and not yet published.
pub(crate) struct InFlight {
    shards: [Mutex<IdSet>; SHARDS],
}

impl InFlight {
    /// An empty set.
    pub(crate) fn new() -> Self {
        InFlight { shards: std::array::from_fn(|_| Mutex::new(IdSet::default())) }
    }

    /// Claims `id`; `false` when this session has it already.
    pub(crate) fn claim(&self, id: &ChunkId) -> bool {
        lock(self.shard(id)).insert(*id)
    }

    /// Forgets `id`.
    pub(crate) fn release(&self, id: &ChunkId) {
        lock(self.shard(id)).remove(id);
    }

    /// Whether this session has claimed `id`.
    pub(crate) fn contains(&self, id: &ChunkId) -> bool {
        lock(self.shard(id)).contains(id)
    }

    /// Ids held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, id: &ChunkId) -> &Mutex<IdSet> {
        // The last byte: the map below uses the first eight.
        &self.shards[usize::from(id.0[31]) % SHARDS]
    }
}

/// The in-flight set together with the packs of others that this session counts on.
pub(crate) struct Dedup {
    in_flight: InFlight,
    depended: Mutex<BTreeSet<PackName>>,
}

/// What [`Dedup::absent`] found for one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Claimed by the caller, who must store it now or fail the session.
    Absent,
    /// Claimed earlier in this session.
    InFlight,
    /// Stored by an earlier session, in a live pack that is now a dependency.
    Stored,
}

impl Dedup {
    /// Knows nothing yet.
    pub(crate) fn new() -> Self {
        Dedup { in_flight: InFlight::new(), depended: Mutex::new(BTreeSet::new()) }
    }

    /// Claims each of `ids` and says in `found` (cleared first) which of them must be stored.
    ///
    /// One index look-up serves the whole batch. An error leaves claims behind: the caller fails the session.
    pub(crate) fn absent(
        &self,
        parts: &Parts,
        ids: &[ChunkId],
        scratch: &mut Vec<ChunkId>,
        found: &mut Vec<Found>,
    ) -> Result<()> {
        found.clear();
        scratch.clear();
        for id in ids {
            if self.in_flight.claim(id) {
                scratch.push(*id);
                found.push(Found::Absent);
            } else {
                found.push(Found::InFlight);
            }
        }
        if scratch.is_empty() {
            return Ok(());
        }
        let stored = parts.live_packs(scratch)?;
        let asked = found.iter_mut().filter(|found| **found == Found::Absent);
        let mut packs = stored.iter();
        for (slot, id) in asked.zip(scratch.iter()) {
            if packs.next().is_some_and(Option::is_some) {
                self.in_flight.release(id);
                *slot = Found::Stored;
            }
        }
        self.depend(stored.into_iter().flatten());
        Ok(())
    }

    /// Claims an id whatever the index has; `false` when this session has it already.
    pub(crate) fn claim(&self, id: &ChunkId) -> bool {
        self.in_flight.claim(id)
    }

    /// Notes packs of other sessions that this one counts on.
    fn depend(&self, packs: impl Iterator<Item = PackName>) {
        let mut last = None;
        let mut depended = None;
        for pack in packs {
            // Neighbours on disk mostly share a pack: one set operation a run.
            if last != Some(pack) {
                depended.get_or_insert_with(|| lock(&self.depended)).insert(pack);
                last = Some(pack);
            }
        }
    }

    /// Whether this session has stored or is storing `id`, and has not published it yet.
    pub(crate) fn holds(&self, id: &ChunkId) -> bool {
        self.in_flight.contains(id)
    }

    /// Drops the claims on `ids`, which the index knows by now.
    pub(crate) fn settle<'a>(&self, ids: impl Iterator<Item = &'a ChunkId>) {
        ids.for_each(|id| self.in_flight.release(id));
    }

    /// The packs noted so far, in order.
    pub(crate) fn dependencies(&self) -> Vec<PackName> {
        lock(&self.depended).iter().copied().collect()
    }

    /// Ids claimed and not settled.
    #[cfg(test)]
    pub(crate) fn claims(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn id(byte: u8) -> ChunkId {
        ChunkId([byte; 32])
    }

    #[test]
    fn a_claimed_id_cannot_be_claimed_again_until_released() {
        let set = InFlight::new();
        assert!(set.claim(&id(1)));
        assert!(!set.claim(&id(1)));
        assert!(set.claim(&id(2)));
        set.release(&id(1));
        assert!(set.claim(&id(1)));
        assert_eq!(set.len(), 2);
    }

    #[test]
    fn of_many_threads_exactly_one_wins_each_id() {
        let set = InFlight::new();
        let wins = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for byte in 0..=255 {
                        if set.claim(&id(byte)) {
                            wins.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(wins.load(Ordering::Relaxed), 256);
    }
}
