//! Feeds any bytes to every decoder of the crate. None may panic; what opens must be valid again.

use aquifer_format::*;

use crate::forge::{Envelope, rehash};

const REPOSITORY: [u8; 16] = [0x11; 16];
const SESSION: [u8; 16] = [0x66; 16];

fn config(encrypted: bool) -> RepositoryConfig {
    RepositoryConfig {
        version: 1,
        repository: RepositoryId(REPOSITORY),
        log_store: StoreId([0x22; 16]),
        chunk_bytes: 64 << 10,
        fan_out: 256,
        encrypted,
    }
}

/// As they are: through all decoders, with and without a key, and with the trailing hash set right.
pub(crate) fn objects(data: &[u8]) {
    let mut hashed = data.to_vec();
    rehash(&mut hashed, true);
    let plain = KeyRing::plain(&config(false)).expect("the configuration is plain");
    let sealed = KeyRing::encrypted(&config(true), MasterKey::generate([0x33; 32])).expect("it is encrypted");
    for bytes in [data, &hashed] {
        let _ = scrub(bytes);
        slot(bytes);
        if let Ok(config) = RepositoryConfig::decode(bytes) {
            assert_eq!(config.encode(), bytes);
        }
        for ring in [&plain, &sealed] {
            sealed_objects(ring, bytes);
            packs(ring, bytes);
        }
    }
    blobs(data);
}

/// Key slots, unless their Argon2id cost is allowed but slow.
fn slot(bytes: &[u8]) {
    let cost = |at: usize| {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|field| u32::from_le_bytes(*field))
    };
    let (memory, passes) = (cost(12).unwrap_or_default(), cost(16).unwrap_or_default());
    if !(1024..=1 << 20).contains(&memory) && !(8..=64).contains(&passes) {
        let _ = open_slot(&config(true), bytes, b"secret");
    }
}

fn sealed_objects(ring: &KeyRing, bytes: &[u8]) {
    let session = SessionId(SESSION);
    for seq in [1, 2] {
        let _ = open_entry(ring, seq, bytes);
        let _ = decode_checkpoint(ring, seq, bytes);
    }
    let _ = decode_segment(ring, SegmentName { session, number: 0 }, bytes);
    let _ = open_heartbeat(ring, session, bytes);
}

fn packs(ring: &KeyRing, bytes: &[u8]) {
    let _ = check_hash(bytes);
    let _ = self_check(ring, bytes);
    let _ = salvage(ring, bytes);
    if let Some((_, tail)) = bytes.split_last_chunk::<FOOTER_BYTES>() {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let _ = decode_footer(tail, length);
    }
}

/// Plain bytes of meta blobs; what decodes must encode to the same bytes (nodes) or value (records).
pub(crate) fn blobs(data: &[u8]) {
    for level in 0..8 {
        if let Ok(node) = Node::decode(data, level) {
            assert_eq!(node.encode(), data);
        }
    }
    if let Ok(record) = Record::decode(data)
        && let Ok(bytes) = record.encode()
    {
        assert_eq!(Record::decode(&bytes).ok(), Some(record));
    }
}

fn place<'a>(
    magic: &'a [u8; 8],
    key: String,
    number: u64,
    session: [u8; 16],
    bound: &'a [u8],
) -> Envelope<'a> {
    Envelope { magic, key, number, session, repository: REPOSITORY, bound }
}

/// As the body behind right checksums: reaches the parsers of JSON documents and segments.
pub(crate) fn bodies(data: &[u8]) {
    let ring = KeyRing::plain(&config(false)).expect("the configuration is plain");
    let fingerprint = config(false).fingerprint();
    let zeros = [0; 16];
    let session = SessionId(SESSION);
    let segment = SegmentName { session, number: 0 };
    let _ = open_entry(&ring, 2, &place(b"AQF-LOG\n", key::log(2), 2, zeros, &[]).raw(data));
    let signed = [&[0; 64][..], data].concat();
    let _ = open_entry(&ring, 1, &place(b"AQF-LOG\n", key::log(1), 1, zeros, &fingerprint).raw(&signed));
    let checkpoint = place(b"AQF-CKPT", key::checkpoint(2), 2, zeros, &fingerprint).raw(data);
    if let Ok(state) = decode_checkpoint(&ring, 2, &checkpoint) {
        let again = encode_checkpoint(&ring, [0; 32], &state).expect("it was small enough to read");
        assert_eq!(decode_checkpoint(&ring, 2, &again).ok(), Some(state));
    }
    let object = place(b"AQF-INDX", key::segment(&segment), 0, SESSION, &[]);
    if let Ok(packs) = decode_segment(&ring, segment, &object.raw(data)) {
        let again = encode_segment(&ring, segment, [0; 32], &packs).expect("it was small enough to read");
        assert_eq!(decode_segment(&ring, segment, &again).ok(), Some(packs));
    }
    let beat = place(b"AQF-BEAT", key::heartbeat(&session), 0, SESSION, &[]);
    let _ = open_heartbeat(&ring, session, &beat.raw(data));
    if let Some((length, body)) = data.split_first_chunk::<3>() {
        let plain_bytes = u32::from_le_bytes([length[0], length[1], length[2] & 0x0f, 0]);
        let _ = open_heartbeat(&ring, session, &beat.forge(1, plain_bytes & 0xffff, body));
        let _ = open_entry(
            &ring,
            2,
            &place(b"AQF-LOG\n", key::log(2), 2, zeros, &[]).forge(1, plain_bytes, body),
        );
    }
}
