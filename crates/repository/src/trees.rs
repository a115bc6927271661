//! Disk trees: building the next one from a base and what changed. Reading them is in [`reader`].
//!
//! A tree is radix 256 over the leaves of a disk ([`LEAF_CHUNKS`] chunks each); a missing child is a subtree
//! of zeros (FORMAT.md, "Chunks and trees"). The builder holds one open node a level and writes a node when the
//! next leaf lies outside it, so its memory and its work are bounded by the paths it touches: whatever is not
//! touched keeps the base's ids without being read. It does not look at chunks and decides no deduplication.
//!
//! Invariants: leaves are set in strictly ascending order; no node is written empty; a chunk whose length
//! differs between base and new disk is never taken over from the base.

use std::ops::Range;
use std::sync::Arc;

use aquifer_format::{BlobKind, ChunkId, Node};

use crate::plane::Plane;
use crate::session::BackupSession;
use crate::{Error, Result};

mod reader;

pub(crate) use reader::Shape;
use reader::{FAN_BITS, number_at, slot_of};
pub use reader::{LEAF_CHUNKS, TreeReader, TreeSpec, TreeStep};

/// What [`TreeBuilder::finish`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltTree {
    /// The root; `None` for a disk of zeros.
    pub root: Option<ChunkId>,
    /// Nodes of the base that had to be read.
    pub nodes_read: u64,
    /// Nodes that were new to the repository.
    pub nodes_written: u64,
}

/// A node on the way from the root to the last leaf that was set.
struct Open {
    number: u64,
    node: Node,
    dirty: bool,
}

/// Builds the tree of one disk at one backup.
pub struct TreeBuilder {
    plane: Arc<Plane>,
    base: TreeReader,
    shape: Shape,
    root: Option<ChunkId>,
    /// Level n at index n - 1; the top level is always open.
    path: Vec<Option<Open>>,
    next: u64,
    written: u64,
    stale: Vec<u64>,
    started: bool,
}

impl TreeBuilder {
    /// A tree for a disk of `size_bytes` in which everything that is not set stays as in `base`
    /// (`TreeSpec::default()` for a full backup: nothing).
    pub fn new(session: &Arc<BackupSession>, base: TreeSpec, size_bytes: u64) -> Self {
        Self::over(&session.plane, base, size_bytes)
    }

    pub(crate) fn over(plane: &Arc<Plane>, base: TreeSpec, size_bytes: u64) -> Self {
        let base = TreeReader::over(plane.parts(), base);
        let shape = Shape::new(size_bytes, plane.parts().chunk_bytes);
        let path = (0..shape.top).map(|_| None).collect();
        let stale = stale_chunks(&base.shape, &shape);
        TreeBuilder {
            plane: Arc::clone(plane),
            base,
            shape,
            root: None,
            path,
            next: 0,
            written: 0,
            stale,
            started: false,
        }
    }

    /// Chunks (at most two) that have another length on the new disk than on the base's, because the size
    /// changed: they must be read whatever a bitmap says, and their leaves set.
    pub fn stale_chunks(&self) -> &[u64] {
        &self.stale
    }

    /// The base's leaf `leaf`, cut to the new disk; empty where the base had zeros or nothing. Any leaf may be
    /// asked for at any time.
    ///
    /// # Errors
    /// Those of [`TreeReader::leaf`].
    pub async fn leaf(&mut self, leaf: u64) -> Result<Node> {
        let mut node = self.base.leaf(leaf).await?;
        self.shape.cut(&mut node, leaf);
        Ok(node)
    }

    /// Sets leaf `leaf`; an empty node makes it zeros.
    ///
    /// # Errors
    /// [`Error::TreeOrder`] when a leaf at or after it was set before, or it lies beyond the disk;
    /// [`Error::TreeLeaf`] when the node is no leaf of this disk; [`Error::TreeStale`] when it takes a chunk over
    /// from the base whose length changed; those of reading and storing nodes.
    pub async fn set_leaf(&mut self, leaf: u64, node: Node) -> Result<()> {
        self.advance(leaf, leaf.saturating_add(1))?;
        if node.level() != 0 || !self.shape.fits(&node, leaf) {
            return Err(Error::TreeLeaf { leaf, level: node.level(), size_bytes: self.shape.size_bytes });
        }
        self.check_stale(leaf, &node).await?;
        self.start().await?;
        let id = self.store(&node).await?;
        self.set(0, leaf, id).await
    }

