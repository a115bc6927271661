//! `auto` compression: a level that follows the bottleneck.
//!
//! Each thread notes, from pack to pack, for which part of the time it worked. One that works all the time is what the
//! backup waits for, and compresses less; one that waits, for chunks from a slow line or for a slow store to take its packs,
//! has time to compress more.
//!
//! Invariant: a level is chosen only if, at what it is known to cost, the thread would still have time to spare.

/// A level of zstd, and what a chunk costs at it, hashed, sealed and checked, as a part of what it costs at level 1 in percent.
/// Measured with the example `pack_speed` of `aquifer-format` on a Debian root file system.
struct Rung {
    level: i32,
    cost_percent: u64,
}

const RUNGS: [Rung; 5] = [
    Rung { level: 1, cost_percent: 100 },
    Rung { level: 3, cost_percent: 140 },
    Rung { level: 6, cost_percent: 350 },
    Rung { level: 9, cost_percent: 550 },
    Rung { level: 12, cost_percent: 1200 },
];

/// A stronger level must leave the thread idle for the rest.
const BUSY_PERCENT_MAX: u64 = 80;
/// A thread that works for more than this is what is waited for.
const BUSY_PERCENT_FULL: u64 = 95;

/// The level of one thread.
#[derive(Debug)]
pub(crate) struct Pace {
    rung: usize,
    /// When the pack at hand was begun.
    since_ms: u64,
    worked_ms: u64,
    /// Since when it works, if it does.
    at_work_ms: Option<u64>,
}

impl Pace {
    /// The level of the first pack.
    pub(crate) const LIGHTEST: i32 = RUNGS[0].level;

    /// Begins with the lightest level.
    pub(crate) fn new(now_ms: u64) -> Self {
        Pace { rung: 0, since_ms: now_ms, worked_ms: 0, at_work_ms: None }
    }

    /// The thread begins to work.
    pub(crate) fn begin(&mut self, now_ms: u64) {
        self.at_work_ms = Some(now_ms);
    }

    /// It has nothing to do, or waits.
    pub(crate) fn pause(&mut self, now_ms: u64) {
        if let Some(begun_ms) = self.at_work_ms.take() {
            self.worked_ms += now_ms.saturating_sub(begun_ms);
        }
    }

    /// The level for the next pack, after one was handed over.
    pub(crate) fn next_level(&mut self, now_ms: u64) -> i32 {
        let elapsed_ms = now_ms.saturating_sub(self.since_ms).max(1);
        let busy_percent = (self.worked_ms * 100 / elapsed_ms).min(100);
        let cost = |rung: usize| RUNGS[rung].cost_percent;
        if busy_percent > BUSY_PERCENT_FULL {
            self.rung = self.rung.saturating_sub(1);
        } else {
            let fits = |&rung: &usize| busy_percent * cost(rung) / cost(self.rung) <= BUSY_PERCENT_MAX;
            self.rung = (self.rung..RUNGS.len()).rev().find(fits).unwrap_or(self.rung);
        }
        (self.since_ms, self.worked_ms) = (now_ms, 0);
        RUNGS[self.rung].level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs of 80 MB at level 1's 250 MB a second and thread, on a line or into a store of `line` MB a second and thread.
    fn levels(line: u64, packs: usize) -> Vec<i32> {
        let (mut pace, mut now_ms) = (Pace::new(0), 0);
        let mut one_pack = || {
            let work_ms = 80_000 / 250 * RUNGS[pace.rung].cost_percent / 100;
            pace.begin(now_ms);
            pace.pause(now_ms + work_ms);
            now_ms += work_ms.max(80_000 / line);
            pace.next_level(now_ms)
        };
        (0..packs).map(|_| one_pack()).collect()
    }

    #[test]
    fn a_thread_that_everything_waits_for_stays_at_the_lightest_level() {
        assert_eq!(levels(1000, 5), [1; 5]);
    }

    #[test]
    fn a_line_that_is_slow_is_given_a_stronger_level_at_once_and_it_stays() {
        assert_eq!(levels(100, 5), [3; 5]);
        assert_eq!(levels(50, 5), [6; 5]);
        assert_eq!(levels(10, 5), [12; 5]);
    }

    #[test]
    fn a_line_that_becomes_fast_again_takes_the_level_down_step_by_step() {
        let mut pace = Pace::new(0);
        pace.begin(0);
        pace.pause(10);
        assert_eq!(pace.next_level(1000), 12);
        let mut now_ms = 1000;
        let mut busy = || {
            pace.begin(now_ms);
            now_ms += 500;
            pace.pause(now_ms);
            pace.next_level(now_ms)
        };
        assert_eq!([busy(), busy(), busy(), busy(), busy()], [9, 6, 3, 1, 1]);
    }
}
