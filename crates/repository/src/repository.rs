//! An open repository: what its verbs share.
//!
//! The verbs themselves are beside this file: [`crate::init`], [`crate::open`], keys, backups, sessions, statistics.
//!
//! Invariant: whoever holds a [`Repository`] holds keys that opened the log's first entry and a state that was replayed
//! from it.

use std::path::PathBuf;
use std::sync::Arc;

use aquifer_format::config::RepositoryConfig;
use aquifer_format::id::{EpochId, SlotId};
use aquifer_format::keys::{KeyRing, MasterKey};
use aquifer_format::log::State;
use aquifer_store::ObjectStore;
use zeroize::Zeroizing;

use crate::index_sync::Follower;
use crate::log::Log;
use crate::parts::Parts;
use crate::presence::Living;
use crate::silence::Observations;
use crate::state_dir::StateDir;
use crate::{Error, Result, World};

/// Where the objects of a repository are.
#[derive(Debug, Clone)]
pub struct Stores {
    /// Packs and segments, and everything else unless there is a log store.
    pub packs: Arc<dyn ObjectStore>,
    /// Log, checkpoints and key slots, when the pack store has no atomic create.
    pub log: Option<Arc<dyn ObjectStore>>,
}

impl Stores {
    /// The store that holds the log.
    pub(crate) fn of_log(&self) -> &Arc<dyn ObjectStore> {
        self.log.as_ref().unwrap_or(&self.packs)
    }

    /// The store that holds copies of the log's objects, when it is another one.
    pub(crate) fn mirror(&self) -> Option<&Arc<dyn ObjectStore>> {
        self.log.as_ref().map(|_| &self.packs)
    }
}

/// A passphrase or the content of a key file; wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What a repository is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Backups: this process writes the index of its state folder, and is the only one.
    Write,
    /// Restores, lists, verification: never waits for a writer.
    Read,
}

/// An open repository. See the crate's page for what may overlap.
pub struct Repository {
    pub(crate) config: RepositoryConfig,
    pub(crate) stores: Stores,
    pub(crate) access: Access,
    pub(crate) log: Log,
    pub(crate) parts: Parts,
    pub(crate) follower: Follower,
    pub(crate) local: Option<StateDir>,
    /// Sessions of this handle that live, for want of a state folder whose locks would tell.
    pub(crate) living: Living,
    /// What was seen of other hosts' sessions.
    pub(crate) observations: Observations,
    pub(crate) master: Option<MasterKey>,
    pub(crate) opened_slot: Option<SlotId>,
    /// This host's name, for people and for messages about its sessions.
    pub(crate) host: String,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.config.repository)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// What a repository says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryInfo {
    /// What never changes: id, chunk size, encrypted or plain.
    pub config: RepositoryConfig,
    /// The pack store, as messages name it.
    pub packs: String,
    /// The log store, when it is another one.
    pub log: Option<String>,
    /// Newest log entry.
    pub seq: u64,
    /// Lowest log entry that may still exist.
    pub floor: u64,
    /// Data key epochs, oldest first; none in plain mode.
    pub epochs: Vec<EpochId>,
    /// Enrolled writers.
    pub writers: usize,
    /// Names of the features in use beyond version 1.
    pub features: Vec<String>,
    /// Backups that are not forgotten.
    pub backups: usize,
    /// Sessions that are open now.
    pub sessions: usize,
    /// This host's folder for the repository.
    pub state_dir: Option<PathBuf>,
}

impl Repository {
    /// What never changes about the repository.
    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    /// The keys.
    pub fn ring(&self) -> &KeyRing {
        &self.parts.ring
    }

    /// The stores.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Clock and randomness, as given at opening.
    pub fn world(&self) -> &Arc<dyn World> {
        &self.parts.world
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// What the data plane needs.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The log's state as last read.
    pub fn state(&self) -> Arc<State> {
        self.log.state()
    }

    /// Reads what other processes appended to the log, and lets the index follow.
    ///
    /// # Errors
    /// Those of the log ([`Error::LogGap`], [`Error::Object`]), of the stores and of the index.
    pub async fn refresh(&self) -> Result<Arc<State>> {
        let state = self.log.replay().await?;
        self.follower.follow(&state).await?;
        Ok(state)
    }

    /// What the repository says of itself.
    pub fn info(&self) -> RepositoryInfo {
        let state = self.state();
        RepositoryInfo {
            config: self.config.clone(),
            packs: self.stores.packs.describe(),
            log: self.stores.log.as_ref().map(|log| log.describe()),
            seq: state.seq(),
            floor: state.floor(),
            epochs: state.epochs().to_vec(),
            writers: state.writers().len(),
            features: state.features().iter().map(|feature| feature.name.clone()).collect(),
            backups: state.backups().values().filter(|backup| backup.forgotten.is_none()).count(),
            sessions: state.sessions().len(),
            state_dir: self.local.as_ref().map(|local| local.root().to_owned()),
        }
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // The next run starts from here instead of a checkpoint.
        if let Err(error) = self.log.remember(&self.state()) {
            tracing::debug!(%error, "the state of the log was not kept");
        }
    }
}

/// Runs blocking work (the index, key derivation) off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Closed))
}
