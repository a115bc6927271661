//! Extents: runs of an export's bytes with one status.
//!
//! Invariant of a list made by [`push`]: no extent is empty and neighbours differ in their flags.

/// `base:allocation`: nothing is allocated here. Alone it says nothing about the content.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: these bytes read as zeros.
pub const STATE_ZERO: u32 = 2;
/// `qemu:dirty-bitmap:*`: these bytes were written since the bitmap began.
pub const STATE_DIRTY: u32 = 1;

/// A run of bytes with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, counted from the start of the export.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub bytes: u64,
    /// Status flags; their meaning belongs to the metadata context.
    pub flags: u32,
}

/// Appends `bytes` bytes with `flags` to a list that begins at `start`, merging with the last extent where it can.
pub fn push(list: &mut Vec<Extent>, start: u64, bytes: u64, flags: u32) {
    if bytes == 0 {
        return;
    }
    match list.last_mut() {
        Some(last) if last.flags == flags => last.bytes += bytes,
        Some(last) => {
            let offset = last.offset + last.bytes;
            list.push(Extent { offset, bytes, flags });
        }
        None => list.push(Extent { offset: start, bytes, flags }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_with_the_same_status_become_one() {
        let mut list = Vec::new();
        for (bytes, flags) in [(10, 0), (5, 0), (0, 3), (7, 3)] {
            push(&mut list, 100, bytes, flags);
        }
        assert_eq!(
            list,
            [Extent { offset: 100, bytes: 15, flags: 0 }, Extent { offset: 115, bytes: 7, flags: 3 }]
        );
    }

    proptest! {
        #[test]
        fn a_list_covers_its_range_without_gap(
            runs in proptest::collection::vec((0u64..1000, 0u32..4), 0..50),
            start in 0u64..1 << 40,
        ) {
            let mut list = Vec::new();
            for (bytes, flags) in &runs {
                push(&mut list, start, *bytes, *flags);
            }
            let mut at = start;
            for extent in &list {
                prop_assert_eq!(extent.offset, at);
                prop_assert!(extent.bytes > 0);
                at += extent.bytes;
            }
            prop_assert_eq!(at - start, runs.iter().map(|run| run.0).sum::<u64>());
            prop_assert!(list.windows(2).all(|pair| pair[0].flags != pair[1].flags));
        }
    }
}
