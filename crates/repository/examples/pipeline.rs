//! How fast the data plane is on this machine: each stage alone, then the whole pipeline into a directory.
//!
//! `cargo run --release --example pipeline -- [MIB] [THREADS] [FILE]` stores MIB mebibytes (default 1024) with
//! THREADS chunk writers (default: one a core), made up or taken from FILE, several times into fresh repositories;
//! then again unchanged, then restores and verifies. Wall and processor seconds of each are printed; nothing is
//! asserted.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use aquifer_repository::format::record::{
    DiskRecord, DomainRecord, Mode, QuiesceRecord, RECORD_VERSION, Record,
};
use aquifer_repository::format::{
    BlobKind, ChunkId, Compressor, Decompressor, KdfParams, KeyRing, Node, PackBuilder, PackKind, PackName,
    SessionId,
};
use aquifer_repository::store::Local;
use aquifer_repository::{
    BackupSession, BeginBackup, BootClock, FENCE_AFTER, InitOptions, LEAF_CHUNKS, PlainChunk, Repository,
    Secret, Settings, Stored, Stores, TreeBuilder, TreeReader, TreeSpec, VerifyLevel, VerifyRequest, World,
    blob_bytes, is_zero, plan_fetches,
};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CHUNK: usize = 128 << 10;
/// Chunks that a writer gets at once.
const BATCH: usize = 16;

/// The process's clock, and randomness that need not be secret here.
struct BenchWorld {
    start: Instant,
    drawn: AtomicU64,
}

impl World for BenchWorld {
    fn wall_ms(&self) -> u64 {
        0
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn boot_clock(&self) -> BootClock {
        BootClock { boot: [0; 16], ms: self.monotonic_ms() }
    }

    fn random(&self, out: &mut [u8]) {
        for bytes in out.chunks_mut(8) {
            let mut word = self.drawn.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bytes.copy_from_slice(&(word ^ (word >> 27)).to_le_bytes()[..bytes.len()]);
        }
    }
}

/// User and system seconds of this process so far, from the kernel's accounting in ticks of 10 ms.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Prints rate, wall and processor time of one piece of work over `bytes` bytes.
struct Clock {
    start: Instant,
    processor: f64,
}

impl Clock {
    fn start() -> Self {
        Clock { start: Instant::now(), processor: processor_seconds() }
    }

    fn tell(&self, what: &str, bytes: usize, detail: &str) {
        let (wall, processor) = (self.start.elapsed().as_secs_f64(), processor_seconds() - self.processor);
        let rate = bytes as f64 / wall / 1e6;
        println!(
            "{what:<38} {rate:>8.0} MB/s   wall {wall:>6.2} s   processor {processor:>6.2} s   {detail}"
        );
    }
}

/// Data that zstd shrinks to less than a half, as it does with installed programs: words, small records with
/// counters, noise, and repetitions of what came shortly before.
fn made_up(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % (limit as u64)).unwrap_or(0)
    };
    let letters: Vec<u8> = (b'a'..=b'z').collect();
    let words: Vec<Vec<u8>> =
        (0..4000).map(|_| (0..3 + below(9)).map(|_| letters[below(26)]).collect()).collect();
    let mut out = Vec::with_capacity(length + 4096);
    while out.len() < length {
        match below(8) {
            0..=2 => (0..40).for_each(|_| {
                out.extend_from_slice(&words[below(4000)]);
                out.push(b' ');
            }),
            3 | 4 => (0..16_usize).for_each(|row| {
                out.extend_from_slice(&below(5000).to_le_bytes());
                out.extend_from_slice(&(row * 64).to_le_bytes());
            }),
            5 => (0..24).for_each(|_| out.extend_from_slice(&below(usize::MAX).to_le_bytes())),
            _ if out.len() > 64 << 10 => {
                let start = out.len() - (4 << 10) - below(60 << 10);
                out.extend_from_within(start..start + 256 + below(2 << 10));
            }
            _ => out.push(0),
        }
    }
    out.truncate(length);
    out
}

fn stages(data: &[u8], ring: &KeyRing) -> Outcome<()> {
    let chunks = || data.chunks(CHUNK);
    let clock = Clock::start();
    let zeros = chunks().filter(|chunk| is_zero(chunk)).count();
    clock.tell("zero test", data.len(), &format!("{zeros} zero chunks"));

    let clock = Clock::start();
    let ids: Vec<ChunkId> = chunks().map(|chunk| ring.chunk_id(BlobKind::Data, chunk)).collect();
    clock.tell("keyed BLAKE3", data.len(), "");

    let mut compressor = Compressor::new(1)?;
    let mut out = vec![0; CHUNK];
    let clock = Clock::start();
    let mut packed = 0;
    for chunk in chunks() {
        packed += compressor.compress(chunk, &mut out)?.1;
    }
    clock.tell("zstd -1", data.len(), &format!("ratio {:.2}", data.len() as f64 / packed as f64));

    for check in [false, true] {
        let (mut decompressor, mut buffer) = (Decompressor::new()?, Vec::new());
        let clock = Clock::start();
        for (number, group) in (0..).zip(chunks().zip(&ids).collect::<Vec<_>>().chunks(512)) {
            let name = PackName { session: SessionId([1; 16]), number };
            let mut pack = PackBuilder::reusing(ring, name, PackKind::Data, [7; 32], 66 << 20, buffer)?;
            for (chunk, id) in group {
                pack.push(&mut compressor, BlobKind::Data, id, chunk)?;
                if check {
                    pack.check_last(&mut decompressor, chunk)?;
                }
            }
            buffer = pack.finish()?.bytes;
        }
        let what = if check { "pack: zstd, AES, hash, self-check" } else { "pack: zstd, AES, hash" };
        clock.tell(what, data.len(), "one thread");
    }
    Ok(())
}

