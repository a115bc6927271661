//! What a verification has found so far: counts, damage, and the packs in use.
//!
//! Invariant: the list of damage that is reported is bounded; the sets behind it, which say what a damaged
//! object takes along, grow with the damage only.

use std::collections::BTreeSet;

use aquifer_format::{ChunkId, PackName};

use super::report::{DAMAGE_MAX, Damage, DamagedObject};
use crate::dedup::IdSet;

/// Collects damage.
#[derive(Default)]
pub(super) struct Findings {
    /// Tree nodes read.
    pub(super) nodes: u64,
    /// Chunks looked up.
    pub(super) chunks: u64,
    /// Packs in use.
    pub(super) packs: BTreeSet<PackName>,
    /// Blobs that cannot be restored.
    pub(super) bad_blobs: IdSet,
    /// Packs of which no blob can be counted on.
    pub(super) bad_packs: BTreeSet<PackName>,
    /// What is reported.
    pub(super) damage: Vec<Damage>,
    /// What is only counted.
    pub(super) more_damage: u64,
}

impl Findings {
    /// A blob that cannot be restored. The first reason is kept.
    pub(super) fn chunk(&mut self, id: ChunkId, what: String) {
        if self.bad_blobs.insert(id) {
            self.note(DamagedObject::Chunk(id), what);
        }
    }

    /// A tree node that cannot be read.
    pub(super) fn node(&mut self, id: ChunkId, what: String) {
        if self.bad_blobs.insert(id) {
            self.note(DamagedObject::Node(id), what);
        }
    }

    /// A pack of which nothing can be counted on.
    pub(super) fn pack(&mut self, pack: PackName, what: String) {
        if self.bad_packs.insert(pack) {
            self.note(DamagedObject::Pack(pack), what);
        }
    }

    /// Anything else that is damaged.
    pub(super) fn note(&mut self, object: DamagedObject, what: String) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage { object, what });
        } else {
            self.more_damage += 1;
        }
    }

    /// Whether nothing was found.
    pub(super) fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }
}
