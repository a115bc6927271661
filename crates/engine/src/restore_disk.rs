//! One disk of a restore: tree → compare → locate → fetch → open → put.
//!
//! Where the volume may hold something, what it holds is compared with the tree first, and only what differs goes on. The rest
//! of the way asks the index for a window of chunks at once, turns the answer into few large ranges of few
//! packs, and lets many be fetched together. Processor threads take what arrives ([`crate::restore_open`]).
//!
//! What cannot be read is put aside for [`crate::rescue`].
//!
//! Invariant: every chunk of the tree is compared or fetched once, and what is fetched waits within the budget of buffers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use aquifer_repository::format::id::ChunkId;
use aquifer_repository::{Fetch, Repository, TreeReader, TreeSpec, plan_fetches};
use async_channel::{Receiver, Sender};
use tokio::task::JoinSet;

use crate::buffers::{Buffers, Share};
use crate::compare::{Compared, LANES, Run, compare};
use crate::error::{Error, Kind, Result};
use crate::plan::Grid;
use crate::rescue::rescue;
use crate::restore_open::{Fetched, Item, Job};
use crate::target::{Suspect, Target};
use crate::volume::{Applied, blocking};
use crate::walk::{Walk, Walked};

/// Chunks that are located together, at least.
const WINDOW_CHUNKS: usize = 2048;

/// Ranges of full length that they are at least: a pack that a window cuts in two is asked for twice, which counts where a
/// range is a pack.
const WINDOW_RANGES: u64 = 32;

/// Unwanted bytes between two wanted blobs that are fetched along.
const FETCH_GAP_BYTES: u32 = 128 << 10;

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
    let fetched = Fetched::new(target, blob.into(), items, share);
    // What ended the threads is the error that the job reports.
    let sent = shared.jobs.send(Job::Open(fetched)).await;
    sent.map_err(|_| Error::new(Kind::Internal, "the processor threads ended early"))
}
