//! The calls: the trait that whoever offers the backup API implements, and what its calls return.
//!
//! The calls are asynchronous, because the engine's jobs are and a remote client's would be; they are boxed, so that a
//! caller can hold a `dyn BackupApi` and not know whether the other side is in its own process.
//!
//! Invariant: no call waits for data to move unless a WAIT flag asks for it. `create_backup` and `start_unmanaged`
//! return when the point in time exists, `restore` when the job is accepted.

use std::fmt;
use std::pin::Pin;

use uuid::Uuid;

use crate::error::Result;
use crate::flags::{
    CreateFlags, DeleteFlags, FinishFlags, ListFlags, ReservedFlags, RestoreFlags, TargetFlags,
    UndefineFlags, XmlFlags,
};
use crate::parameters::Parameters;
use crate::state::JobState;

/// A call under way.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A handle on a backup: the proposal's `virBackupPtr`.
///
/// It names the backup and holds nothing of it: it can outlive the backup, and then its calls answer NO_BACKUP. There
/// is no copy of a handle. What is released is gone, so that to release it twice does not compile:
///
/// ```compile_fail,E0382
/// # fn twice(api: &dyn aquifer_api::BackupApi, backup: aquifer_api::Backup) {
/// api.release(backup);
/// api.release(backup);
/// # }
/// ```
#[derive(PartialEq, Eq, Hash)]
pub struct Backup(Uuid);

impl Backup {
    /// A handle on the backup of that id, whether there is one or not. Implementations make handles; callers get
    /// theirs from a call.
    pub fn new(uuid: Uuid) -> Self {
        Backup(uuid)
    }

    /// The backup's id.
    pub fn uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backup({})", self.0)
    }
}

/// What `create_backup` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Creation {
    /// The point in time exists, and its data is being read.
    Started(Backup),
    /// With [`CreateFlags::ESTIMATE`]: nothing was started; this is what there would be to read.
    Estimated(Vec<DiskEstimate>),
}

/// What a backup of one disk would read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskEstimate {
    /// The disk.
    pub disk: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that would be read.
    pub read_bytes: u64,
}

/// A restore that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// The job. The proposal returns 0 and no handle; without one, nobody could ask how the restore goes.
    pub job: Uuid,
    /// The domain whose disks are written; with [`RestoreFlags::NEW_DOMAIN`] the new one.
    pub domain: String,
}

/// The domain of a backup: the proposal's borrowed `virDomainPtr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRecord {
    /// Its name.
    pub name: String,
    /// Its id, if it is known.
    pub uuid: Option<Uuid>,
    /// False if only its backups are left.
    pub defined: bool,
}

