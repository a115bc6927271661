//! Making a repository.
//!
//! Order of writes: key slots and the mark of the log store first, then `format`, whose creation decides between two
//! racing inits, then the first log entry. Until the last one the repository does not open.
//!
//! Invariant: nothing of an existing repository is touched.

use std::path::PathBuf;
use std::sync::Arc;

use aquifer_format::config::RepositoryConfig;
use aquifer_format::id::{EpochId, RepositoryId, StoreId};
use aquifer_format::keys::{KdfParams, KeyRing, MasterKey};
use aquifer_format::log::{Body, KeyChange, State};
use aquifer_store::{Bytes, Created, ObjectStore, probe};

use crate::log::{Log, LogParts, optional};
use crate::open::{OpenOptions, mark_body};
use crate::parts::StateCell;
use crate::repository::{Access, Repository, Secret, Stores};
use crate::state_dir::StateDir;
use crate::world::{World, random};
use crate::{Error, Result, Settings, keys, layout};

/// The folder that the top of a new file system has of its own.
const OF_A_FILE_SYSTEM: &str = "lost+found";

/// How a repository is made.
#[derive(Clone)]
pub struct InitOptions {
    /// Where its objects will be.
    pub stores: Stores,
    /// Clock and randomness.
    pub world: Arc<dyn World>,
    /// As [`OpenOptions::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// Opens the first key slot; `None` makes a plain repository.
    pub secret: Option<Secret>,
    /// Opens a second key slot, to be kept elsewhere.
    pub recovery: Option<Secret>,
    /// Cost of guessing a passphrase.
    pub kdf: KdfParams,
    /// Chunk size in bytes: a power of two from 64 KiB to 4 MiB.
    pub chunk_bytes: u32,
    /// Sizes and limits of the open repository that is returned.
    pub settings: Settings,
}

impl Repository {
    /// Makes a repository and opens it for writing.
    ///
    /// # Errors
    /// [`Error::AlreadyInitialised`]; [`Error::NotEmpty`]; [`Error::AtomicCreate`] when the store that shall hold the log fails the race;
    /// the format's limits on chunk size and key derivation; those of the stores.
    pub async fn init(options: InitOptions) -> Result<Arc<Self>> {
        let InitOptions { stores, world, state_dir, secret, recovery, kdf, chunk_bytes, settings } = options;
        refuse_existing(&stores).await?;
        prove_atomic(stores.of_log(), &world).await?;
        let config = RepositoryConfig {
            version: 1,
            repository: RepositoryId(random(world.as_ref())),
            log_store: StoreId(random(world.as_ref())),
            chunk_bytes,
            fan_out: 256,
            encrypted: secret.is_some(),
        };
        config.check()?;
        let ring = match &secret {
            None => KeyRing::plain(&config)?,
            Some(secret) => {
                let master = MasterKey::generate(random(world.as_ref()));
                for secret in [Some(secret), recovery.as_ref()].into_iter().flatten() {
                    keys::store_slot(&stores, world.as_ref(), &config, &master, secret, kdf).await?;
                }
                KeyRing::encrypted(&config, master)?
            }
        };
        store_format(&stores, &config).await?;
        let local = match &state_dir {
            Some(base) => Some(StateDir::open(base, config.repository)?),
            None => None,
        };
        first_entry(&stores, &world, &config, ring, local).await?;
        Self::open(OpenOptions { stores, world, state_dir, secret, access: Access::Write, settings }).await
    }
}

async fn refuse_existing(stores: &Stores) -> Result<()> {
    for store in [Some(&stores.packs), stores.log.as_ref()].into_iter().flatten() {
        if optional(store.head(&layout::format()).await)?.is_some() {
            return Err(Error::AlreadyInitialised { store: store.describe() });
        }
        refuse_foreign(store.as_ref()).await?;
    }
    Ok(())
}

/// Objects of our own grammar may be there: those of an init that was cut short.
pub(crate) async fn refuse_foreign(store: &dyn ObjectStore) -> Result<()> {
    let mut after = None;
    loop {
        let page = store.list("", after.as_ref()).await?;
        if let Some(name) = page.foreign.into_iter().find(|name| name != OF_A_FILE_SYSTEM) {
            return Err(Error::NotEmpty { store: store.describe(), name });
        }
        after = page.entries.into_iter().next_back().map(|listed| listed.key);
        if !page.more || after.is_none() {
            return Ok(());
        }
    }
}

pub(crate) async fn prove_atomic(store: &Arc<dyn ObjectStore>, world: &Arc<dyn World>) -> Result<()> {
    let report = probe::race(store, &|out: &mut [u8]| world.random(out)).await?;
    if report.passed() {
        return Ok(());
    }
    Err(Error::AtomicCreate { store: store.describe(), winners: report.winners() })
}

/// Marks the log store and creates `format` in it and beside the packs.
async fn store_format(stores: &Stores, config: &RepositoryConfig) -> Result<()> {
    let log = stores.of_log();
    log.create(&layout::store_mark(&config.log_store), Bytes::from(mark_body(config))).await?;
    let object = Bytes::from(config.encode());
    for store in [Some(log), stores.mirror()].into_iter().flatten() {
        if store.create(&layout::format(), object.clone()).await? == Created::Exists {
            return Err(Error::AlreadyInitialised { store: store.describe() });
        }
    }
    Ok(())
}

/// Appends entry 1: this host as the first writer, and the first data key.
async fn first_entry(
    stores: &Stores,
    world: &Arc<dyn World>,
    config: &RepositoryConfig,
    ring: KeyRing,
    local: Option<StateDir>,
) -> Result<()> {
    let bodies = match config.encrypted {
        true => vec![Body::Key(KeyChange::Epoch { id: EpochId(random(world.as_ref())) })],
        false => Vec::new(),
    };
    let log = Log::new(LogParts {
        store: Arc::clone(stores.of_log()),
        mirror: stores.mirror().cloned(),
        ring,
        signer: Some(crate::open::signer(local.as_ref(), world.as_ref())?),
        world: Arc::clone(world),
        local,
        state: Arc::new(StateCell::new(Arc::new(State::new(config)))),
    });
    log.append(|_| Ok(bodies.clone())).await?;
    Ok(())
}
