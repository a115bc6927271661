//! A limit on bytes a second, shared by all disks of a job.
//!
//! A token bucket whose debt is time: each taker books its bytes behind those of the takers before it and
//! sleeps until its turn. It never bursts by more than one booking.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The limit; without a rate everything passes at once.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    /// When everything booked so far has been paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Throttle { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), free_at: Mutex::new(None) }
    }

    /// Waits until `bytes` may be read.
    pub(crate) async fn take(&self, bytes: u64) {
        if let Some(turn) = self.book(Instant::now(), bytes) {
            tokio::time::sleep_until(turn.into()).await;
        }
    }

    /// Books `bytes` at the time `now`; returns when their turn is, or `None` without a limit.
    fn book(&self, now: Instant, bytes: u64) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(turn.checked_add(cost).unwrap_or(turn));
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_booking_waits_for_those_before_it() {
        let throttle = Throttle::new(Some(1_000));
        let now = Instant::now();
        let turns: Vec<u64> = (0..4)
            .map(|_| (throttle.book(now, 500).unwrap() - now).as_millis().try_into().unwrap())
            .collect();
        assert_eq!(turns, [0, 500, 1_000, 1_500]);
    }

    #[test]
    fn time_that_passed_unused_is_not_saved_up() {
        let throttle = Throttle::new(Some(1_000));
        let now = Instant::now();
        throttle.book(now, 1);
        let later = now + Duration::from_secs(100);
        assert_eq!(throttle.book(later, 1_000), Some(later));
        assert_eq!(throttle.book(later, 1_000), Some(later + Duration::from_secs(1)));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        assert_eq!(Throttle::new(None).book(Instant::now(), u64::MAX), None);
        assert_eq!(Throttle::new(Some(0)).book(Instant::now(), 1), None);
    }
}
