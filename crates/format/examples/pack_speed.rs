//! Times what one CPU thread does to every chunk of a backup: id, compress, seal, check; and the way back.
//!
//! `cargo run --release -p aquifer-format --example pack_speed -- FILE [LEVEL]`

use std::time::Instant;

use aquifer_format::*;

const CHUNK_BYTES: usize = 128 << 10;
const PACK_BYTES: usize = 32 << 20;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: pack_speed FILE [LEVEL]")?;
    let level = arguments.next().map_or(Ok(1), |level| level.parse())?;
    let input = std::fs::read(path)?;
    let config = RepositoryConfig {
        version: 1,
        repository: RepositoryId([1; 16]),
        log_store: StoreId([2; 16]),
        chunk_bytes: magic::CHUNK_BYTES_DEFAULT,
        fan_out: 256,
        encrypted: true,
    };
    let mut ring = KeyRing::encrypted(&config, MasterKey::generate([3; 32]))?;
    ring.add_epoch(EpochId([4; 8]));
    let mut compressor = Compressor::new(level)?;
    let mut decompressor = Decompressor::new()?;

    let start = Instant::now();
    let ids: Vec<_> = input.chunks(CHUNK_BYTES).map(|chunk| ring.chunk_id(BlobKind::Data, chunk)).collect();
    report("id", input.len(), start);

    for checked in [false, true, true] {
        let start = Instant::now();
        let mut packs = Vec::new();
        let mut open = None;
        for (chunk, id) in input.chunks(CHUNK_BYTES).zip(&ids) {
            let mut pack = match open.take() {
                Some(pack) => pack,
                None => {
                    let number = u32::try_from(packs.len())?;
                    let name = PackName { session: SessionId([5; 16]), number };
                    PackBuilder::new(&ring, name, PackKind::Data, [6; 32], PACK_BYTES + CHUNK_BYTES)?
                }
            };
            pack.push(&mut compressor, BlobKind::Data, id, chunk)?;
            if checked {
                pack.check_last(&mut decompressor, chunk)?;
            }
            if pack.bytes() < PACK_BYTES {
                open = Some(pack);
            } else {
                packs.push(pack.finish()?);
            }
        }
        packs.extend(open.map(PackBuilder::finish).transpose()?);
        report(if checked { "pack, checked" } else { "pack" }, input.len(), start);
        let stored: usize = packs.iter().map(|pack| pack.bytes.len()).sum();
        println!("{:>16}: {:.1} MB in {} packs", "stored", megabytes(stored), packs.len());
        open_all(&ring, &mut decompressor, &mut packs, input.len())?;
    }
    Ok(())
}

fn open_all(
    ring: &KeyRing,
    decompressor: &mut Decompressor,
    packs: &mut [FinishedPack],
    bytes: usize,
) -> Result<()> {
    let start = Instant::now();
    let mut out = vec![0; CHUNK_BYTES];
    for pack in packs {
        let reader = PackReader::new(ring, &pack.header)?;
        for row in &pack.rows {
            let plain = usize::try_from(row.plain_bytes).unwrap_or(usize::MAX);
            reader.open(decompressor, row, &mut pack.bytes[row.range()], &mut out[..plain])?;
        }
    }
    report("open", bytes, start);
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn report(what: &str, bytes: usize, start: Instant) {
    println!("{what:>16}: {:.0} MB/s", megabytes(bytes) / start.elapsed().as_secs_f64());
}
