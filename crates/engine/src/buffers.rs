//! Plain bytes on their way from a source to the processor threads: pooled buffers under one budget.
//!
//! A [`Lease`] is a buffer and its share of the budget; dropping it gives both back. Buffers are reused
//! without being cleared, because whoever reads into one fills it whole.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Granularity in which the budget is counted.
const UNIT_BYTES: u64 = 4096;

/// Buffers that are kept for later at most.
const KEPT_MAX: usize = 4096;

fn units_of(bytes: u64) -> u32 {
    u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4)
}

/// The pool of one job.
#[derive(Debug)]
pub(crate) struct Buffers {
    budget: Arc<Semaphore>,
    units: AtomicU32,
    free: Mutex<Vec<Vec<u8>>>,
    typical_bytes: u32,
}

impl Buffers {
    /// A pool with a budget of `budget_bytes`, for buffers of mostly `typical_bytes`.
    pub(crate) fn new(budget_bytes: u64, typical_bytes: u32) -> Arc<Self> {
        let units = units_of(budget_bytes);
        Arc::new(Buffers {
            budget: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX))),
            units: AtomicU32::new(units),
            free: Mutex::new(Vec::new()),
            typical_bytes: typical_bytes.max(1),
        })
    }

    /// Raises the budget to `budget_bytes`, where it is less.
    pub(crate) fn grow_to(&self, budget_bytes: u64) {
        let wanted = units_of(budget_bytes);
        let before = self.units.fetch_max(wanted, Ordering::Relaxed);
        self.budget.add_permits(usize::try_from(wanted.saturating_sub(before)).unwrap_or(0));
    }

    /// Waits for room and gives a buffer of exactly `bytes`, with arbitrary contents. A request beyond the
    /// whole budget gets the whole budget.
    pub(crate) async fn lease(self: &Arc<Self>, bytes: usize) -> Lease {
        let share = self.share(bytes).await;
        let mut buffer = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.pop().unwrap_or_default()
        };
        buffer.resize(bytes, 0);
        Lease { buffer, _share: share, pool: Arc::clone(self) }
    }

    /// Waits for `bytes` of the budget, for a buffer that somebody else makes.
    pub(crate) async fn share(&self, bytes: usize) -> Share {
        let wanted = u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(UNIT_BYTES).max(1);
        let units = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.units.load(Ordering::Relaxed));
        // The semaphore is never closed, so `None` cannot be; it would only mean no bound.
        Share(Arc::clone(&self.budget).acquire_many_owned(units).await.ok())
    }

    fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() == 0 {
            return;
        }
        let budget_bytes = u64::from(self.units.load(Ordering::Relaxed)) * UNIT_BYTES;
        let kept = usize::try_from(budget_bytes / u64::from(self.typical_bytes)).unwrap_or(usize::MAX);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < kept.min(KEPT_MAX) {
            free.push(buffer);
        }
    }
}

/// A part of the budget, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Share(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

/// A buffer of the pool.
#[derive(Debug)]
pub(crate) struct Lease {
    buffer: Vec<u8>,
    _share: Share,
    pool: Arc<Buffers>,
}

impl Lease {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes the buffer out for somebody who needs to own it; [`Lease::put`] brings it back.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Brings the buffer back.
    pub(crate) fn put(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_buffer_comes_back_with_its_share_when_it_is_dropped() {
        let pool = Buffers::new(8192, 8192);
        let lease = pool.lease(8192).await;
        assert_eq!(pool.budget.available_permits(), 0);
        let address = lease.bytes().as_ptr();
        drop(lease);
        assert_eq!(pool.budget.available_permits(), 2);
        assert_eq!(pool.lease(100).await.bytes().as_ptr(), address);
    }

    #[tokio::test]
    async fn a_budget_grows_and_never_shrinks() {
        let pool = Buffers::new(8192, 4096);
        pool.grow_to(16384);
        pool.grow_to(4096);
        assert_eq!(pool.budget.available_permits(), 4);
        let all = pool.lease(100_000).await;
        assert_eq!(pool.budget.available_permits(), 0);
        drop(all);
    }

    #[tokio::test]
    async fn a_buffer_larger_than_the_budget_is_still_given() {
        let pool = Buffers::new(4096, 4096);
        assert_eq!(pool.lease(100_000).await.bytes().len(), 100_000);
        assert_eq!(pool.lease(0).await.bytes().len(), 0);
    }
}
