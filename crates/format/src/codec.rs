//! Compression: raw or zstd, one reusable context a thread.
//!
//! Not here: streaming. The invariants: compression never writes more than the plain length, and
//! decompression fills a buffer of exactly the recorded length or fails, so no bomb can grow.

use std::fmt;

use crate::cursor::widen;
use crate::error::{Error, Result};

/// How a body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// The byte in headers, frames and rows.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The codec of a byte, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Zstd must save at least one byte in this many, else the body is stored raw: reading raw is free.
const USEFUL_SAVING_DIVISOR: usize = 32;
/// Bodies below this size are not worth a probe.
const PROBE_FROM_BYTES: usize = 16 << 10;
const PROBE_RUNS: usize = 16;
const PROBE_RUN_BYTES: usize = 256;
/// Chi-squared of the sampled byte histogram (255 degrees of freedom: 255 ± 23 for random bytes). Up to
/// here an order-0 coder could save at most about one percent.
const PROBE_CHI_SQUARED_MAX: u64 = 450;

/// Compresses bodies; one a thread.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    /// A context for a zstd level; negative levels are faster.
    ///
    /// # Errors
    /// [`Error::ZstdContext`] when the library has no memory or refuses the level.
    pub fn new(level: i32) -> Result<Self> {
        match zstd::bulk::Compressor::new(level) {
            Ok(zstd) => Ok(Self { zstd }),
            Err(source) => Err(Error::ZstdContext { level, source }),
        }
    }

    /// Goes on at another level.
    ///
    /// # Errors
    /// [`Error::ZstdContext`] when the library refuses the level.
    pub fn set_level(&mut self, level: i32) -> Result<()> {
        self.zstd.set_compression_level(level).map_err(|source| Error::ZstdContext { level, source })
    }

    /// Writes `plain` into the front of `out` (at least as long as `plain`), compressed when that saves
    /// a useful part; returns the codec and the length.
    ///
    /// # Errors
    /// [`Error::BufferLength`] when `out` is shorter than `plain`.
    pub fn compress(&mut self, plain: &[u8], out: &mut [u8]) -> Result<(Codec, usize)> {
        let found = out.len();
        let Some(out) = out.get_mut(..plain.len()) else {
            return Err(Error::BufferLength {
                what: "compressed body",
                expected: widen(plain.len()),
                found: widen(found),
            });
        };
        let worthwhile = plain.len() - plain.len().div_ceil(USEFUL_SAVING_DIVISOR);
        if plain.len() < PROBE_FROM_BYTES || !looks_random(plain) {
            // The only cause of an error with a working context is that the result does not fit.
            if let Ok(length) = self.zstd.compress_to_buffer(plain, &mut out[..worthwhile]) {
                return Ok((Codec::Zstd, length));
            }
        }
        out.copy_from_slice(plain);
        Ok((Codec::Raw, plain.len()))
    }
}

/// Samples runs spread over the body and tells whether their bytes look evenly distributed.
///
/// Encrypted and compressed data does; what zstd could still save there is the rare repeated stretch.
fn looks_random(plain: &[u8]) -> bool {
    let stride = plain.len() / PROBE_RUNS;
    let mut histogram = [0u32; 256];
    for run in plain.chunks_exact(stride).take(PROBE_RUNS) {
        for byte in run.iter().take(PROBE_RUN_BYTES) {
            histogram[usize::from(*byte)] += 1;
        }
    }
    // With n samples in 256 bins: chi² = 256/n · Σ count² − n.
    let samples = widen(PROBE_RUNS * PROBE_RUN_BYTES);
    let squares: u64 = histogram.iter().map(|count| u64::from(*count) * u64::from(*count)).sum();
    squares * 256 / samples <= samples + PROBE_CHI_SQUARED_MAX
}