/// What a store of the whole data came to.
struct Done {
    new: usize,
    tree: TreeSpec,
}

/// Stores `data` as one disk with `threads` writers.
async fn store(
    session: &Arc<BackupSession>,
    data: &Arc<Vec<u8>>,
    base: TreeSpec,
    threads: usize,
) -> Outcome<Done> {
    let mut parents = Vec::new();
    let mut reader = TreeReader::new(session.repository(), base);
    for leaf in 0..(data.len().div_ceil(CHUNK) as u64).div_ceil(LEAF_CHUNKS) {
        let node = reader.leaf(leaf).await?;
        parents.extend((0..=u8::MAX).map(|slot| node.get(slot)));
    }
    let (parents, next) = (Arc::new(parents), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let (mut writer, data) = (session.chunk_writer(), Arc::clone(data));
            let (parents, next) = (Arc::clone(&parents), Arc::clone(&next));
            std::thread::spawn(move || -> aquifer_repository::Result<Vec<(usize, Stored)>> {
                let (mut all, mut out) = (Vec::new(), Vec::new());
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    let chunks = data.chunks(CHUNK).enumerate().skip(first).take(BATCH);
                    let batch: Vec<_> =
                        chunks.map(|(number, bytes)| PlainChunk { bytes, parent: parents[number] }).collect();
                    if batch.is_empty() {
                        writer.finish()?;
                        return Ok(all);
                    }
                    writer.store(&batch, &mut out)?;
                    all.extend((first..).zip(out.iter().copied()));
                }
            })
        })
        .collect();
    let mut stored = Vec::new();
    for thread in threads {
        stored
            .extend(tokio::task::spawn_blocking(|| thread.join()).await?.map_err(|_| "a writer panicked")??);
    }
    stored.sort_unstable_by_key(|(number, _)| *number);
    let mut builder = TreeBuilder::new(session, TreeSpec::default(), data.len() as u64);
    for (leaf, chunks) in (0..).zip(stored.chunks(256)) {
        let mut node = Node::new(0);
        for (slot, (_, stored)) in (0..=u8::MAX).zip(chunks) {
            node.set(slot, stored.id());
        }
        builder.set_leaf(leaf, node).await?;
    }
    let built = builder.finish().await?;
    let new = stored.iter().filter(|(_, stored)| matches!(stored, Stored::New { .. })).count();
    Ok(Done { new, tree: TreeSpec { root: built.root, size_bytes: data.len() as u64 } })
}

fn record(backup: Uuid, parent: Option<Uuid>, done: &Done) -> Record {
    let disk = DiskRecord {
        name: "vda".to_owned(),
        node: String::new(),
        size_bytes: done.tree.size_bytes,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        root: done.tree.root,
        bitmap: None,
        mode: Mode::Full,
        reason: None,
        read_bytes: 0,
        new_bytes: 0,
        dedup_bytes: 0,
        zero_bytes: 0,
        stored_bytes: 0,
    };
    Record {
        version: RECORD_VERSION,
        backup,
        parent,
        domain: DomainRecord { uuid: None, name: "bench".to_owned(), host: String::new() },
        created_ms: 0,
        description: String::new(),
        disks: vec![disk],
        definition: None,
        quiesce: QuiesceRecord::default(),
        tool: "pipeline".to_owned(),
        labels: std::collections::BTreeMap::new(),
        namespace: None,
        external: false,
    }
}

async fn backup(
    repository: &Arc<Repository>,
    number: u128,
    parent: Option<(Uuid, TreeSpec)>,
    data: &Arc<Vec<u8>>,
    threads: usize,
) -> Outcome<(Uuid, Done, u64)> {
    let backup = Uuid::from_u128(number);
    let begin = BeginBackup {
        backup,
        domain: "bench".to_owned(),
        parent: parent.map(|(uuid, _)| uuid),
        bases: Vec::new(),
        fence_after: FENCE_AFTER,
    };
    let session = repository.begin_backup(begin).await?;
    let base = parent.map_or(TreeSpec::default(), |(_, tree)| tree);
    let done = store(&session, data, base, threads).await?;
    let committed = session.commit(record(backup, parent.map(|(uuid, _)| uuid), &done)).await?;
    Ok((backup, done, committed.pack_bytes))
}

