//! The plan of one disk's backup: what the source says about its bytes, laid over the chunk grid.
//!
//! Pure: regions in, stripes out; no I/O, no clock, no disk-sized state. One stripe is what one leaf node
//! of the disk tree covers ([`STRIPE_CHUNKS`] chunks), so the driver never holds more than a bounded
//! window of a disk, however large that is.
//!
//! Invariant: a chunk is `Zero` only if the source promised that *every* byte of it reads as zero, and
//! `Keep` or `Recheck` only if it promised that every byte is unchanged since the base. Anything else is read.

use std::ops::Range;

/// Chunks that one leaf node of the disk tree names (FORMAT.md, "Chunks and trees").
pub const STRIPE_CHUNKS: u64 = 256;

/// The chunk grid of one disk. The last chunk, and the last stripe, may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    size_bytes: u64,
    chunk_bytes: u64,
}

impl Grid {
    /// The grid of a disk of `size_bytes` in a repository with chunks of `chunk_bytes`.
    pub fn new(size_bytes: u64, chunk_bytes: u32) -> Self {
        Grid { size_bytes, chunk_bytes: u64::from(chunk_bytes).max(1) }
    }

    /// The disk's size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of every chunk but the last.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Chunks of the disk; 0 for an empty disk.
    pub fn chunks(&self) -> u64 {
        self.size_bytes.div_ceil(self.chunk_bytes)
    }

    /// Stripes of the disk; 0 for an empty disk.
    pub fn stripes(&self) -> u64 {
        self.chunks().div_ceil(STRIPE_CHUNKS)
    }

    /// The chunks of stripe `stripe`; empty beyond the end of the disk.
    pub fn stripe_chunks(&self, stripe: u64) -> Range<u64> {
        let chunks = self.chunks();
        let first = stripe.saturating_mul(STRIPE_CHUNKS).min(chunks);
        first..first.saturating_add(STRIPE_CHUNKS).min(chunks)
    }

    /// The bytes of the chunks `chunks`, cut to the disk's size.
    pub fn bytes_of(&self, chunks: Range<u64>) -> Range<u64> {
        let start = chunks.start.saturating_mul(self.chunk_bytes).min(self.size_bytes);
        let end = chunks.end.saturating_mul(self.chunk_bytes).min(self.size_bytes);
        start..end.max(start)
    }
}

/// What the source says about a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// May hold anything: allocated data, or a hole whose content nobody promised.
    Data,
    /// Reads as zero (`NBD_STATE_ZERO`; `NBD_STATE_HOLE` alone promises nothing).
    Zero,
    /// Unchanged since the base (a clean dirty bitmap).
    Clean,
    /// The same of a whole chunk, and drawn to be read all the same, so that the bitmap is not only believed.
    Drawn,
}

/// What to do with one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take the base's chunk without reading.
    Keep,
    /// Note a zero chunk without reading.
    Zero,
    /// Read it.
    Read,
    /// Read it, and prove that it is the base's chunk.
    Recheck,
}

/// Consecutive chunks with one action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The action for each of them.
    pub action: Action,
    /// Chunk numbers on the disk.
    pub chunks: Range<u64>,
}

/// One piece of the plan. Pieces come in ascending order and cover the disk exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Whole stripes that need no read at all; a span may stand for terabytes.
    Span {
        /// `Keep` or `Zero`.
        action: Action,
        /// Stripe numbers.
        stripes: Range<u64>,
    },
    /// One stripe with at least one chunk to read, or with mixed actions.
    Stripe(StripePlan),
}

/// The actions of one stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripePlan {
    /// Stripe number, which is also the number of its leaf node.
    pub index: u64,
    actions: Vec<Action>,
}

impl StripePlan {
    /// Each chunk's number on the disk and its action, in order.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, Action)> + '_ {
        (self.index * STRIPE_CHUNKS..).zip(self.actions.iter().copied())
    }

    /// The actions as runs of consecutive chunks, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut next = self.index * STRIPE_CHUNKS;
        self.actions.chunk_by(|a, b| a == b).map(move |run| {
            let first = next;
            next += u64::try_from(run.len()).unwrap_or(0);
            Run { action: run[0], chunks: first..next }
        })
    }
}

/// A source whose regions do not cover the disk exactly once and in order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A region does not begin where the one before it ended.
    #[error("the source described a region at {found} where one at {expected} must follow")]
    Gap {
        /// Where the next region must begin.
        expected: u64,
        /// Where it began.
        found: u64,
    },
    /// A region ends beyond the disk.
    #[error("the source described a region that ends at {end}, the disk ends at {size_bytes}")]
    PastEnd {
        /// End of the region.
        end: u64,
        /// Size of the disk.
        size_bytes: u64,
    },
    /// The regions end before the disk does.
    #[error("the source described {covered} of {size_bytes} bytes")]
    Short {
        /// Bytes that were described.
        covered: u64,
        /// Size of the disk.
        size_bytes: u64,
    },
}

