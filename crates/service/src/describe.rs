//! The description of a backup: what `get_xml` gives, in either dialect.
//!
//! Invariant: in the proposal's dialect it is a document that a restore takes.

use aquifer_api::xml::{
    BackupDisk, BackupMode, Definition, DiskState, DomainBackup, Endpoint, LibvirtBackup, LibvirtDisk,
    Method, Mode, NbdSource, Server, Target,
};
use aquifer_api::{Error, JobState, Kind, Result, XmlFlags};
use aquifer_engine::nbd::{Transport, Uri};
use aquifer_engine::repository::BackupInfo;
use aquifer_engine::repository::format::Record;
use aquifer_engine::repository::format::record::{DefinitionKind, Mode as DiskMode};
use aquifer_engine::{Exposed, ExposedDisk};
use uuid::Uuid;

use crate::catalogue::Item;
use crate::domains::written;
use crate::error::repository;
use crate::journal::{Entry, JobKind};
use crate::service::Service;

impl Service {
    /// The description.
    ///
    /// # Errors
    /// Those of [`aquifer_api::BackupApi::get_xml`].
    pub(crate) async fn document(&self, backup: Uuid, flags: XmlFlags) -> Result<String> {
        let item = self.item(backup).await?;
        if flags.contains(XmlFlags::INACTIVE) {
            return self.submitted(backup);
        }
        let described = match &item {
            Item::Stored(info) => {
                let record = self.repository().record(backup).await.map_err(repository)?;
                of_record(info, record, &self.0.store)
            }
            Item::Job(entry) => of_job(entry, &self.0.store),
        };
        if flags.contains(XmlFlags::LIBVIRT) {
            return libvirt(&item, described);
        }
        written(&narrowed(described, flags))
    }

    fn submitted(&self, backup: Uuid) -> Result<String> {
        match self.entry(backup)?.map(|entry| entry.request).filter(|request| !request.is_empty()) {
            Some(request) => Ok(request),
            None => Err(Error::Other {
                kind: Kind::NotFound,
                message: format!("no document that asked for backup {backup} is kept"),
                hint: Some("they are kept for a week, on the host that was asked; without INACTIVE the backup is described".to_owned()),
            }),
        }
    }
}

/// Leaves out what the flags do not ask for.
fn narrowed(mut described: DomainBackup, flags: XmlFlags) -> DomainBackup {
    if flags.contains(XmlFlags::NO_DOMAIN) {
        described.definition = None;
    }
    if !flags.contains(XmlFlags::SECURE) {
        // One that cannot be read again is not shown either.
        described.definition = described.definition.and_then(|known| known.without_passwords().ok());
    }
    if !flags.contains(XmlFlags::SIZE) {
        for disk in described.disks.iter_mut().flatten() {
            (disk.size_bytes, disk.stored_bytes) = (None, None);
        }
    }
    described
}

fn seconds(wall_ms: u64) -> i64 {
    i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX)
}

fn of_record(info: &BackupInfo, record: Record, store: &str) -> DomainBackup {
    let target = match record.external {
        true => Target::Nbd(None),
        false => Target::ChunkStore { store: store.to_owned(), namespace: record.namespace },
    };
    // A parent that was deleted has given its place to its own.
    let parent = info.parent;
    let disks = record.disks.into_iter().map(|disk| BackupDisk {
        name: disk.name,
        mode: Some(if disk.mode == DiskMode::Full { BackupMode::Full } else { BackupMode::Incremental }),
        size_bytes: Some(disk.size_bytes),
        stored_bytes: Some(disk.stored_bytes),
        digest: disk.root.map(|root| root.0),
        parent: parent.filter(|_| disk.mode != DiskMode::Full),
        target: Some(target.clone()),
        ..BackupDisk::default()
    });
    let definition = record.definition.filter(|known| known.kind == DefinitionKind::Xml);
    let definition = definition.and_then(|known| {
        // One that is not well-formed cannot stand inside of another document.
        Definition::parse(&String::from_utf8_lossy(&known.bytes)).ok()
    });
    DomainBackup {
        uuid: Some(record.backup),
        creation_time: Some(seconds(record.created_ms)),
        description: Some(record.description).filter(|text| !text.is_empty()),
        state: Some(JobState::Completed),
        parent,
        disks: Some(disks.collect()),
        definition,
        ..DomainBackup::default()
    }
}

