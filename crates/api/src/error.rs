//! What a call can fail with: one variant for each thing that can be wrong, under the code by which clients know it.
//!
//! A caller that only wants to know what to do next asks for the [`Kind`]; a client of libvirt's school matches on the
//! [`code`](Error::code). The messages name the object and the number, [`hint`](Error::hint) the way out.
//!
//! Not here: how a fault of a lower layer is told from another. Whoever implements the API decides that.

use uuid::Uuid;

use crate::flags::FlagError;
use crate::state::JobState;
use crate::xml::XmlError;

/// The API's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller must do about an error. These are the kinds of the command line and of its exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong: change it.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Somebody else holds it, or it exists already.
    Conflict,
    /// Credentials, a password or permissions are missing or wrong.
    Denied,
    /// A peer does not answer or failed half-way: try again later.
    Unavailable,
    /// Stored or received bytes are damaged.
    Corrupt,
    /// This version, peer or store cannot do it.
    Unsupported,
    /// The caller cancelled.
    Cancelled,
    /// A fault of Aquifer itself.
    Internal,
}

impl Kind {
    /// The code of an error of which only the kind is known.
    fn code(self) -> &'static str {
        match self {
            Kind::Invalid => "INVALID_ARG",
            Kind::NotFound => "NOT_FOUND",
            Kind::Conflict => "CONFLICT",
            Kind::Denied => "PERMISSION",
            Kind::Unavailable => "UNAVAILABLE",
            Kind::Corrupt => "CORRUPT",
            Kind::Unsupported => "OPERATION_UNSUPPORTED",
            Kind::Cancelled => "CANCELLED",
            Kind::Internal => "INTERNAL",
        }
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The document is not one that the call takes.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// The flags are not ones that the call takes.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// An argument that is neither document nor flags.
    #[error("{0}")]
    InvalidArg(String),
    /// No domain of that name.
    #[error("domain `{0}` is not known")]
    NoDomain(String),
    /// No backup of that id.
    #[error("there is no backup {0}")]
    NoBackup(Uuid),
    /// Several backups begin with what was given.
    #[error("{count} backups begin with `{prefix}`")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many begin with it.
        count: usize,
    },
    /// The domain or the backup has no such disk.
    #[error("{owner} has no disk `{disk}`; it has {}", if .disks.is_empty() { "none".to_owned() } else { .disks.join(", ") })]
    NoDisk {
        /// `domain web01` or `backup UUID`.
        owner: String,
        /// The disk.
        disk: String,
        /// Those that there are.
        disks: Vec<String>,
    },
    /// The parent named is not a backup of this domain.
    #[error("the parent {parent} is no backup of domain `{domain}`")]
    NoParent {
        /// The parent asked for.
        parent: String,
        /// The domain.
        domain: String,
    },
    /// The parent named is not complete.
    #[error("the parent {parent} is {state}; only a completed backup can be a parent")]
    ParentNotComplete {
        /// The parent asked for.
        parent: Uuid,
        /// What it is.
        state: JobState,
    },
    /// With STRICT_PARENT: a disk's bitmap does not count from the parent.
    #[error("disk {disk} cannot be read against {parent}: {reason}")]
    CheckpointInconsistent {
        /// The disk.
        disk: String,
        /// The parent asked for.
        parent: Uuid,
        /// What the bitmap says.
        reason: String,
    },
    /// The id asked for belongs to a backup.
    #[error("there is a backup {0} already")]
    BackupExists(Uuid),
    /// The domain has another job.
    #[error("domain `{domain}` is busy: {job}")]
    JobBusy {
        /// The domain.
        domain: String,
        /// What it does, and since when.
        job: String,
    },
    /// With REQUIRE_QUIESCE: the guest could not be frozen.
    #[error("the guest agent of `{domain}` does not freeze the guest: {reason}")]
    AgentUnresponsive {
        /// The domain.
        domain: String,
        /// What it did instead.
        reason: String,
    },
    /// A target holds something.
    #[error("target {0} exists and is not empty")]
    TargetExists(String),
    /// A target is open elsewhere.
    #[error("target {target} is in use by {by}")]
    TargetInUse {
        /// The target.
        target: String,
        /// Who has it.
        by: String,
    },
    /// A target is smaller than the disk.
    #[error("target {target} has {bytes} bytes; disk {disk} needs {needed}")]
    TargetTooSmall {
        /// The target.
        target: String,
        /// Its size in bytes.
        bytes: u64,
        /// The disk.
        disk: String,
        /// The disk's size in bytes.
        needed: u64,
    },
    /// A scratch folder or a store is full.
    #[error("{place} has {free} bytes free; {needed} are needed")]
    NoSpace {
        /// Where.
        place: String,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// The repository, store or hypervisor does not accept who asks.
    #[error("{0}")]
    Auth(String),
    /// The endpoint is taken.
    #[error("address {0} is in use")]
    AddrInUse(String),
    /// A plain endpoint that is not on loopback.
    #[error("{0} would serve a disk in the clear beyond this host")]
    TlsRequired(String),
    /// The export's name is taken.
    #[error("there is an export `{0}` already")]
    ExportExists(String),
    /// A backup is damaged.
    #[error("backup {backup}, disk {disk}: {} ranges are damaged, the first at byte {}", .ranges.len(), .ranges.first().map_or(0, |range| range.0))]
    Corrupt {
        /// The backup.
        backup: Uuid,
        /// The disk.
        disk: String,
        /// Offset and length of each range, in bytes.
        ranges: Vec<(u64, u64)>,
    },
    /// The domain to be made exists.
    #[error("domain `{0}` exists already")]
    DomainExists(String),
    /// The domain uses the disks that were to be overwritten.
    #[error("domain `{0}` is running")]
    DomainRunning(String),
    /// The key of the repository is not at hand.
    #[error("the key of {0} is missing")]
    KeyMissing(String),
    /// The store is not known.
    #[error("store `{0}` is not known or cannot be reached")]
    NoStore(String),
    /// The backup is protected.
    #[error("backup {0} is protected")]
    Protected(Uuid),
    /// The backup is locked for a time.
    #[error("backup {backup} is locked until {until}")]
    LockedUntil {
        /// The backup.
        backup: Uuid,
        /// RFC 3339.
        until: String,
    },
    /// Something reads the backup.
    #[error("backup {backup} is being read by {reader}")]
    Busy {
        /// The backup.
        backup: Uuid,
        /// Who reads it.
        reader: String,
    },
    /// The caller may not.
    #[error("not allowed: {0}")]
    Permission(String),
    /// The backup has no job: libvirt's `VIR_ERR_NO_DOMAIN_BACKUP`, number 104.
    #[error("backup {0} has no job to finish")]
    NoBackupJob(Uuid),
    /// The call does not fit the state.
    #[error("backup {backup} is {state}: {what}")]
    OperationInvalid {
        /// The backup.
        backup: Uuid,
        /// Its state.
        state: JobState,
        /// Why the call does not fit.
        what: String,
    },
    /// Not done by this version.
    #[error("not supported: {0}")]
    OperationUnsupported(String),
    /// With CHECK: something is missing or does not open.
    #[error("backup {backup} does not stand the check: {}", .findings.join("; "))]
    CheckFailed {
        /// The backup.
        backup: Uuid,
        /// What was found.
        findings: Vec<String>,
    },
    /// A domain with backups was to be undefined.
    #[error("domain `{domain}` has {count} backups")]
    HasBackups {
        /// The domain.
        domain: String,
        /// How many.
        count: usize,
    },
    /// A peer does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The caller cancelled.
    #[error("cancelled before it was complete")]
    Cancelled,
    /// A fault of Aquifer itself.
    #[error("{0}")]
    Internal(String),
    /// What a lower layer reported and has no word of its own here.
    #[error("{message}")]
    Other {
        /// What the caller must do.
        kind: Kind,
        /// What happened, naming the object and the number.
        message: String,
        /// The way out, where one is known.
        hint: Option<String>,
    },
}

