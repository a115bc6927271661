//! All connections of a client, and what happens when one is lost.
//!
//! Each operation goes to the connection with the least on it. When a connection is lost under a read, the next operation
//! that wants it dials again, checks that the export is the same, and the read goes out again with what is not done.
//! A writable client never dials again: a write that was answered but not flushed may have gone with the server.
//!
//! Invariant: after a reconnect every byte comes from an export with the size, flags, block sizes and contexts of the
//! first connection; otherwise every operation fails with [`Error::Changed`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::connect::Dialer;
use super::connection::{self, Handle, Names};
use super::options::{ClientOptions, ExportInfo};
use super::read::read;
use super::work::{Outcome, Submission, Work};
use crate::error::{Change, Error, Stage};
use crate::proto::handshake::Negotiated;
use crate::proto::violation::Violation;
use crate::uri::Uri;

/// How often one operation goes out again after lost connections.
const REISSUES_MAX: u32 = 3;
/// Longest pause between two attempts to dial.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The byte budget is kept in units of this many bytes.
const BUDGET_UNIT_BYTES: u64 = 4096;
/// How long to wait for the connections' polite end.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a line should be able to carry, in bytes a microsecond: more than the processors of a backup host take.
const LINE_BYTES_PER_MICROSECOND: u128 = 3000;
/// Requests end where extents end, and many are shorter than they may be: this many fill one of full length.
const REQUESTS_TO_FILL_ONE: u128 = 2;
/// How long connections beyond the usual number may take to open, beside what the line's latency explains.
const EXTRA_PATIENCE: Duration = Duration::from_secs(1);

/// One place for a connection.
#[derive(Debug)]
struct Slot {
    state: Mutex<State>,
    /// Operations on it or waiting for it.
    load: AtomicU64,
    retired: AtomicBool,
}

#[derive(Debug)]
enum State {
    Open { jobs: mpsc::Sender<Submission>, task: JoinHandle<()> },
    Retired(Error),
}

/// The connections of one client.
#[derive(Debug)]
pub(crate) struct Pool {
    dialer: Arc<Dialer>,
    info: ExportInfo,
    slots: Vec<Slot>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    /// Why no operation can succeed any more.
    end: OnceLock<Error>,
}

/// Keeps a slot's load while an operation is on it, also when the operation is dropped.
struct Load<'a>(&'a Slot);

impl<'a> Load<'a> {
    fn on(slot: &'a Slot) -> Self {
        slot.load.fetch_add(1, Ordering::Relaxed);
        Self(slot)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(crate) async fn connect(uri: &Uri, options: &ClientOptions) -> Result<Arc<Self>, Error> {
        let dialer = Arc::new(Dialer::new(uri, options).await?);
        let (stream, negotiated) = dialer.open().await?;
        let mut info = ExportInfo::new(dialer.peer(), &uri.export, uri.tls, &negotiated);
        if options.writable && info.is_read_only() {
            return Err(Error::ReadOnly { export: uri.export.clone() });
        }
        info.connections = 1;
        let slots = vec![Slot::new(start(&dialer, stream, &negotiated))];
        let units = (options.in_flight_bytes / BUDGET_UNIT_BYTES).max(1);
        let budget_units = u32::try_from(units).unwrap_or(u32::MAX).min(u32::MAX >> 3);
        let budget =
            Arc::new(Semaphore::new(usize::try_from(budget_units).unwrap_or(Semaphore::MAX_PERMITS)));
        let mut pool = Self { dialer, info, slots, budget, budget_units, end: OnceLock::new() };
        if pool.info.is_multi_conn() {
            pool.widen().await?;
        }
        Ok(Arc::new(pool))
    }

    /// Opens the further connections that the options ask for, and as many more as the line is long.
    async fn widen(&mut self) -> Result<(), Error> {
        let options = self.dialer.options().clone();
        self.dial_more(options.connections, None).await?;
        if options.connections_max > options.connections {
            let mut latency = self.latency().await;
            if connections_for(latency, &options) > options.connections {
                // Once is a disk's seek or a busy moment. The line's part comes back.
                latency = latency.min(self.latency().await);
            }
            // A server may have room for no more, and then says nothing for as long as it is asked.
            let patience = EXTRA_PATIENCE + 10 * latency;
            self.dial_more(connections_for(latency, &options), Some(patience)).await?;
        }
        self.info.connections = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        Ok(())
    }

    /// How long a small read takes while nothing else is asked. What it gives, or that it fails, does not matter.
    async fn latency(&self) -> Duration {
        let bytes = u64::from(self.info.blocks.minimum).min(self.info.size_bytes);
        let begun = Instant::now();
        let _ = read(self, 0, vec![0; usize::try_from(bytes).unwrap_or(0)]).await;
        begun.elapsed()
    }

    /// Dials until there are `wanted` connections; with `patience`, those that are not open by then are left out.
    async fn dial_more(&mut self, wanted: u16, patience: Option<Duration>) -> Result<(), Error> {
        let mut dialing = JoinSet::new();
        for _ in self.slots.len()..usize::from(wanted) {
            let dialer = Arc::clone(&self.dialer);
            dialing.spawn(async move { dialer.open().await });
        }
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let opened = match deadline {
                None => dialing.join_next().await,
                Some(deadline) => timeout_at(deadline, dialing.join_next()).await.unwrap_or_default(),
            };
            match opened {
                None => return Ok(()),
                Some(Ok(Ok((stream, negotiated)))) => {
                    check_same(&self.info, &negotiated).map_err(|change| changed(&self.info, change))?;
                    self.slots.push(Slot::new(start(&self.dialer, stream, &negotiated)));
                }
                Some(Ok(Err(error))) => warn!(%error, "going on with fewer NBD connections"),
                Some(Err(error)) => warn!(%error, "going on with fewer NBD connections"),
            }
        }
    }

