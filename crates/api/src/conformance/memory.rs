//! The API over a catalogue in memory: it keeps domains, backups, lineage and jobs by the rules of docs/API.md, and no data.
//!
//! It is what the conformance suite is tried on until there is a service, and shows what an implementation has to decide.
//!
//! Invariant: a job only ever takes the steps of [`JobState::advance`].

use std::collections::BTreeMap;
use std::sync::Mutex;

use uuid::Uuid;

use crate::request::{BackupRequest, DiskRequest, Parent, RestoreRequest, Start};
use crate::xml::{BackupDisk, BackupMode, DomainBackup, NbdSource, Target};
use crate::{
    Backup, CreateFlags, Creation, DiskEstimate, Error, FinishFlags, JobState, ListFlags, Parameters,
    Restore, RestoreFlags, Result, Value,
};

mod calls;

const DISK_BYTES: u64 = 1 << 20;
const STORE: &str = "main";

/// The catalogue; with a fault it breaks the contract in one way.
#[derive(Default)]
pub(super) struct Memory(Mutex<State>);

/// Ways to break the contract, to try the suite on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Children of what is deleted keep a parent that is gone.
    KeepsOrphans,
    /// PROTECT is taken and forgotten.
    ForgetsProtection,
    /// LATEST gives them all.
    IgnoresLatest,
    /// The second CANCEL fails.
    CancelsOnce,
    /// A cancelled backup is a parent.
    TrustsCancelled,
    /// `uuid` of the document is passed over.
    IgnoresUuid,
    /// A second job is let in.
    LetsTwoIn,
    /// What somebody else read is a parent of what is read here.
    AdoptsExternal,
}

#[derive(Default)]
struct State {
    domains: BTreeMap<String, Domain>,
    /// In the order of their points in time, so that parents come before children.
    backups: Vec<Entry>,
    ids: u128,
    fault: Option<Fault>,
}

struct Domain {
    disks: Vec<String>,
    target: Option<Target>,
}

struct Entry {
    description: DomainBackup,
    domain: String,
    protected: bool,
    /// Whether somebody else reads it.
    external: bool,
}

impl Entry {
    fn uuid(&self) -> Uuid {
        self.description.uuid.expect("every entry has one")
    }

    fn state(&self) -> JobState {
        self.description.state.expect("every entry has one")
    }

    fn advance(&mut self, steps: &[JobState]) {
        for step in steps {
            self.description.state = Some(self.state().advance(*step).expect("a legal step"));
        }
    }

    fn disks(&self) -> &[BackupDisk] {
        self.description.disks.as_deref().unwrap_or_default()
    }
}

impl State {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn index(&self, uuid: Uuid) -> Result<usize> {
        self.backups.iter().position(|entry| entry.uuid() == uuid).ok_or(Error::NoBackup(uuid))
    }

    fn domain(&self, name: &str) -> Result<&Domain> {
        self.domains.get(name).ok_or_else(|| Error::NoDomain(name.to_owned()))
    }

    fn children(&self, of: Uuid) -> impl Iterator<Item = &Entry> {
        self.backups.iter().filter(move |entry| entry.description.parent == Some(of))
    }

    fn descends(&self, entry: &Entry, from: Uuid) -> bool {
        let mut parent = entry.description.parent;
        while let Some(uuid) = parent {
            if uuid == from {
                return true;
            }
            parent = self.index(uuid).ok().and_then(|index| self.backups[index].description.parent);
        }
        false
    }

    /// The newest completed backup of that disk, of those that are read by the same as one which starts so.
    fn newest(&self, domain: &str, disk: &str, start: Start) -> Option<Uuid> {
        let external = start == Start::Unmanaged;
        let parents = |entry: &&Entry| {
            entry.state() == JobState::Completed
                || entry.state() == JobState::Cancelled && self.has(Fault::TrustsCancelled)
        };
        let own = |entry: &&Entry| entry.external == external || self.has(Fault::AdoptsExternal);
        let completed =
            self.backups.iter().filter(|entry| entry.domain == domain).filter(own).filter(parents);
        completed.rev().find(|entry| entry.disks().iter().any(|one| one.name == disk)).map(Entry::uuid)
    }

    fn filter(&self, entries: Vec<&Entry>, flags: ListFlags) -> Vec<Backup> {
        let any = |tests: &[(ListFlags, bool)]| {
            tests.iter().all(|(flag, _)| !flags.contains(*flag))
                || tests.iter().any(|(flag, holds)| flags.contains(*flag) && *holds)
        };
        let wanted = |entry: &&Entry| {
            let (state, leaf) = (entry.state(), self.children(entry.uuid()).next().is_none());
            let completed = state == JobState::Completed;
            any(&[
                (ListFlags::COMPLETED, completed),
                (ListFlags::FAILED, state.is_final() && !completed),
                (ListFlags::ACTIVE, !state.is_final()),
            ]) && any(&[(ListFlags::CORRUPT, false)])
                && any(&[(ListFlags::PROTECTED, entry.protected)])
                && any(&[(ListFlags::HAS_CHILDREN, !leaf), (ListFlags::LEAVES, leaf)])
                && any(&[(ListFlags::ROOTS, entry.description.parent.is_none())])
                && any(&[(ListFlags::FULL, entry.disks().iter().all(|disk| disk.parent.is_none()))])
                && any(&[(ListFlags::LATEST, completed)])
        };
        let found: Vec<Uuid> = entries.into_iter().filter(wanted).map(Entry::uuid).collect();
        let latest = if flags.contains(ListFlags::LATEST) && !self.has(Fault::IgnoresLatest) {
            found.len().saturating_sub(1)
        } else {
            0
        };
        found[latest..].iter().map(|uuid| Backup::new(*uuid)).collect()
    }

