//! What the engine, the repository and the journal report, in the API's words.
//!
//! Invariant: nothing is lost on the way: what the API has no word of its own for goes through with kind, message and
//! way out.

use aquifer_api::{Error, Kind};
use aquifer_engine::repository::{Error as RepositoryError, RemovalError};
use aquifer_engine::{ParentMismatch, qemu};

use crate::journal::JournalError;

/// An error of the engine, met while `domain` was worked on, in the API's words.
pub fn to_api(error: &aquifer_engine::Error, domain: &str) -> Error {
    let known = error.cause().and_then(|cause| {
        let of_repository = cause.downcast_ref::<RepositoryError>().and_then(of_repository);
        let of_qemu = || cause.downcast_ref::<qemu::Error>().and_then(|error| of_qemu(error, domain));
        of_repository.or_else(of_qemu).or_else(|| cause.downcast_ref::<ParentMismatch>().map(of_parent))
    });
    known.unwrap_or_else(|| match error.kind() {
        aquifer_engine::Kind::Cancelled => Error::Cancelled,
        kind => Error::Other {
            kind: api_kind(kind),
            message: error.message().to_owned(),
            hint: error.hint_text().map(str::to_owned),
        },
    })
}

/// An error of the repository, in the API's words.
pub(crate) fn repository(error: RepositoryError) -> Error {
    to_api(&aquifer_engine::Error::from(error), "")
}

/// An error of the journal, in the API's words.
pub(crate) fn journal(error: JournalError) -> Error {
    match error {
        JournalError::Busy { domain, job, state } => {
            Error::JobBusy { domain, job: format!("job {job} is {state}") }
        }
        JournalError::Exists(job) => Error::BackupExists(job),
        JournalError::File { .. } => {
            let hint = Some("the journal lies under --state-dir".to_owned());
            Error::Other { kind: Kind::Unavailable, message: error.to_string(), hint }
        }
        JournalError::Step(_) => Error::Internal(error.to_string()),
    }
}

fn of_parent(error: &ParentMismatch) -> Error {
    let ParentMismatch { disk, parent, reason } = error.clone();
    Error::CheckpointInconsistent { disk, parent, reason }
}

fn of_repository(error: &RepositoryError) -> Option<Error> {
    Some(match error {
        RepositoryError::DomainBusy { domain, .. } => {
            Error::JobBusy { domain: domain.clone(), job: error.to_string() }
        }
        RepositoryError::BackupExists { backup } => Error::BackupExists(*backup),
        RepositoryError::WrongSecret { .. } => Error::KeyMissing("the repository".to_owned()),
        RepositoryError::Removal(RemovalError::Protected { backup }) => Error::Protected(*backup),
        RepositoryError::Removal(removal @ RemovalError::Busy { backup, .. }) => {
            Error::Busy { backup: *backup, reader: removal.to_string() }
        }
        RepositoryError::Removal(RemovalError::HasBackups { domain, count }) => {
            Error::HasBackups { domain: domain.clone(), count: *count }
        }
        _ => return None,
    })
}

fn of_qemu(error: &qemu::Error, domain: &str) -> Option<Error> {
    let domain = domain.to_owned();
    Some(match error {
        qemu::Error::NoSuchDisk { name, existing } => {
            Error::NoDisk { owner: format!("domain {domain}"), disk: name.clone(), disks: existing.clone() }
        }
        qemu::Error::ForeignJob { .. }
        | qemu::Error::ForeignServer { .. }
        | qemu::Error::OtherRepository { .. }
        | qemu::Error::MonitorTaken { .. } => Error::JobBusy { domain, job: error.to_string() },
        qemu::Error::NoAgent
        | qemu::Error::NoSuchAgent { .. }
        | qemu::Error::AgentSilent { .. }
        | qemu::Error::AgentRefused { .. }
        | qemu::Error::AgentBroken { .. }
        | qemu::Error::ThawedEarly { .. } => Error::AgentUnresponsive { domain, reason: error.to_string() },
        _ => return None,
    })
}

fn api_kind(kind: aquifer_engine::Kind) -> Kind {
    use aquifer_engine::Kind as Engine;
    match kind {
        Engine::Invalid => Kind::Invalid,
        Engine::NotFound => Kind::NotFound,
        Engine::Conflict => Kind::Conflict,
        Engine::Denied => Kind::Denied,
        Engine::Unavailable => Kind::Unavailable,
        Engine::Corrupt => Kind::Corrupt,
        Engine::Unsupported => Kind::Unsupported,
        Engine::Cancelled => Kind::Cancelled,
        Engine::Internal => Kind::Internal,
    }
}

/// An error of the API, as the engine's callers know errors; its code stands in the context.
pub fn from_api(error: &Error) -> aquifer_engine::Error {
    use aquifer_engine::Kind as Engine;
    let kind = match error.kind() {
        Kind::Invalid => Engine::Invalid,
        Kind::NotFound => Engine::NotFound,
        Kind::Conflict => Engine::Conflict,
        Kind::Denied => Engine::Denied,
        Kind::Unavailable => Engine::Unavailable,
        Kind::Corrupt => Engine::Corrupt,
        Kind::Unsupported => Engine::Unsupported,
        Kind::Cancelled => Engine::Cancelled,
        Kind::Internal => Engine::Internal,
    };
    let told = aquifer_engine::Error::new(kind, error.to_string()).with("code", error.code());
    match error.hint() {
        Some(hint) => told.hint(hint),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_the_api_has_a_word_for_is_told_by_its_code() {
        let taken = RepositoryError::BackupExists { backup: Uuid::nil() };
        assert_eq!(repository(taken).code(), "BACKUP_EXISTS");
        let kept = RepositoryError::Removal(RemovalError::Protected { backup: Uuid::nil() });
        assert_eq!(repository(kept).code(), "PROTECTED");
        let disk = qemu::Error::NoSuchDisk { name: "vdx".into(), existing: vec!["vda".into()] };
        let told = to_api(&aquifer_engine::Error::from(disk), "web01");
        assert_eq!(told.to_string(), "domain web01 has no disk `vdx`; it has vda");
    }

    #[test]
    fn what_it_has_no_word_for_keeps_kind_message_and_way_out() {
        let error =
            aquifer_engine::Error::new(aquifer_engine::Kind::Unavailable, "the store is slow").hint("wait");
        let told = to_api(&error, "web01");
        assert_eq!((told.code(), told.kind()), ("UNAVAILABLE", Kind::Unavailable));
        let back = from_api(&told);
        assert_eq!(
            (back.kind(), back.message(), back.hint_text()),
            (error.kind(), error.message(), Some("wait"))
        );
    }
}
