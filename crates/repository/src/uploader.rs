//! From finished pack to acknowledged object: the session's bounded queue, its tasks, and the buffers that
//! go round.
//!
//! CPU threads send finished packs; `settings.uploads` tasks put them, note them for publishing, and give
//! the buffers back. There is no retry here (the store has its own) and no decision about the log.
//!
//! Invariants: at most `writers + uploads` data buffers exist; a failed put fails the session with the
//! pack's key and wakes every thread that waits for a buffer or for room in the queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use aquifer_format::{FinishedPack, PackKind, SegmentPack};
use async_channel::{Receiver, Sender};
use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::Error;
use crate::layout;
use crate::plane::{Plane, Progress};

/// Most buffers that can wait in a pool: far above any number of CPU threads.
const BUFFERS_MAX: usize = 1024;

/// The queue is closed: the session failed or ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// The sending side of the queue, and the count of packs on their way.
pub(crate) struct Uploads {
    queue: Sender<FinishedPack>,
    on_their_way: watch::Sender<usize>,
}

impl Uploads {
    /// A queue for `tasks` uploader tasks, and its receiving side.
    pub(crate) fn new(tasks: usize) -> (Self, Receiver<FinishedPack>) {
        let (queue, receiver) = async_channel::bounded(tasks);
        (Uploads { queue, on_their_way: watch::Sender::new(0) }, receiver)
    }

    /// Queues `pack`; waits for room.
    pub(crate) async fn send(&self, pack: FinishedPack) -> Result<(), Closed> {
        self.on_their_way.send_modify(|count| *count += 1);
        self.queue.send(pack).await.map_err(|_| self.lost())
    }

    /// Queues `pack` from a CPU thread; blocks for room.
    pub(crate) fn send_blocking(&self, pack: FinishedPack) -> Result<(), Closed> {
        self.on_their_way.send_modify(|count| *count += 1);
        self.queue.send_blocking(pack).map_err(|_| self.lost())
    }

    /// Waits until no pack is on its way, or the queue is closed.
    pub(crate) async fn idle(&self) {
        let mut count = self.on_their_way.subscribe();
        // An error would mean that `self` is gone.
        let _ = count.wait_for(|count| *count == 0 || self.queue.is_closed()).await;
    }

    /// Closes the queue: what waits in it is dropped, and every sender and [`Uploads::idle`] wakes.
    pub(crate) fn close(&self) {
        self.queue.close();
        self.on_their_way.send_modify(|_| ());
    }

    fn lost(&self) -> Closed {
        self.done();
        Closed
    }

    fn done(&self) {
        self.on_their_way.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// The pool of data pack buffers: what bounds the memory of a session. A buffer is allocated by its first
/// user and goes round from then on, so that its pages are mapped once and not once a pack.
pub(crate) struct Buffers {
    give: Sender<Vec<u8>>,
    take: Receiver<Vec<u8>>,
    surplus: AtomicUsize,
}

impl Buffers {
    /// A pool of `count` buffers.
    pub(crate) fn new(count: usize) -> Self {
        let (give, take) = async_channel::bounded(BUFFERS_MAX);
        let pool = Buffers { give, take, surplus: AtomicUsize::new(0) };
        (0..count).for_each(|_| pool.grow());
        pool
    }

    /// One buffer more: a writer came.
    pub(crate) fn grow(&self) {
        self.recycle(Vec::new());
    }

    /// One buffer less, as soon as one comes back: a writer left.
    pub(crate) fn shrink(&self) {
        if self.take.try_recv().is_err() {
            self.surplus.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Waits for a buffer: a new empty one, or one with the bytes of an earlier pack in it.
    pub(crate) fn take_blocking(&self) -> Result<Vec<u8>, Closed> {
        self.take.recv_blocking().map_err(|_| Closed)
    }

    /// Gives a buffer back.
    pub(crate) fn recycle(&self, buffer: Vec<u8>) {
        let surplus =
            self.surplus.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1));
        if surplus.is_err() {
            // A full or closed pool lets the buffer go.
            let _ = self.give.try_send(buffer);
        }
    }

    /// Wakes every waiting thread with [`Closed`].
    pub(crate) fn close(&self) {
        self.give.close();
    }
}

/// Starts `tasks` uploader tasks. They end when the session's last owner drops it, or when it fails.
pub(crate) fn spawn(
    plane: &Arc<Plane>,
    queue: &Receiver<FinishedPack>,
    progress: &Weak<dyn Progress>,
    tasks: usize,
) {
    for _ in 0..tasks {
        tokio::spawn(run(Arc::downgrade(plane), queue.clone(), Weak::clone(progress)));
    }
}

/// One uploader: a pack at a time until the queue closes.
async fn run(plane: Weak<Plane>, queue: Receiver<FinishedPack>, progress: Weak<dyn Progress>) {
    while let Ok(pack) = queue.recv().await {
        let Some(plane) = plane.upgrade() else { return };
        upload(&plane, pack).await;
        publish_if_due(&plane, &progress).await;
        plane.uploads().done();
    }
}

/// Puts one pack and notes it, or fails the session.
async fn upload(plane: &Plane, pack: FinishedPack) {
    if plane.failure().is_some() {
        return;
    }
    let FinishedPack { name, kind, bytes, rows, header, hash } = pack;
    let body = Bytes::from(bytes);
    let stored = SegmentPack { name, stored_as: name, bytes: body.len() as u64, kind, header, hash, rows };
    match plane.parts().packs.put(&layout::pack(&name), body.clone()).await {
        Ok(()) => plane.stored(stored),
        Err(source) => drop(plane.fail(Error::Upload { pack: name, source: Box::new(source) })),
    }
    if kind == PackKind::Data {
        // A store that still holds the body keeps it; the pool then starts with an empty buffer.
        plane.buffers().recycle(body.try_into_mut().map(BytesMut::into).unwrap_or_default());
    }
}

/// Lets the session publish when it should; its failure is the session's.
async fn publish_if_due(plane: &Plane, progress: &Weak<dyn Progress>) {
    if plane.failure().is_none()
        && plane.publish_due()
        && let Some(session) = progress.upgrade()
        && let Err(error) = session.checkpoint_progress().await
    {
        plane.fail(error);
    }
}
