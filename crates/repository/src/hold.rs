//! Holding a domain: a backup session without data, for as long as somebody else reads the domain's exports.
//!
//! It stores nothing and commits nothing; it only keeps every other backup of the domain away, on all hosts, and keeps
//! the uuid of the backup that may come of it. Whoever finishes that backup ends the hold and begins a session of its own.
//!
//! Invariant: the hold is open in the log before the hypervisor is touched.

use std::sync::Arc;
use std::time::Duration;

use aquifer_format::id::SessionId;
use aquifer_format::log::{SessionKind, State};
use uuid::Uuid;

use crate::presence::{Presence, Purpose};
use crate::repository::Repository;
use crate::{Error, Result};

/// A domain that is held. Dropping it without [`DomainHold::release`] leaves it to be fenced, by this host at once.
#[derive(Debug)]
pub struct DomainHold {
    repository: Arc<Repository>,
    presence: Presence,
}

impl Repository {
    /// Holds `domain` for the backup of this uuid. Others' silent sessions of it are ended as [`Repository::begin_backup`]
    /// ends them.
    ///
    /// # Errors
    /// [`Error::BackupExists`]; [`Error::DomainBusy`]; those of the log.
    pub async fn hold_domain(
        self: &Arc<Self>,
        domain: &str,
        backup: Uuid,
        fence_after: Duration,
    ) -> Result<DomainHold> {
        let purpose = Purpose {
            kind: SessionKind::Backup,
            domain: Some(domain.to_owned()),
            backup: Some(backup),
            pins: Vec::new(),
            alone: Some(fence_after),
        };
        let free = |state: &State| match state.backups().contains_key(&backup) {
            true => Err(Error::BackupExists { backup }),
            false => Ok(()),
        };
        let presence = self.open_session(purpose, free).await?;
        Ok(DomainHold { repository: Arc::clone(self), presence })
    }
}

impl DomainHold {
    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.presence.session
    }

    /// Lets the domain go.
    ///
    /// # Errors
    /// Those of the log; the session is then fenced by the next one of this host.
    pub async fn release(self) -> Result<()> {
        self.repository.close_presence(&self.presence).await
    }
}
