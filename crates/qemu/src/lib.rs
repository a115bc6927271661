//! QEMU over QMP: the disks of a running domain, frozen at one instant and offered over NBD.
//!
//! [`ExportSession`] is the heart: it connects to a monitor, makes one scratch overlay a disk, freezes every disk
//! in one transaction, exports the overlays, watches that the instant stays whole, and takes everything away again
//! in an order that never stops the guest. What it leaves behind when it is killed is found by name alone
//! ([`cleanup()`]), at once by a small [`guard`] process or later by the next run.
//!
//! What this crate is not: it reads no blocks (the NBD client does), knows no repository beyond its id, and decides
//! nothing about backups. Invariant: nothing in a QEMU that is not named as ours is ever changed.

pub mod address;
mod agent;
mod checkpoint;
pub mod cleanup;
pub mod commands;
pub mod disk;
pub mod error;
mod filter;
pub mod guard;
mod host;
mod identity;
pub mod monitor;
mod names;
mod nbd_server;
pub mod offline;
mod opening;
mod schema;
mod scratch;
pub mod session;
mod ssh;
mod survey;
mod tls;
mod transaction;
mod transport;
mod watch;

pub use address::{MonitorAddress, MonitorOptions};
pub use checkpoint::{Checkpoint, CheckpointPlan, Ending};
pub use cleanup::{CleanupReport, Scope, cleanup};
pub use disk::{BitmapSupport, Disk, DiskChoice, DiskName, Selection, SkipReason};
pub use error::{Error, ErrorKind, Result};
pub use guard::GuardCommand;
pub use identity::BlockSizes;
pub use monitor::{Event, Monitor};
pub use nbd_server::NbdListen;
pub use offline::{ImageExport, ImageRequest, create_qcow2};
pub use schema::Capabilities;
pub use session::{Export, ExportSession, Method, Quiesce, SavedSession, SessionRequest};
pub use survey::Domain;
pub use watch::Lost;
