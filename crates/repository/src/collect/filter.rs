//! The ids that were walked, as a Bloom filter: four bytes an id, and no id that was put in is ever denied.
//!
//! It vouches for nothing the other way round: an id that it knows may be another one. That keeps a pack until the next
//! run, whose filter is salted anew, and never loses one.
//!
//! Invariant: no false negatives.

use aquifer_format::ChunkId;

/// Bits for each expected id; with [`PROBES_MAX`] probes some two in ten million strangers are taken for known.
const BITS_PER_ID: u64 = 32;
const PROBES_MAX: u32 = 16;
/// The most that it takes: a quarter of a gigabyte, at its best for 67 million ids.
const BITS_MAX: u64 = 1 << 31;
const BITS_MIN: u64 = 1 << 16;

/// See the module.
pub(super) struct Filter {
    words: Vec<u64>,
    probes: u32,
    salt: u64,
}

impl Filter {
    /// An empty filter with room for `ids`. `salt` is random.
    pub(super) fn new(ids: u64, salt: u64) -> Self {
        let bits = ids.saturating_mul(BITS_PER_ID).clamp(BITS_MIN, BITS_MAX);
        // ln 2 of the bits an id has is the best number of probes.
        let probes = u32::try_from(bits.saturating_mul(69) / 100 / ids.max(1)).unwrap_or(PROBES_MAX);
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX);
        Filter { words: vec![0; words], probes: probes.clamp(1, PROBES_MAX), salt }
    }

    /// Puts an id in.
    pub(super) fn insert(&mut self, id: &ChunkId) {
        for bit in self.bits(id) {
            self.words[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// Whether an id may have been put in; always true of one that was.
    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.bits(id).all(|bit| self.words[bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// The bits of an id. Ids are keyed hashes, so two of their words, salted, are two hashes.
    fn bits(&self, id: &ChunkId) -> impl Iterator<Item = usize> + use<> {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&id.0[at..at + 8]);
            mixed(u64::from_le_bytes(bytes) ^ self.salt)
        };
        let (first, step, size) = (word(0), word(8) | 1, self.words.len() as u128 * 64);
        (0..u64::from(self.probes)).map(move |number| {
            let hash = first.wrapping_add(step.wrapping_mul(number));
            // The high half of the product is evenly below `size`.
            usize::try_from((u128::from(hash) * size) >> 64).unwrap_or(0)
        })
    }
}

/// Spreads a word over all its bits (the end of SplitMix64).
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::noise;

    fn ids(seed: u64, count: usize) -> Vec<ChunkId> {
        noise(seed, count * 32).chunks_exact(32).map(|bytes| ChunkId(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn every_id_that_was_put_in_is_known() {
        // Far too small, as when the index said too little: still none is denied.
        for room in [0, 10, 100_000] {
            let mut filter = Filter::new(room, 7);
            let ids = ids(1, 20_000);
            ids.iter().for_each(|id| filter.insert(id));
            assert!(ids.iter().all(|id| filter.contains(id)), "room for {room}");
        }
    }

    #[test]
    fn of_strangers_hardly_any_is_taken_for_known() {
        let mut filter = Filter::new(20_000, 7);
        ids(1, 20_000).iter().for_each(|id| filter.insert(id));
        let taken = ids(2, 100_000).iter().filter(|id| filter.contains(id)).count();
        assert!(taken <= 2, "{taken} of 100000");
    }

    #[test]
    fn another_salt_takes_other_strangers_for_known() {
        let strangers = ids(2, 200_000);
        let taken = |salt| {
            let mut filter = Filter::new(1, salt);
            ids(1, 4000).iter().for_each(|id| filter.insert(id));
            strangers.iter().filter(|id| filter.contains(id)).copied().collect::<Vec<_>>()
        };
        let (first, second) = (taken(1), taken(2));
        let both = first.iter().filter(|id| second.contains(id)).count();
        assert!(!first.is_empty() && both * 2 < first.len(), "{both} of {}", first.len());
    }
}