impl Error {
    /// The code by which clients know the error.
    pub fn code(&self) -> &'static str {
        self.class().0
    }

    /// What the caller must do.
    pub fn kind(&self) -> Kind {
        self.class().1
    }

    fn class(&self) -> (&'static str, Kind) {
        match self {
            Error::Xml(error) if error.is_unsupported() => ("XML_ERROR", Kind::Unsupported),
            Error::Xml(_) => ("XML_ERROR", Kind::Invalid),
            Error::Flag(_) => ("INVALID_FLAG", Kind::Invalid),
            Error::InvalidArg(_) => ("INVALID_ARG", Kind::Invalid),
            Error::NoDomain(_) => ("NO_DOMAIN", Kind::NotFound),
            Error::NoBackup(_) => ("NO_BACKUP", Kind::NotFound),
            Error::Ambiguous { .. } => ("AMBIGUOUS", Kind::Invalid),
            Error::NoDisk { .. } => ("NO_DISK", Kind::NotFound),
            Error::NoParent { .. } => ("NO_PARENT", Kind::NotFound),
            Error::ParentNotComplete { .. } => ("PARENT_NOT_COMPLETE", Kind::Conflict),
            Error::CheckpointInconsistent { .. } => ("CHECKPOINT_INCONSISTENT", Kind::Conflict),
            Error::BackupExists(_) => ("BACKUP_EXISTS", Kind::Conflict),
            Error::JobBusy { .. } => ("JOB_BUSY", Kind::Conflict),
            Error::AgentUnresponsive { .. } => ("AGENT_UNRESPONSIVE", Kind::Unavailable),
            Error::TargetExists(_) => ("TARGET_EXISTS", Kind::Conflict),
            Error::TargetInUse { .. } => ("TARGET_IN_USE", Kind::Conflict),
            Error::TargetTooSmall { .. } => ("TARGET_TOO_SMALL", Kind::Invalid),
            Error::NoSpace { .. } => ("NO_SPACE", Kind::Unavailable),
            Error::Auth(_) => ("AUTH", Kind::Denied),
            Error::AddrInUse(_) => ("ADDR_IN_USE", Kind::Conflict),
            Error::TlsRequired(_) => ("TLS_REQUIRED", Kind::Invalid),
            Error::ExportExists(_) => ("EXPORT_EXISTS", Kind::Conflict),
            Error::Corrupt { .. } => ("CORRUPT", Kind::Corrupt),
            Error::DomainExists(_) => ("DOMAIN_EXISTS", Kind::Conflict),
            Error::DomainRunning(_) => ("DOMAIN_RUNNING", Kind::Conflict),
            Error::KeyMissing(_) => ("KEY_MISSING", Kind::Denied),
            Error::NoStore(_) => ("NO_STORE", Kind::NotFound),
            Error::Protected(_) => ("PROTECTED", Kind::Conflict),
            Error::LockedUntil { .. } => ("LOCKED_UNTIL", Kind::Conflict),
            Error::Busy { .. } => ("BUSY", Kind::Conflict),
            Error::Permission(_) => ("PERMISSION", Kind::Denied),
            Error::NoBackupJob(_) => ("NO_BACKUP_JOB", Kind::NotFound),
            Error::OperationInvalid { .. } => ("OPERATION_INVALID", Kind::Conflict),
            Error::OperationUnsupported(_) => ("OPERATION_UNSUPPORTED", Kind::Unsupported),
            Error::CheckFailed { .. } => ("CHECK_FAILED", Kind::Corrupt),
            Error::HasBackups { .. } => ("HAS_BACKUPS", Kind::Conflict),
            Error::Unavailable(_) => ("UNAVAILABLE", Kind::Unavailable),
            Error::Cancelled => ("CANCELLED", Kind::Cancelled),
            Error::Internal(_) => ("INTERNAL", Kind::Internal),
            Error::Other { kind, .. } => (kind.code(), *kind),
        }
    }

    /// The way out, where one is known and the message does not say it.
    pub fn hint(&self) -> Option<&str> {
        Some(match self {
            Error::Other { hint, .. } => return hint.as_deref(),
            Error::Ambiguous { .. } => "give more digits",
            Error::NoParent { .. } => "leave the parent out to take the newest backup of each disk",
            Error::ParentNotComplete { .. } => "wait for it, or name another",
            Error::CheckpointInconsistent { .. } => {
                "without STRICT_PARENT this disk is read whole and compared"
            }
            Error::BackupExists(_) => "leave the uuid out to get a new one",
            Error::JobBusy { .. } => "wait for it, or cancel it",
            Error::AgentUnresponsive { .. } => "QUIESCE instead of REQUIRE_QUIESCE goes on without",
            Error::TargetExists(_) => "RESTORE_REWRITE_EXISTING_DISK or REUSE_EXTERNAL allows it",
            Error::TlsRequired(_) => "use nbds://, a unix socket, or a loopback address",
            Error::Corrupt { .. } => "restore from a replica, repair, or accept the loss with SALVAGE",
            Error::DomainExists(_) => "give another name, or leave the name out",
            Error::DomainRunning(_) => "shut it down, or name other targets",
            Error::Protected(_) => "lift the protection first",
            Error::OperationInvalid { .. } => "ask for its parameters to see what it does",
            Error::HasBackups { .. } => "the flag UNDEFINE_BACKUP deletes them as well",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_object_and_the_number() {
        let error =
            Error::TargetTooSmall { target: "/dev/vg/web".into(), bytes: 5, disk: "vda".into(), needed: 10 };
        assert_eq!(error.to_string(), "target /dev/vg/web has 5 bytes; disk vda needs 10");
        let disks = vec!["vda".to_owned(), "vdb".to_owned()];
        let error = Error::NoDisk { owner: "domain web01".into(), disk: "vdc".into(), disks };
        assert_eq!(error.to_string(), "domain web01 has no disk `vdc`; it has vda, vdb");
        let error =
            Error::Corrupt { backup: Uuid::nil(), disk: "vda".into(), ranges: vec![(512, 8), (9, 1)] };
        assert!(error.to_string().ends_with("disk vda: 2 ranges are damaged, the first at byte 512"));
    }

    #[test]
    fn a_code_and_a_kind_tell_what_to_do() {
        let error = Error::from(crate::ListFlags::from_bits(1 << 31).unwrap_err());
        assert_eq!((error.code(), error.kind()), ("INVALID_FLAG", Kind::Invalid));
        let error = Error::HasBackups { domain: "web01".into(), count: 3 };
        assert_eq!((error.code(), error.kind()), ("HAS_BACKUPS", Kind::Conflict));
        assert!(error.hint().is_some_and(|hint| hint.contains("UNDEFINE_BACKUP")));
    }
}
