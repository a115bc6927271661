//! Extents of a range: asked for in bounded spans, one span ahead of the reader.
//!
//! A span is 128 MiB at first, grows while answers are short, and shrinks when they are long, so that neither a sparse
//! disk of many TiB nor a fragmented one needs a long wait or much memory. A span that errors is asked for again in
//! smaller ones before it fails.
//!
//! Invariant: the extents of a stream cover its range exactly, in order, and neighbours differ in their flags.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Client;
use super::pool::Pool;
use super::read::failed;
use super::work::Work;
use crate::error::{Command, Error};
use crate::proto::extent::Extent;
use crate::proto::violation::Violation;

/// Length of the first span in bytes.
const SPAN_BYTES: u32 = 128 * 1024 * 1024;
/// Longest span in bytes.
const SPAN_BYTES_MAX: u32 = 1024 * 1024 * 1024;
/// A span that errors is not asked for in smaller pieces than this, in bytes.
const SPAN_BYTES_MIN: u32 = 64 * 1024;
/// Answers with fewer extents than this let the span grow.
const FEW_EXTENTS: usize = 4096;
/// Answers with more extents than this make it shrink.
const MANY_EXTENTS: usize = 65_536;
/// Answers that wait for the reader; one more is on its way.
const AHEAD: usize = 1;

/// The extents of a range, one after the other. Dropping it stops the questions.
#[derive(Debug)]
pub struct ExtentStream {
    answers: mpsc::Receiver<Result<Vec<Extent>, Error>>,
    ready: VecDeque<Extent>,
    held: Option<Extent>,
}

impl ExtentStream {
    pub(super) fn start(pool: &Arc<Pool>, context: &str, range: Range<u64>) -> Result<Self, Error> {
        let info = pool.info();
        if !info.contexts.iter().any(|name| name == context) {
            let (export, offered) = (info.name.clone(), info.contexts.clone());
            return Err(Error::NoContext { export, context: context.to_owned(), offered });
        }
        let bytes = range.end.saturating_sub(range.start);
        let range = Client::check_range(pool, Command::BlockStatus, range.start, bytes)?;
        let (sender, answers) = mpsc::channel(AHEAD);
        let asker = Asker { pool: Arc::clone(pool), context: Arc::from(context), span_bytes: SPAN_BYTES };
        tokio::spawn(asker.run(range, sender));
        Ok(Self { answers, ready: VecDeque::new(), held: None })
    }

    /// The next extent; `None` at the end of the range.
    ///
    /// # Errors
    /// As [`Client::read`]; the stream has ended then.
    pub async fn next(&mut self) -> Result<Option<Extent>, Error> {
        loop {
            if let Some(extent) = self.ready.pop_front() {
                match &mut self.held {
                    // Spans cut extents; here they become whole again.
                    Some(held) if held.flags == extent.flags => held.bytes += extent.bytes,
                    held => match held.replace(extent) {
                        Some(whole) => return Ok(Some(whole)),
                        None => continue,
                    },
                }
                continue;
            }
            match self.answers.recv().await {
                Some(Ok(extents)) => self.ready = extents.into(),
                Some(Err(error)) => {
                    self.held = None;
                    self.answers.close();
                    return Err(error);
                }
                None => return Ok(self.held.take()),
            }
        }
    }
}

/// Asks for one span after the other.
struct Asker {
    pool: Arc<Pool>,
    context: Arc<str>,
    span_bytes: u32,
}

impl Asker {
    async fn run(mut self, range: Range<u64>, sender: mpsc::Sender<Result<Vec<Extent>, Error>>) {
        let mut at = range.start;
        while at < range.end {
            let answer = tokio::select! {
                answer = self.ask(at, range.end) => answer,
                () = sender.closed() => return,
            };
            let answer = answer.and_then(|extents| self.from(extents, at..range.end));
            match &answer {
                Ok((_, end)) => at = *end,
                Err(_) => at = range.end,
            }
            if sender.send(answer.map(|(extents, _)| extents)).await.is_err() {
                return;
            }
        }
    }

    /// The part of an answer that lies in `range`, and where it ends.
    fn from(&self, extents: Vec<Extent>, range: Range<u64>) -> Result<(Vec<Extent>, u64), Error> {
        let offset = range.start;
        let extents = clip(extents, range);
        match extents.last().map(|last| last.offset + last.bytes) {
            Some(end) => Ok((extents, end)),
            // The server's answer ended within the block before `offset`.
            None => Err(self.pool.violation(Violation::NoExtents { offset })),
        }
    }

    /// Extents from the block of `at` on.
    async fn ask(&mut self, at: u64, end: u64) -> Result<Vec<Extent>, Error> {
        let info = self.pool.info();
        let block = u64::from(info.blocks.minimum);
        let start = at - at % block;
        let mut span = self.span_bytes;
        loop {
            // One question is one request: spans end where requests would be cut.
            let cut = (start + 1).next_multiple_of(u64::from(SPAN_BYTES_MAX));
            let stop = end.next_multiple_of(block).min(info.size_bytes).min(start + u64::from(span)).min(cut);
            let asked = start..stop;
            let work = Work {
                ranges: vec![asked],
                piece_bytes: SPAN_BYTES_MAX,
                context: Some(Arc::clone(&self.context)),
                ..Work::new(Command::BlockStatus, start)
            };
            let mut work = self.pool.run(work).await?;
            match work.faults.pop() {
                None => {
                    self.adapt(work.extents.len());
                    return Ok(work.extents);
                }
                Some(fault) if span <= SPAN_BYTES_MIN => {
                    return Err(failed(&self.pool, Command::BlockStatus, fault));
                }
                Some(_) => span = (span / 16).max(SPAN_BYTES_MIN),
            }
        }
    }

    fn adapt(&mut self, extents: usize) {
        if extents < FEW_EXTENTS {
            self.span_bytes = self.span_bytes.saturating_mul(2).min(SPAN_BYTES_MAX);
        } else if extents > MANY_EXTENTS {
            self.span_bytes = (self.span_bytes / 2).max(SPAN_BYTES / 8);
        }
    }
}

/// The parts of extents that lie within a range.
fn clip(extents: Vec<Extent>, range: Range<u64>) -> Vec<Extent> {
    extents
        .into_iter()
        .filter_map(|extent| {
            let offset = extent.offset.max(range.start);
            let end = (extent.offset + extent.bytes).min(range.end);
            (offset < end).then(|| Extent { offset, bytes: end - offset, flags: extent.flags })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_clipped_to_the_range_on_both_sides() {
        let list = vec![
            Extent { offset: 0, bytes: 512, flags: 0 },
            Extent { offset: 512, bytes: 512, flags: 3 },
            Extent { offset: 1024, bytes: 512, flags: 0 },
        ];
        assert_eq!(
            clip(list, 600..1030),
            [Extent { offset: 600, bytes: 424, flags: 3 }, Extent { offset: 1024, bytes: 6, flags: 0 }]
        );
    }
}