    pub(crate) fn info(&self) -> &ExportInfo {
        &self.info
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.dialer.options().writable
    }

    /// Most bytes of one request with payload: what the caller chose, within the server's limits and on its grid.
    pub(crate) fn piece_bytes(&self) -> u32 {
        let blocks = self.info.blocks;
        let wanted = self.dialer.options().request_bytes.min(blocks.maximum);
        (wanted - wanted % blocks.minimum).max(blocks.minimum)
    }

    /// Waits until this many bytes may be on the wire.
    pub(crate) async fn budget(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(BUDGET_UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(self.budget_units);
        // The semaphore is never closed; without a permit the work would merely not be counted.
        Arc::clone(&self.budget).acquire_many_owned(units).await.ok()
    }

    /// Sends work over one connection, and again over another when that is lost.
    pub(crate) async fn run(&self, mut work: Work) -> Result<Work, Error> {
        let mut losses = 0;
        loop {
            let slot = self.pick()?;
            let load = Load::on(slot);
            let jobs = match self.open_slot(slot).await {
                Ok(jobs) => jobs,
                // Another slot may still be open; `pick` knows.
                Err(_) => continue,
            };
            let (back, error) = match submit(&jobs, work, self.dialer.peer()).await {
                Ok(Ok(work)) => return Ok(work),
                Ok(Err(lost)) => lost,
                Err(error) => return Err(error),
            };
            drop(load);
            losses += 1;
            if !error.is_transient() {
                return Err(error);
            }
            let lost = self.lost(&back, losses, error);
            if self.is_writable() {
                return Err(self.end.get_or_init(|| lost).clone());
            }
            if losses > REISSUES_MAX {
                return Err(lost);
            }
            debug!(error = %lost, "issuing again");
            work = back;
        }
    }

    /// The open slot with the least on it; those being dialed again come last.
    fn pick(&self) -> Result<&Slot, Error> {
        if let Some(error) = self.end.get() {
            return Err(error.clone());
        }
        let usable = self.slots.iter().filter(|slot| !slot.retired.load(Ordering::Acquire));
        // A slot that is being dialed again is locked for long.
        let weight = |slot: &&Slot| (slot.state.try_lock().is_err(), slot.load.load(Ordering::Relaxed));
        usable.min_by_key(weight).ok_or_else(|| self.disconnected())
    }

    /// The way to a slot's task, after dialing again when the connection is gone.
    async fn open_slot(&self, slot: &Slot) -> Result<mpsc::Sender<Submission>, Error> {
        let mut state = slot.state.lock().await;
        match &*state {
            State::Open { jobs, .. } if !jobs.is_closed() => return Ok(jobs.clone()),
            // Even a connection that broke while nothing was in flight may have taken unflushed writes with it.
            State::Open { .. } if self.is_writable() => {
                let (peer, stage) = (self.info.peer.clone(), Stage::Request);
                return Err(self.end.get_or_init(|| Error::Closed { peer, stage, source: None }).clone());
            }
            State::Open { .. } => {}
            State::Retired(error) => return Err(error.clone()),
        }
        match self.redial().await {
            Ok(Handle { jobs, task }) => {
                *state = State::Open { jobs: jobs.clone(), task };
                Ok(jobs)
            }
            Err(error) => {
                *state = State::Retired(error.clone());
                slot.retired.store(true, Ordering::Release);
                let all_gone = self.slots.iter().all(|slot| slot.retired.load(Ordering::Acquire));
                if all_gone || matches!(error, Error::Changed { .. }) {
                    self.end.get_or_init(|| error.clone());
                }
                Err(error)
            }
        }
    }

    async fn redial(&self) -> Result<Handle, Error> {
        let options = self.dialer.options();
        let mut pause = options.reconnect_backoff;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let error = match self.dialer.open().await {
                Ok((stream, negotiated)) => {
                    check_same(&self.info, &negotiated).map_err(|change| changed(&self.info, change))?;
                    debug!(peer = self.dialer.peer(), attempt, "reconnected");
                    return Ok(start(&self.dialer, stream, &negotiated));
                }
                Err(error) => error,
            };
            if attempt >= options.reconnect_attempts || !error.is_transient() {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    fn lost(&self, work: &Work, losses: u32, cause: Error) -> Error {
        let start = work.ranges.iter().map(|range| range.start).min().unwrap_or(work.base);
        let end = work.ranges.iter().map(|range| range.end).max().unwrap_or(start);
        Error::Lost {
            export: self.info.name.clone(),
            command: work.command,
            offset: start,
            bytes: end.saturating_sub(start),
            losses,
            cause: Arc::new(cause),
        }
    }

    /// The error for a breach of the protocol that shows only after several answers.
    pub(crate) fn violation(&self, violation: Violation) -> Error {
        let (peer, export) = (self.info.peer.clone(), self.info.name.clone());
        Error::Violation { peer, export, violation }
    }

    fn disconnected(&self) -> Error {
        Error::Disconnected { export: self.info.name.clone() }
    }

    pub(crate) async fn disconnect(&self) {
        let error = self.end.get_or_init(|| self.disconnected()).clone();
        for slot in &self.slots {
            let state = std::mem::replace(&mut *slot.state.lock().await, State::Retired(error.clone()));
            slot.retired.store(true, Ordering::Release);
            if let State::Open { jobs, task } = state {
                drop(jobs);
                // A task that does not end in time ends by its own deadlines.
                let _ = timeout(GOODBYE, task).await;
            }
        }
    }
}

impl Slot {
    fn new(handle: Handle) -> Self {
        let Handle { jobs, task } = handle;
        Self {
            state: Mutex::new(State::Open { jobs, task }),
            load: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        }
    }
}

/// How many connections keep a line of this latency full: what travels in one latency, by what one connection may have on
/// the wire.
fn connections_for(latency: Duration, options: &ClientOptions) -> u16 {
    let on_one = u128::from(options.depth.max(1)) * u128::from(options.request_bytes.max(1));
    let wanted = (latency.as_micros() * LINE_BYTES_PER_MICROSECOND * REQUESTS_TO_FILL_ONE).div_ceil(on_one);
    u16::try_from(wanted).unwrap_or(u16::MAX).clamp(options.connections, options.connections_max)
}

fn start(dialer: &Dialer, stream: super::stream::Stream, negotiated: &Negotiated) -> Handle {
    let names = Names { peer: dialer.peer().to_owned(), export: dialer.uri().export.clone() };
    let options = dialer.options();
    connection::start(stream, names, negotiated, options.depth, options.request_deadline)
}

/// Hands work to a connection and waits for it to come back. It does not come back only from a runtime that shuts down.
async fn submit(jobs: &mpsc::Sender<Submission>, work: Work, peer: &str) -> Result<Outcome, Error> {
    let (done, back) = oneshot::channel();
    let closed = || Error::Closed { peer: peer.to_owned(), stage: Stage::Request, source: None };
    match jobs.send(Submission { work, done }).await {
        Err(mpsc::error::SendError(submission)) => Ok(Err((submission.work, closed()))),
        Ok(()) => back.await.map_err(|_| closed()),
    }
}

fn check_same(info: &ExportInfo, now: &Negotiated) -> Result<(), Change> {
    if info.size_bytes != now.size_bytes {
        return Err(Change::Size { was: info.size_bytes, now: now.size_bytes });
    }
    if info.flags != now.flags {
        return Err(Change::Flags { was: info.flags, now: now.flags });
    }
    if info.blocks != now.blocks {
        return Err(Change::Blocks);
    }
    let mut contexts: Vec<String> = now.contexts.iter().map(|context| context.name.clone()).collect();
    contexts.sort_unstable();
    if info.contexts != contexts {
        return Err(Change::Contexts { was: info.contexts.clone(), now: contexts });
    }
    Ok(())
}

fn changed(info: &ExportInfo, change: Change) -> Error {
    Error::Changed { peer: info.peer.clone(), export: info.name.clone(), change }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_gets_as_many_connections_as_keep_it_full_within_the_bounds() {
        let options = ClientOptions::default();
        let connections = |ms| connections_for(Duration::from_millis(ms), &options);
        assert_eq!([0, 1, 5].map(connections), [4; 3]);
        assert_eq!([10, 20, 50, 10_000].map(connections), [8, 15, 16, 16]);
    }
}
