//! `list`: the committed backups, newest first.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_api::{Backup, BackupApi, ListFlags};
use aquifer_engine::repository::format::DiskSummary;
use aquifer_engine::repository::{BackupInfo, Repository};
use aquifer_engine::{DiskMode, Error, Kind, Level, Result};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{open, service};
use crate::args::ListArgs;
use crate::context::Context;
use crate::human;
use crate::output::Report;

/// Runs `list`.
///
/// # Errors
/// As opening the repository.
pub(crate) async fn run(context: &Context, args: ListArgs) -> Result<()> {
    let repository = open::reader(context).await?;
    let backups = if args.deleted { deleted(&repository)? } else { listed(&repository)? };
    context.output.report(&List(select(backups, &args)))
}

/// Runs `children`.
///
/// # Errors
/// As opening the repository and finding the backup.
pub(crate) async fn children(context: &Context, backup: &str, descendants: bool) -> Result<()> {
    let service = service::over(context, open::reading_job(context).await?)?;
    let backup = service::resolve(&service, backup)?;
    let flags = if descendants { ListFlags::DESCENDANTS } else { ListFlags::NONE };
    let children = service::told(service.list_children(&backup, flags).await)?;
    let known = listed(service.repository())?;
    let find = |child: &Backup| known.iter().find(|listed| listed.uuid == child.uuid()).cloned();
    context.output.report(&List(children.iter().filter_map(find).collect()))
}

/// One backup of the list.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Listed {
    uuid: Uuid,
    parent: Option<Uuid>,
    pub(crate) domain: String,
    pub(crate) created: Timestamp,
    state: &'static str,
    level: Level,
    description: String,
    labels: BTreeMap<String, String>,
    protected: bool,
    external: bool,
    deleted_until: Option<Timestamp>,
    read_bytes: u64,
    new_bytes: u64,
    pub(crate) stored_bytes: u64,
    disks: Vec<DiskSummary>,
}

#[derive(Serialize)]
struct List(Vec<Listed>);

/// The backups of `repository` that are not deleted, newest first.
///
/// # Errors
/// As [`Listed::new`].
pub(crate) fn listed(repository: &Repository) -> Result<Vec<Listed>> {
    let kept = repository.backups().into_iter().filter(|backup| backup.forgotten.is_none());
    kept.map(Listed::new).collect()
}

/// The deleted backups of `repository` that can be brought back, newest first.
fn deleted(repository: &Repository) -> Result<Vec<Listed>> {
    let deleted = repository.backups().into_iter().filter(|backup| backup.forgotten.is_some());
    deleted.map(Listed::new).collect()
}

impl Listed {
    /// A committed backup as the list shows it.
    ///
    /// # Errors
    /// `Corrupt` when its time is none.
    fn new(backup: BackupInfo) -> Result<Self> {
        let BackupInfo { summary, parent, forgotten, protected, .. } = backup;
        Ok(Listed {
            uuid: summary.backup,
            parent,
            domain: summary.domain,
            created: timestamp(summary.created_ms)?,
            state: if forgotten.is_some() { "deleted" } else { "completed" },
            level: summary.level,
            description: summary.description,
            labels: summary.labels,
            protected,
            external: summary.external,
            deleted_until: forgotten.map(|mark| timestamp(mark.not_before_ms)).transpose()?,
            read_bytes: summary.read_bytes,
            new_bytes: summary.new_bytes,
            stored_bytes: summary.stored_bytes,
            disks: summary.disks,
        })
    }

    /// Size of all disks together in bytes.
    fn size_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size_bytes).fold(0, u64::saturating_add)
    }
}

/// The time of `ms` milliseconds since 1970.
///
/// # Errors
/// `Corrupt` beyond the year 9999.
pub(crate) fn timestamp(ms: u64) -> Result<Timestamp> {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).ok_or_else(|| {
        Error::new(Kind::Corrupt, format!("{ms} ms since 1970 is no time that can be written"))
    })
}

/// The backups that the arguments ask for; `backups` and the result are newest first.
fn select(backups: Vec<Listed>, args: &ListArgs) -> Vec<Listed> {
    let mut domains = BTreeSet::new();
    backups
        .into_iter()
        .filter(|backup| args.domain.as_ref().is_none_or(|domain| backup.domain == *domain))
        .filter(|backup| !args.full || backup.disks.iter().all(|disk| disk.mode == DiskMode::Full))
        .filter(|backup| !args.latest || domains.insert(backup.domain.clone()))
        .collect()
}

