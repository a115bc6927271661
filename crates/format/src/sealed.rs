//! The envelope of small objects (log, ckpt, index, hb): header, one box, trailing BLAKE3.
//!
//! Not here: what the body means. The invariant: nothing is allocated before the header's plain length
//! passed the kind's limit, and the key string that names the object is part of its key and its AAD, so
//! an object that was moved or swapped does not open. docs/FORMAT.md, "Envelope".

use crate::cipher::{Origin, TAG_BYTES};
use crate::codec::{Codec, Compressor, Decompressor};
use crate::cursor::{Cursor, check_limit, hex, index, narrow, widen};
use crate::error::{Error, Result};
use crate::id::{RepositoryId, SegmentName, SessionId};
use crate::keys::{KeyRing, Purpose};
use crate::{key, magic};

/// Bytes of the trailing hash of every object.
pub(crate) const HASH_BYTES: usize = 32;
const HEADER_BYTES: usize = 96;
const LEVEL: i32 = 3;

/// Which object this is: its kind and its place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Log(u64),
    Checkpoint(u64),
    Segment(SegmentName),
    Heartbeat(SessionId),
}

impl Place {
    pub(crate) fn object(self) -> &'static str {
        match self {
            Self::Log(_) => "log entry",
            Self::Checkpoint(_) => "checkpoint",
            Self::Segment(_) => "segment",
            Self::Heartbeat(_) => "heartbeat",
        }
    }

    fn magic(self) -> [u8; 8] {
        match self {
            Self::Log(_) => magic::LOG,
            Self::Checkpoint(_) => magic::CHECKPOINT,
            Self::Segment(_) => magic::SEGMENT,
            Self::Heartbeat(_) => magic::HEARTBEAT,
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::Log(_) => Purpose::Log,
            Self::Checkpoint(_) => Purpose::Checkpoint,
            Self::Segment(_) => Purpose::Segment,
            Self::Heartbeat(_) => Purpose::Heartbeat,
        }
    }

    fn limit(self) -> u32 {
        match self {
            Self::Log(_) => magic::ENTRY_BYTES_MAX,
            Self::Checkpoint(_) => magic::CHECKPOINT_BYTES_MAX,
            Self::Segment(_) => magic::SEGMENT_BYTES_MAX,
            Self::Heartbeat(_) => magic::HEARTBEAT_BYTES_MAX,
        }
    }

    fn key(self) -> String {
        match self {
            Self::Log(seq) => key::log(seq),
            Self::Checkpoint(seq) => key::checkpoint(seq),
            Self::Segment(name) => key::segment(&name),
            Self::Heartbeat(session) => key::heartbeat(&session),
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Log(seq) | Self::Checkpoint(seq) => seq,
            Self::Segment(name) => u64::from(name.number),
            Self::Heartbeat(_) => 0,
        }
    }

    fn session(self) -> [u8; 16] {
        match self {
            Self::Log(_) | Self::Checkpoint(_) => [0; 16],
            Self::Segment(name) => name.session.0,
            Self::Heartbeat(session) => session.0,
        }
    }

    /// True where the `format` object's fingerprint is part of the AAD.
    fn binds_format(self) -> bool {
        matches!(self, Self::Log(1) | Self::Checkpoint(_))
    }
}

struct Header {
    sealed: bool,
    codec: Codec,
    generation: u32,
    salt: [u8; 32],
    plain_bytes: u32,
    stored_bytes: u32,
}

impl Header {
    fn encode(&self, place: Place, repository: RepositoryId) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + index(self.stored_bytes) + HASH_BYTES);
        out.extend_from_slice(&place.magic());
        out.extend_from_slice(&magic::VERSION.to_le_bytes());
        out.push(u8::from(self.sealed));
        out.push(self.codec.code());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&repository.0);
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.plain_bytes.to_le_bytes());
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&place.number().to_le_bytes());
        out.extend_from_slice(&place.session());
        out
    }

    fn decode(cursor: &mut Cursor<'_>, place: Place, repository: RepositoryId) -> Result<Self> {
        cursor.magic(place.magic())?;
        check_version(cursor, place.object())?;
        let sealed = match cursor.u8()? {
            0 => false,
            1 => true,
            other => return Err(cursor.field("mode", u64::from(other))),
        };
        let codec = cursor.u8()?;
        let codec = Codec::from_code(codec).ok_or_else(|| cursor.field("codec", u64::from(codec)))?;
        let generation = cursor.u32()?;
        let found_repository = RepositoryId(cursor.array()?);
        let salt = cursor.array()?;
        let plain_bytes = cursor.u32()?;
        let stored_bytes = cursor.u32()?;
        let (number, session) = (cursor.u64()?, cursor.array::<16>()?);
        if found_repository != repository || number != place.number() || session != place.session() {
            return Err(Error::Origin {
                object: place.object(),
                expected: format!("{} of repository {repository}", place.key()),
                found: format!(
                    "number {number:#x}, session {}, repository {found_repository}",
                    hex(&session)
                ),
            });
        }
        cursor.limit("plain_bytes", u64::from(plain_bytes), u64::from(place.limit()))?;
        Ok(Self { sealed, codec, generation, salt, plain_bytes, stored_bytes })
    }
}

