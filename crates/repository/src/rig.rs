//! A repository's data plane over stores in memory, for tests: no log, no keys on disk, chunks of a few bytes.
//!
//! [`Rig::backup`] does with a disk in memory what a backup job does with an export, and [`Rig::read`] what a
//! restore does, so a test compares whole disks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use aquifer_format::log::{BlobPlace, KeyChange, Role};
use aquifer_format::record::{DiskRecord, DomainRecord, Mode, QuiesceRecord, RECORD_VERSION, Record};
use aquifer_format::{
    Body, Entry, EntryHash, EntryNonce, EpochId, KeyRing, MasterKey, PackName, RepositoryConfig,
    RepositoryId, SessionId, State, StoreId, WriterId,
};
use aquifer_index::MemoryIndex;
use aquifer_store::{Memory, ObjectStore};

use crate::nodes::MetaCache;
use crate::parts::{Parts, StateCell};
use crate::plane::{BoxFuture, Plane, Progress};
use crate::reader::{ChunkOpener, blob_bytes, plan_fetches};
use crate::trees::{BuiltTree, LEAF_CHUNKS, TreeBuilder, TreeReader, TreeSpec};
use crate::writer::{ChunkWriter, PlainChunk, Stored};
use crate::{BeginBackup, BootClock, Error, Result, Settings, World, layout};

/// A clock that stands still until told otherwise, and a counter for randomness.
#[derive(Debug, Default)]
pub(crate) struct TestWorld {
    pub(crate) now_ms: AtomicU64,
    drawn: AtomicU64,
}

impl World for TestWorld {
    fn wall_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn monotonic_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn boot_clock(&self) -> BootClock {
        BootClock { boot: [1; 16], ms: self.now_ms.load(Ordering::Relaxed) }
    }

