//! Damage: every byte of every object changed, every length cut, bytes appended.
//!
//! Each change is tried as it is, and again with the trailing hash set right, so that the checks behind
//! the checksum are reached: the object must fail to open, or open to what was written.

use aquifer_format::*;

use crate::fixture::{self, SECRET};
use crate::forge::rehash;

/// Changes each byte in turn; `same` tells whether the object still opens to the original.
fn every_byte(name: &str, bytes: &[u8], opens: &dyn Fn(&[u8]) -> Result<bool>) {
    assert!(opens(bytes).unwrap_or_else(|error| panic!("{name}: {error}")), "{name}");
    for at in 0..bytes.len() {
        for (flip, hash) in [(1, false), (0x80, false), (1, true), (0xff, true)] {
            let mut bad = bytes.to_vec();
            bad[at] ^= flip;
            if hash {
                rehash(&mut bad, true);
            }
            match opens(&bad) {
                Ok(same) => assert!(same && (hash || bad == bytes), "{name}: byte {at} changed unnoticed"),
                Err(error) => assert!(explains(&error), "{name}: byte {at}: {error:?}"),
            }
        }
    }
}

/// Damage is called damage, unless it makes the object look foreign or newer.
fn explains(error: &Error) -> bool {
    error.is_corrupt()
        || matches!(
            error,
            Error::Version { .. } | Error::Generation { .. } | Error::WrongSecret | Error::Kdf { .. }
        )
}

fn every_length(name: &str, bytes: &[u8], opens: &dyn Fn(&[u8]) -> Result<bool>) {
    for length in 0..bytes.len() {
        let mut cut = bytes[..length].to_vec();
        assert!(opens(&cut).is_err(), "{name}: cut to {length} bytes unnoticed");
        rehash(&mut cut, false);
        let same = cut == bytes;
        assert!(same || opens(&cut).is_err(), "{name}: cut to {length} bytes and re-hashed unnoticed");
    }
    for extra in [1, 16, 32] {
        let mut long = bytes.to_vec();
        long.extend_from_slice(&vec![0; extra]);
        assert!(opens(&long).is_err(), "{name}: {extra} bytes appended unnoticed");
        rehash(&mut long, false);
        assert!(opens(&long).is_err(), "{name}: {extra} bytes appended and re-hashed unnoticed");
    }
}

fn both(name: &str, bytes: &[u8], opens: &dyn Fn(&[u8]) -> Result<bool>) {
    every_byte(name, bytes, opens);
    every_length(name, bytes, opens);
}

#[test]
fn damage_of_a_key_slot_is_noticed() {
    let config = fixture::config(true);
    let id = |master: MasterKey| {
        KeyRing::encrypted(&config, master).map(|ring| ring.chunk_id(BlobKind::Data, b"probe"))
    };
    let expected = id(fixture::master()).unwrap();
    // A changed cost field would take real memory: those bytes are tested by their limits instead.
    let opens = |bytes: &[u8]| {
        let costly = bytes.get(12..24).is_some_and(|cost| cost != &fixture::slot()[12..24]);
        if costly { Err(Error::WrongSecret) } else { Ok(id(open_slot(&config, bytes, SECRET)?)? == expected) }
    };
    both("key slot", &fixture::slot(), &opens);
}

#[test]
fn damage_of_a_log_entry_is_noticed() {
    for encrypted in [true, false] {
        let (ring, config) = (fixture::ring(encrypted), fixture::config(encrypted));
        let (entry, bytes, _) = fixture::log(&ring, &config).remove(1);
        both("log entry", &bytes, &|bytes| Ok(open_entry(&ring, 2, bytes)? == entry));
    }
}

#[test]
fn damage_of_a_checkpoint_is_noticed() {
    for encrypted in [true, false] {
        let (ring, config) = (fixture::ring(encrypted), fixture::config(encrypted));
        let (_, _, state) = fixture::log(&ring, &config).remove(1);
        let bytes = encode_checkpoint(&ring, fixture::salt("ckpt"), &state).unwrap();
        both("checkpoint", &bytes, &|bytes| Ok(decode_checkpoint(&ring, 2, bytes)? == state));
    }
}

#[test]
fn damage_of_a_segment_is_noticed() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let packs = fixture::segment_packs(&ring);
        let opens = |bytes: &[u8]| Ok(decode_segment(&ring, fixture::segment_name(0), bytes)? == packs);
        both("segment", &fixture::segment(&ring), &opens);
    }
}

#[test]
fn damage_of_a_heartbeat_is_noticed() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let beat = fixture::heartbeat();
        let bytes = seal_heartbeat(&ring, fixture::salt("hb"), &beat).unwrap();
        both("heartbeat", &bytes, &|bytes| Ok(open_heartbeat(&ring, beat.session, bytes)? == beat));
    }
}

#[test]
fn damage_of_a_pack_is_noticed() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let pack = fixture::meta_pack(&ring);
        both("meta pack", &pack.bytes, &|bytes| Ok(self_check(&ring, bytes)? == pack.rows));
    }
}

#[test]
fn a_changed_byte_of_a_blob_is_noticed_by_its_reader() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let pack = fixture::data_pack(&ring);
        let reader = PackReader::new(&ring, &pack.header).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let row = pack.rows[2];
        let range = row.range();
        for at in 0..range.len() {
            let mut blob = pack.bytes[range.clone()].to_vec();
            blob[at] ^= 4;
            let error = reader.open(&mut decompressor, &row, &mut blob, &mut vec![0; 1024]).unwrap_err();
            if at < BLOB_FRAME_BYTES {
                assert!(matches!(error, Error::Frame { ordinal: 2, .. }), "{error}");
            } else {
                assert!(matches!(error, Error::Authentication { .. }), "{error}");
            }
        }
    }
}
