//! Sessions of other hosts that fell silent: what was seen of their heartbeats, since when, and the fence that follows.
//!
//! A host that died leaves its session open and its domain busy. Nobody can tell it from a slow one for certain, but a
//! heartbeat that stood still for long is reason enough: a wrong fence costs that session its run, never data
//! (docs/FORMAT.md, W4). Not here: sessions of this state folder, whose locks do tell for certain ([`crate::journal`]).
//!
//! Invariant: a session is fenced here only on a state in which it is open, and only after its heartbeat stood still
//! for as long as the caller asks, on a clock of this machine that no one sets.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aquifer_format::hb::open_heartbeat;
use aquifer_format::id::{EntryHash, SessionId};
use aquifer_format::log::{Body, OpenSession, State, entry_hash};
use aquifer_store::GetRange;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::collect::SeenSession;
use crate::log::{Attempt, optional};
use crate::repository::Repository;
use crate::state_dir::StateDir;
use crate::world::BootClock;
use crate::{Error, Result, journal, layout};

/// How long another host's session is silent before it counts as dead, unless the caller knows better. A living one
/// beats every minute.
pub const FENCE_AFTER: Duration = Duration::from_secs(60 * 60);

/// Slots that one fence tries.
const FENCE_TRIES: u32 = 256;

/// What is stored of a session's heartbeat at one look. Only whether it changes counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pulse {
    /// No heartbeat is stored.
    Absent,
    /// The newest beat.
    Beat(u64),
    /// An object that this version cannot open; every beat has other bytes.
    Unreadable(EntryHash),
}

impl Pulse {
    /// What a `Fence` says about it.
    fn beat(self) -> u64 {
        match self {
            Pulse::Beat(beat) => beat,
            Pulse::Absent | Pulse::Unreadable(_) => 0,
        }
    }
}

/// One pulse, and since when it was seen unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Observation {
    pulse: Pulse,
    /// The run of this machine whose clock counts.
    boot: Uuid,
    since_ms: u64,
}

/// A look at a heartbeat, with our clock from both sides of it: whatever delays the look in between cannot make a
/// silence seem longer than it was.
#[derive(Debug, Clone, Copy)]
struct Look {
    before: BootClock,
    pulse: Pulse,
    after: BootClock,
}

impl Look {
    /// What is known now, given what was known before this look.
    fn after(self, earlier: Option<Observation>) -> Observation {
        let boot = Uuid::from_bytes(self.before.boot);
        let holds = |earlier: &Observation| {
            earlier.pulse == self.pulse && earlier.boot == boot && earlier.since_ms <= self.before.ms
        };
        let new = Observation { pulse: self.pulse, boot, since_ms: self.after.ms };
        earlier.filter(holds).unwrap_or(new)
    }
}

/// What was observed so far: in the state folder, so that it outlives the process; without one in memory.
#[derive(Debug)]
pub(crate) struct Observations {
    local: Option<StateDir>,
    memory: Mutex<BTreeMap<SessionId, Observation>>,
}

impl Observations {
    pub(crate) fn new(local: Option<StateDir>) -> Self {
        Self { local, memory: Mutex::default() }
    }

    /// Adds a look at a session and says for how long its pulse has not changed.
    fn add(&self, session: SessionId, look: Look) -> Result<Duration> {
        let earlier = self.earlier(&session);
        let now = look.after(earlier);
        if earlier != Some(now) {
            self.keep(session, now)?;
        }
        Ok(Duration::from_millis(look.before.ms.saturating_sub(now.since_ms)))
    }

    fn earlier(&self, session: &SessionId) -> Option<Observation> {
        let Some(local) = &self.local else {
            return self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(session).copied();
        };
        let path = local.observation(session);
        let read = || -> io::Result<Observation> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        match read() {
            Ok(observation) => Some(observation),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // Observing anew only takes longer.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was seen of a session's heartbeat cannot be read; it is observed anew");
                None
            }
        }
    }

    fn keep(&self, session: SessionId, observation: Observation) -> Result<()> {
        let Some(local) = &self.local else {
            self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(session, observation);
            return Ok(());
        };
        let path = local.observation(&session);
        let json = serde_json::to_vec(&observation).map_err(|error| local.failed(&path, error.into()))?;
        local.replace(&path, &json)
    }

    /// Forgets the sessions that are over.
    pub(crate) fn forget_ended(&self, state: &State) {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|session, _| !state.has_ended(session));
        let Some(local) = &self.local else { return };
        if let Err(error) = remove_ended(local, state) {
            tracing::debug!(%error, "observations of ended sessions were left behind");
        }
    }
}

