//! A session that stores packs: what a backup and a collection share of it, from `Open` to `Close`.
//!
//! The data plane fills packs ([`Plane`]), publishing makes them known ([`crate::publish`]). What the packs are for, and
//! what else the session decides, is its owner's business: [`crate::BackupSession`], [`crate::collect`].
//!
//! Invariant: nothing is published before the session's `Open` is durable or after its end.

use std::sync::{Arc, Weak};

use aquifer_format::id::SessionId;
use aquifer_format::log::{Body, State};

use crate::parts::Parts;
use crate::plane::{BoxFuture, Plane, Progress};
use crate::presence::{Presence, Purpose};
use crate::publish::Publisher;
use crate::repository::Repository;
use crate::{Error, Result};

/// An open session with a data plane.
pub(crate) struct Writing {
    pub(crate) repository: Arc<Repository>,
    pub(crate) plane: Arc<Plane>,
    pub(crate) publisher: tokio::sync::Mutex<Publisher>,
    presence: Presence,
}

impl Writing {
    /// Opens a session (W1): when this returns, its `Open` is durable, and the index knows what was published before.
    /// `allowed` is asked on the very state that the `Open` follows; the packs are made as `parts` says.
    pub(crate) async fn open(
        repository: &Arc<Repository>,
        parts: Parts,
        purpose: Purpose,
        allowed: impl Fn(&State) -> Result<()> + Send + Sync,
    ) -> Result<Arc<Self>> {
        let presence = repository.open_session(purpose, allowed).await?;
        // Others may have published since the index was opened; deduplication is better for knowing.
        let followed = repository.follower.follow(&repository.state()).await;
        let session = Arc::new_cyclic(|weak: &Weak<Writing>| {
            let progress: Weak<dyn Progress> = weak.clone();
            Writing {
                plane: Plane::start(parts, presence.session, progress),
                repository: Arc::clone(repository),
                publisher: tokio::sync::Mutex::default(),
                presence,
            }
        });
        if let Err(error) = followed {
            session.close_after_failure().await;
            return Err(error);
        }
        Ok(session)
    }

    /// The session's id.
    pub(crate) fn id(&self) -> SessionId {
        self.presence.session
    }

    /// An error unless the session is open in `state`.
    pub(crate) fn check_open(&self, state: &State) -> Result<()> {
        if state.sessions().contains_key(&self.id()) {
            Ok(())
        } else {
            Err(Error::Fenced { session: self.id() })
        }
    }

    /// Its `Close` is in the log.
    pub(crate) fn ended(&self) {
        self.presence.end();
    }

    /// Waits, after the session's end, until its heartbeat is silent for good.
    pub(crate) async fn silent(&self) {
        self.presence.silent().await;
    }

    /// See [`crate::BackupSession::checkpoint_progress`].
    pub(crate) async fn checkpoint_progress(&self) -> Result<()> {
        if self.plane.publish_due() { self.publish().await } else { Ok(()) }
    }

    /// Ends the session. What is stored is published, so that the next run finds it.
    pub(crate) async fn close(&self) -> Result<()> {
        if let Err(error) = self.plane.flush().await {
            tracing::debug!(%error, "not everything of the session was stored");
        }
        let mut publisher = self.publisher.lock().await;
        let mut bodies = match self.publication(&mut publisher).await {
            Ok(bodies) => bodies,
            Err(error) => {
                tracing::warn!(%error, "what the session stored is not published");
                Vec::new()
            }
        };
        bodies.push(Body::Close { session: self.id() });
        let close = |state: &State| self.check_open(state).map(|()| bodies.clone());
        match self.repository.log.append(close).await {
            Ok(_) => {
                self.ended();
                self.settle(&mut publisher).await
            }
            // Someone else ended it: there is nothing left to end.
            Err(Error::Fenced { .. }) => {
                self.ended();
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// Closes a session that could not do its work.
    pub(crate) async fn close_after_failure(&self) {
        let session = self.id();
        if let Err(error) = self.close().await {
            tracing::warn!(%session, %error, "a session that failed is left to be fenced");
        }
    }
}

impl Progress for Writing {
    fn checkpoint_progress(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(Writing::checkpoint_progress(self))
    }
}