/// Reads a version field and refuses all but the supported one.
pub(crate) fn check_version(cursor: &mut Cursor<'_>, object: &'static str) -> Result<()> {
    let version = cursor.u16()?;
    if version == magic::VERSION {
        Ok(())
    } else if version > magic::VERSION {
        let (found, supported) = (u32::from(version), u32::from(magic::VERSION));
        Err(Error::Version { object, found, supported })
    } else {
        Err(cursor.field("version", u64::from(version)))
    }
}

fn aad(ring: &KeyRing, place: Place, header: &[u8]) -> Vec<u8> {
    let key = place.key();
    let fingerprint = ring.fingerprint();
    let bound: &[u8] = if place.binds_format() { &fingerprint } else { &[] };
    [header, key.as_bytes(), bound].concat()
}

/// Builds the object at `place` from its plain body. `salt` is fresh and random for every call.
pub(crate) fn seal(ring: &KeyRing, place: Place, salt: [u8; 32], plain: &[u8]) -> Result<Vec<u8>> {
    let object = place.object();
    check_limit(object, "plain_bytes", widen(plain.len()), u64::from(place.limit()))?;
    let mut body = vec![0; plain.len()];
    let (codec, length) = Compressor::new(LEVEL)?.compress(plain, &mut body)?;
    body.truncate(length);
    let repository = ring.repository();
    let header = Header {
        sealed: !ring.is_plain(),
        codec,
        generation: ring.newest_generation(),
        salt,
        plain_bytes: narrow(object, "plain_bytes", plain.len())?,
        stored_bytes: narrow(object, "stored_bytes", length + TAG_BYTES)?,
    };
    let key = place.key();
    let origin = Origin { repository: &repository, key: &key, salt: &salt };
    let cipher = ring.cipher(object, place.purpose(), header.sealed, header.generation, &origin)?;
    let mut out = header.encode(place, repository);
    let tag = cipher.seal(0, &aad(ring, place, &out), &mut body);
    out.extend_from_slice(&body);
    out.extend_from_slice(&tag);
    append_hash(&mut out);
    Ok(out)
}

/// Opens the object at `place` and returns its plain body.
pub(crate) fn open(ring: &KeyRing, place: Place, bytes: &[u8]) -> Result<Vec<u8>> {
    let object = place.object();
    let (hashed, _) = split_hash(object, place.magic(), bytes)?;
    let mut cursor = Cursor::new(object, hashed);
    let repository = ring.repository();
    let header = Header::decode(&mut cursor, place, repository)?;
    let stored = cursor.take(index(header.stored_bytes))?;
    cursor.end()?;
    let key = place.key();
    let origin = Origin { repository: &repository, key: &key, salt: &header.salt };
    let cipher = ring.cipher(object, place.purpose(), header.sealed, header.generation, &origin)?;
    let mut stored = stored.to_vec();
    let body = cipher.open(object, 0, &aad(ring, place, &hashed[..HEADER_BYTES]), &mut stored)?;
    let mut plain = vec![0; index(header.plain_bytes)];
    Decompressor::new()?.decode(object, header.codec, body, &mut plain)?;
    Ok(plain)
}

/// Appends BLAKE3 of all bytes so far.
pub(crate) fn append_hash(out: &mut Vec<u8>) {
    let hash = blake3::hash(out);
    out.extend_from_slice(hash.as_bytes());
}

/// Checks magic and trailing hash; returns the bytes before the hash, and the hash.
pub(crate) fn split_hash<'a>(
    object: &'static str,
    magic: [u8; 8],
    bytes: &'a [u8],
) -> Result<(&'a [u8], [u8; 32])> {
    Cursor::new(object, bytes).magic(magic)?;
    check_trailing(object, bytes)
}

fn check_trailing<'a>(object: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], [u8; 32])> {
    let Some((hashed, stored)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        return Err(Error::Truncated { object, need: widen(HASH_BYTES), have: widen(bytes.len()) });
    };
    if blake3::hash(hashed) == blake3::Hash::from_bytes(*stored) {
        Ok((hashed, *stored))
    } else {
        Err(Error::Checksum { object })
    }
}

/// Checks any object of a repository without a key: every object ends in BLAKE3 of all bytes before.
///
/// Returns that hash. It proves that the bytes are as they were written, not who wrote them.
///
/// # Errors
/// [`Error::Magic`] when the bytes are no object of this format, [`Error::Truncated`] or
/// [`Error::Checksum`] when they are damaged.
pub fn scrub(bytes: &[u8]) -> Result<[u8; 32]> {
    const KINDS: [(&str, [u8; 8]); 7] = [
        ("format", magic::FORMAT),
        ("key slot", magic::SLOT),
        ("log entry", magic::LOG),
        ("checkpoint", magic::CHECKPOINT),
        ("segment", magic::SEGMENT),
        ("heartbeat", magic::HEARTBEAT),
        ("pack", magic::PACK),
    ];
    let found = Cursor::new("object", bytes).array::<8>()?;
    match KINDS.iter().find(|(_, magic)| *magic == found) {
        Some((object, _)) => check_trailing(object, bytes).map(|(_, hash)| hash),
        None => Err(Error::Magic { object: "object", found: hex(&found) }),
    }
}
