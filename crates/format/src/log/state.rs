//! The fold of the log: what the repository knows after an entry.
//!
//! Not here: anything a chunk. The invariants: two programs that applied the same entries hold equal
//! states; a void body changes nothing; nothing depends on a clock. Applying costs the size of the body
//! (plus one copy of a collection that a clone still shares), cloning costs a few pointers.
//! docs/FORMAT.md, "State".

mod fold;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BlobPlace, Body, DefinedDomain, Feature, Needs, Role, SessionKind};
use crate::config::RepositoryConfig;
use crate::cursor::{check_limit, widen};
use crate::error::{Error, Result};
use crate::id::{
    ChunkId, EntryHash, EpochId, PackName, RepositoryId, SegmentName, SessionId, StoreId, WriterId,
};
use crate::keys::KeyRing;
use crate::magic;
use crate::record::CommitSummary;
use crate::sealed::{self, Place};

pub use fold::{Applied, VoidReason};

const CHECKPOINT: &str = "checkpoint";

/// A session that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// What it does.
    pub kind: SessionKind,
    /// The virtual machine, when there is one.
    pub domain: Option<String>,
    /// The backup that it will commit or reads.
    pub backup: Option<Uuid>,
    /// Backups that must stay.
    pub pins: Vec<Uuid>,
    /// Where it runs.
    pub host: String,
    /// Who opened it.
    pub writer: WriterId,
    /// Wall clock of its `Open` in milliseconds since 1970 UTC, for display.
    pub wall_ms: u64,
    /// The lowest number that its next segment may have.
    pub next_segment: u64,
}

/// The mark that `Forget` leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgotten {
    /// Slot of the first `Forget` since it was last unmarked.
    pub seq: u64,
    /// Not dropped before this wall-clock time, in milliseconds since 1970 UTC.
    pub not_before_ms: u64,
}

/// A committed backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// What lists show.
    pub summary: CommitSummary,
    /// The record's blob.
    pub record: ChunkId,
    /// The session that committed it.
    pub session: SessionId,
    /// Slot of its `Commit`.
    pub seq: u64,
    /// Set while it is forgotten.
    pub forgotten: Option<Forgotten>,
    /// True while it must not be forgotten; left out of a checkpoint when false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub protected: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// A segment that the log made known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedSegment {
    /// Its name.
    pub name: SegmentName,
    /// Slot of its `Publish` or `Reindex`.
    pub seq: u64,
}

/// When a pack was condemned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condemned {
    /// Slot of its first `Condemn`.
    pub seq: u64,
    /// Wall clock of that entry in milliseconds since 1970 UTC.
    pub wall_ms: u64,
}

/// The state after some entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    repository: RepositoryId,
    /// BLAKE3 of the `format` object, as [`EntryHash`] for its text form.
    format: EntryHash,
    seq: u64,
    tip: EntryHash,
    floor: u64,
    moved_to: Option<StoreId>,
    features: Vec<Feature>,
    epochs: Vec<EpochId>,
    #[serde(with = "shared")]
    writers: Arc<BTreeMap<WriterId, Role>>,
    #[serde(with = "shared")]
    sessions: Arc<BTreeMap<SessionId, OpenSession>>,
    #[serde(with = "shared")]
    backups: Arc<BTreeMap<Uuid, Backup>>,
    #[serde(with = "shared")]
    segments: Arc<Vec<PublishedSegment>>,
    #[serde(with = "shared")]
    condemned: Arc<BTreeMap<PackName, Condemned>>,
    #[serde(with = "shared")]
    reaped: Arc<BTreeSet<PackName>>,
    reaped_dropped: u64,
    #[serde(with = "shared")]
    quarantined_packs: Arc<BTreeSet<PackName>>,
    #[serde(with = "shared")]
    quarantined_blobs: Arc<BTreeSet<BlobPlace>>,
    /// Left out of a checkpoint when there is none.
    #[serde(with = "shared", default, skip_serializing_if = "no_domain")]
    domains: Arc<BTreeMap<String, DefinedDomain>>,
}

fn no_domain(domains: &Arc<BTreeMap<String, DefinedDomain>>) -> bool {
    domains.is_empty()
}

/// A shared collection is written as the collection.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

impl State {
    /// The state before entry 1.
    #[must_use]
    pub fn new(config: &RepositoryConfig) -> Self {
        let format = EntryHash(config.fingerprint());
        Self {
            repository: config.repository,
            format,
            seq: 0,
            tip: format,
            floor: 1,
            moved_to: None,
            features: Vec::new(),
            epochs: Vec::new(),
            writers: Arc::default(),
            sessions: Arc::default(),
            backups: Arc::default(),
            segments: Arc::default(),
            condemned: Arc::default(),
            reaped: Arc::default(),
            reaped_dropped: 0,
            quarantined_packs: Arc::default(),
            quarantined_blobs: Arc::default(),
            domains: Arc::default(),
        }
    }

    /// Slot of the last entry applied; 0 before the first.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Hash of the last object applied: what the next entry names as `prev`.
    #[must_use]
    pub fn tip(&self) -> EntryHash {
        self.tip
    }

    /// The lowest slot that may still exist; 1 before any truncation.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The repository.
    #[must_use]
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// The store in which the log continues, once it moved.
    #[must_use]
    pub fn moved_to(&self) -> Option<StoreId> {
        self.moved_to
    }

