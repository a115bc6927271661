//! What a verification is asked and what it answers.
//!
//! Plain data, serialised as it is for `verify --json`. The list of damage is bounded; what does not fit is
//! counted.

use aquifer_format::{ChunkId, PackName};
use serde::Serialize;
use uuid::Uuid;

/// Most damaged objects that one report names; more are counted.
pub const DAMAGE_MAX: usize = 1000;
/// Most byte ranges that one report names per damaged disk; more are counted.
pub const RANGES_MAX: usize = 1000;

/// Most foreign names that one report repeats.
pub const FOREIGN_MAX: usize = 100;

/// How deep to look (FORMAT.md, "Verify, repair").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyLevel {
    /// V0: log and checkpoints are whole, every tree resolves to live packs, sizes match. No data is read.
    Structure,
    /// V1: V0, and every object in use matches its own BLAKE3. Needs no key for the packs.
    Packs,
    /// V2: V1, and every chunk decrypts, decompresses and hashes to its id.
    Chunks,
}

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// How deep.
    pub level: VerifyLevel,
    /// Which backups; empty for all that are not forgotten.
    pub backups: Vec<Uuid>,
    /// Share of the bytes in use to read at levels above `Structure`, in percent from 1 to 100: those packs first that
    /// this host has not read for the longest time.
    pub sample_percent: u8,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct VerifyProgress {
    /// Backups whose trees were walked.
    pub backups_done: u64,
    /// Backups to walk.
    pub backups_total: u64,
    /// Stored bytes of packs that were read.
    pub bytes_done: u64,
    /// Stored bytes of packs to read; known after the walk.
    pub bytes_total: u64,
}

/// The object that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamagedObject {
    /// A pack, as a whole.
    Pack(PackName),
    /// A data chunk.
    Chunk(ChunkId),
    /// A node of a disk's tree; everything below it is out of reach.
    Node(ChunkId),
    /// The record of a backup.
    Record(Uuid),
    /// An object outside of the packs, by its key.
    Object(String),
}

/// Bytes of one disk that a damaged object takes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touched {
    /// The backup.
    pub backup: Uuid,
    /// Its domain's name.
    pub domain: String,
    /// The disk.
    pub disk: String,
    /// Offset and length in bytes of what cannot be restored, ascending, neighbours joined.
    pub ranges: Vec<(u64, u64)>,
    /// Ranges beyond [`RANGES_MAX`].
    pub more_ranges: u64,
}

/// One damaged object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Which.
    pub object: DamagedObject,
    /// What is wrong, naming the numbers.
    pub what: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// How deep it looked.
    pub level: VerifyLevel,
    /// Backups verified.
    pub backups: Vec<Uuid>,
    /// Objects outside of the packs that were checked.
    pub objects: u64,
    /// Tree nodes read.
    pub nodes: u64,
    /// Chunks that trees name and that were looked up, each leaf node counted once.
    pub chunks: u64,
    /// Packs that the backups use.
    pub packs: u64,
    /// Packs read whole.
    pub packs_read: u64,
    /// Stored bytes of the packs that were read.
    pub bytes_read: u64,
    /// Packs in use that this host never read to this level; 0 where none is read.
    pub never_read: u64,
    /// When the least recently read of the others was, in milliseconds since 1970 UTC.
    pub oldest_read_ms: Option<u64>,
    /// Blobs opened and hashed.
    pub blobs_opened: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
    /// Damaged objects beyond [`DAMAGE_MAX`].
    pub more_damage: u64,
    /// Names in the stores that no repository uses; they are left alone.
    pub foreign: Vec<String>,
    /// Which backups and disks it touches.
    pub touched: Vec<Touched>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.more_damage == 0
    }
}
