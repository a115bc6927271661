//! What backups there are, as the log says it, and their records.
//!
//! Invariant: a backup is listed if and only if its `Commit` is in the log and no collection dropped it.

use aquifer_format::id::{ChunkId, SessionId};
use aquifer_format::log::{Backup, Forgotten, State};
use aquifer_format::pack::BlobKind;
use aquifer_format::record::{CommitSummary, Record};
use uuid::Uuid;

use crate::repository::Repository;
use crate::{Error, Result};

/// The fewest hex digits that name a backup.
const PREFIX_DIGITS: usize = 8;

/// A backup as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupInfo {
    /// What the `Commit` says.
    pub summary: CommitSummary,
    /// The nearest of its ancestors that is still listed. A deleted parent's own parent takes its place; of one that
    /// was dropped nothing is known any more.
    pub parent: Option<Uuid>,
    /// The log entry of the `Commit`.
    pub seq: u64,
    /// The session that made it.
    pub session: SessionId,
    /// The id of its record.
    pub record: ChunkId,
    /// Set while it is deleted and can be brought back.
    pub forgotten: Option<Forgotten>,
    /// True while it cannot be deleted.
    pub protected: bool,
}

impl BackupInfo {
    fn of(state: &State, backup: &Backup) -> Self {
        Self {
            summary: backup.summary.clone(),
            parent: listed_parent(state, backup),
            seq: backup.seq,
            session: backup.session,
            record: backup.record,
            forgotten: backup.forgotten,
            protected: backup.protected,
        }
    }
}

/// The nearest ancestor that is not deleted.
fn listed_parent(state: &State, backup: &Backup) -> Option<Uuid> {
    let mut parent = backup.summary.parent;
    // A chain is no longer than there are backups, whatever the summaries say.
    for _ in 0..state.backups().len() {
        let found = state.backups().get(&parent?)?;
        if found.forgotten.is_none() {
            return parent;
        }
        parent = found.summary.parent;
    }
    None
}

impl Repository {
    /// Every backup, deleted ones that can be brought back included, newest first: in the reverse order of the log,
    /// whatever their clocks said.
    pub fn backups(&self) -> Vec<BackupInfo> {
        let state = self.state();
        let mut backups: Vec<_> =
            state.backups().values().map(|backup| BackupInfo::of(&state, backup)).collect();
        backups.sort_by_key(|backup| (std::cmp::Reverse(backup.seq), backup.summary.backup));
        backups
    }

    /// One backup.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`].
    pub fn backup(&self, backup: Uuid) -> Result<BackupInfo> {
        let state = self.state();
        let found = state.backups().get(&backup).map(|found| BackupInfo::of(&state, found));
        found.ok_or_else(|| Error::UnknownBackup { wanted: backup.to_string() })
    }

    /// Finds the backup that a person means: a whole uuid, eight or more of its first hex digits, or `latest:DOMAIN`,
    /// the newest of which the data is here.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`], [`Error::AmbiguousBackup`], [`Error::NoBackupOfDomain`].
    pub fn resolve(&self, wanted: &str) -> Result<Uuid> {
        if let Some(domain) = wanted.strip_prefix("latest:") {
            let mut backups = self.backups().into_iter();
            let holds = |info: &BackupInfo| info.forgotten.is_none() && !info.summary.external;
            let newest = backups.find(|info| info.summary.domain == domain && holds(info));
            return match newest {
                Some(info) => Ok(info.summary.backup),
                None => Err(Error::NoBackupOfDomain { domain: domain.to_owned() }),
            };
        }
        let unknown = || Error::UnknownBackup { wanted: wanted.chars().take(80).collect() };
        let prefix = wanted.replace('-', "").to_ascii_lowercase();
        if prefix.len() < PREFIX_DIGITS || !prefix.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let state = self.state();
        let fits = |uuid: &&Uuid| uuid.simple().to_string().starts_with(&prefix);
        let mut matches = state.backups().keys().filter(fits);
        match (matches.next(), matches.count()) {
            (Some(uuid), 0) => Ok(*uuid),
            (Some(_), more) => {
                Err(Error::AmbiguousBackup { prefix: wanted.chars().take(80).collect(), matches: more + 1 })
            }
            (None, _) => Err(unknown()),
        }
    }

    /// Listed backups whose parent `backup` is, oldest first: those that were read against it, and those that took it
    /// over from a deleted one. None of them needs it to be restored.
    pub fn children(&self, backup: Uuid) -> Vec<Uuid> {
        let mut children = self.backups();
        children.retain(|info| info.forgotten.is_none() && info.parent == Some(backup));
        children.iter().rev().map(|info| info.summary.backup).collect()
    }

    /// The whole description of a backup.
    ///
    /// # Errors
    /// [`Error::UnknownBackup`]; [`Error::Missing`], [`Error::Damaged`] and others when the record cannot be read.
    pub async fn record(&self, backup: Uuid) -> Result<Record> {
        let info = self.backup(backup)?;
        let plain = self.parts.read_blob(BlobKind::Record, &info.record).await?;
        let record = Record::decode(&plain)?;
        if record.backup != backup {
            let (expected, found) = (backup, record.backup);
            return Err(Error::OtherBackup { session: info.session, expected, found });
        }
        Ok(record)
    }
}
