//! What the disks of a backup are compared with: for each, the newest earlier backup that holds it.
//!
//! Provenance and speed only: nothing of a parent is needed to restore its children, and a parent that
//! cannot be read costs a comparison, never a backup.

use std::collections::BTreeMap;

use aquifer_repository::TreeSpec;
use aquifer_repository::format::record::{Mode, Record};
use uuid::Uuid;

use crate::request::BackupRequest;
use crate::settings::JobContext;

/// Earlier backups of a domain, as far as they are needed.
#[derive(Debug, Default)]
pub(crate) struct Parents {
    newest: Option<Uuid>,
    disks: BTreeMap<String, Earlier>,
}

/// A disk in an earlier backup.
#[derive(Debug, Clone, Copy)]
enum Earlier {
    Readable(TreeSpec),
    Unreadable(Uuid),
}

/// How one disk is read.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) mode: Mode,
    pub(crate) reason: Option<String>,
    /// The earlier tree to compare with.
    pub(crate) tree: Option<TreeSpec>,
}

impl Parents {
    /// Looks through the domain's backups, newest first; a record that cannot be read is a warning.
    pub(crate) async fn find(context: &JobContext, request: &BackupRequest) -> Self {
        let mut parents = Parents::default();
        if request.full {
            return parents;
        }
        for entry in context.repository.backups() {
            let summary = &entry.summary;
            if entry.forgotten.is_some() || summary.domain != request.domain {
                continue;
            }
            parents.newest.get_or_insert(summary.backup);
            if summary.disks.iter().all(|disk| parents.disks.contains_key(&disk.name)) {
                continue;
            }
            match context.repository.record(summary.backup).await {
                Ok(record) => parents.take(&record),
                Err(error) => {
                    context
                        .events
                        .warn(format!("earlier backup {} cannot be compared with: {error}", summary.backup));
                    for disk in &summary.disks {
                        parents.disks.entry(disk.name.clone()).or_insert(Earlier::Unreadable(summary.backup));
                    }
                }
            }
        }
        parents
    }

    fn take(&mut self, record: &Record) {
        for disk in &record.disks {
            let tree = TreeSpec { root: disk.root, size_bytes: disk.size_bytes };
            self.disks.entry(disk.name.clone()).or_insert(Earlier::Readable(tree));
        }
    }

    /// The newest backup of the domain.
    pub(crate) fn newest(&self) -> Option<Uuid> {
        self.newest
    }

    /// How the disk `name` is read.
    pub(crate) fn of(&self, name: &str, request: &BackupRequest) -> Parent {
        if request.full {
            let reason = Some("a full backup was asked for".to_owned());
            return Parent { mode: Mode::Full, reason, tree: None };
        }
        match self.disks.get(name) {
            None => Parent { mode: Mode::Full, reason: None, tree: None },
            Some(Earlier::Readable(tree)) => {
                let reason = Some(request.source.rescan_reason().to_owned());
                Parent { mode: Mode::Rescan, reason, tree: Some(*tree) }
            }
            Some(Earlier::Unreadable(backup)) => {
                let reason = Some(format!("the record of earlier backup {backup} cannot be read"));
                Parent { mode: Mode::Rescan, reason, tree: None }
            }
        }
    }
}
