//! One disk of a backup: regions → plan → reads → processor threads → tree.
//!
//! Four parts run at once, joined by bounded queues. The planner walks the regions and opens stripes; the
//! lanes keep every connection full of requests; the processor threads (shared by all disks) store chunks
//! and settle them in their stripes; the tree takes finished stripes in order. None of them ever waits for
//! the tree, and nothing here grows with the size of the disk: a bounded window of stripes is in flight.
//!
//! An increment is built upon its base's tree: what is not touched is neither read nor written, and costs nothing. When
//! the base turns out to be other than the bitmap says, or cannot be read, the disk is read whole in the same backup.
//!
//! Invariant: the tally covers every byte of the disk exactly once, or the disk fails.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use aquifer_nbd::Client;
use aquifer_repository::format::tree::Node;
use aquifer_repository::{
    BackupSession, BuiltTree, ChunkWriter, PlainChunk, Repository, Stored, TreeBuilder, TreeReader, TreeSpec,
};
use async_channel::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::buffers::{Buffers, Lease};
use crate::changes::{Changes, Regions};
use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Grid, Piece, Planner, STRIPE_CHUNKS, StripePlan};
use crate::progress::{DiskMeter, EventSink};
use crate::settings::{REQUEST_BYTES, REQUESTS_PER_CONNECTION};
use crate::stripe::{Change, Filling, Step, Stripe, Tally};
use crate::tail::last_kept;
use crate::throttle::Throttle;
use crate::workers::Worker;

/// Steps of one disk in flight at most: enough for every lane to be in a stripe of its own.
const WINDOW: usize = 256;

/// What all disks of a job share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) repository: Arc<Repository>,
    pub(crate) session: Arc<BackupSession>,
    pub(crate) batches: Sender<Batch>,
    pub(crate) buffers: Arc<Buffers>,
    /// What the buffers may hold when a long line asks for it.
    pub(crate) line_bytes: u64,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) events: EventSink,
}

/// One disk to read.
pub(crate) struct DiskRead {
    pub(crate) name: String,
    pub(crate) client: Client,
    /// The disk's tree in an earlier backup, which chunks are compared with first; the base of an increment.
    pub(crate) parent: Option<TreeSpec>,
    /// What changed since the parent, where a bitmap tells.
    pub(crate) changes: Option<Changes>,
    pub(crate) meter: DiskMeter,
}

/// What was read of it.
#[derive(Debug)]
pub(crate) struct DiskDone {
    pub(crate) tree: BuiltTree,
    pub(crate) tally: Tally,
    /// Nodes of the parent's tree read for the comparison.
    pub(crate) compared_nodes: u64,
    /// Why the bitmap was not believed in the end, and the disk read whole.
    pub(crate) doubt: Option<String>,
}

/// Why a pass over a disk ended before its end.
pub(crate) enum Halt {
    /// The bitmap or the base is not what it should be.
    Doubt(String),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Failed(error.into())
    }
}

/// Bytes of one request: [`REQUEST_BYTES`], or a chunk where that is larger.
pub(crate) fn request_bytes(chunk_bytes: u32) -> u32 {
    (REQUEST_BYTES / chunk_bytes.max(1)).max(1) * chunk_bytes
}

/// Reads a disk and builds its tree: what changed, or everything when that cannot be believed.
///
/// # Errors
/// The first failure of the source, the repository or a processor thread, naming the disk.
pub(crate) async fn read_disk(mut disk: DiskRead, shared: Shared) -> Result<DiskDone> {
    let about =
        |error: Error| error.about(format_args!("disk {}", disk.name)).with("disk", disk.name.clone());
    let changes = disk.changes.take();
    let doubt = match Box::pin(pipeline(&disk, changes, &shared)).await {
        Ok(done) => return Ok(done),
        Err(Halt::Failed(error)) => return Err(about(error)),
        Err(Halt::Doubt(doubt)) => doubt,
    };
    shared.events.warn(format!("disk {}: {doubt}; it is read whole", disk.name));
    disk.meter.restart();
    match Box::pin(pipeline(&disk, None, &shared)).await {
        Ok(done) => Ok(DiskDone { doubt: Some(doubt), ..done }),
        Err(Halt::Failed(error)) => Err(about(error)),
        Err(Halt::Doubt(doubt)) => Err(about(Error::new(Kind::Internal, doubt))),
    }
}

