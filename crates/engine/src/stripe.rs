//! One stripe of a disk in flight: the leaf node that its chunks fill in, in any order.
//!
//! Processor threads settle chunks; whoever settles the last one hands the finished stripe to the tree,
//! through a queue that has room for every stripe of the window, so that nobody ever waits for the tree.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use aquifer_repository::Stored;
use aquifer_repository::format::id::ChunkId;
use aquifer_repository::format::tree::Node;
use async_channel::Sender;
use tokio::sync::OwnedSemaphorePermit;

use crate::plan::STRIPE_CHUNKS;

/// What happened to the bytes of some chunks. Every byte is in exactly one of the first four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) zero_bytes: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) deduplicated_bytes: u64,
    pub(crate) new_bytes: u64,
    /// Bytes that the new ones take in packs.
    pub(crate) stored_bytes: u64,
    /// Bytes read from the source because they may have changed.
    pub(crate) read_bytes: u64,
    /// Bytes read although they were said to be unchanged.
    pub(crate) rechecked_bytes: u64,
}

impl Tally {
    /// Adds another tally.
    pub(crate) fn add(&mut self, other: &Tally) {
        self.zero_bytes += other.zero_bytes;
        self.kept_bytes += other.kept_bytes;
        self.deduplicated_bytes += other.deduplicated_bytes;
        self.new_bytes += other.new_bytes;
        self.stored_bytes += other.stored_bytes;
        self.read_bytes += other.read_bytes;
        self.rechecked_bytes += other.rechecked_bytes;
    }

    /// Bytes of disk that it accounts for.
    pub(crate) fn covered_bytes(&self) -> u64 {
        self.zero_bytes + self.kept_bytes + self.deduplicated_bytes + self.new_bytes
    }

    /// Adds one chunk that was read.
    fn note(&mut self, bytes: u64, stored: &Stored) {
        self.read_bytes += bytes;
        match stored {
            Stored::Zero => self.zero_bytes += bytes,
            Stored::Kept(_) => self.kept_bytes += bytes,
            Stored::Known(_) => self.deduplicated_bytes += bytes,
            Stored::New { stored_bytes, .. } => {
                self.new_bytes += bytes;
                self.stored_bytes += u64::from(*stored_bytes);
            }
        }
    }
}

/// The next thing to do to a disk's tree.
#[derive(Debug)]
pub(crate) struct Step {
    /// Position among the disk's steps, from 0 without gaps.
    pub(crate) sequence: u64,
    /// What happened to the bytes it covers.
    pub(crate) tally: Tally,
    /// What to do.
    pub(crate) change: Change,
    /// A chunk of the disk that is not the base's, although it was said to be unchanged.
    pub(crate) differs: Option<u64>,
    /// Its place in the window of steps in flight.
    pub(crate) place: OwnedSemaphorePermit,
}

/// A change to a disk's tree.
#[derive(Debug)]
pub(crate) enum Change {
    /// Set leaf `0` to node `1`.
    Leaf(u64, Node),
    /// Make all of these leaves zeros.
    Zeros(Range<u64>),
    /// Leave leaves as they are in the base.
    Kept,
}

/// A stripe with chunks still to settle.
#[derive(Debug)]
pub(crate) struct Stripe {
    parent: Node,
    filling: Mutex<Option<Filling>>,
}

/// The leaf as far as it is settled.
#[derive(Debug)]
pub(crate) struct Filling {
    /// See [`Step::sequence`].
    pub(crate) sequence: u64,
    /// Leaf number.
    pub(crate) leaf: u64,
    /// The leaf, with what needed no read already in place.
    pub(crate) node: Node,
    /// The tally of what needed no read.
    pub(crate) tally: Tally,
    /// See [`Step::place`].
    pub(crate) place: OwnedSemaphorePermit,
    /// Chunks still to settle.
    pub(crate) unsettled: usize,
    /// Whether every chunk is the base's, read or not.
    pub(crate) kept: bool,
    /// See [`Step::differs`], here as a slot.
    pub(crate) differs: Option<u8>,
    /// Where the finished stripe goes; has room for the whole window.
    pub(crate) to_tree: Sender<Step>,
}

