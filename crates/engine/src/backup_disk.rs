//! One disk of a backup: extents → plan → reads → processor threads → tree.
//!
//! Four parts run at once, joined by bounded queues. The planner walks the extents and opens stripes; the
//! lanes keep every connection full of requests; the processor threads (shared by all disks) store chunks
//! and settle them in their stripes; the tree takes finished stripes in order. None of them ever waits for
//! the tree, and nothing here grows with the size of the disk: a bounded window of stripes is in flight.
//!
//! Invariant: the tally covers every byte of the disk exactly once, or the disk fails.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use aquifer_nbd::{Client, STATE_ZERO};
use aquifer_repository::format::tree::Node;
use aquifer_repository::{
    BackupSession, BuiltTree, ChunkWriter, PlainChunk, Repository, Stored, TreeBuilder, TreeReader, TreeSpec,
};
use async_channel::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::buffers::{Buffers, Lease};
use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Grid, Piece, Planner, STRIPE_CHUNKS, Status, StripePlan};
use crate::progress::{DiskMeter, EventSink};
use crate::settings::{REQUEST_BYTES, REQUESTS_PER_CONNECTION};
use crate::stripe::{Change, Filling, Step, Stripe, Tally};
use crate::throttle::Throttle;
use crate::workers::Worker;

/// Steps of one disk in flight at most: enough for every lane to be in a stripe of its own.
const WINDOW: usize = 256;

/// The context of the extents; without it everything is read.
pub(crate) const ALLOCATION: &str = "base:allocation";

/// What all disks of a job share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) repository: Arc<Repository>,
    pub(crate) session: Arc<BackupSession>,
    pub(crate) batches: Sender<Batch>,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) events: EventSink,
}

/// One disk to read.
pub(crate) struct DiskRead {
    pub(crate) name: String,
    pub(crate) client: Client,
    /// The disk's tree in an earlier backup, which chunks are compared with first.
    pub(crate) parent: Option<TreeSpec>,
    pub(crate) meter: DiskMeter,
}

/// What was read of it.
#[derive(Debug)]
pub(crate) struct DiskDone {
    pub(crate) tree: BuiltTree,
    pub(crate) tally: Tally,
    /// Nodes of the parent's tree read for the comparison.
    pub(crate) compared_nodes: u64,
}

/// Bytes of one request: [`REQUEST_BYTES`], or a chunk where that is larger.
pub(crate) fn request_bytes(chunk_bytes: u32) -> u32 {
    (REQUEST_BYTES / chunk_bytes.max(1)).max(1) * chunk_bytes
}

/// Reads a disk and builds its tree.
///
/// # Errors
/// The first failure of the source, the repository or a processor thread, naming the disk.
pub(crate) async fn read_disk(disk: DiskRead, shared: Shared) -> Result<DiskDone> {
    let name = disk.name.clone();
    let done = Box::pin(pipeline(disk, shared)).await;
    done.map_err(|error| error.about(format_args!("disk {name}")).with("disk", name))
}

