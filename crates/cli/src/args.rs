//! What was typed: the command line as clap reads it, and nothing more.
//!
//! The first of two steps. Here stand names, shapes and help texts; values that other crates define (monitor
//! addresses, NBD URIs, volumes) stay text. What the words mean, together with the configuration, is settled by
//! the commands through [`crate::context::Context`].
//!
//! Invariant: nothing here touches a file, the network or the terminal.

pub(crate) mod api;
mod documents;
pub(crate) mod jobs;
pub(crate) mod removal;
pub(crate) mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use self::api::{DumpxmlArgs, FinishArgs, StartUnmanagedArgs};
use self::jobs::{BackupArgs, RepairArgs, RestoreArgs, VerifyArgs};
use self::removal::{CollectArgs, DeleteArgs, ProtectArgs, PruneArgs, UndeleteArgs};
use self::values::{Named, Size};

/// Backs up running virtual machines into an encrypted, deduplicating repository, and restores them byte-exact.
#[derive(Debug, Parser)]
#[command(name = "aquifer", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The exit codes, as the help and the man page state them.
const EXIT_CODES: &str = "\
Exit codes:
  0 done · 1 failed otherwise · 2 usage · 3 invalid · 4 not found · 5 conflict · 6 denied
  7 unavailable · 8 corrupt · 9 unsupported · 10 cancelled · 11 internal";

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Configuration [default: /etc/aquifer/aquifer.toml, or one in the user's own configuration folder].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Repository: a configured name, a path, file:///PATH, or s3://BUCKET/PREFIX.
    #[arg(short, long, global = true, value_name = "NAME|URL")]
    pub(crate) repository: Option<String>,
    /// Store of the repository's log, where it is kept apart from the packs.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) log: Option<String>,
    /// File whose content, without a line end, is the repository's password [env: AQUIFER_PASSWORD_FILE].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Folder of index caches and journals; losing it costs time, never data [env: AQUIFER_STATE_DIR].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print JSON: one document, or one object a line while a job runs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say more on standard error; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, examine and maintain a repository.
    #[command(subcommand)]
    Repository(RepositoryCommand),
    /// Back up a domain: all its disks at one instant.
    Backup(Box<BackupArgs>),
    /// List backups, newest first.
    #[command(after_long_help = documents::LIST)]
    List(ListArgs),
    /// List the backups that were read against a backup, oldest first; none of them needs it to be restored.
    #[command(after_long_help = documents::LIST)]
    Children {
        /// The backup: its uuid, at least eight digits of it, or latest:DOMAIN.
        #[arg(value_name = "UUID")]
        backup: String,
        /// Theirs as well.
        #[arg(long)]
        descendants: bool,
    },
    /// Print the description of a backup, or of one that is being served, as domainbackup XML, with --json too.
    Dumpxml(DumpxmlArgs),
    /// Print what is known of a backup and of its job.
    #[command(after_long_help = documents::PARAMS)]
    Params {
        /// The backup, or the job of a restore.
        #[arg(value_name = "UUID")]
        backup: String,
    },
    /// Freeze a running domain's disks and serve them over NBD, for another program to read.
    StartUnmanaged(StartUnmanagedArgs),
    /// End a backup that another program reads: it is complete, or with --cancel it is none.
    Finish(FinishArgs),
    /// Serves an unmanaged backup as long as its lease lasts; started by `start-unmanaged`.
    #[command(hide = true)]
    Keep,
    /// Restore disks of a backup.
    Restore(RestoreArgs),
    /// Prove that stored backups can be restored.
    Verify(VerifyArgs),
    /// Store anew what damaged packs have lost, out of whatever still has it, and keep new backups off the rest.
    Repair(RepairArgs),
    /// Delete backups; for a while they can be brought back. All others stay whole, whatever they were read against.
    Delete(DeleteArgs),
    /// Bring deleted backups back.
    Undelete(UndeleteArgs),
    /// Protect backups from being deleted and pruned.
    Protect(ProtectArgs),
    /// Delete the backups that a retention policy does not keep.
    Prune(PruneArgs),
    /// Free the space that no backup needs any more, while backups and restores go on.
    Collect(CollectArgs),
    /// Show and clean up the domains of the configuration.
    #[command(subcommand)]
    Domain(DomainCommand),
    /// Check this machine, the repository and the domains' monitors, and say what is wrong.
    #[command(after_long_help = documents::DOCTOR)]
    Doctor {
        /// Read samples of this NBD export with two independent clients, and compare; may be repeated.
        #[arg(long, value_name = "NAME=URI")]
        nbd: Vec<Named>,
    },
    /// Look inside a repository.
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages.
    Man {
        /// Folder for the pages.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Ends the session of a backup whose process died; started by the backup itself.
    #[command(hide = true)]
    Guard,
}

/// `repository …`
#[derive(Debug, Subcommand)]
pub(crate) enum RepositoryCommand {
    /// Create a repository in an empty or new place.
    #[command(after_long_help = documents::INFO)]
    Init(InitArgs),
    /// Show what the repository is: id, encryption, chunk size, features.
    #[command(after_long_help = documents::INFO)]
    Info,
    /// Count backups, packs and bytes.
    #[command(after_long_help = documents::STATS)]
    Stats,
    /// Prove that the store creates objects atomically: many try at once, exactly one may win.
    #[command(after_long_help = documents::PROBE)]
    Probe,
    /// Rebuild this machine's chunk index from the repository.
    #[command(after_long_help = documents::REBUILD)]
    RebuildIndex {
        /// Read the tables of the packs themselves, and trust no segment.
        #[arg(long)]
        from_packs: bool,
    },
    /// Give a repository whose log store is lost a new one, the empty place that --log names, out of the copies beside the packs.
    #[command(after_long_help = documents::INFO)]
    AdoptLog,
    /// Extend the object locks of everything that a backup needs; run it at least as often as half of their period.
    #[command(after_long_help = documents::EXTEND_LOCKS)]
    ExtendLocks,
    /// Passwords that open the repository.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// `repository init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Store the data in plain: anybody who reads the store reads the disks.
    #[arg(long)]
    pub(crate) no_encryption: bool,
    /// Chunk size, a power of two from 64KiB to 4MiB; it cannot be changed later.
    #[arg(long, value_name = "SIZE", default_value = "128KiB")]
    pub(crate) chunk_size: Size,
    /// Also make a recovery key, and write it to this new file; keep it away from this machine.
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    pub(crate) recovery_key: Option<PathBuf>,
}

/// `repository keys …`
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the key slots.
    #[command(after_long_help = documents::KEYS)]
    List,
    /// Add a password in a slot of its own.
    #[command(after_long_help = documents::KEY)]
    Add {
        /// File whose content, without a line end, is the new password [default: asked for on the terminal].
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// Remove a slot. Whoever opened the repository with it may have kept the key: this does not lock them out.
    #[command(after_long_help = documents::KEY)]
    Retire {
        /// The slot, as `keys list` names it.
        #[arg(value_name = "SLOT")]
        slot: String,
    },
}

/// `list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only backups of this domain.
    pub(crate) domain: Option<String>,
    /// Only backups whose every disk was read whole.
    #[arg(long)]
    pub(crate) full: bool,
    /// Only the newest backup of each domain.
    #[arg(long)]
    pub(crate) latest: bool,
    /// Only deleted backups, which `undelete` can bring back.
    #[arg(long)]
    pub(crate) deleted: bool,
}

