//! Reads a restored volume again and compares it with the backup by hash: `restore --verify`.
//!
//! It believes nothing that the restore did: it walks the tree anew, and reads the volume after its cache was dropped.

use std::sync::Arc;

use aquifer_repository::Repository;
use async_channel::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::buffers::Buffers;
use crate::compare::{Compared, Comparer, Comparison, LANES, READ_BYTES, Run, compare};
use crate::error::{Error, Kind, Result};
use crate::restore_disk::walk;
use crate::settings::JobContext;
use crate::target::Target;
use crate::walk::Walked;
use crate::workers::Workers;

/// Compares every target with its tree.
///
/// # Errors
/// `Corrupt` naming the disk and the offset of the first difference found.
pub(crate) async fn check(context: &JobContext, targets: &[Arc<Target>]) -> Result<()> {
    let failed = CancellationToken::new();
    let ring = context.repository.ring();
    let comparers = (0..context.settings.thread_count()).map(|_| Comparer::new(ring)).collect();
    let workers = Workers::start("check", comparers, LANES, &failed)?;
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

async fn read_back(context: &JobContext, target: &Arc<Target>, jobs: Sender<Comparison>) -> Result<()> {
    target.volume.drop_cache();
    let chunk_bytes = u32::try_from(target.grid.chunk_bytes()).unwrap_or(u32::MAX);
    let buffers = Buffers::new(context.settings.transit_bytes(chunk_bytes.max(READ_BYTES)), chunk_bytes);
    let (to_lanes, runs) = async_channel::bounded(LANES);
    let (from_lanes, compared) = async_channel::bounded(LANES);
    tokio::try_join!(
        walk_back(&context.repository, target, to_lanes),
        compare(target, &buffers, jobs, runs, from_lanes),
        judge(target, compared),
    )?;
    Ok(())
}

async fn walk_back(repository: &Arc<Repository>, target: &Arc<Target>, to_lanes: Sender<Run>) -> Result<()> {
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
                for run in (Run { first, ids }).pieces(target.grid.chunk_bytes()) {
                    // The lanes are gone only when one of them failed; that error is the one that counts.
                    to_lanes.send(run).await.map_err(|_| Error::cancelled())?;
                }
            }
        }
    }
    Ok(())
}

async fn judge(target: &Target, compared: Receiver<Compared>) -> Result<()> {
    while let Ok(compared) = compared.recv().await {
        if let Some((chunk, _)) = compared.differing.first() {
            return Err(differs(target.place_of(*chunk).start, "does not hash to its chunk's id"));
        }
    }
    Ok(())
}

fn differs(offset: u64, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the volume differs from the backup: what is at {offset} {what}"))
        .hint("its storage did not keep what was written, or somebody else wrote to it: restore again elsewhere")
        .with("offset", offset)
}
