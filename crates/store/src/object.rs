//! The contract of a store. What holds here holds for every implementation and every wrapper, and
//! `conformance` tries it on each.
//!
//! What is not here: retries, which are the business of an implementation that talks over a network, and any
//! notion of a directory.
//!
//! Invariant: safety of a repository rests on [`ObjectStore::create`] alone; every other operation may be late,
//! doubled or reordered between processes without losing a decision.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::{Key, Result};

/// The largest object in bytes that a store accepts and returns: the hard limit of a pack (docs/FORMAT.md, "Limits").
pub const OBJECT_BYTES_MAX: u64 = 128 << 20;

/// The most entries of one page of a listing.
pub const LIST_PAGE_ENTRIES: usize = 1000;

/// A future as a trait object can return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a put-if-absent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there with our bytes, and it was not there before.
    Won,
    /// Someone else's object has the name; ours was not stored.
    Exists,
}

/// What keeps an object from being deleted (S3 Object Lock).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    /// Nothing: the store has no locks, or none on objects of this kind.
    NoLock,
    /// It is locked for long enough, until this time in milliseconds since 1970 UTC.
    Locked(u64),
    /// Its lock was extended until this time.
    Extended(u64),
}

/// Which bytes of an object to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetRange {
    /// All of it.
    Whole,
    /// Exactly `bytes` bytes from `offset`; an error when the object ends before.
    From {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
    },
    /// Exactly the last so many bytes; an error when the object is shorter.
    Last(u64),
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub key: Key,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One page of a listing, in the order of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// At most [`LIST_PAGE_ENTRIES`] objects.
    pub entries: Vec<Listed>,
    /// Names under the prefix that are outside the grammar, for a report. They are text, never to be used as a name.
    pub foreign: Vec<String>,
    /// Whether another page follows: ask again with the last key as `after`. A page may be empty and still say so.
    pub more: bool,
}

/// A place that keeps whole immutable objects.
///
/// Every operation that writes is durable when it answers `Ok`. Dropping a future may leave its operation running.
/// Besides what each says, operations of a bucket fail with `NoBucket`, `Clock` and `Rejected`.
pub trait ObjectStore: Send + Sync + Debug {
    /// Stores a whole object. Readers see all of it or nothing. An object of that name is replaced, which is meant for
    /// identical bytes sent twice and for heartbeats only.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`], `Denied`, `Sync`, `Io`, `Unavailable`, and `TooLarge` beyond [`OBJECT_BYTES_MAX`].
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>>;

    /// Stores a whole object unless the name is taken; of any number of racing calls exactly one wins. An
    /// implementation whose answer was lost settles it by comparing: our bytes under the name mean that we won.
    ///
    /// # Errors
    /// As [`ObjectStore::put`]. After `Unavailable` the object may exist or appear later.
    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>>;

    /// Reads an object or a part of it.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], `Range` when the object is too short for the range, `TooLarge` when the answer
    /// would exceed [`OBJECT_BYTES_MAX`], `Denied`, `Io`, `Unavailable`.
    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>>;

    /// The size of an object in bytes.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], `Denied`, `Io`, `Unavailable`.
    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>>;

    /// Objects whose names begin with `prefix`, after `after`, in the order of keys. It may lag behind writes of
    /// other processes; nothing may depend on it for safety.
    ///
    /// # Errors
    /// `Denied`, `Io`, `Unavailable`.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>>;

    /// Removes an object; a missing one is fine.
    ///
    /// # Errors
    /// `Denied`, `Io`, `Unavailable`.
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>>;

    /// Extends the lock of an object if half of the store's retention period, or less, is left of it.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], `Denied`, `Unavailable`.
    fn retain<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Retained>> {
        Box::pin(std::future::ready(Ok(Retained::NoLock)))
    }

    /// The largest range in bytes that a reader of many neighbouring pieces should ask for at once. Every request to a
    /// bucket has its latency and its price; where there is neither, small ranges share the work out better.
    fn range_bytes(&self) -> u32 {
        4 << 20
    }

    /// How messages name this store.
    fn describe(&self) -> String;
}
