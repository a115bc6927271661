//! The shape of a disk's tree, and reading it leaf by leaf: at a place, forwards, backwards.
//!
//! Not here: building one. Invariant: no leaf is given that names something beyond the end of its disk, and subtrees of
//! zeros cost nothing.

use std::ops::Range;
use std::sync::Arc;

use aquifer_format::{ChunkId, Node, levels};

use crate::nodes::Nodes;
use crate::parts::Parts;
use crate::repository::Repository;
use crate::verify::walk::is_damage;
use crate::{Error, Result};

/// Chunks that one leaf node names.
pub const LEAF_CHUNKS: u64 = 256;
/// log2 of the fan-out.
pub(super) const FAN_BITS: u32 = 8;

/// A disk's tree: its root and the size that gives it its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSpec {
    /// The root node; `None` for a disk of zeros.
    pub root: Option<ChunkId>,
    /// The disk's size in bytes.
    pub size_bytes: u64,
}

/// The counts that follow from a disk's size and the chunk size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) size_bytes: u64,
    pub(crate) chunk_bytes: u64,
    pub(crate) chunks: u64,
    pub(crate) leaves: u64,
    /// Level of the root node.
    pub(crate) top: u8,
}

impl Shape {
    pub(crate) fn new(size_bytes: u64, chunk_bytes: u32) -> Self {
        let chunk_bytes = u64::from(chunk_bytes).max(1);
        let chunks = size_bytes.div_ceil(chunk_bytes);
        let top = levels(chunks).saturating_sub(1);
        Shape { size_bytes, chunk_bytes, chunks, leaves: chunks.div_ceil(LEAF_CHUNKS), top }
    }

    /// Bytes of chunk `chunk` on this disk.
    pub(crate) fn chunk_len(&self, chunk: u64) -> u64 {
        self.size_bytes.saturating_sub(chunk.saturating_mul(self.chunk_bytes)).min(self.chunk_bytes)
    }

    /// Slots in use in the node `number` of `level`: all but in the last node of a level.
    fn slots(&self, level: u8, number: u64) -> u64 {
        let children = if level == 0 {
            self.chunks
        } else {
            self.leaves.div_ceil(1 << (FAN_BITS * u32::from(level - 1)))
        };
        children.saturating_sub(number.saturating_mul(LEAF_CHUNKS)).min(LEAF_CHUNKS)
    }

    /// Whether `node` names nothing beyond the end of the disk.
    pub(crate) fn fits(&self, node: &Node, number: u64) -> bool {
        let slots = self.slots(node.level(), number);
        node.iter().all(|(slot, _)| u64::from(slot) < slots)
    }

    /// Clears what `node` names beyond the end of the disk; whether that changed it.
    pub(super) fn cut(&self, node: &mut Node, number: u64) -> bool {
        let slots = self.slots(node.level(), number);
        let beyond: Vec<u8> =
            node.iter().map(|(slot, _)| slot).filter(|slot| u64::from(*slot) >= slots).collect();
        beyond.iter().for_each(|slot| node.set(*slot, None));
        !beyond.is_empty()
    }
}

/// Number of the node at `level` above leaf `leaf`.
pub(super) fn number_at(level: u8, leaf: u64) -> u64 {
    leaf >> (FAN_BITS * u32::from(level))
}

