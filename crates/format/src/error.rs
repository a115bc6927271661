//! Why bytes could not be decoded, or values not be encoded.
//!
//! Every message names the object and the number that was wrong. Nothing here carries secrets or plain
//! bytes of a guest.

use crate::id::{ChunkId, EntryHash};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// All failures of this crate.
///
/// [`Error::is_corrupt`] tells damage of stored bytes apart from wrong keys, newer versions and misuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end before a field does.
    #[error("{object}: {have} bytes are left where {need} are needed; the object is truncated")]
    Truncated {
        /// Kind of object.
        object: &'static str,
        /// Bytes that the field or the object needs.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// Bytes follow where the object should end.
    #[error("{object}: {bytes} unexpected bytes follow its end")]
    Trailing {
        /// Kind of object.
        object: &'static str,
        /// Number of bytes too many.
        bytes: u64,
    },
    /// The first bytes are not those of this kind of object.
    #[error("{object}: wrong magic {found}; this is another kind of object, or not one of a repository")]
    Magic {
        /// Kind of object that was expected.
        object: &'static str,
        /// What was found, in hex.
        found: String,
    },
    /// Written by a newer version of the format.
    #[error(
        "{object}: format version {found}, but this program reads up to {supported}; use a newer aquifer"
    )]
    Version {
        /// Kind of object.
        object: &'static str,
        /// Version in the object.
        found: u32,
        /// Newest version that this program reads.
        supported: u32,
    },
    /// The checksum over the stored bytes does not match.
    #[error("{object}: checksum mismatch; the stored bytes are damaged")]
    Checksum {
        /// Kind of object.
        object: &'static str,
    },
    /// A field holds a value that the format does not allow.
    #[error("{object}: field {field} holds {value}, which the format does not allow")]
    Field {
        /// Kind of object.
        object: &'static str,
        /// Name of the field in docs/FORMAT.md.
        field: &'static str,
        /// Value found.
        value: u64,
    },
    /// A size or count is above its limit (docs/FORMAT.md, "Limits").
    #[error("{object}: {field} is {value}, the limit is {limit}")]
    Limit {
        /// Kind of object.
        object: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Value found.
        value: u64,
        /// Greatest value allowed.
        limit: u64,
    },
    /// The authentication tag does not match: damaged, moved, swapped, or of another key.
    #[error(
        "{object}: authentication failed; it is damaged, was moved or swapped, or belongs to another key"
    )]
    Authentication {
        /// Kind of object.
        object: &'static str,
    },
    /// The secret does not open this key slot.
    #[error("the secret does not open this key slot; try another passphrase or key file")]
    WrongSecret,
    /// The Argon2id parameters could not be used.
    #[error("key slot: Argon2id failed with {memory_kib} KiB, {passes} passes, {lanes} lanes")]
    Kdf {
        /// Memory in KiB.
        memory_kib: u32,
        /// Number of passes.
        passes: u32,
        /// Number of lanes.
        lanes: u32,
    },
    /// The object says that it is another one than its place says.
    #[error("{object}: it is {found}, but {expected} was expected here")]
    Origin {
        /// Kind of object.
        object: &'static str,
        /// What its place says.
        expected: String,
        /// What the object says.
        found: String,
    },
    /// A sealed object in a plain repository, or the reverse.
    #[error(
        "{object}: it is {}, but the repository is {}; refusing a downgrade",
        mode_word(*.found_sealed), mode_word(!*.found_sealed)
    )]
    Mode {
        /// Kind of object.
        object: &'static str,
        /// Whether the object is encrypted.
        found_sealed: bool,
    },
    /// Sealed under a master generation that no opened key slot holds.
    #[error(
        "{object}: sealed under master key generation {found}, the opened key slot holds {held}; open a newer slot"
    )]
    Generation {
        /// Kind of object.
        object: &'static str,
        /// Generation in the object.
        found: u32,
        /// Number of generations held.
        held: u32,
    },
    /// The repository is encrypted, and no secret was given.
    #[error("the repository is encrypted; a passphrase or key file is needed")]
    SecretNeeded,
    /// A key is configured, but the repository says that it is plain.
    #[error(
        "a key is configured, but the repository says that it is plain; refusing, as its format object may be forged"
    )]
    Downgrade,
    /// Nothing can be sealed before a data epoch is known.
    #[error("no data epoch is known yet; replay the log before writing packs")]
    NoEpoch,
    /// The stored compressed bytes do not decode to exactly the recorded length.
    #[error("{object}: does not decompress to exactly {plain_bytes} bytes")]
    Decompress {
        /// Kind of object.
        object: &'static str,
        /// Recorded plain length.
        plain_bytes: u64,
    },
    /// A zstd context could not be made.
    #[error("zstd context at level {level} could not be made")]
    ZstdContext {
        /// Compression level, 0 for decompression.
        level: i32,
        /// The library's reason.
        #[source]
        source: std::io::Error,
    },
    /// A blob opened, but its plain bytes hash to another id.
    #[error("chunk {expected}: its plain bytes hash to {found}")]
    ChunkMismatch {
        /// Id under which it was stored.
        expected: ChunkId,
        /// Id of the bytes.
        found: ChunkId,
    },
    /// A blob's frame is not the one that the table or index promises.
    #[error("blob {ordinal} (chunk {id}): the frame in the pack is not the one that the table promises")]
    Frame {
        /// Ordinal of the blob.
        ordinal: u16,
        /// Chunk that was expected.
        id: ChunkId,
    },
    /// The blob just pushed does not decode to the bytes it was made of.
    #[error(
        "self-check of blob {ordinal} failed: it does not decode to the bytes it was made of; suspect memory or CPU"
    )]
    SelfCheck {
        /// Ordinal of the blob.
        ordinal: u16,
    },
    /// There is no blob to check.
    #[error("self-check: the pack is empty")]
    NothingToCheck,
    /// A buffer handed in has the wrong length.
    #[error("{what}: the buffer has {found} bytes, exactly {expected} are needed")]
    BufferLength {
        /// Which buffer.
        what: &'static str,
        /// Bytes needed.
        expected: u64,
        /// Bytes handed in.
        found: u64,
    },
    /// A JSON document does not have the shape of FORMAT.md.
    #[error("{object}: JSON: {source}")]
    Json {
        /// Kind of object.
        object: &'static str,
        /// The parser's reason, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The Ed25519 signature of a log entry does not match its writer.
    #[error("log entry {seq}: the signature is not its writer's")]
    Signature {
        /// Sequence number.
        seq: u64,
    },
    /// A seed that Ed25519 refuses.
    #[error("the signing seed was refused")]
    SigningSeed,
    /// An entry was applied out of order.
    #[error("log entry {found}: entry {expected} was expected")]
    Sequence {
        /// Next sequence number of the state.
        expected: u64,
        /// Sequence number of the entry.
        found: u64,
    },
    /// An entry does not follow the object before it: a fork, a rollback or a replaced object.
    #[error("log entry {seq}: follows {found}, but entry {} is {expected}; the log was forked, rolled back or replaced", .seq.saturating_sub(1))]
    Chain {
        /// Sequence number of the entry.
        seq: u64,
        /// Hash of the entry before it as known here.
        expected: EntryHash,
        /// Hash that the entry names.
        found: EntryHash,
    },
    /// The repository uses a feature that this program does not know.
    #[error(
        "the repository uses the feature \"{name}\", which this program does not know; use a newer aquifer"
    )]
    Feature {
        /// Name of the feature.
        name: String,
    },
    /// Text that is no id.
    #[error("\"{text}\" is not a {kind}")]
    IdSyntax {
        /// Kind of id.
        kind: &'static str,
        /// The text, cut to 80 characters.
        text: String,
    },
}

fn mode_word(sealed: bool) -> &'static str {
    if sealed { "encrypted" } else { "plain" }
}

impl Error {
    /// True when stored bytes are damaged, moved or swapped: another copy of the object would help.
    ///
    /// False for wrong keys, newer versions, and misuse by the caller.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        use Error::{
            Authentication, Chain, Checksum, ChunkMismatch, Decompress, Field, Frame, Json, Limit, Magic,
            Mode, Origin, Sequence, Signature, Trailing, Truncated,
        };
        matches!(
            self,
            Truncated { .. }
                | Trailing { .. }
                | Magic { .. }
                | Checksum { .. }
                | Field { .. }
                | Limit { .. }
                | Authentication { .. }
                | Origin { .. }
                | Mode { .. }
                | Decompress { .. }
                | ChunkMismatch { .. }
                | Frame { .. }
                | Json { .. }
                | Signature { .. }
                | Sequence { .. }
                | Chain { .. }
        )
    }
}
