//! The arguments of the commands that speak the backup API's documents: `start-unmanaged`, `finish`, `dumpxml`.
//!
//! Not here: what is in the documents.

use std::path::PathBuf;

use clap::Args;

use super::documents;
use super::values::Span;

/// `start-unmanaged`
#[derive(Debug, Args)]
#[command(after_long_help = documents::START_UNMANAGED)]
pub(crate) struct StartUnmanagedArgs {
    /// The domain.
    pub(crate) domain: String,
    /// The domainbackup that asks for it, in the proposal's words or in libvirt's (mode='pull'); - reads it from standard
    /// input.
    #[arg(long, value_name = "FILE")]
    pub(crate) xml: PathBuf,
    /// QEMU's monitor, if the domain is not configured.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) qmp: Option<String>,
    /// Freeze the guest's file systems through its agent around the instant, or refuse.
    #[arg(long)]
    pub(crate) quiesce: bool,
    /// Offer the disks whole, without telling what changed.
    #[arg(long)]
    pub(crate) full: bool,
    /// Refuse a disk whose bitmap does not count from the parent that the document names.
    #[arg(long, conflicts_with = "full")]
    pub(crate) strict_parent: bool,
    /// Cancel it when nobody has read for so long.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(crate) lease: Span,
}

/// `finish`
#[derive(Debug, Args)]
#[command(after_long_help = documents::FINISH)]
pub(crate) struct FinishArgs {
    /// The backup, by its whole uuid.
    #[arg(value_name = "UUID")]
    pub(crate) backup: String,
    /// End it without a backup; may be repeated.
    #[arg(long, conflicts_with_all = ["check", "wait"])]
    pub(crate) cancel: bool,
    /// Complete it only if every export still answers and the instant is whole.
    #[arg(long)]
    pub(crate) check: bool,
    /// Wait for a job that moves data itself, instead of refusing.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// `dumpxml`
#[derive(Debug, Args)]
pub(crate) struct DumpxmlArgs {
    /// The backup: its uuid, at least eight digits of it, or latest:DOMAIN.
    #[arg(value_name = "UUID")]
    pub(crate) backup: String,
    /// In libvirt's words, which there are for a backup that is being served only.
    #[arg(long, conflicts_with = "inactive")]
    pub(crate) libvirt: bool,
    /// With passwords, where the domain's definition has any.
    #[arg(long)]
    pub(crate) secure: bool,
    /// The document that asked for the backup, as it was given.
    #[arg(long)]
    pub(crate) inactive: bool,
    /// With the sizes of the disks.
    #[arg(long)]
    pub(crate) size: bool,
    /// Without the domain's definition.
    #[arg(long)]
    pub(crate) no_domain: bool,
}
