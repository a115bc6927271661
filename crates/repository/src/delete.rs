//! Deleting backups, bringing them back, protecting them: marks in the log, and nothing else.
//!
//! A deleted backup keeps all its data for a delay, in which it can be brought back; after that a collection drops it.
//! Its children need nothing of it: parents are provenance, every backup is complete.
//! Not here: which backups a policy picks, and the QEMU bitmap that names a deleted backup, which the next backup of
//! the disk finds to be without one.
//!
//! Invariant: of several backups all are marked, by one entry, or none; and each is judged on the very state that the
//! entry follows.

use std::collections::BTreeSet;
use std::time::Duration;

use aquifer_format::id::SessionId;
use aquifer_format::log::{Body, OpenSession, SessionKind, State};
use uuid::Uuid;

use crate::repository::Repository;
use crate::{Error, RemovalError, Result};

/// How long a deleted backup can be brought back, unless the caller says otherwise.
pub const FORGET_DELAY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The last millisecond of the year 9999: beyond it no time can be written down.
const LAST_MS: u64 = 253_402_300_799_999;

/// Which backups go along with the ones that are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteScope {
    /// None.
    Only,
    /// All that were read against them, directly or over others.
    Descendants,
    /// All of their domains.
    Domains,
}

/// What became of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Marked now, oldest first.
    pub deleted: Vec<Uuid>,
    /// Marked before; their delay is what it was.
    pub already: Vec<Uuid>,
    /// No collection drops them before this wall-clock time, in milliseconds since 1970 UTC.
    pub not_before_ms: u64,
}

/// What became of bringing backups back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeleted {
    /// Listed again, oldest first.
    pub restored: Vec<Uuid>,
    /// Were not deleted.
    pub already: Vec<Uuid>,
}

impl Repository {
    /// Deletes backups: from now on they are not listed, and after `delay` a collection may drop them. Those that
    /// are deleted already stay as they are.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`]; [`RemovalError::Busy`] while a session reads one of them, [`RemovalError::Protected`]; those of the log. Nothing is
    /// deleted then.
    pub async fn delete(&self, named: &[Uuid], scope: DeleteScope, delay: Duration) -> Result<Deleted> {
        // A reader of this host that was killed holds nothing any more.
        self.fence_own_dead().await?;
        let not_before_ms = forget_time(self.world().wall_ms(), delay);
        let mut done = Deleted { deleted: Vec::new(), already: Vec::new(), not_before_ms };
        let forget = |state: &State| {
            let (already, backups) = oldest_first(state, &chosen(state, named, scope)?)
                .into_iter()
                .partition::<Vec<_>, _>(|backup| is_forgotten(state, backup));
            backups.iter().try_for_each(|backup| refuse(state, backup))?;
            (done.already, done.deleted) = (already, backups.clone());
            Ok(body(backups, |backups| Body::Forget { backups, not_before_ms }))
        };
        self.log.append_if(forget).await?;
        Ok(done)
    }

    /// Brings deleted backups back, if no collection dropped them yet.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`], also for one that was dropped; those of the log. Nothing is brought back then.
    pub async fn undelete(&self, named: &[Uuid]) -> Result<Undeleted> {
        let mut done = Undeleted { restored: Vec::new(), already: Vec::new() };
        let unforget = |state: &State| {
            let (backups, already) = oldest_first(state, &chosen(state, named, DeleteScope::Only)?)
                .into_iter()
                .partition::<Vec<_>, _>(|backup| is_forgotten(state, backup));
            (done.already, done.restored) = (already, backups.clone());
            Ok(body(backups, |backups| Body::Unforget { backups }))
        };
        self.log.append_if(unforget).await?;
        Ok(done)
    }

