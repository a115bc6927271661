//! Heartbeats: the one overwritten object of a session, read only to decide that nobody writes it any more.
//!
//! Advisory: no decision about data depends on it, so losing or forging one costs at most a resumed backup.
//! docs/FORMAT.md, "hb/".

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::SessionId;
use crate::keys::KeyRing;
use crate::sealed::{self, Place};

/// What a session says about itself now and then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// The session.
    pub session: SessionId,
    /// Grows with each beat; a janitor looks only at whether it changes.
    pub beat: u64,
    /// The writer's wall clock in milliseconds since 1970 UTC, for people.
    pub wall_ms: u64,
    /// Where it runs, for people.
    pub host: String,
    /// What it does, for people.
    pub note: String,
}

/// Seals a heartbeat. `salt` is fresh and random for every beat.
///
/// # Errors
/// [`Error::Limit`] when its texts are too long.
pub fn seal_heartbeat(ring: &KeyRing, salt: [u8; 32], beat: &Heartbeat) -> Result<Vec<u8>> {
    let plain = serde_json::to_vec(beat).map_err(|source| Error::Json { object: "heartbeat", source })?;
    sealed::seal(ring, Place::Heartbeat(beat.session), salt, &plain)
}

/// Opens the heartbeat of a session.
///
/// # Errors
/// [`Error::Authentication`], [`Error::Origin`] or another kind of corruption.
pub fn open_heartbeat(ring: &KeyRing, session: SessionId, bytes: &[u8]) -> Result<Heartbeat> {
    let plain = sealed::open(ring, Place::Heartbeat(session), bytes)?;
    let beat: Heartbeat =
        serde_json::from_slice(&plain).map_err(|source| Error::Json { object: "heartbeat", source })?;
    if beat.session == session {
        Ok(beat)
    } else {
        Err(Error::Origin {
            object: "heartbeat",
            expected: session.to_string(),
            found: beat.session.to_string(),
        })
    }
}