/// One pass over the disk.
async fn pipeline(disk: &DiskRead, mut changes: Option<Changes>, shared: &Shared) -> Result<DiskDone, Halt> {
    let grid = Grid::new(disk.client.info().size_bytes, shared.session.chunk_bytes());
    let (to_lanes, requests) = async_channel::bounded(WINDOW);
    let (to_tree, steps) = async_channel::bounded(WINDOW);
    let lanes = start_lanes(&disk.client, &requests, shared);
    let lanes_bytes = lanes.len() as u64 * u64::from(request_bytes(shared.session.chunk_bytes()));
    shared.buffers.grow_to(lanes_bytes.min(shared.line_bytes));
    // A whole read builds its tree from nothing, and only compares.
    let base = disk.parent.filter(|_| changes.is_some()).unwrap_or_default();
    let mut parent = Compared::new(shared, disk.parent, changes.is_some());
    if let (Some(changes), Some(reader)) = (&mut changes, &mut parent.reader) {
        let last = last_kept(&disk.client, reader, grid, changes).await?;
        changes.draw.include(last);
    }
    let driver = Driver {
        grid,
        chunks_per_request: u64::from(request_bytes(shared.session.chunk_bytes())) / grid.chunk_bytes(),
        parent,
        window: Arc::new(Semaphore::new(WINDOW)),
        to_lanes,
        to_tree,
        sequence: 0,
    };
    let regions = Regions::of(&disk.client, grid, changes)?;
    let builder = TreeBuilder::new(&shared.session, base, grid.size_bytes());
    let (compared_nodes, (tree, tally), ()) =
        tokio::try_join!(driver.run(regions), build_tree(builder, grid, steps, &disk.meter), async {
            Ok(join_lanes(lanes).await?)
        },)?;
    if tally.covered_bytes() != grid.size_bytes() {
        let (covered, size) = (tally.covered_bytes(), grid.size_bytes());
        return Err(Error::new(Kind::Internal, format!("{covered} of {size} bytes are accounted for")).into());
    }
    Ok(DiskDone { tree, tally, compared_nodes, doubt: None })
}

/// Walks the extents, opens stripes, and hands out requests.
struct Driver {
    grid: Grid,
    chunks_per_request: u64,
    parent: Compared,
    window: Arc<Semaphore>,
    to_lanes: Sender<Request>,
    to_tree: Sender<Step>,
    sequence: u64,
}

impl Driver {
    /// Plans the whole disk; returns how many nodes of the parent's tree were read.
    async fn run(mut self, mut regions: Regions) -> Result<u64, Halt> {
        let mut planner = Planner::new(self.grid);
        while let Some(region) = regions.next().await? {
            planner.push(region.offset, region.bytes, region.status).map_err(broken_extents)?;
            self.drain(&mut planner).await?;
        }
        planner.finish().map_err(broken_extents)?;
        Ok(self.parent.nodes_read())
    }

    async fn drain(&mut self, planner: &mut Planner) -> Result<(), Halt> {
        while let Some(piece) = planner.next() {
            match piece {
                Piece::Span { action, stripes } => self.span(action == Action::Zero, stripes).await?,
                Piece::Stripe(plan) => self.stripe(&plan).await?,
            }
        }
        Ok(())
    }

