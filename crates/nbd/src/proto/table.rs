//! The requests in flight on one connection, and what of each has been answered.
//!
//! Invariant: a cookie names its slot in the low 16 bits and a serial number above, so that the cookie of an answered
//! request never fits the slot's next request: an answer given twice is found out.

use super::consts::{Errno, STRING_BYTES_MAX};
use super::coverage::Coverage;
use super::cursor::Cursor;
use super::extent::{self, Extent};
use super::reply::{Answer, Failure};
use super::request::{Command, Request};
use super::violation::Violation;

/// Smallest unit in which servers should cut their replies, in bytes (NBD protocol, `NBD_CMD_READ`).
const CHUNK_BYTES_EXPECTED: u32 = 512;
/// Chunks that every reply may have besides.
const CHUNKS_SPARE: u32 = 64;

/// One request in flight.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) request: Request,
    /// Id of the context that a block status is for.
    pub(crate) context: Option<u32>,
    pub(crate) failure: Option<Failure>,
    pub(crate) holes: Vec<(u32, u32)>,
    extents: Vec<Extent>,
    coverage: Coverage,
    contexts_seen: Vec<bool>,
    chunks: u32,
    busy: bool,
}

impl Entry {
    fn idle() -> Self {
        Self {
            request: Request { command: Command::Flush, flags: 0, cookie: 0, offset: 0, bytes: 0 },
            context: None,
            failure: None,
            holes: Vec::new(),
            extents: Vec::new(),
            coverage: Coverage::default(),
            contexts_seen: Vec::new(),
            chunks: 0,
            busy: false,
        }
    }

    /// Counts a chunk against the most that a reply of this length can need.
    pub(crate) fn count_chunk(&mut self) -> Result<(), Violation> {
        let limit = CHUNKS_SPARE + self.request.bytes / CHUNK_BYTES_EXPECTED;
        self.chunks += 1;
        if self.chunks > limit {
            return Err(Violation::Chunks { offset: self.request.offset, limit });
        }
        Ok(())
    }

    /// Marks a chunk's bytes as answered and gives their distance from the request's first byte.
    pub(crate) fn cover(&mut self, got_offset: u64, got_bytes: u64) -> Result<u32, Violation> {
        let Request { offset, bytes, .. } = self.request;
        let inside = || {
            let start = u32::try_from(got_offset.checked_sub(offset)?).ok()?;
            let length = u32::try_from(got_bytes).ok().filter(|length| *length > 0)?;
            let end = start.checked_add(length).filter(|end| *end <= bytes)?;
            Some((start, end))
        };
        let (start, end) = inside().ok_or(Violation::Outside { offset, bytes, got_offset, got_bytes })?;
        if !self.coverage.add(start, end) {
            return Err(Violation::Overlap { offset: got_offset, bytes: end - start });
        }
        Ok(start)
    }

    /// Enters an extent that begins `at` bytes behind the request's first byte; gives where the next one begins.
    pub(crate) fn extent(&mut self, at: u64, bytes: u64, flags: u64, wanted: bool) -> Result<u64, Violation> {
        let Request { offset, bytes: asked, .. } = self.request;
        if bytes == 0 {
            return Err(Violation::ZeroExtent { offset });
        }
        let room = u64::from(asked).saturating_sub(at);
        if room == 0 {
            return Err(Violation::EndlessExtents { offset });
        }
        if wanted {
            let flags = u32::try_from(flags).map_err(|_| Violation::WideFlags { offset, flags })?;
            // The last extent may reach beyond the request; what lies there is asked for again in its turn.
            extent::push(&mut self.extents, offset, bytes.min(room), flags);
        }
        Ok(at.saturating_add(bytes))
    }

    /// True when the context with this number had no extents yet in this reply.
    pub(crate) fn first_time(&mut self, number: usize) -> bool {
        if self.contexts_seen.len() <= number {
            self.contexts_seen.resize(number + 1, false);
        }
        self.contexts_seen.get_mut(number).is_some_and(|seen| !std::mem::replace(seen, true))
    }

    /// Enters the body of an error chunk; the first error of a reply is kept.
    pub(crate) fn fail(&mut self, body: &[u8]) -> Result<(), Violation> {
        let wrong = Violation::ErrorChunk { offset: self.request.offset };
        let mut cursor = Cursor::new(body);
        let (Some(errno), Some(length)) = (cursor.u32(), cursor.u16()) else { return Err(wrong) };
        let message = cursor.take(usize::from(length)).filter(|message| message.len() <= STRING_BYTES_MAX);
        let (Some(message), true) = (message, errno != 0) else { return Err(wrong) };
        if self.failure.is_none() {
            let message = String::from_utf8_lossy(message).into_owned();
            self.failure = Some(Failure { errno: Errno(errno), message });
        }
        Ok(())
    }
}

/// All requests in flight on one connection.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    free: Vec<u16>,
    serial: u64,
}

impl Table {
    pub(crate) fn new(depth: u16) -> Self {
        Self {
            entries: (0..depth).map(|_| Entry::idle()).collect(),
            free: (0..depth).rev().collect(),
            serial: 0,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn issue(&mut self, request: &mut Request, context: Option<u32>) -> Option<usize> {
        let slot = self.free.pop()?;
        self.serial += 1;
        request.cookie = self.serial << 16 | u64::from(slot);
        let entry = &mut self.entries[usize::from(slot)];
        entry.request = *request;
        entry.context = context;
        entry.busy = true;
        Some(usize::from(slot))
    }

    pub(crate) fn find(&self, cookie: u64) -> Result<usize, Violation> {
        let slot = usize::from(u16::try_from(cookie & 0xffff).unwrap_or(u16::MAX));
        match self.entries.get(slot) {
            Some(entry) if entry.busy && entry.request.cookie == cookie => Ok(slot),
            _ => Err(Violation::UnknownCookie(cookie)),
        }
    }

    /// The entry of a slot that [`Table::find`] or [`Table::issue`] gave.
    pub(crate) fn entry(&mut self, slot: usize) -> &mut Entry {
        &mut self.entries[slot]
    }

    pub(crate) fn request(&self, slot: usize) -> Option<&Request> {
        self.entries.get(slot).filter(|entry| entry.busy).map(|entry| &entry.request)
    }

    /// Frees a slot and gives its answer, when the reply was complete.
    pub(crate) fn finish(&mut self, slot: usize) -> Result<Answer, Violation> {
        let entry = &mut self.entries[slot];
        let Request { command, offset, bytes, .. } = entry.request;
        if entry.failure.is_none() {
            match command {
                Command::Read if entry.coverage.covered() != u64::from(bytes) => {
                    let missing = u64::from(bytes) - entry.coverage.covered();
                    return Err(Violation::Gap { offset, bytes, missing });
                }
                Command::BlockStatus if entry.extents.is_empty() => {
                    return Err(Violation::NoExtents { offset });
                }
                _ => {}
            }
        }
        entry.busy = false;
        entry.coverage.clear();
        entry.contexts_seen.clear();
        entry.chunks = 0;
        // Slots are numbered by u16 from the start.
        self.free.push(u16::try_from(slot).unwrap_or(u16::MAX));
        Ok(Answer {
            slot,
            failure: entry.failure.take(),
            holes: std::mem::take(&mut entry.holes),
            extents: std::mem::take(&mut entry.extents),
        })
    }
}
