//! Ed25519 signatures of log entries.
//!
//! Not here: which writers a repository knows ([`crate::log::State`] decides). The invariant: the seed is
//! wiped on drop and never printed.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::id::WriterId;

/// Bytes of a signature.
pub(crate) const SIGNATURE_BYTES: usize = 64;

/// A writer's signing key.
pub struct Signer {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
    writer: WriterId,
}

impl Signer {
    /// The signing key of 32 random bytes, which the caller keeps as secret.
    ///
    /// # Errors
    /// [`Error::SigningSeed`] when the library refuses the seed.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self> {
        let seed = Zeroizing::new(seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| Error::SigningSeed)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| Error::SigningSeed)?;
        Ok(Self { pair, seed, writer: WriterId(public) })
    }

    /// The seed, to be kept in a private file.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public key: the writer's name in the log.
    #[must_use]
    pub fn writer(&self) -> WriterId {
        self.writer
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut out = [0; SIGNATURE_BYTES];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.writer)
    }
}

/// True when `signature` is `writer`'s over `message`.
pub(crate) fn verify(writer: &WriterId, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, writer.0).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_writer_and_message_only() {
        let signer = Signer::from_seed([1; 32]).unwrap();
        let other = Signer::from_seed([2; 32]).unwrap();
        let signature = signer.sign(b"message");
        assert!(verify(&signer.writer(), b"message", &signature));
        assert!(!verify(&signer.writer(), b"massage", &signature));
        assert!(!verify(&other.writer(), b"message", &signature));
        assert!(!verify(&WriterId([0xff; 32]), b"message", &signature));
        assert_eq!(Signer::from_seed(*signer.seed()).unwrap().writer(), signer.writer());
    }
}
