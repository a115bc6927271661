//! One disk of a restore: tree → compare → locate → fetch → open → put.
//!
//! Where the volume may hold something, what it holds is compared with the tree first, and only what differs goes on. The rest
//! of the way asks the index for a window of chunks at once, turns the answer into few large ranges of few
//! packs, and lets many be fetched together. Processor threads open what arrives and put it at its offset:
//! into a file directly, towards an export through lanes of its own.
//!
//! What cannot be read is put aside for [`crate::rescue`].
//!
//! Invariant (P3): only bytes that hashed to the id in the tree, and have the length of their place on the
//! disk, reach the volume.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, TryLockError};

use aquifer_repository::format::id::ChunkId;
use aquifer_repository::{
    ChunkOpener, Fetch, Location, Repository, TreeReader, TreeSpec, blob_bytes, plan_fetches,
};
use async_channel::{Receiver, Sender};
use tokio::task::JoinSet;

use crate::buffers::{Buffers, Share};
use crate::compare::{Compared, Comparer, Comparison, LANES, Run, compare};
use crate::error::{Error, Kind, Result};
use crate::plan::Grid;
use crate::rescue::rescue;
use crate::target::{Put, Suspect, Target};
use crate::volume::{Applied, Joined, blocking};
use crate::walk::{Walk, Walked};
use crate::workers::Worker;

/// Chunks that are located together, at least.
const WINDOW_CHUNKS: usize = 2048;

/// Ranges of full length that they are at most, if that is more: what a window cuts in two is asked for twice, which
/// counts where ranges are as long as packs.
const WINDOW_RANGES: u64 = 32;

/// Unwanted bytes between two wanted blobs that are fetched along.
const FETCH_GAP_BYTES: u32 = 128 << 10;

/// Open chunks of one thread that wait while another thread writes to the file.
const WAITING_CHUNKS: usize = 8;

/// What all disks of a restore share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) repository: Arc<Repository>,
    pub(crate) jobs: Sender<Job>,
    pub(crate) buffers: Arc<Buffers>,
}

/// A walk over the disk of `target`.
pub(crate) fn walk(repository: &Arc<Repository>, tree: TreeSpec, grid: Grid) -> Walk {
    Walk::new(TreeReader::new(repository, tree), grid)
}

/// Fetches every chunk of the disk and hands it to the processor threads; clears what is zero.
///
/// # Errors
/// The first failure, naming the disk.
pub(crate) async fn read_tree(target: Arc<Target>, shared: Shared) -> Result<()> {
    let (to_clear, gaps) = async_channel::bounded(WINDOW_CHUNKS);
    let (found, runs) = async_channel::bounded(LANES);
    let (missing, wanted) = async_channel::bounded(LANES);
    let done = Box::pin(async {
        tokio::try_join!(
            walk_tree(&target, &shared, to_clear, found),
            skip_held(&target, &shared, runs, missing),
            fetch_chunks(&target, &shared, wanted),
            clear_gaps(&target, gaps)
        )
    });
    done.await.map(|_| ()).map_err(|error| target.about(error))
}

async fn walk_tree(
    target: &Target,
    shared: &Shared,
    to_clear: Sender<Range<u64>>,
    found: Sender<Run>,
) -> Result<()> {
    let mut walk = walk(&shared.repository, target.tree, target.grid);
    while let Some(piece) = walk.next().await? {
        // The other side is gone only if it failed; that error is the one that counts.
        match piece {
            Walked::Lost(range, error) => target.lose([range], error)?,
            Walked::Gap(range) => to_clear.send(range).await.map_err(|_| Error::cancelled())?,
            Walked::Chunks(first, ids) => {
                for run in (Run { first, ids }).pieces(target.grid.chunk_bytes()) {
                    found.send(run).await.map_err(|_| Error::cancelled())?;
                }
            }
        }
    }
    Ok(())
}

