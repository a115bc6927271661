//! Log entries: the decisions of a repository, one small signed object a slot.
//!
//! Here are their bytes; [`state`] says what they mean. Not here: how slots are won, which is the store's
//! and the repository's. The invariant: an entry opens only in its own slot, and its signature covers the
//! repository, the slot and the whole document. docs/FORMAT.md, "log/".

pub mod state;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cursor::{check_limit, widen};
use crate::error::{Error, Result};
use crate::id::{
    ChunkId, EntryHash, EntryNonce, EpochId, PackName, RepositoryId, SegmentName, SessionId, StoreId,
    WriterId,
};
use crate::keys::KeyRing;
use crate::keys::signer::{SIGNATURE_BYTES, Signer, verify};
use crate::magic;
use crate::record::{CommitSummary, Definition};
use crate::sealed::{self, Place};

pub use state::{
    Applied, Backup, Condemned, Forgotten, OpenSession, PublishedSegment, State, VoidReason,
    decode_checkpoint, encode_checkpoint,
};

const OBJECT: &str = "log entry";
const SIGNATURE_CONTEXT: &[u8] = b"aquifer v1 2026-11 log entry signature";

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// Writes a backup.
    Backup,
    /// Reads a backup into a volume.
    Restore,
    /// Reads backups to check them.
    Verify,
    /// Serves a backup as an export.
    Export,
    /// Receives backups from another repository.
    Replicate,
    /// Finds and removes what no backup reaches.
    Collect,
}

/// What a writer may decide. Recorded from the start; not yet enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Makes backups.
    Writer,
    /// Condemns and reaps.
    Collector,
    /// Everything.
    Admin,
}

/// Who must understand a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// Readers and writers.
    Read,
    /// Writers only.
    Write,
}

/// A feature of the repository that was not there in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Who must understand it.
    pub needs: Needs,
}

/// A change of the keys that the repository knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyChange {
    /// New packs are sealed under this epoch.
    Epoch {
        /// Random name of the epoch.
        id: EpochId,
    },
    /// A writer's public key is enrolled.
    Writer {
        /// The public key.
        id: WriterId,
        /// What it may decide.
        role: Role,
    },
}

/// One blob in one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobPlace {
    /// The pack, by its current name.
    pub pack: PackName,
    /// The blob.
    pub id: ChunkId,
}

/// Where the data of a domain goes when nobody says it: documents of the backup API, kept as they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultTargets {
    /// Of its backups.
    pub backup: Option<String>,
    /// Of the metadata of its snapshots.
    pub snapshot: Option<String>,
    /// Of the metadata of its saved states.
    pub managed_save: Option<String>,
}

/// A domain that somebody defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefinedDomain {
    /// Its name; the name under which its backups are filed.
    pub name: String,
    /// Its id, if the definition has one.
    pub uuid: Option<Uuid>,
    /// How it was defined; each later backup keeps a copy.
    pub definition: Option<Definition>,
    /// Where its data goes by default.
    pub targets: DefaultTargets,
}

/// One decision. What each does to the state, and when it is void, is fixed in docs/FORMAT.md, "State".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// A session begins; its id carries this entry's slot.
    Open {
        /// The session.
        session: SessionId,
        /// What it does.
        kind: SessionKind,
        /// The virtual machine, when there is one.
        domain: Option<String>,
        /// The backup that it will commit or reads.
        backup: Option<Uuid>,
        /// Backups that must stay as long as the session is open.
        pins: Vec<Uuid>,
        /// Where it runs, for people and for fencing one's own dead sessions.
        host: String,
    },
    /// Packs are made known through segments of this session, in ascending order.
    Publish {
        /// The session.
        session: SessionId,
        /// The segments.
        segments: Vec<SegmentName>,
    },
    /// A backup exists from here on.
    Commit {
        /// The session.
        session: SessionId,
        /// What lists show.
        summary: CommitSummary,
        /// The record's blob.
        record: ChunkId,
    },
    /// A session ends by itself.
    Close {
        /// The session.
        session: SessionId,
    },
    /// A session is ended by another, because nobody seems to write it any more.
    Fence {
        /// The session.
        session: SessionId,
        /// The beat of its heartbeat that was seen unchanged; 0 when there was none.
        seen: u64,
    },
    /// Backups are marked; their data stays until they are dropped.
    Forget {
        /// The backups.
        backups: Vec<Uuid>,
        /// They are not dropped before this wall-clock time, in milliseconds since 1970 UTC.
        not_before_ms: u64,
    },
    /// The mark is taken back.
    Unforget {
        /// The backups.
        backups: Vec<Uuid>,
    },
    /// Backups are protected from being marked, or not any more.
    Protect {
        /// The backups.
        backups: Vec<Uuid>,
        /// Whether they are protected from here on.
        on: bool,
    },
    /// Packs may be deleted after the grace, and forgotten backups are no roots any more.
    Condemn {
        /// The packs, by their current names.
        packs: Vec<PackName>,
        /// The backups that are dropped.
        dropped: Vec<Uuid>,
    },
    /// Condemned packs are gone from the store.
    Reaped {
        /// The packs.
        packs: Vec<PackName>,
    },
    /// Segments are replaced by merged ones.
    Reindex {
        /// The segments replaced.
        old: Vec<SegmentName>,
        /// Their replacement, of an open session, in ascending order.
        new: Vec<SegmentName>,
        /// Reaped packs that no segment names any more, so that the state can drop them too.
        dropped: Vec<PackName>,
    },
    /// Packs or blobs that turned out damaged: nothing new may depend on them.
    Quarantine {
        /// Whole packs.
        packs: Vec<PackName>,
        /// Single blobs.
        blobs: Vec<BlobPlace>,
    },
    /// A domain is defined, or defined anew. Backups of its name are its own, also those that were there before.
    Define {
        /// What is known of it; boxed, because it is the largest body and the rarest.
        domain: Box<DefinedDomain>,
    },
    /// A domain is not defined any more. Its backups stay.
    Undefine {
        /// Its name.
        domain: String,
    },
    /// The keys change.
    Key(KeyChange),
    /// Features are added.
    Config {
        /// The features.
        features: Vec<Feature>,
    },
    /// The log continues in another store; this one ends here.
    Moved {
        /// The other store.
        log_store: StoreId,
    },
    /// Slots below `floor` are deleted; a checkpoint at or above it stands.
    Truncate {
        /// The lowest slot that stays.
        floor: u64,
    },
}