    /// A place in the window, and the number that goes with it.
    async fn place(&mut self) -> Result<(u64, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.window).acquire_owned().await.map_err(|_| Error::cancelled())?;
        let sequence = self.sequence;
        self.sequence += 1;
        Ok((sequence, place))
    }

    /// Whole stripes that are zeros, or the base's.
    async fn span(&mut self, zero: bool, stripes: Range<u64>) -> Result<()> {
        let chunks =
            self.grid.stripe_chunks(stripes.start).start..self.grid.stripe_chunks(stripes.end - 1).end;
        let bytes = self.grid.bytes_of(chunks);
        let length = bytes.end - bytes.start;
        let (tally, change) = match zero {
            true => (Tally { zero_bytes: length, ..Tally::default() }, Change::Zeros(stripes)),
            false => (Tally { kept_bytes: length, ..Tally::default() }, Change::Kept),
        };
        let (sequence, place) = self.place().await?;
        let step = Step { sequence, tally, change, differs: None, place };
        self.to_tree.send(step).await.map_err(|_| Error::cancelled())
    }

    async fn stripe(&mut self, plan: &StripePlan) -> Result<(), Halt> {
        let (sequence, place) = self.place().await?;
        let parent = self.parent.leaf(plan.index).await?;
        let (mut node, mut tally) = (Node::new(0), Tally::default());
        let mut unsettled = 0;
        for (slot, (chunk, action)) in (0..=u8::MAX).zip(plan.chunks()) {
            let bytes = self.grid.bytes_of(chunk..chunk + 1);
            match action {
                Action::Read | Action::Recheck => unsettled += 1,
                Action::Zero => tally.zero_bytes += bytes.end - bytes.start,
                Action::Keep => {
                    node.set(slot, parent.get(slot));
                    tally.kept_bytes += bytes.end - bytes.start;
                }
            }
        }
        let to_tree = self.to_tree.clone();
        let kept = plan.chunks().all(|(_, action)| matches!(action, Action::Keep | Action::Recheck));
        let filling = Filling {
            sequence,
            leaf: plan.index,
            node,
            tally,
            place,
            unsettled,
            kept,
            differs: None,
            to_tree,
        };
        let stripe = Arc::new(Stripe::new(parent, filling));
        for run in plan.runs().filter(|run| matches!(run.action, Action::Read | Action::Recheck)) {
            self.requests(&stripe, run.action == Action::Recheck, run.chunks).await?;
        }
        Ok(())
    }

    /// Cuts a run of chunks into requests.
    async fn requests(&mut self, stripe: &Arc<Stripe>, recheck: bool, chunks: Range<u64>) -> Result<()> {
        let mut first = chunks.start;
        while first < chunks.end {
            let next = chunks.end.min(first + self.chunks_per_request);
            let bytes = self.grid.bytes_of(first..next);
            let request = Request {
                stripe: Arc::clone(stripe),
                recheck,
                first_slot: slot_of(first),
                offset: bytes.start,
                bytes: usize::try_from(bytes.end - bytes.start).map_err(|_| Error::cancelled())?,
            };
            // The lanes are gone only when one of them failed; that error is the one that counts.
            self.to_lanes.send(request).await.map_err(|_| Error::cancelled())?;
            first = next;
        }
        Ok(())
    }
}

/// A chunk's slot in its leaf.
fn slot_of(chunk: u64) -> u8 {
    u8::try_from(chunk % STRIPE_CHUNKS).unwrap_or(u8::MAX)
}

fn broken_extents(error: crate::plan::PlanError) -> Error {
    Error::caused(Kind::Corrupt, error)
        .hint_or("the NBD server describes its export wrongly: report it there")
}

/// The parent's leaves. For a whole read they only save work: what cannot be read is found through the index, or
/// stored again, which heals it. An increment keeps parts of them, and cannot do without.
struct Compared {
    reader: Option<TreeReader>,
    needed: bool,
    events: EventSink,
    nodes_before: u64,
}

impl Compared {
    fn new(shared: &Shared, parent: Option<TreeSpec>, needed: bool) -> Self {
        let reader = parent.map(|tree| TreeReader::new(&shared.repository, tree));
        Compared { reader, needed, events: shared.events.clone(), nodes_before: 0 }
    }

    async fn leaf(&mut self, leaf: u64) -> Result<Node, Halt> {
        let Some(reader) = &mut self.reader else { return Ok(Node::new(0)) };
        match reader.leaf(leaf).await {
            Ok(node) => Ok(node),
            Err(error) if self.needed => {
                Err(Halt::Doubt(format!("the earlier backup cannot be read: {error}")))
            }
            Err(error) => {
                self.events.warn(format!("the earlier backup cannot be compared with from here on: {error}"));
                self.nodes_before = reader.nodes_read();
                self.reader = None;
                Ok(Node::new(0))
            }
        }
    }

    fn nodes_read(&self) -> u64 {
        self.reader.as_ref().map_or(self.nodes_before, TreeReader::nodes_read)
    }
}

/// One request to the source.
struct Request {
    stripe: Arc<Stripe>,
    recheck: bool,
    first_slot: u8,
    offset: u64,
    bytes: usize,
}

