//! Journals of this host's sessions: one locked file a session, so that the next process knows which sessions of this
//! state folder are dead for certain.
//!
//! The lock is the proof: the kernel releases it when the process ends, however it ends, and on no other occasion.
//! What the file says is for people.
//!
//! Invariant: the file exists, locked, before the session's `Open` can be in the log.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::PathBuf;

use aquifer_format::id::SessionId;
use aquifer_format::log::State;
use serde::Serialize;

use crate::Result;
use crate::state_dir::StateDir;

/// What a journal tells people.
#[derive(Debug, Serialize)]
struct Note<'a> {
    process: u32,
    host: &'a str,
    domain: Option<&'a str>,
}

/// The journal of a live session of this process.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Locked as long as the session lives.
    _file: File,
}

impl Journal {
    /// Begins the journal of `session`.
    pub(crate) fn begin(
        local: &StateDir,
        session: &SessionId,
        host: &str,
        domain: Option<&str>,
    ) -> Result<Self> {
        let path = local.sessions().join(session.to_string());
        // Locked under another name first, so that nobody ever sees it unlocked under its own.
        let temporary = local.sessions().join(format!("new-{session}"));
        let begin = || -> io::Result<File> {
            let mut file = File::create_new(&temporary)?;
            file.lock()?;
            let note = Note { process: std::process::id(), host, domain };
            file.write_all(&serde_json::to_vec(&note)?)?;
            fs::rename(&temporary, &path)?;
            Ok(file)
        };
        match begin() {
            Ok(file) => Ok(Self { path, _file: file }),
            Err(source) => Err(local.failed(&path, source)),
        }
    }

    /// Ends the journal: the session is over, or its `Open` never came to be.
    pub(crate) fn end(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a session's journal was left behind");
        }
    }
}

/// A session of this state folder whose process is gone.
#[derive(Debug)]
pub(crate) struct Dead {
    pub(crate) session: SessionId,
    journal: Journal,
}

impl Dead {
    /// Removes the journal, once the log knows that the session is over.
    pub(crate) fn settle(self) {
        self.journal.end();
    }
}

/// True when `session` is of this state folder and its process lives.
pub(crate) fn is_alive(local: &StateDir, session: &SessionId) -> Result<bool> {
    let path = local.sessions().join(session.to_string());
    let locked = match File::open(&path) {
        Ok(file) => file.try_lock(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => Err(TryLockError::Error(error)),
    };
    match locked {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(local.failed(&path, source)),
    }
}

/// The sessions of this state folder that are open in `state` although their processes are gone. Journals of sessions
/// that have ended are removed on the way.
pub(crate) fn dead_sessions(local: &StateDir, state: &State) -> Result<Vec<Dead>> {
    let folder = local.sessions();
    let failed = |source| local.failed(&folder, source);
    let mut dead = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(session) = entry.file_name().to_string_lossy().parse::<SessionId>() else { continue };
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(source)) => return Err(local.failed(&path, source)),
        }
        let journal = Journal { path, _file: file };
        if state.sessions().contains_key(&session) {
            dead.push(Dead { session, journal });
        } else if state.has_ended(&session) {
            journal.end();
        }
        // Else its slot is still empty: an `Open` on its way could fill it yet.
    }
    Ok(dead)
}
