//! What a verification has found so far: counts, damage, and the packs in use.
//!
//! Invariant: the list of damage that is reported is bounded; the sets behind it, which say what a damaged
//! object takes along, grow with the damage only.

use std::collections::BTreeSet;

use aquifer_format::log::BlobPlace;
use aquifer_format::{BlobKind, ChunkId, PackName};
use uuid::Uuid;

use super::report::{DAMAGE_MAX, Damage, DamagedObject};
use crate::dedup::IdSet;

/// Collects damage.
#[derive(Default)]
pub(crate) struct Findings {
    /// Tree nodes read.
    pub(super) nodes: u64,
    /// Chunks looked up.
    pub(super) chunks: u64,
    /// Packs in use.
    pub(super) packs: BTreeSet<PackName>,
    /// Blobs that cannot be restored.
    pub(super) bad_blobs: IdSet,
    /// Packs of which no blob can be counted on.
    pub(crate) bad_packs: BTreeSet<PackName>,
    /// Packs that are not what was stored, but whose blobs were told apart one by one.
    pub(crate) scarred_packs: BTreeSet<PackName>,
    /// Blobs that do not open where they lie.
    pub(crate) sick_blobs: BTreeSet<BlobPlace>,
    /// What [`Findings::bad_blobs`] holds, and what each is.
    pub(crate) lost: Vec<(BlobKind, ChunkId)>,
    /// What is reported.
    pub(super) damage: Vec<Damage>,
    /// What is only counted.
    pub(super) more_damage: u64,
}

impl Findings {
    /// A blob that cannot be restored. The first reason is kept.
    pub(super) fn chunk(&mut self, id: ChunkId, what: String) {
        if self.bad_blobs.insert(id) {
            self.lost.push((BlobKind::Data, id));
            self.note(DamagedObject::Chunk(id), what);
        }
    }

    /// A tree node that cannot be read.
    pub(super) fn node(&mut self, id: ChunkId, what: String) {
        if self.bad_blobs.insert(id) {
            self.lost.push((BlobKind::Tree, id));
            self.note(DamagedObject::Node(id), what);
        }
    }

    /// The record of a backup that cannot be read, or that no live pack holds.
    pub(super) fn record(&mut self, backup: Uuid, id: ChunkId, what: String) {
        if self.bad_blobs.insert(id) {
            self.lost.push((BlobKind::Record, id));
            self.note(DamagedObject::Record(backup), what);
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
