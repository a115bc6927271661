//! Sessions that only read: they pin what they read, so that no collection takes it away meanwhile.
//!
//! Invariant: reading itself needs no session. Whoever may not write to the log reads without one, and is told.

use std::sync::Arc;

use aquifer_format::id::SessionId;
use aquifer_format::log::{Body, SessionKind, State};
use uuid::Uuid;

use crate::presence::{Presence, Purpose};
use crate::repository::Repository;
use crate::{Error, Result};

/// An open reading session; dropping it without [`ReadSession::close`] leaves it to be fenced.
pub struct ReadSession {
    repository: Arc<Repository>,
    presence: Option<Presence>,
}

impl Repository {
    /// Opens a session that pins `pins`, and lets the index follow to where they can be read. Where the log store denies writing it returns a session without a pin and
    /// warns.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`] when a pin is not a backup; those of the log and of the index.
    pub async fn begin_read(self: &Arc<Self>, kind: SessionKind, pins: Vec<Uuid>) -> Result<ReadSession> {
        let backup = pins.first().copied();
        let domain = backup
            .and_then(|backup| self.state().backups().get(&backup).map(|found| found.summary.domain.clone()));
        let purpose = Purpose { kind, domain, backup, pins: pins.clone(), alone: None };
        let allowed = |state: &State| match pins.iter().find(|pin| !state.backups().contains_key(pin)) {
            Some(pin) => Err(Error::UnknownBackup { wanted: pin.to_string() }),
            None => Ok(()),
        };
        let presence = match self.open_session(purpose, allowed).await {
            Ok(presence) => Some(presence),
            Err(error @ (Error::Store(aquifer_store::Error::Denied { .. }) | Error::ReadOnly)) => {
                tracing::warn!(%error, "reading without a pin: a collection may remove what is read, if it is forgotten meanwhile");
                None
            }
            Err(other) => return Err(other),
        };
        let session = ReadSession { repository: Arc::clone(self), presence };
        // What is pinned may be newer than the index was.
        if let Err(error) = self.follower.follow(&self.state()).await {
            session.close().await?;
            return Err(error);
        }
        Ok(session)
    }
}

impl Repository {
    /// Ends a session that stored nothing. One that was fenced has ended already, and nothing is lost.
    pub(crate) async fn close_presence(&self, presence: &Presence) -> Result<()> {
        let session = presence.session;
        let close = |state: &State| match state.sessions().contains_key(&session) {
            true => Ok(vec![Body::Close { session }]),
            false => Err(Error::Fenced { session }),
        };
        match self.log.append(close).await {
            Ok(_) | Err(Error::Fenced { .. }) => {
                presence.end();
                Ok(())
            }
            Err(other) => Err(other),
        }
    }
}

impl ReadSession {
    /// The session's id; `None` when it has no pin.
    pub fn id(&self) -> Option<SessionId> {
        self.presence.as_ref().map(|presence| presence.session)
    }

    /// Ends the session.
    ///
    /// # Errors
    /// Those of the log; the session is then fenced by the next one of this host.
    pub async fn close(self) -> Result<()> {
        match &self.presence {
            Some(presence) => self.repository.close_presence(presence).await,
            None => Ok(()),
        }
    }
}
