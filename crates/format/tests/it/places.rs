//! Places: a whole, honest object put somewhere else does not open there.

use aquifer_format::*;

use crate::fixture::{self, KDF, SECRET};

fn other_config(encrypted: bool) -> RepositoryConfig {
    RepositoryConfig { repository: RepositoryId([0xaa; 16]), ..fixture::config(encrypted) }
}

#[test]
fn a_log_entry_opens_in_its_own_slot_only() {
    for encrypted in [true, false] {
        let (ring, config) = (fixture::ring(encrypted), fixture::config(encrypted));
        let log = fixture::log(&ring, &config);
        assert!(matches!(open_entry(&ring, 3, &log[1].1), Err(Error::Origin { .. })));
        assert!(matches!(decode_checkpoint(&ring, 2, &log[1].1), Err(Error::Magic { .. })));
    }
}

#[test]
fn nothing_opens_in_another_repository_even_under_the_same_key() {
    for encrypted in [true, false] {
        let (ring, config) = (fixture::ring(encrypted), fixture::config(encrypted));
        let other = fixture::ring_of(&other_config(encrypted));
        let (_, entry, state) = fixture::log(&ring, &config).remove(1);
        assert!(matches!(open_entry(&other, 2, &entry), Err(Error::Origin { .. })));
        let checkpoint = encode_checkpoint(&ring, fixture::salt("c"), &state).unwrap();
        assert!(matches!(decode_checkpoint(&other, 2, &checkpoint), Err(Error::Origin { .. })));
        let segment = decode_segment(&other, fixture::segment_name(0), &fixture::segment(&ring));
        assert!(matches!(segment, Err(Error::Origin { .. })));
        let beat = fixture::heartbeat();
        let bytes = seal_heartbeat(&ring, fixture::salt("hb"), &beat).unwrap();
        assert!(matches!(open_heartbeat(&other, beat.session, &bytes), Err(Error::Origin { .. })));
        let header = fixture::data_pack(&ring).header;
        assert!(header.check_origin(&ring.repository(), &header.name).is_ok());
        let moved = header.check_origin(&other.repository(), &header.name);
        assert!(matches!(moved, Err(Error::Origin { .. })));
        let renamed = header.check_origin(&ring.repository(), &fixture::pack_name(5));
        assert!(matches!(renamed, Err(Error::Origin { .. })));
    }
    let slot = open_slot(&other_config(true), &fixture::slot(), SECRET);
    assert!(matches!(slot, Err(Error::Origin { .. })));
}

#[test]
fn a_changed_format_object_opens_no_slot_no_first_entry_and_no_checkpoint() {
    let forged = RepositoryConfig { chunk_bytes: 128 << 10, ..fixture::config(true) };
    let (honest, ring) = (fixture::ring(true), fixture::ring_of(&forged));
    assert!(matches!(open_slot(&forged, &fixture::slot(), SECRET), Err(Error::Origin { .. })));
    let (_, entry, state) = fixture::log(&honest, &fixture::config(true)).remove(0);
    assert!(matches!(open_entry(&ring, 1, &entry), Err(Error::Authentication { .. })));
    let checkpoint = encode_checkpoint(&honest, fixture::salt("c"), &state).unwrap();
    assert!(matches!(decode_checkpoint(&ring, 1, &checkpoint), Err(Error::Authentication { .. })));
}

#[test]
fn a_wrong_secret_is_told_apart_from_damage() {
    let config = fixture::config(true);
    let mut slot = fixture::slot();
    assert!(matches!(open_slot(&config, &slot, b"wrong horse"), Err(Error::WrongSecret)));
    assert!(!open_slot(&config, &slot, b"").unwrap_err().is_corrupt());
    slot[100] ^= 1;
    let error = open_slot(&config, &slot, SECRET).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }) && error.is_corrupt());
}

