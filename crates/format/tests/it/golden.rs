//! Golden bytes: every kind of object as version 1 wrote it, under `tests/golden/v1/`.
//!
//! `encrypted/` and `plain/` are whole repositories in the layout of a local store, with one backup of
//! two disks; the passphrase is in [`SECRET`]. `loose/` has what belongs to no sane repository: an entry
//! with every kind of body. Decoding them is the promise; writing the same bytes again is checked too, so
//! that no change of the format goes unnoticed. After a deliberate change run the tests once with
//! `AQUIFER_BLESS=1` and review the files. A newer zstd may compress otherwise: then only the encoding
//! half may change.

use std::path::PathBuf;

use aquifer_format::*;

use crate::fixture::{self, BACKUP, SECRET};

fn path(folder: &str, key: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(folder).join(key)
}

fn folder(encrypted: bool) -> &'static str {
    if encrypted { "encrypted" } else { "plain" }
}

fn read(folder: &str, key: &str) -> Vec<u8> {
    let path = path(folder, key);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The golden bytes, after comparing them with what the encoder writes today.
fn golden(folder: &str, key: &str, encoded: &[u8]) -> Vec<u8> {
    if std::env::var_os("AQUIFER_BLESS").is_some() {
        let path = path(folder, key);
        std::fs::create_dir_all(path.parent().expect("a key is below its folder")).expect("it can be made");
        std::fs::write(&path, encoded).expect("the golden folder is writable");
    }
    let stored = read(folder, key);
    assert!(stored == encoded, "{folder}/{key}: the encoder writes other bytes now");
    stored
}

fn slot_key() -> String {
    key::slot(slot_id(&fixture::salt("slot")))
}

#[test]
fn the_format_object_keeps_its_bytes() {
    for encrypted in [true, false] {
        let config = fixture::config(encrypted);
        let bytes = golden(folder(encrypted), key::FORMAT, &config.encode());
        assert_eq!(RepositoryConfig::decode(&bytes).unwrap(), config);
    }
}

#[test]
fn a_key_slot_keeps_its_bytes_and_opens_the_master_key() {
    let bytes = golden("encrypted", &slot_key(), &fixture::slot());
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
            let place = |key: String| match seq {
                3 => ("loose", format!("{}-{}", folder(encrypted), key.replace('/', "-"))),
                _ => (folder(encrypted), key),
            };
            let (folder, key) = place(key::log(seq));
            let bytes = golden(folder, &key, &encoded);
            let opened = open_entry(&ring, seq, &bytes).unwrap();
            assert_eq!(opened, entry);
            state.apply(&opened, entry_hash(&bytes)).unwrap();
            assert_eq!(state, after);
            let salt = fixture::salt(&format!("ckpt {seq}"));
            let encoded = encode_checkpoint(&ring, salt, &state).unwrap();
            let (folder, key) = place(key::checkpoint(seq));
            let bytes = golden(folder, &key, &encoded);
            assert_eq!(decode_checkpoint(&ring, seq, &bytes).unwrap(), state);
        }
    }
}

#[test]
fn packs_keep_their_bytes() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        for pack in [fixture::data_pack(&ring), fixture::meta_pack(&ring)] {
            let bytes = golden(folder(encrypted), &key::pack(&pack.name), &pack.bytes);
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
        let name = fixture::segment_name(0);
        let bytes = golden(folder(encrypted), &key::segment(&name), &fixture::segment(&ring));
        let packs = decode_segment(&ring, name, &bytes).unwrap();
        assert_eq!(packs, fixture::segment_packs(&ring));
    }
}

#[test]
fn a_heartbeat_keeps_its_bytes() {
    for encrypted in [true, false] {
        let ring = fixture::ring(encrypted);
        let beat = fixture::heartbeat();
        let encoded = seal_heartbeat(&ring, fixture::salt("hb"), &beat).unwrap();
        let bytes = golden(folder(encrypted), &key::heartbeat(&beat.session), &encoded);
        assert_eq!(open_heartbeat(&ring, beat.session, &bytes).unwrap(), beat);
    }
}

#[test]
fn a_tree_node_and_a_record_keep_their_bytes() {
    let ring = fixture::ring(true);
    let node = fixture::leaf(&ring);
    assert_eq!(Node::decode(&golden("loose", "blob-node", &node.encode()), 0).unwrap(), node);
    let record = fixture::record(&ring);
    let bytes = golden("loose", "blob-record.json", &record.encode().unwrap());
    assert_eq!(Record::decode(&bytes).unwrap(), record);
}

