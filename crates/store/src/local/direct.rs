//! Writing the bytes of a file, large ones past the page cache.
//!
//! A pack is written once and read much later, if ever. Through the cache it would push out what the host reads again, and
//! copying into fresh cache pages took more processor time than hashing and encrypting together (docs/adr/0014).
//!
//! Not here: syncing and naming ([`super::place`]). Invariant: whatever the file system makes of direct writes, after `Ok`
//! the file holds exactly these bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, pwrite};

/// The least that is worth it.
const BYTES_MIN: usize = 1 << 20;
/// Direct writes must begin, end and lie in memory at multiples of the device's block, which is this or a part of it.
const BLOCK: usize = 4096;
/// Bytes of one direct write: copied into aligned memory that stays in the processor's cache.
const PIECE: usize = 1 << 20;

/// Writes `bytes` into an empty file.
///
/// # Errors
/// Those of the file system, but for a refusal of direct writes.
pub(super) fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    if bytes.len() >= BYTES_MIN && set_direct(file, true).is_ok() {
        let blocks = bytes.len() / BLOCK * BLOCK;
        let outcome = write_direct(file, &bytes[..blocks]);
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
fn write_direct(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut memory = vec![0; PIECE + BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let aligned = &mut memory[start..start + PIECE];
    let mut written = 0;
    while written < bytes.len() {
        let piece = PIECE.min(bytes.len() - written);
        aligned[..piece].copy_from_slice(&bytes[written..written + piece]);
        match pwrite(file, &aligned[..piece], u64::try_from(written).map_err(io::Error::other)?) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                written += count;
                // The next piece would not lie on a block.
                if count % BLOCK != 0 {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_holds_the_bytes_and_is_left_as_it_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<u8> =
            (0..(3 << 20) + 5000_usize).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        for length in
            [0, 1, BLOCK, BYTES_MIN - 1, BYTES_MIN, BYTES_MIN + 1, PIECE + BLOCK, 2 * PIECE + 77, all.len()]
        {
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
        let bytes = vec![9; BYTES_MIN + 5];
        write_all(&file, &bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_full_device_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(write_all(&full, &vec![1; BYTES_MIN]).is_err());
    }
}
