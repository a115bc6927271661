//! `dumpxml`: a backup's description as the backup API writes it.

use aquifer_api::xml::{BackupDisk, DomainBackup, Target};
use aquifer_engine::repository::format::Record;
use aquifer_engine::{Error, Kind, Result};

use super::open;
use crate::context::Context;

/// Runs `dumpxml`.
///
/// # Errors
/// As opening the repository and finding the backup.
pub(crate) async fn run(context: &Context, backup: &str) -> Result<()> {
    let repository = open::reader(context).await?;
    let info = repository.backup(repository.resolve(backup)?)?;
    let mut record = repository.record(info.summary.backup).await?;
    // The record is what was written then; a deleted parent's own parent has taken its place since.
    record.parent = info.parent;
    let mut document = Vec::new();
    describe(record, &context.repository()?.name)
        .write(&mut document)
        .map_err(|error| Error::caused(Kind::Internal, error))?;
    context.output.write(&document)
}

fn describe(record: Record, store: &str) -> DomainBackup {
    DomainBackup {
        uuid: Some(record.backup),
        creation_time: Some(i64::try_from(record.created_ms / 1000).unwrap_or(i64::MAX)),
        description: Some(record.description).filter(|text| !text.is_empty()),
        parent: record.parent,
        disks: Some(
            record
                .disks
                .into_iter()
                .map(|disk| BackupDisk {
                    name: disk.name,
                    target: Some(Target::ChunkStore { store: store.to_owned(), namespace: None }),
                    ..BackupDisk::default()
                })
                .collect(),
        ),
        ..DomainBackup::default()
    }
}
