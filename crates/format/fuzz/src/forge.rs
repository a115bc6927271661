//! Forges objects of a plain repository from any header fields and any body, with right checksums.
//!
//! Written from docs/FORMAT.md, not from the encoders: it lets tests and fuzzing reach what lies behind
//! the checksums.

/// Which envelope to forge.
#[derive(Debug, Clone)]
pub(crate) struct Envelope<'a> {
    /// The eight bytes that the object begins with.
    pub(crate) magic: &'a [u8; 8],
    /// The object key, part of the AAD.
    pub(crate) key: String,
    /// Field `number`.
    pub(crate) number: u64,
    /// Field `session`.
    pub(crate) session: [u8; 16],
    /// Repository id.
    pub(crate) repository: [u8; 16],
    /// Fingerprint of the `format` object where the AAD has it, else empty.
    pub(crate) bound: &'a [u8],
}

impl Envelope<'_> {
    /// The object with this codec byte, recorded plain length and stored body.
    pub(crate) fn forge(&self, codec: u8, plain_bytes: u32, body: &[u8]) -> Vec<u8> {
        let stored_bytes = u32::try_from(body.len() + 16).unwrap_or(u32::MAX);
        let mut out = self.magic.to_vec();
        out.extend_from_slice(&1u16.to_le_bytes());
        out.extend_from_slice(&[0, codec]);
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&self.repository);
        out.extend_from_slice(&[0x5a; 32]);
        out.extend_from_slice(&plain_bytes.to_le_bytes());
        out.extend_from_slice(&stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.session);
        let tag = blake3::hash(&[&out[..], self.key.as_bytes(), self.bound, body].concat());
        out.extend_from_slice(body);
        out.extend_from_slice(&tag.as_bytes()[..16]);
        rehash(&mut out, false);
        out
    }

    /// The object that stores `plain` as it is.
    pub(crate) fn raw(&self, plain: &[u8]) -> Vec<u8> {
        self.forge(0, u32::try_from(plain.len()).unwrap_or(u32::MAX), plain)
    }
}

/// Appends BLAKE3 of all bytes, or replaces the 32 bytes at the end by BLAKE3 of those before.
pub(crate) fn rehash(bytes: &mut Vec<u8>, replace: bool) {
    if replace {
        bytes.truncate(bytes.len().saturating_sub(32));
    }
    let hash = blake3::hash(bytes);
    bytes.extend_from_slice(hash.as_bytes());
}
