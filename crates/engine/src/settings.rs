//! What a job may use, and what it is given to work with.
//!
//! Every queue and buffer of a job is sized from [`JobSettings`]; nothing here is read from a file or the
//! environment, that is the command line's work.

use std::fmt;
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;

use aquifer_repository::{Repository, World};
use tokio_util::sync::CancellationToken;

use crate::progress::EventSink;

/// Bytes of one request to a source, unless a chunk is larger. QEMU's server answers 256 KiB as fast, byte for byte, but
/// every request costs a wake-up on each side and a hand-over to the processor threads (docs/BENCHMARKS.md).
pub(crate) const REQUEST_BYTES: u32 = 512 << 10;

/// Requests in flight on one NBD connection: QEMU's server works on sixteen at once.
pub(crate) const REQUESTS_PER_CONNECTION: u16 = 16;

/// NBD connections of one disk, if nobody says another number and the line is short.
const CONNECTIONS: u16 = 4;

/// The most of them over a long line.
const CONNECTIONS_MAX: u16 = 16;

/// The limits of one job. All of them are knobs of speed and memory; none changes what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSettings {
    /// Budget in bytes for all buffers of the job together.
    pub memory_bytes: u64,
    /// NBD connections of one disk, where the server offers several; `None` goes by the line's latency, from 4
    /// on to 16.
    pub connections: Option<NonZeroU16>,
    /// Bytes a second to read from the source at most, over all disks; `None` reads as fast as it goes.
    pub read_limit_bytes: Option<u64>,
    /// Threads that hash, compress and encrypt; `None` takes one for each core.
    pub threads: Option<NonZeroUsize>,
}

impl Default for JobSettings {
    fn default() -> Self {
        JobSettings { memory_bytes: 192 << 20, connections: None, read_limit_bytes: None, threads: None }
    }
}

impl JobSettings {
    /// Processor threads of the job.
    pub(crate) fn thread_count(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }

    /// The least and the most connections to one export.
    pub(crate) fn connections(&self) -> (u16, u16) {
        self.connections.map_or((CONNECTIONS, CONNECTIONS_MAX), |exactly| (exactly.get(), exactly.get()))
    }

    /// Bytes of plain data that may be on their way from a source over a long line, where more of them must be; a short
    /// one has [`JobSettings::transit_bytes`].
    pub(crate) fn line_bytes(&self, request_bytes: u32) -> u64 {
        2 * self.transit_bytes(request_bytes)
    }

    /// Bytes of plain data on their way between the sockets and the processor threads.
    ///
    /// A sixth of the budget: open packs of the processor threads, uploads and the index cache take the
    /// rest. Never less than two requests of the largest size, or nothing would move.
    pub(crate) fn transit_bytes(&self, request_bytes: u32) -> u64 {
        (self.memory_bytes / 6).max(2 * u64::from(request_bytes))
    }
}

/// What every job needs: the repository, the world, the limits, and the two ways to talk to the caller.
#[derive(Clone)]
pub struct JobContext {
    /// The open repository.
    pub repository: Arc<Repository>,
    /// Clocks and randomness.
    pub world: Arc<dyn World>,
    /// Limits.
    pub settings: JobSettings,
    /// Where progress and warnings go.
    pub events: EventSink,
    /// Cancels the job; it cleans up and returns an error of kind `Cancelled`.
    pub cancel: CancellationToken,
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_budget_still_lets_two_requests_move() {
        let settings = JobSettings { memory_bytes: 1, ..JobSettings::default() };
        assert_eq!(settings.transit_bytes(4 << 20), 8 << 20);
    }
}
