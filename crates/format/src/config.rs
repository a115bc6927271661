//! The `format` object: the few facts about a repository that never change.
//!
//! Not here: anything that a repository may learn later (features, writers, epochs): that is in the log.
//! The invariant: the object is bound by its fingerprint in every key slot, in log entry 1 and in every
//! checkpoint, so a forged one opens nothing. Layout: docs/FORMAT.md, "format".

use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::id::{RepositoryId, StoreId};
use crate::magic;
use crate::tree::FAN_OUT;

const OBJECT: &str = "format";
const BYTES: usize = 96;

/// What the `format` object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// Version of the format; 1.
    pub version: u32,
    /// The repository's id.
    pub repository: RepositoryId,
    /// Id of the store that holds the log.
    pub log_store: StoreId,
    /// Size of a chunk in bytes: a power of two from 64 KiB to 4 MiB.
    pub chunk_bytes: u32,
    /// Children of a tree node; 256.
    pub fan_out: u16,
    /// False for plain mode: checksums instead of authentication.
    pub encrypted: bool,
}

impl RepositoryConfig {
    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.extend_from_slice(&magic::FORMAT);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.repository.0);
        out.extend_from_slice(&self.log_store.0);
        out.extend_from_slice(&self.chunk_bytes.to_le_bytes());
        out.extend_from_slice(&self.fan_out.to_le_bytes());
        out.push(u8::from(self.encrypted));
        out.extend_from_slice(&[0; 9]);
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Reads the object.
    ///
    /// # Errors
    /// [`Error::Version`] for a newer format, [`Error::Feature`] for a required feature bit that is
    /// unknown, else a kind of corruption.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(OBJECT, bytes);
        cursor.magic(magic::FORMAT)?;
        let version = cursor.u32()?;
        let supported = u32::from(magic::VERSION);
        if version > supported {
            return Err(Error::Version { object: OBJECT, found: version, supported });
        }
        let required = cursor.u32()?;
        let config = Self {
            version,
            repository: RepositoryId(cursor.array()?),
            log_store: StoreId(cursor.array()?),
            chunk_bytes: cursor.u32()?,
            fan_out: cursor.u16()?,
            encrypted: match cursor.u8()? {
                0 => false,
                1 => true,
                other => return Err(cursor.field("encrypted", u64::from(other))),
            },
        };
        cursor.reserved(9)?;
        let hashed = bytes.len().saturating_sub(cursor.rest().len());
        let stored = cursor.array::<32>()?;
        cursor.end()?;
        if bytes.get(..hashed).map(blake3::hash) != Some(blake3::Hash::from_bytes(stored)) {
            return Err(Error::Checksum { object: OBJECT });
        }
        if required != 0 {
            return Err(Error::Feature { name: format!("format bits {required:#x}") });
        }
        config.check()?;
        Ok(config)
    }

    /// Checks the values against the limits of the format.
    ///
    /// # Errors
    /// [`Error::Field`] names the field that the format does not allow.
    pub fn check(&self) -> Result<()> {
        let wrong = |field, value| Err(Error::Field { object: OBJECT, field, value });
        let chunk = self.chunk_bytes;
        if !chunk.is_power_of_two() || !(magic::CHUNK_BYTES_MIN..=magic::CHUNK_BYTES_MAX).contains(&chunk) {
            return wrong("chunk_bytes", u64::from(chunk));
        }
        if usize::from(self.fan_out) != FAN_OUT {
            return wrong("fan_out", u64::from(self.fan_out));
        }
        if self.version != u32::from(magic::VERSION) {
            return wrong("version", u64::from(self.version));
        }
        Ok(())
    }

    /// BLAKE3 of the object's bytes: bound by key slots, log entry 1 and checkpoints.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RepositoryConfig {
        RepositoryConfig {
            version: 1,
            repository: RepositoryId([1; 16]),
            log_store: StoreId([2; 16]),
            chunk_bytes: 128 << 10,
            fan_out: 256,
            encrypted: true,
        }
    }

    #[test]
    fn the_object_round_trips_and_every_changed_byte_is_noticed() {
        let bytes = config().encode();
        assert_eq!(bytes.len(), BYTES);
        assert_eq!(RepositoryConfig::decode(&bytes).unwrap(), config());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(RepositoryConfig::decode(&bad).is_err(), "byte {at}");
        }
        for cut in 0..bytes.len() {
            assert!(RepositoryConfig::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_newer_version_says_so() {
        let newer = RepositoryConfig { version: 2, ..config() };
        assert!(matches!(
            RepositoryConfig::decode(&newer.encode()),
            Err(Error::Version { found: 2, supported: 1, .. })
        ));
    }

    #[test]
    fn a_required_feature_bit_is_refused_as_a_feature() {
        let mut bytes = config().encode();
        bytes[12] = 4;
        let hash = blake3::hash(&bytes[..64]);
        bytes[64..].copy_from_slice(hash.as_bytes());
        assert!(matches!(RepositoryConfig::decode(&bytes), Err(Error::Feature { .. })));
    }

    #[test]
    fn values_outside_the_format_are_refused() {
        for chunk_bytes in [0, 1, 32 << 10, 96 << 10, 8 << 20] {
            let bad = RepositoryConfig { chunk_bytes, ..config() };
            assert!(matches!(RepositoryConfig::decode(&bad.encode()), Err(Error::Field { .. })));
        }
        let bad = RepositoryConfig { fan_out: 16, ..config() };
        assert!(matches!(RepositoryConfig::decode(&bad.encode()), Err(Error::Field { .. })));
        let bad = RepositoryConfig { version: 0, ..config() };
        assert!(matches!(RepositoryConfig::decode(&bad.encode()), Err(Error::Field { .. })));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = config().encode();
        bytes.push(0);
        assert!(matches!(RepositoryConfig::decode(&bytes), Err(Error::Trailing { bytes: 1, .. })));
    }
}
