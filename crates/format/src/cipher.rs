//! One object's boxes: AES-256-GCM under the object's own key, or a BLAKE3 checksum in plain mode.
//!
//! Not here: where base keys come from ([`crate::keys`]) and what an object's header says. The invariant:
//! a key belongs to one object and one salt, and the caller seals each box index once, so no nonce can
//! repeat. docs/FORMAT.md, "Boxes".

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::cursor::widen;
use crate::error::{Error, Result};
use crate::id::RepositoryId;

/// Bytes that a box adds to its body.
pub(crate) const TAG_BYTES: usize = 16;

const OBJECT_KEY_CONTEXT: &str = "aquifer v1 2026-11 object key";

/// What the key of an object is derived from besides its base key.
pub(crate) struct Origin<'a> {
    pub(crate) repository: &'a RepositoryId,
    /// The object key under which it was first written.
    pub(crate) key: &'a str,
    pub(crate) salt: &'a [u8; 32],
}

/// Seals and opens the boxes of one object.
#[derive(Debug)]
pub(crate) enum Cipher {
    /// Encrypted and authenticated.
    Sealed(LessSafeKey),
    /// A checksum only.
    Plain,
}

impl Cipher {
    /// The cipher of one object; without a base key it is plain.
    pub(crate) fn new(base: Option<&[u8; 32]>, origin: &Origin<'_>) -> Self {
        let Some(base) = base else { return Self::Plain };
        let mut hasher = blake3::Hasher::new_derive_key(OBJECT_KEY_CONTEXT);
        hasher.update(base);
        hasher.update(&origin.repository.0);
        hasher.update(origin.key.as_bytes());
        hasher.update(origin.salt);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        let unbound = UnboundKey::new(&AES_256_GCM, key.as_slice())
            .expect("AES-256-GCM takes every key of 32 bytes, and this one has 32");
        Self::Sealed(LessSafeKey::new(unbound))
    }

    /// Encrypts `body` in place and returns its tag. An `index` is used once per object.
    pub(crate) fn seal(&self, box_index: u32, aad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
        match self {
            Self::Plain => plain_tag(aad, body),
            Self::Sealed(key) => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(box_index), Aad::from(aad), body)
                    .expect("sealing fails only above 64 GiB, and bodies are below 256 MiB");
                let mut out = [0; TAG_BYTES];
                out.copy_from_slice(tag.as_ref());
                out
            }
        }
    }

    /// Checks and decrypts `sealed` (body, then tag) in place; returns the body.
    pub(crate) fn open<'a>(
        &self,
        object: &'static str,
        box_index: u32,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8]> {
        let failed = Error::Authentication { object };
        match self {
            Self::Plain => {
                let (body, tag) = split_tag(object, sealed)?;
                if plain_tag(aad, body) == *tag { Ok(body) } else { Err(failed) }
            }
            Self::Sealed(key) => {
                key.open_in_place(nonce(box_index), Aad::from(aad), sealed).map_err(|_| failed)
            }
        }
    }

    /// Like [`Cipher::open`], but leaves `sealed` as it is and writes the body into `out`, which is
    /// exactly [`TAG_BYTES`] shorter.
    pub(crate) fn open_to(
        &self,
        object: &'static str,
        box_index: u32,
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let Some((body, tag)) = sealed.split_last_chunk::<TAG_BYTES>() else {
            return Err(too_short(object, sealed.len()));
        };
        if body.len() != out.len() {
            return Err(Error::BufferLength {
                what: "opened box",
                expected: widen(body.len()),
                found: widen(out.len()),
            });
        }
        match self {
            Self::Plain if plain_tag(aad, body) == *tag => {
                out.copy_from_slice(body);
                Ok(())
            }
            Self::Plain => Err(Error::Authentication { object }),
            Self::Sealed(key) => key
                .open_separate_gather(nonce(box_index), Aad::from(aad), body, tag, out)
                .map_err(|_| Error::Authentication { object }),
        }
    }
}

fn split_tag<'a>(object: &'static str, sealed: &'a mut [u8]) -> Result<(&'a mut [u8], &'a [u8; TAG_BYTES])> {
    let found = sealed.len();
    match sealed.split_last_chunk_mut::<TAG_BYTES>() {
        Some((body, tag)) => Ok((body, tag)),
        None => Err(too_short(object, found)),
    }
}

fn too_short(object: &'static str, have: usize) -> Error {
    Error::Truncated { object, need: widen(TAG_BYTES), have: widen(have) }
}

fn plain_tag(aad: &[u8], body: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(aad);
    hasher.update(body);
    let mut out = [0; TAG_BYTES];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_BYTES]);
    out
}

/// The box index as u32 little-endian, then eight zero bytes.
fn nonce(box_index: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&box_index.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher(base: Option<[u8; 32]>, key: &str) -> Cipher {
        Cipher::new(base.as_ref(), &Origin { repository: &RepositoryId([1; 16]), key, salt: &[2; 32] })
    }

    fn sealed(cipher: &Cipher) -> Vec<u8> {
        let mut body = b"some body".to_vec();
        let tag = cipher.seal(3, b"aad", &mut body);
        body.extend_from_slice(&tag);
        body
    }

    #[test]
    fn a_box_opens_only_with_its_key_index_and_aad() {
        for base in [None, Some([7; 32])] {
            let right = cipher(base, "log/1");
            let bytes = sealed(&right);
            assert_eq!(right.open("x", 3, b"aad", &mut bytes.clone()).unwrap(), b"some body");
            assert!(right.open("x", 3, b"aae", &mut bytes.clone()).is_err());
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(matches!(right.open("x", 3, b"aad", &mut bad), Err(Error::Authentication { .. })));
            }
        }
        let bytes = sealed(&cipher(Some([7; 32]), "log/1"));
        assert!(cipher(Some([7; 32]), "log/1").open("x", 4, b"aad", &mut bytes.clone()).is_err());
        assert!(cipher(Some([8; 32]), "log/1").open("x", 3, b"aad", &mut bytes.clone()).is_err());
        assert!(cipher(Some([7; 32]), "log/2").open("x", 3, b"aad", &mut bytes.clone()).is_err());
    }

    #[test]
    fn opening_a_copy_leaves_the_box_alone() {
        for base in [None, Some([7; 32])] {
            let right = cipher(base, "log/1");
            let bytes = sealed(&right);
            let mut out = [0; 9];
            right.open_to("x", 3, b"aad", &bytes, &mut out).unwrap();
            assert_eq!(&out, b"some body");
            assert!(matches!(
                right.open_to("x", 3, b"aad", &bytes, &mut [0; 8]),
                Err(Error::BufferLength { expected: 9, found: 8, .. })
            ));
            assert!(right.open_to("x", 3, b"aax", &bytes, &mut out).is_err());
        }
    }

    #[test]
    fn a_box_without_room_for_a_tag_is_an_error() {
        for base in [None, Some([7; 32])] {
            let cipher = cipher(base, "k");
            assert!(cipher.open("x", 0, b"", &mut [0; 15]).is_err());
            assert!(cipher.open_to("x", 0, b"", &[0; 15], &mut []).is_err());
        }
    }
}
