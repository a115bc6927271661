//! The public face of a backup: the `<domainbackup>` document of the backup API that was proposed to libvirt.
//!
//! This crate is plain data and text. It opens nothing, knows no repository and no hypervisor; the caller
//! fills a [`DomainBackup`] and gets the document.
//!
//! Invariant: what is written is well-formed XML 1.0 whatever the values hold, and a reader gets every value
//! back exactly, except for characters that XML cannot carry at all (see [`DomainBackup::write`]).

mod xml;

pub use xml::{BackupDisk, DomainBackup, Target};
