//! The service itself: what it is made of, and what its calls share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aquifer_api::{Error, Result};
use aquifer_engine::repository::Repository;
use aquifer_engine::{FilterVerdicts, JobContext, QmpSource};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{journal, repository, to_api};
use crate::journal::{Entry, Journal, Moment};
use crate::unmanaged::HandOver;

/// For how long nobody may read an unmanaged backup before it is cancelled, unless the caller says otherwise.
pub const LEASE: Duration = Duration::from_secs(60 * 60);

/// How a running domain is reached; `None` for one that nobody told of.
pub type SourceOf = dyn Fn(&str) -> aquifer_engine::Result<Option<QmpSource>> + Send + Sync;

/// What a service is made of.
pub struct ServiceOptions {
    /// The open repository and the limits of jobs. Reading access is enough for what starts or finishes no backup, and
    /// for serving one to others.
    pub context: JobContext,
    /// The state folder of this host.
    pub state_dir: PathBuf,
    /// The name by which documents name the repository.
    pub store: String,
    /// How domains are reached.
    pub source: Arc<SourceOf>,
    /// Domains that are known without being defined.
    pub configured: BTreeSet<String>,
    /// What this host knows of filters; without it a document that asks for one is refused.
    pub filter: Option<FilterVerdicts>,
    /// See [`LEASE`].
    pub lease: Duration,
}

/// The backup API over one repository. Cheap to clone; the clones share their jobs.
#[derive(Clone)]
pub struct Service(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) context: JobContext,
    pub(crate) journal: Journal,
    pub(crate) store: String,
    pub(crate) source: Arc<SourceOf>,
    pub(crate) configured: BTreeSet<String>,
    pub(crate) filter: Option<FilterVerdicts>,
    pub(crate) lease: Duration,
    live: Mutex<BTreeMap<Uuid, Live>>,
}

/// A job of this process.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    /// Ends it.
    pub(crate) cancel: CancellationToken,
    /// Turns true when it is over.
    pub(crate) over: watch::Receiver<bool>,
    /// Where an unmanaged backup takes orders.
    pub(crate) hand_over: Option<mpsc::Sender<HandOver>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("store", &self.0.store).finish_non_exhaustive()
    }
}

impl Service {
    /// A service over an open repository.
    ///
    /// # Errors
    /// The journal's.
    pub fn new(options: ServiceOptions) -> Result<Self> {
        let ServiceOptions { context, state_dir, store, source, configured, filter, lease } = options;
        let id = context.repository.config().repository.to_string();
        let journal = Journal::open(&state_dir.join(id).join("jobs")).map_err(journal)?;
        let live = Mutex::default();
        Ok(Service(Arc::new(Inner { context, journal, store, source, configured, filter, lease, live })))
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.0.context.repository
    }

    pub(crate) fn context(&self) -> &JobContext {
        &self.0.context
    }

    /// The wall clock, in milliseconds since 1970 UTC: for people, and for how long entries are kept.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.context.world.wall_ms()
    }

    pub(crate) fn moment(&self) -> Moment {
        let clock = self.0.context.world.boot_clock();
        Moment { boot: clock.boot, ms: clock.ms }
    }

    /// The jobs, oldest first.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        self.0.journal.all(self.now_ms()).map_err(journal)
    }

    /// One job.
    pub(crate) fn entry(&self, uuid: Uuid) -> Result<Option<Entry>> {
        Ok(self.entries()?.into_iter().find(|entry| entry.uuid == uuid))
    }

    fn live_jobs(&self) -> MutexGuard<'_, BTreeMap<Uuid, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job of this process, if it is one.
    pub(crate) fn live(&self, uuid: Uuid) -> Option<Live> {
        self.live_jobs().get(&uuid).cloned()
    }

    pub(crate) fn enter(&self, uuid: Uuid, live: Live) {
        self.live_jobs().insert(uuid, live);
    }

    pub(crate) fn leave_live(&self, uuid: Uuid) {
        self.live_jobs().remove(&uuid);
    }

    /// Waits until a job of this process is over; at once for any other.
    pub async fn wait(&self, uuid: Uuid) {
        if let Some(mut live) = self.live(uuid) {
            // The sender goes when the job does.
            let _ = live.over.wait_for(|over| *over).await;
        }
    }

    /// Reads what others appended to the log.
    pub(crate) async fn refresh(&self) -> Result<()> {
        self.repository().refresh().await.map(drop).map_err(repository)
    }

    /// How the domain is reached.
    pub(crate) fn source_of(&self, domain: &str) -> Result<QmpSource> {
        let source = (self.0.source)(domain).map_err(|error| to_api(&error, domain))?;
        source.ok_or_else(|| Error::Other {
            kind: aquifer_api::Kind::NotFound,
            message: format!("how the monitor of domain `{domain}` is reached is not known"),
            hint: Some("configure [domains.NAME] with qmp = ADDRESS, or give --qmp ADDRESS".to_owned()),
        })
    }

    /// Refuses a domain of which nobody knows anything.
    pub(crate) fn require_domain(&self, domain: &str) -> Result<()> {
        let repository = self.repository();
        let listed = |backup: &aquifer_engine::repository::BackupInfo| {
            backup.forgotten.is_none() && backup.summary.domain == domain
        };
        let known = self.0.configured.contains(domain)
            || repository.domain(domain).is_some()
            || repository.backups().iter().any(listed)
            || self.entries()?.iter().any(|entry| entry.domain == domain && !entry.state.is_final());
        if known { Ok(()) } else { Err(Error::NoDomain(domain.to_owned())) }
    }
}
