//! When to try again, and after how long: one [`Retry`] for each operation.
//!
//! The waits grow by the class of failure: a server that throttles is left alone longest, a conflict is over soonest.
//! The SDK's own retries are off, because they would hide whether an earlier attempt may have taken effect.
//!
//! Invariant: an operation ends after the allowed attempts, and its error says how many there were and what the last
//! one heard.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Patience;
use super::failure::{Class, Failure};
use crate::Error;

/// The longest wait, in multiples of [`Patience::backoff`].
const LONGEST: u32 = 200;

/// What is tried, for the messages.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// The store, as it describes itself.
    pub(super) store: String,
    /// What is tried, as a verb.
    pub(super) operation: &'static str,
    /// The object or prefix.
    pub(super) key: String,
}

/// The attempts of one operation.
#[derive(Debug)]
pub(super) struct Retry {
    task: Task,
    patience: Patience,
    attempts: u32,
    started: Instant,
}

impl Retry {
    pub(super) fn new(task: Task, patience: Patience) -> Self {
        Self { task, patience, attempts: 0, started: Instant::now() }
    }

    /// Counts a failed attempt and waits before the next one.
    ///
    /// # Errors
    /// The operation's error, when the failure is final or the attempts are used up.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        self.attempts += 1;
        let Some(unit) = unit(failure.class) else {
            return Err(failure.into_error(&self.task));
        };
        if self.attempts >= self.patience.attempts {
            return Err(self.given_up(&failure));
        }
        let wait = self.wait(unit);
        let Task { store, operation, key } = &self.task;
        tracing::info!(
            "{store} did not {operation} {key}: {failure}; attempt {} follows in {} ms",
            self.attempts + 1,
            wait.as_millis()
        );
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn wait(&self, unit: u32) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(16);
        let times = unit.saturating_mul(1 << doublings).min(LONGEST);
        (self.patience.backoff * times).mul_f64(0.5 + jitter() / 2.0)
    }

    fn given_up(&self, failure: &Failure) -> Error {
        let Task { store, operation, key } = self.task.clone();
        let seconds = self.started.elapsed().as_secs_f64();
        let attempts = self.attempts;
        let reason = format!("{attempts} attempts in {seconds:.1} s failed, the last with {failure}");
        Error::Unavailable { store, operation, key, reason }
    }
}

/// The first wait after a failure of this class, in multiples of [`Patience::backoff`]; `None` when it is final.
fn unit(class: Class) -> Option<u32> {
    match class {
        Class::Conflict | Class::Network => Some(1),
        Class::Server => Some(2),
        Class::Throttled => Some(10),
        _ => None,
    }
}

/// A number in 0..1 that differs from call to call and from process to process, so that clients which failed together
/// do not come back together.
fn jitter() -> f64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    thread_local!(static STATE: RandomState = RandomState::new());
    let drawn = STATE.with(|state| state.hash_one(CALLS.fetch_add(1, Relaxed)));
    // 32 bits are exact in a double.
    f64::from(u32::try_from(drawn >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(attempts: u32) -> Retry {
        let task = Task { store: "s3://b".into(), operation: "put", key: "format".into() };
        Retry::new(task, Patience { attempts, ..Patience::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_within_their_jitter_and_depend_on_the_class() {
        for (class, first) in [(Class::Network, 100), (Class::Server, 200), (Class::Throttled, 1000)] {
            let mut retry = retry(4);
            for doubling in 0..3 {
                let start = Instant::now();
                retry.after(Failure::new(class, "x")).await.unwrap();
                let (waited, whole) = (start.elapsed().as_millis(), first << doubling);
                assert!((whole / 2..=whole + 1).contains(&waited), "{class:?} {doubling}: {waited}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_is_longer_than_the_longest() {
        let mut retry = retry(30);
        for _ in 0..29 {
            let start = Instant::now();
            retry.after(Failure::new(Class::Throttled, "x")).await.unwrap();
            assert!(start.elapsed() <= Duration::from_millis(20_001));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_error_counts_the_attempts_and_repeats_the_answer() {
        let mut retry = retry(2);
        retry.after(Failure::new(Class::Server, "500 InternalError")).await.unwrap();
        let error = retry.after(Failure::new(Class::Throttled, "503 SlowDown")).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unavailable { .. }), "{text}");
        assert!(text.contains("2 attempts in 0.") && text.contains("503 SlowDown"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_failure_is_not_tried_again() {
        let error = retry(8).after(Failure::new(Class::Denied, "403 AccessDenied")).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
    }
}
