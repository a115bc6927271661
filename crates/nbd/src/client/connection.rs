//! One connection: a task that owns the stream and everything in flight on it, so that nothing needs a lock.
//!
//! Work comes over a bounded channel and goes back over a oneshot, together with its buffer. The task reads heads through
//! a small inbox and payload straight into the buffer of the work that it belongs to; requests of all waiting work leave
//! in one write.
//!
//! Invariant: whatever ends the connection, every piece of work goes back to its owner with the ranges that are not done.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::stream::Stream;
use super::work::{Fault, Outcome, Submission, Work};
use crate::error::{Error, Stage};
use crate::proto::handshake::Negotiated;
use crate::proto::reply::{Answer, Event, INPUT_BYTES_MAX, Replies};
use crate::proto::request::{Command, Pieces, Request};
use crate::proto::violation::Violation;

/// Bytes of the inbox. Payload that arrives behind a head is copied out of it, so it is small beside a request.
const INBOX_BYTES: usize = 8192;
const _: () = assert!(INBOX_BYTES >= INPUT_BYTES_MAX, "a whole error chunk must fit the inbox");
/// How long a polite end may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// How the rest of the client reaches the task.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) jobs: mpsc::Sender<Submission>,
    pub(crate) task: JoinHandle<()>,
}

/// The names that messages of a connection need.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) peer: String,
    pub(crate) export: String,
}

/// Work that the connection has taken.
#[derive(Debug)]
struct Running {
    work: Work,
    done: oneshot::Sender<Outcome>,
    /// Requests not sent yet, of the range taken last.
    pieces: Pieces,
    in_flight: usize,
}

/// One request in flight, by slot.
#[derive(Debug, Clone, Copy)]
struct Flight {
    running: usize,
    offset: u64,
    bytes: u32,
    sent: Instant,
}

/// Payload that moves between the stream and a buffer.
#[derive(Debug)]
struct Moving {
    slot: usize,
    running: usize,
    range: Range<usize>,
}

#[derive(Debug)]
struct Connection {
    stream: Stream,
    names: Names,
    replies: Replies,
    contexts: Vec<(Arc<str>, u32)>,
    depth: usize,
    deadline: Duration,
    jobs: mpsc::Receiver<Submission>,
    running: Vec<Option<Running>>,
    /// Running work with requests not sent yet.
    waiting: VecDeque<usize>,
    flights: Vec<Option<Flight>>,
    inbox: Box<[u8]>,
    unread: Range<usize>,
    incoming: Option<Moving>,
    outbox: Vec<u8>,
    sent: usize,
    outgoing: Option<Moving>,
    alarm: Pin<Box<Sleep>>,
    alarm_set: bool,
    closing: bool,
}

/// Starts the task of a connection whose handshake is done.
pub(crate) fn start(
    stream: Stream,
    names: Names,
    negotiated: &Negotiated,
    depth: u16,
    deadline: Duration,
) -> Handle {
    let depth = depth.max(1);
    let ids = negotiated.contexts.iter().map(|context| context.id).collect();
    let (sender, jobs) = mpsc::channel(usize::from(depth));
    let connection = Connection {
        stream,
        names,
        replies: Replies::new(negotiated.mode, ids, depth),
        contexts: negotiated.contexts.iter().map(|c| (Arc::from(c.name.as_str()), c.id)).collect(),
        depth: usize::from(depth),
        deadline,
        jobs,
        running: Vec::new(),
        waiting: VecDeque::new(),
        flights: vec![None; usize::from(depth)],
        inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
        unread: 0..0,
        incoming: None,
        outbox: Vec::new(),
        sent: 0,
        outgoing: None,
        alarm: Box::pin(sleep(deadline)),
        alarm_set: false,
        closing: false,
    };
    Handle { jobs: sender, task: tokio::spawn(connection.run()) }
}

impl Connection {
    async fn run(mut self) {
        match poll_fn(|cx| self.poll(cx)).await {
            Ok(()) => self.say_goodbye().await,
            Err(error) => self.give_back(&error).await,
        }
    }

