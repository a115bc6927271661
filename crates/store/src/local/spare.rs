//! Buffers of whole objects that were read, for the next one: a fresh buffer of 32 MiB is eight thousand pages that the
//! kernel clears one by one, which takes a third of the time of checking what is in it.
//!
//! Invariant: buffers are kept only while another one is in use, so that a store at rest holds none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

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
        let mut kept = self.lock();
        kept.in_use += 1;
        let mut buffer = kept.free.pop().unwrap_or_default();
        drop(kept);
        buffer.reserve_exact(bytes);
        Borrowed { buffer, home: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Borrowed {
    pub(super) buffer: Vec<u8>,
    home: Arc<Spare>,
}

impl From<Borrowed> for Bytes {
    fn from(borrowed: Borrowed) -> Self {
        Bytes::from_owner(borrowed)
    }
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut kept = self.home.lock();
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
        let (first, second) = (spare.take(1000), spare.take(2000));
        let address = first.buffer.as_ptr();
        drop(Bytes::from(first));
        let third = spare.take(500);
        assert_eq!(third.buffer.as_ptr(), address);
        assert!(third.buffer.is_empty());
        drop((second, third));
        assert!(spare.lock().free.is_empty());
    }
}
