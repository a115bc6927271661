//! Golden bytes: every kind of object as version 1 wrote it, under `tests/golden/v1/`.
//!
//! Decoding them is the promise; writing the same bytes again is checked too, so that no change of the
//! format goes unnoticed. After a deliberate change run the tests once with `AQUIFER_BLESS=1` and review
//! the files. A newer zstd may compress otherwise: then only the encoding half may change.

use std::path::PathBuf;

use aquifer_format::*;

use crate::fixture::{self, SECRET};

fn path(encrypted: bool, name: &str) -> PathBuf {
    let mode = if encrypted { "encrypted" } else { "plain" };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(mode).join(name)
}

/// The golden bytes, after comparing them with what the encoder writes today.
fn golden(encrypted: bool, name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = path(encrypted, name);
    if std::env::var_os("AQUIFER_BLESS").is_some() {
        std::fs::write(&path, encoded).expect("the golden folder is writable");
    }
    let stored = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(stored == encoded, "{}: the encoder writes other bytes now", path.display());
    stored
}

#[test]
fn the_format_object_keeps_its_bytes() {
    for encrypted in [true, false] {
        let config = fixture::config(encrypted);
        let bytes = golden(encrypted, "format", &config.encode());
        assert_eq!(RepositoryConfig::decode(&bytes).unwrap(), config);
    }
}

#[test]
fn a_key_slot_keeps_its_bytes_and_opens_the_master_key() {
    let bytes = golden(true, "keys-slot", &fixture::slot());
    let config = fixture::config(true);
    let opened = KeyRing::encrypted(&config, open_slot(&config, &bytes, SECRET).unwrap()).unwrap();
    let id = |ring: &KeyRing| ring.chunk_id(BlobKind::Data, b"probe");
    assert_eq!(id(&opened), id(&fixture::ring(true)));
}

#[test]
fn log_entries_and_checkpoints_of_every_body_keep_their_bytes() {
    for encrypted in [true, false] {
        let (ring, config) = (fixture::ring(encrypted), fixture::config(encrypted));
        let mut state = State::new(&config);
        for (entry, encoded, after) in fixture::log(&ring, &config) {
            let seq = entry.seq;
            let bytes = golden(encrypted, &format!("log-{seq}"), &encoded);
            let opened = open_entry(&ring, seq, &bytes).unwrap();
            assert_eq!(opened, entry);
            state.apply(&opened, entry_hash(&bytes)).unwrap();
            assert_eq!(state, after);
            let salt = fixture::salt(&format!("ckpt {seq}"));
            let encoded = encode_checkpoint(&ring, salt, &state).unwrap();
            let bytes = golden(encrypted, &format!("ckpt-{seq}"), &encoded);
            assert_eq!(decode_checkpoint(&ring, seq, &bytes).unwrap(), state);
        }
    }
}

#[test]
fn packs_keep_their_bytes() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        for (name, pack) in
            [("pack-data", fixture::data_pack(&ring)), ("pack-meta", fixture::meta_pack(&ring))]
        {
            let bytes = golden(encrypted, name, &pack.bytes);
            assert_eq!(self_check(&ring, &bytes).unwrap(), pack.rows);
            assert_eq!(check_hash(&bytes).unwrap(), pack.hash);
            assert_eq!(PackHeader::decode(&bytes).unwrap(), pack.header);
        }
    }
}

#[test]
fn a_segment_keeps_its_bytes() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let bytes = golden(encrypted, "index-segment", &fixture::segment(&ring));
        let packs = decode_segment(&ring, fixture::segment_name(0), &bytes).unwrap();
        assert_eq!(packs, fixture::segment_packs(&ring));
    }
}

#[test]
fn a_heartbeat_keeps_its_bytes() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let beat = fixture::heartbeat();
        let encoded = seal_heartbeat(&ring, fixture::salt("hb"), &beat).unwrap();
        let bytes = golden(encrypted, "hb", &encoded);
        assert_eq!(open_heartbeat(&ring, beat.session, &bytes).unwrap(), beat);
    }
}

#[test]
fn a_tree_node_and_a_record_keep_their_bytes() {
    let ring = fixture::ring(true);
    let node = fixture::leaf(&ring);
    assert_eq!(Node::decode(&golden(true, "blob-node", &node.encode()), 0).unwrap(), node);
    let record = fixture::record(&ring);
    let bytes = golden(true, "blob-record.json", &record.encode().unwrap());
    assert_eq!(Record::decode(&bytes).unwrap(), record);
}

#[test]
fn every_object_can_be_scrubbed_without_a_key() {
    for name in ["format", "keys-slot", "log-1", "ckpt-1", "index-segment", "hb", "pack-data", "pack-meta"] {
        let mut bytes = std::fs::read(path(true, name)).unwrap();
        assert_eq!(scrub(&bytes).unwrap(), bytes[bytes.len() - 32..], "{name}");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(matches!(scrub(&bytes), Err(Error::Checksum { .. })), "{name}");
        assert!(matches!(scrub(&bytes[..9]), Err(Error::Truncated { .. })), "{name}");
    }
    assert!(matches!(scrub(b"something else entirely"), Err(Error::Magic { .. })));
    assert!(matches!(scrub(b"AQF"), Err(Error::Truncated { .. })));
}
