//! Being there: the `Open` of a session, its journal and its heartbeat.
//!
//! A session is open from its `Open` in the log until a `Close` or `Fence`. The heartbeat is advisory: others may fence
//! a session that seems dead, and then it must not commit, which the log itself enforces.
//!
//! Invariant: no [`Presence`] exists before its `Open` is durable.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aquifer_format::hb::{Heartbeat, seal_heartbeat};
use aquifer_format::id::SessionId;
use aquifer_format::keys::KeyRing;
use aquifer_format::log::{Body, OpenSession, SessionKind, State};
use aquifer_store::{Bytes, ObjectStore};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::journal::{self, Journal};
use crate::log::Attempt;
use crate::repository::Repository;
use crate::world::{World, random};
use crate::{Error, Result, layout};

/// Time between two beats; others wait for an hour without one ([`crate::FENCE_AFTER`]).
const BEAT: Duration = Duration::from_secs(60);

/// Slots that an `Open` tries before it says that the log is too busy.
const OPEN_TRIES: u32 = 256;

/// What a session says of itself in its `Open`.
#[derive(Debug, Clone)]
pub(crate) struct Purpose {
    pub(crate) kind: SessionKind,
    pub(crate) domain: Option<String>,
    pub(crate) backup: Option<Uuid>,
    pub(crate) pins: Vec<Uuid>,
    /// Set when no other session may back the domain up meanwhile: after which silence one counts as dead.
    pub(crate) alone: Option<Duration>,
}

impl Purpose {
    /// The session that is in the way, and the domain for which it is.
    fn rival<'a>(&'a self, state: &'a State) -> Option<(&'a str, SessionId, &'a OpenSession, Duration)> {
        let (domain, fence_after) = (self.domain.as_deref()?, self.alone?);
        let same =
            |open: &OpenSession| open.kind == SessionKind::Backup && open.domain.as_deref() == Some(domain);
        let (session, open) = state.sessions().iter().find(|(_, open)| same(open))?;
        Some((domain, *session, open, fence_after))
    }
}

/// The sessions of one repository handle that live, as it knows without asking anybody.
#[derive(Debug, Clone, Default)]
pub(crate) struct Living(Arc<Mutex<BTreeSet<SessionId>>>);

impl Living {
    /// True while the session lives.
    pub(crate) fn has(&self, session: &SessionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(session)
    }

    /// The session lives as long as what this returns.
    fn enter(&self, session: SessionId) -> Alive {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(session);
        Alive { living: self.clone(), session }
    }
}

/// A session's place among the living.
#[derive(Debug)]
struct Alive {
    living: Living,
    session: SessionId,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.living.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.session);
    }
}

/// An open session.
#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) session: SessionId,
    journal: Mutex<Option<Journal>>,
    _alive: Alive,
    heartbeat: Pulse,
}