/// Starts as many lanes as the source works on requests at once.
fn start_lanes(client: &Client, requests: &Receiver<Request>, shared: &Shared) -> JoinSet<Result<()>> {
    let mut lanes = JoinSet::new();
    for _ in 0..client.info().connections.max(1) * REQUESTS_PER_CONNECTION {
        lanes.spawn(lane(client.clone(), requests.clone(), shared.clone()));
    }
    lanes
}

async fn join_lanes(mut lanes: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = lanes.join_next().await {
        ended.map_err(|error| Error::caused(Kind::Internal, error))??;
    }
    Ok(())
}

/// Reads one request after the other.
async fn lane(client: Client, requests: Receiver<Request>, shared: Shared) -> Result<()> {
    while let Ok(request) = requests.recv().await {
        shared.throttle.take(u64::try_from(request.bytes).unwrap_or(u64::MAX)).await;
        let mut lease = shared.buffers.lease(request.bytes).await;
        let mut read = client.read(request.offset, lease.take()).await?;
        read.zero_holes();
        lease.put(read.buffer);
        let batch = Batch {
            lease,
            stripe: request.stripe,
            recheck: request.recheck,
            first_slot: request.first_slot,
            chunk_bytes: usize::try_from(shared.session.chunk_bytes()).unwrap_or(usize::MAX),
        };
        shared.batches.send(batch).await.map_err(|_| {
            // What ended the threads is the error that the job reports.
            Error::new(Kind::Internal, "the processor threads ended early")
        })?;
    }
    Ok(())
}

/// Takes finished stripes in order into the tree.
async fn build_tree(
    mut builder: TreeBuilder,
    grid: Grid,
    steps: Receiver<Step>,
    meter: &DiskMeter,
) -> Result<(BuiltTree, Tally), Halt> {
    let mut waiting = BTreeMap::new();
    let (mut next, mut total) = (0, Tally::default());
    while let Ok(step) = steps.recv().await {
        waiting.insert(step.sequence, step);
        while let Some(Step { tally, change, place, differs, .. }) = waiting.remove(&next) {
            next += 1;
            if let Some(chunk) = differs {
                let offset = grid.bytes_of(chunk..chunk + 1).start;
                return Err(Halt::Doubt(format!(
                    "bitmap wrong: the chunk at byte {offset} is not the earlier backup's, and not marked as changed"
                )));
            }
            match change {
                Change::Kept => {}
                Change::Leaf(leaf, node) => builder.set_leaf(leaf, node).await?,
                Change::Zeros(leaves) => builder.clear(leaves).await?,
            }
            total.add(&tally);
            meter.add(tally.covered_bytes());
            drop(place);
        }
    }
    Ok((builder.finish().await?, total))
}

/// One buffer of consecutive chunks for the processor threads.
pub(crate) struct Batch {
    lease: Lease,
    stripe: Arc<Stripe>,
    recheck: bool,
    first_slot: u8,
    chunk_bytes: usize,
}

impl Batch {
    /// Slot and bytes of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (u8, &[u8])> {
        (self.first_slot..=u8::MAX).zip(self.lease.bytes().chunks(self.chunk_bytes))
    }
}

/// A processor thread of a backup.
pub(crate) struct Sealer {
    writer: ChunkWriter,
    stored: Vec<Stored>,
}

impl Sealer {
    pub(crate) fn new(session: &Arc<BackupSession>) -> Self {
        Sealer { writer: session.chunk_writer(), stored: Vec::new() }
    }
}

impl Worker for Sealer {
    type Job = Batch;

    fn run(&mut self, batches: &mut Vec<Batch>) -> Result<()> {
        let plain: Vec<PlainChunk<'_>> = batches
            .iter()
            .flat_map(|batch| {
                batch.chunks().map(|(slot, bytes)| PlainChunk { bytes, parent: batch.stripe.parent(slot) })
            })
            .collect();
        self.writer.store(&plain, &mut self.stored)?;
        let mut stored = self.stored.iter();
        for batch in batches.drain(..) {
            let settled = batch.chunks().zip(&mut stored);
            batch.stripe.settle(
                batch.recheck,
                settled.map(|((slot, bytes), stored)| {
                    (slot, u64::try_from(bytes.len()).unwrap_or(u64::MAX), *stored)
                }),
            );
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(self.writer.finish()?)
    }
}
