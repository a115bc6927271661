//! A flat namespace of immutable objects: what a repository needs from a place that keeps bytes, and no more.
//!
//! The contract ([`ObjectStore`]) is the smallest one that a directory and an S3 bucket can both keep: whole-object
//! `put`, `create` (put-if-absent), ranged `get`, `head`, paged `list`, idempotent `delete`. There is no rename, no
//! append and no partial write, so an object either exists whole or does not exist. See docs/FORMAT.md, "Store contract".
//!
//! What this crate is not: it knows nothing of packs, logs or keys to decrypt them. Names are checked against one
//! strict grammar ([`Key`]) because a name from a listing is foreign input.
//!
//! Invariant: an operation that answered `Ok` is durable, and a foreign name never becomes a path.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod direct;
mod error;
mod key;
mod local;
mod memory;
mod metered;
mod object;
pub mod probe;
mod s3;

pub use error::{Error, Result};
pub use key::{Key, KeyError};
pub use local::Local;
pub use memory::Memory;
pub use metered::{Counters, Metered};
pub use object::{
    BoxFuture, Created, GetRange, LIST_PAGE_ENTRIES, Listed, OBJECT_BYTES_MAX, ObjectStore, Page, Retained,
};
pub use s3::{LockMode, ObjectLock, Patience, S3, S3Settings};

/// The bytes of an object; cloning shares them.
pub use bytes::Bytes;
