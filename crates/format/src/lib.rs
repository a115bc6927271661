//! Bytes at rest: pure encoders and decoders of every object in a repository.
//!
//! `docs/FORMAT.md` is the authority on the bytes; golden files of every kind of object hold this crate
//! to it. Nothing here does I/O, reads a clock, draws randomness or starts a task: salts, seeds and names
//! are arguments.
//!
//! Invariants: a decoder never panics, never allocates more than a bound known before it reads, and
//! returns either what was encoded or an error; an object opens only in its own place under its own key.
//!
//! | module | object |
//! |---|---|
//! | [`config`] | `format` |
//! | [`keys`] | `keys/…`, the key ring, the signer |
//! | [`log`] | `log/…`, `ckpt/…`: entries and the state that they fold into |
//! | [`pack`] | `packs/…` |
//! | [`segment`] | `index/…` |
//! | [`tree`], [`record`] | blobs of meta packs |
//! | [`hb`] | `hb/…` |

mod cipher;
pub mod codec;
pub mod config;
mod cursor;
pub mod error;
pub mod hb;
pub mod id;
pub mod key;
pub mod keys;
pub mod log;
pub mod magic;
pub mod pack;
pub mod record;
mod sealed;
pub mod segment;
pub mod tree;

pub use codec::{Codec, Compressor, Decompressor};
pub use config::RepositoryConfig;
pub use error::{Error, Result};
pub use hb::{Heartbeat, open_heartbeat, seal_heartbeat};
pub use id::{
    ChunkId, EntryHash, EntryNonce, EpochId, PackName, RepositoryId, SegmentName, SessionId, SlotId, StoreId,
    WriterId,
};
pub use keys::{KdfParams, KeyRing, MasterKey, Signer, open_slot, seal_slot, slot_id};
pub use log::{
    Applied, Backup, Body, Entry, State, VoidReason, decode_checkpoint, encode_checkpoint, entry_hash,
    open_entry, seal_entry,
};
pub use pack::{
    BLOB_FRAME_BYTES, BlobKind, FOOTER_BYTES, FinishedPack, Footer, PACK_HEADER_BYTES, PackBuilder,
    PackHeader, PackKind, PackReader, TableRow, check_hash, decode_footer, decode_table, salvage, self_check,
};
pub use record::{
    BitmapRecord, CommitSummary, Definition, DefinitionKind, DiskRecord, DiskSummary, DomainRecord, Level,
    Mode, QuiesceRecord, Record,
};
pub use sealed::scrub;
pub use segment::{SegmentPack, decode_segment, encode_segment};
pub use tree::{DiskRoot, FAN_OUT, Node, levels};