/// Hands on what the volume does not hold yet; all of it, if it holds nothing.
async fn skip_held(
    target: &Arc<Target>,
    shared: &Shared,
    runs: Receiver<Run>,
    missing: Sender<Vec<(u64, ChunkId)>>,
) -> Result<()> {
    if target.volume.blank {
        while let Ok(run) = runs.recv().await {
            missing.send(run.into_chunks()).await.map_err(|_| Error::cancelled())?;
        }
        return Ok(());
    }
    let (from_lanes, compared) = async_channel::bounded(LANES);
    let lanes = compare(target, &shared.buffers, shared.jobs.clone(), runs, from_lanes);
    tokio::try_join!(lanes, skip_same(target, compared, missing)).map(|_| ())
}

async fn skip_same(
    target: &Target,
    compared: Receiver<Compared>,
    missing: Sender<Vec<(u64, ChunkId)>>,
) -> Result<()> {
    while let Ok(Compared { bytes, differing }) = compared.recv().await {
        let place = |(chunk, _): &(u64, ChunkId)| target.place_of(*chunk);
        let differing_bytes: u64 = differing.iter().map(place).map(|place| place.end - place.start).sum();
        target.note(Applied { skipped_bytes: bytes - differing_bytes, ..Applied::default() });
        missing.send(differing).await.map_err(|_| Error::cancelled())?;
    }
    Ok(())
}

async fn fetch_chunks(
    target: &Arc<Target>,
    shared: &Shared,
    wanted: Receiver<Vec<(u64, ChunkId)>>,
) -> Result<()> {
    let mut fetches = JoinSet::new();
    let mut window = Wanted::default();
    let ranges_bytes = WINDOW_RANGES * u64::from(shared.repository.range_bytes());
    let window_chunks = usize::try_from(ranges_bytes / target.grid.chunk_bytes()).unwrap_or(usize::MAX);
    let window_chunks = window_chunks.max(WINDOW_CHUNKS);
    while let Ok(chunks) = wanted.recv().await {
        chunks.into_iter().for_each(|(chunk, id)| window.add(chunk, id));
        if window.ids.len() >= window_chunks {
            start_fetches(target, shared, std::mem::take(&mut window), &mut fetches).await?;
            rescue(target, &shared.repository).await?;
        }
    }
    start_fetches(target, shared, window, &mut fetches).await?;
    while let Some(ended) = fetches.join_next().await {
        ended.map_err(|error| Error::caused(Kind::Internal, error))??;
    }
    Ok(())
}

async fn clear_gaps(target: &Target, gaps: Receiver<Range<u64>>) -> Result<()> {
    while let Ok(range) = gaps.recv().await {
        let zero_bytes = range.end - range.start;
        target.volume.clear(range).await?;
        target.note(Applied { zero_bytes, ..Applied::default() });
    }
    Ok(())
}

/// Chunks to fetch: each id once, with all its places.
#[derive(Default)]
struct Wanted {
    ids: Vec<ChunkId>,
    places: Vec<Vec<u64>>,
    known: BTreeMap<ChunkId, usize>,
}

impl Wanted {
    fn add(&mut self, chunk: u64, id: ChunkId) {
        let at = *self.known.entry(id).or_insert(self.ids.len());
        if at == self.ids.len() {
            self.ids.push(id);
            self.places.push(Vec::new());
        }
        self.places[at].push(chunk);
    }
}

async fn start_fetches(
    target: &Arc<Target>,
    shared: &Shared,
    wanted: Wanted,
    running: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let repository = Arc::clone(&shared.repository);
    let Wanted { ids, places, .. } = wanted;
    let (ids, found) = blocking(move || Ok(repository.locate(&ids).map(|found| (ids, found))?)).await?;
    let (mut locations, mut kept) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
    for ((id, chunks), location) in ids.into_iter().zip(places).zip(found) {
        match location {
            Some(location) => {
                locations.push(location);
                kept.push(chunks);
            }
            None => target.suspect(Suspect { id, chunks }),
        }
    }
    for fetch in plan_fetches(&locations, FETCH_GAP_BYTES, shared.repository.range_bytes()) {
        let items = fetch
            .items
            .iter()
            .map(|item| Item {
                location: locations[item.wanted],
                at: item.at,
                chunks: std::mem::take(&mut kept[item.wanted]),
            })
            .collect();
        let share = shared.buffers.share(usize::try_from(fetch.bytes).unwrap_or(usize::MAX)).await;
        running.spawn(fetch_one(Arc::clone(target), shared.clone(), fetch, items, share));
        // Finished ones are taken away, so that the set stays as small as the budget.
        while let Some(ended) = running.try_join_next() {
            ended.map_err(|error| Error::caused(Kind::Internal, error))??;
        }
    }
    Ok(())
}

