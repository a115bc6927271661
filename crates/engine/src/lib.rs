//! # aquifer-engine: jobs that move data between hypervisors and repositories
//!
//! A job is one call: [`backup()`], [`restore()`], [`verify()`] or [`doctor()`], given a [`JobContext`] and a
//! request, returning an outcome that serialises as the command line's `done` document. Between the two it
//! sends [`Event`]s, obeys a cancel token, and stays inside the memory that [`JobSettings`] grants.
//!
//! Not here: how QEMU is driven (`aquifer-qemu`), how NBD is spoken (`aquifer-nbd`), how chunks are stored
//! (`aquifer-repository`), and what a user types (`aquifer-cli`). This crate joins them, and owns the only
//! clock and the only source of randomness ([`clock::System`]).
//!
//! Invariants: the guest comes first (a job's end, whatever it is, closes its source); a backup that is
//! reported is committed; wrong bytes are never written to a volume without an error.

pub mod clock;
pub mod error;
pub mod plan;
pub mod progress;
pub mod request;
pub mod settings;

mod throttle;

pub use error::{Error, Kind, Result};
pub use progress::{Event, EventSink};
pub use request::{
    BackupOutcome, BackupRequest, BackupState, DiskMode, DiskOutcome, Level, QmpSource, RestoreOutcome,
    RestoreRequest, RestoredDisk, Source, VolumeSpec,
};
pub use settings::{JobContext, JobSettings};
