//! The flags of each call, as types that cannot hold a bit which the call does not know.
//!
//! Bits below `1 << 8` are the proposal's or libvirt's own and keep their values; what Aquifer adds begins at
//! `1 << 8`, so that neither of the two can grow into it soon. The one exception is [`CreateFlags`]: the proposal
//! leaves its bits undefined, so all but libvirt's two are ours from `1 << 2` on.
//!
//! Invariant: [`BackupApi`](crate::BackupApi) takes these types only, and the only way in from a number is
//! `from_bits`, which refuses unknown bits and contradictions by name.

use std::fmt;

/// A word of flags that a call does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Bits that the call has no meaning for.
    #[error("{set}: bits {unknown:#x} are unknown; known are {known}")]
    Unknown {
        /// The proposal's or libvirt's name of the set, such as `virBackupListFlags`.
        set: &'static str,
        /// The unknown bits alone.
        unknown: u32,
        /// Every known flag with its value.
        known: String,
    },
    /// Two flags that exclude each other.
    #[error("{set}: {one} and {other} exclude each other: {reason}")]
    Contradiction {
        /// The name of the set.
        set: &'static str,
        /// One of the two.
        one: &'static str,
        /// The other.
        other: &'static str,
        /// Why they cannot both be meant.
        reason: &'static str,
    },
}

/// Writes `A|B`, or `0` if no flag is set.
fn names(f: &mut fmt::Formatter<'_>, bits: u32, all: &[(&'static str, u32)]) -> fmt::Result {
    let mut set = all.iter().filter(|(_, bit)| bits & bit != 0).map(|(name, _)| *name);
    f.write_str(set.next().unwrap_or("0"))?;
    set.try_for_each(|name| write!(f, "|{name}"))
}