/// Reads a tree back with `threads` openers, as a restore without a volume.
async fn restore(repository: &Arc<Repository>, tree: TreeSpec, threads: usize) -> Outcome<usize> {
    let (to_open, fetched) =
        async_channel::bounded::<(Arc<Vec<_>>, aquifer_repository::Fetch, bytes::BytesMut)>(4);
    let openers: Vec<_> = (0..threads)
        .map(|_| {
            let (fetched, mut opener) = (fetched.clone(), repository.chunk_opener());
            std::thread::spawn(move || -> aquifer_repository::Result<usize> {
                let opener = opener.as_mut().map_err(|_| aquifer_repository::Error::Closed)?;
                let (mut plain, mut sum) = (vec![0; CHUNK], 0);
                while let Ok((wanted, fetch, mut body)) = fetched.recv_blocking() {
                    for item in &fetch.items {
                        let place: &aquifer_repository::Location = &wanted[item.wanted];
                        let blob = &mut body[item.at as usize..][..blob_bytes(place) as usize];
                        let out = &mut plain[..place.row.plain_bytes as usize];
                        opener.open(place, blob, out)?;
                        sum += out.len();
                    }
                }
                Ok(sum)
            })
        })
        .collect();
    drop(fetched);
    let mut reader = TreeReader::new(repository, tree);
    let mut from = 0;
    while let Some((leaf, node)) = reader.next_leaf(from).await? {
        from = leaf + 1;
        let ids: Vec<ChunkId> = node.iter().map(|(_, id)| id).collect();
        let wanted = Arc::new(
            repository.locate(&ids)?.into_iter().collect::<Option<Vec<_>>>().ok_or("a chunk is missing")?,
        );
        for fetch in plan_fetches(&wanted, 64 << 10, 4 << 20) {
            let body = repository.fetch(&fetch.pack, u64::from(fetch.offset), u64::from(fetch.bytes)).await?;
            to_open.send((Arc::clone(&wanted), fetch, body)).await?;
        }
    }
    drop(to_open);
    let mut sum = 0;
    for opener in openers {
        sum += tokio::task::spawn_blocking(|| opener.join()).await?.map_err(|_| "an opener panicked")??;
    }
    Ok(sum)
}

async fn open(path: &Path, state: PathBuf, settings: Settings) -> Outcome<Arc<Repository>> {
    let world =
        Arc::new(BenchWorld { start: Instant::now(), drawn: AtomicU64::new(u64::from(std::process::id())) });
    let options = InitOptions {
        stores: Stores { packs: Arc::new(Local::create(path)?), log: None },
        world,
        state_dir: Some(state),
        secret: Some(Secret::new(b"bench".to_vec())),
        recovery: None,
        kdf: KdfParams { memory_kib: 64, passes: 1, lanes: 1 },
        chunk_bytes: u32::try_from(CHUNK)?,
        settings,
    };
    Ok(Repository::init(options).await?)
}

async fn rounds(data: &Arc<Vec<u8>>, threads: usize) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    for round in 0..3 {
        for self_check in [false, true] {
            let path = folder.path().join(format!("{round}-{self_check}"));
            std::fs::create_dir_all(&path)?;
            let settings = Settings { self_check, ..Settings::default() };
            let repository = open(&path.join("store"), path.join("state"), settings).await?;
            if round == 0 && !self_check {
                stages(data, repository.ring())?;
            }
            let clock = Clock::start();
            let (uuid, done, pack_bytes) = backup(&repository, 1, None, data, threads).await?;
            let what = if self_check { "backup, self-check on" } else { "backup, self-check off" };
            let detail = format!("{} new chunks, {} MiB stored", done.new, pack_bytes >> 20);
            clock.tell(what, data.len(), &detail);
            let clock = Clock::start();
            let (_, again, _) = backup(&repository, 2, Some((uuid, done.tree)), data, threads).await?;
            clock.tell("backup, unchanged, all read", data.len(), &format!("{} new chunks", again.new));
            if self_check {
                let clock = Clock::start();
                let bytes = restore(&repository, done.tree, threads).await?;
                clock.tell("restore, to memory", bytes, "");
                for level in [VerifyLevel::Structure, VerifyLevel::Packs, VerifyLevel::Chunks] {
                    let request = VerifyRequest { level, backups: vec![uuid], sample_percent: 100 };
                    let clock = Clock::start();
                    let report = repository.verify(&request, |_| ()).await?;
                    let what = format!("verify, {level:?}").to_lowercase();
                    clock.tell(
                        &what,
                        data.len(),
                        &format!("{} packs, {} damaged", report.packs, report.damage.len()),
                    );
                }
            }
            drop(repository);
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let cores = std::thread::available_parallelism()?.get();
    let threads = arguments.next().map_or(Ok(cores), |text| text.parse())?;
    let data = match arguments.next() {
        Some(path) => {
            let mut data = std::fs::read(path)?;
            data.truncate(mib << 20);
            data
        }
        None => made_up(mib << 20),
    };
    println!("{} MiB, {threads} writers, chunks of {} KiB", data.len() >> 20, CHUNK >> 10);
    tokio::runtime::Runtime::new()?.block_on(rounds(&Arc::new(data), threads))
}