/// The backup API. Each method is one function of the proposal, whose C name its first line gives.
///
/// Errors that every call can give are not repeated: `Permission`, `Auth`, `Unavailable`, `Internal`. Flags cannot be
/// unknown here (their types cannot hold what they do not know), but they can contradict each other: `Flag`.
pub trait BackupApi: Send + Sync {
    /// `virDomainBackupCreateXML`: takes a point in time of the domain and reads it into the document's targets.
    ///
    /// Returns when the point in time exists; reading goes on. The proposal returns a handle or NULL.
    ///
    /// The document is in either dialect (libvirt's with `mode='push'`). Its `<uuid>` becomes the backup's, else a new
    /// one is made. Without a parent, each disk is read against the newest completed backup of that disk.
    ///
    /// # Errors
    /// `Xml`, `NoDomain`, `NoDisk`, `BackupExists`, `NoParent`, `ParentNotComplete`, `CheckpointInconsistent`,
    /// `JobBusy`, `AgentUnresponsive`, `TargetExists`, `NoSpace`, `NoStore`.
    fn create_backup<'a>(&'a self, domain: &'a str, xml: &'a str, flags: CreateFlags) -> Call<'a, Creation>;

    /// `virBackupStartUnmanaged`: takes a point in time and serves its disks over NBD for somebody else to read.
    ///
    /// Returns when the exports are served; [`BackupApi::get_xml`] names them. The job stays EXPOSED until
    /// [`BackupApi::finish_job`], or until nobody has read for the lease's time. The proposal returns a handle or NULL.
    ///
    /// # Errors
    /// Those of `create_backup`, and `AddrInUse`, `TlsRequired`, `ExportExists`.
    fn start_unmanaged<'a>(&'a self, domain: &'a str, xml: &'a str, flags: CreateFlags) -> Call<'a, Backup>;

    /// `virDomainBackupList`: the domain's backups, parents before children and then by time.
    ///
    /// The proposal returns the number, and an array unless NULL is passed for it; here the number is the list's
    /// length. None is no error. A domain that is gone but has backups still has them.
    ///
    /// # Errors
    /// `NoDomain`; `Flag` for DESCENDANTS, which only `list_children` knows.
    fn list_backups<'a>(&'a self, domain: &'a str, flags: ListFlags) -> Call<'a, Vec<Backup>>;

    /// `virBackupListChildren`: the backups that were read against this one; with DESCENDANTS, theirs as well.
    ///
    /// Order, number and filters are as in `list_backups`. That a backup is a child says how it was read; it restores
    /// without its parent.
    ///
    /// # Errors
    /// `NoBackup`.
    fn list_children<'a>(&'a self, backup: &'a Backup, flags: ListFlags) -> Call<'a, Vec<Backup>>;

    /// `virBackupRestore`: writes disks of the backup that the document names. It can be the whole output of
    /// [`BackupApi::get_xml`], or name some of the disks.
    ///
    /// Returns when the job is accepted (the proposal: 0); with WAIT, when it is over. A disk without a target goes
    /// back to the domain's own, which needs REWRITE_EXISTING_DISK.
    ///
    /// # Errors
    /// `Xml`, `NoBackup`, `NoDisk`, `Corrupt`, `TargetExists`, `TargetInUse`, `TargetTooSmall`, `DomainExists`,
    /// `DomainRunning`, `KeyMissing`.
    fn restore<'a>(&'a self, xml: &'a str, flags: RestoreFlags) -> Call<'a, Restore>;

    /// `virBackupDelete`: forgets backups: all that are asked for, or none.
    ///
    /// Children of what is deleted become its parent's, and restore as before. The proposal returns 0.
    ///
    /// # Errors
    /// `NoBackup`, `Protected`, `LockedUntil`, `Busy`, `OperationInvalid` (its job is not over).
    fn delete_backup<'a>(&'a self, backup: &'a Backup, flags: DeleteFlags) -> Call<'a, ()>;

    /// `virBackupFree`: lets go of the handle, never of the backup or of its job. Nothing can go wrong with that, nor
    /// does anything have to be done: dropping the handle is the same. The proposal returns 0.
    fn release(&self, backup: Backup) {
        let Backup(_) = backup;
    }

    /// `virBackupGetXMLDesc`: the description, which [`BackupApi::restore`] takes. The proposal returns text that the
    /// caller frees, or NULL.
    ///
    /// # Errors
    /// `NoBackup`; `Permission` for SECURE; `OperationUnsupported` for LIBVIRT where libvirt's dialect cannot say it.
    fn get_xml<'a>(&'a self, backup: &'a Backup, flags: XmlFlags) -> Call<'a, String>;

    /// `virBackupLookupByUUID`: a handle on the backup of that id, over all domains. The proposal returns NULL if
    /// there is none.
    ///
    /// # Errors
    /// `NoBackup`.
    fn lookup(&self, uuid: Uuid, flags: ReservedFlags) -> Call<'_, Backup>;

    /// `virBackupGetDomain`: the backup's domain, even if it is gone. The proposal borrows the pointer ("the reference
    /// counter is not increased"); here it is a value of its own.
    ///
    /// # Errors
    /// `NoBackup`.
    fn domain_of<'a>(&'a self, backup: &'a Backup) -> Call<'a, DomainRecord>;

    /// `virBackupFinishJob`: ends the job, and says what became of it. The proposal returns 0.
    ///
    /// Without flags an EXPOSED job becomes COMPLETED. CANCEL ends any job, and may be repeated.
    ///
    /// # Errors
    /// `NoBackup`; `NoBackupJob` for a job that is over (but CANCEL of a cancelled one succeeds); `OperationInvalid`
    /// for a managed job that still copies, without WAIT; `CheckFailed`.
    fn finish_job<'a>(&'a self, backup: &'a Backup, flags: FinishFlags) -> Call<'a, JobState>;

    /// `virBackupGetParameters`: what is known of the backup and of its job.
    ///
    /// The proposal calls twice, first to learn how many there are; [`Parameters::count`] and [`Parameters::fill`] are
    /// these two calls.
    ///
    /// # Errors
    /// `NoBackup`.
    fn get_parameters<'a>(&'a self, backup: &'a Backup, flags: ReservedFlags) -> Call<'a, Parameters>;

    /// `virDomainSetDefaultTarget`: where the domain's backups go when a document does not say; `None` clears it. The
    /// document is a `<domainbackup>` with a `<target>` directly inside. The proposal returns 0.
    ///
    /// # Errors
    /// `Xml`, `NoDomain`, `NoStore` without FORCE.
    fn set_default_target<'a>(
        &'a self,
        domain: &'a str,
        xml: Option<&'a str>,
        flags: TargetFlags,
    ) -> Call<'a, ()>;

    /// Undefining with `VIR_DOMAIN_UNDEFINE_BACKUP`: forgets the domain, and with BACKUP its backups as well, all or
    /// none. The proposal returns 0.
    ///
    /// # Errors
    /// `NoDomain`; `HasBackups` without BACKUP; with it, those of `delete_backup`.
    fn undefine<'a>(&'a self, domain: &'a str, flags: UndefineFlags) -> Call<'a, ()>;
}
