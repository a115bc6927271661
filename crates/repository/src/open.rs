//! Opening a repository: format, keys, log, index, in this order.
//!
//! Each step trusts only what the one before proved: the slots bind the `format` object, the log's entries open only
//! under the keys of the slots, and the index is held against the log.
//!
//! Invariant: opening for reading changes nothing in the stores.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_format::config::RepositoryConfig;
use aquifer_format::keys::Signer;
use aquifer_format::log::State;
use aquifer_index::{ChunkIndex, MemoryIndex, RocksIndex, RocksReader};
use aquifer_store::{Bytes, Created, GetRange, ObjectStore};

use crate::index_sync::{Follower, knows_what_is_gone};
use crate::log::{Log, LogParts, optional};
use crate::nodes::MetaCache;
use crate::overlay::Overlay;
use crate::parts::{Parts, StateCell};
use crate::presence::Living;
use crate::repository::{Access, Repository, Secret, Stores, blocking};
use crate::silence::Observations;
use crate::state_dir::StateDir;
use crate::world::{World, random};
use crate::{Error, Result, Settings, keys, layout};

/// Unread segments up to which a reader adds them in memory; above, it lets the index on disk catch up first if it can.
const OVERLAY_SEGMENTS: usize = 64;

/// How long to wait between two looks at the index's lock.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How a repository is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// Where its objects are.
    pub stores: Stores,
    /// Clock and randomness.
    pub world: Arc<dyn World>,
    /// The state folder of this host; a folder of the repository's id is made in it. Without one the index is in
    /// memory, nothing is remembered between runs: a rollback of the store cannot be noticed, and sessions of a
    /// process that died are ended only by who observes their silence.
    pub state_dir: Option<PathBuf>,
    /// Opens a key slot; `None` for a plain repository.
    pub secret: Option<Secret>,
    /// What for.
    pub access: Access,
    /// Sizes and limits.
    pub settings: Settings,
}

impl Repository {
    /// Opens a repository.
    ///
    /// # Errors
    /// [`Error::NotARepository`], [`Error::WrongLogStore`], [`Error::StoresDiffer`], [`Error::AtomicCreate`],
    /// [`Error::WrongSecret`], [`Error::RolledBack`], [`Error::IndexBusy`] and others, each with its way out.
    pub async fn open(options: OpenOptions) -> Result<Arc<Self>> {
        let OpenOptions { stores, world, state_dir, secret, access, settings } = options;
        let config = read_format(&stores).await?;
        let marked = check_log_store(&stores, &config, access).await?;
        let keys::Unlocked { mut ring, master, slot } = keys::unlock(&stores, &config, secret).await?;
        let local = match state_dir {
            Some(base) => Some(StateDir::open(&base, config.repository)?),
            None => None,
        };
        let state = Arc::new(StateCell::new(Arc::new(State::new(&config))));
        let log = Log::new(LogParts {
            store: Arc::clone(stores.of_log()),
            mirror: stores.mirror().cloned(),
            ring: ring.clone(),
            signer: if marked { Some(signer(local.as_ref(), world.as_ref())?) } else { None },
            world: Arc::clone(&world),
            local: local.clone(),
            state: Arc::clone(&state),
        });
        log.load(&config).await?;
        if access == Access::Write {
            log.state().check_features(true)?;
            log.complete_mirror().await?;
        }
        if let Some(epoch) = log.state().epochs().last() {
            ring.add_epoch(*epoch);
        }
        let place = IndexPlace {
            stores: &stores,
            local: local.as_ref(),
            world: world.as_ref(),
            log: &log,
            ring: &ring,
        };
        let index = place.open(access, settings.index_wait).await?;
        if access == Access::Write {
            // Whoever had the index until now may have appended: its index must not seem to be of another log.
            log.replay().await?;
            if let Some(epoch) = log.state().epochs().last() {
                ring.add_epoch(*epoch);
            }
        }
        let follower = Follower::new(Arc::clone(&index), &stores, &ring);
        let parts = Parts {
            ring,
            packs: Arc::clone(&stores.packs),
            index,
            state,
            world,
            settings,
            chunk_bytes: config.chunk_bytes,
            meta_cache: Arc::new(MetaCache::default()),
        };
        let host = host_name();
        let repository = Self {
            config,
            stores,
            access,
            log,
            parts,
            follower,
            living: Living::default(),
            observations: Observations::new(local.clone()),
            local,
            master,
            opened_slot: slot,
            host,
        };
        repository.follower.follow(&repository.state()).await?;
        Ok(Arc::new(repository))
    }
}

/// This host's name, for people.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unnamed host".to_owned() } else { name.chars().take(64).collect() }
}

pub(crate) fn signer(local: Option<&StateDir>, world: &dyn World) -> Result<Signer> {
    match local {
        Some(local) => local.signer(world),
        None => Ok(Signer::from_seed(random(world))?),
    }
}

/// Reads what never changes; both stores must agree on it.
pub(crate) async fn read_format(stores: &Stores) -> Result<RepositoryConfig> {
    let key = layout::format();
    let read = async |store: &Arc<dyn ObjectStore>| -> Result<Bytes> {
        let found = optional(store.get(&key, GetRange::Whole).await)?;
        found.ok_or_else(|| Error::NotARepository { store: store.describe() })
    };
    let object = read(&stores.packs).await?;
    if let Some(log) = &stores.log
        && read(log).await? != object
    {
        return Err(Error::StoresDiffer { log: log.describe(), packs: stores.packs.describe() });
    }
    RepositoryConfig::decode(&object).map_err(|source| Error::Object { key: key.to_string(), source })
}

