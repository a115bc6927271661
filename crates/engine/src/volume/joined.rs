//! Neighbouring pieces of a new image file, joined and written past the page cache.
//!
//! A restore finds its chunks nearly in the order of the disk; a few of them in one write cost the kernel a fraction of what
//! they would one by one, and none of it goes through the page cache (docs/adr/0014).
//!
//! Invariant: what was added is in the file after [`Joined::write`], and not before.

use aquifer_repository::store::direct::{PIECE_BYTES, Piece};

use super::file::FileVolume;
use crate::error::Result;

/// What waits to be written.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    piece: Piece,
    /// Where on the disk the piece begins.
    offset: u64,
    /// How much of it is filled.
    filled: usize,
}

impl Joined {
    /// Adds `bytes` at `offset`, a multiple of 4096; writes what was there before where it does not go on.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn add(&mut self, file: &FileVolume, offset: u64, mut bytes: &[u8]) -> Result<()> {
        if self.end() != offset {
            self.write(file)?;
            self.offset = offset;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.filled));
            self.piece[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == PIECE_BYTES {
                self.write(file)?;
            }
        }
        Ok(())
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(&mut self, file: &FileVolume) -> Result<()> {
        if self.filled > 0 {
            file.write_joined(self.offset, &self.piece[..self.filled])?;
        }
        (self.offset, self.filled) = (self.end(), 0);
        Ok(())
    }

    /// True if nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    fn end(&self) -> u64 {
        self.offset + u64::try_from(self.filled).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 3 * PIECE_BYTES + 4096 + 700;

    #[test]
    fn pieces_in_any_order_come_to_their_places_and_the_odd_end_too() {
        let folder = aquifer_testkit::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let file = FileVolume::open(&path, SIZE as u64, false).unwrap();
        file.prepare().unwrap();
        let disk: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        let mut joined = Joined::default();
        let chunk = 128 << 10;
        let places: Vec<usize> = (0..SIZE).step_by(chunk).collect();
        // Runs forwards, one alone, and the last before the first.
        let (head, tail) = places.split_at(places.len() / 2);
        for start in tail.iter().chain(&head[1..]).chain(&head[..1]) {
            joined.add(&file, *start as u64, &disk[*start..SIZE.min(start + chunk)]).unwrap();
        }
        joined.write(&file).unwrap();
        assert!(joined.is_empty());
        file.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == disk);
    }
}
