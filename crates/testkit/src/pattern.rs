//! The guest's writes as a pure function of their number.
//!
//! Write `s` (1, 2, 3, …) is fixed by `s` and the sizes of the disks alone: which disk, where, how much, what. The
//! guest issues write `s + 1` only after write `s` has completed, on whichever disk, so every state that the set of
//! disks ever had is "the state after write M" for some M, and [`Pattern::blocks_after`] rebuilds it block by block.
//! Nothing here does I/O. The file is compiled twice, into the testkit and into the guest program, and therefore uses
//! the standard library only.
//!
//! Invariant: a step that leaves no mark (zeroes, discard) never makes the content of a block uncertain. A discard
//! only promises something about ranges that are already zero, so each one repeats the range of the write of zeroes
//! just before it on the same disk.

/// Bytes of one block, the unit of position and length.
pub const BLOCK: usize = 4096;
/// Longest write of data, in blocks (64 KiB).
pub const DATA_BLOCKS_MAX: u64 = 16;
/// Longest write of zeroes and longest discard, in blocks (512 KiB, several chunks of a repository).
pub const ZERO_BLOCKS_MAX: u64 = 128;
/// Most writes that the guest issues without a report on its console: one that dies has issued no later one.
pub const UNREPORTED_MAX: u64 = 128;
/// Smallest disk that the pattern fits on, in bytes.
pub const DISK_BYTES_MIN: u64 = 4 * ZERO_BLOCKS_MAX * BLOCK as u64;

const MAGIC: u64 = u64::from_le_bytes(*b"AQFBLOCK");
/// One round in this many is a write of zeroes, and the round after it the discard of the same range.
const ZERO_EVERY: u64 = 16;

/// What a write puts into its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Blocks that compress well.
    Plain,
    /// Blocks that do not compress.
    Noise,
    /// Zeroes, by the device's own command.
    Zeroes,
    /// A discard of a range that already holds zeroes.
    Discard,
}

/// One write of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which disk, counted from zero.
    pub disk: usize,
    /// First block.
    pub block: u64,
    /// Length in blocks, at least one.
    pub blocks: u64,
    /// What is written.
    pub content: Content,
}

/// The whole history of one set of disks.
#[derive(Clone, Debug)]
pub struct Pattern {
    disk_blocks: Vec<u64>,
}

impl Pattern {
    /// The history for disks of these sizes in bytes. A tail shorter than a block is never written. `None` when there
    /// is no disk or one is smaller than [`DISK_BYTES_MIN`].
    pub fn new(disk_bytes: &[u64]) -> Option<Pattern> {
        let fits = !disk_bytes.is_empty() && disk_bytes.iter().all(|&bytes| bytes >= DISK_BYTES_MIN);
        fits.then(|| Pattern { disk_blocks: disk_bytes.iter().map(|bytes| bytes / BLOCK as u64).collect() })
    }

    /// Write number `seq`, counted from one.
    pub fn write(&self, seq: u64) -> Write {
        let disks = self.disk_blocks.len() as u64;
        // Round robin, so that neighbours in the history lie on different disks.
        let disk = index(seq % disks);
        let (source, content) = match seq / disks % ZERO_EVERY {
            0 if seq >= disks => (seq, Content::Zeroes),
            1 if seq >= 2 * disks => (seq - disks, Content::Discard),
            _ if seq.is_multiple_of(3) => (seq, Content::Noise),
            _ => (seq, Content::Plain),
        };
        let longest = match content {
            Content::Plain | Content::Noise => DATA_BLOCKS_MAX,
            Content::Zeroes | Content::Discard => ZERO_BLOCKS_MAX,
        };
        let random = scramble(source);
        let blocks = 1 + random % longest;
        let block = scramble(random) % (self.disk_blocks[disk] - blocks + 1);
        Write { disk, block, blocks, content }
    }

    /// Fills `out` with what write `seq` leaves in block `block` of its disk.
    pub fn fill(&self, seq: u64, block: u64, out: &mut [u8; BLOCK]) {
        let write = self.write(seq);
        if matches!(write.content, Content::Zeroes | Content::Discard) {
            out.fill(0);
            return;
        }
        let seed = scramble(seq ^ block.rotate_left(32) ^ (write.disk as u64).rotate_left(56));
        for (at, word) in out.chunks_exact_mut(8).enumerate() {
            let at = at as u64;
            // Each 512-byte sector names its write, so a torn block shows.
            let value = match at % 64 {
                0 => MAGIC,
                1 => seq,
                2 => block,
                _ if write.content == Content::Noise => scramble(seed.wrapping_add(at)),
                _ => seed.wrapping_add(at / 64),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// For each disk and block, the write that the block shows after write `last`: 0 for a block that is zero.
    pub fn blocks_after(&self, last: u64) -> Vec<Vec<u64>> {
        let mut shown: Vec<Vec<u64>> =
            self.disk_blocks.iter().map(|&blocks| vec![0; index(blocks)]).collect();
        for seq in 1..=last {
            self.apply(seq, &mut shown);
        }
        shown
    }

    /// Moves what [`Pattern::blocks_after`] gave for `seq - 1` on to `seq`; false when nothing changed by it.
    pub fn apply(&self, seq: u64, shown: &mut [Vec<u64>]) -> bool {
        let write = self.write(seq);
        let mark = if matches!(write.content, Content::Zeroes | Content::Discard) { 0 } else { seq };
        let range = index(write.block)..index(write.block + write.blocks);
        let blocks = &mut shown[write.disk][range];
        let changed = blocks.iter().any(|&shows| shows != mark);
        blocks.fill(mark);
        changed
    }
}

/// The write that a block claims to come from, if it bears the mark of one.
pub fn claimed_write(block: &[u8; BLOCK]) -> Option<u64> {
    let word = |at: usize| block[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    if word(0) == Some(MAGIC) { word(8) } else { None }
}

#[allow(clippy::cast_possible_truncation, reason = "the guest and the testkit are built for 64 bits only")]
fn index(value: u64) -> usize {
    value as usize
}

/// A fixed bijection of 64-bit numbers that looks random (the finaliser known as splitmix64).
fn scramble(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
