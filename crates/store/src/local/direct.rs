//! Writing the bytes of a new file, large ones past the page cache ([`crate::direct`]).
//!
//! Not here: syncing and naming ([`super::place`]). Invariant: whatever the file system makes of direct writes, after `Ok`
//! the file holds exactly these bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::direct::{PIECE_BYTES, Piece, write_at};

/// Writes `bytes` into an empty file.
///
/// # Errors
/// Those of the file system, but for a refusal of direct writes.
pub(super) fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    if bytes.len() >= PIECE_BYTES && set_direct(file, true).is_ok() {
        let outcome = write_pieces(file, bytes);
        set_direct(file, false)?;
        written = outcome?;
    }
    file.write_all_at(&bytes[written..], u64::try_from(written).map_err(io::Error::other)?)
}

fn set_direct(file: &File, direct: bool) -> Result<(), Errno> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    fcntl_setfl(file, flags)
}

/// Writes as much as the file system takes directly, and says how much that was.
fn write_pieces(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut piece = Piece::new();
    let mut written = 0;
    for part in bytes.chunks(PIECE_BYTES) {
        piece[..part.len()].copy_from_slice(part);
        let taken = write_at(file, u64::try_from(written).map_err(io::Error::other)?, &piece[..part.len()])?;
        written += taken;
        if taken < part.len() {
            break;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direct::BLOCK_BYTES;

    #[test]
    fn a_file_of_any_length_holds_the_bytes_and_is_left_as_it_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<u8> =
            (0..3 * PIECE_BYTES + 5000).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let one = PIECE_BYTES;
        for length in [0, 1, BLOCK_BYTES, one - 1, one, one + 1, one + BLOCK_BYTES, 2 * one + 77, all.len()] {
            let path = folder.path().join(length.to_string());
            let file = File::create(&path).unwrap();
            write_all(&file, &all[..length]).unwrap();
            assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
            assert!(std::fs::read(&path).unwrap() == all[..length], "{length} bytes");
        }
    }

    #[test]
    fn what_cannot_be_written_directly_is_written_all_the_same() {
        // Memory behind a file has no blocks, and refuses or takes direct writes as the kernel's version has it.
        let memory = rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memory);
        let bytes = vec![9; PIECE_BYTES + 5];
        write_all(&file, &bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_full_device_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(write_all(&full, &vec![1; PIECE_BYTES]).is_err());
    }
}
