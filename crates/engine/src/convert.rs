//! What the errors of the lower crates mean for the caller: one coarse kind each, the range and the object as
//! context, and the way out where the message does not say it already.

use aquifer_nbd::Error as NbdError;
use aquifer_repository::format::Error as FormatError;
use aquifer_repository::store::Error as StoreError;
use aquifer_repository::{Error as RepositoryError, RemovalError};

use crate::error::{Error, Kind};

impl From<NbdError> for Error {
    fn from(error: NbdError) -> Self {
        let kind = nbd_kind(&error);
        let range = match &error {
            NbdError::Failed { offset, bytes, .. }
            | NbdError::Lost { offset, bytes, .. }
            | NbdError::OutOfRange { offset, bytes, .. }
            | NbdError::Unaligned { offset, bytes, .. } => Some((*offset, *bytes)),
            _ => None,
        };
        let failed = matches!(error, NbdError::Failed { .. });
        let mut error = Error::caused(kind, error);
        if let Some((offset, bytes)) = range {
            error = error.with("offset", offset).with("length", bytes);
        }
        if failed {
            error = error.hint("the peer's storage cannot be used there: repair it, then run again");
        }
        error
    }
}

fn nbd_kind(error: &NbdError) -> Kind {
    match error {
        NbdError::Uri { .. } | NbdError::OutOfRange { .. } | NbdError::Unaligned { .. } => Kind::Invalid,
        NbdError::ReadOnly { .. } => Kind::Invalid,
        NbdError::Connect { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Unavailable,
        },
        NbdError::Deadline { .. } | NbdError::Closed { .. } => Kind::Unavailable,
        NbdError::TlsSetup { .. } | NbdError::Tls { .. } => Kind::Denied,
        NbdError::TlsRequired { .. } | NbdError::TlsRefused { .. } | NbdError::TlsDropped { .. } => {
            Kind::Denied
        }
        NbdError::Refused { .. } => Kind::NotFound,
        NbdError::Violation { .. } => Kind::Corrupt,
        NbdError::NotOffered { .. } | NbdError::NoContext { .. } => Kind::Unsupported,
        NbdError::Failed { .. } | NbdError::Lost { .. } => Kind::Unavailable,
        NbdError::Changed { .. } => Kind::Unavailable,
        NbdError::Disconnected { .. } => Kind::Cancelled,
    }
}

impl From<aquifer_qemu::Error> for Error {
    fn from(error: aquifer_qemu::Error) -> Self {
        use aquifer_qemu::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::Invalid => Kind::Invalid,
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::Conflict => Kind::Conflict,
            ErrorKind::Denied => Kind::Denied,
            ErrorKind::Unavailable => Kind::Unavailable,
            ErrorKind::Unsupported => Kind::Unsupported,
            ErrorKind::Internal => Kind::Internal,
        };
        Error::caused(kind, error)
    }
}

impl From<RepositoryError> for Error {
    fn from(error: RepositoryError) -> Self {
        let kind = repository_kind(&error);
        let mut told = Error::caused(kind, error);
        if kind == Kind::Corrupt {
            told = told.hint(
                "run `aquifer verify` to see which backups it touches, and restore the object from a copy",
            );
        }
        told
    }
}

