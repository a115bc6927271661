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

use std::pin::Pin;

pub mod clock;
pub mod error;
pub mod filter_test;
pub mod plan;
pub mod progress;
pub mod request;
pub mod settings;

mod backup;
mod backup_disk;
mod buffers;
mod changes;
mod compare;
mod convert;
mod doctor;
mod draw;
mod estimate;
mod expose;
mod lineage;
mod patch;
mod rescue;
mod restore;
mod restore_check;
mod restore_disk;
mod restore_open;
mod source;
mod stripe;
mod tail;
mod target;
mod throttle;
mod verify;
mod volume;
mod walk;
mod workers;

/// The NBD client, for callers that name exports.
pub use aquifer_nbd as nbd;
/// QEMU, for callers that name monitors and disks.
pub use aquifer_qemu as qemu;
/// The repository, for callers that open one.
pub use aquifer_repository as repository;
/// How a backup, and a disk of it, was read.
pub use aquifer_repository::format::record::{Level, Mode as DiskMode};

pub use backup::{backup, definition_of};
pub use doctor::{DoctorRequest, Finding, Health, doctor};
pub use error::{Error, Kind, Result};
pub use estimate::{EstimatedDisk, estimate};
pub use expose::{Exposed, ExposedDisk, Exposure, expose};
pub use filter_test::{FilterVerdict, FilterVerdicts};
pub use lineage::ParentMismatch;
pub use progress::{Event, EventSink};
pub use request::{
    BackupOutcome, BackupRequest, BackupState, DiskOutcome, MissingRange, QmpSource, RestoreOutcome,
    RestoreRequest, RestoredDisk, Source, VolumeSpec, WantedParent,
};
pub use restore::restore;
pub use settings::{JobContext, JobSettings};
pub use source::check_name;
pub use verify::{UnreadableDisk, VerifyDepth, VerifyJob, VerifyOutcome, verify};

/// A running job. It is boxed so that its code is generated once, here, and not again in every program and test
/// that waits for it.
pub type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The guard process: waits for the death of the process that started it, then takes its QEMU session away.
///
/// # Errors
/// Those of QEMU, if something is left.
pub fn guard() -> Running<'static, Result<()>> {
    Box::pin(async { Ok(aquifer_qemu::guard::run().await?) })
}