    fn random(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.drawn.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Publishes into the index at once, as a session does after its log entry.
pub(crate) struct Publisher {
    pub(crate) plane: std::sync::OnceLock<Weak<Plane>>,
    pub(crate) published: AtomicU64,
}

impl Progress for Publisher {
    fn checkpoint_progress(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if let Some(plane) = self.plane.get().and_then(Weak::upgrade) {
                publish(&plane)?;
                self.published.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    }
}

fn publish(plane: &Plane) -> Result<()> {
    let packs = plane.take_stored();
    plane.parts().index.insert_packs(&packs)?;
    plane.published(&packs);
    Ok(())
}

/// A session of the rig.
pub(crate) struct Session {
    pub(crate) plane: Arc<Plane>,
    pub(crate) publisher: Arc<Publisher>,
}

/// Stores, index and keys of one repository.
pub(crate) struct Rig {
    pub(crate) parts: Parts,
    pub(crate) store: Memory,
    pub(crate) world: Arc<TestWorld>,
    healthy: Arc<State>,
    sessions: AtomicU64,
}

impl Rig {
    /// An encrypted repository with chunks of `chunk_bytes`.
    pub(crate) fn new(chunk_bytes: u32) -> Self {
        let store = Memory::new();
        Self::over(chunk_bytes, Arc::new(store.clone()), store)
    }

    /// The same, with `packs` in front of `store`.
    pub(crate) fn over(chunk_bytes: u32, packs: Arc<dyn ObjectStore>, store: Memory) -> Self {
        let config = RepositoryConfig {
            version: 1,
            repository: RepositoryId([1; 16]),
            log_store: StoreId([2; 16]),
            chunk_bytes: 128 << 10,
            fan_out: 256,
            encrypted: true,
        };
        let mut ring = KeyRing::encrypted(&config, MasterKey::generate([3; 32])).unwrap();
        ring.add_epoch(EpochId([4; 8]));
        let world = Arc::new(TestWorld::default());
        let healthy = Arc::new(State::new(&config));
        let settings = Settings { pack_bytes: 64 << 10, meta_pack_bytes: 32 << 10, ..Settings::default() };
        let parts = Parts {
            ring,
            packs,
            index: Arc::new(MemoryIndex::new()),
            state: Arc::new(StateCell::new(Arc::clone(&healthy))),
            world: world.clone(),
            settings,
            chunk_bytes,
            meta_cache: Arc::new(MetaCache::default()),
        };
        Rig { parts, store, world, healthy, sessions: AtomicU64::new(1) }
    }

    /// A new session.
    pub(crate) fn session(&self) -> Session {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let publisher =
            Arc::new(Publisher { plane: std::sync::OnceLock::new(), published: AtomicU64::new(0) });
        let weak: Weak<Publisher> = Arc::downgrade(&publisher);
        let plane = Plane::start(self.parts.clone(), SessionId::new([9; 10], number), weak);
        let _ = publisher.plane.set(Arc::downgrade(&plane));
        Session { plane, publisher }
    }

    /// Backs `disk` up: all of it, or, over `base`, the chunks in `dirty`. Publishes at the end.
    pub(crate) async fn backup(
        &self,
        disk: &[u8],
        base: TreeSpec,
        dirty: Option<&BTreeSet<u64>>,
    ) -> Result<Backup> {
        let session = self.session();
        let done = session.backup(disk, base, dirty).await?;
        session.commit().await?;
        Ok(done)
    }

    /// Reads a whole disk back.
    pub(crate) async fn read(&self, tree: TreeSpec) -> Result<Vec<u8>> {
        read_disk(&self.parts, tree).await
    }

    /// Quarantines packs, as a log entry would.
    pub(crate) fn quarantine(&self, packs: &[PackName]) {
        self.damage(packs, Vec::new());
    }

    /// Quarantines single blobs and whole packs.
    pub(crate) fn damage(&self, packs: &[PackName], blobs: Vec<BlobPlace>) {
        let mut state = State::clone(&self.parts.state.get());
        let writer = WriterId([5; 32]);
        let enrol = Body::Key(KeyChange::Writer { id: writer, role: Role::Admin });
        let bodies = vec![enrol, Body::Quarantine { packs: packs.to_vec(), blobs }];
        let (seq, prev) = (state.seq() + 1, state.tip());
        let entry = Entry { seq, prev, writer, nonce: EntryNonce([0; 16]), wall_ms: 0, bodies };
        state.apply(&entry, EntryHash([6; 32])).unwrap();
        self.parts.state.set(Arc::new(state));
    }

    /// Undoes [`Rig::quarantine`].
    pub(crate) fn release(&self) {
        self.parts.state.set(Arc::clone(&self.healthy));
    }

    /// Drops what is cached of meta packs.
    pub(crate) fn forget_meta(&self) {
        self.parts.meta_cache.clear();
    }

    /// The names of all packs in the store, in order.
    pub(crate) async fn packs(&self) -> Vec<PackName> {
        self.parts.index.packs().unwrap().iter().map(|pack| pack.pack).collect()
    }

    /// Flips one bit of a pack in the store.
    pub(crate) async fn flip(&self, pack: &PackName, at: usize) {
        let key = layout::pack(pack);
        let mut bytes = self.store.get(&key, aquifer_store::GetRange::Whole).await.unwrap().to_vec();
        bytes[at] ^= 0x10;
        self.store.put(&key, bytes.into()).await.unwrap();
    }
}

/// What a backup of the rig did.
#[derive(Debug, Clone)]
pub(crate) struct Backup {
    pub(crate) tree: TreeSpec,
    pub(crate) built: BuiltTree,
    pub(crate) stored: Vec<Stored>,
}

impl Backup {
    /// How many chunks `which` is true of.
    pub(crate) fn count(&self, which: impl Fn(&Stored) -> bool) -> usize {
        self.stored.iter().filter(|stored| which(stored)).count()
    }

    /// Chunks stored anew.
    pub(crate) fn new_chunks(&self) -> usize {
        self.count(|stored| matches!(stored, Stored::New { .. }))
    }
}

/// Reads a whole disk back.
pub(crate) async fn read_disk(parts: &Parts, tree: TreeSpec) -> Result<Vec<u8>> {
    let chunk_bytes = parts.chunk_bytes as usize;
    let mut disk = vec![0; usize::try_from(tree.size_bytes).unwrap()];
    let mut reader = TreeReader::over(parts, tree);
    let mut opener = ChunkOpener::new(&parts.ring)?;
    let mut from = 0;
    while let Some((leaf, node)) = reader.next_leaf(from).await? {
        from = leaf + 1;
        let (slots, ids): (Vec<u8>, Vec<_>) = node.iter().unzip();
        let found = ids.iter().zip(parts.locate(&ids)?);
        let wanted = found.map(|(id, place)| place.ok_or(Error::Missing { chunk: *id }));
        let wanted = wanted.collect::<Result<Vec<_>>>()?;
        for fetch in plan_fetches(&wanted, 4096, 64 << 10) {
            let body = parts.fetch(&fetch.pack, u64::from(fetch.offset), u64::from(fetch.bytes)).await?;
            for item in fetch.items {
                let place = &wanted[item.wanted];
                let chunk = leaf * LEAF_CHUNKS + u64::from(slots[item.wanted]);
                let at = usize::try_from(chunk).unwrap() * chunk_bytes;
                let end = disk.len().min(at + chunk_bytes);
                let mut blob = body[item.at as usize..][..blob_bytes(place) as usize].to_vec();
                opener.open(place, &mut blob, &mut disk[at..end])?;
            }
        }
    }
    Ok(disk)
}

/// Stores `disk` through a session's data plane: all of it, or, over `base`, the chunks in `dirty`.
pub(crate) async fn store_disk(
    plane: &Arc<Plane>,
    disk: &[u8],
    base: TreeSpec,
    dirty: Option<&BTreeSet<u64>>,
) -> Result<Backup> {
    let size_bytes = disk.len() as u64;
    let chunk_bytes = u64::from(plane.parts().chunk_bytes);
    let mut builder = TreeBuilder::over(plane, base, size_bytes);
    let mut parent = TreeReader::over(plane.parts(), base);
    let chunks = size_bytes.div_ceil(chunk_bytes);
    let mut read: BTreeSet<u64> = dirty.map_or_else(|| (0..chunks).collect(), Clone::clone);
    read.extend(builder.stale_chunks());
    let leaves: BTreeSet<u64> = read.iter().map(|chunk| chunk / LEAF_CHUNKS).collect();
    let mut writer = ChunkWriter::new(Arc::clone(plane));
    let (mut all, mut out) = (Vec::new(), Vec::new());
    for leaf in leaves {
        let mut node = builder.leaf(leaf).await?;
        let before = parent.leaf(leaf).await?;
        let here: Vec<u64> = read.range(leaf * LEAF_CHUNKS..(leaf + 1) * LEAF_CHUNKS).copied().collect();
        let batch: Vec<PlainChunk<'_>> = here
            .iter()
            .map(|chunk| PlainChunk {
                bytes: &disk[bytes_of(*chunk, chunk_bytes, size_bytes)],
                parent: before.get(slot(*chunk)),
            })
            .collect();
        tokio::task::block_in_place(|| writer.store(&batch, &mut out))?;
        for (chunk, stored) in here.iter().zip(&out) {
            node.set(slot(*chunk), stored.id());
        }
        all.append(&mut out);
        builder.set_leaf(leaf, node).await?;
    }
    tokio::task::block_in_place(|| writer.finish())?;
    let built = builder.finish().await?;
    Ok(Backup { tree: TreeSpec { root: built.root, size_bytes }, built, stored: all })
}

impl Session {
    /// See [`Rig::backup`]; does not publish.
    pub(crate) async fn backup(
        &self,
        disk: &[u8],
        base: TreeSpec,
        dirty: Option<&BTreeSet<u64>>,
    ) -> Result<Backup> {
        store_disk(&self.plane, disk, base, dirty).await
    }

    /// Flushes and publishes what is stored.
    pub(crate) async fn commit(&self) -> Result<()> {
        self.plane.flush().await?;
        publish(&self.plane)
    }
}

fn slot(chunk: u64) -> u8 {
    u8::try_from(chunk % LEAF_CHUNKS).unwrap()
}

fn bytes_of(chunk: u64, chunk_bytes: u64, size_bytes: u64) -> Range<usize> {
    let end = size_bytes.min((chunk + 1) * chunk_bytes);
    usize::try_from(chunk * chunk_bytes).unwrap()..usize::try_from(end).unwrap()
}

/// The record of a backup of one disk.
pub(crate) fn record_of(begun: &BeginBackup, tree: TreeSpec) -> Record {
    let disk = DiskRecord {
        name: "vda".to_owned(),
        node: "disk0".to_owned(),
        size_bytes: tree.size_bytes,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        root: tree.root,
        bitmap: None,
        mode: Mode::Full,
        reason: None,
        read_bytes: tree.size_bytes,
        new_bytes: 0,
        dedup_bytes: 0,
        zero_bytes: 0,
        stored_bytes: 0,
    };
    Record {
        version: RECORD_VERSION,
        backup: begun.backup,
        parent: begun.parent,
        domain: DomainRecord { uuid: None, name: begun.domain.clone(), host: "here".to_owned() },
        created_ms: 1,
        description: String::new(),
        disks: vec![disk],
        definition: None,
        quiesce: QuiesceRecord::default(),
        tool: "test".to_owned(),
        labels: BTreeMap::new(),
        namespace: None,
        external: false,
    }
}

/// Bytes that are the same for the same seed and do not compress.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Runs `test` on a runtime whose uploaders do not depend on the testing thread.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

/// The first failure behind a session's error.
pub(crate) fn cause(error: &Error) -> &Error {
    match error {
        Error::SessionFailed { cause } => self::cause(cause),
        other => other,
    }
}
