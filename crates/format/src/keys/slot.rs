//! Key slots: the master key sealed under a secret through Argon2id.
//!
//! Not here: where secrets come from (passphrase, key file, recovery key: all are bytes). The invariant:
//! a slot is bound to its repository, to the whole `format` object and to its own object key, and its
//! Argon2id cost is checked before memory is taken. docs/FORMAT.md, "keys/".

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::MasterKey;
use crate::cipher::{Cipher, Origin, TAG_BYTES};
use crate::config::RepositoryConfig;
use crate::cursor::{Cursor, check_limit, index, narrow, widen};
use crate::error::{Error, Result};
use crate::id::{RepositoryId, SlotId};
use crate::sealed::{HASH_BYTES, append_hash, split_hash};
use crate::{key, magic};

const OBJECT: &str = "key slot";
const HEADER_BYTES: usize = 108;
const KDF_ARGON2ID: u8 = 1;
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;
const KEY_BYTES: usize = 32;

/// Cost of turning a secret into a key (Argon2id version 0x13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory in KiB, at least 8 a lane and at most 1 GiB.
    pub memory_kib: u32,
    /// Passes over the memory, at most 64.
    pub passes: u32,
    /// Lanes, at most 16.
    pub lanes: u32,
}

impl Default for KdfParams {
    /// 64 MiB, 3 passes, 4 lanes: the second recommended choice of RFC 9106, within a job's memory budget.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl KdfParams {
    fn check(self) -> Result<()> {
        let limit =
            |field, value: u32, limit: u32| check_limit(OBJECT, field, u64::from(value), u64::from(limit));
        limit("memory_kib", self.memory_kib, MEMORY_KIB_MAX)?;
        limit("passes", self.passes, PASSES_MAX)?;
        limit("lanes", self.lanes, LANES_MAX)
    }

    fn derive(self, secret: &[u8], salt: &[u8; 32]) -> Result<Zeroizing<[u8; KEY_BYTES]>> {
        let Self { memory_kib, passes, lanes } = self;
        let failed = |_| Error::Kdf { memory_kib, passes, lanes };
        let params = Params::new(memory_kib, passes, lanes, Some(KEY_BYTES)).map_err(failed)?;
        let mut out = Zeroizing::new([0; KEY_BYTES]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(secret, salt, out.as_mut_slice())
            .map_err(failed)?;
        Ok(out)
    }
}

/// The name of the slot that has this salt: its first 8 bytes. The object key is `keys/<slot id>`.
#[must_use]
pub fn slot_id(salt: &[u8; 32]) -> SlotId {
    let mut id = [0; 8];
    id.copy_from_slice(&salt[..8]);
    SlotId(id)
}

struct Header {
    kdf: KdfParams,
    repository: RepositoryId,
    fingerprint: [u8; 32],
    salt: [u8; 32],
    stored_bytes: u32,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&magic::SLOT);
        out.extend_from_slice(&magic::VERSION.to_le_bytes());
        out.extend_from_slice(&[KDF_ARGON2ID, 0]);
        out.extend_from_slice(&self.kdf.memory_kib.to_le_bytes());
        out.extend_from_slice(&self.kdf.passes.to_le_bytes());
        out.extend_from_slice(&self.kdf.lanes.to_le_bytes());
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.repository.0);
        out.extend_from_slice(&self.fingerprint);
        out.extend_from_slice(&self.salt);
        out
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        cursor.magic(magic::SLOT)?;
        let version = cursor.u16()?;
        if version > magic::VERSION {
            let (found, supported) = (u32::from(version), u32::from(magic::VERSION));
            return Err(Error::Version { object: OBJECT, found, supported });
        }
        if version != magic::VERSION {
            return Err(cursor.field("version", u64::from(version)));
        }
        let kdf = cursor.u8()?;
        if kdf != KDF_ARGON2ID {
            return Err(cursor.field("kdf", u64::from(kdf)));
        }
        cursor.reserved(1)?;
        Ok(Self {
            kdf: KdfParams { memory_kib: cursor.u32()?, passes: cursor.u32()?, lanes: cursor.u32()? },
            stored_bytes: cursor.u32()?,
            repository: RepositoryId(cursor.array()?),
            fingerprint: cursor.array()?,
            salt: cursor.array()?,
        })
    }

    /// The slot's cipher and AAD.
    fn cipher(&self, secret: &[u8], encoded: &[u8]) -> Result<(Cipher, Vec<u8>)> {
        self.kdf.check()?;
        let derived = self.kdf.derive(secret, &self.salt)?;
        let key = key::slot(slot_id(&self.salt));
        let origin = Origin { repository: &self.repository, key: &key, salt: &self.salt };
        let aad = [encoded, key.as_bytes()].concat();
        Ok((Cipher::new(Some(&derived), &origin), aad))
    }
}

