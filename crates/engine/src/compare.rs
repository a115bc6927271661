//! Compares what a volume holds with a backup, chunk by chunk, by hash: nothing of the backup is read for it but its tree.
//!
//! Lanes read runs of the volume, several at once; processor threads hash them with the repository's key. Not here: what a
//! difference means. The check of a restore fails on it; a restore in place fetches what differs and leaves the rest alone.
//!
//! Invariant (P3): a chunk counts as held only if the bytes at its place have its length and hash to its id.

use std::ops::Range;
use std::sync::Arc;

use aquifer_repository::format::id::ChunkId;
use aquifer_repository::format::keys::KeyRing;
use aquifer_repository::format::pack::BlobKind;
use async_channel::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::buffers::{Buffers, Lease};
use crate::error::{Error, Kind, Result};
use crate::settings::REQUEST_BYTES;
use crate::target::Target;
use crate::workers::Worker;

/// Reads in flight.
pub(crate) const LANES: usize = 16;

/// Bytes of one read, unless a chunk is larger.
pub(crate) const READ_BYTES: u32 = 4 * REQUEST_BYTES;

/// Consecutive chunks of a disk: the number of the first, and their ids.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) ids: Vec<ChunkId>,
}

impl Run {
    /// The same in pieces of one read.
    pub(crate) fn pieces(&self, chunk_bytes: u64) -> impl Iterator<Item = Run> {
        let most = (u64::from(READ_BYTES) / chunk_bytes).max(1);
        let pieces = self.ids.chunks(usize::try_from(most).unwrap_or(usize::MAX));
        let first = self.first;
        (0..).zip(pieces).map(move |(at, ids): (u64, _)| Run { first: first + at * most, ids: ids.to_vec() })
    }

    /// Each chunk with its number.
    pub(crate) fn into_chunks(self) -> Vec<(u64, ChunkId)> {
        (self.first..).zip(self.ids).collect()
    }

    fn chunks(&self) -> Range<u64> {
        self.first..self.first + u64::try_from(self.ids.len()).unwrap_or(0)
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Compared {
    /// Bytes of the disk that were compared.
    pub(crate) bytes: u64,
    /// The chunks that the volume does not hold.
    pub(crate) differing: Vec<(u64, ChunkId)>,
}

/// What a volume holds in the place of a run, for a processor thread.
pub(crate) struct Comparison {
    chunk_bytes: u64,
    run: Run,
    held: Lease,
    answer: oneshot::Sender<Compared>,
}

/// Hashes what volumes hold.
pub(crate) struct Comparer {
    ring: KeyRing,
}

impl Comparer {
    pub(crate) fn new(ring: &KeyRing) -> Self {
        Comparer { ring: ring.clone() }
    }

    pub(crate) fn compare(&self, comparison: Comparison) {
        let Comparison { chunk_bytes, run, held, answer } = comparison;
        let held = held.bytes();
        let places = held.chunks(usize::try_from(chunk_bytes).unwrap_or(usize::MAX));
        let chunks = run.into_chunks().into_iter();
        let differing = chunks
            .zip(places)
            .filter(|((_, id), place)| self.ring.chunk_id(BlobKind::Data, place) != *id)
            .map(|(chunk, _)| chunk)
            .collect();
        // Whoever asked is gone only if the job has failed.
        let _ = answer.send(Compared { bytes: u64::try_from(held.len()).unwrap_or(u64::MAX), differing });
    }
}

impl Worker for Comparer {
    type Job = Comparison;

    fn run(&mut self, jobs: &mut Vec<Comparison>) -> Result<()> {
        jobs.drain(..).for_each(|comparison| self.compare(comparison));
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

/// Compares every run that comes in, in no certain order, until no more come.
///
/// # Errors
/// Those of the volume.
pub(crate) async fn compare<J: From<Comparison> + Send + 'static>(
    target: &Arc<Target>,
    buffers: &Arc<Buffers>,
    jobs: Sender<J>,
    runs: Receiver<Run>,
    compared: Sender<Compared>,
) -> Result<()> {
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let lane = Lane { target: Arc::clone(target), buffers: Arc::clone(buffers), jobs: jobs.clone() };
        lanes.spawn(lane.run(runs.clone(), compared.clone()));
    }
    // The lanes' own hold the channels open from here on.
    drop((jobs, runs, compared));
    while let Some(ended) = lanes.join_next().await {
        ended.map_err(|error| Error::caused(Kind::Internal, error))??;
    }
    Ok(())
}

struct Lane<J> {
    target: Arc<Target>,
    buffers: Arc<Buffers>,
    jobs: Sender<J>,
}

impl<J: From<Comparison>> Lane<J> {
    async fn run(self, runs: Receiver<Run>, compared: Sender<Compared>) -> Result<()> {
        while let Ok(run) = runs.recv().await {
            let answer = self.compare(run).await?;
            // The other side is gone only if it failed; that error is the one that counts.
            compared.send(answer).await.map_err(|_| Error::cancelled())?;
        }
        Ok(())
    }

    async fn compare(&self, run: Run) -> Result<Compared> {
        let ended = || Error::new(Kind::Internal, "the processor threads ended early");
        let place = self.target.grid.bytes_of(run.chunks());
        let bytes = usize::try_from(place.end - place.start).unwrap_or(usize::MAX);
        let mut held = self.buffers.lease(bytes).await;
        let buffer = self.target.volume.read(place.start, held.take()).await?;
        held.put(buffer);
        let (answer, compared) = oneshot::channel();
        let comparison = Comparison { chunk_bytes: self.target.grid.chunk_bytes(), run, held, answer };
        self.jobs.send(comparison.into()).await.map_err(|_| ended())?;
        compared.await.map_err(|_| ended())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_comes_apart_into_reads_and_each_chunk_keeps_its_number() {
        let ids: Vec<ChunkId> = (0..19).map(|byte| ChunkId([byte; 32])).collect();
        let run = Run { first: 5, ids: ids.clone() };
        let pieces: Vec<Run> = run.pieces(128 << 10).collect();
        let chunks: Vec<Range<u64>> = pieces.iter().map(Run::chunks).collect();
        assert_eq!(chunks, [5..21, 21..24]);
        assert_eq!(pieces.into_iter().flat_map(|piece| piece.ids).collect::<Vec<_>>(), ids);
        assert_eq!(run.pieces(u64::from(2 * READ_BYTES)).count(), 19);
    }
}
