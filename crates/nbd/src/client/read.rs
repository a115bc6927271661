//! Reads: one buffer, filled exactly, or an error that names the bytes.
//!
//! A request that errors is cut in four and tried again, from the lowest offset on, down to 4 KiB or the export's minimum
//! block; what fails there is tried once more and then reported. Nothing is ever filled in for bytes that failed.

use std::ops::Range;

use super::Client;
use super::pool::Pool;
use super::work::{Fault, Work};
use crate::error::{Command, Error};

/// Ranges are not cut smaller than this when they error, in bytes.
const RETRY_BYTES_MIN: u32 = 4096;
/// Into how many pieces a failed request is cut.
const RETRY_CUT: u32 = 4;

/// What a read gave.
#[derive(Debug)]
pub struct Read {
    /// The caller's buffer. Everything outside `holes` was sent by the peer.
    pub buffer: Vec<u8>,
    /// Ranges as (offset in the buffer, length in bytes), sorted and disjoint, that the peer reported as holes: they read
    /// as zeros, and the buffer was not written there.
    pub holes: Vec<(u32, u32)>,
}

impl Read {
    /// Writes zeros where the holes are, and forgets them.
    pub fn zero_holes(&mut self) {
        for (at, bytes) in self.holes.drain(..) {
            let start = index(at);
            self.buffer[start..start + index(bytes)].fill(0);
        }
    }
}

/// One try at a range.
struct Attempt {
    range: Range<u64>,
    piece_bytes: u32,
    /// A further error here is the end.
    last: bool,
}

pub(super) async fn read(pool: &Pool, offset: u64, buffer: Vec<u8>) -> Result<Read, Error> {
    let bytes = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
    let range = Client::check_range(pool, Command::Read, offset, bytes)?;
    if u32::try_from(bytes).is_err() {
        // Holes are told in 32 bits, and no sane caller reads 4 GiB in one piece.
        let (export, size_bytes) = (pool.info().name.clone(), u64::from(u32::MAX));
        return Err(Error::OutOfRange { export, command: Command::Read, offset, bytes, size_bytes });
    }
    let block = u64::from(pool.info().blocks.minimum);
    let wide_end = range.end.next_multiple_of(block).min(pool.info().size_bytes);
    let wide = range.start - range.start % block..wide_end;
    if wide == range || range.is_empty() {
        return read_aligned(pool, range, buffer).await;
    }
    read_through(pool, range, wide, buffer).await
}

/// Reads a range that does not keep to the export's blocks: the blocks around it, and a copy.
async fn read_through(
    pool: &Pool,
    range: Range<u64>,
    wide: Range<u64>,
    mut buffer: Vec<u8>,
) -> Result<Read, Error> {
    let wide_bytes = usize::try_from(wide.end - wide.start).unwrap_or(usize::MAX);
    let mut blocks = read_aligned(pool, wide.clone(), vec![0; wide_bytes]).await?;
    blocks.zero_holes();
    let front = usize::try_from(range.start - wide.start).unwrap_or(usize::MAX);
    let bytes = buffer.len();
    buffer.copy_from_slice(&blocks.buffer[front..front + bytes]);
    Ok(Read { buffer, holes: Vec::new() })
}

async fn read_aligned(pool: &Pool, range: Range<u64>, buffer: Vec<u8>) -> Result<Read, Error> {
    if buffer.is_empty() {
        return Ok(Read { buffer, holes: Vec::new() });
    }
    let _permit = pool.budget(buffer.len()).await;
    let mut work = Work { buffer, _permit, ..Work::new(Command::Read, range.start) };
    let mut attempts = vec![Attempt { range, piece_bytes: pool.piece_bytes(), last: false }];
    while let Some(attempt) = attempts.pop() {
        work.ranges = vec![attempt.range];
        work.piece_bytes = attempt.piece_bytes;
        work = pool.run(work).await?;
        let mut faults = std::mem::take(&mut work.faults);
        faults.sort_unstable_by_key(|fault| std::cmp::Reverse(fault.offset));
        if attempt.last
            && let Some(fault) = faults.pop()
        {
            return Err(failed(pool, Command::Read, fault));
        }
        attempts.extend(faults.iter().map(|fault| smaller(fault, pool.info().blocks.minimum)));
    }
    let mut holes = work.holes;
    merge(&mut holes);
    Ok(Read { buffer: work.buffer, holes })
}

/// The next try at a request that errored.
fn smaller(fault: &Fault, block_bytes: u32) -> Attempt {
    let least = RETRY_BYTES_MIN.max(block_bytes);
    let range = fault.offset..fault.offset + u64::from(fault.bytes);
    if fault.bytes <= least {
        return Attempt { range, piece_bytes: least, last: true };
    }
    let piece_bytes = (fault.bytes / RETRY_CUT).max(least);
    Attempt { range, piece_bytes: piece_bytes - piece_bytes % least, last: false }
}

/// The error for a request that the peer would not do.
pub(super) fn failed(pool: &Pool, command: Command, fault: Fault) -> Error {
    Error::Failed {
        export: pool.info().name.clone(),
        command,
        offset: fault.offset,
        bytes: u64::from(fault.bytes),
        errno: fault.failure.errno,
        message: fault.failure.message,
    }
}

/// Sorts holes and joins those that touch.
fn merge(holes: &mut Vec<(u32, u32)>) {
    holes.sort_unstable();
    holes.dedup_by(|next, last| {
        let touches = last.0.checked_add(last.1) == Some(next.0);
        if touches {
            last.1 += next.1;
        }
        touches
    });
}

/// Offsets within a buffer fit by construction.
fn index(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consts::Errno;
    use crate::proto::reply::Failure;

    fn fault(offset: u64, bytes: u32) -> Fault {
        Fault { offset, bytes, failure: Failure { errno: Errno(5), message: String::new() } }
    }

    #[test]
    fn holes_are_sorted_and_joined() {
        let mut holes = vec![(10, 5), (0, 4), (15, 1), (4, 2)];
        merge(&mut holes);
        assert_eq!(holes, [(0, 6), (10, 6)]);
    }

    #[test]
    fn a_hole_is_zeroed_and_nothing_else() {
        let mut read = Read { buffer: vec![7; 8], holes: vec![(2, 3)] };
        read.zero_holes();
        assert_eq!(read.buffer, [7, 7, 0, 0, 0, 7, 7, 7]);
        assert!(read.holes.is_empty());
    }

    #[test]
    fn a_failed_request_shrinks_to_the_least_and_is_tried_there_once_more() {
        let mut bytes = 256 * 1024;
        let mut seen = Vec::new();
        loop {
            let attempt = smaller(&fault(0, bytes), 512);
            seen.push((attempt.piece_bytes, attempt.last));
            if attempt.last {
                break;
            }
            bytes = attempt.piece_bytes;
        }
        assert_eq!(seen, [(65536, false), (16384, false), (4096, false), (4096, true)]);
    }

    #[test]
    fn retries_keep_to_a_block_larger_than_a_page() {
        let attempt = smaller(&fault(0, 192 * 1024), 65536);
        assert_eq!(attempt.piece_bytes, 65536);
    }
}
