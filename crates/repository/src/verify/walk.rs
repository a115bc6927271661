//! Walking disk trees to check them: every node once, and where a base is known, only what the base lacks.
//!
//! A walk yields leaves and what could not be read; [`LeafCheck`] looks a leaf's chunks up. It reads no chunk.
//!
//! Invariants: at most one path of children is held; a node that was seen before in this verification, or
//! stands at the same place in the base, is not read again.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_format::{BlobKind, ChunkId, Node, PackName};

use crate::dedup::IdSet;
use crate::nodes::Nodes;
use crate::parts::{Parts, is_live};
use crate::trees::{LEAF_CHUNKS, Shape, TreeSpec};
use crate::{Error, Result};

/// A node still to visit.
struct Place {
    id: ChunkId,
    level: u8,
    number: u64,
    base: Option<ChunkId>,
}

/// One thing that a walk meets.
pub(crate) enum Step {
    /// A node was read; its pack is in use. Inner nodes are told so that their packs count.
    Node(ChunkId),
    /// A leaf node, with the base's at the same place.
    Leaf { number: u64, node: Arc<Node>, base: Option<Arc<Node>> },
    /// A node that cannot be read, or is not what it must be; what is below it is out of reach.
    Lost { id: ChunkId, level: u8, number: u64, error: Error },
}

/// A walk over one disk's tree.
pub(crate) struct Walk {
    nodes: Nodes,
    shape: Shape,
    base: Option<(TreeSpec, Shape)>,
    stack: Vec<Place>,
    pending: Option<Step>,
}

impl Walk {
    /// A walk over `tree`; what `base` has at the same place is skipped.
    pub(crate) async fn new(parts: &Parts, tree: TreeSpec, base: Option<TreeSpec>) -> Result<Self> {
        let shape = Shape::new(tree.size_bytes, parts.chunk_bytes);
        let base = base.map(|base| (base, Shape::new(base.size_bytes, parts.chunk_bytes)));
        let mut walk =
            Walk { nodes: Nodes::new(parts.clone()), shape, base, stack: Vec::new(), pending: None };
        if let Some(root) = tree.root {
            let base = walk.base_root().await;
            walk.push(Place { id: root, level: shape.top, number: 0, base });
        }
        Ok(walk)
    }

    /// The base's node at the place of the new root: lower down, when the disk shrank.
    async fn base_root(&mut self) -> Option<ChunkId> {
        let (base, shape) = self.base?;
        let mut id = base.root?;
        for level in (self.shape.top + 1..=shape.top).rev() {
            // A base that cannot be read saves nothing, and is no fault of this tree.
            id = self.nodes.get(&id, level).await.ok()?.get(0)?;
        }
        (shape.top >= self.shape.top).then_some(id)
    }

    fn push(&mut self, place: Place) {
        if Some(place.id) != place.base {
            self.stack.push(place);
        }
    }

    /// The next thing; `None` at the end.
    ///
    /// # Errors
    /// Only what says nothing about the tree, such as a store that does not answer.
    pub(crate) async fn next(&mut self, seen: &mut IdSet) -> Result<Option<Step>> {
        if let Some(step) = self.pending.take() {
            return Ok(Some(step));
        }
        while let Some(place) = self.stack.pop() {
            // The last leaf of a disk has a chunk whose length depends on the disk.
            let last = place.level == 0 && place.number + 1 == self.shape.leaves;
            if !seen.insert(place.id) && !last {
                continue;
            }
            let step = self.visit(&place).await?;
            return Ok(Some(step));
        }
        Ok(None)
    }

