//! Writes past the page cache (`O_DIRECT`): what they ask for, and what to do when they are refused.
//!
//! For large data that is written once and not read soon. Through the cache it would push out what the host reads again, and
//! copying into fresh cache pages took more processor time than hashing and encrypting together (docs/adr/0014).
//!
//! Not here: syncing. Invariant: a refusal is no error; it leaves the rest to an ordinary write.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};

use rustix::io::{Errno, pwrite};

/// Direct writes must begin, end and lie in memory at multiples of the device's block, which is this or a part of it.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of one direct write: little enough to stay in the processor's cache, enough to keep a disk busy.
pub const PIECE_BYTES: usize = 1 << 20;

/// [`PIECE_BYTES`] of memory that lies as direct writes ask for.
#[derive(Debug)]
pub struct Piece {
    memory: Vec<u8>,
    start: usize,
}

impl Piece {
    /// Zeros.
    pub fn new() -> Self {
        let memory = vec![0; PIECE_BYTES + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start }
    }
}

impl Default for Piece {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + PIECE_BYTES]
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + PIECE_BYTES]
    }
}

/// Writes `bytes`, which lie in a [`Piece`] from a multiple of [`BLOCK_BYTES`] on, at `offset`, such a multiple, too. Returns
/// how many of them the file system took: what is left, such as the part of a block at the end, is for an ordinary write.
///
/// # Errors
/// Those of the file system, but for a refusal of direct writes.
pub fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let blocks = bytes.len() / BLOCK_BYTES * BLOCK_BYTES;
    let mut written = 0;
    // A short write that ends within a block leaves the next one nowhere to begin.
    while written < blocks && written % BLOCK_BYTES == 0 {
        let at = offset + u64::try_from(written).map_err(io::Error::other)?;
        match pwrite(file, &bytes[written..blocks], at) {
            Ok(0) | Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(written)
}
