//! What can go wrong with a repository. Each variant is one situation that a caller may want to tell apart; each
//! message names the object, the number and the way out.
//!
//! Invariant: an error of a lower crate is kept as the source, never turned into text only.

mod removal;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_format::id::{ChunkId, EntryHash, PackName, SessionId, SlotId, StoreId};
use aquifer_store::Key;
use uuid::Uuid;

pub use removal::RemovalError;
use words::way_out;

/// The result of a repository operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed repository operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] aquifer_store::Error),
    /// Bytes could not be sealed or opened.
    #[error(transparent)]
    Format(#[from] aquifer_format::Error),
    /// The chunk index failed.
    #[error(transparent)]
    Index(#[from] aquifer_index::Error),
    /// An object of the repository cannot be opened.
    #[error("{key}: {source}")]
    Object {
        /// The object's key.
        key: String,
        /// What is wrong with it.
        source: aquifer_format::Error,
    },

    // opening
    /// There is no repository.
    #[error(
        "{store} holds no repository (it has no object named format): check the URL, or run `aquifer repository init`"
    )]
    NotARepository {
        /// The store.
        store: String,
    },
    /// There is a repository already.
    #[error("{store} holds a repository already: use it, or choose another place")]
    AlreadyInitialised {
        /// The store.
        store: String,
    },
    /// The place of a new repository holds something else.
    #[error("{store} is not empty: it holds {name}; name a new or empty place")]
    NotEmpty {
        /// The store.
        store: String,
        /// The first such name.
        name: String,
    },
    /// The store cannot hold a log.
    #[error(
        "{store} cannot hold the log: of 16 racing creates of one object {winners} won, round by round, and exactly 1 must; it may hold packs when another store takes the log (--log URL)"
    )]
    AtomicCreate {
        /// The store.
        store: String,
        /// Winners of each round.
        winners: String,
    },
    /// The store does not hold this repository's log.
    #[error(
        "{store} is not marked as the store {expected}, which holds the log of this repository: name that one with --log URL; if this is it, and only its mark was lost, put any object in it under the name {mark}"
    )]
    WrongLogStore {
        /// The store.
        store: String,
        /// The id that `format` names.
        expected: StoreId,
        /// The object that marks it.
        mark: Key,
    },
    /// The log store belongs to another repository.
    #[error("{log} and {packs} belong to different repositories: check the two URLs")]
    StoresDiffer {
        /// The log store.
        log: String,
        /// The pack store.
        packs: String,
    },
    /// A log store was to be adopted, and none is named.
    #[error(
        "the new log store is not named: add --log URL (a repository that never had one keeps its log in {store})"
    )]
    NoNewLogStore {
        /// The pack store.
        store: String,
    },
    /// Locks shall be extended, and no store has any.
    #[error("{store} locks no objects: add object-lock=MODE:PERIOD to its URL")]
    NoObjectLock {
        /// The pack store.
        store: String,
    },
    /// The log went on in another store.
    #[error(
        "log entry {entry} beside the packs is none of {store}: the log went on elsewhere (`repository adopt-log`), and this store is not to be used any more; name the other one with --log URL or log_url"
    )]
    LogReplaced {
        /// The log store in use.
        store: String,
        /// The entry.
        entry: u64,
    },
    /// There is no first log entry.
    #[error(
        "{store} has no log: either `repository init` was interrupted, then remove what is there and run it again, or the log was lost, then restore it from a copy of the store"
    )]
    NoLog {
        /// The log store.
        store: String,
    },
    /// None of the key slots opens.
    #[error("the password opens none of the {slots} key slots of this repository")]
    WrongSecret {
        /// Number of slots tried.
        slots: usize,
    },
    /// There are no key slots.
    #[error(
        "{store} has no key slot that can be read: without one nothing can be decrypted; restore keys/ from a copy"
    )]
    NoSlot {
        /// The store.
        store: String,
    },
    /// There are too many key slots.
    #[error("the repository has more than {limit} key slots: retire some")]
    ManySlots {
        /// The most that are tried.
        limit: usize,
    },
    /// No such key slot.
    #[error("there is no key slot {slot}: see `aquifer repository keys list`")]
    UnknownSlot {
        /// The slot asked for.
        slot: SlotId,
    },
    /// The last key slot must stay.
    #[error("{slot} is the last key slot, and without it the repository is lost: add another one first")]
    LastSlot {
        /// The slot asked for.
        slot: SlotId,
    },
    /// A plain repository has no key slots.
    #[error("the repository is not encrypted, so it has no key slots")]
    NotEncrypted,
    /// The state folder cannot be used.
    #[error("state folder {path}: {source}")]
    StateDir {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process of this host writes the index.
    #[error(
        "another backup uses the index {path} ({holder}); waited {waited_ms} ms: try again when it is done, or give this one a state folder of its own (--state-dir)"
    )]
    IndexBusy {
        /// The index.
        path: PathBuf,
        /// Who holds it.
        holder: String,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// The repository was opened for reading.
    #[error(
        "the repository was opened for reading only, or its log store is not marked as such: nothing is written to its log"
    )]
    ReadOnly,

    // the log
    /// The log ends before an entry that this host saw (P7).
    #[error(
        "the log ends at entry {found}, but this host saw entry {seen}: the store was rolled back or truncated; restore its newer state, or remove {state} to accept the loss"
    )]
    RolledBack {
        /// The newest entry that this host saw.
        seen: u64,
        /// The newest entry now.
        found: u64,
        /// The file that remembers.
        state: PathBuf,
    },
    /// The log has another history than this host saw (P7).
    #[error(
        "log entry {seq} is {found}, but this host saw {seen}: the store was rolled back and written again; restore its newer state, or remove {state} to accept the loss"
    )]
    OtherHistory {
        /// The entry.
        seq: u64,
        /// Its hash as seen before.
        seen: EntryHash,
        /// Its hash now.
        found: EntryHash,
        /// The file that remembers.
        state: PathBuf,
    },
    /// An entry is missing although later ones exist.
    #[error(
        "log entry {missing} is missing, but entry {next} exists: the object was lost; restore it from the mirror or a copy of the store"
    )]
    LogGap {
        /// The missing entry.
        missing: u64,
        /// The next one that exists.
        next: u64,
    },
    /// An entry was appended, but it or its predecessor cannot be read back as written (W6).
    #[error(
        "log entry {seq} was written, but cannot be read back with its predecessor: the log store breaks its contract; do not use it for the log"
    )]
    NotKept {
        /// The entry.
        seq: u64,
    },
    /// It is unknown whether an entry was appended.
    #[error(
        "it is unknown whether log entry {seq} was written, because {source}; look again when the store answers, and undo nothing before"
    )]
    OutcomeUnknown {
        /// The entry.
        seq: u64,
        /// The last failure.
        source: aquifer_store::Error,
    },
    /// An object is in the log store, but not yet beside the packs.
    #[error(
        "{key} is in the log, but its copy beside the packs could not be stored: {source}; the next writer completes it"
    )]
    Mirror {
        /// The object.
        key: String,
        /// What the pack store said.
        source: Box<aquifer_store::Error>,
    },
    /// A checkpoint exists of an entry that does not (P7).
    #[error(
        "checkpoint {checkpoint} exists, but the log ends at entry {found}: the log was rolled back or truncated; restore its newer entries from the mirror or a copy of the store"
    )]
    CheckpointAhead {
        /// The newest checkpoint.
        checkpoint: u64,
        /// The newest entry.
        found: u64,
    },
    /// Other writers took every slot that was tried.
    #[error("other writers took {tries} log slots in a row: try again when the repository is less busy")]
    LogBusy {
        /// Slots tried.
        tries: u32,
    },
    /// The log refused a decision of this process.
    #[error("log entry {seq}: the log calls it void ({reason}); this is a fault of this program")]
    Void {
        /// The entry.
        seq: u64,
        /// The reason.
        reason: String,
    },

    // sessions
    /// Another session backs the domain up.
    #[error("domain {domain}: session {session} of host {host} is backing it up{}", way_out(*.silent, *.fence_after))]
    DomainBusy {
        /// The domain.
        domain: String,
        /// The open session.
        session: SessionId,
        /// Where it runs.
        host: String,
        /// For how long no new heartbeat of it was seen; `None` when it is of this host and certainly lives.
        silent: Option<Duration>,
        /// After which silence it is ended as dead.
        fence_after: Duration,
    },
    /// The session was fenced.
    #[error(
        "session {session} was ended by another host because it seemed dead; what it published is kept: run the backup again"
    )]
    Fenced {
        /// The session.
        session: SessionId,
    },
    /// The new backup's id is taken.
    #[error("backup {backup} exists already: choose another id")]
    BackupExists {
        /// The backup.
        backup: Uuid,
    },
    /// A backup that the new one is to keep parts of is forgotten.
    #[error(
        "backup {backup} is deleted, so no new backup may build on it: bring it back, or build on another one"
    )]
    BaseForgotten {
        /// The backup.
        backup: Uuid,
    },
    /// A pinned backup was dropped.
    #[error("backup {backup}, on which this session builds, was deleted meanwhile: run it again")]
    PinLost {
        /// The backup.
        backup: Uuid,
    },
    /// The record is not the one that the session was begun for.
    #[error("the record is of backup {found}, but session {session} is of {expected}")]
    OtherBackup {
        /// The session.
        session: SessionId,
        /// The backup of the session.
        expected: Uuid,
        /// The backup of the record.
        found: Uuid,
    },

    // backups
    /// No such backup.
    #[error("there is no backup {wanted}: see `aquifer list`, and `aquifer list --deleted`")]
    UnknownBackup {
        /// As asked for.
        wanted: String,
    },
    /// A prefix fits several backups.
    #[error("{prefix} fits {matches} backups: give more digits")]
    AmbiguousBackup {
        /// The prefix.
        prefix: String,
        /// How many fit.
        matches: usize,
    },
    /// A domain has no backup.
    #[error("domain {domain} has no backup")]
    NoBackupOfDomain {
        /// The domain.
        domain: String,
    },

    // deletion and collection
    /// Something is not deleted, protected, pruned or collected.
    #[error(transparent)]
    Removal(#[from] RemovalError),
    /// The caller ended it.
    #[error("stopped before it was complete")]
    Stopped,

    // data plane
    /// No copy of a chunk is known.
    #[error(
        "chunk {chunk}: no pack is known to hold it; rebuild the index, and if that does not help verify the backup"
    )]
    Missing {
        /// The chunk.
        chunk: ChunkId,
    },
    /// A blob does not open.
    #[error("pack {pack}, chunk {chunk}: {source}")]
    Damaged {
        /// The pack.
        pack: PackName,
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong with it.
        source: Box<aquifer_format::Error>,
    },
    /// A pack cannot be read.
    #[error("pack {pack}: {source}")]
    PackLost {
        /// The pack.
        pack: PackName,
        /// What the store said.
        source: Box<aquifer_store::Error>,
    },
    /// A pack gave fewer bytes than it must have.
    #[error("pack {pack}: of {wanted} bytes at offset {offset} there are {got}")]
    PackShort {
        /// The pack.
        pack: PackName,
        /// Where the range starts.
        offset: u64,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there.
        got: u64,
    },
    /// The index says something impossible.
    #[error(
        "chunk {chunk}: the index says it is in pack {pack} with {plain_bytes} bytes, which cannot be; rebuild the index"
    )]
    IndexRow {
        /// The chunk.
        chunk: ChunkId,
        /// The pack.
        pack: PackName,
        /// Plain bytes according to the index.
        plain_bytes: u32,
    },
    /// A tree node does not decode.
    #[error("tree node {node} of level {level}: {source}")]
    Node {
        /// The node.
        node: ChunkId,
        /// The level at which it was expected.
        level: u8,
        /// What is wrong with it.
        source: aquifer_format::Error,
    },
    /// A tree reaches beyond its disk.
    #[error("tree node {node} of level {level}: child {number} lies beyond the disk of {size_bytes} bytes")]
    TreeShape {
        /// The node.
        node: ChunkId,
        /// Its level.
        level: u8,
        /// The child.
        number: u64,
        /// Size of the disk in bytes.
        size_bytes: u64,
    },
    /// Leaves were set out of order.
    #[error("leaf {leaf} was set when leaf {next} of {leaves} was next: leaves are set in ascending order")]
    TreeOrder {
        /// The leaf.
        leaf: u64,
        /// The least that may be set.
        next: u64,
        /// How many there are.
        leaves: u64,
    },
    /// A leaf does not fit its place.
    #[error("leaf {leaf} of level {level} does not fit a disk of {size_bytes} bytes")]
    TreeLeaf {
        /// The leaf.
        leaf: u64,
        /// Level of the node that was given.
        level: u8,
        /// Size of the disk in bytes.
        size_bytes: u64,
    },
    /// A chunk was taken over from the base although its length changed with the disk's size.
    #[error(
        "chunk {chunk} of the disk has another length than in the earlier backup, because the disk was resized: it must be read"
    )]
    TreeStale {
        /// Number of the chunk on the disk.
        chunk: u64,
    },
    /// A pack could not be stored.
    #[error("pack {pack}: {source}")]
    Upload {
        /// The pack.
        pack: PackName,
        /// What the store said.
        source: Box<aquifer_store::Error>,
    },
    /// A chunk just sealed does not decode to what was read.
    #[error("chunk {chunk}: {source}")]
    SelfCheck {
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong with it.
        source: aquifer_format::Error,
    },
    /// A chunk of a wrong size was given.
    #[error("a chunk of {bytes} bytes cannot be stored: 1 to {limit} bytes fit")]
    ChunkSize {
        /// Its size in bytes.
        bytes: usize,
        /// The repository's chunk size in bytes.
        limit: usize,
    },
    /// A session was ended before its writers.
    #[error("{open} chunk writers are not finished")]
    WritersOpen {
        /// How many.
        open: usize,
    },
    /// A writer was dropped with chunks that were not stored.
    #[error("a chunk writer was dropped with {chunks} chunks that were not stored")]
    WriterDropped {
        /// How many.
        chunks: usize,
    },
    /// A session has used up its pack numbers.
    #[error("session {session} has numbered 2^32 packs")]
    SessionFull {
        /// The session.
        session: SessionId,
    },
    /// The session has failed before.
    #[error("the backup session failed: {cause}")]
    SessionFailed {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// A queue of the session was closed.
    #[error("the backup session has ended")]
    Closed,
}