/// `domain …`
#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// List the domains of the configuration and of the repository.
    #[command(after_long_help = documents::DOMAINS)]
    List,
    /// Show how a domain is configured, and its newest backup.
    #[command(after_long_help = documents::DOMAIN)]
    Show {
        /// The domain.
        name: String,
    },
    /// Define a domain: libvirt's XML, a JSON object with "name", or QEMU's command line with -name. Each later backup
    /// keeps a copy; earlier ones of the name are its own.
    #[command(after_long_help = documents::DEFINED)]
    Define {
        /// The definition; - reads it from standard input.
        file: PathBuf,
    },
    /// Undefine a domain; it must have no backups.
    #[command(after_long_help = documents::DEFINED)]
    Undefine {
        /// The domain.
        name: String,
        /// Delete its backups as well, all or none; for a while they can be brought back.
        #[arg(long)]
        backups: bool,
    },
    /// Set where a domain's backups go when their documents do not say it.
    #[command(after_long_help = documents::DEFINED)]
    SetDefaultTarget {
        /// The domain.
        name: String,
        /// A domainbackup with a target directly inside; - reads it from standard input.
        #[arg(long, value_name = "FILE", required_unless_present = "clear")]
        xml: Option<PathBuf>,
        /// Go back to having none.
        #[arg(long, conflicts_with = "xml")]
        clear: bool,
        /// Accept a target that cannot be reached now.
        #[arg(long)]
        force: bool,
    },
    /// Remove from the domain's QEMU what a crashed backup of ours left; touch nothing else.
    #[command(after_long_help = documents::CLEANUP)]
    Cleanup {
        /// The domain.
        name: String,
        /// QEMU's monitor, if the domain is not configured.
        #[arg(long, value_name = "ADDRESS")]
        qmp: Option<String>,
        /// Folder of the scratch files, if not the configured one.
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
    },
}

/// `debug …`
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Print the content of an object.
    Cat {
        /// The object's key, such as log/0000000000000001.
        key: String,
    },
    /// Print the log, oldest entry first.
    #[command(after_long_help = documents::LOG)]
    Log,
    /// Print the tree of one disk of a backup.
    #[command(after_long_help = documents::TREE)]
    Tree {
        /// The backup.
        #[arg(value_name = "UUID")]
        backup: String,
        /// The disk, by its name in the backup.
        disk: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