/// Decompresses bodies; one a thread.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
    /// Two buffers for checks on copies (see [`crate::pack::PackBuilder::check_last`]).
    scratch: [Vec<u8>; 2],
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// A decompression context.
    ///
    /// # Errors
    /// [`Error::ZstdContext`] when the library has no memory.
    pub fn new() -> Result<Self> {
        match zstd::bulk::Decompressor::new() {
            Ok(zstd) => Ok(Self { zstd, scratch: [Vec::new(), Vec::new()] }),
            Err(source) => Err(Error::ZstdContext { level: 0, source }),
        }
    }

    /// Decodes `body` into `out`, which has exactly the recorded plain length.
    ///
    /// # Errors
    /// [`Error::Decompress`] when the body is damaged, or decodes to fewer or more bytes.
    pub fn decode(&mut self, object: &'static str, codec: Codec, body: &[u8], out: &mut [u8]) -> Result<()> {
        let wrong = Error::Decompress { object, plain_bytes: widen(out.len()) };
        match codec {
            Codec::Raw if body.len() == out.len() => {
                out.copy_from_slice(body);
                Ok(())
            }
            Codec::Raw => Err(wrong),
            Codec::Zstd => match self.zstd.decompress_to_buffer(body, out) {
                Ok(written) if written == out.len() => Ok(()),
                _ => Err(wrong),
            },
        }
    }

    /// Lends the scratch buffers; they come back with [`Decompressor::return_scratch`].
    pub(crate) fn take_scratch(&mut self) -> [Vec<u8>; 2] {
        std::mem::take(&mut self.scratch)
    }

    pub(crate) fn return_scratch(&mut self, scratch: [Vec<u8>; 2]) {
        self.scratch = scratch;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        blake3::Hasher::new_derive_key("aquifer test random").finalize_xof().fill(&mut out);
        out
    }

    fn round_trip(plain: &[u8]) -> (Codec, usize) {
        let mut out = vec![0; plain.len()];
        let (codec, length) = Compressor::new(1).unwrap().compress(plain, &mut out).unwrap();
        let mut back = vec![0; plain.len()];
        Decompressor::new().unwrap().decode("test", codec, &out[..length], &mut back).unwrap();
        assert_eq!(back, plain);
        (codec, length)
    }

    #[test]
    fn text_shrinks_and_random_bytes_are_stored_raw() {
        let text = b"The quick brown fox jumps over the lazy dog. ".repeat(3000);
        let (codec, length) = round_trip(&text);
        assert_eq!(codec, Codec::Zstd);
        assert!(length < text.len() / 20);
        for length in [1, 100, 5000, 16 << 10, 128 << 10, (128 << 10) - 7] {
            assert_eq!(round_trip(&random(length)), (Codec::Raw, length));
        }
    }

    #[test]
    fn the_probe_lets_compressible_bytes_through() {
        for zeros_of_eight in 1..=8 {
            let mut mixed = random(128 << 10);
            for group in mixed.chunks_exact_mut(64) {
                group[..zeros_of_eight * 8].fill(0);
            }
            assert_eq!(round_trip(&mixed).0, Codec::Zstd, "{zeros_of_eight}");
        }
        let base64: Vec<u8> = random(128 << 10).iter().map(|byte| b'A' + byte % 26).collect();
        assert_eq!(round_trip(&base64).0, Codec::Zstd);
    }

    #[test]
    fn negative_levels_work_and_small_bodies_too() {
        for length in 0..64 {
            round_trip(&vec![7; length]);
        }
        let mut out = vec![0; 4096];
        let (codec, length) = Compressor::new(-5).unwrap().compress(&[1; 4096], &mut out).unwrap();
        assert_eq!(codec, Codec::Zstd);
        assert!(length < 100);
    }

    #[test]
    fn a_bomb_a_short_body_and_trailing_bytes_are_errors() {
        let mut out = vec![0; 1 << 20];
        let (_, length) = Compressor::new(1).unwrap().compress(&vec![0; 1 << 20], &mut out).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let mut decode =
            |body: &[u8], plain: usize| decompressor.decode("test", Codec::Zstd, body, &mut vec![0; plain]);
        assert!(decode(&out[..length], 1 << 20).is_ok());
        for plain in [0, 1, 4096, (1 << 20) - 1, (1 << 20) + 1] {
            assert!(matches!(decode(&out[..length], plain), Err(Error::Decompress { .. })), "{plain}");
        }
        assert!(decode(&out[..length - 1], 1 << 20).is_err());
        assert!(decode(&out[..length + 1], 1 << 20).is_err());
    }

    #[test]
    fn an_output_buffer_that_is_too_short_is_named() {
        let error = Compressor::new(1).unwrap().compress(&[0; 10], &mut [0; 9]).unwrap_err();
        assert!(matches!(error, Error::BufferLength { expected: 10, found: 9, .. }));
    }
}
