//! The journal: one file a job, replaced whole before each step that it announces.
//!
//! A second file beside it is locked by the process that has the job. The kernel gives the lock back when that process
//! ends, however it ends; so whoever finds a job that is not over and not locked knows that its process is gone.
//! Not here: what an entry holds ([`Entry`]), what is to be done about such a job, and the backups themselves, which the repository knows.
//!
//! Invariants: a job takes only the steps of [`JobState::advance`]; a domain has one job that is not over.

mod entry;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_api::{IllegalTransition, JobState};
use uuid::Uuid;

pub use entry::{Entry, EntryDisk, JobKind, Moment};

/// How long the entry of a job that is over is kept, in milliseconds of the wall clock.
const KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Largest entry that is read, in bytes: the request and the definition in it have limits of their own.
const ENTRY_BYTES_MAX: u64 = 16 << 20;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The domain has a job that is not over.
    #[error("domain {domain} is busy: job {job} is {state}")]
    Busy {
        /// The domain.
        domain: String,
        /// Its job.
        job: Uuid,
        /// Where that is.
        state: JobState,
    },
    /// There is a job of that id.
    #[error("there is a job {0} already")]
    Exists(Uuid),
    /// A step that no job takes.
    #[error(transparent)]
    Step(#[from] IllegalTransition),
}

type Result<T> = std::result::Result<T, JournalError>;

/// The journal of one repository on this host.
#[derive(Debug, Clone)]
pub struct Journal {
    folder: PathBuf,
}

/// A job in the hands of this process.
#[derive(Debug)]
pub struct Job {
    journal: Journal,
    entry: Entry,
    /// Locked as long as this process has the job.
    _lock: File,
}

