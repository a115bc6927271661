//! The floor of a verification: what a disk's chunks cost to decompress and to hash, and nothing else.
//!
//! No repository, no encryption, no check of anything: frames of zstd, one for each chunk that is not zero and not a copy of
//! another, in a file that the page cache holds. Invariant: the threads share the frames and no byte is decoded twice.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};

/// The chunk size of a repository by default.
const CHUNK_BYTES: usize = 128 << 10;
/// The level of a repository by default.
const LEVEL: i32 = 1;
/// Frames that a thread takes at once.
const BATCH: usize = 256;

/// Writes the frames of `images` to `out`, and the length of each, in 4 bytes and little-endian, to the file beside it.
pub(crate) fn pack(images: &[&str], out: &Path) -> Result<()> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let (mut seen, mut chunk) = (HashSet::new(), vec![0; CHUNK_BYTES]);
    let mut frames = BufWriter::new(File::create(out)?);
    let mut lengths = BufWriter::new(File::create(out.with_extension("lengths"))?);
    for image in images {
        let mut image = File::open(image).with_context(|| (*image).to_owned())?;
        while image.read_exact(&mut chunk).is_ok() {
            if chunk.iter().any(|&byte| byte != 0) && seen.insert(blake3::hash(&chunk)) {
                let frame = compressor.compress(&chunk)?;
                frames.write_all(&frame)?;
                lengths.write_all(&u32::try_from(frame.len())?.to_le_bytes())?;
            }
        }
    }
    frames.flush()?;
    Ok(lengths.flush()?)
}

/// Decompresses and hashes the frames of [`pack`] on every processor.
pub(crate) fn unpack(file: &Path) -> Result<()> {
    let lengths = std::fs::read(file.with_extension("lengths"))?;
    let mut places = Vec::with_capacity(lengths.len() / 4);
    let mut end = 0_u64;
    for length in lengths.chunks_exact(4) {
        let length = u32::from_le_bytes(length.try_into()?);
        places.push((end, usize::try_from(length)?));
        end += u64::from(length);
    }
    let (frames, next) = (File::open(file)?, AtomicUsize::new(0));
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let hashed: Result<usize> = thread::scope(|scope| {
        let started: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| unpack_batches(&frames, &places, &next))).collect();
        started
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .sum()
    });
    let hashed = hashed?;
    ensure!(hashed == places.len(), "{hashed} of {} frames were hashed", places.len());
    println!("{hashed} chunks");
    Ok(())
}

fn unpack_batches(frames: &File, places: &[(u64, usize)], next: &AtomicUsize) -> Result<usize> {
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    let (mut frame, mut chunk) = (Vec::new(), Vec::with_capacity(CHUNK_BYTES));
    let mut hashed = 0;
    loop {
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        if first >= places.len() {
            return Ok(hashed);
        }
        for &(at, bytes) in &places[first..places.len().min(first + BATCH)] {
            frame.resize(bytes, 0);
            frames.read_exact_at(&mut frame, at)?;
            decompressor.decompress_to_buffer(&frame, &mut chunk)?;
            ensure!(chunk.len() == CHUNK_BYTES, "a frame of {} bytes", chunk.len());
            std::hint::black_box(blake3::hash(&chunk));
            hashed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_that_is_not_zero_is_packed_once_and_comes_out_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (image, out) = (folder.path().join("disk.raw"), folder.path().join("frames"));
        let chunk = |byte: u8| vec![byte; CHUNK_BYTES];
        std::fs::write(&image, [chunk(1), chunk(0), chunk(2), chunk(1)].concat()).unwrap();
        pack(&[&image.to_string_lossy()], &out).unwrap();
        assert_eq!(std::fs::metadata(out.with_extension("lengths")).unwrap().len(), 8);
        unpack(&out).unwrap();
        std::fs::write(&out, [0; 100]).unwrap();
        unpack(&out).unwrap_err();
    }
}
