//! Requests: their bytes, and how a long range is cut into requests that the server accepts.

use std::fmt;
use std::ops::Range;

use super::consts::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use super::reply::ReplyMode;

/// The commands that this client sends (NBD protocol, "Request types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// End the connection; has no reply.
    Disconnect,
    /// Make everything that was answered durable.
    Flush,
    /// Forget bytes.
    Trim,
    /// Write zeros without sending them.
    WriteZeroes,
    /// Ask for extents.
    BlockStatus,
}

impl Command {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write-zeroes",
            Self::BlockStatus => "block-status",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// One request as it goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Command flags.
    pub flags: u16,
    /// The number that the reply will carry.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u32,
}

impl Request {
    /// Appends the header; the payload of a write follows it.
    pub fn encode(&self, mode: ReplyMode, out: &mut Vec<u8>) {
        let extended = mode == ReplyMode::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        // With extended headers a write says that a payload of `bytes` follows.
        let payload = if extended && self.command == Command::Write { 1 << 5 } else { 0 };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&(self.flags | payload).to_be_bytes());
        out.extend_from_slice(&self.command.code().to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        if extended {
            out.extend_from_slice(&u64::from(self.bytes).to_be_bytes());
        } else {
            out.extend_from_slice(&self.bytes.to_be_bytes());
        }
    }
}

/// Cuts a range at multiples of a piece size.
///
/// Every piece but the first and the last begins and ends at a multiple of `piece_bytes`, counted from the start of the
/// export, so that a server's own blocks are not cut.
#[derive(Debug, Clone)]
pub struct Pieces {
    rest: Range<u64>,
    piece_bytes: u32,
}

impl Pieces {
    /// Pieces of `range`; `piece_bytes` is at least 1.
    pub fn new(range: Range<u64>, piece_bytes: u32) -> Self {
        Self { rest: range, piece_bytes: piece_bytes.max(1) }
    }

    /// The part that is not taken yet.
    pub fn rest(&self) -> Range<u64> {
        self.rest.clone()
    }

    /// True when all pieces were taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

impl Iterator for Pieces {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        if self.rest.is_empty() {
            return None;
        }
        let piece = u64::from(self.piece_bytes);
        let bytes = (piece - self.rest.start % piece).min(self.rest.end - self.rest.start);
        let offset = self.rest.start;
        self.rest.start += bytes;
        // At most `piece_bytes`, so it always fits.
        u32::try_from(bytes).ok().map(|bytes| (offset, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READ: Request =
        Request { command: Command::Read, flags: 0, cookie: 0x0102, offset: 0x1000, bytes: 0x2000 };

    #[test]
    fn a_compact_request_has_28_bytes_and_an_extended_one_32() {
        let mut compact = Vec::new();
        READ.encode(ReplyMode::Structured, &mut compact);
        assert_eq!(compact[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
        assert_eq!(compact[8..], [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0]);
        let mut extended = Vec::new();
        Request { command: Command::Write, ..READ }.encode(ReplyMode::Extended, &mut extended);
        assert_eq!(extended[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1]);
        assert_eq!(extended[24..], [0, 0, 0, 0, 0, 0, 0x20, 0]);
    }

    proptest! {
        #[test]
        fn pieces_cover_their_range_once_and_keep_to_the_grid(
            start in 0u64..1 << 50, bytes in 0u64..1 << 20, piece in 1u32..1 << 18
        ) {
            prop_assume!(bytes / u64::from(piece) < 4096);
            let (mut at, end) = (start, start + bytes);
            for (offset, bytes) in Pieces::new(start..end, piece) {
                prop_assert_eq!(offset, at);
                prop_assert!(bytes >= 1 && bytes <= piece);
                at += u64::from(bytes);
                prop_assert!(at % u64::from(piece) == 0 || at == end);
            }
            prop_assert_eq!(at, end);
        }
    }
}
