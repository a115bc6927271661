//! Walks one disk of a backup, leaf by leaf: which chunks it has, and where it is zero between them.
//!
//! Invariant: the chunks, the gaps and what is lost together cover the disk exactly once, in order; the memory is one leaf.

use std::collections::VecDeque;
use std::ops::Range;

use aquifer_repository::format::id::ChunkId;
use aquifer_repository::{TreeReader, TreeStep};

use crate::error::{Error, Result};
use crate::plan::{Grid, STRIPE_CHUNKS};

/// The next piece of a disk.
#[derive(Debug)]
pub(crate) enum Walked {
    /// Consecutive chunks with data: the number of the first, and their ids. At most a leaf.
    Chunks(u64, Vec<ChunkId>),
    /// Bytes that are zero. Any length.
    Gap(Range<u64>),
    /// Bytes of which nothing is known, because a node above them is damaged. Any length.
    Lost(Range<u64>, Error),
}

/// A walk over one disk.
pub(crate) struct Walk {
    reader: TreeReader,
    grid: Grid,
    next_leaf: u64,
    next_chunk: u64,
    ready: VecDeque<Walked>,
    ended: bool,
}

impl Walk {
    pub(crate) fn new(reader: TreeReader, grid: Grid) -> Self {
        Walk { reader, grid, next_leaf: 0, next_chunk: 0, ready: VecDeque::new(), ended: false }
    }

    /// The next piece, or `None` at the end of the disk.
    ///
    /// # Errors
    /// Those of reading the tree that are no damage.
    pub(crate) async fn next(&mut self) -> Result<Option<Walked>> {
        while self.ready.is_empty() && !self.ended {
            match self.reader.next_step(self.next_leaf).await? {
                Some(TreeStep::Leaf(leaf, node)) => {
                    self.next_leaf = leaf + 1;
                    let first = leaf * STRIPE_CHUNKS;
                    self.take(node.iter().map(|(slot, id)| (first + u64::from(slot), id)));
                }
                Some(TreeStep::Lost(leaves, error)) => {
                    self.next_leaf = leaves.end;
                    self.gap_to(leaves.start * STRIPE_CHUNKS);
                    let chunks = self.next_chunk..self.grid.chunks().min(leaves.end * STRIPE_CHUNKS);
                    self.next_chunk = chunks.end;
                    self.ready.push_back(Walked::Lost(self.grid.bytes_of(chunks), error.into()));
                }
                None => {
                    self.ended = true;
                    self.gap_to(self.grid.chunks());
                }
            }
        }
        Ok(self.ready.pop_front())
    }

    fn take(&mut self, chunks: impl Iterator<Item = (u64, ChunkId)>) {
        let mut run: Option<(u64, Vec<ChunkId>)> = None;
        for (chunk, id) in chunks {
            match &mut run {
                Some((_, ids)) if self.next_chunk == chunk => ids.push(id),
                _ => {
                    self.ready.extend(run.take().map(|(first, ids)| Walked::Chunks(first, ids)));
                    self.gap_to(chunk);
                    run = Some((chunk, vec![id]));
                }
            }
            self.next_chunk = chunk + 1;
        }
        self.ready.extend(run.map(|(first, ids)| Walked::Chunks(first, ids)));
    }

    fn gap_to(&mut self, chunk: u64) {
        let bytes = self.grid.bytes_of(self.next_chunk..chunk);
        if !bytes.is_empty() {
            self.ready.push_back(Walked::Gap(bytes));
        }
        self.next_chunk = chunk;
    }
}