    fn start(&mut self, name: &str, xml: &str, flags: CreateFlags, start: Start) -> Result<Creation> {
        flags.check()?;
        let mut request = BackupRequest::parse(xml, start)?;
        if self.has(Fault::IgnoresUuid) {
            request.uuid = None;
        }
        let domain = self.domain(name)?;
        let disks = chosen(name, &domain.disks, &request)?;
        let default = request.target.clone().or(domain.target.clone());
        if let Some(uuid) = request.uuid.filter(|uuid| self.index(*uuid).is_ok()) {
            return Err(Error::BackupExists(uuid));
        }
        self.check_parent(name, &request.parent)?;
        let job = self.backups.iter().find(|entry| entry.domain == name && !entry.state().is_final());
        if let Some(job) = job.filter(|_| !self.has(Fault::LetsTwoIn)) {
            return Err(Error::JobBusy { domain: name.to_owned(), job: format!("backup {}", job.uuid()) });
        }
        let mut described = Vec::new();
        for disk in disks {
            let parent = self.parent_of(name, &disk, &request, flags, start)?;
            let uri = format!("nbd+unix:///{}?socket=/run/{name}.sock", disk.name);
            let target = match start {
                Start::Unmanaged => Target::Nbd(Some(NbdSource { uri, context: None })),
                Start::Managed => disk.target.or(default.clone()).unwrap_or_else(|| store(STORE)),
            };
            let mode = if parent.is_some() { BackupMode::Incremental } else { BackupMode::Full };
            described.push(BackupDisk {
                name: disk.name,
                mode: Some(mode),
                size_bytes: Some(DISK_BYTES),
                parent,
                target: Some(target),
                ..BackupDisk::default()
            });
        }
        if flags.contains(CreateFlags::ESTIMATE) {
            let estimate = |disk: BackupDisk| DiskEstimate {
                disk: disk.name,
                size_bytes: DISK_BYTES,
                read_bytes: if disk.parent.is_some() { 0 } else { DISK_BYTES },
            };
            return Ok(Creation::Estimated(described.into_iter().map(estimate).collect()));
        }
        let uuid = request.uuid.unwrap_or_else(|| self.id());
        let mut newest = self.backups.iter().rev().map(Entry::uuid);
        let parent = newest.find(|uuid| described.iter().any(|disk| disk.parent == Some(*uuid)));
        let mut entry = Entry {
            description: DomainBackup {
                uuid: Some(uuid),
                creation_time: Some(i64::try_from(self.backups.len()).expect("few")),
                description: request.description,
                state: Some(JobState::Defined),
                parent,
                disks: Some(described),
                ..DomainBackup::default()
            },
            domain: name.to_owned(),
            external: start == Start::Unmanaged,
            protected: flags.contains(CreateFlags::PROTECT) && !self.has(Fault::ForgetsProtection),
        };
        let running = if start == Start::Managed { JobState::Running } else { JobState::Exposed };
        entry.advance(&[JobState::Preparing, running]);
        self.backups.push(entry);
        Ok(Creation::Started(Backup::new(uuid)))
    }

    fn check_parent(&self, domain: &str, parent: &Parent) -> Result<()> {
        let missing = |parent: String| Error::NoParent { parent, domain: domain.to_owned() };
        let uuid = match parent {
            Parent::Newest => return Ok(()),
            Parent::Checkpoint(name) => return Err(missing(name.clone())),
            Parent::Backup(uuid) => *uuid,
        };
        match self.index(uuid).map(|index| &self.backups[index]) {
            Ok(entry) if entry.domain == domain && entry.state() == JobState::Completed => Ok(()),
            Ok(entry) if entry.domain == domain => {
                Err(Error::ParentNotComplete { parent: uuid, state: entry.state() })
            }
            _ => Err(missing(uuid.to_string())),
        }
    }

    /// What a disk is read against: its bitmap counts from the newest backup, and from no other.
    fn parent_of(
        &self,
        domain: &str,
        disk: &DiskRequest,
        request: &BackupRequest,
        flags: CreateFlags,
        start: Start,
    ) -> Result<Option<Uuid>> {
        let newest = self.newest(domain, &disk.name, start);
        if flags.contains(CreateFlags::FULL) || disk.mode.or(request.mode) == Some(BackupMode::Full) {
            return Ok(None);
        }
        match request.parent {
            Parent::Backup(parent) if newest != Some(parent) => {
                let reason = "its bitmap counts from another backup".to_owned();
                let error = Error::CheckpointInconsistent { disk: disk.name.clone(), parent, reason };
                if flags.contains(CreateFlags::STRICT_PARENT) { Err(error) } else { Ok(None) }
            }
            _ => Ok(newest),
        }
    }

