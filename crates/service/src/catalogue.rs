//! The catalogue: the repository's backups, and the jobs that are not, or did not become, one.
//!
//! Invariant: what is in the repository's log is a completed backup, whatever the journal says of its job.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_api::{Backup, Error, FlagError, JobState, ListFlags, Result};
use aquifer_engine::Level;
use aquifer_engine::repository::BackupInfo;
use uuid::Uuid;

use crate::journal::{Entry, JobKind};
use crate::service::Service;

/// One backup, or one that is being made, or that came to nothing.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// In the repository.
    Stored(Box<BackupInfo>),
    /// Only in the journal.
    Job(Box<Entry>),
}

impl Item {
    pub(crate) fn uuid(&self) -> Uuid {
        match self {
            Item::Stored(info) => info.summary.backup,
            Item::Job(entry) => entry.uuid,
        }
    }

    pub(crate) fn domain(&self) -> &str {
        match self {
            Item::Stored(info) => &info.summary.domain,
            Item::Job(entry) => &entry.domain,
        }
    }

    pub(crate) fn state(&self) -> JobState {
        match self {
            Item::Stored(_) => JobState::Completed,
            Item::Job(entry) => entry.state,
        }
    }

    pub(crate) fn parent(&self) -> Option<Uuid> {
        match self {
            Item::Stored(info) => info.parent,
            Item::Job(entry) => entry.exposed.as_ref()?.parent(),
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Item::Stored(info) => info.summary.level == Level::Full,
            Item::Job(_) => self.parent().is_none(),
        }
    }

    fn is_protected(&self) -> bool {
        matches!(self, Item::Stored(info) if info.protected)
    }
}

impl Service {
    /// Everything, parents before children and then by time.
    pub(crate) async fn items(&self) -> Result<Vec<Item>> {
        self.refresh().await?;
        let mut stored = self.repository().backups();
        let known: BTreeSet<Uuid> = stored.iter().map(|info| info.summary.backup).collect();
        stored.retain(|info| info.forgotten.is_none());
        stored.reverse();
        let jobs = self.entries()?.into_iter();
        let jobs = jobs.filter(|entry| entry.kind != JobKind::Restore && !known.contains(&entry.uuid));
        // A completed job that the log does not know was deleted, and then dropped.
        let jobs = jobs.filter(|entry| entry.state != JobState::Completed);
        let stored = stored.into_iter().map(|info| Item::Stored(Box::new(info)));
        Ok(stored.chain(jobs.map(|entry| Item::Job(Box::new(entry)))).collect())
    }

    /// One of them.
    pub(crate) async fn item(&self, uuid: Uuid) -> Result<Item> {
        let found = self.items().await?.into_iter().find(|item| item.uuid() == uuid);
        found.ok_or(Error::NoBackup(uuid))
    }

    pub(crate) async fn list(&self, domain: &str, flags: ListFlags) -> Result<Vec<Backup>> {
        if flags.contains(ListFlags::DESCENDANTS) {
            let (unknown, known) = (ListFlags::DESCENDANTS.bits(), "all but DESCENDANTS".to_owned());
            return Err(FlagError::Unknown { set: "virDomainBackupList", unknown, known }.into());
        }
        let items = self.items().await?;
        let own: Vec<&Item> = items.iter().filter(|item| item.domain() == domain).collect();
        if own.is_empty() {
            self.require_domain(domain)?;
        }
        Ok(filter(&own, &items, flags))
    }

    pub(crate) async fn children(&self, of: Uuid, flags: ListFlags) -> Result<Vec<Backup>> {
        let items = self.items().await?;
        if !items.iter().any(|item| item.uuid() == of) {
            return Err(Error::NoBackup(of));
        }
        let parents: BTreeMap<Uuid, Option<Uuid>> =
            items.iter().map(|item| (item.uuid(), item.parent())).collect();
        let all = flags.contains(ListFlags::DESCENDANTS);
        let child = |item: &&Item| {
            let mut parent = item.parent();
            // A chain is no longer than there are backups, whatever they say.
            for _ in 0..if all { items.len() } else { 1 } {
                match parent {
                    Some(uuid) if uuid == of => return true,
                    Some(uuid) => parent = parents.get(&uuid).copied().flatten(),
                    None => return false,
                }
            }
            false
        };
        let children: Vec<&Item> = items.iter().filter(child).collect();
        Ok(filter(&children, &items, flags))
    }
}

/// What of `own` the flags let through; see [`ListFlags`].
fn filter(own: &[&Item], all: &[Item], flags: ListFlags) -> Vec<Backup> {
    let any = |tests: &[(ListFlags, bool)]| {
        tests.iter().all(|(flag, _)| !flags.contains(*flag))
            || tests.iter().any(|(flag, holds)| flags.contains(*flag) && *holds)
    };
    let wanted = |item: &&&Item| {
        let state = item.state();
        let completed = state == JobState::Completed;
        let leaf = !all.iter().any(|other| other.parent() == Some(item.uuid()));
        any(&[
            (ListFlags::COMPLETED, completed),
            (ListFlags::FAILED, state.is_final() && !completed),
            (ListFlags::ACTIVE, !state.is_final()),
        ]) && any(&[(ListFlags::CORRUPT, false)])
            && any(&[(ListFlags::PROTECTED, item.is_protected())])
            && any(&[(ListFlags::HAS_CHILDREN, !leaf), (ListFlags::LEAVES, leaf)])
            && any(&[(ListFlags::ROOTS, item.parent().is_none())])
            && any(&[(ListFlags::FULL, item.is_full())])
            && any(&[(ListFlags::LATEST, completed)])
    };
    let mut found: Vec<Uuid> = own.iter().filter(wanted).map(|item| item.uuid()).collect();
    if flags.contains(ListFlags::LATEST) {
        found.drain(..found.len().saturating_sub(1));
    }
    found.into_iter().map(Backup::new).collect()
}