/// The running heartbeat. A beat that has begun is always ended, so that none is stored after [`Pulse::ended`].
#[derive(Debug)]
struct Pulse {
    stop: Arc<Notify>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Pulse {
    fn stop(&self) {
        self.stop.notify_one();
    }

    async fn ended(&self) {
        if let Some(task) = self.task.lock().await.take() {
            // It cannot fail but by a panic, which has been reported.
            let _ = task.await;
        }
    }
}

impl Presence {
    /// The session is over: stops its heartbeat and removes its journal.
    pub(crate) fn end(&self) {
        self.heartbeat.stop();
        if let Some(journal) = self.journal.lock().unwrap_or_else(PoisonError::into_inner).take() {
            journal.end();
        }
    }
}

impl Presence {
    /// Waits, after [`Presence::end`], until the heartbeat is silent for good.
    pub(crate) async fn silent(&self) {
        self.heartbeat.ended().await;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // Without an end the journal stays, unlocked: the next process fences the session.
        self.heartbeat.stop();
    }
}

impl Repository {
    /// Opens a session (W1): fences this host's dead ones first and a rival that seems dead, then appends `Open`.
    /// `allowed` is asked on the very state that the `Open` follows.
    pub(crate) async fn open_session(
        &self,
        purpose: Purpose,
        allowed: impl Fn(&State) -> Result<()> + Send + Sync,
    ) -> Result<Presence> {
        self.fence_own_dead().await?;
        self.observations.forget_ended(&self.log.state());
        for _ in 0..OPEN_TRIES {
            let state = self.log.replay().await?;
            allowed(&state)?;
            if let Some((domain, session, open, fence_after)) = purpose.rival(&state) {
                self.fence_if_silent(&state, domain, (session, open), fence_after).await?;
                continue;
            }
            let world = self.parts.world.as_ref();
            let session = SessionId::new(random(world), state.seq() + 1);
            let begin = |local| Journal::begin(local, &session, &self.host, purpose.domain.as_deref());
            let journal = self.local.as_ref().map(begin).transpose()?;
            let alive = self.living.enter(session);
            let Purpose { kind, domain, backup, pins, alone: _ } = purpose.clone();
            let open = Body::Open { session, kind, domain, backup, pins, host: self.host.clone() };
            match self.log.append_to(&state, vec![open]).await {
                Ok(Attempt::Landed(_)) => {
                    let heartbeat = self.start_heartbeat(session);
                    let journal = Mutex::new(journal);
                    return Ok(Presence { session, journal, _alive: alive, heartbeat });
                }
                Ok(Attempt::Lost) => {
                    if let Some(journal) = journal {
                        journal.end();
                    }
                }
                // The entry may be in the slot: the journal stays, so that the session is fenced when it is.
                Err(error) => return Err(error),
            }
        }
        Err(Error::LogBusy { tries: OPEN_TRIES })
    }

    /// Ends the sessions whose processes on this host are gone.
    pub(crate) async fn fence_own_dead(&self) -> Result<()> {
        let Some(local) = &self.local else { return Ok(()) };
        let state = self.log.replay().await?;
        let dead = journal::dead_sessions(local, &state)?;
        if dead.is_empty() {
            return Ok(());
        }
        let sessions: Vec<_> = dead.iter().map(|dead| dead.session).collect();
        tracing::warn!(?sessions, "ending sessions of this host whose processes are gone");
        let fence = |state: &State| {
            let still_open = sessions.iter().filter(|session| state.sessions().contains_key(session));
            Ok(still_open.map(|session| Body::Fence { session: *session, seen: 0 }).collect())
        };
        self.log.append(fence).await?;
        dead.into_iter().for_each(journal::Dead::settle);
        Ok(())
    }

    fn start_heartbeat(&self, session: SessionId) -> Pulse {
        let stop = Arc::new(Notify::new());
        let beats = Beats {
            store: Arc::clone(&self.stores.packs),
            ring: self.parts.ring.clone(),
            world: Arc::clone(&self.parts.world),
            host: self.host.clone(),
            session,
            stop: Arc::clone(&stop),
        };
        Pulse { stop, task: tokio::sync::Mutex::new(Some(tokio::spawn(beats.run()))) }
    }
}

struct Beats {
    store: Arc<dyn ObjectStore>,
    ring: KeyRing,
    world: Arc<dyn World>,
    host: String,
    session: SessionId,
    stop: Arc<Notify>,
}

impl Beats {
    async fn run(self) {
        let mut interval = tokio::time::interval(BEAT);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beat = 0;
        loop {
            tokio::select! {
                biased;
                () = self.stop.notified() => return,
                _ = interval.tick() => {}
            }
            beat += 1;
            // A missed beat risks a fence after an hour of them, and that costs a resumed backup, no data.
            if let Err(error) = self.beat(beat).await {
                tracing::warn!(session = %self.session, beat, %error, "no heartbeat was stored");
            }
        }
    }

    async fn beat(&self, beat: u64) -> Result<()> {
        let body = Heartbeat {
            session: self.session,
            beat,
            wall_ms: self.world.wall_ms(),
            host: self.host.clone(),
            note: String::new(),
        };
        let object = seal_heartbeat(&self.ring, random(self.world.as_ref()), &body)?;
        Ok(self.store.put(&layout::heartbeat(&self.session), Bytes::from(object)).await?)
    }
}