    /// Protects backups from deletion and pruning, or (`on` false) not any more.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`], [`RemovalError::Deleted`]; those of the log. Nothing is changed then.
    pub async fn protect(&self, named: &[Uuid], on: bool) -> Result<Protected> {
        let mut done = Protected { changed: Vec::new(), already: Vec::new() };
        let protect = |state: &State| {
            let backups = oldest_first(state, &chosen(state, named, DeleteScope::Only)?);
            if let Some(backup) = backups.iter().find(|backup| is_forgotten(state, backup)) {
                return Err(RemovalError::Deleted { backup: *backup }.into());
            }
            let is_so = |backup: &Uuid| is_protected(state, backup) == on;
            let (already, backups) = backups.into_iter().partition::<Vec<_>, _>(is_so);
            (done.already, done.changed) = (already, backups.clone());
            Ok(body(backups, |backups| Body::Protect { backups, on }))
        };
        self.log.append_if(protect).await?;
        Ok(done)
    }
}

/// What became of protecting backups, or of ending that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// Changed now, oldest first.
    pub changed: Vec<Uuid>,
    /// Were as they should be.
    pub already: Vec<Uuid>,
}

/// The wall-clock time until which what is deleted now can be brought back.
pub(crate) fn forget_time(now_ms: u64, delay: Duration) -> u64 {
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    now_ms.saturating_add(delay_ms).min(LAST_MS)
}

/// The decision about `backups`; none when there are none.
fn body(backups: Vec<Uuid>, decision: impl Fn(Vec<Uuid>) -> Body) -> Option<Vec<Body>> {
    (!backups.is_empty()).then(|| vec![decision(backups)])
}

/// The named backups and those that go along.
fn chosen(state: &State, named: &[Uuid], scope: DeleteScope) -> Result<BTreeSet<Uuid>> {
    let mut chosen = BTreeSet::new();
    for backup in named {
        let found = state.backups().get(backup);
        let found = found.ok_or_else(|| Error::UnknownBackup { wanted: backup.to_string() })?;
        chosen.insert(*backup);
        match scope {
            DeleteScope::Only => {}
            DeleteScope::Descendants => add_descendants(state, *backup, &mut chosen),
            DeleteScope::Domains => {
                let summaries = state.backups().values().map(|other| &other.summary);
                let same = summaries.filter(|other| other.domain == found.summary.domain);
                chosen.extend(same.map(|other| other.backup));
            }
        }
    }
    Ok(chosen)
}

fn add_descendants(state: &State, backup: Uuid, chosen: &mut BTreeSet<Uuid>) {
    let mut parents = vec![backup];
    while let Some(parent) = parents.pop() {
        let children = state.backups().values().filter(|child| child.summary.parent == Some(parent));
        // What was met before is not followed again, whatever the records say.
        parents.extend(children.map(|child| child.summary.backup).filter(|child| chosen.insert(*child)));
    }
}

/// In the order of the log.
pub(crate) fn oldest_first(state: &State, backups: &BTreeSet<Uuid>) -> Vec<Uuid> {
    let mut ordered: Vec<Uuid> = backups.iter().copied().collect();
    ordered.sort_by_key(|backup| state.backups().get(backup).map(|found| found.seq));
    ordered
}

fn is_forgotten(state: &State, backup: &Uuid) -> bool {
    state.backups().get(backup).is_some_and(|found| found.forgotten.is_some())
}

fn is_protected(state: &State, backup: &Uuid) -> bool {
    state.backups().get(backup).is_some_and(|found| found.protected)
}

/// A session that reads `backup`. One that only builds on it is not in the way: its pin keeps the data.
pub(crate) fn reader_of<'a>(state: &'a State, backup: &Uuid) -> Option<(&'a SessionId, &'a OpenSession)> {
    let reads = |open: &OpenSession| match open.kind {
        SessionKind::Restore | SessionKind::Verify | SessionKind::Export | SessionKind::Replicate => true,
        SessionKind::Backup | SessionKind::Collect => false,
    };
    state.sessions().iter().find(|(_, open)| reads(open) && open.pins.contains(backup))
}

/// An error when a backup must stay.
pub(crate) fn refuse(state: &State, backup: &Uuid) -> Result<()> {
    if is_protected(state, backup) {
        return Err(RemovalError::Protected { backup: *backup }.into());
    }
    match reader_of(state, backup) {
        None => Ok(()),
        Some((session, open)) => {
            let (backup, session, kind, host) = (*backup, *session, open.kind, open.host.clone());
            Err(RemovalError::Busy { backup, session, kind, host }.into())
        }
    }
}
