//! The data plane of one backup session: chunks in, packs out.
//!
//! [`Plane`] is what the session's CPU threads ([`crate::writer`]), its uploader tasks
//! ([`crate::uploader`]) and its tree builders ([`crate::meta`]) share: the deduplication state, the queue
//! of packs, what is stored but not yet published, and the first failure. It decides nothing about the log:
//! the session takes stored packs from it, publishes them, and tells it so.
//!
//! Invariants: after the first failure nothing more is accepted and every waiting thread is woken; a pack is
//! offered for publishing only after its put was acknowledged; memory is bounded by the pack buffers
//! (`writers + uploads` of them) and by the rows of [`PUBLISH_ROWS`] unpublished chunks.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use aquifer_format::{FinishedPack, PackBuilder, PackKind, PackName, SegmentPack, SessionId};

use crate::dedup::{Dedup, lock};
use crate::meta::MetaPack;
use crate::parts::Parts;
use crate::uploader::{self, Buffers, Uploads};
use crate::{Error, Result};

/// Stored packs after which a publish is due (FORMAT.md, "Writer", W3).
pub(crate) const PUBLISH_PACKS: usize = 64;
/// Monotonic milliseconds after which a publish is due when at least one pack waits (W3).
pub(crate) const PUBLISH_MS: u64 = 5 * 60 * 1000;
/// Rows after which a publish is due: what bounds the memory of the in-flight set.
pub(crate) const PUBLISH_ROWS: usize = 128 * 1024;
/// Room in a pack's buffer beyond target and last chunk: frames, table and footer of a usual pack.
const PACK_SLACK_BYTES: usize = 128 << 10;

/// A future in a box, as the traits of this crate return it.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The session's side of publishing.
pub(crate) trait Progress: Send + Sync {
    /// Publishes what is stored, if due. An uploader awaits it in line, so a slow log slows the uploads
    /// instead of filling memory.
    fn checkpoint_progress(&self) -> BoxFuture<'_, Result<()>>;
}

/// What a session put into its packs so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Packs acknowledged by the store.
    pub(crate) packs: u64,
    /// Their bytes.
    pub(crate) pack_bytes: u64,
    /// Blobs in them: data chunks, tree nodes, records.
    pub(crate) blobs: u64,
}

/// Packs that are stored and not yet published.
struct Unpublished {
    packs: Vec<SegmentPack>,
    rows: usize,
    since_ms: u64,
    totals: Totals,
}

/// The data plane of one backup session. See the module.
pub(crate) struct Plane {
    parts: Parts,
    session: SessionId,
    next_pack: AtomicU32,
    dedup: Dedup,
    uploads: Uploads,
    buffers: Buffers,
    meta: Mutex<MetaPack>,
    unpublished: Mutex<Unpublished>,
    open_writers: AtomicUsize,
    failure: OnceLock<Arc<Error>>,
}

impl Plane {
    /// Starts the uploader tasks of `session` on the current tokio runtime. Its `Open` must be durable (W1).
    pub(crate) fn start(parts: Parts, session: SessionId, progress: Weak<dyn Progress>) -> Arc<Self> {
        let tasks = parts.settings.uploads.max(1);
        let (uploads, queue) = Uploads::new(tasks);
        let plane = Arc::new(Plane {
            session,
            next_pack: AtomicU32::new(0),
            dedup: Dedup::new(),
            uploads,
            buffers: Buffers::new(tasks),
            meta: Mutex::new(MetaPack::default()),
            unpublished: Mutex::new(Unpublished {
                packs: Vec::new(),
                rows: 0,
                since_ms: parts.world.monotonic_ms(),
                totals: Totals::default(),
            }),
            open_writers: AtomicUsize::new(0),
            failure: OnceLock::new(),
            parts,
        });
        uploader::spawn(&plane, &queue, &progress, tasks);
        plane
    }

    /// What the repository lent to this session.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Deduplication state.
    pub(crate) fn dedup(&self) -> &Dedup {
        &self.dedup
    }

    /// The queue to the store.
    pub(crate) fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// The pool of pack buffers.
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// The open meta pack.
    pub(crate) fn meta(&self) -> &Mutex<MetaPack> {
        &self.meta
    }

