//! How the index on disk behaves at size: fills it with made-up chunk ids, then asks for what is there and what is not.
//!
//! `cargo run --release -p aquifer-index --example fill -- [CHUNKS] [FOLDER]` (default: one million chunks in a new
//! folder under the system's temporary one). Prints rates, bytes a chunk on disk, and resident memory; asserts only
//! that the answers are right.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use aquifer_format::codec::Codec;
use aquifer_format::id::{ChunkId, EpochId, PackName, RepositoryId, SessionId};
use aquifer_format::pack::{BlobKind, PackHeader, PackKind, TableRow};
use aquifer_format::segment::SegmentPack;
use aquifer_index::{ChunkIndex, RocksIndex};

const REPOSITORY: RepositoryId = RepositoryId([1; 16]);
/// Chunks of 128 KiB that compress to half make a pack of 32 MiB.
const CHUNKS_PER_PACK: u64 = 512;
/// Packs of one publish.
const PACKS_AT_ONCE: u64 = 64;
/// Ids of one look-up, as a backup's writer asks.
const BATCH: u64 = 64;

/// What is extrapolated to: 12.5 TiB of chunks of 128 KiB.
const LARGE_CHUNKS: u64 = 100_000_000;

/// An id that looks like a hash.
fn id(number: u64) -> ChunkId {
    let mut bytes = [0; 32];
    let mut word = number;
    for part in bytes.chunks_mut(8) {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    ChunkId(bytes)
}

fn pack(number: u64) -> Result<SegmentPack, Box<dyn Error>> {
    let name = PackName { session: SessionId([2; 16]), number: u32::try_from(number)? };
    let kind = PackKind::Data;
    let header = PackHeader {
        kind,
        sealed: true,
        generation: 1,
        epoch: EpochId([3; 8]),
        repository: REPOSITORY,
        name,
        salt: [4; 32],
    };
    let mut rows = Vec::new();
    for ordinal in 0..CHUNKS_PER_PACK {
        rows.push(TableRow {
            id: id(number * CHUNKS_PER_PACK + ordinal),
            offset: u32::try_from(ordinal * 65_536)?,
            stored_bytes: 65_000,
            plain_bytes: 131_072,
            codec: Codec::Zstd,
            kind: BlobKind::Data,
            ordinal: u16::try_from(ordinal)?,
        });
    }
    Ok(SegmentPack { name, stored_as: name, bytes: 32 << 20, kind, header, hash: [5; 32], rows })
}

fn rate(count: u64, started: Instant) -> String {
    let seconds = started.elapsed().as_secs_f64();
    format!("{seconds:8.2} s  {:12.0} a second", count as f64 / seconds)
}

fn resident_mib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or_else(|| "unknown".to_owned(), |kib| kib.trim().to_owned())
}

/// Asks for `count` ids from `first` on and says how many are there.
fn ask(index: &RocksIndex, first: u64, count: u64) -> Result<u64, Box<dyn Error>> {
    let (mut found, mut ids) = (0, Vec::new());
    for batch in (first..first + count).step_by(usize::try_from(BATCH)?) {
        ids.clear();
        // Spread over the whole range, as new data meets old.
        ids.extend((batch..batch + BATCH).map(id));
        found += index.contains_many(&ids, &|_| true)?.iter().flatten().count() as u64;
    }
    Ok(found)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let chunks: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let made_up = std::env::temp_dir().join(format!("aquifer-index-{}", std::process::id()));
    let folder = arguments.next().map_or(made_up, PathBuf::from);
    let packs = chunks.div_ceil(CHUNKS_PER_PACK);
    let index = RocksIndex::open(&folder.join("index"), REPOSITORY)?;

    let started = Instant::now();
    for first in (0..packs).step_by(usize::try_from(PACKS_AT_ONCE)?) {
        let group: Result<Vec<_>, _> = (first..packs.min(first + PACKS_AT_ONCE)).map(pack).collect();
        index.insert_packs(&group?)?;
    }
    index.flush()?;
    let filled = started.elapsed();
    println!("insert  {}", rate(packs * CHUNKS_PER_PACK, started));

    let asked = chunks.min(2_000_000) / BATCH * BATCH;
    let started = Instant::now();
    assert_eq!(ask(&index, u64::MAX / 2, asked)?, 0);
    println!("misses  {}", rate(asked, started));
    let started = Instant::now();
    assert_eq!(ask(&index, 0, asked)?, asked);
    println!("hits    {}", rate(asked, started));

    let stats = index.stats()?;
    let bytes = stats.disk_bytes as f64 / (packs * CHUNKS_PER_PACK) as f64;
    println!("on disk {bytes:.1} bytes a chunk; resident {}", resident_mib());
    // Linear: what a merge costs more at a greater depth is not in it.
    let times = LARGE_CHUNKS as f64 / (packs * CHUNKS_PER_PACK) as f64;
    println!(
        "extrapolated to {} million chunks: {:.1} GiB on disk, filled in {:.0} s",
        LARGE_CHUNKS / 1_000_000,
        stats.disk_bytes as f64 * times / f64::from(1 << 30),
        filled.as_secs_f64() * times
    );
    drop(index);
    Ok(std::fs::remove_dir_all(&folder)?)
}