/// Every flag with its value, for a message.
fn known(all: &[(&'static str, u32)]) -> String {
    if all.is_empty() {
        return "none: the flags are reserved and must be 0".to_owned();
    }
    all.iter().map(|(name, bit)| format!("{name} ({bit:#x})")).collect::<Vec<_>>().join(", ")
}

/// One set of flags: `name = "name in the proposal or in libvirt" { flags } excludes { pairs }`.
macro_rules! flags {
    ($(#[$meta:meta])* $type:ident = $set:literal {
        $($(#[$flag_meta:meta])* $flag:ident = $bit:expr,)*
    } $(excludes { $($one:ident, $other:ident: $reason:literal,)* })?) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $type(u32);

        impl $type {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$flag_meta])* pub const $flag: Self = Self($bit);)*
            /// Every flag's name and value, in the order of the values.
            pub const KNOWN: &'static [(&'static str, u32)] = &[$((stringify!($flag), $bit)),*];

            /// Takes the number that came over a wire.
            ///
            /// # Errors
            /// [`FlagError`] for bits that are unknown here and for flags that exclude each other.
            pub fn from_bits(bits: u32) -> Result<Self, FlagError> {
                let unknown = Self::KNOWN.iter().fold(bits, |rest, (_, bit)| rest & !bit);
                if unknown != 0 {
                    return Err(FlagError::Unknown { set: $set, unknown, known: known(Self::KNOWN) });
                }
                Self(bits).check()
            }

            /// The flags, unless two of them exclude each other.
            ///
            /// # Errors
            /// [`FlagError::Contradiction`].
            pub fn check(self) -> Result<Self, FlagError> {
                $($(if self.contains(Self::$one | Self::$other) {
                    let (one, other) = (stringify!($one), stringify!($other));
                    return Err(FlagError::Contradiction { set: $set, one, other, reason: $reason });
                })*)?
                Ok(self)
            }

            /// The number that goes over a wire.
            pub fn bits(self) -> u32 {
                self.0
            }

            /// True if every flag of `other` is set.
            pub fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }

        impl std::ops::BitOr for $type {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                names(f, self.0, Self::KNOWN)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

flags! {
    /// Of `create_backup` and `start_unmanaged`. The first two are libvirt's, with its values.
    CreateFlags = "virBackupCreateFlags" {
        /// Write into target files that exist already.
        REUSE_EXTERNAL = 1,
        /// Keep a domain that its guest shuts down paused until the backup has read what it needs.
        PRESERVE_SHUTDOWN = 1 << 1,
        /// Freeze the guest's file systems around the instant, if its agent answers.
        QUIESCE = 1 << 2,
        /// Refuse to begin unless the guest's file systems could be frozen.
        REQUIRE_QUIESCE = 1 << 3,
        /// Read every disk whole.
        FULL = 1 << 4,
        /// Refuse, instead of reading a disk whole, where the named parent is not what the disk's bitmap counts from.
        STRICT_PARENT = 1 << 5,
        /// Read back what was stored before the backup is reported.
        VERIFY = 1 << 6,
        /// Protect the backup from deletion from its first moment on.
        PROTECT = 1 << 7,
        /// Start nothing: say how much there would be to read.
        ESTIMATE = 1 << 8,
        /// Back up the disks of a stopped domain as well.
        OFFLINE_OK = 1 << 9,
    } excludes {
        FULL, STRICT_PARENT: "a disk that is read whole has no parent to be strict about",
    }
}

flags! {
    /// Of `list_backups` and `list_children`.
    ///
    /// The bits from `1 << 8` on form groups, as libvirt's do: {COMPLETED, FAILED, ACTIVE}, {CORRUPT}, {PROTECTED},
    /// {HAS_CHILDREN, LEAVES}, {ROOTS}. A backup must match one flag of each group of which a flag is set; a group
    /// without a flag filters nothing.
    ListFlags = "virBackupListFlags" {
        /// Only backups of which no disk has a parent.
        FULL = 1,
        /// Only the newest that is COMPLETED; with FULL, the newest full one.
        LATEST = 2,
        /// Of `list_children` only: not the direct children alone, but theirs as well.
        DESCENDANTS = 1 << 7,
        /// In state COMPLETED.
        COMPLETED = 1 << 8,
        /// In state FAILED, CANCELLED or INTERRUPTED.
        FAILED = 1 << 9,
        /// In any state that is not final.
        ACTIVE = 1 << 10,
        /// With damage that was found.
        CORRUPT = 1 << 11,
        /// Protected or locked.
        PROTECTED = 1 << 12,
        /// With children.
        HAS_CHILDREN = 1 << 13,
        /// Without children.
        LEAVES = 1 << 14,
        /// Without a parent.
        ROOTS = 1 << 15,
    }
}

flags! {
    /// Of `restore`. Without one of the first two, a target must not exist, or be empty.
    RestoreFlags = "virBackupRestoreFlags" {
        /// Make a domain of its own: new name, uuid and MAC addresses. Every disk needs a target.
        NEW_DOMAIN = 1,
        /// Allow targets that hold something; only what differs is written.
        REWRITE_EXISTING_DISK = 2,
        /// Write the whole target without comparing it first.
        WHOLE = 1 << 8,
        /// Restore what is left of a damaged backup; where it is lost, the target stays as it is.
        SALVAGE = 1 << 9,
        /// Read the targets again at the end.
        VERIFY = 1 << 10,
        /// Check everything that can be checked, and write nothing.
        DRY_RUN = 1 << 11,
        /// Answer when the restore is over, not when it is accepted.
        WAIT = 1 << 12,
        /// Serve the disks over NBD at once and copy behind.
        INSTANT = 1 << 13,
    } excludes {
        DRY_RUN, INSTANT: "what is not started cannot be served",
        SALVAGE, VERIFY: "what is left of a damaged backup is not equal to it",
    }
}

flags! {
    /// Of `delete_backup`. Without the first two, this backup alone.
    DeleteFlags = "virBackupDeleteFlags" {
        /// Every backup of the domain. Includes ALL_CHILDREN.
        ALL = 1,
        /// This backup and all its descendants.
        ALL_CHILDREN = 2,
        /// Leave the checkpoint in the hypervisor.
        METADATA_ONLY = 1 << 8,
    }
}

flags! {
    /// Of `finish_job`. The proposal's text calls them `virBackupDeleteFlags`: an error of copying.
    FinishFlags = "virBackupFinishJobFlags" {
        /// End the job; keep no backup. Idempotent.
        CANCEL = 1,
        /// Finish only if everything that must be there is there and opens.
        CHECK = 2,
        /// Wait for a job that is still copying, instead of refusing.
        WAIT = 1 << 8,
    } excludes {
        CANCEL, CHECK: "what is thrown away is not checked",
        CANCEL, WAIT: "what is thrown away is not waited for",
    }
}

flags! {
    /// Of `get_xml`: the proposal names libvirt's `virDomainXMLFlags`, of which two have a meaning here.
    XmlFlags = "virDomainXMLFlags" {
        /// Include passwords and keys. Needs the privilege.
        SECURE = 1,
        /// The document as it was submitted.
        INACTIVE = 2,
        /// Leave the captured definition of the domain out.
        NO_DOMAIN = 1 << 8,
        /// Include the sizes of the disks.
        SIZE = 1 << 9,
        /// In libvirt's dialect.
        LIBVIRT = 1 << 10,
    }
}

flags! {
    /// Of `set_default_target`: libvirt's `virDomainDeviceModifyFlags`. CURRENT is 0, that is [`Self::NONE`].
    TargetFlags = "virDomainDeviceModifyFlags" {
        /// Jobs that are queued move as well; running ones never do.
        LIVE = 1,
        /// Jobs to come.
        CONFIG = 2,
        /// Accept a target that cannot be reached now.
        FORCE = 4,
    }
}

flags! {
    /// Of `undefine`. Of libvirt's `virDomainUndefineFlagsValues` only the proposal's addition has a meaning here;
    /// libvirt uses the bits 0 to 6, so ours stays clear of them.
    UndefineFlags = "virDomainUndefineFlagsValues" {
        /// Delete the domain's backups with it.
        BACKUP = 1 << 16,
    }
}

flags! {
    /// Of `lookup` and `get_parameters`, "for future use": every bit is refused.
    ReservedFlags = "reserved flags" {}
}

#[cfg(test)]
mod tests;