const SAW_DATA: u8 = 1;
const SAW_ZERO: u8 = 2;
const SAW_CLEAN: u8 = 4;
const SAW_DRAWN: u8 = 8;

/// Turns regions into pieces. Feed with [`Planner::push`], drain with [`Planner::next`] until it says
/// `None`, feed again; [`Planner::finish`] proves that the whole disk was described.
#[derive(Debug)]
pub struct Planner {
    grid: Grid,
    /// End of what was described.
    described: u64,
    /// End of what was turned into actions.
    planned: u64,
    status: Status,
    /// What the chunk at `planned` has been seen to hold so far.
    seen: u8,
    stripe: u64,
    actions: Vec<Action>,
}

impl Planner {
    /// A planner at the beginning of a disk.
    pub fn new(grid: Grid) -> Self {
        Planner {
            grid,
            described: 0,
            planned: 0,
            status: Status::Data,
            seen: 0,
            stripe: 0,
            actions: Vec::new(),
        }
    }

    /// Describes the next region. Call [`Planner::next`] until `None` first.
    ///
    /// # Errors
    /// [`PlanError`] if the region does not follow the one before it, or ends beyond the disk.
    pub fn push(&mut self, offset: u64, bytes: u64, status: Status) -> Result<(), PlanError> {
        debug_assert_eq!(self.planned, self.described, "the planner is fed only when it is drained");
        if offset != self.described {
            return Err(PlanError::Gap { expected: self.described, found: offset });
        }
        let size_bytes = self.grid.size_bytes;
        let end = offset.saturating_add(bytes);
        if end > size_bytes {
            return Err(PlanError::PastEnd { end, size_bytes });
        }
        self.described = end;
        self.status = status;
        Ok(())
    }

    /// The next piece that what was described so far determines; `None` asks for another region.
    #[expect(clippy::should_implement_trait, reason = "None means drained, not finished")]
    pub fn next(&mut self) -> Option<Piece> {
        while self.planned < self.described {
            if let Some(span) = self.take_span() {
                return Some(span);
            }
            self.advance_in_chunk();
            if let Some(stripe) = self.take_stripe() {
                return Some(stripe);
            }
        }
        None
    }

    /// Ends the plan.
    ///
    /// # Errors
    /// [`PlanError::Short`] if the regions did not cover the disk.
    pub fn finish(self) -> Result<(), PlanError> {
        if self.described == self.grid.size_bytes && self.planned == self.described {
            return Ok(());
        }
        Err(PlanError::Short { covered: self.described, size_bytes: self.grid.size_bytes })
    }

    /// Whole stripes inside the current region that need no read.
    fn take_span(&mut self) -> Option<Piece> {
        let action = match self.status {
            Status::Data | Status::Drawn => return None,
            Status::Zero => Action::Zero,
            Status::Clean => Action::Keep,
        };
        if !self.actions.is_empty() || self.seen != 0 {
            return None;
        }
        let last = if self.described == self.grid.size_bytes {
            self.grid.stripes()
        } else {
            self.described / (self.grid.chunk_bytes * STRIPE_CHUNKS)
        };
        if last <= self.stripe {
            return None;
        }
        let stripes = self.stripe..last;
        self.stripe = last;
        self.planned = self.grid.bytes_of(self.grid.stripe_chunks(last - 1)).end;
        Some(Piece::Span { action, stripes })
    }

    /// Takes the region's part of the chunk at `planned`, and notes the chunk's action when it is whole.
    fn advance_in_chunk(&mut self) {
        let chunk = self.planned / self.grid.chunk_bytes;
        let chunk_end = self.grid.bytes_of(chunk..chunk + 1).end;
        self.seen |= match self.status {
            Status::Data => SAW_DATA,
            Status::Zero => SAW_ZERO,
            Status::Clean => SAW_CLEAN,
            Status::Drawn => SAW_DRAWN,
        };
        self.planned = self.described.min(chunk_end);
        if self.planned == chunk_end {
            self.actions.push(match self.seen {
                SAW_ZERO => Action::Zero,
                SAW_CLEAN => Action::Keep,
                SAW_DRAWN => Action::Recheck,
                _ => Action::Read,
            });
            self.seen = 0;
        }
    }

    /// The current stripe, if all its chunks have an action.
    fn take_stripe(&mut self) -> Option<Piece> {
        let chunks = self.grid.stripe_chunks(self.stripe);
        if u64::try_from(self.actions.len()).ok()? < chunks.end - chunks.start {
            return None;
        }
        let index = self.stripe;
        self.stripe += 1;
        let actions = std::mem::take(&mut self.actions);
        if let Some(&first) = actions.first()
            && matches!(first, Action::Keep | Action::Zero)
            && actions.iter().all(|&action| action == first)
        {
            return Some(Piece::Span { action: first, stripes: index..index + 1 });
        }
        Some(Piece::Stripe(StripePlan { index, actions }))
    }
}

#[cfg(test)]
mod tests;