    async fn visit(&mut self, place: &Place) -> Result<Step> {
        let Place { id, level, number, base } = *place;
        let lost = |error| Step::Lost { id, level, number, error };
        let node = match self.nodes.get(&id, level).await {
            Ok(node) => node,
            Err(error) if is_damage(&error) => return Ok(lost(error)),
            Err(error) => return Err(error),
        };
        if !self.shape.fits(&node, number) {
            return Ok(lost(Error::TreeShape { node: id, level, number, size_bytes: self.shape.size_bytes }));
        }
        let base = match base {
            Some(base) => self.nodes.get(&base, level).await.ok(),
            None => None,
        };
        if level == 0 {
            self.pending = Some(Step::Leaf { number, node, base });
            return Ok(Step::Node(id));
        }
        let children: Vec<(u8, ChunkId)> = node.iter().collect();
        for (slot, child) in children.into_iter().rev() {
            let number = number * LEAF_CHUNKS + u64::from(slot);
            let base = match &base {
                Some(base) => base.get(slot),
                None => self
                    .base
                    .filter(|(_, shape)| number == 0 && shape.top == level - 1)
                    .and_then(|(base, _)| base.root),
            };
            self.push(Place { id: child, level: level - 1, number, base });
        }
        Ok(Step::Node(id))
    }

    /// Nodes read so far, those of the base included.
    pub(super) fn nodes_read(&self) -> u64 {
        self.nodes.reads()
    }

    /// The disk's counts.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }
}

/// Whether an error says that something stored is damaged or gone, and not merely out of reach for now.
pub(crate) fn is_damage(error: &Error) -> bool {
    match error {
        Error::Missing { .. }
        | Error::PackShort { .. }
        | Error::IndexRow { .. }
        | Error::TreeShape { .. } => true,
        Error::Damaged { source, .. } => source.is_corrupt(),
        Error::Node { source, .. } | Error::Object { source, .. } | Error::Format(source) => {
            source.is_corrupt()
        }
        Error::PackLost { source, .. } => is_incomplete(source),
        Error::Store(source) => is_incomplete(source),
        _ => false,
    }
}

/// Whether the store answered, and has not all of the object.
fn is_incomplete(error: &aquifer_store::Error) -> bool {
    matches!(error, aquifer_store::Error::NotFound { .. } | aquifer_store::Error::Range { .. })
}

/// What became of looking up a leaf's chunks.
#[derive(Default)]
pub(super) struct LeafCheck {
    /// Chunks looked up.
    pub(super) chunks: u64,
    /// Those that cannot be restored, and why.
    pub(super) bad: Vec<(ChunkId, String)>,
    /// The packs in which the others lie.
    pub(super) packs: BTreeSet<PackName>,
}

impl LeafCheck {
    /// Looks up what `node` names and `base` does not. Blocks on the index.
    pub(super) fn run(
        parts: &Parts,
        shape: Shape,
        number: u64,
        node: &Node,
        base: Option<&Node>,
    ) -> Result<Self> {
        let (chunks, ids): (Vec<u64>, Vec<ChunkId>) = node
            .iter()
            .map(|(slot, id)| (number * LEAF_CHUNKS + u64::from(slot), slot, id))
            .filter(|(chunk, slot, id)| {
                // The same chunk at the end of a disk may have to be of another length.
                base.is_none_or(|base| base.get(*slot) != Some(*id)) || *chunk + 1 == shape.chunks
            })
            .map(|(chunk, _, id)| (chunk, id))
            .unzip();
        let state = parts.state.get();
        let mut check = LeafCheck { chunks: ids.len() as u64, ..LeafCheck::default() };
        for ((chunk, id), copies) in chunks.iter().zip(&ids).zip(parts.index.get_many(&ids)?) {
            let expected = shape.chunk_len(*chunk);
            let wrong = match copies.iter().find(|copy| is_live(&state, copy)) {
                None if copies.is_empty() => "no pack is known to hold it".to_owned(),
                None => format!("all {} known copies are condemned or quarantined", copies.len()),
                Some(copy) if copy.row.kind != BlobKind::Data => {
                    format!("in pack {} it is no data chunk", copy.pack)
                }
                Some(copy) if u64::from(copy.row.plain_bytes) != expected => {
                    format!("it has {} bytes, but its place on the disk has {expected}", copy.row.plain_bytes)
                }
                Some(copy) => {
                    check.packs.insert(copy.pack);
                    continue;
                }
            };
            check.bad.push((*id, wrong));
        }
        Ok(check)
    }
}
