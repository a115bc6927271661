//! What can go wrong with a store, sorted by what the caller can do about it.
//!
//! Every message names the store and the object. Invariant: `NotFound` means that the store answered and has no such
//! object; a store that did not answer is `Unavailable`, after which the outcome of a write is unknown.

use std::path::PathBuf;

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store has no object of that name.
    #[error("{store} has no object {key}")]
    NotFound {
        /// The store, as [`crate::ObjectStore::describe`] names it.
        store: String,
        /// The object's key.
        key: String,
    },
    /// The store's medium or quota is full. Nothing was stored.
    #[error(
        "no space left in {store} while writing {key}: free some space or give the store more, then run again"
    )]
    NoSpace {
        /// The store.
        store: String,
        /// The object that did not fit.
        key: String,
    },
    /// The store refused the operation for lack of rights.
    #[error("{store} denies to {operation} {key}: {source}")]
    Denied {
        /// The store.
        store: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object or prefix.
        key: String,
        /// The refusal.
        source: std::io::Error,
    },
    /// The medium reported that data handed to it may not be durable. The kernel may drop the dirty pages after it said
    /// so once, so a second try proves nothing: the job must end.
    #[error(
        "{store} cannot promise that {key} is on the medium (sync failed: {source}): check the medium and the kernel log before the next run"
    )]
    Sync {
        /// The store.
        store: String,
        /// The object being written.
        key: String,
        /// What the sync said.
        source: std::io::Error,
    },
    /// Any other failure of the medium.
    #[error("{store}: cannot {operation} {key}: {source}")]
    Io {
        /// The store.
        store: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object or prefix.
        key: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store did not answer, or said that it cannot now. The outcome of a write is unknown.
    #[error("{store} did not complete to {operation} {key}: {reason}")]
    Unavailable {
        /// The store.
        store: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object or prefix.
        key: String,
        /// The last answer, or how long was waited.
        reason: String,
    },
    /// The store's server has no such bucket.
    #[error("{store}: there is no such bucket: check the URL, or create the bucket first")]
    NoBucket {
        /// The store.
        store: String,
    },
    /// The clock of this host and that of the store's server are too far apart.
    #[error("{store} refuses to {operation} {key}: {reason}")]
    Clock {
        /// The store.
        store: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object or prefix.
        key: String,
        /// By how much, as far as the server told.
        reason: String,
    },
    /// The store's server will never take this request: its address or a setting is wrong.
    #[error("{store} cannot {operation} {key}: {reason}")]
    Rejected {
        /// The store.
        store: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object or prefix.
        key: String,
        /// What the server said.
        reason: String,
    },
    /// The certificates of own authorities cannot be used.
    #[error("{path}: cannot be used as the certificates of authorities: {reason}")]
    Authority {
        /// The file as given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The object is shorter than the range asked for.
    #[error(
        "{store}: object {key} has {object_bytes} bytes, but bytes {offset}..{end} were asked for: it is cut short or not what its name says"
    )]
    Range {
        /// The store.
        store: String,
        /// The object's key.
        key: String,
        /// First byte asked for.
        offset: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Size of the object in bytes.
        object_bytes: u64,
    },
    /// The object is larger than any object of a repository may be.
    #[error("{store}: object {key} has {object_bytes} bytes, more than the limit of {limit_bytes}")]
    TooLarge {
        /// The store.
        store: String,
        /// The object's key.
        key: String,
        /// Its size in bytes.
        object_bytes: u64,
        /// The limit in bytes, [`crate::OBJECT_BYTES_MAX`].
        limit_bytes: u64,
    },
    /// A directory was asked for as a store, and there is none.
    #[error("{path}: cannot be used as a directory store: {source}")]
    Directory {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the store answered that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
