//! What the backups reach: every walked id in a filter, and one bit for each stored blob that is its place.
//!
//! The bits come from the index, which is a cache and may be wrong: they say what is worth a try, and how much of a pack
//! is alive. The filter comes from the trees alone, and is what keeps a pack from being deleted (docs/FORMAT.md, G4).
//!
//! Invariants: memory is four bytes an id, a bit a blob, and 32 bytes a tree node; a node that cannot be read is an
//! error; an id is in the filter before its walk ends.

use std::collections::{BTreeSet, HashMap};

use aquifer_format::{ChunkId, PackName, Record, State};
use aquifer_index::Location;
use uuid::Uuid;

use super::filter::Filter;
use crate::dedup::IdSet;
use crate::parts::{Parts, is_live};
use crate::repository::blocking;
use crate::settings::Weakness;
use crate::trees::TreeSpec;
use crate::verify::walk::{Step, Walk};
use crate::{Error, RemovalError, Result};

/// Ids that are looked up at one time.
const LOOKUP_IDS: usize = 4096;

/// The marked blobs of one pack.
#[derive(Debug, Default, Clone)]
pub(super) struct PackMarks {
    /// A bit for each ordinal.
    ordinals: Vec<u64>,
    /// How many are set.
    pub(super) blobs: u64,
    /// Bytes that those blobs take in the pack.
    pub(super) bytes: u64,
}

impl PackMarks {
    /// Whether the pack is the place of its blob `ordinal`.
    pub(super) fn has(&self, ordinal: u16) -> bool {
        let (word, bit) = (usize::from(ordinal / 64), ordinal % 64);
        self.ordinals.get(word).is_some_and(|word| word & (1 << bit) != 0)
    }

    fn set(&mut self, ordinal: u16, bytes: u64) {
        if self.has(ordinal) {
            return;
        }
        let (word, bit) = (usize::from(ordinal / 64), ordinal % 64);
        if self.ordinals.len() <= word {
            self.ordinals.resize(word + 1, 0);
        }
        self.ordinals[word] |= 1 << bit;
        self.blobs += 1;
        self.bytes += bytes;
    }
}

/// See the module.
pub(super) struct Marks {
    filter: Filter,
    packs: HashMap<PackName, PackMarks>,
    nodes: IdSet,
    walked: BTreeSet<Uuid>,
    /// Needed ids of which no copy is known.
    pub(super) missing: u64,
    /// Condemned packs that hold the only known copy of a needed id, which no rule lets happen.
    pub(super) endangered: BTreeSet<PackName>,
}

impl Marks {
    /// Nothing marked yet; room for `ids` in the filter.
    pub(super) fn new(ids: u64, salt: u64) -> Self {
        Marks {
            filter: Filter::new(ids, salt),
            packs: HashMap::new(),
            nodes: IdSet::default(),
            walked: BTreeSet::new(),
            missing: 0,
            endangered: BTreeSet::new(),
        }
    }

    /// Walks every backup of `state` that is not among `dropped` and was not walked before. The index must have followed
    /// to `state`.
    ///
    /// # Errors
    /// [`crate::RemovalError::RootUnreadable`] for a record or a tree node that cannot be read; those of the index.
    pub(super) async fn walk(
        &mut self,
        parts: &Parts,
        state: &State,
        dropped: &BTreeSet<Uuid>,
    ) -> Result<()> {
        let unwalked = |backup: &&Uuid| !dropped.contains(backup) && !self.walked.contains(backup);
        let mut roots: Vec<Uuid> = state.backups().keys().filter(unwalked).copied().collect();
        if parts.settings.lacks(Weakness::PinsIgnored) {
            roots.retain(|backup| state.backups()[backup].forgotten.is_none());
        }
        for backup in roots {
            let Some(found) = state.backups().get(&backup) else { continue };
            self.backup(parts, state, backup, found.record).await?;
            self.walked.insert(backup);
        }
        Ok(())
    }

    /// How many backups were walked: a filter that has not changed since needs no second look.
    pub(super) fn roots(&self) -> usize {
        self.walked.len()
    }

    /// Tree nodes walked.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Whether `id` may be needed; always true of one that is.
    pub(super) fn may_need(&self, id: &ChunkId) -> bool {
        self.filter.contains(id)
    }

    /// The marks of a pack; `None` when it is nobody's place.
    pub(super) fn of(&self, pack: &PackName) -> Option<&PackMarks> {
        self.packs.get(pack)
    }

    async fn backup(&mut self, parts: &Parts, state: &State, backup: Uuid, record: ChunkId) -> Result<()> {
        let unreadable =
            |error: Error| Error::from(RemovalError::RootUnreadable { backup, source: Box::new(error) });
        let plain = parts.read_blob(aquifer_format::BlobKind::Record, &record).await.map_err(unreadable)?;
        let decoded = Record::decode(&plain).map_err(|error| unreadable(error.into()))?;
        let mut ids = vec![record];
        for disk in &decoded.disks {
            let tree = TreeSpec { root: disk.root, size_bytes: disk.size_bytes };
            let mut walk = Walk::new(parts, tree, None).await?;
            while let Some(step) = walk.next(&mut self.nodes).await.map_err(unreadable)? {
                match step {
                    Step::Node(id) => ids.push(id),
                    Step::Leaf { node, .. } => ids.extend(node.iter().map(|(_, id)| id)),
                    Step::Lost { error, .. } => return Err(unreadable(error)),
                }
                if ids.len() >= LOOKUP_IDS {
                    self.mark(parts, state, std::mem::take(&mut ids)).await?;
                }
            }
        }
        self.mark(parts, state, ids).await
    }

    async fn mark(&mut self, parts: &Parts, state: &State, ids: Vec<ChunkId>) -> Result<()> {
        ids.iter().for_each(|id| self.filter.insert(id));
        let index = std::sync::Arc::clone(&parts.index);
        let found = blocking(move || Ok(index.get_many(&ids)?)).await?;
        found.iter().for_each(|copies| self.place(state, copies));
        Ok(())
    }

    /// Chooses the place of one id among its copies, the same way on every host: the newest one that can be counted on.
    /// Newest, so that what an interrupted collection rewrote is not rewritten once more.
    fn place(&mut self, state: &State, copies: &[Location]) {
        let stands = |copy: &&Location| {
            !state.condemned().contains_key(&copy.pack) && !state.reaped().contains(&copy.pack)
        };
        let age = |copy: &&Location| (copy.pack.session.open_seq(), copy.pack);
        let standing: Vec<&Location> = copies.iter().filter(stands).collect();
        let live = standing.iter().filter(|copy| is_live(state, copy)).copied();
        match live.max_by_key(age) {
            Some(copy) => self.set(copy),
            // Quarantined copies may still open, so all of them stay.
            None if !standing.is_empty() => standing.into_iter().for_each(|copy| self.set(copy)),
            None if copies.is_empty() => self.missing += 1,
            None => self.endangered.extend(copies.iter().map(|copy| copy.pack)),
        }
    }

    fn set(&mut self, copy: &Location) {
        let bytes = u64::from(crate::reader::blob_bytes(copy));
        self.packs.entry(copy.pack).or_default().set(copy.row.ordinal, bytes);
    }
}
