//! One repository: the verbs over its log, packs, index and keys.
//!
//! Two halves share this crate. The *control plane* decides: it opens and initialises ([`Repository`]), replays and
//! appends the log, runs sessions from `Open` to `Commit` ([`BackupSession`]), keeps key slots, and lets the index
//! follow the log. The *data plane* moves bytes: chunks into packs ([`ChunkWriter`]), tree nodes ([`TreeBuilder`],
//! [`TreeReader`]), ranges back out ([`ChunkOpener`]), and verification.
//!
//! It knows nothing of NBD, QEMU or volumes; time, randomness and new ids are arguments ([`World`]).
//!
//! Invariant: a backup exists if and only if its `Commit` is in the log (docs/FORMAT.md), whatever else is stored.
//!
//! Which operations may overlap on one repository: everything, from any number of processes and hosts, with one
//! exception: only one process at a time writes the index of one state folder ([`Access::Write`]). Restores, lists and
//! verification ([`Access::Read`]) never wait for it.

mod adopt;
mod again;
mod backups;
mod checkpoints;
mod collect;
mod dedup;
mod delete;
mod domains;
mod error;
mod fate;
mod hold;
mod index_sync;
mod init;
mod journal;
mod keys;
mod layout;
mod log;
mod meta;
mod nodes;
mod open;
mod overlay;
mod pace;
mod parts;
mod plane;
mod presence;
mod prune;
mod publish;
mod reader;
mod reading;
mod rebuild;
mod repair;
mod repository;
mod retention;
mod session;
mod settings;
mod silence;
mod state_dir;
mod stats;
mod trees;
mod uploader;
mod verify;
mod whole;
mod world;
mod writer;
mod writing;
mod zero;

#[cfg(test)]
mod control_tests;
#[cfg(test)]
mod plane_tests;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod trees_tests;

/// The bytes at rest, for callers that hold records, nodes and ids.
pub use aquifer_format as format;
/// The stores, for callers that open a repository.
pub use aquifer_store as store;

/// Where a chunk lies, for callers that plan what to fetch.
pub use aquifer_index::Location;

pub use backups::BackupInfo;
pub use collect::{
    CollectReport, CollectRequest, DECISIONS_MAX, Decision, GRACE, LockReport, PackFate, SeenSession, Tally,
};
pub use delete::{DeleteScope, Deleted, FORGET_DELAY, Protected, Undeleted};
pub use error::{Error, RemovalError, Result};
pub use fate::Fate;
pub use hold::DomainHold;
pub use index_sync::RebuildProgress;
pub use init::InitOptions;
pub use keys::KeySlot;
pub use open::OpenOptions;
pub use prune::{Judged, PruneReport, PruneRequest, PrunedDomain};
pub use reader::{ChunkOpener, Fetch, FetchItem, blob_bytes, plan_fetches};
pub use reading::ReadSession;
pub use rebuild::RebuildFrom;
pub use repair::{RepairReport, RepairRequest};
pub use repository::{Access, Repository, RepositoryInfo, Secret, Stores};
pub use retention::KeepRules;
pub use session::{BackupSession, BeginBackup, Committed};
pub use settings::{Compression, Settings};
pub use silence::FENCE_AFTER;
pub use stats::RepositoryStats;
pub use trees::{BuiltTree, LEAF_CHUNKS, TreeBuilder, TreeReader, TreeSpec, TreeStep};
pub use verify::{
    DAMAGE_MAX, Damage, DamagedObject, FOREIGN_MAX, RANGES_MAX, Touched, VerifyLevel, VerifyProgress,
    VerifyReport, VerifyRequest, verify_keyless,
};
pub use world::{BootClock, World};
pub use writer::{ChunkWriter, PlainChunk, Stored};
pub use zero::is_zero;
