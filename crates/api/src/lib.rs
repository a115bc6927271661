//! The public face of Aquifer: the backup API that was proposed to libvirt, its words and its documents.
//!
//! * [`BackupApi`] is the proposal's calls as a trait, with its [flags](CreateFlags), [errors](Error),
//!   [job states](JobState) and [typed parameters](parameters).
//! * [`xml`] reads and writes `<domainbackup>` in the proposal's dialect and in libvirt's; [`request`] is what each call
//!   makes of such a document.
//! * [`domain`] makes the definition of a second domain out of the first one's.
//!
//! This crate is plain data and text. It opens nothing, reads no clock, knows no repository and no hypervisor; whoever
//! implements the trait does.
//!
//! Invariant: hostile text never panics and costs no more than [`xml::LIMITS`] say; what is written is well-formed XML
//! 1.0 whatever the values hold, and a reader gets every value back exactly, except for characters that XML cannot carry
//! at all (see [`xml::DomainBackup::write`]).

mod call;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod domain;
mod error;
mod flags;
pub mod parameters;
pub mod request;
mod state;
pub mod xml;

pub use call::{Backup, BackupApi, Call, Creation, DiskEstimate, DomainRecord, Restore};
pub use error::{Error, Kind, Result};
pub use flags::{
    CreateFlags, DeleteFlags, FinishFlags, FlagError, ListFlags, ReservedFlags, RestoreFlags, TargetFlags,
    UndefineFlags, XmlFlags,
};
pub use parameters::{Parameters, Value};
pub use state::{IllegalTransition, JobState, UnknownState};