async fn fetch_one(
    target: Arc<Target>,
    shared: Shared,
    fetch: Fetch,
    items: Vec<Item>,
    share: Share,
) -> Result<()> {
    let read = shared.repository.fetch(&fetch.pack, u64::from(fetch.offset), u64::from(fetch.bytes)).await;
    let blob = match read.map_err(Error::from) {
        Ok(blob) => blob,
        Err(error) if error.kind() == Kind::Corrupt => {
            items.into_iter().for_each(|item| target.suspect(item.into()));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let fetched = Fetched { target, blob: blob.into(), items, _share: share };
    // What ended the threads is the error that the job reports.
    let sent = shared.jobs.send(Job::Open(fetched)).await;
    sent.map_err(|_| Error::new(Kind::Internal, "the processor threads ended early"))
}

/// One blob of a fetched range.
struct Item {
    location: Location,
    at: u32,
    chunks: Vec<u64>,
}

impl From<Item> for Suspect {
    fn from(item: Item) -> Self {
        Suspect { id: item.location.row.id, chunks: item.chunks }
    }
}

/// What a processor thread of a restore does.
pub(crate) enum Job {
    Open(Fetched),
    Compare(Comparison),
}

impl From<Comparison> for Job {
    fn from(comparison: Comparison) -> Self {
        Job::Compare(comparison)
    }
}

/// A fetched range for the processor threads.
pub(crate) struct Fetched {
    target: Arc<Target>,
    blob: Vec<u8>,
    items: Vec<Item>,
    _share: Share,
}

/// A processor thread of a restore.
pub(crate) struct Opener {
    opener: ChunkOpener,
    comparer: Comparer,
    /// Open chunks that wait for their turn at the file.
    waiting: Vec<Opened>,
    /// Buffers to open into.
    spare: Vec<Vec<u8>>,
    old: Vec<u8>,
    /// Of a new file: what is not written yet.
    joined: Joined,
}

/// A chunk that is open, and the offsets on the volume that it belongs to.
struct Opened {
    offsets: Vec<u64>,
    plain: Vec<u8>,
}

impl Opener {
    /// # Errors
    /// When zstd has no memory for a context.
    pub(crate) fn new(repository: &Repository) -> Result<Self> {
        Ok(Opener {
            opener: repository.chunk_opener()?,
            comparer: Comparer::new(repository.ring()),
            waiting: Vec::new(),
            spare: Vec::new(),
            old: Vec::new(),
            joined: Joined::default(),
        })
    }

    fn put(&mut self, fetched: &mut Fetched) -> Result<()> {
        let target = &*fetched.target;
        let mut touched = Touched::default();
        for item in std::mem::take(&mut fetched.items) {
            let opened = match self.open(target, &mut fetched.blob, &item) {
                Ok(opened) => opened,
                Err(error) if error.kind() == Kind::Corrupt => {
                    target.suspect(item.into());
                    continue;
                }
                Err(error) => return Err(error),
            };
            for &offset in &opened.offsets {
                touched.add(offset, item.location.row.plain_bytes);
            }
            self.hand_on(&fetched.target, opened)?;
        }
        self.write_waiting(target, 0)?;
        if let (Some(file), Some(range)) = (target.volume.file(), touched.near()) {
            file.begin_writeback(range);
        }
        Ok(())
    }

    fn open(&mut self, target: &Target, blob: &mut [u8], item: &Item) -> Result<Opened> {
        let bytes = usize::try_from(item.location.row.plain_bytes).unwrap_or(usize::MAX);
        let start = usize::try_from(item.at).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(blob_bytes(&item.location)).unwrap_or(usize::MAX));
        let limit = usize::try_from(target.grid.chunk_bytes()).unwrap_or(usize::MAX);
        let Some(blob) = blob.get_mut(start..end).filter(|_| bytes <= limit) else {
            return Err(misplaced(&item.location, "lies outside what was fetched"));
        };
        let mut plain = self.spare.pop().unwrap_or_default();
        plain.resize(bytes, 0);
        self.opener.open(&item.location, blob, &mut plain)?;
        let places = item.chunks.iter().map(|&chunk| target.place_of(chunk));
        let fitting = places.map(|place| {
            let fits = place.end - place.start == u64::from(item.location.row.plain_bytes);
            fits.then_some(place.start)
        });
        let offsets = fitting.collect::<Option<Vec<u64>>>();
        let offsets = offsets
            .ok_or_else(|| misplaced(&item.location, "has not the length of its place on the disk"))?;
        Ok(Opened { offsets, plain })
    }

    fn hand_on(&mut self, target: &Arc<Target>, opened: Opened) -> Result<()> {
        if target.volume.file().is_some() {
            self.waiting.push(opened);
            return self.write_waiting(target, WAITING_CHUNKS);
        }
        for offset in opened.offsets {
            match &target.puts {
                Some(puts) => {
                    let put = Put { target: Arc::clone(target), offset, bytes: opened.plain.clone() };
                    let sent = puts.send_blocking(put);
                    sent.map_err(|_| Error::new(Kind::Internal, "the lanes to the volume ended early"))?;
                }
                None => {
                    let written_bytes = u64::try_from(opened.plain.len()).unwrap_or(u64::MAX);
                    target.note(Applied { written_bytes, ..Applied::default() });
                }
            }
        }
        self.spare.push(opened.plain);
        Ok(())
    }

    /// Writes what waits to the file. While another thread writes, up to `most` chunks go on waiting.
    fn write_waiting(&mut self, target: &Target, most: usize) -> Result<()> {
        let Some(file) = target.volume.file() else { return Ok(()) };
        let _turn = match target.writing.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::WouldBlock)
                if self.waiting.len() <= most && (most > 0 || self.joined.is_empty()) =>
            {
                return Ok(());
            }
            Err(_) => target.writing.lock().unwrap_or_else(PoisonError::into_inner),
        };
        for opened in self.waiting.drain(..) {
            for offset in opened.offsets {
                let applied = match file.join(offset, &opened.plain, &mut self.joined)? {
                    Some(applied) => applied,
                    None => file.put(target.volume.blank, offset, &opened.plain, &mut self.old)?,
                };
                target.note(applied);
            }
            self.spare.push(opened.plain);
        }
        // Nobody else's chunks go on where these ended.
        if most == 0 { self.joined.write(file) } else { Ok(()) }
    }
}

/// The part of a volume that one fetched range went to.
#[derive(Default)]
struct Touched {
    span: Option<Range<u64>>,
    bytes: u64,
}

impl Touched {
    fn add(&mut self, offset: u64, bytes: u32) {
        let end = offset + u64::from(bytes);
        self.bytes += u64::from(bytes);
        let span = self.span.get_or_insert(offset..end);
        *span = span.start.min(offset)..span.end.max(end);
    }

    /// The span, if it is not mostly other ranges' places.
    fn near(self) -> Option<Range<u64>> {
        self.span.filter(|span| span.end - span.start <= 4 * self.bytes)
    }
}

fn misplaced(location: &Location, what: &str) -> Error {
    let text = format!("chunk {} of pack {} {what}", location.row.id, location.pack);
    Error::new(Kind::Corrupt, text).hint("verify the repository; rebuild the index if only that is damaged")
}

impl Worker for Opener {
    type Job = Job;

    fn run(&mut self, jobs: &mut Vec<Job>) -> Result<()> {
        for job in jobs.drain(..) {
            match job {
                Job::Open(mut fetched) => {
                    self.put(&mut fetched).map_err(|error| fetched.target.about(error))?;
                }
                Job::Compare(comparison) => self.comparer.compare(comparison),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}