fn of_job(entry: &Entry, store: &str) -> DomainBackup {
    let disks: Vec<BackupDisk> = match &entry.exposed {
        Some(exposed) => exposed.disks.iter().map(of_exposed).collect(),
        None => entry
            .disks
            .iter()
            .map(|disk| BackupDisk {
                name: disk.name.clone(),
                size_bytes: Some(disk.size_bytes),
                target: Some(Target::ChunkStore { store: store.to_owned(), namespace: None }),
                ..BackupDisk::default()
            })
            .collect(),
    };
    DomainBackup {
        uuid: Some(entry.uuid),
        creation_time: entry.instant_ms.map(seconds),
        description: entry
            .exposed
            .as_ref()
            .map(|exposed| exposed.description.clone())
            .filter(|text| !text.is_empty()),
        state: Some(entry.state),
        method: entry
            .exposed
            .as_ref()
            .map(|exposed| if exposed.by_filter() { Method::Filter } else { Method::Classic }),
        parent: entry.exposed.as_ref().and_then(|exposed| exposed.parent()),
        disks: Some(disks).filter(|disks| !disks.is_empty()),
        ..DomainBackup::default()
    }
}

fn of_exposed(disk: &ExposedDisk) -> BackupDisk {
    BackupDisk {
        name: disk.name.clone(),
        mode: Some(if disk.parent.is_some() { BackupMode::Incremental } else { BackupMode::Full }),
        size_bytes: Some(disk.size_bytes),
        parent: disk.parent,
        target: Some(Target::Nbd(Some(NbdSource {
            uri: disk.uri.clone(),
            context: disk.bitmap_context.clone(),
        }))),
        ..BackupDisk::default()
    }
}

/// The same in libvirt's words, which know one kind of job only that can be asked about: a pull.
fn libvirt(item: &Item, described: DomainBackup) -> Result<String> {
    let cannot = || {
        let what = "libvirt's dialect for a backup in a repository: it has words for running jobs only; an unmanaged backup that is being served has them";
        Error::OperationUnsupported(what.to_owned())
    };
    let Item::Job(entry) = item else { return Err(cannot()) };
    let exposed = entry.exposed.as_deref().filter(|_| entry.kind == JobKind::Unmanaged).ok_or_else(cannot)?;
    let document = LibvirtBackup {
        mode: Mode::Pull(Some(server(exposed)?)),
        incremental: described.parent.map(|parent| parent.to_string()),
        disks: Some(exposed.disks.iter().map(|disk| libvirt_disk(exposed, disk, entry.state)).collect()),
    };
    let mut out = Vec::new();
    document.write(&mut out).map_err(|error| Error::Internal(error.to_string()))?;
    String::from_utf8(out).map_err(|error| Error::Internal(error.to_string()))
}

fn server(exposed: &Exposed) -> Result<Server> {
    let first = exposed.disks.first().ok_or_else(|| Error::Internal("nothing is served".to_owned()))?;
    let uri: Uri =
        first.uri.parse().map_err(|error: aquifer_engine::nbd::Error| Error::Internal(error.to_string()))?;
    let endpoint = match &uri.transport {
        Transport::Unix(path) => Endpoint::Unix(path.display().to_string()),
        Transport::Tcp(host, port) => Endpoint::Tcp(host.clone(), Some(*port)),
    };
    Ok(Server { endpoint, tls: Some(uri.tls) })
}

fn libvirt_disk(exposed: &Exposed, disk: &ExposedDisk, state: JobState) -> LibvirtDisk {
    let bitmap =
        disk.bitmap_context.as_deref().and_then(|context| context.strip_prefix("qemu:dirty-bitmap:"));
    LibvirtDisk {
        name: disk.name.clone(),
        mode: Some(if disk.parent.is_some() { BackupMode::Incremental } else { BackupMode::Full }),
        incremental: disk.parent.map(|parent| parent.to_string()),
        export_name: Some(format!("{}/{}", exposed.uuid, disk.name)),
        export_bitmap: bitmap.map(str::to_owned),
        state: Some(match state {
            JobState::Completed => DiskState::Complete,
            JobState::Failed | JobState::Interrupted => DiskState::Failed,
            JobState::Cancelled => DiskState::Cancelled,
            _ => DiskState::Running,
        }),
        ..LibvirtDisk::default()
    }
}