async fn pipeline(disk: DiskRead, shared: Shared) -> Result<DiskDone> {
    let grid = Grid::new(disk.client.info().size_bytes, shared.session.chunk_bytes());
    let (to_lanes, requests) = async_channel::bounded(WINDOW);
    let (to_tree, steps) = async_channel::bounded(WINDOW);
    let lanes = start_lanes(&disk.client, &requests, &shared);
    let driver = Driver {
        grid,
        chunks_per_request: u64::from(request_bytes(shared.session.chunk_bytes())) / grid.chunk_bytes(),
        parent: Compared::new(&shared, disk.parent),
        window: Arc::new(Semaphore::new(WINDOW)),
        to_lanes,
        to_tree,
        sequence: 0,
    };
    let builder = TreeBuilder::new(&shared.session, TreeSpec::default(), grid.size_bytes());
    let (compared_nodes, (tree, tally), ()) = tokio::try_join!(
        driver.run(&disk.client),
        build_tree(builder, steps, &disk.meter),
        join_lanes(lanes),
    )?;
    if tally.covered_bytes() != grid.size_bytes() {
        let (covered, size) = (tally.covered_bytes(), grid.size_bytes());
        return Err(Error::new(Kind::Internal, format!("{covered} of {size} bytes are accounted for")));
    }
    Ok(DiskDone { tree, tally, compared_nodes })
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
    async fn run(mut self, client: &Client) -> Result<u64> {
        let mut planner = Planner::new(self.grid);
        let size_bytes = self.grid.size_bytes();
        if client.info().contexts.iter().any(|context| context == ALLOCATION) {
            let mut extents = client.extents(ALLOCATION, 0..size_bytes)?;
            while let Some(extent) = extents.next().await? {
                let zero = extent.flags & STATE_ZERO != 0;
                let status = if zero { Status::Zero } else { Status::Data };
                planner.push(extent.offset, extent.bytes, status).map_err(broken_extents)?;
                self.drain(&mut planner).await?;
            }
        } else if size_bytes > 0 {
            planner.push(0, size_bytes, Status::Data).map_err(broken_extents)?;
            self.drain(&mut planner).await?;
        }
        planner.finish().map_err(broken_extents)?;
        Ok(self.parent.nodes_read())
    }

    async fn drain(&mut self, planner: &mut Planner) -> Result<()> {
        while let Some(piece) = planner.next() {
            match piece {
                Piece::Span { action: Action::Zero, stripes } => self.zeros(stripes).await?,
                Piece::Span { action, stripes } => {
                    for index in stripes {
                        self.stripe(&StripePlan::uniform(self.grid, index, action)).await?;
                    }
                }
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

    async fn zeros(&mut self, stripes: Range<u64>) -> Result<()> {
        let chunks =
            self.grid.stripe_chunks(stripes.start).start..self.grid.stripe_chunks(stripes.end - 1).end;
        let bytes = self.grid.bytes_of(chunks);
        let tally = Tally { zero_bytes: bytes.end - bytes.start, ..Tally::default() };
        let (sequence, place) = self.place().await?;
        let step = Step { sequence, tally, change: Change::Zeros(stripes), place };
        self.to_tree.send(step).await.map_err(|_| Error::cancelled())
    }

    async fn stripe(&mut self, plan: &StripePlan) -> Result<()> {
        let (sequence, place) = self.place().await?;
        let parent = self.parent.leaf(plan.index).await;
        let (mut node, mut tally) = (Node::new(0), Tally::default());
        let mut unsettled = 0;
        for (slot, (chunk, action)) in (0..=u8::MAX).zip(plan.chunks()) {
            let bytes = self.grid.bytes_of(chunk..chunk + 1);
            match action {
                Action::Read => unsettled += 1,
                Action::Zero => tally.zero_bytes += bytes.end - bytes.start,
                Action::Keep => {
                    node.set(slot, parent.get(slot));
                    tally.kept_bytes += bytes.end - bytes.start;
                }
            }
        }
        let to_tree = self.to_tree.clone();
        let filling = Filling { sequence, leaf: plan.index, node, tally, place, unsettled, to_tree };
        let stripe = Arc::new(Stripe::new(parent, filling));
        for run in plan.runs().filter(|run| run.action == Action::Read) {
            self.requests(&stripe, run.chunks).await?;
        }
        Ok(())
    }

    /// Cuts a run of chunks into requests.
    async fn requests(&mut self, stripe: &Arc<Stripe>, chunks: Range<u64>) -> Result<()> {
        let mut first = chunks.start;
        while first < chunks.end {
            let next = chunks.end.min(first + self.chunks_per_request);
            let bytes = self.grid.bytes_of(first..next);
            let request = Request {
                stripe: Arc::clone(stripe),
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

/// The parent's leaves, as far as they can be read. The comparison only saves work: what cannot be read is
/// found through the index, or stored again, which heals it.
struct Compared {
    reader: Option<TreeReader>,
    events: EventSink,
    nodes_before: u64,
}

impl Compared {
    fn new(shared: &Shared, parent: Option<TreeSpec>) -> Self {
        let reader = parent.map(|tree| TreeReader::new(&shared.repository, tree));
        Compared { reader, events: shared.events.clone(), nodes_before: 0 }
    }

    async fn leaf(&mut self, leaf: u64) -> Node {
        let Some(reader) = &mut self.reader else { return Node::new(0) };
        match reader.leaf(leaf).await {
            Ok(node) => node,
            Err(error) => {
                self.events.warn(format!("the earlier backup cannot be compared with from here on: {error}"));
                self.nodes_before = reader.nodes_read();
                self.reader = None;
                Node::new(0)
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
    steps: Receiver<Step>,
    meter: &DiskMeter,
) -> Result<(BuiltTree, Tally)> {
    let mut waiting = BTreeMap::new();
    let (mut next, mut total) = (0, Tally::default());
    while let Ok(step) = steps.recv().await {
        waiting.insert(step.sequence, step);
        while let Some(Step { tally, change, place, .. }) = waiting.remove(&next) {
            next += 1;
            match change {
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
            batch.stripe.settle(settled.map(|((slot, bytes), stored)| {
                (slot, u64::try_from(bytes.len()).unwrap_or(u64::MAX), *stored)
            }));
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(self.writer.finish()?)
    }
}
