//! Master key, the keys derived from it, and the ring that a running program holds.
//!
//! Not here: how a secret opens a slot ([`slot`]) and how entries are signed ([`signer`]). The invariant:
//! key bytes leave this module only as a ready cipher or as a slot's sealed body, and are wiped on drop.
//! docs/FORMAT.md, "Keys".

pub mod signer;
pub mod slot;

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::cipher::{Cipher, Origin};
use crate::config::RepositoryConfig;
use crate::error::{Error, Result};
use crate::id::{ChunkId, EpochId, RepositoryId};
use crate::magic;
use crate::pack::BlobKind;

pub use signer::Signer;
pub use slot::{KdfParams, open_slot, seal_slot, slot_id};

/// Epoch that pack headers carry in plain mode.
pub(crate) const PLAIN_EPOCH: EpochId = EpochId([0; 8]);

type KeyBytes = Zeroizing<[u8; 32]>;

/// The root of all keys of one repository: one or more generations of 32 random bytes.
///
/// Generation 1 names chunks for as long as the repository lives; the newest generation seals.
#[derive(Clone)]
pub struct MasterKey {
    generations: Vec<KeyBytes>,
}

impl MasterKey {
    /// A new master key of one generation.
    #[must_use]
    pub fn generate(random: [u8; 32]) -> Self {
        Self { generations: vec![Zeroizing::new(random)] }
    }

    /// The generations, oldest first, as a slot stores them.
    pub(crate) fn from_generations(generations: Vec<KeyBytes>) -> Result<Self> {
        const OBJECT: &str = "key slot";
        let count = crate::cursor::widen(generations.len());
        if generations.is_empty() {
            return Err(Error::Field { object: OBJECT, field: "generations", value: 0 });
        }
        crate::cursor::check_limit(
            OBJECT,
            "generations",
            count,
            crate::cursor::widen(magic::GENERATIONS_MAX),
        )?;
        Ok(Self { generations })
    }

    pub(crate) fn generations(&self) -> &[KeyBytes] {
        &self.generations
    }

    /// Number of the generation that seals new objects; the first is 1.
    fn newest(&self) -> u32 {
        u32::try_from(self.generations.len()).unwrap_or(u32::MAX)
    }

    fn generation(&self, object: &'static str, number: u32) -> Result<&KeyBytes> {
        let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        at.and_then(|at| self.generations.get(at)).ok_or(Error::Generation {
            object,
            found: number,
            held: self.newest(),
        })
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({} generations)", self.generations.len())
    }
}

/// What a base key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Log,
    Checkpoint,
    Segment,
    Heartbeat,
    Data(EpochId),
}

impl Purpose {
    fn context(self) -> &'static str {
        match self {
            Self::Log => "aquifer v1 2026-11 log",
            Self::Checkpoint => "aquifer v1 2026-11 checkpoint",
            Self::Segment => "aquifer v1 2026-11 segment",
            Self::Heartbeat => "aquifer v1 2026-11 heartbeat",
            Self::Data(_) => "aquifer v1 2026-11 data epoch",
        }
    }

    fn base(self, master: &[u8; 32]) -> KeyBytes {
        let mut hasher = blake3::Hasher::new_derive_key(self.context());
        hasher.update(master);
        if let Self::Data(epoch) = self {
            hasher.update(&epoch.0);
        }
        Zeroizing::new(*hasher.finalize().as_bytes())
    }
}

fn chunk_id_context(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Data => "aquifer v1 2026-11 chunk id data",
        BlobKind::Tree => "aquifer v1 2026-11 chunk id tree",
        BlobKind::Record => "aquifer v1 2026-11 chunk id record",
    }
}

/// All keys that a program needs for one repository; clones share them.
///
/// In plain mode the ring holds no secret, and objects carry checksums instead of authentication.
#[derive(Clone)]
pub struct KeyRing {
    inner: Arc<Inner>,
    epoch: Option<EpochId>,
}

struct Inner {
    repository: RepositoryId,
    fingerprint: [u8; 32],
    master: Option<MasterKey>,
    chunk_id_keys: [KeyBytes; 3],
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("repository", &self.inner.repository)
            .field("plain", &self.is_plain())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl KeyRing {
    /// The ring of a plain repository.
    ///
    /// # Errors
    /// [`Error::SecretNeeded`] when the repository is encrypted.
    pub fn plain(config: &RepositoryConfig) -> Result<Self> {
        if config.encrypted { Err(Error::SecretNeeded) } else { Ok(Self::new(config, None)) }
    }

    /// The ring of an encrypted repository.
    ///
    /// # Errors
    /// [`Error::Downgrade`] when the repository says that it is plain: a configured key refuses it.
    pub fn encrypted(config: &RepositoryConfig, master: MasterKey) -> Result<Self> {
        if config.encrypted { Ok(Self::new(config, Some(master))) } else { Err(Error::Downgrade) }
    }

    fn new(config: &RepositoryConfig, master: Option<MasterKey>) -> Self {
        let first = master.as_ref().and_then(|master| master.generations().first());
        let id_root = first.cloned().unwrap_or_else(|| Zeroizing::new([0; 32]));
        let chunk_id_keys = BlobKind::ALL
            .map(|kind| Zeroizing::new(blake3::derive_key(chunk_id_context(kind), id_root.as_slice())));
        let inner =
            Inner { repository: config.repository, fingerprint: config.fingerprint(), master, chunk_id_keys };
        Self { inner: Arc::new(inner), epoch: None }
    }

    /// Makes `epoch` the one under which new packs are sealed. Clones made before keep theirs.
    ///
    /// Reading needs no epoch to be added: a pack's header names its own.
    pub fn add_epoch(&mut self, epoch: EpochId) {
        self.epoch = Some(epoch);
    }

    /// The epoch under which new packs are sealed.
    #[must_use]
    pub fn current_epoch(&self) -> Option<EpochId> {
        self.epoch
    }

    /// Names a blob: BLAKE3 of its plain bytes under the id key of its kind.
    #[must_use]
    pub fn chunk_id(&self, kind: BlobKind, plain: &[u8]) -> ChunkId {
        let key = &self.inner.chunk_id_keys[usize::from(kind.code())];
        ChunkId(*blake3::keyed_hash(key, plain).as_bytes())
    }

    /// True when the repository is not encrypted.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.inner.master.is_none()
    }

