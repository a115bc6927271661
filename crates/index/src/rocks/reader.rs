//! Reading an index while another process may be writing it.
//!
//! A reader sees what the writer had flushed when it was opened; what was published since is the caller's to add.
//!
//! Invariant: a reader changes nothing in the writer's folder.

use std::path::{Path, PathBuf};

use aquifer_format::id::{ChunkId, PackName, RepositoryId};
use aquifer_format::segment::SegmentPack;

use super::{Core, KEY_NEXT, Names, failed, options};
use crate::{ChunkIndex, Error, IndexStats, Location, PackSummary, Position, Result};

/// An index opened for reading.
pub struct RocksReader {
    core: Core,
    /// RocksDB's own folder for this reader; removed with it.
    own: PathBuf,
}

impl std::fmt::Debug for RocksReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksReader").field("path", &self.core.path).finish_non_exhaustive()
    }
}

impl RocksReader {
    /// Opens the index in the folder `path`. `own` is a folder for this reader alone, which is removed at the end.
    ///
    /// # Errors
    /// [`Error::Absent`] when there is no index; else as [`crate::RocksIndex::open`], but never `Locked`.
    pub fn open(path: &Path, own: &Path, repository: RepositoryId) -> Result<Self> {
        if !path.join("CURRENT").exists() {
            return Err(Error::Absent { path: path.to_owned() });
        }
        std::fs::create_dir_all(own).map_err(|source| Error::Io { path: own.to_owned(), source })?;
        let names = std::sync::Arc::new(Names::default());
        let db = options::open_reader(path, own).map_err(|source| failed(path, source))?;
        let core = Core { path: path.to_owned(), db, names };
        // Made before the checks, so that its folder goes whatever they say.
        let reader = Self { core, own: own.to_owned() };
        if !reader.core.check(repository)? {
            return Err(Error::Absent { path: path.to_owned() });
        }
        let packs = reader.core.packs()?;
        let next = reader.core.fact(KEY_NEXT)?.map_or(0, u32::from_be_bytes);
        reader.core.names.replace(next, packs.iter().map(|(number, pack)| (*number, pack.summary.pack)));
        Ok(reader)
    }

    fn read_only(&self) -> Error {
        Error::ReadOnly { path: self.core.path.clone() }
    }
}

impl Drop for RocksReader {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.own) {
            tracing::debug!(path = %self.own.display(), %error, "a reader's folder was left behind");
        }
    }
}

impl ChunkIndex for RocksReader {
    fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        self.core.get_many(ids)
    }

    fn contains_many(
        &self,
        ids: &[ChunkId],
        live: &dyn Fn(&PackName) -> bool,
    ) -> Result<Vec<Option<PackName>>> {
        self.core.contains_many(ids, live)
    }

    fn insert_packs(&self, _packs: &[SegmentPack]) -> Result<()> {
        Err(self.read_only())
    }

    fn remove_packs(&self, _packs: &[PackName]) -> Result<()> {
        Err(self.read_only())
    }

    fn packs(&self) -> Result<Vec<PackSummary>> {
        Ok(self.core.packs()?.into_iter().map(|(_, pack)| pack.summary).collect())
    }

    fn position(&self) -> Result<Option<Position>> {
        self.core.position()
    }

    fn set_position(&self, _position: &Position) -> Result<()> {
        Err(self.read_only())
    }

    fn flush(&self) -> Result<()> {
        Err(self.read_only())
    }

    fn reset(&self) -> Result<()> {
        Err(self.read_only())
    }

    fn stats(&self) -> Result<IndexStats> {
        self.core.stats()
    }
}
