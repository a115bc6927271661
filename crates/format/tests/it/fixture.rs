//! One small repository, the same in every run: encrypted or plain.

use std::collections::BTreeMap;

use aquifer_format::log::{BlobPlace, Feature, KeyChange, Needs, Role, SessionKind};
use aquifer_format::*;
use uuid::Uuid;

pub(crate) const SECRET: &[u8] = b"correct horse battery staple";
pub(crate) const KDF: KdfParams = KdfParams { memory_kib: 32, passes: 1, lanes: 1 };
pub(crate) const EPOCH: EpochId = EpochId([0x55; 8]);
pub(crate) const PARENT: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
pub(crate) const BACKUP: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0002);
pub(crate) const CLOCK_MS: u64 = 1_790_000_000_000;

/// A salt, or any other 32 bytes, named by a label.
pub(crate) fn salt(label: &str) -> [u8; 32] {
    blake3::derive_key("aquifer test salt", label.as_bytes())
}

/// Bytes that nothing compresses.
pub(crate) fn noise(label: &str, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new_derive_key("aquifer test noise");
    hasher.update(label.as_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Bytes that zstd shrinks.
pub(crate) fn prose(length: usize) -> Vec<u8> {
    b"All work and no play makes Jack a dull boy. ".iter().copied().cycle().take(length).collect()
}

pub(crate) fn config(encrypted: bool) -> RepositoryConfig {
    RepositoryConfig {
        version: 1,
        repository: RepositoryId([0x11; 16]),
        log_store: StoreId([0x22; 16]),
        chunk_bytes: 64 << 10,
        fan_out: 256,
        encrypted,
    }
}

pub(crate) fn master() -> MasterKey {
    MasterKey::generate([0x33; 32])
}

pub(crate) fn ring(encrypted: bool) -> KeyRing {
    ring_of(&config(encrypted))
}

pub(crate) fn ring_of(config: &RepositoryConfig) -> KeyRing {
    let mut ring =
        if config.encrypted { KeyRing::encrypted(config, master()) } else { KeyRing::plain(config) }
            .expect("the fixture's configuration fits its key");
    ring.add_epoch(EPOCH);
    ring
}

pub(crate) fn signer() -> Signer {
    Signer::from_seed([0x44; 32]).expect("any 32 bytes are a seed")
}

/// The session whose `Open` lies in slot `seq`.
pub(crate) fn session(seq: u64) -> SessionId {
    SessionId::new([0x66; 10], seq)
}

pub(crate) fn pack_name(number: u32) -> PackName {
    PackName { session: session(1), number }
}

pub(crate) fn segment_name(number: u32) -> SegmentName {
    SegmentName { session: session(1), number }
}

/// The blobs of the data pack, and chunks 0, 1 and 7 of the disk: text, noise, a short last chunk.
pub(crate) fn chunks() -> Vec<Vec<u8>> {
    vec![prose(64 << 10), noise("chunk", 64 << 10), prose(1024)]
}

pub(crate) fn data_pack(ring: &KeyRing) -> FinishedPack {
    let mut compressor = Compressor::new(1).expect("zstd has level 1");
    let mut builder = PackBuilder::new(ring, pack_name(0), PackKind::Data, salt("data pack"), 1 << 20)
        .expect("the ring knows an epoch");
    for chunk in chunks() {
        let id = ring.chunk_id(BlobKind::Data, &chunk);
        builder.push(&mut compressor, BlobKind::Data, &id, &chunk).expect("three chunks fit");
    }
    builder.finish().expect("the pack has blobs")
}

/// A leaf that names the data pack's chunks at slots 0, 1 and 7.
pub(crate) fn leaf(ring: &KeyRing) -> Node {
    let mut node = Node::new(0);
    for (slot, chunk) in [0, 1, 7].into_iter().zip(chunks()) {
        node.set(slot, Some(ring.chunk_id(BlobKind::Data, &chunk)));
    }
    node
}

pub(crate) fn record(ring: &KeyRing) -> Record {
    let disk = DiskRecord {
        name: "vda".to_owned(),
        node: "libvirt-1-format".to_owned(),
        size_bytes: 7 * (64 << 10) + 1024,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        root: Some(ring.chunk_id(BlobKind::Tree, &leaf(ring).encode())),
        bitmap: Some(BitmapRecord { name: "aqf-test".to_owned(), granularity_bytes: 65_536 }),
        mode: Mode::Full,
        reason: None,
        read_bytes: 132_096,
        new_bytes: 132_096,
        dedup_bytes: 0,
        zero_bytes: 5 << 16,
        stored_bytes: 66_000,
    };
    let empty = DiskRecord { name: "vdb".to_owned(), root: None, bitmap: None, ..disk.clone() };
    Record {
        version: 1,
        backup: BACKUP,
        parent: None,
        domain: DomainRecord { uuid: Some(PARENT), name: "web".to_owned(), host: "host1".to_owned() },
        created_ms: CLOCK_MS,
        description: "before the upgrade".to_owned(),
        disks: vec![disk, empty],
        definition: Some(Definition {
            kind: DefinitionKind::Xml,
            bytes: b"<domain type='kvm'><name>web</name></domain>".to_vec(),
        }),
        quiesce: QuiesceRecord { quiesced: true, frozen_ms: Some(12), detail: None },
        tool: "aquifer 0.1.0".to_owned(),
        labels: BTreeMap::from([("tier".to_owned(), "gold".to_owned())]),
        namespace: None,
        external: false,
    }
}

pub(crate) fn meta_pack(ring: &KeyRing) -> FinishedPack {
    let mut compressor = Compressor::new(1).expect("zstd has level 1");
    let mut builder = PackBuilder::new(ring, pack_name(1), PackKind::Meta, salt("meta pack"), 0)
        .expect("the ring knows an epoch");
    let node = leaf(ring).encode();
    let record = record(ring).encode().expect("the record is small");
    for (kind, plain) in [(BlobKind::Tree, node), (BlobKind::Record, record)] {
        let id = ring.chunk_id(kind, &plain);
        builder.push(&mut compressor, kind, &id, &plain).expect("two blobs fit");
    }
    builder.finish().expect("the pack has blobs")
}

pub(crate) fn as_segment_pack(pack: &FinishedPack) -> SegmentPack {
    SegmentPack {
        name: pack.name,
        stored_as: pack.name,
        bytes: pack.bytes.len().try_into().expect("a pack is small"),
        kind: pack.kind,
        header: pack.header,
        hash: pack.hash,
        rows: pack.rows.clone(),
    }
}

pub(crate) fn segment_packs(ring: &KeyRing) -> Vec<SegmentPack> {
    vec![as_segment_pack(&data_pack(ring)), as_segment_pack(&meta_pack(ring))]
}

pub(crate) fn segment(ring: &KeyRing) -> Vec<u8> {
    encode_segment(ring, segment_name(0), salt("segment"), &segment_packs(ring)).expect("two packs fit")
}

pub(crate) fn slot() -> Vec<u8> {
    seal_slot(&config(true), &master(), SECRET, KDF, salt("slot")).expect("the cost is allowed")
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        session: session(1),
        beat: 7,
        wall_ms: CLOCK_MS,
        host: "host1".to_owned(),
        note: "vda 40 %".to_owned(),
    }
}

/// The opening of a backup session in slot `seq`.
pub(crate) fn open_body(seq: u64, backup: Uuid, pins: Vec<Uuid>) -> Body {
    Body::Open {
        session: session(seq),
        kind: SessionKind::Backup,
        domain: Some("web".to_owned()),
        backup: Some(backup),
        pins,
        host: "host1".to_owned(),
    }
}

/// Three entries that hold every kind of body: keys and an open session; a backup; the rest.
pub(crate) fn bodies(ring: &KeyRing) -> Vec<Vec<Body>> {
    let record_bytes = record(ring).encode().expect("the record is small");
    vec![
        vec![
            Body::Key(KeyChange::Epoch { id: EPOCH }),
            Body::Key(KeyChange::Writer { id: signer().writer(), role: Role::Admin }),
            open_body(1, BACKUP, vec![]),
        ],
        vec![
            Body::Publish { session: session(1), segments: vec![segment_name(0)] },
            Body::Commit {
                session: session(1),
                summary: record(ring).summary(),
                record: ring.chunk_id(BlobKind::Record, &record_bytes),
            },
            Body::Close { session: session(1) },
        ],
        vec![
            open_body(3, PARENT, vec![BACKUP]),
            Body::Forget { backups: vec![BACKUP], not_before_ms: CLOCK_MS + 1 },
            Body::Unforget { backups: vec![BACKUP] },
            Body::Condemn { packs: vec![pack_name(0), pack_name(1)], dropped: vec![] },
            Body::Reaped { packs: vec![pack_name(0)] },
            Body::Reindex {
                old: vec![segment_name(0)],
                new: vec![SegmentName { session: session(3), number: 0 }],
                dropped: vec![pack_name(0)],
            },
            Body::Quarantine {
                packs: vec![pack_name(9)],
                blobs: vec![BlobPlace { pack: pack_name(8), id: ChunkId([0xcc; 32]) }],
            },
            Body::Config { features: vec![Feature { name: "parity".to_owned(), needs: Needs::Write }] },
            Body::Fence { session: session(3), seen: 7 },
            Body::Truncate { floor: 2 },
            Body::Moved { log_store: StoreId([0x99; 16]) },
        ],
    ]
}

/// The log: each entry, its object, and the state after it.
pub(crate) fn log(ring: &KeyRing, config: &RepositoryConfig) -> Vec<(Entry, Vec<u8>, State)> {
    let mut state = State::new(config);
    let mut out = Vec::new();
    for bodies in bodies(ring) {
        let entry = next_entry(&state, bodies);
        let sealed = seal_entry(ring, &signer(), salt(&format!("log {}", entry.seq)), &entry);
        let bytes = sealed.expect("the entry is small");
        let applied = state.apply(&entry, entry_hash(&bytes)).expect("the entry is the next one");
        assert_eq!(applied.void, [], "no body of the fixture is void");
        out.push((entry, bytes, state.clone()));
    }
    out
}

/// An entry that follows `state`.
pub(crate) fn next_entry(state: &State, bodies: Vec<Body>) -> Entry {
    Entry {
        seq: state.seq() + 1,
        prev: state.tip(),
        writer: signer().writer(),
        nonce: EntryNonce([0x77; 16]),
        wall_ms: CLOCK_MS,
        bodies,
    }
}