/// Checks that the log store is the one that `format` names, and for a writer that it still refuses a second create.
/// Without the mark (`false`) reading goes on and nothing may be appended: what is read is chained from its first entry
/// on, and may be the copy of the log beside the packs, a little behind.
async fn check_log_store(stores: &Stores, config: &RepositoryConfig, access: Access) -> Result<bool> {
    if access == Access::Write {
        return prove_log_store(stores, config).await.map(|()| true);
    }
    match require_mark(stores, config).await {
        Ok(()) => Ok(true),
        Err(error @ Error::WrongLogStore { .. }) => {
            tracing::warn!("reading goes on: {error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn require_mark(stores: &Stores, config: &RepositoryConfig) -> Result<()> {
    let (store, mark) = (stores.of_log(), layout::store_mark(&config.log_store));
    match optional(store.head(&mark).await)? {
        Some(_) => Ok(()),
        None => Err(Error::WrongLogStore { store: store.describe(), expected: config.log_store, mark }),
    }
}

/// Creates the permanent mark of the log store again, which must fail: whoever decides anything relies on that.
pub(crate) async fn prove_log_store(stores: &Stores, config: &RepositoryConfig) -> Result<()> {
    require_mark(stores, config).await?;
    let (store, mark) = (stores.of_log(), layout::store_mark(&config.log_store));
    // Other bytes than the mark's: a store that settles a lost answer by comparing must not take the mark for this.
    let second = Bytes::from(format!("{}a second one\n", mark_body(config)));
    match store.create(&mark, second).await? {
        Created::Exists => Ok(()),
        Created::Won => {
            Err(Error::AtomicCreate { store: store.describe(), winners: "the second of two".to_owned() })
        }
    }
}

/// What the permanent mark of the log store holds; text, for whoever looks.
pub(crate) fn mark_body(config: &RepositoryConfig) -> String {
    format!("log store {} of repository {}\n", config.log_store, config.repository)
}

/// What is needed to find an index and to let it catch up.
struct IndexPlace<'a> {
    stores: &'a Stores,
    local: Option<&'a StateDir>,
    world: &'a dyn World,
    log: &'a Log,
    ring: &'a aquifer_format::keys::KeyRing,
}

impl IndexPlace<'_> {
    async fn open(&self, access: Access, wait: Duration) -> Result<Arc<dyn ChunkIndex>> {
        match (self.local, access) {
            (None, _) => Ok(Arc::new(MemoryIndex::new())),
            (Some(local), Access::Write) => Ok(self.writer(local, wait).await?),
            (Some(local), Access::Read) => self.reader(local).await,
        }
    }

    /// Opens for writing; waits for another process, within bounds.
    async fn writer(&self, local: &StateDir, wait: Duration) -> Result<Arc<RocksIndex>> {
        let started_ms = self.world.monotonic_ms();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            match self.writer_now(local).await {
                Err(Error::Index(aquifer_index::Error::Locked { path, holder })) => {
                    if tokio::time::Instant::now() >= deadline {
                        let waited_ms = self.world.monotonic_ms().saturating_sub(started_ms);
                        return Err(Error::IndexBusy { path, holder, waited_ms });
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                }
                other => return other,
            }
        }
    }

    /// Opens for writing; an index that cannot be trusted is thrown away, and the log fills it again.
    async fn writer_now(&self, local: &StateDir) -> Result<Arc<RocksIndex>> {
        let (path, repository) = (local.index(), self.ring.repository());
        blocking(move || match RocksIndex::open(&path, repository) {
            Err(error) if error.needs_rebuild() => {
                tracing::warn!(%error, "the index is made anew from the log");
                Ok(Arc::new(RocksIndex::recreate(&path, repository)?))
            }
            other => Ok(Arc::new(other?)),
        })
        .await
    }

    /// Opens for reading. What is missing is added in memory; when that is much and nobody writes the index, it is
    /// brought up to date on disk first.
    async fn reader(&self, local: &StateDir) -> Result<Arc<dyn ChunkIndex>> {
        let mut base = self.reader_now(local).await;
        if self.lag(base.as_ref()) > OVERLAY_SEGMENTS || base.is_none() {
            drop(base);
            self.catch_up(local).await;
            base = self.reader_now(local).await;
        }
        Ok(Arc::new(Overlay::new(base)))
    }

    /// Segments that the index does not have yet; all of them when it has to be made anew.
    fn lag(&self, base: Option<&RocksReader>) -> usize {
        let position = base.and_then(|base| base.position().ok().flatten());
        if position.is_some_and(|position| !knows_what_is_gone(position.seq, &self.log.state())) {
            return usize::MAX;
        }
        self.log.state().segments_since(position.map_or(0, |position| position.seq)).len()
    }

    async fn reader_now(&self, local: &StateDir) -> Option<RocksReader> {
        let name = format!("{:032x}", u128::from_be_bytes(random(self.world)));
        let (path, own, repository) = (local.index(), local.reader(&name), self.ring.repository());
        match blocking(move || Ok(RocksReader::open(&path, &own, repository)?)).await {
            Ok(reader) => Some(reader),
            Err(error) => {
                tracing::debug!(%error, "the index on disk is not used");
                None
            }
        }
    }

    /// Lets the index on disk follow the log, if nobody else writes it. Failing only means more work in memory.
    async fn catch_up(&self, local: &StateDir) {
        let caught_up = async {
            let index = self.writer_now(local).await?;
            Follower::new(index, self.stores, self.ring).follow(&self.log.state()).await
        };
        if let Err(error) = caught_up.await {
            tracing::debug!(%error, "the index on disk was not brought up to date");
        }
    }
}
