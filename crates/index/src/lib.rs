//! Where each chunk lies: a map from chunk id to the packs that hold it, on disk in RocksDB or in memory.
//!
//! The index is a cache of what the log published. It can be deleted at any time and is rebuilt from segments or from
//! packs; it never decides whether a pack is live (the log does) and never authorises a delete.
//!
//! Invariant: a look-up returns every location of every pack that was inserted and not removed, in the order of
//! insertion, and nothing else; inserting a pack twice is inserting it once.

mod error;
mod memory;
mod rocks;

use aquifer_format::id::{ChunkId, EntryHash, PackName, RepositoryId};
use aquifer_format::pack::{PackHeader, PackKind, TableRow};
use aquifer_format::segment::SegmentPack;

pub use error::{Error, Result};
pub use memory::MemoryIndex;
pub use rocks::{RocksIndex, RocksReader};

/// One copy of a chunk: with the store and the key ring this is all that is needed to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The chunk's row of its pack's table.
    pub row: TableRow,
    /// The pack's current name, which is its key in the store.
    pub pack: PackName,
    /// The pack's header: its name as first written, salt and epoch.
    pub header: PackHeader,
}

/// What the index knows of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackSummary {
    /// Its current name.
    pub pack: PackName,
    /// Its name as first written.
    pub name: PackName,
    /// Data or meta.
    pub kind: PackKind,
    /// Its size in bytes.
    pub bytes: u64,
    /// Number of chunks in it.
    pub rows: u32,
    /// BLAKE3 of its stored bytes.
    pub hash: [u8; 32],
}

/// The entry of the log up to which an index is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The repository whose log it is.
    pub repository: RepositoryId,
    /// Number of the entry.
    pub seq: u64,
    /// Hash of the entry: an entry of that number with another hash means another history.
    pub hash: EntryHash,
}

/// Sizes of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexStats {
    /// Chunks with at least one location. RocksDB estimates it.
    pub chunks: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes on disk; 0 in memory.
    pub disk_bytes: u64,
}

/// Where chunks lie. All calls block for as long as a disk access takes.
pub trait ChunkIndex: Send + Sync {
    /// Every location of each of `ids`, in the order of `ids`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Database`].
    fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>>;

    /// For each of `ids` the first pack that holds it and of which `live` is true. This is the question a backup asks
    /// for every chunk it reads, nearly always answered with `None`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Database`].
    fn contains_many(
        &self,
        ids: &[ChunkId],
        live: &dyn Fn(&PackName) -> bool,
    ) -> Result<Vec<Option<PackName>>>;

    /// Adds packs with their rows; packs that are known are left as they are. Durable after [`ChunkIndex::flush`].
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a reader, [`Error::Full`] after 2³² packs, [`Error::Corrupt`], [`Error::Database`].
    fn insert_packs(&self, packs: &[SegmentPack]) -> Result<()>;

    /// Forgets packs, named by their current names; unknown ones are fine.
    ///
    /// # Errors
    /// As [`ChunkIndex::insert_packs`].
    fn remove_packs(&self, packs: &[PackName]) -> Result<()>;

    /// Every pack, in the order of insertion.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Database`].
    fn packs(&self) -> Result<Vec<PackSummary>>;

    /// How far into the log the index is complete; `None` for a new one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Database`].
    fn position(&self) -> Result<Option<Position>>;

    /// Notes how far the index is complete. Durable after [`ChunkIndex::flush`], never before what was inserted
    /// before it.
    ///
    /// # Errors
    /// As [`ChunkIndex::insert_packs`].
    fn set_position(&self, position: &Position) -> Result<()>;

    /// Makes everything so far durable.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] and [`Error::Database`].
    fn flush(&self) -> Result<()>;

    /// Forgets everything, as if the index were new: the first step of a rebuild.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Io`] and [`Error::Database`].
    fn reset(&self) -> Result<()>;

    /// Sizes, for people.
    ///
    /// # Errors
    /// [`Error::Database`].
    fn stats(&self) -> Result<IndexStats>;
}

#[cfg(test)]
mod contract;
