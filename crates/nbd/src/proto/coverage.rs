//! Which bytes of a read have been answered, so that each is answered exactly once.
//!
//! Invariant: the ranges are sorted, disjoint and not adjacent; `covered` is their sum.

/// The answered part of one request, as ranges counted from the request's first byte.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    ranges: Vec<(u32, u32)>,
    covered: u64,
}

impl Coverage {
    /// Forgets everything but keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.covered = 0;
    }

    /// Bytes answered so far.
    pub(crate) fn covered(&self) -> u64 {
        self.covered
    }

    /// Adds `[start, end)`; false when a byte of it was there before. `start < end` is the caller's to check.
    pub(crate) fn add(&mut self, start: u32, end: u32) -> bool {
        let next = self.ranges.partition_point(|range| range.0 < start);
        let touches_next = match self.ranges.get(next) {
            Some(range) if range.0 < end => return false,
            Some(range) => range.0 == end,
            None => false,
        };
        let touches_last = match next.checked_sub(1).and_then(|last| self.ranges.get(last)) {
            Some(range) if range.1 > start => return false,
            Some(range) => range.1 == start,
            None => false,
        };
        match (touches_last, touches_next) {
            (true, true) => self.ranges[next - 1].1 = self.ranges.remove(next).1,
            (true, false) => self.ranges[next - 1].1 = end,
            (false, true) => self.ranges[next].0 = start,
            (false, false) => self.ranges.insert(next, (start, end)),
        }
        self.covered += u64::from(end - start);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn coverage_agrees_with_a_map_of_bytes(adds in proptest::collection::vec((0u32..200, 1u32..40), 0..40)) {
            let mut coverage = Coverage::default();
            let mut map = [false; 240];
            for (start, bytes) in adds {
                let part = &mut map[start as usize..(start + bytes) as usize];
                let fresh = part.iter().all(|byte| !byte);
                prop_assert_eq!(coverage.add(start, start + bytes), fresh);
                if fresh {
                    part.fill(true);
                }
                prop_assert_eq!(coverage.covered(), map.iter().filter(|byte| **byte).count() as u64);
                prop_assert!(coverage.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}
