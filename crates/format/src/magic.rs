//! The first bytes of every kind of object and the limits of the format (docs/FORMAT.md, "Limits").
//!
//! Constants only. A kind's magic never changes; a change of its layout raises its version.

/// Version of every object of this format.
pub const VERSION: u16 = 1;

pub(crate) const FORMAT: [u8; 8] = *b"AQUIFER\n";
pub(crate) const SLOT: [u8; 8] = *b"AQF-KEYS";
pub(crate) const LOG: [u8; 8] = *b"AQF-LOG\n";
pub(crate) const CHECKPOINT: [u8; 8] = *b"AQF-CKPT";
pub(crate) const SEGMENT: [u8; 8] = *b"AQF-INDX";
pub(crate) const HEARTBEAT: [u8; 8] = *b"AQF-BEAT";
pub(crate) const PACK: [u8; 8] = *b"AQF-PACK";
pub(crate) const PACK_END: [u8; 8] = *b"AQF-PEND";
pub(crate) const BLOB: [u8; 4] = *b"AQFB";
pub(crate) const TABLE: [u8; 4] = *b"AQFT";
pub(crate) const NODE: [u8; 4] = *b"AQFN";

/// Smallest chunk size of a repository, in bytes.
pub const CHUNK_BYTES_MIN: u32 = 64 << 10;
/// Greatest chunk size of a repository, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;
/// Chunk size when nothing else is asked for, in bytes.
pub const CHUNK_BYTES_DEFAULT: u32 = 128 << 10;
/// Greatest size of a pack object, in bytes.
pub const PACK_BYTES_MAX: u32 = 128 << 20;
/// Greatest number of blobs in a pack: ordinal 0xffff is the table's nonce.
pub const PACK_BLOBS_MAX: u32 = 65_534;
/// Greatest height of a disk tree.
pub const TREE_LEVELS_MAX: u8 = 6;
/// Greatest plain size of a backup record, in bytes.
pub const RECORD_BYTES_MAX: u32 = 4 << 20;
/// Greatest number of disks in a backup.
pub const DISKS_MAX: usize = 256;
/// Largest definition of a domain in the log, in bytes.
pub const DEFINITION_BYTES_MAX: usize = 1 << 20;
/// Longest name of a domain in the log, in characters.
pub const DOMAIN_NAME_CHARS: usize = 64;
/// Greatest plain size of a log entry, in bytes.
pub const ENTRY_BYTES_MAX: u32 = 8 << 20;
/// Greatest plain size of a checkpoint, in bytes.
pub const CHECKPOINT_BYTES_MAX: u32 = 256 << 20;
/// Greatest plain size of a segment, in bytes.
pub const SEGMENT_BYTES_MAX: u32 = 128 << 20;
/// Greatest plain size of a heartbeat, in bytes.
pub const HEARTBEAT_BYTES_MAX: u32 = 64 << 10;
/// Greatest number of master key generations in a key slot.
pub const GENERATIONS_MAX: usize = 64;
