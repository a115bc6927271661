//! Buffers of objects and ranges that were read, for the next one: a fresh buffer of 32 MiB is eight thousand pages that the
//! kernel clears one by one, which takes a third of the time of checking what is in it.
//!
//! Invariant: buffers are kept only while another one is in use, so that a store at rest holds none; and only large ones are,
//! so that no small object that is kept for long holds a large buffer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Buffers from this size on are kept; smaller ones the allocator has at hand.
const KEPT_BYTES_MIN: usize = 1 << 20;

/// The buffers of one store.
#[derive(Debug, Default)]
pub(super) struct Spare {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    free: Vec<Vec<u8>>,
    in_use: usize,
}

impl Spare {
    /// An empty buffer with room for `bytes`.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Borrowed {
        if bytes < KEPT_BYTES_MIN {
            return Borrowed { buffer: Vec::with_capacity(bytes), home: None };
        }
        let mut kept = self.lock();
        kept.in_use += 1;
        let mut buffer = match kept.free.iter().position(|free| free.capacity() / 2 <= bytes) {
            Some(fitting) => kept.free.swap_remove(fitting),
            None => {
                // What is far too large for it makes room instead, so that all together never take more than they once did.
                kept.free.pop();
                Vec::new()
            }
        };
        drop(kept);
        buffer.reserve_exact(bytes);
        Borrowed { buffer, home: Some(Arc::clone(self)) }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back when it is dropped, if it is large.
#[derive(Debug)]
pub(super) struct Borrowed {
    pub(super) buffer: Vec<u8>,
    home: Option<Arc<Spare>>,
}

impl From<Borrowed> for Bytes {
    fn from(mut borrowed: Borrowed) -> Self {
        match borrowed.home {
            Some(_) => Bytes::from_owner(borrowed),
            None => Bytes::from(std::mem::take(&mut borrowed.buffer)),
        }
    }
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut kept = home.lock();
        kept.in_use -= 1;
        if kept.in_use > 0 {
            kept.free.push(buffer);
        } else {
            kept.free.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_while_another_one_is_out_and_none_is_kept_after() {
        let spare = Arc::new(Spare::default());
        let (first, second) = (spare.take(KEPT_BYTES_MIN), spare.take(2 * KEPT_BYTES_MIN));
        let address = first.buffer.as_ptr();
        drop(Bytes::from(first));
        assert!(spare.take(500).home.is_none(), "a small object would hold a large buffer");
        let third = spare.take(KEPT_BYTES_MIN);
        assert_eq!(third.buffer.as_ptr(), address);
        assert!(third.buffer.is_empty());
        drop(second);
        let fourth = spare.take(KEPT_BYTES_MIN - 1 + KEPT_BYTES_MIN / 2);
        assert_eq!(fourth.buffer.capacity(), 2 * KEPT_BYTES_MIN);
        drop((third, fourth));
        assert!(spare.lock().free.is_empty());
    }

    #[test]
    fn a_buffer_that_is_far_too_large_is_not_lent_and_makes_room() {
        let spare = Arc::new(Spare::default());
        let (large, other) = (spare.take(8 * KEPT_BYTES_MIN), spare.take(KEPT_BYTES_MIN));
        drop(large);
        let small = spare.take(KEPT_BYTES_MIN);
        assert_eq!(small.buffer.capacity(), KEPT_BYTES_MIN);
        assert!(spare.lock().free.is_empty());
        drop((small, other));
    }
}
