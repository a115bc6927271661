//! What can go wrong with an index, and what helps: wait, or rebuild.
//!
//! Invariant: an index that cannot be trusted is `Corrupt`, `OtherRepository` or `Schema`, and then a rebuild helps.

use std::path::PathBuf;

use aquifer_format::id::RepositoryId;

/// The result of an index operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed index operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process writes this index.
    #[error("index {path}: in use by {holder}")]
    Locked {
        /// The index.
        path: PathBuf,
        /// Who holds it: `process 123`, or `another process`.
        holder: String,
    },
    /// The index is damaged; it can be rebuilt.
    #[error("index {path}: damaged ({reason}); rebuild it")]
    Corrupt {
        /// The index.
        path: PathBuf,
        /// What did not fit.
        reason: String,
    },
    /// The index belongs to another repository.
    #[error("index {path}: belongs to repository {found}, not to {expected}; rebuild it")]
    OtherRepository {
        /// The index.
        path: PathBuf,
        /// The repository asked for.
        expected: RepositoryId,
        /// The repository that it was made for.
        found: RepositoryId,
    },
    /// The index was written by another version of this program.
    #[error("index {path}: layout {found}, this program uses {expected}; rebuild it")]
    Schema {
        /// The index.
        path: PathBuf,
        /// The layout of this program.
        expected: u32,
        /// The layout found.
        found: u32,
    },
    /// There is no index.
    #[error("index {path}: there is none yet")]
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// The index could not be made anew after it was thrown away.
    #[error("index {path}: could not be made anew; open the repository again")]
    Gone {
        /// The index.
        path: PathBuf,
    },
    /// A reader was asked to write.
    #[error("index {path}: opened for reading")]
    ReadOnly {
        /// The index.
        path: PathBuf,
    },
    /// The numbers of packs are used up.
    #[error("index {path}: has numbered 2^32 packs; rebuild it to number them anew")]
    Full {
        /// The index.
        path: PathBuf,
    },
    /// The database refused, mostly because of its disk.
    #[error("index {path}: {source}")]
    Database {
        /// The index.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// The files around the database could not be used.
    #[error("index {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether throwing the index away and building it anew helps.
    pub fn needs_rebuild(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. } | Self::OtherRepository { .. } | Self::Schema { .. } | Self::Full { .. }
        )
    }
}