impl Journal {
    /// Opens, and makes, the journal in `folder`.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)
            .map_err(|source| JournalError::File { path: folder.to_owned(), source })?;
        Ok(Journal { folder: folder.to_owned() })
    }

    /// Enters a job, unless its domain has one that is not over.
    ///
    /// # Errors
    /// [`JournalError::Busy`], [`JournalError::Exists`], [`JournalError::File`].
    pub fn begin(&self, entry: Entry) -> Result<Job> {
        // Two that begin at once look one after the other.
        let gate = self.folder.join("begin.lock");
        let file = self.file(&gate, |path| File::create(path))?;
        self.file(&gate, |_| file.lock())?;
        for other in self.all(entry.changed_ms)? {
            if other.uuid == entry.uuid {
                return Err(JournalError::Exists(entry.uuid));
            }
            if entry.kind != JobKind::Restore
                && other.kind != JobKind::Restore
                && other.domain == entry.domain
                && !other.state.is_final()
            {
                let (domain, job, state) = (other.domain, other.uuid, other.state);
                return Err(JournalError::Busy { domain, job, state });
            }
        }
        let path = self.lock_path(entry.uuid);
        let lock = self.file(&path, |path| File::create(path))?;
        self.file(&path, |_| lock.lock())?;
        let job = Job { journal: self.clone(), entry, _lock: lock };
        job.write()?;
        Ok(job)
    }

    /// Every job, oldest first. One whose process is gone is INTERRUPTED, unless QEMU has it. Entries of jobs that have
    /// been over for long are removed on the way.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn all(&self, now_ms: u64) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let folder = self.file(&self.folder, |folder| fs::read_dir(folder))?;
        for file in folder {
            let name = self.file(&self.folder, |_| file)?.file_name();
            let uuid = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<Uuid>().ok());
            let Some(entry) = uuid.map(|uuid| self.find(uuid)).transpose()?.flatten() else { continue };
            if entry.state.is_final() && entry.changed_ms.saturating_add(KEPT_MS) < now_ms {
                self.remove(entry.uuid)?;
                continue;
            }
            entries.push(self.truly(entry, now_ms)?);
        }
        entries.sort_by_key(|entry| (entry.started_ms, entry.uuid));
        Ok(entries)
    }

    /// One job, as it was last written.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn find(&self, uuid: Uuid) -> Result<Option<Entry>> {
        let path = self.path(uuid);
        let size = match fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JournalError::File { path, source }),
        };
        if size > ENTRY_BYTES_MAX {
            tracing::warn!(path = %path.display(), size, "an entry of the journal is too large, and is passed over");
            return Ok(None);
        }
        let bytes = self.file(&path, |path| fs::read(path))?;
        match serde_json::from_slice(&bytes) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) => {
                // One that cannot be read must not stand in the way of all others.
                tracing::warn!(path = %path.display(), %error, "an entry of the journal is passed over");
                Ok(None)
            }
        }
    }

    /// Takes a job over; `None` while another process, or another part of this one, has it.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn take(&self, uuid: Uuid) -> Result<Option<Job>> {
        let path = self.lock_path(uuid);
        let lock =
            self.file(&path, |path| File::options().write(true).create(true).truncate(false).open(path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(JournalError::File { path, source }),
        }
        let Some(mut entry) = self.find(uuid)? else { return Ok(None) };
        entry.process = std::process::id();
        Ok(Some(Job { journal: self.clone(), entry, _lock: lock }))
    }

    /// Waits until nobody has the job; the wait cannot be cut short, so it belongs on a thread of its own.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn wait(&self, uuid: Uuid) -> Result<()> {
        let path = self.lock_path(uuid);
        match File::open(&path) {
            Ok(lock) => self.file(&path, |_| lock.lock_shared()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(JournalError::File { path, source }),
        }
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn remove(&self, uuid: Uuid) -> Result<()> {
        for path in [self.path(uuid), self.lock_path(uuid)] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(JournalError::File { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What is true of a job whose process may be gone.
    fn truly(&self, entry: Entry, now_ms: u64) -> Result<Entry> {
        if entry.state.is_final() || entry.outlives() {
            return Ok(entry);
        }
        match self.take(entry.uuid)? {
            None => Ok(entry),
            // Read again under the lock: it may have taken steps since.
            Some(job) if job.entry.state.is_final() || job.entry.outlives() => Ok(job.entry),
            Some(mut job) => {
                job.fail(
                    JobState::Interrupted,
                    "the process that ran it ended before it was complete",
                    now_ms,
                )?;
                Ok(job.entry)
            }
        }
    }

    fn path(&self, uuid: Uuid) -> PathBuf {
        self.folder.join(format!("{uuid}.json"))
    }

    fn lock_path(&self, uuid: Uuid) -> PathBuf {
        self.folder.join(format!("{uuid}.lock"))
    }

    fn file<T>(&self, path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> Result<T> {
        act(path).map_err(|source| JournalError::File { path: path.to_owned(), source })
    }
}

impl Job {
    /// What is known of it.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Writes down the step that is taken next.
    ///
    /// # Errors
    /// [`JournalError::Step`], [`JournalError::File`]; then the step must not be taken.
    pub fn advance(&mut self, to: JobState, now_ms: u64) -> Result<()> {
        let state = self.entry.state.advance(to)?;
        self.change(|entry| (entry.state, entry.changed_ms) = (state, now_ms))
    }

    /// Ends it in one of the states without success; one that is over already stays so.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn fail(&mut self, end: JobState, error: &str, now_ms: u64) -> Result<()> {
        let Ok(state) = self.entry.state.advance(end) else { return Ok(()) };
        self.change(|entry| {
            (entry.state, entry.changed_ms) = (state, now_ms);
            entry.error = Some(error.to_owned());
        })
    }

    /// Writes down what else is known now.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn change(&mut self, change: impl FnOnce(&mut Entry)) -> Result<()> {
        change(&mut self.entry);
        self.write()
    }

    /// Forgets it: it came to nothing, and whoever asked for it knows.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn discard(self) -> Result<()> {
        self.journal.remove(self.entry.uuid)
    }

    fn write(&self) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.journal.path(self.entry.uuid);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.journal.folder.join(format!("new-{}-{number}", std::process::id()));
        self.journal.file(&path, |path| {
            let options = File::options().write(true).create(true).truncate(true).mode(0o600).clone();
            let mut file = options.open(&temporary)?;
            file.write_all(&serde_json::to_vec(&self.entry)?)?;
            fs::rename(&temporary, path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("jobs")).unwrap();
        (folder, journal)
    }

    fn entry(number: u128, domain: &str, kind: JobKind) -> Entry {
        Entry::new(Uuid::from_u128(number), domain, kind, "<domainbackup/>", 1)
    }

    #[test]
    fn a_step_is_on_disk_when_it_is_announced() {
        let (_folder, journal) = journal();
        let mut job = journal.begin(entry(1, "web01", JobKind::Backup)).unwrap();
        for (state, at) in [(JobState::Preparing, 2), (JobState::Running, 3)] {
            job.advance(state, at).unwrap();
            let found = journal.find(Uuid::from_u128(1)).unwrap().unwrap();
            assert_eq!((found.state, found.changed_ms), (state, at));
        }
        assert!(matches!(job.advance(JobState::Completed, 4), Err(JournalError::Step(_))));
        assert_eq!(journal.find(Uuid::from_u128(1)).unwrap().unwrap().state, JobState::Running);
    }

    #[test]
    fn a_domain_has_one_job_that_is_not_over() {
        let (_folder, journal) = journal();
        let mut job = journal.begin(entry(1, "web01", JobKind::Backup)).unwrap();
        let busy = journal.begin(entry(2, "web01", JobKind::Unmanaged)).unwrap_err();
        assert_eq!(busy.to_string(), format!("domain web01 is busy: job {} is defined", Uuid::from_u128(1)));
        journal.begin(entry(3, "web02", JobKind::Backup)).unwrap();
        job.fail(JobState::Cancelled, "by request", 2).unwrap();
        drop(job);
        journal.begin(entry(2, "web01", JobKind::Unmanaged)).unwrap();
        assert!(matches!(journal.begin(entry(1, "db", JobKind::Backup)), Err(JournalError::Exists(_))));
    }

    #[test]
    fn a_job_whose_process_is_gone_is_interrupted_and_one_that_lives_is_not() {
        let (_folder, journal) = journal();
        let mut dead = journal.begin(entry(1, "web01", JobKind::Backup)).unwrap();
        dead.advance(JobState::Preparing, 2).unwrap();
        let living = journal.begin(entry(2, "web02", JobKind::Backup)).unwrap();
        drop(dead);
        let states: Vec<_> =
            journal.all(9).unwrap().iter().map(|entry| (entry.state, entry.changed_ms)).collect();
        assert_eq!(states, [(JobState::Interrupted, 9), (JobState::Defined, 1)]);
        assert!(journal.take(living.entry().uuid).unwrap().is_none(), "somebody has it");
    }

    #[test]
    fn a_backup_that_qemu_serves_outlives_the_process_that_began_it() {
        let (_folder, journal) = journal();
        let mut job = journal.begin(entry(1, "web01", JobKind::Unmanaged)).unwrap();
        job.advance(JobState::Preparing, 2).unwrap();
        job.advance(JobState::Exposed, 3).unwrap();
        drop(job);
        assert_eq!(journal.all(9).unwrap()[0].state, JobState::Exposed);
        let mut taken = journal.take(Uuid::from_u128(1)).unwrap().unwrap();
        taken.advance(JobState::Finalizing, 10).unwrap();
        taken.advance(JobState::Completed, 11).unwrap();
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_passed_over_and_an_old_one_goes() {
        let (_folder, journal) = journal();
        let mut job = journal.begin(entry(1, "web01", JobKind::Backup)).unwrap();
        job.fail(JobState::Failed, "no space", 2).unwrap();
        drop(job);
        fs::write(journal.path(Uuid::from_u128(2)), b"{").unwrap();
        assert_eq!(journal.all(KEPT_MS).unwrap().len(), 1);
        assert!(journal.all(KEPT_MS + 3).unwrap().is_empty());
        assert!(!journal.lock_path(Uuid::from_u128(1)).exists());
    }
}
