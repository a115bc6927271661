//! Reads a restored volume again and compares it with the backup by hash: `restore --verify`.
//!
//! It believes nothing that the restore did: it walks the tree anew, reads the volume after its cache was
//! dropped, and hashes every chunk with the repository's key.

use std::sync::Arc;

use aquifer_repository::Repository;
use aquifer_repository::format::id::ChunkId;
use aquifer_repository::format::keys::KeyRing;
use aquifer_repository::format::pack::BlobKind;
use async_channel::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::buffers::{Buffers, Lease};
use crate::error::{Error, Kind, Result};
use crate::restore_disk::walk;
use crate::settings::{JobContext, REQUEST_BYTES};
use crate::target::Target;
use crate::walk::Walked;
use crate::workers::{Worker, Workers};

/// Reads in flight.
const LANES: usize = 16;

/// Bytes of one read at least.
const READ_BYTES: u64 = 4 * REQUEST_BYTES as u64;

/// Compares every target with its tree.
///
/// # Errors
/// `Corrupt` naming the disk and the offset of the first difference found.
pub(crate) async fn check(context: &JobContext, targets: &[Arc<Target>]) -> Result<()> {
    let failed = CancellationToken::new();
    let ring = context.repository.ring();
    let checkers = (0..context.settings.thread_count()).map(|_| Checker { ring: ring.clone() }).collect();
    let workers = Workers::start("check", checkers, LANES, &failed)?;
    let read = async {
        for target in targets {
            let reads = read_back(context, target, workers.queue());
            Box::pin(reads).await.map_err(|error| target.about(error))?;
        }
        Ok(())
    };
    let read = tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(Error::cancelled()),
        () = failed.cancelled() => Err(Error::new(Kind::Internal, "a processor thread failed")),
        read = read => read,
    };
    workers.finish().await.and(read)
}

async fn read_back(context: &JobContext, target: &Arc<Target>, jobs: Sender<Check>) -> Result<()> {
    target.volume.drop_cache();
    let chunk_bytes = u32::try_from(target.grid.chunk_bytes()).unwrap_or(u32::MAX);
    let buffers =
        Buffers::new(context.settings.transit_bytes(chunk_bytes.max(4 * REQUEST_BYTES)), chunk_bytes);
    let (to_lanes, requests) = async_channel::bounded(LANES);
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        lanes.spawn(lane(Arc::clone(target), requests.clone(), Arc::clone(&buffers), jobs.clone()));
    }
    drop(requests);
    let walked = walk_back(&context.repository, target, to_lanes).await;
    while let Some(ended) = lanes.join_next().await {
        ended.map_err(|error| Error::caused(Kind::Internal, error))??;
    }
    walked
}

async fn walk_back(
    repository: &Arc<Repository>,
    target: &Arc<Target>,
    to_lanes: Sender<Request>,
) -> Result<()> {
    let per_read = usize::try_from((READ_BYTES / target.grid.chunk_bytes()).max(1)).unwrap_or(1);
    let mut walk = walk(repository, target.tree, target.grid);
    while let Some(piece) = walk.next().await? {
        match piece {
            Walked::Lost(_, error) => return Err(error),
            Walked::Gap(range) => {
                if let Some(offset) = target.volume.first_data(range).await? {
                    return Err(differs(offset, "must be zero"));
                }
            }
            Walked::Chunks(first, ids) => {
                for (at, ids) in (0_u64..).zip(ids.chunks(per_read)) {
                    let first = first + at * u64::try_from(per_read).unwrap_or(1);
                    // The lanes are gone only when one of them failed; that error is the one that counts.
                    let sent = to_lanes.send(Request { first, ids: ids.to_vec() }).await;
                    sent.map_err(|_| Error::cancelled())?;
                }
            }
        }
    }
    Ok(())
}

/// Consecutive chunks to read back.
struct Request {
    first: u64,
    ids: Vec<ChunkId>,
}

async fn lane(
    target: Arc<Target>,
    requests: Receiver<Request>,
    buffers: Arc<Buffers>,
    jobs: Sender<Check>,
) -> Result<()> {
    while let Ok(Request { first, ids }) = requests.recv().await {
        let count = u64::try_from(ids.len()).unwrap_or(0);
        let place = target.grid.bytes_of(first..first + count);
        let mut lease = buffers.lease(usize::try_from(place.end - place.start).unwrap_or(usize::MAX)).await;
        let buffer = target.volume.read(place.start, lease.take()).await?;
        lease.put(buffer);
        let check = Check { target: Arc::clone(&target), offset: place.start, ids, lease };
        jobs.send(check)
            .await
            .map_err(|_| Error::new(Kind::Internal, "the processor threads ended early"))?;
    }
    Ok(())
}

/// Bytes to compare.
struct Check {
    target: Arc<Target>,
    offset: u64,
    ids: Vec<ChunkId>,
    lease: Lease,
}

struct Checker {
    ring: KeyRing,
}

impl Worker for Checker {
    type Job = Check;

    fn run(&mut self, jobs: &mut Vec<Check>) -> Result<()> {
        for Check { target, offset, ids, lease } in jobs.drain(..) {
            let chunk_bytes = target.grid.chunk_bytes();
            let size = usize::try_from(chunk_bytes).unwrap_or(usize::MAX);
            for (at, (id, bytes)) in (0_u64..).zip(ids.iter().zip(lease.bytes().chunks(size))) {
                if self.ring.chunk_id(BlobKind::Data, bytes) != *id {
                    let error = differs(offset + at * chunk_bytes, "does not hash to its chunk's id");
                    return Err(target.about(error));
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

fn differs(offset: u64, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the volume differs from the backup: what is at {offset} {what}"))
        .hint("its storage did not keep what was written, or somebody else wrote to it: restore again elsewhere")
        .with("offset", offset)
}