    /// Makes all of `leaves` zeros, at a cost that does not depend on their number.
    ///
    /// # Errors
    /// As [`TreeBuilder::set_leaf`].
    pub async fn clear(&mut self, leaves: Range<u64>) -> Result<()> {
        if leaves.is_empty() {
            return Ok(());
        }
        self.advance(leaves.start, leaves.end)?;
        self.start().await?;
        let end = if leaves.end == self.shape.leaves { u64::MAX } else { leaves.end };
        let mut at = leaves.start;
        while at < leaves.end {
            let level = self.widest(at, end);
            let span = 1 << (FAN_BITS * u32::from(level));
            self.set(level, at >> (FAN_BITS * u32::from(level)), None).await?;
            at += span;
        }
        self.stale.retain(|chunk| !leaves.contains(&(chunk / LEAF_CHUNKS)));
        Ok(())
    }

    /// Writes what is open and gives the root.
    ///
    /// # Errors
    /// [`Error::TreeStale`] when a chunk whose length changed was not set; those of storing nodes.
    pub async fn finish(mut self) -> Result<BuiltTree> {
        if let Some(chunk) = self.stale.first() {
            return Err(Error::TreeStale { chunk: *chunk });
        }
        let shrunk = self.shape.leaves > 0 && self.shape.chunks < self.base.shape.chunks;
        if !self.started && !shrunk && self.shape.top == self.base.shape.top {
            return Ok(BuiltTree {
                root: self.base.spec.root,
                nodes_read: self.base.nodes_read(),
                nodes_written: 0,
            });
        }
        self.start().await?;
        let last = self.shape.leaves.saturating_sub(1);
        if shrunk && self.next <= last {
            // The path to the new end must lose what lies beyond it.
            let node = self.leaf(last).await?;
            self.set_leaf(last, node).await?;
        }
        for level in 1..=self.shape.top {
            self.close(level).await?;
        }
        Ok(BuiltTree { root: self.root, nodes_read: self.base.nodes_read(), nodes_written: self.written })
    }

    fn advance(&mut self, from: u64, to: u64) -> Result<()> {
        if from < self.next || to > self.shape.leaves {
            return Err(Error::TreeOrder { leaf: from, next: self.next, leaves: self.shape.leaves });
        }
        self.next = to;
        Ok(())
    }

    async fn check_stale(&mut self, leaf: u64, node: &Node) -> Result<()> {
        let here: Vec<u64> = self.stale.iter().copied().filter(|chunk| chunk / LEAF_CHUNKS == leaf).collect();
        for chunk in here {
            let slot = slot_of(chunk);
            let kept = node.get(slot).is_some() && node.get(slot) == self.base.leaf(leaf).await?.get(slot);
            if kept {
                return Err(Error::TreeStale { chunk });
            }
            self.stale.retain(|stale| *stale != chunk);
        }
        Ok(())
    }

    /// Opens the top node: the base's root, what of it is left of a shrunk disk, or new levels above it.
    async fn start(&mut self) -> Result<()> {
        if self.started || self.shape.leaves == 0 {
            return Ok(());
        }
        self.started = true;
        let (mut id, base_top, top) = (self.base.spec.root, self.base.shape.top, self.shape.top);
        for level in (top + 1..=base_top).rev() {
            let Some(node) = id else { break };
            id = self.base.node(&node, level, 0).await?.get(0);
        }
        self.root = id.filter(|_| base_top >= top);
        // Levels that the base does not have: their first node is new, the base's root lies below it.
        for level in base_top + 1..=top {
            let mut node = Node::new(level);
            node.set(0, id.filter(|_| level == base_top + 1));
            self.path[usize::from(level) - 1] = Some(Open { number: 0, node, dirty: id.is_some() });
        }
        if base_top >= top && top > 0 {
            self.path[usize::from(top) - 1] = Some(self.open(id, top, 0).await?);
        }
        Ok(())
    }

