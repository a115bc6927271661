//! The contract of [`BackupApi`] as a suite: one function for each behaviour of docs/API.md that can be told by calling the
//! API alone. Every implementation passes it, in process or over a wire.
//!
//! Not here: that the restored bytes are the right ones, that a guest is frozen for a moment only, what is left behind by
//! a crash. Those need a guest and a hypervisor, and are tested where these are.
//!
//! Invariant: a behaviour asks the [`Environment`] for a domain of its own, so that they do not depend on each other.

mod catalogue;
mod jobs;
#[cfg(test)]
mod memory;
mod requests;
#[cfg(test)]
mod tests;

use uuid::Uuid;

use crate::xml::{BackupDisk, Document, DomainBackup, Target};
use crate::{
    Backup, BackupApi, Call, CreateFlags, Creation, FinishFlags, JobState, ListFlags, Result, XmlFlags,
};

/// What the suite needs around the API.
pub trait Environment: Send + Sync {
    /// The API under test.
    fn api(&self) -> &dyn BackupApi;

    /// A new running domain without backups, which nobody else uses.
    fn domain(&self) -> Call<'_, TestDomain>;

    /// A store that backups can go to.
    fn store(&self) -> String;

    /// An id that was not given before.
    fn uuid(&self) -> Uuid;
}

/// A domain of the suite's.
#[derive(Debug, Clone)]
pub struct TestDomain {
    /// Its name.
    pub name: String,
    /// The names of its disks: two, in order.
    pub disks: [String; 2],
}

/// Tries the whole contract.
///
/// # Panics
/// When the API breaks it; the message says where.
pub async fn check(environment: &dyn Environment) {
    let suite = Suite { environment };
    catalogue::check(&suite).await;
    jobs::check(&suite).await;
    requests::check(&suite).await;
}

/// What the behaviours share: short words for long calls.
struct Suite<'e> {
    environment: &'e dyn Environment,
}

/// The result of a call that must succeed.
fn done<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("the API failed with {}: {error}", error.code()))
}

/// The code of a call that must fail.
fn code<T>(result: Result<T>) -> &'static str {
    match result {
        Ok(_) => panic!("the call succeeded"),
        Err(error) => error.code(),
    }
}

impl Suite<'_> {
    fn api(&self) -> &dyn BackupApi {
        self.environment.api()
    }

    async fn domain(&self) -> TestDomain {
        done(self.environment.domain().await)
    }

    /// A request for all disks of the domain, into the environment's store.
    fn request(&self) -> DomainBackup {
        DomainBackup {
            target: Some(Target::ChunkStore { store: self.environment.store(), namespace: None }),
            ..DomainBackup::default()
        }
    }

    /// Starts a managed backup.
    async fn create(
        &self,
        domain: &TestDomain,
        request: &DomainBackup,
        flags: CreateFlags,
    ) -> Result<Backup> {
        match self.api().create_backup(&domain.name, &text(request), flags).await? {
            Creation::Started(backup) => Ok(backup),
            Creation::Estimated(_) => panic!("an estimate that nobody asked for"),
        }
    }

    /// A completed backup of all disks.
    async fn backup(&self, domain: &TestDomain, flags: CreateFlags) -> Backup {
        let backup = done(self.create(domain, &self.request(), flags).await);
        self.wait(&backup).await;
        backup
    }

    /// Waits for a managed job. It may be over before anybody waits for it.
    async fn wait(&self, backup: &Backup) {
        match self.api().finish_job(backup, FinishFlags::WAIT).await {
            Ok(state) => assert_eq!(state, JobState::Completed),
            Err(error) => assert_eq!(error.code(), "NO_BACKUP_JOB", "{error}"),
        }
        assert_eq!(self.described(backup).await.state, Some(JobState::Completed));
    }

    /// An unmanaged backup of all disks that is being served.
    async fn expose(&self, domain: &TestDomain) -> Backup {
        let disk = |name: &String| BackupDisk {
            name: name.clone(),
            target: Some(Target::Nbd(None)),
            ..BackupDisk::default()
        };
        let request =
            DomainBackup { disks: Some(domain.disks.iter().map(disk).collect()), ..DomainBackup::default() };
        done(self.api().start_unmanaged(&domain.name, &text(&request), CreateFlags::NONE).await)
    }

    /// A backup's description.
    async fn described(&self, backup: &Backup) -> DomainBackup {
        let xml = done(self.api().get_xml(backup, XmlFlags::NONE).await);
        match Document::parse(&xml) {
            Ok(Document::Proposal(description)) => description,
            other => panic!("get_xml gave what is no description: {other:?} in {xml}"),
        }
    }

    async fn list(&self, domain: &TestDomain, flags: ListFlags) -> Vec<Uuid> {
        ids(done(self.api().list_backups(&domain.name, flags).await))
    }

    async fn children(&self, backup: &Backup, flags: ListFlags) -> Vec<Uuid> {
        ids(done(self.api().list_children(backup, flags).await))
    }
}

fn ids(backups: Vec<Backup>) -> Vec<Uuid> {
    backups.iter().map(Backup::uuid).collect()
}

fn text(document: &DomainBackup) -> String {
    let mut out = Vec::new();
    document.write(&mut out).expect("writing into memory");
    String::from_utf8(out).expect("the writer writes UTF-8")
}