/// Every blob of the golden packs, by id, through segments only.
fn blobs(ring: &KeyRing, folder: &str, state: &State) -> Vec<(ChunkId, Vec<u8>)> {
    let mut decompressor = Decompressor::new().expect("there is memory");
    let mut out = Vec::new();
    for segment in state.segments() {
        let bytes = read(folder, &key::segment(&segment.name));
        for listed in decode_segment(ring, segment.name, &bytes).expect("the golden segment opens") {
            let mut pack = read(folder, &key::pack(&listed.stored_as));
            let reader = PackReader::new(ring, &listed.header).expect("the ring has its key");
            for row in &listed.rows {
                let mut plain = vec![0; row.plain_bytes.try_into().expect("a blob is small")];
                let opened = reader.open(&mut decompressor, row, &mut pack[row.range()], &mut plain);
                opened.expect("the golden blob opens");
                out.push((row.id, plain));
            }
        }
    }
    out
}

#[test]
fn the_golden_repositories_restore_their_disks() {
    for encrypted in [true, false] {
        let folder = folder(encrypted);
        let config = RepositoryConfig::decode(&read(folder, key::FORMAT)).unwrap();
        let ring = match encrypted {
            true => {
                let master = open_slot(&config, &read(folder, &slot_key()), SECRET).unwrap();
                KeyRing::encrypted(&config, master).unwrap()
            }
            false => KeyRing::plain(&config).unwrap(),
        };
        let mut state = State::new(&config);
        for seq in [1, 2] {
            let bytes = read(folder, &key::log(seq));
            let entry = open_entry(&ring, seq, &bytes).unwrap();
            assert_eq!(state.apply(&entry, entry_hash(&bytes)).unwrap(), Applied::default());
        }
        let blobs = blobs(&ring, folder, &state);
        let blob = |id| &blobs.iter().find(|(found, _)| *found == id).unwrap().1;
        let record = Record::decode(blob(state.backups()[&BACKUP].record)).unwrap();
        assert_eq!(record.disks[1].root, None, "the second disk is all zero");
        let disk = &record.disks[0];
        let chunk_bytes = usize::try_from(config.chunk_bytes).unwrap();
        let mut image = vec![0; disk.size_bytes.try_into().unwrap()];
        assert_eq!(levels(disk.size_bytes.div_ceil(u64::from(config.chunk_bytes))), 1);
        for (slot, id) in Node::decode(blob(disk.root.unwrap()), 0).unwrap().iter() {
            let (at, chunk) = (usize::from(slot) * chunk_bytes, blob(id));
            image[at..at + chunk.len()].copy_from_slice(chunk);
        }
        let mut expected = vec![0; image.len()];
        for (slot, chunk) in [0, 1, 7].into_iter().zip(fixture::chunks()) {
            expected[slot * chunk_bytes..][..chunk.len()].copy_from_slice(&chunk);
        }
        assert!(image == expected);
        assert_eq!(chunk_bytes * 7 + 1024, image.len());
    }
}

#[test]
fn every_object_can_be_scrubbed_without_a_key() {
    let (pack, segment) = (fixture::pack_name(0), fixture::segment_name(0));
    let beat = key::heartbeat(&fixture::session(1));
    let keys = [slot_key(), key::log(1), key::checkpoint(1), key::segment(&segment), key::pack(&pack), beat];
    for key in keys.iter().map(String::as_str).chain([key::FORMAT]) {
        let mut bytes = read("encrypted", key);
        assert_eq!(scrub(&bytes).unwrap(), bytes[bytes.len() - 32..], "{key}");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(matches!(scrub(&bytes), Err(Error::Checksum { .. })), "{key}");
        assert!(matches!(scrub(&bytes[..9]), Err(Error::Truncated { .. })), "{key}");
    }
    assert!(matches!(scrub(b"something else entirely"), Err(Error::Magic { .. })));
    assert!(matches!(scrub(b"AQF"), Err(Error::Truncated { .. })));
}

/// Every string literal of the sources that is a context of a key or a signature.
fn contexts(folder: &std::path::Path, found: &mut Vec<String>) {
    for file in std::fs::read_dir(folder).expect("the sources are there") {
        let path = file.expect("the folder can be listed").path();
        if path.is_dir() {
            contexts(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("sources are text");
        let literals = text.split('"').filter(|part| part.starts_with("aquifer v1 ") && !part.contains('\n'));
        found.extend(literals.map(str::to_owned));
    }
}

#[test]
fn the_page_names_every_context_and_the_values_of_the_golden_files() {
    let crate_folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(crate_folder.join("../../docs/FORMAT.md")).unwrap();
    let mut expected = vec![
        EntryHash(fixture::config(true).fingerprint()).to_string(),
        entry_hash(&read("encrypted", &key::log(2))).to_string(),
        BACKUP.to_string(),
        fixture::segment_name(0).to_string(),
        String::from_utf8(SECRET.to_vec()).unwrap(),
    ];
    contexts(&crate_folder.join("src"), &mut expected);
    assert!(expected.len() >= 5 + 10, "the contexts were found: {expected:?}");
    for text in expected {
        assert!(page.contains(&text), "docs/FORMAT.md does not name {text}");
    }
}
