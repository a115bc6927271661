//! Every test that crosses crates, in one binary: a module is a story.
//!
//! The modules that need minutes are slow groups: their tests are ignored by default, and `make test` runs them by
//! name. Nothing here links the product's engine: the product is the binary `aquifer`, used as its users use it.

mod backup_restore_qemu;
mod bad_input;
mod cli;
mod damage;
mod deletion;
mod domains;
mod filter_method;
mod format_reader;
mod guest;
mod guest_first;
mod image_source;
mod incremental;
mod jobs;
mod kill9;
mod multi_host;
mod nbd_source;
mod packaging;
mod quiesce;
mod remote;
mod rig;
mod s3;
mod self_healing;
mod tidy;
mod unmanaged;

/// What a test returns: any error ends it with its whole story.
pub(crate) type Outcome = anyhow::Result<()>;
