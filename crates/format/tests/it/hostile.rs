//! Hostile bytes behind right checksums: bombs, limits, lies in JSON, and a replay of fuzzed input.

use aquifer_format::*;
use proptest::prelude::*;

use crate::forge::Envelope;
use crate::{decoders, fixture};

const REPOSITORY: [u8; 16] = [0x11; 16];

fn log_envelope() -> Envelope<'static> {
    let key = key::log(2);
    Envelope { magic: b"AQF-LOG\n", key, number: 2, session: [0; 16], repository: REPOSITORY, bound: &[] }
}

fn open_forged(codec: u8, plain_bytes: u32, body: &[u8]) -> Error {
    let object = log_envelope().forge(codec, plain_bytes, body);
    open_entry(&fixture::ring(false), 2, &object).expect_err("a forged entry has no signature")
}

fn zstd_of(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plain.len()];
    let (codec, length) = Compressor::new(19)
        .and_then(|mut zstd| zstd.compress(plain, &mut out))
        .expect("the buffer is long enough");
    assert_eq!(codec, Codec::Zstd);
    out.truncate(length);
    out
}

#[test]
fn a_recorded_length_above_the_limit_is_refused_before_anything_is_allocated() {
    let error = open_forged(1, u32::MAX, b"tiny");
    assert!(matches!(error, Error::Limit { field: "plain_bytes", limit: 8_388_608, .. }), "{error}");
}

#[test]
fn a_zstd_bomb_stops_at_the_recorded_length() {
    let bomb = zstd_of(&vec![0; 8 << 20]);
    assert!(bomb.len() < 1024);
    let error = open_forged(1, 100, &bomb);
    assert!(matches!(error, Error::Decompress { plain_bytes: 100, .. }), "{error}");
    let short = open_forged(1, 4096, &zstd_of(&[7; 2048]));
    assert!(matches!(short, Error::Decompress { plain_bytes: 4096, .. }), "{short}");
}

#[test]
fn a_zstd_body_with_trailing_bytes_is_refused() {
    let mut body = zstd_of(&[7; 2048]);
    body.push(0);
    assert!(matches!(open_forged(1, 2048, &body), Error::Decompress { .. }));
}

#[test]
fn deep_json_is_an_error_and_no_stack_overflow() {
    for open in ["[", "{\"a\":"] {
        let mut body = vec![0; 64];
        body.extend_from_slice(open.repeat(1 << 20).as_bytes());
        let plain_bytes = u32::try_from(body.len()).unwrap();
        let error = open_forged(0, plain_bytes, &body);
        assert!(matches!(error, Error::Json { .. }), "{error}");
    }
}

#[test]
fn an_unknown_body_or_field_is_an_error_that_names_it() {
    let entry = |bodies: &str, more: &str| {
        let (hash, nonce, writer) = ("00".repeat(32), "00".repeat(16), fixture::signer().writer());
        let json = format!(
            "{{\"seq\":2,\"prev\":\"{hash}\",\"writer\":\"{writer}\",\"nonce\":\"{nonce}\",\"wall_ms\":0,\"bodies\":[{bodies}]{more}}}"
        );
        [&[0; 64][..], json.as_bytes()].concat()
    };
    let open = |body: &[u8]| open_forged(0, u32::try_from(body.len()).unwrap(), body);
    let error = open(&entry("{\"defrost\":{}}", ""));
    assert!(matches!(error, Error::Json { .. }) && error.to_string().contains("defrost"), "{error}");
    let error = open(&entry("", ",\"colour\":1"));
    assert!(matches!(error, Error::Json { .. }) && error.to_string().contains("colour"), "{error}");
    let body = format!("{{\"close\":{{\"session\":\"{}\",\"now\":true}}}}", "00".repeat(16));
    assert!(matches!(open(&entry(&body, "")), Error::Json { .. }));
    // Well-formed, but signed by nobody.
    assert!(matches!(open(&entry("", "")), Error::Signature { seq: 2 }));
    assert!(matches!(open(&[0; 63]), Error::Truncated { need: 64, have: 63, .. }));
}

#[test]
fn an_entry_that_claims_another_slot_is_refused() {
    // Sealed for slot 1 honestly, but the document says 7: only a faulty writer could make it.
    let ring = fixture::ring(false);
    let state = State::new(&fixture::config(false));
    let mut entry = fixture::next_entry(&state, vec![]);
    entry.seq = 7;
    let object = seal_entry(&ring, &fixture::signer(), [0; 32], &entry).unwrap();
    assert!(matches!(open_entry(&ring, 1, &object), Err(Error::Origin { .. })));
    assert_eq!(open_entry(&ring, 7, &object).unwrap(), entry);
}

#[test]
fn an_entry_above_eight_mib_is_not_written() {
    let state = State::new(&fixture::config(false));
    let packs = (0..200_000).map(fixture::pack_name).collect();
    let entry = fixture::next_entry(&state, vec![Body::Condemn { packs, dropped: vec![] }]);
    let error = seal_entry(&fixture::ring(false), &fixture::signer(), [0; 32], &entry).unwrap_err();
    assert!(matches!(error, Error::Limit { object: "log entry", limit: 8_388_608, .. }), "{error}");
}

