//! Replies as a state machine: from the bytes of a connection to answers of requests.
//!
//! The machine owns the table of requests in flight and checks every reply against it: the cookie is in flight, each byte
//! of a read is answered exactly once, extents advance and end. It never holds payload: it tells the driver where the
//! next bytes of the stream belong, and the driver moves them there.
//!
//! Invariant: a read is reported as answered without failure only when its chunks covered it exactly once.

use super::consts::{
    CHUNK_BLOCK_STATUS, CHUNK_BLOCK_STATUS_EXT, CHUNK_ERROR_BIT, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, EXTENDED_REPLY_MAGIC, Errno, REPLY_FLAG_DONE, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC,
};
use super::cursor::Cursor;
use super::extent::Extent;
use super::request::{Command, Request};
use super::table::Table;
use super::violation::Violation;

/// The longest part of the stream that the machine wants in one piece, in bytes: an error chunk's body.
pub const INPUT_BYTES_MAX: usize = 14 + STRING_BYTES_MAX;
const ERROR_BODY_BYTES_MAX: u64 = 14 + 4096;
/// The most extents that one reply may hold. QEMU sends at most 131,072.
pub const EXTENTS_MAX: u32 = 1 << 18;

/// The form of requests and replies on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyMode {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// An answer with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error code.
    pub errno: Errno,
    /// The server's words, possibly empty.
    pub message: String,
}

/// A finished request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The slot that [`Replies::issue`] gave; free again.
    pub slot: usize,
    /// The error that the server sent, if any; nothing else of the answer counts then.
    pub failure: Option<Failure>,
    /// Holes of a read as (offset from the request's first byte, length in bytes), in the order of arrival.
    pub holes: Vec<(u32, u32)>,
    /// Extents of a block status, at most to the end of the request.
    pub extents: Vec<Extent>,
}

/// What the bytes meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The next `bytes` bytes of the stream are data of the request in `slot`, to be put `at` bytes behind its first
    /// byte. After moving them call [`Replies::payload_moved`].
    Payload {
        /// The request's slot.
        slot: usize,
        /// Distance from the request's first byte.
        at: u32,
        /// Length in bytes, never 0.
        bytes: u32,
    },
    /// A request is finished.
    Answered(Answer),
}

/// The head of a reply or chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    slot: usize,
    kind: u16,
    done: bool,
    bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    /// The body of a chunk, or the part of it before the data.
    Body(Head),
    /// Extents; `bytes` of the head are those still to come. `wanted` tells whether the context is the one asked for.
    Extents {
        head: Head,
        wanted: bool,
        at: u64,
    },
    /// The driver moves data of this chunk.
    Payload(Head),
}

/// The state machine of one connection's replies.
#[derive(Debug)]
pub struct Replies {
    mode: ReplyMode,
    contexts: Vec<u32>,
    table: Table,
    stage: Stage,
}

impl Replies {
    /// A machine for a connection with these context ids and at most `depth` requests in flight.
    pub fn new(mode: ReplyMode, contexts: Vec<u32>, depth: u16) -> Self {
        Self { mode, contexts, table: Table::new(depth), stage: Stage::Head }
    }

    /// The form of requests and replies.
    pub fn mode(&self) -> ReplyMode {
        self.mode
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.table.in_flight()
    }

    /// Enters a request and gives it a slot and, in the request, a cookie; `None` when all slots are taken. `context` is
    /// the id of the metadata context that a block status is for.
    pub fn issue(&mut self, request: &mut Request, context: Option<u32>) -> Option<usize> {
        self.table.issue(request, context)
    }

    /// The request in a slot, while it is in flight.
    pub fn request(&self, slot: usize) -> Option<&Request> {
        self.table.request(slot)
    }