    fn delete(&mut self, doomed: &[Uuid]) -> Result<()> {
        for entry in self.backups.iter().filter(|entry| doomed.contains(&entry.uuid())) {
            if entry.protected {
                return Err(Error::Protected(entry.uuid()));
            }
            if !entry.state().is_final() {
                let (backup, state) = (entry.uuid(), entry.state());
                return Err(Error::OperationInvalid {
                    backup,
                    state,
                    what: "its job is not over".to_owned(),
                });
            }
        }
        for uuid in doomed {
            let entry = self.backups.remove(self.index(*uuid)?);
            let heir = entry.description.parent;
            if self.has(Fault::KeepsOrphans) {
                continue;
            }
            for child in &mut self.backups {
                let disks = child.description.disks.iter_mut().flatten().map(|disk| &mut disk.parent);
                let parents = disks.chain([&mut child.description.parent]);
                parents.filter(|parent| **parent == Some(*uuid)).for_each(|parent| *parent = heir);
            }
        }
        Ok(())
    }

    fn finish(&mut self, uuid: Uuid, flags: FinishFlags) -> Result<JobState> {
        flags.check()?;
        let index = self.index(uuid)?;
        let once = self.has(Fault::CancelsOnce);
        let entry = &mut self.backups[index];
        let steps: &[JobState] = match (entry.state(), flags.contains(FinishFlags::CANCEL)) {
            (JobState::Cancelled, true) if !once => &[],
            (state, _) if state.is_final() => return Err(Error::NoBackupJob(uuid)),
            (_, true) => &[JobState::Cancelled],
            (JobState::Running, false) if !flags.contains(FinishFlags::WAIT) => {
                let what = "it still copies".to_owned();
                return Err(Error::OperationInvalid { backup: uuid, state: JobState::Running, what });
            }
            (_, false) => &[JobState::Finalizing, JobState::Completed],
        };
        entry.advance(steps);
        Ok(entry.state())
    }

    fn restore(&mut self, xml: &str, flags: RestoreFlags) -> Result<Restore> {
        flags.check()?;
        let request = RestoreRequest::parse(xml)?;
        let entry = &self.backups[self.index(request.backup)?];
        let names: Vec<String> = entry.disks().iter().map(|disk| disk.name.clone()).collect();
        let disks = request.disks.unwrap_or_else(|| names.iter().map(|name| (name.clone(), None)).collect());
        for (disk, target) in disks {
            if !names.contains(&disk) {
                let owner = format!("backup {}", request.backup);
                return Err(Error::NoDisk { owner, disk, disks: names });
            }
            let own = target.is_none() && request.target.is_none();
            if own && !flags.contains(RestoreFlags::REWRITE_EXISTING_DISK) {
                return Err(Error::TargetExists(format!("disk {disk} of domain {}", entry.domain)));
            }
        }
        let domain = entry.domain.clone();
        Ok(Restore { job: self.id(), domain })
    }

    fn parameters(&self, uuid: Uuid) -> Result<Parameters> {
        let entry = &self.backups[self.index(uuid)?];
        let mut parameters = Parameters::new();
        let mut add = |name: String, value| {
            parameters.add(name, value).map_err(|error| Error::Internal(error.to_string()))
        };
        add("state".into(), Value::String(entry.state().to_string()))?;
        add("domain".into(), Value::String(entry.domain.clone()))?;
        if entry.state().is_final() {
            add("success".into(), Value::Boolean(entry.state() == JobState::Completed))?;
        }
        for (number, disk) in entry.disks().iter().enumerate() {
            add(format!("disk.{number}.name"), Value::String(disk.name.clone()))?;
        }
        Ok(parameters)
    }
}

fn store(name: &str) -> Target {
    Target::ChunkStore { store: name.to_owned(), namespace: None }
}

/// The disks that a request wants, in the order of the domain.
fn chosen(domain: &str, disks: &[String], request: &BackupRequest) -> Result<Vec<DiskRequest>> {
    let Some(listed) = &request.disks else {
        return Ok(disks
            .iter()
            .map(|name| DiskRequest { name: name.clone(), ..DiskRequest::default() })
            .collect());
    };
    if let Some(unknown) = listed.iter().find(|disk| !disks.contains(&disk.name)) {
        let owner = format!("domain {domain}");
        return Err(Error::NoDisk { owner, disk: unknown.name.clone(), disks: disks.to_vec() });
    }
    let wanted = |name: &String| listed.iter().find(|disk| disk.name == *name && !disk.excluded).cloned();
    Ok(disks.iter().filter_map(wanted).collect())
}