impl Report for List {
    fn human(&self) -> String {
        if self.0.is_empty() {
            return "no backups\n".to_owned();
        }
        let head = ["uuid", "domain", "created", "level", "disks", "size", "new", "stored", "description"];
        let rows = self.0.iter().map(|backup| {
            vec![
                backup.uuid.to_string(),
                backup.domain.clone(),
                human::time(backup.created),
                if backup.external { "external" } else { level(backup.level) }.to_owned(),
                backup.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(" "),
                human::size(backup.size_bytes()),
                human::size(backup.new_bytes),
                human::size(backup.stored_bytes),
                backup.description.replace('\n', " "),
            ]
        });
        human::table(&head, &[5, 6, 7], rows)
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Full => "full",
        Level::Incremental => "incremental",
    }
}

#[cfg(test)]
mod tests {
    use aquifer_engine::repository::format::log::Forgotten;
    use aquifer_engine::repository::format::{ChunkId, CommitSummary, SessionId};

    use super::*;

    fn backup(number: u128, domain: &str, modes: &[DiskMode]) -> Listed {
        committed(number, domain, modes, None)
    }

    fn committed(number: u128, domain: &str, modes: &[DiskMode], forgotten: Option<Forgotten>) -> Listed {
        let disk = |(index, mode): (usize, &DiskMode)| DiskSummary {
            name: format!("vd{index}"),
            size_bytes: 5 << 30,
            mode: *mode,
        };
        let summary = CommitSummary {
            backup: Uuid::from_u128(number),
            parent: None,
            domain: domain.to_owned(),
            created_ms: 1_270_477_159_000,
            level: Level::Full,
            description: "first\nsecond".to_owned(),
            labels: BTreeMap::new(),
            disks: modes.iter().enumerate().map(disk).collect(),
            read_bytes: 3,
            new_bytes: 2 << 20,
            stored_bytes: 1 << 20,
            external: false,
        };
        let session = SessionId::new([1; 10], 2);
        let record = ChunkId([2; 32]);
        Listed::new(BackupInfo {
            summary,
            parent: None,
            seq: 3,
            session,
            record,
            forgotten,
            protected: false,
        })
        .unwrap()
    }

    fn selected(args: ListArgs) -> Vec<u128> {
        let backups = vec![
            backup(5, "a", &[DiskMode::Rescan, DiskMode::Full]),
            backup(4, "b", &[DiskMode::Full]),
            backup(3, "a", &[DiskMode::Full, DiskMode::Full]),
        ];
        select(backups, &args).iter().map(|backup| backup.uuid.as_u128()).collect()
    }

    const ALL: ListArgs = ListArgs { domain: None, full: false, latest: false, deleted: false };

    #[test]
    fn the_list_can_be_narrowed_to_a_domain_to_full_and_to_the_latest() {
        assert_eq!(selected(ALL), [5, 4, 3]);
        assert_eq!(selected(ListArgs { domain: Some("a".to_owned()), ..ALL }), [5, 3]);
        assert_eq!(selected(ListArgs { full: true, ..ALL }), [4, 3]);
        assert_eq!(selected(ListArgs { latest: true, ..ALL }), [5, 4]);
        // Both together: the newest among the full ones.
        assert_eq!(selected(ListArgs { domain: Some("a".to_owned()), full: true, latest: true, ..ALL }), [3]);
    }

    #[test]
    fn the_document_has_the_documented_members() {
        let document = serde_json::to_value(List(vec![backup(1, "a", &[DiskMode::Full])])).unwrap();
        let members: Vec<&String> = document[0].as_object().unwrap().keys().collect();
        assert_eq!(
            members,
            [
                "created",
                "deleted_until",
                "description",
                "disks",
                "domain",
                "external",
                "labels",
                "level",
                "new_bytes",
                "parent",
                "protected",
                "read_bytes",
                "state",
                "stored_bytes",
                "uuid"
            ]
        );
        assert_eq!(document[0]["created"], "2010-04-05T14:19:19Z");
        assert_eq!(document[0]["disks"][0]["mode"], "full");
    }

    #[test]
    fn a_deleted_backup_says_until_when_it_can_be_brought_back() {
        let mark = Forgotten { seq: 9, not_before_ms: 1_270_477_159_000 };
        let document = serde_json::to_value(committed(1, "a", &[], Some(mark))).unwrap();
        assert_eq!(document["state"], "deleted");
        assert_eq!(document["deleted_until"], "2010-04-05T14:19:19Z");
    }

    #[test]
    fn the_table_has_whole_uuids_and_one_line_a_backup() {
        insta::assert_snapshot!(List(vec![backup(1, "web01", &[DiskMode::Full, DiskMode::Full])]).human());
    }
}
