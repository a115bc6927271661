//! Packs: what goes in comes out, limits hold, a torn tail loses only itself.

use aquifer_format::*;
use proptest::prelude::*;

use crate::fixture::{self, noise, prose};

fn builder(ring: &KeyRing, capacity: usize) -> PackBuilder {
    let salt = fixture::salt("pack");
    PackBuilder::new(ring, fixture::pack_name(3), PackKind::Data, salt, capacity)
        .expect("the fixture is right")
}

fn open_all(ring: &KeyRing, pack: &FinishedPack) -> Vec<Vec<u8>> {
    let reader = PackReader::new(ring, &pack.header).expect("the fixture is right");
    let mut decompressor = Decompressor::new().expect("the fixture is right");
    let mut open = |row: &TableRow| {
        let mut blob = pack.bytes[row.range()].to_vec();
        let mut out = vec![0; row.plain_bytes as usize];
        reader.open(&mut decompressor, row, &mut blob, &mut out).expect("the fixture is right");
        out
    };
    pack.rows.iter().map(&mut open).collect()
}

#[test]
fn blobs_come_out_as_they_went_in() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let pack = fixture::data_pack(&ring);
        assert_eq!(open_all(&ring, &pack), fixture::chunks());
        let codecs: Vec<_> = pack.rows.iter().map(|row| row.codec).collect();
        assert_eq!(codecs, [Codec::Zstd, Codec::Raw, Codec::Zstd]);
        assert_eq!(self_check(&ring, &pack.bytes).unwrap(), pack.rows);
    }
}

#[test]
fn header_footer_and_table_are_enough_to_find_every_blob() {
    let ring = fixture::ring(true);
    let pack = fixture::data_pack(&ring);
    let bytes = &pack.bytes;
    let header = PackHeader::decode(&bytes[..PACK_HEADER_BYTES]).unwrap();
    let footer = decode_footer(&bytes[bytes.len() - FOOTER_BYTES..], bytes.len() as u64).unwrap();
    let from = footer.table_offset as usize;
    let table = &bytes[from..from + footer.table_bytes as usize];
    assert_eq!(decode_table(&ring, &header, &footer, table).unwrap(), pack.rows);
    assert_eq!(footer.hash, pack.hash);
    assert!(matches!(decode_table(&ring, &header, &footer, &table[1..]), Err(Error::BufferLength { .. })));
}

#[test]
fn the_trailing_hash_is_right_beyond_the_hashing_step() {
    let ring = fixture::ring(true);
    let mut pack = builder(&ring, 1 << 10);
    let mut compressor = Compressor::new(1).unwrap();
    for number in 0..9 {
        let chunk = noise(&format!("{number}"), 128 << 10);
        let id = ring.chunk_id(BlobKind::Data, &chunk);
        pack.push(&mut compressor, BlobKind::Data, &id, &chunk).unwrap();
    }
    let pack = pack.finish().unwrap();
    assert_eq!(check_hash(&pack.bytes).unwrap(), pack.hash);
    assert_eq!(self_check(&ring, &pack.bytes).unwrap().len(), 9);
}

#[test]
fn the_memory_of_an_earlier_pack_can_be_used_again() {
    let ring = fixture::ring(true);
    let expected = fixture::data_pack(&ring).bytes;
    for old in [vec![], vec![0xee; 100], vec![0xee; 2 << 20]] {
        let (name, salt) = (fixture::pack_name(0), fixture::salt("data pack"));
        let mut pack = PackBuilder::reusing(&ring, name, PackKind::Data, salt, 1 << 20, old).unwrap();
        let mut compressor = Compressor::new(1).unwrap();
        for chunk in fixture::chunks() {
            let id = ring.chunk_id(BlobKind::Data, &chunk);
            pack.push(&mut compressor, BlobKind::Data, &id, &chunk).unwrap();
        }
        assert!(pack.finish().unwrap().bytes == expected);
    }
}

#[test]
fn the_self_check_accepts_the_right_bytes_and_refuses_others() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let mut pack = builder(&ring, 1 << 20);
        let mut decompressor = Decompressor::new().unwrap();
        let nothing = pack.check_last(&mut decompressor, b"x");
        assert!(matches!(nothing, Err(Error::NothingToCheck)));
        let mut compressor = Compressor::new(1).unwrap();
        for chunk in fixture::chunks() {
            let id = ring.chunk_id(BlobKind::Data, &chunk);
            pack.push(&mut compressor, BlobKind::Data, &id, &chunk).unwrap();
            pack.check_last(&mut decompressor, &chunk).unwrap();
            let mut other = chunk.clone();
            other[0] ^= 1;
            let refused = pack.check_last(&mut decompressor, &other);
            assert!(matches!(refused, Err(Error::SelfCheck { .. })));
        }
        let refused = pack.check_last(&mut decompressor, &prose(1023));
        assert!(matches!(refused, Err(Error::SelfCheck { ordinal: 2 })));
    }
}