    /// The repository that this ring belongs to.
    #[must_use]
    pub fn repository(&self) -> RepositoryId {
        self.inner.repository
    }

    /// BLAKE3 of the repository's `format` object.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.inner.fingerprint
    }

    /// Generation that seals new objects; 0 in plain mode.
    pub(crate) fn newest_generation(&self) -> u32 {
        self.inner.master.as_ref().map_or(0, MasterKey::newest)
    }

    /// Epoch for a new pack.
    pub(crate) fn writing_epoch(&self) -> Result<EpochId> {
        if self.is_plain() { Ok(PLAIN_EPOCH) } else { self.epoch.ok_or(Error::NoEpoch) }
    }

    /// The cipher of one object. `sealed` is what the object's header says about its mode.
    pub(crate) fn cipher(
        &self,
        object: &'static str,
        purpose: Purpose,
        sealed: bool,
        generation: u32,
        origin: &Origin<'_>,
    ) -> Result<Cipher> {
        match &self.inner.master {
            None if sealed => Err(Error::Mode { object, found_sealed: true }),
            None if generation != 0 => {
                Err(Error::Field { object, field: "generation", value: u64::from(generation) })
            }
            None => Ok(Cipher::new(None, origin)),
            Some(_) if !sealed => Err(Error::Mode { object, found_sealed: false }),
            Some(master) => {
                let base = purpose.base(master.generation(object, generation)?);
                Ok(Cipher::new(Some(&base), origin))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StoreId;

    fn config(encrypted: bool) -> RepositoryConfig {
        RepositoryConfig {
            version: 1,
            repository: RepositoryId([1; 16]),
            log_store: StoreId([2; 16]),
            chunk_bytes: 128 << 10,
            fan_out: 256,
            encrypted,
        }
    }

    #[test]
    fn a_configured_key_refuses_a_plain_repository_and_the_reverse() {
        let master = MasterKey::generate([3; 32]);
        assert!(matches!(KeyRing::encrypted(&config(false), master), Err(Error::Downgrade)));
        assert!(matches!(KeyRing::plain(&config(true)), Err(Error::SecretNeeded)));
    }

    #[test]
    fn chunk_ids_depend_on_kind_bytes_and_key() {
        let ring = KeyRing::encrypted(&config(true), MasterKey::generate([3; 32])).unwrap();
        let other = KeyRing::encrypted(&config(true), MasterKey::generate([4; 32])).unwrap();
        let id = ring.chunk_id(BlobKind::Data, b"x");
        assert_eq!(id, ring.clone().chunk_id(BlobKind::Data, b"x"));
        assert_ne!(id, ring.chunk_id(BlobKind::Tree, b"x"));
        assert_ne!(id, ring.chunk_id(BlobKind::Data, b"y"));
        assert_ne!(id, other.chunk_id(BlobKind::Data, b"x"));
    }

    #[test]
    fn nothing_is_sealed_before_an_epoch_is_known() {
        let mut ring = KeyRing::encrypted(&config(true), MasterKey::generate([3; 32])).unwrap();
        assert!(matches!(ring.writing_epoch(), Err(Error::NoEpoch)));
        ring.add_epoch(EpochId([5; 8]));
        assert_eq!(ring.writing_epoch().unwrap(), EpochId([5; 8]));
        assert_eq!(KeyRing::plain(&config(false)).unwrap().writing_epoch().unwrap(), PLAIN_EPOCH);
    }

    #[test]
    fn an_unknown_generation_names_how_many_are_held() {
        let ring = KeyRing::encrypted(&config(true), MasterKey::generate([3; 32])).unwrap();
        let origin = Origin { repository: &RepositoryId([1; 16]), key: "log/1", salt: &[0; 32] };
        for generation in [0, 2, u32::MAX] {
            let error = ring.cipher("log entry", Purpose::Log, true, generation, &origin).unwrap_err();
            assert!(matches!(error, Error::Generation { held: 1, .. }), "{error}");
        }
    }

    #[test]
    fn debug_output_shows_no_key() {
        let ring = KeyRing::encrypted(&config(true), MasterKey::generate([0xab; 32])).unwrap();
        let text = format!("{ring:?} {:?}", MasterKey::generate([0xab; 32]));
        assert!(!text.contains("abab") && !text.contains("171"), "{text}");
    }
}