    async fn open(&mut self, id: Option<ChunkId>, level: u8, number: u64) -> Result<Open> {
        let mut node = match id {
            Some(id) => Node::clone(&*self.base.nodes.get(&id, level).await?),
            None => Node::new(level),
        };
        let dirty = self.shape.cut(&mut node, number);
        Ok(Open { number, node, dirty })
    }

    /// Puts `id` into the place of node `number` of `level`, closing and opening nodes on the way.
    async fn set(&mut self, level: u8, number: u64, id: Option<ChunkId>) -> Result<()> {
        if level == self.shape.top {
            self.root = id;
            return Ok(());
        }
        self.walk_to(level + 1, number >> FAN_BITS, level).await?;
        if let Some(parent) = &mut self.path[usize::from(level)] {
            let slot = slot_of(number);
            if parent.node.get(slot) != id {
                parent.node.set(slot, id);
                parent.dirty = true;
            }
        }
        Ok(())
    }

    /// Makes node `number` of `level` the open one of its level, and closes everything at or below `below`.
    async fn walk_to(&mut self, level: u8, number: u64, below: u8) -> Result<()> {
        let mut meet = level;
        while meet < self.shape.top && self.number_open(meet) != Some(number_at(meet - level, number)) {
            meet += 1;
        }
        for closing in 1..meet.max(below + 1) {
            self.close(closing).await?;
        }
        for opening in (level..meet).rev() {
            let at = number_at(opening - level, number);
            let id = self.path[usize::from(opening)].as_ref().and_then(|parent| parent.node.get(slot_of(at)));
            self.path[usize::from(opening) - 1] = Some(self.open(id, opening, at).await?);
        }
        Ok(())
    }

    fn number_open(&self, level: u8) -> Option<u64> {
        self.path[usize::from(level) - 1].as_ref().map(|open| open.number)
    }

    /// Writes the open node of `level`, if it changed, and names it in its parent.
    async fn close(&mut self, level: u8) -> Result<()> {
        let Some(open) = self.path[usize::from(level) - 1].take().filter(|open| open.dirty) else {
            return Ok(());
        };
        let id = self.store(&open.node).await?;
        if level == self.shape.top {
            self.root = id;
        } else if let Some(parent) = &mut self.path[usize::from(level)] {
            let slot = slot_of(open.number);
            parent.dirty |= parent.node.get(slot) != id;
            parent.node.set(slot, id);
        }
        Ok(())
    }

    async fn store(&mut self, node: &Node) -> Result<Option<ChunkId>> {
        if node.is_empty() {
            return Ok(None);
        }
        let stored = self.plane.store_meta(BlobKind::Tree, &node.encode()).await?;
        self.written += u64::from(stored.new);
        Ok(Some(stored.id))
    }

    /// The highest level, below the top, of a node that starts at leaf `at` and ends before `end`.
    fn widest(&self, at: u64, end: u64) -> u8 {
        let fits = |level: &u8| {
            let span = 1_u64 << (FAN_BITS * u32::from(*level));
            at.is_multiple_of(span) && at.saturating_add(span) <= end
        };
        (0..self.shape.top).rev().find(fits).unwrap_or(0)
    }
}

/// The chunks whose length differs between two sizes of one disk and which the base has.
fn stale_chunks(base: &Shape, new: &Shape) -> Vec<u64> {
    let mut stale: Vec<u64> = [base.chunks, new.chunks]
        .iter()
        .filter_map(|chunks| chunks.checked_sub(1))
        .filter(|chunk| *chunk < base.chunks && *chunk < new.chunks)
        .filter(|chunk| base.chunk_len(*chunk) != new.chunk_len(*chunk))
        .collect();
    stale.sort_unstable();
    stale.dedup();
    stale
}
