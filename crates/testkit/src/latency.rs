//! How long the guest's writes took, as the guest itself saw it.
//!
//! A guest that is asked to prints the duration of every write with its reports; a [`Latency`] is what it printed for
//! the writes of one window of its history. The guest's own clock stands still while QEMU stops it: that it was not
//! stopped is for [`Guest::stops`](crate::Guest::stops) to say.
//!
//! Invariant: every write of the window counts once, or there is an error.

use std::fmt;
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

/// The durations of some writes and flushes, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    writes_us: Vec<u64>,
    flushes_us: Vec<u64>,
}

impl Latency {
    /// Reads what the console says of the writes in `window`.
    pub(crate) fn of(console: &str, window: RangeInclusive<u64>) -> Result<Latency> {
        let mut latency = Latency { writes_us: Vec::new(), flushes_us: Vec::new() };
        // A line that is still being printed is left out.
        let whole = console.rfind('\n').map_or("", |end| &console[..end]);
        for line in whole.lines().filter_map(|line| line.strip_prefix("LAT ")) {
            let numbers: Vec<u64> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
            let [last, flush_us, writes_us @ ..] = numbers.as_slice() else { continue };
            // The number of the first one follows from the number of the last one.
            let first = (last + 1).saturating_sub(writes_us.len() as u64);
            let inside = (first..).zip(writes_us).filter(|(seq, _)| window.contains(seq));
            latency.writes_us.extend(inside.map(|(_, &us)| us));
            if window.contains(last) {
                latency.flushes_us.push(*flush_us);
            }
        }
        let expected = window.end().saturating_sub(*window.start()) + 1;
        let found = latency.writes_us.len() as u64;
        ensure!(found == expected, "the guest reported the duration of {found} of {expected} writes");
        latency.writes_us.sort_unstable();
        latency.flushes_us.sort_unstable();
        Ok(latency)
    }

    /// How many writes these are.
    pub fn writes(&self) -> usize {
        self.writes_us.len()
    }

    /// The duration that `percent` of the writes did not exceed.
    pub fn write_us(&self, percent: usize) -> u64 {
        share(&self.writes_us, percent)
    }

    /// The duration that `percent` of the flushes did not exceed.
    pub fn flush_us(&self, percent: usize) -> u64 {
        share(&self.flushes_us, percent)
    }
}

/// The smallest of the sorted values that `percent` of them do not exceed.
fn share(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0)
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = |values: &[u64]| {
            [50, 99, 100]
                .map(|percent| share(values, percent))
                .map(|us| format!("{}.{:03}", us / 1000, us % 1000))
        };
        let [half, most, all] = figures(&self.writes_us);
        write!(f, "{} writes: p50 {half} ms, p99 {most} ms, max {all} ms", self.writes_us.len())?;
        let [half, most, all] = figures(&self.flushes_us);
        write!(f, "; {} flushes: p50 {half} ms, p99 {most} ms, max {all} ms", self.flushes_us.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str =
        "READY 2 disks\r\nLAT 3 900 10 20 30\r\nSEQ 3\r\nLAT 5 700 40 5000\r\nSEQ 5\r\nLAT 6 1 ";

    #[test]
    fn a_window_takes_the_writes_in_it_and_no_others() {
        let latency = Latency::of(CONSOLE, 2..=5).unwrap();
        assert_eq!(latency.writes(), 4);
        assert_eq!([1, 50, 75, 76, 100].map(|percent| latency.write_us(percent)), [20, 30, 40, 5000, 5000]);
        assert_eq!(latency.flush_us(50), 700);
        assert_eq!(
            Latency::of(CONSOLE, 1..=3).unwrap().to_string(),
            "3 writes: p50 0.020 ms, p99 0.030 ms, max 0.030 ms; \
             1 flushes: p50 0.900 ms, p99 0.900 ms, max 0.900 ms"
        );
    }

    #[test]
    fn a_write_without_a_figure_is_an_error() {
        assert!(Latency::of(CONSOLE, 2..=6).is_err());
        assert!(Latency::of("", 1..=1).is_err());
    }
}