#[test]
fn an_empty_blob_and_an_empty_pack_are_refused() {
    let ring = fixture::ring(true);
    let mut pack = builder(&ring, 0);
    let mut compressor = Compressor::new(1).unwrap();
    let empty = pack.push(&mut compressor, BlobKind::Data, &ChunkId([0; 32]), &[]);
    assert!(matches!(empty, Err(Error::Field { field: "plain_bytes", .. })));
    assert!(pack.is_empty());
    assert!(matches!(pack.finish(), Err(Error::Field { field: "count", .. })));
}

#[test]
fn a_blob_above_the_limit_of_its_kind_is_refused() {
    let ring = fixture::ring(true);
    let mut pack = builder(&ring, 0);
    let mut compressor = Compressor::new(1).unwrap();
    for (kind, limit) in [(BlobKind::Data, 4 << 20), (BlobKind::Tree, 8232), (BlobKind::Record, 4 << 20)] {
        assert_eq!(kind.plain_bytes_max(), limit);
        let plain = vec![1; limit as usize + 1];
        let refused = pack.push(&mut compressor, kind, &ChunkId([0; 32]), &plain);
        assert!(matches!(refused, Err(Error::Limit { field: "plain_bytes", .. })));
        pack.push(&mut compressor, kind, &ChunkId([0; 32]), &plain[1..]).unwrap();
    }
    assert_eq!(pack.count(), 3);
}

#[test]
fn a_pack_is_full_at_65534_blobs() {
    let ring = fixture::ring(false);
    let mut pack = builder(&ring, 8 << 20);
    let mut compressor = Compressor::new(1).unwrap();
    let id = ring.chunk_id(BlobKind::Data, b"x");
    for _ in 0..65_534 {
        assert!(pack.has_room_for(1));
        pack.push(&mut compressor, BlobKind::Data, &id, b"x").unwrap();
    }
    assert!(!pack.has_room_for(1));
    let refused = pack.push(&mut compressor, BlobKind::Data, &id, b"x");
    assert!(matches!(refused, Err(Error::Limit { field: "count", limit: 65_534, .. })));
    let pack = pack.finish().unwrap();
    let footer = decode_footer(&pack.bytes[pack.bytes.len() - FOOTER_BYTES..], pack.bytes.len() as u64);
    assert_eq!(footer.unwrap().count, 65_534);
}

#[test]
fn a_pack_never_grows_beyond_128_mib() {
    let ring = fixture::ring(false);
    let mut pack = builder(&ring, 128 << 20);
    let mut compressor = Compressor::new(1).unwrap();
    let chunk = noise("big", 4 << 20);
    let id = ring.chunk_id(BlobKind::Data, &chunk);
    while pack.has_room_for(chunk.len()) {
        pack.push(&mut compressor, BlobKind::Data, &id, &chunk).unwrap();
    }
    assert_eq!(pack.count(), 31);
    let refused = pack.push(&mut compressor, BlobKind::Data, &id, &chunk);
    assert!(matches!(refused, Err(Error::Limit { field: "object bytes", .. })));
    let small = &chunk[..3 << 20];
    pack.push(&mut compressor, BlobKind::Data, &ring.chunk_id(BlobKind::Data, small), small).unwrap();
    assert!(pack.finish().unwrap().bytes.len() <= 128 << 20);
}

#[test]
fn a_torn_pack_gives_back_its_whole_blobs() {
    let ring = fixture::ring(true);
    let pack = fixture::data_pack(&ring);
    for length in [pack.bytes.len(), pack.bytes.len() - 1, pack.rows[2].range().end] {
        assert_eq!(salvage(&ring, &pack.bytes[..length]).unwrap(), pack.rows);
    }
    let torn = &pack.bytes[..pack.rows[2].range().end - 1];
    assert_eq!(salvage(&ring, torn).unwrap(), pack.rows[..2]);
    assert!(matches!(self_check(&ring, torn), Err(Error::Checksum { .. })));
    assert!(salvage(&ring, &pack.bytes[..PACK_HEADER_BYTES]).unwrap().is_empty());
    assert!(salvage(&ring, &pack.bytes[..PACK_HEADER_BYTES - 1]).is_err());
}