    /// Runs until all owners of the handle are gone and everything is answered.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // First, because a peer that keeps the stream busy uses up the share of time that tokio gives a task.
        if let Poll::Ready(late) = self.poll_alarm(cx) {
            return Poll::Ready(Err(late));
        }
        loop {
            self.poll_read(cx)?;
            let issued = self.poll_jobs(cx);
            let sent = self.poll_write(cx)?;
            if self.closing && self.replies.in_flight() == 0 && self.waiting.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !issued && !sent {
                return self.poll_alarm(cx).map(Err);
            }
        }
    }

    /// Takes work and turns it into requests while there is room; true when a request was made.
    fn poll_jobs(&mut self, cx: &mut Context<'_>) -> bool {
        let mut issued = false;
        while self.outgoing.is_none() && self.replies.in_flight() < self.depth {
            if let Some(number) = self.waiting.front().copied() {
                if !self.issue(number) {
                    break;
                }
                issued = true;
                continue;
            }
            if self.closing {
                break;
            }
            match self.jobs.poll_recv(cx) {
                Poll::Ready(Some(submission)) => self.accept(submission),
                Poll::Ready(None) => self.closing = true,
                Poll::Pending => break,
            }
        }
        issued
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { work, done } = submission;
        let running = Running { work, done, pieces: Pieces::new(0..0, 1), in_flight: 0 };
        let number = match self.running.iter().position(Option::is_none) {
            Some(number) => number,
            None => {
                self.running.push(None);
                self.running.len() - 1
            }
        };
        self.running[number] = Some(running);
        self.waiting.push_back(number);
    }

    /// Makes the next request of some work; false when there was no room for it.
    fn issue(&mut self, number: usize) -> bool {
        let Some(running) = self.running.get_mut(number).and_then(Option::as_mut) else {
            self.waiting.pop_front();
            return false;
        };
        let work = &mut running.work;
        if running.pieces.is_empty() {
            running.pieces = Pieces::new(work.ranges.pop().unwrap_or_default(), work.piece_bytes);
        }
        // Flush has an empty range, and yet is one request.
        let (offset, bytes) = running.pieces.next().unwrap_or((0, 0));
        let mut request = Request { command: work.command, flags: work.flags, cookie: 0, offset, bytes };
        let context = work.context.as_deref();
        let id = self.contexts.iter().find(|(name, _)| Some(name.as_ref()) == context).map(|(_, id)| *id);
        let Some(slot) = self.replies.issue(&mut request, id) else {
            work.ranges.push(offset..offset + u64::from(bytes));
            return false;
        };
        request.encode(self.replies.mode(), &mut self.outbox);
        if running.pieces.is_empty() && work.ranges.is_empty() {
            self.waiting.pop_front();
        }
        running.in_flight += 1;
        if work.command == Command::Write {
            let start = distance(work.base, offset);
            self.outgoing = Some(Moving { slot, running: number, range: start..start + length(bytes) });
        }
        let sent = Instant::now();
        self.flights[slot] = Some(Flight { running: number, offset, bytes, sent });
        if !self.alarm_set {
            self.alarm_set = true;
            self.alarm.as_mut().reset(sent + self.deadline);
        }
        true
    }

    /// Sends what waits; true when something went out.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut progress = false;
        while self.sent < self.outbox.len() || self.outgoing.is_some() {
            let head = &self.outbox[self.sent..];
            let payload = match &self.outgoing {
                Some(moving) => match &self.running[moving.running] {
                    Some(running) => &running.work.buffer[moving.range.clone()],
                    None => &[],
                },
                None => &[],
            };
            let slices = [IoSlice::new(head), IoSlice::new(payload)];
            let stream = Pin::new(&mut self.stream);
            let written = match if payload.is_empty() {
                stream.poll_write(cx, head)
            } else {
                stream.poll_write_vectored(cx, &slices)
            } {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(0)) => return Err(self.closed(None)),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(source)) => return Err(self.closed(Some(source))),
            };
            progress = true;
            let of_head = written.min(head.len());
            self.sent += of_head;
            if self.sent == self.outbox.len() {
                self.outbox.clear();
                self.sent = 0;
            }
            if let Some(moving) = &mut self.outgoing {
                moving.range.start += written - of_head;
                if moving.range.is_empty() && self.outbox.is_empty() {
                    self.outgoing = None;
                }
            }
        }
        // TLS may hold back what it was given.
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(Err(source)) => Err(self.closed(Some(source))),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(progress),
        }
    }

    /// Reads until the stream has no more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        loop {
            let filled = if self.incoming.is_some() {
                self.poll_payload(cx)?
            } else {
                let (used, event) =
                    self.replies.feed(&self.inbox[self.unread.clone()]).map_err(|v| self.violation(v))?;
                self.unread.start += used;
                match event {
                    Some(event) => {
                        self.handle(event)?;
                        continue;
                    }
                    None => self.poll_inbox(cx)?,
                }
            };
            if filled.is_pending() {
                return Ok(());
            }
        }
    }

    /// Moves payload: what is in the inbox by copy, the rest straight from the stream.
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Error> {
        let Some(moving) = &mut self.incoming else { return Ok(Poll::Ready(())) };
        let Some(running) = &mut self.running[moving.running] else {
            return Err(self.closed(None));
        };
        let target = &mut running.work.buffer[moving.range.clone()];
        let copied = target.len().min(self.unread.len());
        if copied > 0 {
            let from = self.unread.start;
            target[..copied].copy_from_slice(&self.inbox[from..from + copied]);
            self.unread.start += copied;
            moving.range.start += copied;
        } else if target.len() >= INBOX_BYTES {
            let mut buffer = ReadBuf::new(target);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(source)) => return Err(self.closed(Some(source))),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(self.closed(None)),
                Poll::Ready(Ok(())) => moving.range.start += buffer.filled().len(),
            }
        } else if !target.is_empty() {
            // A short rest comes through the inbox, together with the next head.
            return self.poll_inbox(cx);
        }
        if moving.range.is_empty() {
            self.incoming = None;
            if let Some(event) = self.replies.payload_moved().map_err(|v| self.violation(v))? {
                self.handle(event)?;
            }
        }
        Ok(Poll::Ready(()))
    }

    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Error> {
        if self.unread.start > 0 {
            self.inbox.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let mut buffer = ReadBuf::new(&mut self.inbox[self.unread.end..]);
        match ready_or_pending(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
            None => Ok(Poll::Pending),
            Some(Err(source)) => Err(self.closed(Some(source))),
            Some(Ok(())) if buffer.filled().is_empty() => Err(self.closed(None)),
            Some(Ok(())) => {
                self.unread.end += buffer.filled().len();
                Ok(Poll::Ready(()))
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Payload { slot, at, bytes } => {
                let Some(flight) = self.flights[slot] else { return Err(self.closed(None)) };
                let Some(running) = &self.running[flight.running] else { return Err(self.closed(None)) };
                let start = distance(running.work.base, flight.offset) + length(at);
                let range = start..start + length(bytes);
                self.incoming = Some(Moving { slot, running: flight.running, range });
                Ok(())
            }
            Event::Answered(answer) => self.answered(answer),
        }
    }

    fn answered(&mut self, answer: Answer) -> Result<(), Error> {
        let Some(flight) = self.flights[answer.slot].take() else { return Ok(()) };
        if self.outgoing.as_ref().is_some_and(|moving| moving.slot == answer.slot) {
            return Err(self.violation(Violation::EarlyReply { offset: flight.offset }));
        }
        let Some(running) = &mut self.running[flight.running] else { return Ok(()) };
        running.in_flight -= 1;
        let work = &mut running.work;
        match answer.failure {
            Some(failure) => work.faults.push(Fault { offset: flight.offset, bytes: flight.bytes, failure }),
            None => {
                let shift = u32::try_from(flight.offset.saturating_sub(work.base)).unwrap_or(u32::MAX);
                work.holes.extend(answer.holes.iter().map(|(at, bytes)| (shift.saturating_add(*at), *bytes)));
                work.extents.extend(answer.extents);
            }
        }
        self.settle(flight.running);
        Ok(())
    }

    /// Gives work back when all of it is answered.
    fn settle(&mut self, number: usize) {
        let finished = |running: &mut Running| {
            running.in_flight == 0 && running.pieces.is_empty() && running.work.ranges.is_empty()
        };
        if let Some(running) = self.running[number].take_if(finished) {
            // An owner that no longer waits has no use for it.
            let _ = running.done.send(Ok(running.work));
        }
    }

    /// Ready when a request is in flight for longer than the deadline.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        while self.alarm_set {
            ready!(self.alarm.as_mut().poll(cx));
            match self.flights.iter().flatten().map(|flight| flight.sent).min() {
                None => self.alarm_set = false,
                Some(oldest) if oldest.elapsed() >= self.deadline => {
                    let peer = self.names.peer.clone();
                    return Poll::Ready(Error::Deadline {
                        peer,
                        stage: Stage::Request,
                        after: self.deadline,
                    });
                }
                Some(oldest) => self.alarm.as_mut().reset(oldest + self.deadline),
            }
        }
        Poll::Pending
    }

    async fn say_goodbye(mut self) {
        let mut out = Vec::new();
        Request { command: Command::Disconnect, flags: 0, cookie: 0, offset: 0, bytes: 0 }
            .encode(self.replies.mode(), &mut out);
        // Whether the peer hears it does not matter: everything is answered.
        let _ = timeout(GOODBYE, async {
            self.stream.write_all(&out).await?;
            self.stream.shutdown().await
        })
        .await;
    }

    /// Gives all work back after the connection ended, also what was never taken.
    async fn give_back(mut self, error: &Error) {
        self.jobs.close();
        for flight in self.flights.iter().flatten() {
            if let Some(running) = &mut self.running[flight.running] {
                running.work.ranges.push(flight.offset..flight.offset + u64::from(flight.bytes));
            }
        }
        for mut running in self.running.into_iter().flatten() {
            let rest = running.pieces.rest();
            if !rest.is_empty() {
                running.work.ranges.push(rest);
            }
            let _ = running.done.send(Err((running.work, error.clone())));
        }
        while let Some(Submission { work, done }) = self.jobs.recv().await {
            let _ = done.send(Err((work, error.clone())));
        }
    }

    fn violation(&self, violation: Violation) -> Error {
        let Names { peer, export } = self.names.clone();
        Error::Violation { peer, export, violation }
    }

    fn closed(&self, source: Option<io::Error>) -> Error {
        Error::Closed { peer: self.names.peer.clone(), stage: Stage::Request, source: source.map(Arc::new) }
    }
}

fn ready_or_pending<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Lengths of requests lie within a buffer in memory, so they fit.
fn length(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Where an offset of the export lies in a buffer that begins at `base`.
fn distance(base: u64, offset: u64) -> usize {
    usize::try_from(offset.saturating_sub(base)).unwrap_or(usize::MAX)
}