#[test]
fn argon2_costs_out_of_range_are_refused_before_memory_is_taken() {
    let seal = |kdf| seal_slot(&fixture::config(true), &fixture::master(), SECRET, kdf, [0; 32]);
    let huge = KdfParams { memory_kib: 2 << 20, ..KDF };
    assert!(matches!(seal(huge), Err(Error::Limit { field: "memory_kib", .. })));
    assert!(matches!(seal(KdfParams { passes: 65, ..KDF }), Err(Error::Limit { field: "passes", .. })));
    assert!(matches!(seal(KdfParams { lanes: 17, ..KDF }), Err(Error::Limit { field: "lanes", .. })));
    assert!(matches!(seal(KdfParams { memory_kib: 1, ..KDF }), Err(Error::Kdf { memory_kib: 1, .. })));
    assert!(matches!(seal(KdfParams { passes: 0, ..KDF }), Err(Error::Kdf { passes: 0, .. })));
    // The same in a stored slot, whose checksum is right.
    let mut slot = fixture::slot();
    slot[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    crate::forge::rehash(&mut slot, true);
    let error = open_slot(&fixture::config(true), &slot, SECRET).unwrap_err();
    assert!(matches!(error, Error::Limit { field: "memory_kib", .. }), "{error}");
}

#[test]
fn several_secrets_open_one_master_key_each_through_its_own_slot() {
    let config = fixture::config(true);
    let salt = fixture::salt("second slot");
    let second = seal_slot(&config, &fixture::master(), b"recovery", KDF, salt).unwrap();
    let id = |master| KeyRing::encrypted(&config, master).unwrap().chunk_id(BlobKind::Data, b"x");
    let first = id(open_slot(&config, &fixture::slot(), SECRET).unwrap());
    assert_eq!(id(open_slot(&config, &second, b"recovery").unwrap()), first);
    assert!(matches!(open_slot(&config, &second, SECRET), Err(Error::WrongSecret)));
    assert_eq!(slot_id(&salt).0, salt[..8]);
}

#[test]
fn plain_and_sealed_objects_are_refused_in_the_other_kind_of_repository() {
    let (plain, sealed) = (fixture::ring(false), fixture::ring(true));
    let (_, plain_entry, _) = fixture::log(&plain, &fixture::config(false)).remove(1);
    let (_, sealed_entry, _) = fixture::log(&sealed, &fixture::config(true)).remove(1);
    let error = open_entry(&sealed, 2, &plain_entry).unwrap_err();
    assert!(matches!(error, Error::Mode { found_sealed: false, .. }), "{error}");
    let error = open_entry(&plain, 2, &sealed_entry).unwrap_err();
    assert!(matches!(error, Error::Mode { found_sealed: true, .. }), "{error}");
    let header = fixture::data_pack(&plain).header;
    assert!(matches!(PackReader::new(&sealed, &header), Err(Error::Mode { .. })));
}

#[test]
fn a_heartbeat_of_another_session_is_refused() {
    let ring = fixture::ring(true);
    let bytes = seal_heartbeat(&ring, fixture::salt("hb"), &fixture::heartbeat()).unwrap();
    assert!(matches!(open_heartbeat(&ring, fixture::session(9), &bytes), Err(Error::Origin { .. })));
}

#[test]
fn a_segment_of_another_name_is_refused() {
    let ring = fixture::ring(true);
    let error = decode_segment(&ring, fixture::segment_name(1), &fixture::segment(&ring)).unwrap_err();
    assert!(matches!(error, Error::Origin { .. }), "{error}");
}

#[test]
fn an_entry_signed_by_another_writer_is_refused() {
    let ring = fixture::ring(true);
    let state = State::new(&fixture::config(true));
    let entry = fixture::next_entry(&state, vec![]);
    let stranger = Signer::from_seed([9; 32]).unwrap();
    let error = seal_entry(&ring, &stranger, [0; 32], &entry).unwrap_err();
    assert!(matches!(error, Error::Origin { .. }), "{error}");
}

#[test]
fn a_blob_opens_under_its_own_header_and_ordinal_only() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let pack = fixture::data_pack(&ring);
        let row = pack.rows[0];
        let blob = &pack.bytes[row.range()];
        let mut decompressor = Decompressor::new().unwrap();
        let mut open = |header: PackHeader, row: TableRow| {
            let mut out = vec![0; row.plain_bytes as usize];
            PackReader::new(&ring, &header)?.open(&mut decompressor, &row, &mut blob.to_vec(), &mut out)
        };
        assert!(open(pack.header, row).is_ok());
        let renamed = PackHeader { name: fixture::pack_name(9), ..pack.header };
        let salted = PackHeader { salt: [0; 32], ..pack.header };
        let moved = PackHeader { repository: RepositoryId([0xaa; 16]), ..pack.header };
        let epoch = PackHeader { epoch: EpochId([1; 8]), ..pack.header };
        let kind = PackHeader { kind: PackKind::Meta, ..pack.header };
        for header in [renamed, salted, moved, epoch, kind] {
            assert!(matches!(open(header, row), Err(Error::Authentication { .. })));
        }
        let id = TableRow { id: ChunkId([0; 32]), ..row };
        let ordinal = TableRow { ordinal: 1, ..row };
        let tree = TableRow { kind: BlobKind::Tree, ..row };
        for row in [id, ordinal, tree] {
            assert!(matches!(open(pack.header, row), Err(Error::Frame { .. })));
        }
    }
}