fn remove_ended(local: &StateDir, state: &State) -> io::Result<()> {
    for entry in fs::read_dir(local.observations())? {
        let entry = entry?;
        let name = entry.file_name();
        // What a crash left of a replacement has the session's name with an extension.
        let name = name.to_string_lossy();
        let session = name.split('.').next().and_then(|name| name.parse::<SessionId>().ok());
        if session.is_some_and(|session| state.has_ended(&session)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What a look at another host's session showed.
#[derive(Debug, Clone, Copy)]
struct Silence {
    /// For how long its pulse has not changed.
    silent: Duration,
    /// The beat that stood still.
    beat: u64,
}

impl Repository {
    /// Clears the way for a backup whose domain another session of `state` backs up: fences that session on exactly
    /// this state if its heartbeat stood still for `fence_after`. After `Ok` the caller replays and looks again:
    /// either the fence landed, or something else took its slot.
    ///
    /// # Errors
    /// [`Error::DomainBusy`] while the session lives or may live; those of the stores and the state folder.
    pub(crate) async fn fence_if_silent(
        &self,
        state: &State,
        domain: &str,
        (session, open): (SessionId, &OpenSession),
        fence_after: Duration,
    ) -> Result<()> {
        let busy = |silent| {
            let (domain, host) = (domain.to_owned(), open.host.clone());
            Error::DomainBusy { domain, session, host, silent, fence_after }
        };
        match self.silence_of(&session).await? {
            None => Err(busy(None)),
            Some(seen) if seen.silent < fence_after => Err(busy(Some(seen.silent))),
            Some(seen) => self.fence(state, (session, open), seen).await.map(drop),
        }
    }

    /// Ends every session but `own` whose heartbeat stood still for `fence_after`, and tells of all that were open.
    ///
    /// # Errors
    /// Those of the log, the stores and the state folder.
    pub(crate) async fn fence_silent(
        &self,
        fence_after: Duration,
        own: SessionId,
    ) -> Result<Vec<SeenSession>> {
        let state = self.log.replay().await?;
        let mut told = Vec::new();
        for (&session, open) in state.sessions().iter().filter(|(session, _)| **session != own) {
            let (silence, fenced) = self.fence_open((session, open), fence_after).await?;
            let silent_s = silence.map(|seen| seen.silent.as_secs());
            let (kind, host) = (open.kind, open.host.clone());
            told.push(SeenSession { session, kind, host, silent_s, fenced });
        }
        Ok(told)
    }

    /// Fences a session that is silent for long enough; a lost slot means that it is looked at again.
    async fn fence_open(
        &self,
        (session, open): (SessionId, &OpenSession),
        fence_after: Duration,
    ) -> Result<(Option<Silence>, bool)> {
        for _ in 0..FENCE_TRIES {
            let state = self.log.replay().await?;
            let silence = self.silence_of(&session).await?;
            let is_open = state.sessions().contains_key(&session);
            let Some(seen) = silence.filter(|seen| is_open && seen.silent >= fence_after) else {
                return Ok((silence, false));
            };
            if let Attempt::Landed(_) = self.fence(&state, (session, open), seen).await? {
                return Ok((silence, true));
            }
        }
        Err(Error::LogBusy { tries: FENCE_TRIES })
    }

    async fn fence(
        &self,
        state: &State,
        (session, open): (SessionId, &OpenSession),
        seen: Silence,
    ) -> Result<Attempt> {
        let fence = Body::Fence { session, seen: seen.beat };
        let attempt = self.log.append_to(state, vec![fence]).await?;
        if let Attempt::Landed(seq) = attempt {
            let (host, domain, silent_s) = (&open.host, open.domain.as_deref(), seen.silent.as_secs());
            tracing::warn!(%session, host, domain, silent_s, seq, "ended another host's session whose heartbeat stood still");
        }
        Ok(attempt)
    }

    /// For how long a session's heartbeat was seen unchanged; `None` when its process lives on this machine.
    async fn silence_of(&self, session: &SessionId) -> Result<Option<Silence>> {
        if self.lives_here(session)? {
            return Ok(None);
        }
        let look = self.look_at(session).await?;
        let silent = self.observations.add(*session, look)?;
        Ok(Some(Silence { silent, beat: look.pulse.beat() }))
    }

    /// True when the session is of this repository handle or of this state folder, and its process lives.
    fn lives_here(&self, session: &SessionId) -> Result<bool> {
        if self.living.has(session) {
            return Ok(true);
        }
        self.local.as_ref().map_or(Ok(false), |local| journal::is_alive(local, session))
    }

    async fn look_at(&self, session: &SessionId) -> Result<Look> {
        let world = self.world();
        let before = world.boot_clock();
        let key = layout::heartbeat(session);
        let object = optional(self.stores.packs.get(&key, GetRange::Whole).await)?;
        let after = world.boot_clock();
        let pulse = match object {
            None => Pulse::Absent,
            Some(object) => match open_heartbeat(self.ring(), *session, &object) {
                Ok(heartbeat) => Pulse::Beat(heartbeat.beat),
                Err(error) => {
                    tracing::warn!(%key, %error, "a heartbeat does not open; only whether it changes is observed");
                    Pulse::Unreadable(entry_hash(&object))
                }
            },
        };
        Ok(Look { before, pulse, after })
    }
}