    /// Data epochs, oldest first; the last is for [`KeyRing::add_epoch`].
    #[must_use]
    pub fn epochs(&self) -> &[EpochId] {
        &self.epochs
    }

    /// Enrolled writers.
    #[must_use]
    pub fn writers(&self) -> &BTreeMap<WriterId, Role> {
        &self.writers
    }

    /// Sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> &BTreeMap<SessionId, OpenSession> {
        &self.sessions
    }

    /// True when a session of this id can never write again: its slot is filled and it is not open.
    #[must_use]
    pub fn has_ended(&self, session: &SessionId) -> bool {
        session.open_seq() <= self.seq && !self.sessions.contains_key(session)
    }

    /// Committed backups that are not dropped, forgotten ones included: the roots of collection.
    #[must_use]
    pub fn backups(&self) -> &BTreeMap<Uuid, Backup> {
        &self.backups
    }

    /// True when an open session pins the backup.
    #[must_use]
    pub fn is_pinned(&self, backup: &Uuid) -> bool {
        self.sessions.values().any(|session| session.pins.contains(backup))
    }

    /// Published segments in log order; one entry's in the order of its bodies.
    #[must_use]
    pub fn segments(&self) -> &[PublishedSegment] {
        &self.segments
    }

    /// Segments published after slot `seq`, in log order.
    #[must_use]
    pub fn segments_since(&self, seq: u64) -> &[PublishedSegment] {
        let from = self.segments.partition_point(|segment| segment.seq <= seq);
        &self.segments[from..]
    }

    /// True unless the pack is condemned, reaped or quarantined: only on live packs may new data depend.
    #[must_use]
    pub fn is_live(&self, pack: &PackName) -> bool {
        !self.condemned.contains_key(pack)
            && !self.reaped.contains(pack)
            && !self.quarantined_packs.contains(pack)
    }

    /// True when this blob, or its whole pack, is quarantined.
    #[must_use]
    pub fn is_quarantined(&self, pack: &PackName, id: &ChunkId) -> bool {
        self.quarantined_packs.contains(pack)
            || self.quarantined_blobs.contains(&BlobPlace { pack: *pack, id: *id })
    }

    /// Condemned packs that are not yet reaped.
    #[must_use]
    pub fn condemned(&self) -> &BTreeMap<PackName, Condemned> {
        &self.condemned
    }

    /// Packs that are gone from the store but may still be named by segments.
    #[must_use]
    pub fn reaped(&self) -> &BTreeSet<PackName> {
        &self.reaped
    }

    /// Slot of the last `Reindex` that dropped reaped packs from the state; 0 before the first.
    ///
    /// An index that reflects an earlier slot may still list packs that are gone and that nothing here names
    /// any more: it is to be built anew from the segments.
    #[must_use]
    pub fn reaped_dropped(&self) -> u64 {
        self.reaped_dropped
    }

    /// Packs quarantined as a whole.
    #[must_use]
    pub fn quarantined_packs(&self) -> &BTreeSet<PackName> {
        &self.quarantined_packs
    }

    /// Single blobs quarantined.
    #[must_use]
    pub fn quarantined_blobs(&self) -> &BTreeSet<BlobPlace> {
        &self.quarantined_blobs
    }

    /// Domains that are defined, by name.
    #[must_use]
    pub fn domains(&self) -> &BTreeMap<String, DefinedDomain> {
        &self.domains
    }

    /// Features that the repository uses.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// Fails when a feature that reading (`writing` false) or writing needs is unknown. Version 1 knows
    /// none.
    ///
    /// # Errors
    /// [`Error::Feature`] names the first.
    pub fn check_features(&self, writing: bool) -> Result<()> {
        match self.features.iter().find(|feature| writing || feature.needs == Needs::Read) {
            Some(feature) => Err(Error::Feature { name: feature.name.clone() }),
            None => Ok(()),
        }
    }
}

/// Seals the state as the checkpoint of its last entry, `ckpt/<seq>`. `salt` is fresh and random.
///
/// # Errors
/// [`Error::Limit`] above 256 MiB.
pub fn encode_checkpoint(ring: &KeyRing, salt: [u8; 32], state: &State) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(state).map_err(|source| Error::Json { object: CHECKPOINT, source })?;
    check_limit(CHECKPOINT, "plain_bytes", widen(json.len()), u64::from(magic::CHECKPOINT_BYTES_MAX))?;
    sealed::seal(ring, Place::Checkpoint(state.seq), salt, &json)
}

/// Opens the checkpoint of slot `seq`.
///
/// # Errors
/// [`Error::Authentication`] or another kind of corruption; [`Error::Origin`] when it is of another slot,
/// repository or `format` object.
pub fn decode_checkpoint(ring: &KeyRing, seq: u64, bytes: &[u8]) -> Result<State> {
    let plain = sealed::open(ring, Place::Checkpoint(seq), bytes)?;
    let state: State =
        serde_json::from_slice(&plain).map_err(|source| Error::Json { object: CHECKPOINT, source })?;
    let expected = (ring.repository(), EntryHash(ring.fingerprint()), seq);
    let found = (state.repository, state.format, state.seq);
    if found == expected {
        Ok(state)
    } else {
        Err(Error::Origin {
            object: CHECKPOINT,
            expected: format!("of repository {}, format {}, slot {}", expected.0, expected.1, expected.2),
            found: format!("of repository {}, format {}, slot {}", found.0, found.1, found.2),
        })
    }
}