fn repository_kind(error: &RepositoryError) -> Kind {
    use RepositoryError as E;
    match error {
        E::Store(source) => store_kind(source),
        E::Format(source) => format_kind(source),
        // Losing an index costs time only; the message names it and the way out.
        E::Index(_) => Kind::Unavailable,
        E::Object { source, .. } | E::Node { source, .. } => format_kind(source),
        E::Damaged { source, .. } => format_kind(source),
        E::SelfCheck { .. } => Kind::Corrupt,
        E::PackLost { source, .. } | E::Upload { source, .. } => store_kind(source),
        E::NotARepository { .. } | E::UnknownSlot { .. } | E::UnknownBackup { .. } => Kind::NotFound,
        E::NoBackupOfDomain { .. } => Kind::NotFound,
        E::AlreadyInitialised { .. } | E::NotEmpty { .. } | E::LastSlot { .. } => Kind::Conflict,
        E::IndexBusy { .. } | E::LogReplaced { .. } | E::LogBusy { .. } => Kind::Conflict,
        E::DomainBusy { .. } | E::BackupExists { .. } | E::Fenced { .. } => Kind::Conflict,
        E::PinLost { .. } | E::BaseForgotten { .. } => Kind::Conflict,
        E::AtomicCreate { .. } => Kind::Unsupported,
        E::WrongLogStore { .. }
        | E::NoNewLogStore { .. }
        | E::NoObjectLock { .. }
        | E::StoresDiffer { .. }
        | E::ManySlots { .. }
        | E::NotEncrypted => Kind::Invalid,
        E::AmbiguousBackup { .. } => Kind::Invalid,
        E::WrongSecret { .. } | E::ReadOnly => Kind::Denied,
        E::StateDir { source, .. } => match source.kind() {
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Unavailable,
        },
        E::Stopped => Kind::Cancelled,
        E::Removal(error) => removal_kind(error),
        E::OutcomeUnknown { .. } => Kind::Unavailable,
        E::NoLog { .. } | E::NoSlot { .. } | E::RolledBack { .. } | E::OtherHistory { .. } => Kind::Corrupt,
        E::LogGap { .. } | E::NotKept { .. } | E::CheckpointAhead { .. } => Kind::Corrupt,
        E::Missing { .. } | E::PackShort { .. } | E::IndexRow { .. } | E::TreeShape { .. } => Kind::Corrupt,
        // The first failure of a session is what made the later ones fail.
        E::SessionFailed { cause } => repository_kind(cause),
        _ => Kind::Internal,
    }
}

fn removal_kind(error: &RemovalError) -> Kind {
    match error {
        RemovalError::NoRules { .. } => Kind::Invalid,
        RemovalError::RootUnreadable { source, .. } => repository_kind(source),
        RemovalError::CheckpointDiffers { .. } => Kind::Corrupt,
        // Somebody holds it, or protects it: from this very request, too.
        _ => Kind::Conflict,
    }
}

fn store_kind(error: &StoreError) -> Kind {
    match error {
        // The log or the index names the object, so it must be there.
        StoreError::NotFound { .. } | StoreError::Range { .. } | StoreError::TooLarge { .. } => Kind::Corrupt,
        StoreError::Denied { .. } | StoreError::Clock { .. } => Kind::Denied,
        StoreError::NoBucket { .. } => Kind::NotFound,
        StoreError::Rejected { .. } | StoreError::Authority { .. } => Kind::Invalid,
        StoreError::Directory { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            std::io::ErrorKind::AlreadyExists => Kind::Conflict,
            _ => Kind::Invalid,
        },
        StoreError::NoSpace { .. } | StoreError::Sync { .. } | StoreError::Io { .. } => Kind::Unavailable,
        StoreError::Unavailable { .. } => Kind::Unavailable,
    }
}

fn format_kind(error: &FormatError) -> Kind {
    match error {
        FormatError::Version { .. } | FormatError::Feature { .. } => Kind::Unsupported,
        FormatError::WrongSecret | FormatError::SecretNeeded => Kind::Denied,
        FormatError::Mode { .. } | FormatError::Downgrade => Kind::Denied,
        FormatError::IdSyntax { .. } => Kind::Invalid,
        FormatError::Kdf { .. } | FormatError::ZstdContext { .. } | FormatError::NoEpoch => Kind::Internal,
        FormatError::BufferLength { .. } | FormatError::NothingToCheck | FormatError::SigningSeed => {
            Kind::Internal
        }
        _ => Kind::Corrupt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_object_is_damage_and_a_full_store_is_not() {
        let missing = StoreError::NotFound { store: "s".into(), key: "packs/1".into() };
        assert_eq!(Error::from(RepositoryError::Store(missing)).kind(), Kind::Corrupt);
        let full = StoreError::NoSpace { store: "s".into(), key: "packs/1".into() };
        assert_eq!(Error::from(RepositoryError::Store(full)).kind(), Kind::Unavailable);
    }

    #[test]
    fn a_failed_session_has_the_kind_of_its_cause() {
        let cause = RepositoryError::WrongSecret { slots: 1 };
        let failed = RepositoryError::SessionFailed { cause: std::sync::Arc::new(cause) };
        assert_eq!(Error::from(failed).kind(), Kind::Denied);
    }

    #[test]
    fn a_uri_that_does_not_parse_is_invalid() {
        let error = "nbd://:bad:/".parse::<aquifer_nbd::Uri>().unwrap_err();
        assert_eq!(Error::from(error).kind(), Kind::Invalid);
    }
}
