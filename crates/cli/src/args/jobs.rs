//! The arguments of the commands that move data: `backup`, `restore`, `verify`.
//!
//! Not here: which of them a configured domain already answers; the commands settle that.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use uuid::Uuid;

use super::documents;
use super::values::{Label, Named, Percent, Rate, Share, Size, Span};

/// `backup`
#[derive(Debug, Args)]
#[command(after_long_help = documents::BACKUP)]
pub(crate) struct BackupArgs {
    /// The domain; its name stands in the repository.
    #[arg(required_unless_present = "all")]
    pub(crate) domain: Option<String>,
    /// Every configured domain, one after the other; a failed one does not stop the rest.
    #[arg(long, conflicts_with_all = ["domain", "disk", "uuid", "agent", "qmp", "nbd", "image"])]
    pub(crate) all: bool,
    /// Only this disk; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Vec<String>,
    /// Read every disk whole, even where a dirty bitmap says what changed.
    #[arg(long)]
    pub(crate) full: bool,
    /// Share of the chunks that a dirty bitmap calls unchanged that is read all the same and compared; a difference is
    /// reported, and the disk read whole [default: 0.1%, at most some 16MiB of a disk].
    #[arg(long, value_name = "P%")]
    pub(crate) recheck: Option<Share>,
    /// A domainbackup that says what is backed up, against which parent, and into which further volumes, in the
    /// proposal's words or in libvirt's (mode='push'); - reads it from standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "disk", "recheck", "description", "uuid", "label", "agent", "method", "scratch", "scratch_max", "fence_after", "nbd", "image"])]
    pub(crate) xml: Option<PathBuf>,
    /// With --xml: refuse a disk whose bitmap does not count from the parent that the document names.
    #[arg(long, requires = "xml", conflicts_with = "full")]
    pub(crate) strict_parent: bool,
    /// With --xml: volumes that it names may hold data; what differs is rewritten.
    #[arg(long, requires = "xml")]
    pub(crate) reuse_external: bool,
    /// Free text, kept with the backup.
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// The backup's uuid [default: a new one].
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,
    /// A label, kept with the backup; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Label>,
    /// Freeze the guest's file systems through its agent around the instant [default: try, if an agent is known].
    #[arg(long)]
    pub(crate) quiesce: Option<QuiesceMode>,
    /// The guest agent's socket.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) agent: Option<String>,
    /// How QEMU holds the instant: a backup job, or a filter between disk and device, by which a full scratch breaks the
    /// backup and never the guest; the guest is paused for a moment, and its QEMU must have passed `doctor` on this host.
    #[arg(long, default_value = "classic", conflicts_with_all = ["nbd", "image"])]
    pub(crate) method: MethodName,
    /// Folder on the hypervisor for the scratch files, which keep what the guest overwrites meanwhile.
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// Most that one scratch file may hold; the backup fails before the guest would wait for more.
    #[arg(long, value_name = "SIZE")]
    pub(crate) scratch_max: Option<Size>,
    /// Most bytes a second to read from the domain.
    #[arg(long, value_name = "RATE")]
    pub(crate) read_limit: Option<Rate>,
    /// End another host's session of the domain when no heartbeat of it was seen for so long; it beats every minute,
    /// and 0s ends it at once.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(crate) fence_after: Span,
    /// QEMU's monitor: unix:PATH, tcp:HOST:PORT (loopback only), tls:HOST:PORT or ssh://USER@HOST/PATH.
    #[arg(long, value_name = "ADDRESS", group = "source", help_heading = SOURCE)]
    pub(crate) qmp: Option<String>,
    /// An NBD export that somebody else serves and keeps at one instant; may be repeated.
    #[arg(long, value_name = "NAME=URI", group = "source", help_heading = SOURCE)]
    pub(crate) nbd: Vec<Named>,
    /// A disk image of a stopped domain, read through qemu-nbd; may be repeated.
    #[arg(long, value_name = "NAME=PATH", group = "source", help_heading = SOURCE)]
    pub(crate) image: Vec<Named>,
}