    /// Opens a pack under the session's next number, with a salt of its own, in `buffer`.
    pub(crate) fn new_pack(&self, kind: PackKind, buffer: Vec<u8>) -> Result<PackBuilder> {
        let number = self
            .next_pack
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1))
            .map_err(|_| Error::SessionFull { session: self.session })?;
        let mut salt = [0; 32];
        self.parts.world.random(&mut salt);
        let name = PackName { session: self.session, number };
        let capacity = self
            .parts
            .settings
            .pack_bytes
            .saturating_add(self.parts.chunk_bytes as usize)
            .saturating_add(PACK_SLACK_BYTES);
        Ok(PackBuilder::reusing(&self.parts.ring, name, kind, salt, capacity, buffer)?)
    }

    /// Counts a writer in; [`Plane::flush`] refuses while one is open.
    pub(crate) fn writer_opened(&self) {
        self.open_writers.fetch_add(1, Ordering::AcqRel);
        self.buffers.grow();
    }

    /// Counts a writer out.
    pub(crate) fn writer_closed(&self) {
        self.open_writers.fetch_sub(1, Ordering::AcqRel);
        self.buffers.shrink();
    }

    /// Notes a pack whose put was acknowledged.
    pub(crate) fn stored(&self, pack: SegmentPack) {
        let mut unpublished = lock(&self.unpublished);
        unpublished.rows += pack.rows.len();
        unpublished.totals.packs += 1;
        unpublished.totals.pack_bytes += pack.bytes;
        unpublished.totals.blobs += pack.rows.len() as u64;
        unpublished.packs.push(pack);
    }

    /// Whether enough is stored, or has waited long enough, to be published.
    pub(crate) fn publish_due(&self) -> bool {
        let now_ms = self.parts.world.monotonic_ms();
        let unpublished = lock(&self.unpublished);
        !unpublished.packs.is_empty()
            && (unpublished.packs.len() >= PUBLISH_PACKS
                || unpublished.rows >= PUBLISH_ROWS
                || now_ms.saturating_sub(unpublished.since_ms) >= PUBLISH_MS)
    }

    /// Hands the stored packs over, in the order in which they were acknowledged. The caller publishes them,
    /// inserts them into the index, and calls [`Plane::published`].
    pub(crate) fn take_stored(&self) -> Vec<SegmentPack> {
        let now_ms = self.parts.world.monotonic_ms();
        let mut unpublished = lock(&self.unpublished);
        unpublished.rows = 0;
        unpublished.since_ms = now_ms;
        std::mem::take(&mut unpublished.packs)
    }

    /// Drops the claims on the chunks of `packs`. Their `Publish` is durable and the index holds them.
    pub(crate) fn published(&self, packs: &[SegmentPack]) {
        self.dedup.settle(packs.iter().flat_map(|pack| pack.rows.iter().map(|row| &row.id)));
    }

    /// Ends the open meta pack and waits until every pack is acknowledged.
    ///
    /// # Errors
    /// The session's first failure; [`Error::WritersOpen`] while a chunk writer is not finished.
    pub(crate) async fn flush(&self) -> Result<()> {
        let open = self.open_writers.load(Ordering::Acquire);
        if open > 0 {
            return Err(Error::WritersOpen { open });
        }
        let last = lock(&self.meta).take()?;
        if let Some(pack) = last {
            self.submit(pack).await?;
        }
        self.uploads.idle().await;
        self.check()
    }

    /// Queues a pack from async code.
    pub(crate) async fn submit(&self, pack: FinishedPack) -> Result<()> {
        match self.uploads.send(pack).await {
            Ok(()) => Ok(()),
            Err(uploader::Closed) => Err(self.refusal()),
        }
    }

    /// Queues a pack from a CPU thread; blocks while the queue is full.
    pub(crate) fn submit_blocking(&self, pack: FinishedPack) -> Result<()> {
        match self.uploads.send_blocking(pack) {
            Ok(()) => Ok(()),
            Err(uploader::Closed) => Err(self.refusal()),
        }
    }

    /// Fails the session, once: the first error is kept and told, all queues close. Returns what every later
    /// caller gets.
    pub(crate) fn fail(&self, error: Error) -> Error {
        let mut error = Some(error);
        let kept = self.failure.get_or_init(|| {
            let first = Arc::new(error.take().unwrap_or(Error::Closed));
            tracing::error!(session = %self.session, error = %first, "the backup session failed; nothing of it will be committed");
            first
        });
        self.uploads.close();
        self.buffers.close();
        Error::SessionFailed { cause: Arc::clone(kept) }
    }

    /// The first failure, if any.
    pub(crate) fn failure(&self) -> Option<Arc<Error>> {
        self.failure.get().cloned()
    }

    /// An error when the session has failed.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure().map_or(Ok(()), |cause| Err(Error::SessionFailed { cause }))
    }

    /// Why a closed queue refused: the failure that closed it.
    pub(crate) fn refusal(&self) -> Error {
        self.failure().map_or(Error::Closed, |cause| Error::SessionFailed { cause })
    }

    /// Every pack of earlier sessions that this one deduplicated against, in order (W4 checks them).
    pub(crate) fn dependencies(&self) -> Vec<PackName> {
        self.dedup.dependencies()
    }

    /// What is stored so far.
    pub(crate) fn totals(&self) -> Totals {
        lock(&self.unpublished).totals
    }
}