/// One slot of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its slot, counted from 1.
    pub seq: u64,
    /// BLAKE3 of the object before it; of the `format` object for entry 1.
    pub prev: EntryHash,
    /// Who signed it.
    pub writer: WriterId,
    /// Random, so that a writer knows its own entry again.
    pub nonce: EntryNonce,
    /// The writer's wall clock in milliseconds since 1970 UTC; for display only.
    pub wall_ms: u64,
    /// The decisions, applied in order.
    pub bodies: Vec<Body>,
}

/// Seals and signs an entry for slot `entry.seq`. `salt` is fresh and random for every call.
///
/// # Errors
/// [`Error::Limit`] above 8 MiB; [`Error::Origin`] when the signer is not the entry's writer.
pub fn seal_entry(ring: &KeyRing, signer: &Signer, salt: [u8; 32], entry: &Entry) -> Result<Vec<u8>> {
    if signer.writer() != entry.writer {
        return Err(Error::Origin {
            object: OBJECT,
            expected: format!("signed by {}", signer.writer()),
            found: format!("written by {}", entry.writer),
        });
    }
    let json = serde_json::to_vec(entry).map_err(|source| Error::Json { object: OBJECT, source })?;
    let signature = signer.sign(&message(&ring.repository(), entry.seq, &json));
    sealed::seal(ring, Place::Log(entry.seq), salt, &[&signature[..], &json].concat())
}

/// Opens the entry of slot `seq` and checks its signature against the writer that it names. Whether that
/// writer is enrolled, and whether the entry follows the one before it, is checked by [`State::apply`].
///
/// # Errors
/// [`Error::Signature`], [`Error::Authentication`], [`Error::Origin`], [`Error::Json`] (also for a body
/// that this version does not know) or another kind of corruption.
pub fn open_entry(ring: &KeyRing, seq: u64, bytes: &[u8]) -> Result<Entry> {
    let plain = sealed::open(ring, Place::Log(seq), bytes)?;
    let Some((signature, json)) = plain.split_at_checked(SIGNATURE_BYTES) else {
        let (need, have) = (widen(SIGNATURE_BYTES), widen(plain.len()));
        return Err(Error::Truncated { object: OBJECT, need, have });
    };
    check_limit(OBJECT, "plain_bytes", widen(json.len()), u64::from(magic::ENTRY_BYTES_MAX))?;
    let entry: Entry =
        serde_json::from_slice(json).map_err(|source| Error::Json { object: OBJECT, source })?;
    if !verify(&entry.writer, &message(&ring.repository(), seq, json), signature) {
        return Err(Error::Signature { seq });
    }
    if entry.seq != seq {
        return Err(Error::Sequence { expected: seq, found: entry.seq });
    }
    Ok(entry)
}

fn message(repository: &RepositoryId, seq: u64, json: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, &repository.0, &seq.to_le_bytes(), json].concat()
}

/// BLAKE3 of a log object's bytes: what the next entry names as `prev`.
#[must_use]
pub fn entry_hash(bytes: &[u8]) -> EntryHash {
    EntryHash(*blake3::hash(bytes).as_bytes())
}
