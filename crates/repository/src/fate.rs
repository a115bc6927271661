//! What became of a backup that somebody began: the question behind every dirty bitmap that is found with its uuid.
//!
//! Not here: the backups themselves ([`crate::BackupInfo`]).
//!
//! Invariant: the answer is the log's and nothing else's; it is as new as the state that was last replayed.

use aquifer_format::id::SessionId;
use aquifer_format::log::SessionKind;
use uuid::Uuid;

use crate::repository::Repository;

/// What the log says of a backup's uuid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It exists.
    Committed {
        /// The log entry of its `Commit`.
        seq: u64,
        /// True while it is deleted and can be brought back.
        forgotten: bool,
        /// True when somebody else read it and has its data.
        external: bool,
    },
    /// A session is making it, or died and was not ended yet.
    Open {
        /// The session.
        session: SessionId,
        /// Where it runs.
        host: String,
    },
    /// It does not exist and nobody is making it: never begun here, ended without a commit, or dropped.
    Absent,
}

impl Repository {
    /// What became of `backup`, by the state as last replayed ([`Repository::refresh`]).
    pub fn fate(&self, backup: Uuid) -> Fate {
        let state = self.state();
        if let Some(found) = state.backups().get(&backup) {
            let (forgotten, external) = (found.forgotten.is_some(), found.summary.external);
            return Fate::Committed { seq: found.seq, forgotten, external };
        }
        // Sessions that read a backup name it too.
        let making = state
            .sessions()
            .iter()
            .find(|(_, open)| open.kind == SessionKind::Backup && open.backup == Some(backup));
        match making {
            Some((session, open)) => Fate::Open { session: *session, host: open.host.clone() },
            None => Fate::Absent,
        }
    }
}
