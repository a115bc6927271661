//! One disk that is restored: where it goes, and what has become of each of its bytes.
//!
//! Not here: what is fetched ([`crate::restore_disk`]), and second attempts at it ([`crate::rescue`]).
//!
//! Invariant: a restore is complete only when every byte of the disk is accounted for exactly once: written, the same
//! already, zero, or, in a salvage, missing.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aquifer_repository::TreeSpec;
use aquifer_repository::format::id::ChunkId;
use async_channel::{Receiver, Sender};

use crate::error::{Error, Kind, Result};
use crate::plan::Grid;
use crate::progress::DiskMeter;
use crate::request::MissingRange;
use crate::volume::{Applied, Volume};

/// One disk that is restored.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) grid: Grid,
    pub(crate) tree: TreeSpec,
    pub(crate) volume: Volume,
    pub(crate) meter: DiskMeter,
    /// The way to the lanes, if the volume is an export.
    pub(crate) puts: Option<Sender<Put>>,
    applied: Mutex<Applied>,
    covered_bytes: AtomicU64,
    /// Held by the thread that writes to the file: the kernel lets one write at a time, and others would spin for it.
    pub(crate) writing: Mutex<()>,
    /// Chunks whose first copy could not be read, for the rescue.
    suspects: Mutex<Vec<Suspect>>,
    /// What is lost for good; `None` if any loss is the end of the restore.
    missing: Option<Mutex<Vec<Range<u64>>>>,
}

/// A chunk whose first copy could not be read.
pub(crate) struct Suspect {
    pub(crate) id: ChunkId,
    /// Its places on the disk.
    pub(crate) chunks: Vec<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Target {
    pub(crate) fn new(
        name: String,
        grid: Grid,
        tree: TreeSpec,
        volume: Volume,
        meter: DiskMeter,
        puts: Option<Sender<Put>>,
    ) -> Self {
        let (applied, covered_bytes) = (Mutex::new(Applied::default()), AtomicU64::new(0));
        Target {
            name,
            grid,
            tree,
            volume,
            meter,
            puts,
            applied,
            covered_bytes,
            writing: Mutex::new(()),
            suspects: Mutex::default(),
            missing: None,
        }
    }

    /// The same, going on where something is lost.
    pub(crate) fn salvaging(self) -> Self {
        Target { missing: Some(Mutex::default()), ..self }
    }

    pub(crate) fn note(&self, applied: Applied) {
        lock(&self.applied).add(&applied);
        self.cover(applied.bytes());
    }

    fn cover(&self, bytes: u64) {
        self.covered_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.meter.add(bytes);
    }

    /// Puts a chunk aside whose copy cannot be read.
    pub(crate) fn suspect(&self, suspect: Suspect) {
        lock(&self.suspects).push(suspect);
    }

    /// What was put aside since the last time.
    pub(crate) fn take_suspects(&self) -> Vec<Suspect> {
        std::mem::take(&mut *lock(&self.suspects))
    }

    /// Gives ranges up, for `error`.
    ///
    /// # Errors
    /// `error`, unless this is a salvage.
    pub(crate) fn lose(&self, ranges: impl IntoIterator<Item = Range<u64>>, error: Error) -> Result<()> {
        let Some(missing) = &self.missing else { return Err(error) };
        for range in ranges {
            tracing::warn!(disk = self.name, offset = range.start, end = range.end, %error, "lost");
            self.cover(range.end - range.start);
            lock(missing).push(range);
        }
        Ok(())
    }

    /// What was given up, in order, neighbours joined.
    pub(crate) fn missing(&self) -> Vec<MissingRange> {
        let mut ranges = self.missing.as_ref().map_or_else(Vec::new, |missing| lock(missing).clone());
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<MissingRange> = Vec::new();
        for Range { start, end } in ranges {
            match joined.last_mut() {
                Some(last) if last.offset + last.length == start => last.length += end - start,
                _ => joined.push(MissingRange { offset: start, length: end - start }),
            }
        }
        joined
    }

    /// What was done to the volume, when everything was.
    ///
    /// # Errors
    /// `Internal` if not every byte of the disk is accounted for.
    pub(crate) fn total(&self) -> Result<Applied> {
        let covered = self.covered_bytes.load(Ordering::Relaxed);
        if covered != self.grid.size_bytes() {
            let text = format!(
                "disk {}: {covered} of {} bytes are accounted for",
                self.name,
                self.grid.size_bytes()
            );
            return Err(Error::new(Kind::Internal, text));
        }
        Ok(*lock(&self.applied))
    }

    /// No more chunks come.
    pub(crate) fn close(&self) {
        if let Some(puts) = &self.puts {
            puts.close();
        }
    }

    /// Names the disk in an error.
    pub(crate) fn about(&self, error: Error) -> Error {
        error.about(format_args!("disk {}", self.name)).with("disk", self.name.clone())
    }

    /// The bytes of the disk that `chunk` is.
    pub(crate) fn place_of(&self, chunk: u64) -> Range<u64> {
        self.grid.bytes_of(chunk..chunk + 1)
    }
}

/// A chunk on its way to an export.
pub(crate) struct Put {
    pub(crate) target: Arc<Target>,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Puts chunks into an export, one after the other.
pub(crate) async fn put_lane(puts: Receiver<Put>) -> Result<()> {
    while let Ok(Put { target, offset, bytes }) = puts.recv().await {
        let put = target.volume.put(offset, bytes).await;
        target.note(put.map_err(|error| target.about(error))?);
    }
    Ok(())
}
