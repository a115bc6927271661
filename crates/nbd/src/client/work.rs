//! Work: what an operation hands to a connection, and gets back from it.
//!
//! Invariant: `ranges` are the bytes that are not done. Work that comes back without an error has none, and everything
//! else in it speaks of finished requests only.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::Error;
use crate::proto::extent::Extent;
use crate::proto::reply::Failure;
use crate::proto::request::Command;

/// What an operation wants done, and what came of it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) command: Command,
    pub(crate) flags: u16,
    /// Offset in the export of the buffer's first byte.
    pub(crate) base: u64,
    /// Where a read lands, or what a write sends; empty for other commands.
    pub(crate) buffer: Vec<u8>,
    /// Ranges of the export that are not done yet.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Most bytes of one request.
    pub(crate) piece_bytes: u32,
    /// The context that a block status is for, by name.
    pub(crate) context: Option<Arc<str>>,
    /// Holes of finished reads as (offset in the buffer, length in bytes).
    pub(crate) holes: Vec<(u32, u32)>,
    /// Extents of a finished block status.
    pub(crate) extents: Vec<Extent>,
    /// Requests that the peer answered with an error.
    pub(crate) faults: Vec<Fault>,
    /// The share of the client's byte budget; goes with the buffer.
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
}

impl Work {
    /// Work of a command, without range or buffer yet.
    pub(crate) fn new(command: Command, base: u64) -> Self {
        Self {
            command,
            flags: 0,
            base,
            buffer: Vec::new(),
            ranges: Vec::new(),
            piece_bytes: 1,
            context: None,
            holes: Vec::new(),
            extents: Vec::new(),
            faults: Vec::new(),
            _permit: None,
        }
    }
}

/// A request that the peer answered with an error.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    pub(crate) failure: Failure,
}

/// Work on its way back, with the reason when the connection ended under it.
pub(crate) type Outcome = Result<Work, (Work, Error)>;

/// Work and the way back.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) work: Work,
    pub(crate) done: oneshot::Sender<Outcome>,
}