    /// Takes from `input` up to the next event; says how many bytes were used. Without an event everything usable was
    /// taken, and the caller keeps the rest until more has come.
    ///
    /// # Errors
    /// The peer's breach of the protocol; the connection is then of no use.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), Violation> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let (taken, event) = match self.stage {
                Stage::Head => self.head(rest)?,
                Stage::Body(head) => self.body(head, rest)?,
                Stage::Extents { head, wanted, at } => self.extents(head, wanted, at, rest)?,
                Stage::Payload(_) => (0, None),
            };
            used += taken;
            if taken == 0 || event.is_some() {
                return Ok((used, event));
            }
        }
    }

    /// Tells the machine that the data of the last [`Event::Payload`] was moved, all of it.
    ///
    /// # Errors
    /// As [`Replies::feed`].
    pub fn payload_moved(&mut self) -> Result<Option<Event>, Violation> {
        match self.stage {
            Stage::Payload(head) => self.end_chunk(head),
            Stage::Head | Stage::Body(_) | Stage::Extents { .. } => Ok(None),
        }
    }

    fn head(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), Violation> {
        let mut cursor = Cursor::new(input);
        let Some(magic) = cursor.u32() else { return Ok((0, None)) };
        let head = match (magic, self.mode) {
            (SIMPLE_REPLY_MAGIC, ReplyMode::Simple | ReplyMode::Structured) => {
                let (Some(errno), Some(cookie)) = (cursor.u32(), cursor.u64()) else { return Ok((0, None)) };
                let used = input.len() - cursor.rest().len();
                return Ok((used, self.simple(Errno(errno), cookie)?));
            }
            (STRUCTURED_REPLY_MAGIC, ReplyMode::Structured) => {
                let (Some(flags), Some(kind), Some(cookie), Some(bytes)) =
                    (cursor.u16(), cursor.u16(), cursor.u64(), cursor.u32())
                else {
                    return Ok((0, None));
                };
                self.chunk(flags, kind, cookie, u64::from(bytes))?
            }
            (EXTENDED_REPLY_MAGIC, ReplyMode::Extended) => {
                let (Some(flags), Some(kind), Some(cookie), Some(offset), Some(bytes)) =
                    (cursor.u16(), cursor.u16(), cursor.u64(), cursor.u64(), cursor.u64())
                else {
                    return Ok((0, None));
                };
                let head = self.chunk(flags, kind, cookie, bytes)?;
                let sent = self.table.entry(head.slot).request.offset;
                if offset != sent {
                    return Err(Violation::ReplyOffset { sent, got: offset });
                }
                head
            }
            (magic, _) => return Err(Violation::ReplyMagic(magic)),
        };
        let used = input.len() - cursor.rest().len();
        if head.kind == CHUNK_NONE {
            return Ok((used, self.end_chunk(head)?));
        }
        self.stage = Stage::Body(head);
        Ok((used, None))
    }

    /// A simple reply: the whole answer, or the start of all the data.
    fn simple(&mut self, errno: Errno, cookie: u64) -> Result<Option<Event>, Violation> {
        let slot = self.table.find(cookie)?;
        let entry = self.table.entry(slot);
        let (command, offset, bytes) = (entry.request.command, entry.request.offset, entry.request.bytes);
        let head = Head { slot, kind: CHUNK_NONE, done: true, bytes: 0 };
        if errno != Errno(0) {
            entry.failure = Some(Failure { errno, message: String::new() });
            return self.end_chunk(head);
        }
        match (command, self.mode) {
            (Command::Read, ReplyMode::Simple) => {
                entry.cover(offset, u64::from(bytes))?;
                self.stage = Stage::Payload(head);
                Ok(Some(Event::Payload { slot, at: 0, bytes }))
            }
            (Command::Read | Command::BlockStatus, _) => {
                Err(Violation::ChunkKind { command: command.name(), offset, kind: CHUNK_NONE })
            }
            _ => self.end_chunk(head),
        }
    }

    /// Checks the head of a chunk before anything of its body is read.
    fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, bytes: u64) -> Result<Head, Violation> {
        let slot = self.table.find(cookie)?;
        let extended = self.mode == ReplyMode::Extended;
        let entry = self.table.entry(slot);
        entry.count_chunk()?;
        let Request { command, offset, .. } = entry.request;
        let done = flags & REPLY_FLAG_DONE != 0;
        let fits = match (kind, command) {
            (CHUNK_NONE, _) => done && bytes == 0,
            (CHUNK_OFFSET_DATA, Command::Read) => bytes > 8 && bytes <= 8 + u64::from(entry.request.bytes),
            (CHUNK_OFFSET_HOLE, Command::Read) => bytes == 12,
            (CHUNK_BLOCK_STATUS, Command::BlockStatus) if !extended => {
                bytes > 4 && (bytes - 4).is_multiple_of(8) && (bytes - 4) / 8 <= u64::from(EXTENTS_MAX)
            }
            (CHUNK_BLOCK_STATUS_EXT, Command::BlockStatus) if extended => {
                bytes > 8 && (bytes - 8).is_multiple_of(16) && (bytes - 8) / 16 <= u64::from(EXTENTS_MAX)
            }
            (kind, _) if kind & CHUNK_ERROR_BIT != 0 => (6..=ERROR_BODY_BYTES_MAX).contains(&bytes),
            (kind, command) => return Err(Violation::ChunkKind { command: command.name(), offset, kind }),
        };
        let wrong = || Violation::ChunkLength { kind, offset, bytes };
        if !fits {
            return Err(wrong());
        }
        Ok(Head { slot, kind, done, bytes: u32::try_from(bytes).map_err(|_| wrong())? })
    }

    fn body(&mut self, head: Head, input: &[u8]) -> Result<(usize, Option<Event>), Violation> {
        let mut cursor = Cursor::new(input);
        let entry = self.table.entry(head.slot);
        let event = match head.kind {
            CHUNK_OFFSET_DATA => {
                let Some(offset) = cursor.u64() else { return Ok((0, None)) };
                let bytes = head.bytes - 8;
                let at = entry.cover(offset, u64::from(bytes))?;
                self.stage = Stage::Payload(head);
                Some(Event::Payload { slot: head.slot, at, bytes })
            }
            CHUNK_OFFSET_HOLE => {
                let (Some(offset), Some(bytes)) = (cursor.u64(), cursor.u32()) else { return Ok((0, None)) };
                let at = entry.cover(offset, u64::from(bytes))?;
                entry.holes.push((at, bytes));
                self.end_chunk(head)?
            }
            CHUNK_BLOCK_STATUS => {
                let Some(context) = cursor.u32() else { return Ok((0, None)) };
                self.begin_extents(Head { bytes: head.bytes - 4, ..head }, context)?;
                None
            }
            CHUNK_BLOCK_STATUS_EXT => {
                let (Some(context), Some(count)) = (cursor.u32(), cursor.u32()) else { return Ok((0, None)) };
                let bytes = head.bytes - 8;
                // A count of 0 leaves the number of extents to the length.
                if count != 0 && count != bytes / 16 {
                    let offset = entry.request.offset;
                    return Err(Violation::ChunkLength {
                        kind: head.kind,
                        offset,
                        bytes: u64::from(head.bytes),
                    });
                }
                self.begin_extents(Head { bytes, ..head }, context)?;
                None
            }
            _ => {
                let Some(body) = usize::try_from(head.bytes).ok().and_then(|bytes| cursor.take(bytes)) else {
                    return Ok((0, None));
                };
                entry.fail(body)?;
                self.end_chunk(head)?
            }
        };
        Ok((input.len() - cursor.rest().len(), event))
    }

    fn begin_extents(&mut self, head: Head, context: u32) -> Result<(), Violation> {
        let number = self.contexts.iter().position(|id| *id == context);
        let entry = self.table.entry(head.slot);
        if !number.is_some_and(|number| entry.first_time(number)) {
            return Err(Violation::ContextId(context));
        }
        let wanted = entry.context == Some(context);
        self.stage = Stage::Extents { head, wanted, at: 0 };
        Ok(())
    }

    /// Takes the extents that are whole; `at` is how far the ones before them reach.
    fn extents(
        &mut self,
        mut head: Head,
        wanted: bool,
        mut at: u64,
        input: &[u8],
    ) -> Result<(usize, Option<Event>), Violation> {
        let mut cursor = Cursor::new(input);
        let entry = self.table.entry(head.slot);
        let wide = head.kind == CHUNK_BLOCK_STATUS_EXT;
        while head.bytes > 0 {
            let mut ahead = cursor;
            let pair = if wide {
                ahead.u64().zip(ahead.u64())
            } else {
                ahead.u32().map(u64::from).zip(ahead.u32().map(u64::from))
            };
            let Some((bytes, flags)) = pair else { break };
            cursor = ahead;
            head.bytes -= if wide { 16 } else { 8 };
            at = entry.extent(at, bytes, flags, wanted)?;
        }
        let used = input.len() - cursor.rest().len();
        if head.bytes == 0 {
            return Ok((used, self.end_chunk(head)?));
        }
        self.stage = Stage::Extents { head, wanted, at };
        Ok((used, None))
    }

    fn end_chunk(&mut self, head: Head) -> Result<Option<Event>, Violation> {
        self.stage = Stage::Head;
        if !head.done {
            return Ok(None);
        }
        self.table.finish(head.slot).map(|answer| Some(Event::Answered(answer)))
    }
}
