//! What to do to a volume so that it holds a chunk: pure comparison, block by block.
//!
//! Invariant: applying the patches to the old bytes gives the new bytes, and a block that both share is
//! never written.

use std::ops::Range;

use aquifer_repository::is_zero;

/// Granularity of the comparison: the page and block size of practically every volume.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// A hole shorter than this between two pieces of data is written as data: it would cost a system call and
/// an extent, and save next to nothing.
const HOLE_BYTES: usize = 16 << 10;

/// What becomes of a piece of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The volume holds it already.
    Same,
    /// It must read as zero, and the volume is known to.
    Hole,
    /// It must read as zero, and the volume does not.
    Clear,
    /// Write it.
    Write,
}

/// A piece of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) change: Change,
    /// Bytes within the chunk.
    pub(crate) range: Range<usize>,
}

/// Where a range of a chunk at `offset` lies on the disk.
pub(crate) fn place(offset: u64, range: &Range<usize>) -> Range<u64> {
    let at = |bytes: usize| offset.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    at(range.start)..at(range.end)
}

/// The patches for a chunk on a volume that is known to read as zero there.
pub(crate) fn onto_zeros(new: &[u8]) -> Vec<Patch> {
    let mut patches = joined(new, |range| if is_zero(&new[range]) { Change::Hole } else { Change::Write });
    let last = patches.len().saturating_sub(1);
    for (at, patch) in patches.iter_mut().enumerate() {
        let inner = at > 0 && at < last;
        if inner && patch.change == Change::Hole && patch.range.len() < HOLE_BYTES {
            patch.change = Change::Write;
        }
    }
    merged(patches)
}

/// The patches for a chunk on a volume that holds `old` there; both have the same length.
pub(crate) fn onto_old(new: &[u8], old: &[u8]) -> Vec<Patch> {
    joined(new, |range| {
        let (new, old) = (&new[range.clone()], &old[range]);
        match (new == old, is_zero(new)) {
            (true, true) => Change::Hole,
            (true, false) => Change::Same,
            (false, true) => Change::Clear,
            (false, false) => Change::Write,
        }
    })
}

/// Classifies each block and joins neighbours of one class.
fn joined(new: &[u8], classify: impl Fn(Range<usize>) -> Change) -> Vec<Patch> {
    let blocks = (0..new.len()).step_by(BLOCK_BYTES).map(|start| {
        let range = start..new.len().min(start + BLOCK_BYTES);
        Patch { change: classify(range.clone()), range }
    });
    merged(blocks)
}

fn merged(patches: impl IntoIterator<Item = Patch>) -> Vec<Patch> {
    let mut out: Vec<Patch> = Vec::new();
    for patch in patches {
        match out.last_mut() {
            Some(last) if last.change == patch.change => last.range.end = patch.range.end,
            _ => out.push(patch),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(patches: &[Patch], new: &[u8], volume: &mut [u8]) {
        let mut next = 0;
        for patch in patches {
            assert_eq!(patch.range.start, next);
            next = patch.range.end;
            match patch.change {
                Change::Same | Change::Hole => {}
                Change::Clear => volume[patch.range.clone()].fill(0),
                Change::Write => volume[patch.range.clone()].copy_from_slice(&new[patch.range.clone()]),
            }
        }
        assert_eq!(next, new.len());
    }

    /// Chunks of a few blocks, each all zero, all ones, or all twos, with a short last one.
    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        (prop::collection::vec(0_u8..3, 1..24), 1..=BLOCK_BYTES).prop_map(|(blocks, last)| {
            let bytes = blocks.len() * BLOCK_BYTES - BLOCK_BYTES + last;
            blocks.iter().flat_map(|&byte| std::iter::repeat_n(byte, BLOCK_BYTES)).take(bytes).collect()
        })
    }

    proptest! {
        #[test]
        fn patches_onto_zeros_give_the_chunk(new in chunk()) {
            let mut volume = vec![0; new.len()];
            apply(&onto_zeros(&new), &new, &mut volume);
            prop_assert_eq!(volume, new);
        }

        #[test]
        fn patches_onto_old_bytes_give_the_chunk_and_touch_no_equal_block(new in chunk(), seed in chunk()) {
            let old: Vec<u8> = seed.iter().copied().cycle().take(new.len()).collect();
            let patches = onto_old(&new, &old);
            for patch in &patches {
                for start in patch.range.clone().step_by(BLOCK_BYTES) {
                    let block = start..patch.range.end.min(start + BLOCK_BYTES);
                    let equal = new[block.clone()] == old[block];
                    prop_assert_eq!(equal, matches!(patch.change, Change::Same | Change::Hole));
                }
            }
            let mut volume = old;
            apply(&patches, &new, &mut volume);
            prop_assert_eq!(volume, new);
        }
    }

    #[test]
    fn a_short_hole_between_data_is_written_and_a_long_one_is_not() {
        let mut new = vec![1; 16 * BLOCK_BYTES];
        new[BLOCK_BYTES..2 * BLOCK_BYTES].fill(0);
        assert_eq!(onto_zeros(&new).len(), 1);
        new[BLOCK_BYTES..9 * BLOCK_BYTES].fill(0);
        let changes: Vec<Change> = onto_zeros(&new).iter().map(|patch| patch.change).collect();
        assert_eq!(changes, [Change::Write, Change::Hole, Change::Write]);
    }
}