#[test]
fn a_segment_that_promises_more_than_it_has_is_refused() {
    let name = SegmentName { session: SessionId([0x66; 16]), number: 0 };
    let envelope = Envelope {
        magic: b"AQF-INDX",
        key: key::segment(&name),
        number: 0,
        session: [0x66; 16],
        repository: REPOSITORY,
        bound: &[],
    };
    let ring = fixture::ring(false);
    let open = |plain: &[u8]| decode_segment(&ring, name, &envelope.raw(plain));
    assert_eq!(open(&0u32.to_le_bytes()).unwrap(), []);
    assert!(matches!(open(&u32::MAX.to_le_bytes()), Err(Error::Limit { field: "packs", limit: 0, .. })));
    let mut pack =
        [&1u32.to_le_bytes()[..], &[0; 20], &400u32.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    pack.extend_from_slice(&fixture::data_pack(&ring).header.encode());
    pack.extend_from_slice(&[0; 32]);
    assert!(matches!(open(&pack), Err(Error::Limit { field: "rows", limit: 0, .. })));
}

#[test]
fn a_footer_that_points_elsewhere_is_refused() {
    let pack = fixture::data_pack(&fixture::ring(false));
    let length = pack.bytes.len() as u64;
    let tail = &pack.bytes[pack.bytes.len() - FOOTER_BYTES..];
    assert!(decode_footer(tail, length).is_ok());
    assert!(matches!(decode_footer(tail, length + 1), Err(Error::Field { field: "table_offset", .. })));
    assert!(matches!(decode_footer(tail, 1 << 40), Err(Error::Limit { field: "object bytes", .. })));
    for (at, field) in [(8, "table_offset"), (12, "table_bytes"), (16, "table_bytes"), (20, "reserved")] {
        let mut bad = tail.to_vec();
        bad[at] ^= 1;
        let error = decode_footer(&bad, length).unwrap_err();
        assert!(matches!(error, Error::Field { field: found, .. } if found == field), "{error}");
    }
    let mut bad = tail.to_vec();
    bad[16..20].copy_from_slice(&65_535u32.to_le_bytes());
    assert!(matches!(decode_footer(&bad, length), Err(Error::Limit { field: "count", .. })));
}

#[test]
fn a_newer_version_of_any_object_says_so() {
    let (ring, config) = (fixture::ring(true), fixture::config(true));
    let (_, entry, state) = fixture::log(&ring, &config).remove(1);
    let newer = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[8] = 2;
        crate::forge::rehash(&mut bytes, true);
        bytes
    };
    let is_newer = |error: Error| {
        assert!(matches!(error, Error::Version { found: 2, supported: 1, .. }), "{error}");
        assert!(!error.is_corrupt() && error.to_string().contains("newer aquifer"), "{error}");
    };
    is_newer(open_entry(&ring, 2, &newer(&entry)).unwrap_err());
    let checkpoint = encode_checkpoint(&ring, [0; 32], &state).unwrap();
    is_newer(decode_checkpoint(&ring, 2, &newer(&checkpoint)).unwrap_err());
    is_newer(open_slot(&config, &newer(&fixture::slot()), fixture::SECRET).unwrap_err());
    is_newer(PackHeader::decode(&newer(&fixture::data_pack(&ring).bytes)).unwrap_err());
    is_newer(decode_segment(&ring, fixture::segment_name(0), &newer(&fixture::segment(&ring))).unwrap_err());
}

#[test]
fn an_unknown_feature_refuses_those_who_need_it() {
    use aquifer_format::log::{Feature, Needs};
    let mut state = State::new(&fixture::config(false));
    assert!(state.check_features(true).is_ok());
    let enrol = fixture::bodies(&fixture::ring(false)).remove(0).remove(1);
    let with = |state: &mut State, needs| {
        let feature = Feature { name: "parity".to_owned(), needs };
        let entry = fixture::next_entry(state, vec![enrol.clone(), Body::Config { features: vec![feature] }]);
        state.apply(&entry, EntryHash([1; 32])).unwrap();
    };
    with(&mut state, Needs::Write);
    assert!(state.check_features(false).is_ok());
    let error = state.check_features(true).unwrap_err();
    assert!(error.to_string().contains("\"parity\""), "{error}");
    with(&mut state, Needs::Read);
    assert!(matches!(state.check_features(false), Err(Error::Feature { .. })));
    assert_eq!(state.features().len(), 2);
}

/// Every golden file and every seed that fuzzing begins with.
fn corpus() -> Vec<Vec<u8>> {
    let mut folders: Vec<_> = ["tests/golden/v1", "fuzz/seeds"]
        .map(|folder| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .into();
    let mut out = Vec::new();
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = file.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                out.push(std::fs::read(path).expect("the file can be read"));
            }
        }
    }
    out
}

#[test]
fn the_corpus_passes_through_every_decoder() {
    for bytes in corpus() {
        decoders::objects(&bytes);
        decoders::blobs(&bytes);
        decoders::bodies(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutations_of_the_corpus_pass_through_every_decoder(
        pick in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let corpus = corpus();
        let mut bytes = corpus[pick.index(corpus.len())].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        decoders::objects(&bytes);
        bytes.truncate(cut.index(bytes.len()) + 1);
        decoders::objects(&bytes);
        decoders::bodies(&bytes);
    }

    #[test]
    fn any_bytes_pass_through_every_decoder(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        decoders::objects(&bytes);
        decoders::bodies(&bytes);
    }
}