const SOURCE: &str = "Source, if the domain is not configured";

/// How the instant is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodName {
    /// A backup job of all disks in one transaction.
    Classic,
    /// A copy-before-write filter over each disk.
    Filter,
}

/// What to do about the guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QuiesceMode {
    /// Leave them alone.
    Off,
    /// Freeze them; go on with a warning if that fails.
    Try,
    /// Freeze them; fail if that fails.
    Require,
}

/// `restore`
#[derive(Debug, Args)]
#[command(after_long_help = documents::RESTORE)]
pub(crate) struct RestoreArgs {
    /// The backup: its uuid, at least eight digits of it, or latest:DOMAIN.
    #[arg(value_name = "UUID|latest:DOMAIN", required_unless_present = "xml", conflicts_with = "xml")]
    pub(crate) backup: Option<String>,
    /// Restore this disk into a volume: raw:PATH, qcow2:PATH, a block device, nbd://… or nbd+unix://…; may be repeated.
    #[arg(long, value_name = "NAME=VOLUME", required_unless_present = "xml", conflicts_with = "xml")]
    pub(crate) disk: Vec<Named>,
    /// A domainbackup that names backup, disks and targets, such as `dumpxml` prints; - reads it from standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) xml: Option<PathBuf>,
    /// Make a domain of its own of the restored disks, with a new uuid and new MAC addresses.
    #[arg(long, value_name = "NAME", requires = "definition")]
    pub(crate) new_domain: Option<String>,
    /// Write the definition of the new domain to this new file.
    #[arg(long, value_name = "FILE", requires = "new_domain")]
    pub(crate) definition: Option<PathBuf>,
    /// Accept a volume that holds data: read it first, and write only what differs.
    #[arg(long)]
    pub(crate) rewrite_existing: bool,
    /// Read every volume back and compare it with the backup.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Check everything, and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Go on where the repository is damaged: write what is whole, list what is missing, and end with code 8.
    #[arg(long, conflicts_with = "verify")]
    pub(crate) salvage: bool,
}

/// `verify`
#[derive(Debug, Args)]
#[command(after_long_help = documents::VERIFY)]
pub(crate) struct VerifyArgs {
    /// The backups [default: all].
    #[arg(value_name = "UUID")]
    pub(crate) backups: Vec<String>,
    /// How deep to look.
    #[arg(long, default_value = "structure")]
    pub(crate) level: DepthName,
    /// Read this share of the bytes only, what this host has not read for the longest time: the next run reads the rest.
    #[arg(long, value_name = "P%", default_value = "100%")]
    pub(crate) sample: Percent,
    /// Use no password: hold every stored object against its own checksum. With --level structure those outside of the
    /// packs, with --level packs all.
    #[arg(long, conflicts_with = "backups")]
    pub(crate) keyless: bool,
}

/// `repair`
#[derive(Debug, Args)]
#[command(after_long_help = documents::REPAIR)]
pub(crate) struct RepairArgs {
    /// The backups [default: all].
    #[arg(value_name = "UUID")]
    pub(crate) backups: Vec<String>,
    /// How deep to look for damage.
    #[arg(long, default_value = "chunks")]
    pub(crate) level: RepairDepth,
    /// Read what is lost from this repository, by its configured name or URL: a copy of this one, or one with its keys.
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) from: Option<String>,
    /// Say what is damaged; mark and store nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// How deep `repair` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RepairDepth {
    /// Missing packs, and ones of a wrong size; no data is read.
    Structure,
    /// And packs whose checksum is wrong.
    Packs,
    /// And every single chunk.
    Chunks,
}

/// How deep `verify` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DepthName {
    /// Log and trees lead to live packs of the right size; no data is read.
    Structure,
    /// Every byte of the packs has the checksum it was stored with; no key is needed.
    Packs,
    /// Every chunk decrypts, decompresses and has its own hash.
    Chunks,
    /// Every disk is read from end to end as a restore would.
    Restore,
}