/// Seals the master key under a secret. The object's key is `keys/` and [`slot_id`] of the salt.
///
/// # Errors
/// [`Error::Limit`] or [`Error::Kdf`] when the cost is out of range.
pub fn seal_slot(
    config: &RepositoryConfig,
    master: &MasterKey,
    secret: &[u8],
    kdf: KdfParams,
    salt: [u8; 32],
) -> Result<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(4 + master.generations().len() * KEY_BYTES));
    body.extend_from_slice(&narrow(OBJECT, "generations", master.generations().len())?.to_le_bytes());
    for generation in master.generations() {
        body.extend_from_slice(generation.as_slice());
    }
    let header = Header {
        kdf,
        repository: config.repository,
        fingerprint: config.fingerprint(),
        salt,
        stored_bytes: narrow(OBJECT, "stored_bytes", body.len() + TAG_BYTES)?,
    };
    let mut out = header.encode();
    let (cipher, aad) = header.cipher(secret, &out)?;
    let tag = cipher.seal(0, &aad, &mut body);
    out.extend_from_slice(&body);
    out.extend_from_slice(&tag);
    append_hash(&mut out);
    Ok(out)
}

/// Opens a slot with a secret.
///
/// # Errors
/// [`Error::WrongSecret`] when the slot is whole but this secret is not its own; [`Error::Origin`] when the
/// slot belongs to another repository or the `format` object was changed; else a kind of corruption.
pub fn open_slot(config: &RepositoryConfig, bytes: &[u8], secret: &[u8]) -> Result<MasterKey> {
    let limit = HEADER_BYTES + 4 + magic::GENERATIONS_MAX * KEY_BYTES + TAG_BYTES + HASH_BYTES;
    check_limit(OBJECT, "object bytes", widen(bytes.len()), widen(limit))?;
    let (body, _) = split_hash(OBJECT, magic::SLOT, bytes)?;
    let mut cursor = Cursor::new(OBJECT, body);
    let header = Header::decode(&mut cursor)?;
    if header.repository != config.repository || header.fingerprint != config.fingerprint() {
        return Err(Error::Origin {
            object: OBJECT,
            expected: format!("of repository {} with its format object", config.repository),
            found: format!("of repository {} with another format object", header.repository),
        });
    }
    let mut sealed = Zeroizing::new(cursor.take(index(header.stored_bytes))?.to_vec());
    cursor.end()?;
    let (cipher, aad) = header.cipher(secret, &body[..HEADER_BYTES])?;
    let plain = cipher.open(OBJECT, 0, &aad, &mut sealed).map_err(|error| match error {
        Error::Authentication { .. } => Error::WrongSecret,
        other => other,
    })?;
    read_generations(plain)
}

fn read_generations(plain: &[u8]) -> Result<MasterKey> {
    let mut cursor = Cursor::new(OBJECT, plain);
    let count = cursor.u32()?;
    cursor.limit("generations", u64::from(count), widen(magic::GENERATIONS_MAX))?;
    let mut generations = Vec::with_capacity(index(count));
    for _ in 0..count {
        generations.push(Zeroizing::new(cursor.array()?));
    }
    cursor.end()?;
    MasterKey::from_generations(generations)
}
