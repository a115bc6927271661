//! Why something is not deleted, protected, pruned or collected.
//!
//! Nothing was changed when one of these is returned, except by a collection, which may have done a part of its work.

use aquifer_format::id::SessionId;
use aquifer_format::log::SessionKind;
use uuid::Uuid;

use super::words::doing;
use crate::Error;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemovalError {
    /// A backup that is to be deleted is being read.
    #[error(
        "backup {backup} is being read: a {} of host {host} has session {session} open on it; wait for its end, or end it with `aquifer collect --fence-after 0s` if that host is known to be dead",
        doing(*kind)
    )]
    Busy {
        /// The backup.
        backup: Uuid,
        /// The session that reads it.
        session: SessionId,
        /// What it does.
        kind: SessionKind,
        /// Where it runs.
        host: String,
    },
    /// A backup that is to be deleted is protected.
    #[error("backup {backup} is protected: `aquifer protect {backup} --off` lets it be deleted")]
    Protected {
        /// The backup.
        backup: Uuid,
    },
    /// A backup that is to be protected is deleted.
    #[error("backup {backup} is deleted: bring it back first with `aquifer undelete {backup}`")]
    Deleted {
        /// The backup.
        backup: Uuid,
    },
    /// A domain that is to be undefined has backups.
    #[error(
        "domain {domain} has {count} backups: undefine it with --backups to delete them as well, or leave it defined"
    )]
    HasBackups {
        /// The domain.
        domain: String,
        /// How many.
        count: usize,
    },
    /// A policy that keeps nothing.
    #[error("no rule says which backups of domain {domain} to keep: give one, such as --keep-daily 7")]
    NoRules {
        /// The domain.
        domain: String,
    },
    /// A policy would delete too much at once.
    #[error(
        "of the {all} backups of domain {domain} {dropped} would be deleted, more than half: look with --dry-run, and if that is meant, add --force"
    )]
    TooMuch {
        /// The domain.
        domain: String,
        /// How many would be deleted.
        dropped: usize,
        /// How many there are.
        all: usize,
    },
    /// A backup's trees cannot be read whole, so what is garbage cannot be told.
    #[error(
        "backup {backup} cannot be read whole, so nothing can be collected: {source}; repair it, or delete it with `aquifer delete {backup} --forget-delay 0s`"
    )]
    RootUnreadable {
        /// The backup.
        backup: Uuid,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A checkpoint is not what the log adds up to.
    #[error(
        "checkpoint {checkpoint} is not what the log's entries add up to, so the log is not cut short; keep a copy of the store, and report it"
    )]
    CheckpointDiffers {
        /// Its entry.
        checkpoint: u64,
    },
}
