//! The backup API over the engine, in this process: [`Service`] is a [`BackupApi`](aquifer_api::BackupApi).
//!
//! It keeps what the engine does not: which jobs there are and were ([`journal`]), the lease of a backup that somebody
//! else reads, the definitions and default targets of domains, and the words of the API's documents and errors.
//! Not here: moving data (`aquifer-engine`), reading XML (`aquifer-api`), what a user types (`aquifer-cli`).
//!
//! Invariants: a job's state is on disk before the step is taken that it announces; a job whose process is gone is never
//! told as running.

mod catalogue;
mod create;
mod describe;
mod domains;
mod error;
mod estimate;
mod finish;
pub mod journal;
mod managed;
mod parameters;
mod restore;
mod service;
mod unmanaged;
mod wire;

pub use domains::DomainDefinition;
pub use error::{from_api, to_api};
pub use restore::PlannedRestore;
pub use service::{LEASE, Service, ServiceOptions, SourceOf};
pub use unmanaged::Keeper;