#[test]
fn a_damaged_stretch_costs_only_the_blobs_that_it_touches() {
    let ring = fixture::ring(true);
    let pack = fixture::data_pack(&ring);
    let mut bytes = pack.bytes.clone();
    bytes[pack.rows[1].offset as usize + 5] ^= 1;
    assert_eq!(salvage(&ring, &bytes).unwrap(), [pack.rows[0], pack.rows[2]]);
    let mut bytes = pack.bytes.clone();
    bytes[pack.rows[0].offset as usize + 100] ^= 1;
    assert_eq!(salvage(&ring, &bytes).unwrap(), pack.rows[1..]);
}

#[test]
fn buffers_of_the_wrong_length_are_refused() {
    let ring = fixture::ring(true);
    let pack = fixture::data_pack(&ring);
    let reader = PackReader::new(&ring, &pack.header).unwrap();
    let mut decompressor = Decompressor::new().unwrap();
    let row = pack.rows[2];
    let blob = &pack.bytes[row.range()];
    for out in [1023, 1025] {
        let error = reader.open(&mut decompressor, &row, &mut blob.to_vec(), &mut vec![0; out]);
        assert!(matches!(error, Err(Error::BufferLength { what: "chunk", expected: 1024, .. })));
    }
    let error = reader.open(&mut decompressor, &row, &mut blob[1..].to_vec(), &mut [0; 1024]);
    assert!(matches!(error, Err(Error::BufferLength { what: "blob", .. })));
}

#[test]
fn a_blob_under_a_wrong_id_is_found_out() {
    let ring = fixture::ring(true);
    let mut pack = builder(&ring, 0);
    let mut compressor = Compressor::new(1).unwrap();
    pack.push(&mut compressor, BlobKind::Data, &ChunkId([5; 32]), b"not five").unwrap();
    let pack = pack.finish().unwrap();
    let error = self_check(&ring, &pack.bytes).unwrap_err();
    assert!(matches!(error, Error::ChunkMismatch { expected: ChunkId([5, ..]), .. }), "{error}");
}

#[test]
fn a_ring_without_an_epoch_starts_no_pack() {
    let ring = KeyRing::encrypted(&fixture::config(true), fixture::master()).unwrap();
    let refused = PackBuilder::new(&ring, fixture::pack_name(0), PackKind::Data, [0; 32], 0);
    assert!(matches!(refused, Err(Error::NoEpoch)));
    // Reading needs none: the header names it.
    let pack = fixture::data_pack(&fixture::ring(true));
    assert_eq!(self_check(&ring, &pack.bytes).unwrap(), pack.rows);
}

fn blob() -> impl Strategy<Value = Vec<u8>> {
    let random = (1..40_000usize, any::<u8>()).prop_map(|(length, label)| noise(&label.to_string(), length));
    let text = (1..40_000usize).prop_map(prose);
    let mixed = (1..20_000usize).prop_map(|length| [noise("m", length), prose(length)].concat());
    prop_oneof![random, text, mixed, prop::collection::vec(any::<u8>(), 1..300)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_blobs_survive_pack_and_segment(
        blobs in prop::collection::vec(blob(), 1..12),
        encrypted in any::<bool>(),
        level in -7i32..4,
        capacity in 0usize..200_000,
    ) {
        let ring = fixture::ring(encrypted);
        let mut pack = builder(&ring, capacity);
        let mut compressor = Compressor::new(level).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        for plain in &blobs {
            let id = ring.chunk_id(BlobKind::Data, plain);
            let row = pack.push(&mut compressor, BlobKind::Data, &id, plain).unwrap();
            prop_assert_eq!(row.range().end, pack.bytes());
            prop_assert!(row.stored_bytes as usize <= plain.len() + 16);
            pack.check_last(&mut decompressor, plain).unwrap();
        }
        let pack = pack.finish().unwrap();
        prop_assert_eq!(&self_check(&ring, &pack.bytes).unwrap(), &pack.rows);
        prop_assert_eq!(open_all(&ring, &pack), blobs);
        let listed = [fixture::as_segment_pack(&pack)];
        let name = fixture::segment_name(4);
        let bytes = encode_segment(&ring, name, fixture::salt("s"), &listed).unwrap();
        prop_assert_eq!(decode_segment(&ring, name, &bytes).unwrap(), listed);
    }
}
