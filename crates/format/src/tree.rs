//! Nodes of a disk's tree: radix 256, absent children are zero.
//!
//! Not here: walking and building trees, which needs the store. The invariant: one set of children has one
//! encoding, so equal subtrees of any two disks are one object. docs/FORMAT.md, "Trees".

use crate::cursor::{Cursor, widen};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::magic;

const OBJECT: &str = "tree node";

/// Children of a node.
pub const FAN_OUT: usize = 256;
const HEADER_BYTES: usize = 40;
/// Greatest size of an encoded node in bytes: 40 + 256 · 32.
pub const NODE_BYTES_MAX: u32 = 8232;

/// Root of a disk's tree; `None` means that every byte is zero.
pub type DiskRoot = Option<ChunkId>;

/// Number of levels of the tree of a disk of so many chunks: the least that covers them, at least 1.
///
/// The root is a node of level `levels - 1`. More chunks than 6 levels hold is more than any disk has.
#[must_use]
pub fn levels(chunks: u64) -> u8 {
    let mut levels = 1;
    let mut rest = chunks.div_ceil(widen(FAN_OUT));
    while rest > 1 {
        levels += 1;
        rest = rest.div_ceil(widen(FAN_OUT));
    }
    levels
}

/// A node: up to 256 children. Children of a node of level 0, a leaf, are data chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    level: u8,
    present: [u8; FAN_OUT / 8],
    ids: Vec<ChunkId>,
}

impl Node {
    /// A node without children.
    #[must_use]
    pub fn new(level: u8) -> Self {
        Self { level, present: [0; FAN_OUT / 8], ids: Vec::new() }
    }

    /// Its height above the leaves: 0 for a leaf node.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    fn is_set(&self, slot: u8) -> bool {
        self.present[usize::from(slot >> 3)] & (1 << (slot & 7)) != 0
    }

    /// Number of children before `slot`.
    fn rank(&self, slot: u8) -> usize {
        let (byte, bit) = (usize::from(slot >> 3), slot & 7);
        let whole: u32 = self.present[..byte].iter().map(|byte| byte.count_ones()).sum();
        let part = (self.present[byte] & ((1 << bit) - 1)).count_ones();
        crate::cursor::index(whole + part)
    }

    /// The child at `slot`; `None` is a zero subtree.
    #[must_use]
    pub fn get(&self, slot: u8) -> Option<ChunkId> {
        if self.is_set(slot) { self.ids.get(self.rank(slot)).copied() } else { None }
    }

    /// Sets or clears the child at `slot`.
    pub fn set(&mut self, slot: u8, child: Option<ChunkId>) {
        let (at, mask) = (self.rank(slot), 1 << (slot & 7));
        match (self.is_set(slot), child) {
            (true, Some(id)) => self.ids[at] = id,
            (false, Some(id)) => {
                self.ids.insert(at, id);
                self.present[usize::from(slot >> 3)] |= mask;
            }
            (true, None) => {
                self.ids.remove(at);
                self.present[usize::from(slot >> 3)] &= !mask;
            }
            (false, None) => {}
        }
    }

    /// Number of children.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// True without children. Such a node is never stored: its parent leaves its slot clear.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The children that are there, in order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (u8, ChunkId)> + '_ {
        (0..=u8::MAX).filter(|slot| self.is_set(*slot)).zip(self.ids.iter().copied())
    }

    /// The node's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.ids.len() * ChunkId::BYTES);
        out.extend_from_slice(&magic::NODE);
        out.push(self.level);
        out.push(0);
        // At most 256 children, one a bit.
        out.extend_from_slice(&u16::try_from(self.ids.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&self.present);
        for id in &self.ids {
            out.extend_from_slice(&id.0);
        }
        out
    }

    /// Reads a node that should be at `expected_level`.
    ///
    /// # Errors
    /// A kind of corruption; an empty node is one, because it is never stored.
    pub fn decode(bytes: &[u8], expected_level: u8) -> Result<Self> {
        let mut cursor = Cursor::new(OBJECT, bytes);
        cursor.magic(magic::NODE)?;
        let level = cursor.u8()?;
        if level != expected_level || level >= magic::TREE_LEVELS_MAX {
            return Err(Error::Origin {
                object: OBJECT,
                expected: format!("of level {expected_level}"),
                found: format!("of level {level}"),
            });
        }
        cursor.reserved(1)?;
        let count = cursor.u16()?;
        let present: [u8; FAN_OUT / 8] = cursor.array()?;
        let bits: u32 = present.iter().map(|byte| byte.count_ones()).sum();
        if count == 0 || bits != u32::from(count) {
            return Err(cursor.field("count", u64::from(count)));
        }
        let mut ids = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            ids.push(ChunkId(cursor.array()?));
        }
        cursor.end()?;
        Ok(Self { level, present, ids })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_height_is_the_least_that_covers_the_size() {
        for (chunks, height) in
            [(0, 1), (1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 3), (1 << 24, 3), ((1 << 24) + 1, 4)]
        {
            assert_eq!(levels(chunks), height, "{chunks}");
        }
        assert_eq!(levels(1 << 48), 6);
    }

    #[test]
    fn an_empty_node_is_never_decoded() {
        assert!(matches!(Node::decode(&Node::new(0).encode(), 0), Err(Error::Field { field: "count", .. })));
    }

    #[test]
    fn a_node_of_another_level_is_refused() {
        let mut node = Node::new(1);
        node.set(0, Some(ChunkId([1; 32])));
        assert!(matches!(Node::decode(&node.encode(), 0), Err(Error::Origin { .. })));
        let mut high = Node::new(6);
        high.set(0, Some(ChunkId([1; 32])));
        assert!(matches!(Node::decode(&high.encode(), 6), Err(Error::Origin { .. })));
    }

    #[test]
    fn a_full_node_has_the_greatest_size() {
        let mut node = Node::new(0);
        for slot in 0..=255 {
            node.set(slot, Some(ChunkId([slot; 32])));
        }
        assert_eq!(widen(node.encode().len()), u64::from(NODE_BYTES_MAX));
        assert_eq!(Node::decode(&node.encode(), 0).unwrap(), node);
    }

    proptest! {
        #[test]
        fn a_node_behaves_as_a_map_and_round_trips(changes in prop::collection::vec((any::<u8>(), any::<Option<u8>>()), 1..300)) {
            let mut node = Node::new(2);
            let mut model = BTreeMap::new();
            for (slot, child) in changes {
                let child = child.map(|byte| ChunkId([byte; 32]));
                node.set(slot, child);
                match child { Some(id) => { model.insert(slot, id); } None => { model.remove(&slot); } }
            }
            prop_assert_eq!(node.iter().collect::<Vec<_>>(), model.clone().into_iter().collect::<Vec<_>>());
            for slot in 0..=255 {
                prop_assert_eq!(node.get(slot), model.get(&slot).copied());
            }
            prop_assert_eq!(node.count(), model.len());
            if !node.is_empty() {
                prop_assert_eq!(Node::decode(&node.encode(), 2).unwrap(), node);
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), level in 0u8..8) {
            let _ = Node::decode(&bytes, level);
        }
    }
}
