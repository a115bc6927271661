//! The control plane, held against its promises: what several processes see of one log, what a crash or a failing
//! store leaves behind at any call, and how the index and the keys follow.
//!
//! A [`Host`] is one process's view: a store (possibly a failing one), a world with a seed, and maybe a state folder.

mod adopt;
mod bases;
mod collection;
mod collection_races;
mod crash;
mod deletion;
mod faults;
mod histories;
mod index;
mod interrupted;
mod keys;
mod log;
mod model;
mod pruning;
mod sessions;
mod silence;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_format::keys::KdfParams;
use aquifer_store::{Memory, ObjectStore};
use uuid::Uuid;

use crate::rig::{read_disk, record_of, store_disk};
use crate::settings::Weakness;
use crate::{
    Access, BackupSession, BeginBackup, BootClock, Committed, Error, FENCE_AFTER, InitOptions, OpenOptions,
    Repository, Result, Secret, Settings, Stores, TreeSpec, World,
};

const CHUNK_BYTES: u32 = 64 << 10;

/// Randomness from a seed, and a clock that moves by itself.
#[derive(Debug)]
struct Seeded {
    state: AtomicU64,
    now_ms: AtomicU64,
    /// Which run of the machine this is, and how long it has lasted: both stand still until told otherwise.
    boot: AtomicU64,
    boot_ms: AtomicU64,
}

impl Seeded {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU64::new(seed << 32),
            now_ms: AtomicU64::new(1_000_000),
            boot: AtomicU64::new(0),
            boot_ms: AtomicU64::new(5_000),
        })
    }

    /// Lets time pass for the machine.
    fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.boot_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Boots the machine again; its clock goes on from where another run left it, which proves nothing.
    fn reboot(&self) {
        self.boot.fetch_add(1, Ordering::Relaxed);
    }
}

impl World for Seeded {
    fn wall_ms(&self) -> u64 {
        self.now_ms.fetch_add(7, Ordering::Relaxed)
    }

    fn monotonic_ms(&self) -> u64 {
        self.now_ms.fetch_add(1, Ordering::Relaxed)
    }

    fn boot_clock(&self) -> BootClock {
        let boot = u128::from(self.boot.load(Ordering::Relaxed)).to_le_bytes();
        BootClock { boot, ms: self.boot_ms.load(Ordering::Relaxed) }
    }

    fn random(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            // SplitMix64: every seed and every draw gives another word.
            let mut word = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// One process on one host.
#[derive(Clone)]
struct Host {
    stores: Stores,
    world: Arc<Seeded>,
    state_dir: Option<std::path::PathBuf>,
    secret: Option<Secret>,
    /// The rule that its program lacks.
    weakness: Option<Weakness>,
}

impl Host {
    /// A host without a state folder; hosts of different seeds draw different names.
    fn new(seed: u64, store: &(impl ObjectStore + Clone + 'static)) -> Self {
        let stores = Stores { packs: Arc::new(store.clone()), log: None };
        Self {
            stores,
            world: Seeded::new(seed),
            state_dir: None,
            secret: Some(secret("correct horse")),
            weakness: None,
        }
    }

    fn with_state(mut self, folder: &Path) -> Self {
        self.state_dir = Some(folder.to_owned());
        self
    }

    fn with_log(mut self, store: &Memory) -> Self {
        self.stores.log = Some(Arc::new(store.clone()));
        self
    }

    fn init_options(&self) -> InitOptions {
        InitOptions {
            stores: self.stores.clone(),
            world: Arc::clone(&self.world) as Arc<dyn World>,
            state_dir: self.state_dir.clone(),
            secret: self.secret.clone(),
            recovery: None,
            kdf: cheap(),
            chunk_bytes: CHUNK_BYTES,
            settings: settings(),
        }
    }

    async fn init(&self) -> Result<Arc<Repository>> {
        Repository::init(self.init_options()).await
    }

    async fn open(&self, access: Access) -> Result<Arc<Repository>> {
        Repository::open(OpenOptions {
            stores: self.stores.clone(),
            world: Arc::clone(&self.world) as Arc<dyn World>,
            state_dir: self.state_dir.clone(),
            secret: self.secret.clone(),
            access,
            settings: Settings { weakness: self.weakness, ..settings() },
        })
        .await
    }
}

fn settings() -> Settings {
    Settings {
        pack_bytes: 256 << 10,
        meta_pack_bytes: 64 << 10,
        index_wait: Duration::from_millis(200),
        ..Settings::default()
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// Key derivation that costs nothing, for tests.
fn cheap() -> KdfParams {
    KdfParams { memory_kib: 8, passes: 1, lanes: 1 }
}

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0000 | number << 96 | number)
}

fn begin(backup: u128, domain: &str) -> BeginBackup {
    BeginBackup {
        backup: uuid(backup),
        domain: domain.to_owned(),
        parent: None,
        bases: Vec::new(),
        fence_after: FENCE_AFTER,
    }
}

/// What a backup job does: begin, store, commit; on any error it ends the session.
async fn backup(repository: &Arc<Repository>, begin: BeginBackup, disk: &[u8]) -> Result<Committed> {
    let session = repository.begin_backup(begin).await?;
    let done = store_and_commit(&session, disk).await;
    if done.is_err() {
        // A failing end is the next run's business.
        let _ = session.abandon().await;
    }
    done
}

async fn store_and_commit(session: &Arc<BackupSession>, disk: &[u8]) -> Result<Committed> {
    let stored = store_disk(&session.plane, disk, TreeSpec { root: None, size_bytes: 0 }, None).await?;
    let record = record_of(session.begun(), stored.tree);
    Arc::clone(session).commit(record).await
}

/// Restores a backup's disk.
async fn restore(repository: &Repository, backup: u128) -> Result<Vec<u8>> {
    let record = repository.record(uuid(backup)).await?;
    let disk = &record.disks[0];
    read_disk(repository.parts(), TreeSpec { root: disk.root, size_bytes: disk.size_bytes }).await
}

fn listed(repository: &Repository) -> Vec<Uuid> {
    let mut backups: Vec<_> = repository.backups().iter().map(|info| info.summary.backup).collect();
    backups.sort();
    backups
}

/// The innermost failure, without the session that it ended.
fn cause(error: &Error) -> &Error {
    crate::rig::cause(error)
}