/// Slot of node `number` in its parent.
pub(super) fn slot_of(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

/// What a walk over a tree meets next.
#[derive(Debug)]
pub enum TreeStep {
    /// A leaf that names any chunk, and its number.
    Leaf(u64, Node),
    /// Leaves that are out of reach, and the damage that keeps them so.
    Lost(Range<u64>, Error),
}

/// Reads the leaves of one disk's tree.
pub struct TreeReader {
    pub(super) nodes: Nodes,
    pub(super) spec: TreeSpec,
    pub(super) shape: Shape,
}

impl TreeReader {
    /// A reader of `tree` in `repository`; reads nothing yet.
    pub fn new(repository: &Arc<Repository>, tree: TreeSpec) -> Self {
        Self::over(repository.parts(), tree)
    }

    pub(crate) fn over(parts: &Parts, spec: TreeSpec) -> Self {
        let shape = Shape::new(spec.size_bytes, parts.chunk_bytes);
        TreeReader { nodes: Nodes::new(parts.clone()), spec, shape }
    }

    /// The node of leaf `leaf`: a slot for each of its chunks, clear for zeros. Beyond the disk it is empty.
    ///
    /// # Errors
    /// Those of reading a node; [`Error::TreeShape`] when a node names something beyond the end of the disk.
    pub async fn leaf(&mut self, leaf: u64) -> Result<Node> {
        let (mut id, mut level) = (self.spec.root, self.shape.top);
        if leaf >= self.shape.leaves {
            return Ok(Node::new(0));
        }
        while let Some(node_id) = id {
            let node = self.node(&node_id, level, number_at(level, leaf)).await?;
            if level == 0 {
                return Ok(Node::clone(&node));
            }
            level -= 1;
            id = node.get(slot_of(number_at(level, leaf)));
        }
        Ok(Node::new(0))
    }

    /// The first leaf at or after `from` that names any chunk, and its number; `None` when only zeros follow.
    /// Subtrees of zeros cost nothing.
    ///
    /// # Errors
    /// Those of [`TreeReader::leaf`].
    pub async fn next_leaf(&mut self, from: u64) -> Result<Option<(u64, Node)>> {
        match self.next_step(from).await? {
            Some(TreeStep::Leaf(leaf, node)) => Ok(Some((leaf, node))),
            Some(TreeStep::Lost(_, error)) => Err(error),
            None => Ok(None),
        }
    }

    /// As [`TreeReader::next_leaf`], but a node that is damaged or gone is told with the leaves below it, so that the
    /// walk can go on behind them.
    ///
    /// # Errors
    /// What says nothing about the tree, such as a store that does not answer.
    pub async fn next_step(&mut self, from: u64) -> Result<Option<TreeStep>> {
        let mut from = from;
        // Each turn either descends to a leaf or moves `from` past a subtree that ended before it.
        'root: while from < self.shape.leaves {
            let Some(root) = self.spec.root else { return Ok(None) };
            let (mut id, mut level) = (root, self.shape.top);
            loop {
                let end = (number_at(level, from) + 1) << (FAN_BITS * u32::from(level));
                let node = match self.node(&id, level, number_at(level, from)).await {
                    Ok(node) => node,
                    Err(error) if is_damage(&error) => {
                        return Ok(Some(TreeStep::Lost(from..end.min(self.shape.leaves), error)));
                    }
                    Err(error) => return Err(error),
                };
                if level == 0 && !node.is_empty() {
                    return Ok(Some(TreeStep::Leaf(from, Node::clone(&node))));
                }
                let child = level.saturating_sub(1);
                let wanted = slot_of(number_at(child, from));
                let Some((slot, next)) = node.iter().find(|(slot, _)| *slot >= wanted).filter(|_| level > 0)
                else {
                    from = end;
                    continue 'root;
                };
                if slot > wanted {
                    from = ((number_at(level, from) << FAN_BITS) + u64::from(slot))
                        << (FAN_BITS * u32::from(child));
                }
                (id, level) = (next, child);
            }
        }
        Ok(None)
    }

    /// The last leaf before `end` that names any chunk, and its number; `None` when only zeros come before.
    ///
    /// # Errors
    /// Those of [`TreeReader::leaf`].
    pub async fn last_leaf(&mut self, end: u64) -> Result<Option<(u64, Node)>> {
        let mut end = end.min(self.shape.leaves);
        // Each turn either descends to a leaf or moves `end` before a subtree that has nothing so early.
        'root: while let Some(mut at) = end.checked_sub(1) {
            let Some(root) = self.spec.root else { return Ok(None) };
            let (mut id, mut level) = (root, self.shape.top);
            loop {
                let node = self.node(&id, level, number_at(level, at)).await?;
                if level == 0 && !node.is_empty() {
                    return Ok(Some((at, Node::clone(&node))));
                }
                let child = level.saturating_sub(1);
                let wanted = slot_of(number_at(child, at));
                let before = node.iter().take_while(|(slot, _)| *slot <= wanted).last().filter(|_| level > 0);
                let Some((slot, next)) = before else {
                    end = number_at(level, at) << (FAN_BITS * u32::from(level));
                    continue 'root;
                };
                if slot < wanted {
                    let number = (number_at(level, at) << FAN_BITS) + u64::from(slot);
                    at = ((number + 1) << (FAN_BITS * u32::from(child))) - 1;
                }
                (id, level) = (next, child);
            }
        }
        Ok(None)
    }

    /// Nodes read so far.
    pub fn nodes_read(&self) -> u64 {
        self.nodes.reads()
    }

    pub(super) async fn node(&mut self, id: &ChunkId, level: u8, number: u64) -> Result<Arc<Node>> {
        let node = self.nodes.get(id, level).await?;
        if !self.shape.fits(&node, number) {
            return Err(Error::TreeShape { node: *id, level, number, size_bytes: self.shape.size_bytes });
        }
        Ok(node)
    }
}