impl Stripe {
    /// A stripe whose place in the parent backup holds `parent`. Without unsettled chunks it is finished at once.
    pub(crate) fn new(parent: Node, filling: Filling) -> Self {
        let stripe = Stripe { parent, filling: Mutex::new(Some(filling)) };
        stripe.settle(false, std::iter::empty());
        stripe
    }

    /// What the parent backup has at `slot`.
    pub(crate) fn parent(&self, slot: u8) -> Option<ChunkId> {
        self.parent.get(slot)
    }

    /// Settles chunks that were read: slot in the leaf, plain bytes, and what became of them. With `recheck` each must be
    /// the base's.
    pub(crate) fn settle(&self, recheck: bool, chunks: impl Iterator<Item = (u8, u64, Stored)>) {
        let mut guard = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(filling) = guard.as_mut() else { return };
        for (slot, bytes, stored) in chunks {
            filling.node.set(slot, stored.id());
            if recheck {
                filling.tally.rechecked_bytes += bytes;
                filling.tally.kept_bytes += bytes;
                if stored.id() != self.parent(slot) {
                    filling.differs.get_or_insert(slot);
                }
            } else {
                filling.tally.note(bytes, &stored);
            }
            filling.unsettled = filling.unsettled.saturating_sub(1);
        }
        if filling.unsettled > 0 {
            return;
        }
        if let Some(Filling { sequence, leaf, node, tally, kept, differs, place, to_tree, .. }) = guard.take()
        {
            let differs = differs.map(|slot| leaf * STRIPE_CHUNKS + u64::from(slot));
            let change = if kept { Change::Kept } else { Change::Leaf(leaf, node) };
            // The queue has room for the whole window, and is closed only when the disk has failed already.
            let _ = to_tree.try_send(Step { sequence, tally, change, differs, place });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_channel::Receiver;
    use tokio::sync::Semaphore;

    use super::*;

    async fn filling(unsettled: usize) -> (Filling, Receiver<Step>) {
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let (to_tree, tree) = async_channel::bounded(1);
        let (node, tally) = (Node::new(0), Tally::default());
        (
            Filling {
                sequence: 0,
                leaf: 3,
                node,
                tally,
                place,
                unsettled,
                kept: false,
                differs: None,
                to_tree,
            },
            tree,
        )
    }

    #[tokio::test]
    async fn the_last_settled_chunk_finishes_the_stripe() {
        let (filling, tree) = filling(3).await;
        let stripe = Stripe::new(Node::new(0), filling);
        let id = ChunkId([7; 32]);
        stripe.settle(false, [(9, 100, Stored::New { id, stored_bytes: 40 })].into_iter());
        assert!(tree.is_empty());
        stripe.settle(false, [(0, 100, Stored::Zero), (255, 50, Stored::Kept(id))].into_iter());
        let step = tree.try_recv().unwrap();
        let Change::Leaf(3, node) = step.change else { panic!("{:?}", step.change) };
        assert_eq!((node.get(9), node.get(0), node.get(255)), (Some(id), None, Some(id)));
        let tally = step.tally;
        assert_eq!((tally.new_bytes, tally.zero_bytes, tally.kept_bytes), (100, 100, 50));
        assert_eq!((tally.read_bytes, tally.stored_bytes, tally.covered_bytes()), (250, 40, 250));
    }

    #[tokio::test]
    async fn a_stripe_without_reads_is_finished_at_once() {
        let (filling, tree) = filling(0).await;
        drop(Stripe::new(Node::new(0), filling));
        assert!(matches!(tree.try_recv().unwrap().change, Change::Leaf(3, _)));
    }

    #[tokio::test]
    async fn a_rechecked_chunk_is_kept_and_one_that_differs_is_told() {
        let (same, other) = (ChunkId([7; 32]), ChunkId([8; 32]));
        let mut parent = Node::new(0);
        parent.set(1, Some(same));
        for (now, differs) in [
            (Stored::Kept(same), None),
            (Stored::Known(other), Some(3 * 256 + 1)),
            (Stored::Zero, Some(3 * 256 + 1)),
        ] {
            let (filling, tree) = filling(1).await;
            Stripe::new(parent.clone(), filling).settle(true, [(1, 100, now)].into_iter());
            let step = tree.try_recv().unwrap();
            assert_eq!(step.differs, differs);
            let tally = step.tally;
            assert_eq!((tally.rechecked_bytes, tally.read_bytes, tally.covered_bytes()), (100, 0, 100));
        }
    }
}
