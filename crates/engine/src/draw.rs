//! Which unchanged chunks of an increment are read all the same: a random sample, drawn anew for each disk and backup.
//!
//! Pure: the seed is an argument. The gaps between drawn chunks are drawn instead of one lot for every chunk, so that a
//! sample of a large disk costs as much as it is large. Invariant: every whole chunk of a clean run is drawn with the
//! same probability, whatever was drawn before.

use std::ops::Range;

use crate::changes::Region;
use crate::plan::{Grid, Status};

/// The share that is read if nobody says another, in parts of a million.
const DEFAULT_PPM: u32 = 1000;
/// Bytes of one disk that this default reads at most, on average.
const DEFAULT_BYTES_MAX: u64 = 16 << 20;

/// A sample of a disk's chunks.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    /// Probability of each chunk.
    share: f64,
    state: u64,
    /// Chunks to pass over before the next one that is drawn.
    gap: u64,
    /// A chunk that is drawn for certain.
    certain: Option<u64>,
}

impl Draw {
    /// A sample of `ppm` millionths, or of the default share.
    pub(crate) fn new(ppm: Option<u32>, grid: Grid, seed: u64) -> Self {
        let share = match ppm {
            Some(ppm) => f64::from(ppm.min(1_000_000)) / 1e6,
            None => {
                let most = as_f64(DEFAULT_BYTES_MAX) / as_f64(grid.size_bytes().max(1));
                (f64::from(DEFAULT_PPM) / 1e6).min(most)
            }
        };
        let mut draw = Draw { share, state: seed, gap: 0, certain: None };
        draw.gap = draw.next_gap();
        draw
    }

    /// Draws `chunk`, whatever the lot says.
    pub(crate) fn include(&mut self, chunk: Option<u64>) {
        self.certain = chunk;
    }

    /// The regions of an unchanged run: its drawn chunks, and what lies between.
    pub(crate) fn over(&mut self, grid: Grid, range: Range<u64>) -> Vec<Region> {
        let mut regions = Vec::new();
        let mut push = |range: Range<u64>, status| {
            if !range.is_empty() {
                regions.push(Region { offset: range.start, bytes: range.end - range.start, status });
            }
        };
        let mut at = range.start;
        // Whole chunks of the run; the last chunk of the disk is whole although it may be short.
        let first = range.start.div_ceil(grid.chunk_bytes());
        let end = if range.end == grid.size_bytes() { grid.chunks() } else { range.end / grid.chunk_bytes() };
        let mut next = first;
        while next < end {
            let lot = next.saturating_add(self.gap);
            let drawn = self.certain.filter(|certain| (next..lot.min(end)).contains(certain)).unwrap_or(lot);
            if drawn >= end {
                self.gap -= end - next;
                break;
            }
            let chunk = grid.bytes_of(drawn..drawn + 1);
            push(at..chunk.start, Status::Clean);
            at = chunk.end;
            push(chunk, Status::Drawn);
            next = drawn + 1;
            self.gap = if drawn == lot { self.next_gap() } else { lot - next };
        }
        push(at..range.end, Status::Clean);
        regions
    }

    /// A gap of the geometric distribution, by inversion.
    fn next_gap(&mut self) -> u64 {
        if self.share <= 0.0 {
            return u64::MAX;
        }
        if self.share >= 1.0 {
            return 0;
        }
        let gap = self.next_unit().ln() / (-self.share).ln_1p();
        // A float beyond the range becomes its nearest end.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let gap = gap as u64;
        gap
    }

    /// A number in (0, 1], by SplitMix64 (Steele, Lea and Flood, 2014).
    fn next_unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        as_f64((mixed >> 11) + 1) / as_f64(1 << 53)
    }
}

/// Exact up to 2^53, which is enough for probabilities.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 64 << 10;

    /// One run from end to end.
    fn whole(size_bytes: u64) -> Vec<Range<u64>> {
        Vec::from([Range { start: 0, end: size_bytes }])
    }

    fn drawn(ppm: u32, size_bytes: u64, runs: &[Range<u64>]) -> Vec<u64> {
        drawn_with(None, ppm, size_bytes, runs)
    }

    fn drawn_with(certain: Option<u64>, ppm: u32, size_bytes: u64, runs: &[Range<u64>]) -> Vec<u64> {
        let grid = Grid::new(size_bytes, 64 << 10);
        let mut draw = Draw::new(Some(ppm), grid, 42);
        draw.include(certain);
        let mut chunks = Vec::new();
        for run in runs {
            let regions = draw.over(grid, run.clone());
            let mut at = run.start;
            for region in regions {
                assert_eq!(region.offset, at, "the run is covered in order");
                at += region.bytes;
                if region.status == Status::Drawn {
                    assert_eq!(region.offset % CHUNK, 0);
                    assert!(region.bytes == CHUNK || at == size_bytes);
                    chunks.push(region.offset / CHUNK);
                }
            }
            assert_eq!(at, run.end);
        }
        chunks
    }

    #[test]
    fn a_share_of_one_draws_every_whole_chunk_and_nothing_of_torn_ones() {
        let size = 10 * CHUNK + 5;
        assert_eq!(drawn(1_000_000, size, &whole(size)), (0..=10).collect::<Vec<_>>());
        assert_eq!(drawn(1_000_000, size, &[1..4 * CHUNK + 1, 6 * CHUNK..size]), [1, 2, 3, 6, 7, 8, 9, 10]);
        assert!(drawn(1_000_000, size, &[1..CHUNK, CHUNK + 1..2 * CHUNK]).is_empty());
    }

    #[test]
    fn a_share_of_nothing_draws_nothing() {
        assert!(drawn(0, 1 << 40, &whole(1 << 40)).is_empty());
    }

    #[test]
    fn a_certain_chunk_is_drawn_beside_the_others_unless_it_lies_in_no_clean_run() {
        let size = 1000 * CHUNK;
        assert_eq!(drawn_with(Some(7), 0, size, &whole(size)), [7]);
        assert!(drawn_with(Some(7), 0, size, &[0..7 * CHUNK, 8 * CHUNK..size]).is_empty());
        let without = drawn(100_000, size, &whole(size));
        let other = (0..).find(|chunk| !without.contains(chunk)).unwrap();
        let mut with = drawn_with(Some(other), 100_000, size, &whole(size));
        with.retain(|chunk| *chunk != other);
        assert_eq!(with, without);
    }

    #[test]
    fn a_share_is_met_over_one_long_run_and_over_many_short_ones() {
        let size = 100_000 * CHUNK;
        let runs: Vec<Range<u64>> = (0..50_000).map(|run| run * 2 * CHUNK..(run * 2 + 2) * CHUNK).collect();
        for runs in [&whole(size)[..], &runs] {
            let count = drawn(10_000, size, runs).len();
            assert!((900..1100).contains(&count), "{count} of 100000 at one percent");
        }
    }

    #[test]
    fn the_default_reads_a_bounded_part_of_a_huge_disk() {
        let grid = Grid::new(10 << 40, 128 << 10);
        let regions = Draw::new(None, grid, 7).over(grid, 0..10 << 40);
        let drawn = regions.iter().filter(|region| region.status == Status::Drawn).count();
        assert!((75..200).contains(&drawn), "{drawn} chunks of 128 KiB");
    }
}
