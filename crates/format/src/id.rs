//! Newtypes of every id in a repository, with one text form each (lower-case hex).
//!
//! Not here: how ids are chosen (random ids are arguments everywhere) and how object keys look
//! ([`crate::key`]). The invariant: text and JSON forms parse back to the same id, and nothing else parses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes bytes as lower-case hex.
pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in bytes {
        let pair = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
        f.write_str(std::str::from_utf8(&pair).map_err(|_| fmt::Error)?)?;
    }
    Ok(())
}

/// Parses exactly `2 * N` lower-case hex digits.
pub(crate) fn parse_hex<const N: usize>(kind: &'static str, text: &str) -> Result<[u8; N]> {
    let wrong = || Error::IdSyntax { kind, text: text.chars().take(80).collect() };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(wrong());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (nibble(pair[0]).ok_or_else(wrong)?, nibble(pair[1]).ok_or_else(wrong)?);
        *byte = high << 4 | low;
    }
    Ok(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Display, Debug, FromStr and serde for a type that already has `write` and `parse`.
macro_rules! text_form {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! hex_id {
    ($(#[$meta:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Size in bytes.
            pub const BYTES: usize = $bytes;
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                parse_hex($kind, text).map(Self)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        text_form!($name);
    };
}

hex_id!(
    /// A repository: 16 random bytes, fixed at `init`, in the `format` object.
    RepositoryId, 16, "repository id (32 hex digits)"
);
hex_id!(
    /// The store that holds a repository's log: 16 random bytes.
    StoreId, 16, "store id (32 hex digits)"
);
hex_id!(
    /// A session: 80 random bits, then the 48-bit sequence number of the log slot of its `Open`.
    SessionId, 16, "session id (32 hex digits)"
);
hex_id!(
    /// Keyed BLAKE3 of a blob's plain bytes; never leaves the repository's key.
    ChunkId, 32, "chunk id (64 hex digits)"
);
hex_id!(
    /// A data epoch: the random name of one data key.
    EpochId, 8, "epoch id (16 hex digits)"
);
hex_id!(
    /// A writer of the log: its Ed25519 public key.
    WriterId, 32, "writer id (64 hex digits)"
);
hex_id!(
    /// BLAKE3 of all bytes of a log object (for the predecessor of entry 1: of the `format` object).
    EntryHash, 32, "entry hash (64 hex digits)"
);
hex_id!(
    /// A value drawn for one log entry, so that a writer knows its own entry again.
    EntryNonce, 16, "entry nonce (32 hex digits)"
);
hex_id!(
    /// A key slot: the first 8 bytes of its salt.
    SlotId, 8, "key slot id (16 hex digits)"
);

impl SessionId {
    /// Greatest log slot that a session id can name.
    pub const OPEN_SEQ_MAX: u64 = (1 << 48) - 1;

    /// Builds the id of the session whose `Open` is meant for slot `open_seq`; bits above 48 are cut.
    #[must_use]
    pub fn new(random: [u8; 10], open_seq: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&random);
        bytes[10..].copy_from_slice(&open_seq.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// The log slot of this session's `Open`.
    #[must_use]
    pub fn open_seq(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[10..]);
        u64::from_be_bytes(bytes)
    }
}

macro_rules! numbered_name {
    ($(#[$meta:meta])* $name:ident, $kind:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// Session that wrote it.
            pub session: SessionId,
            /// Counter within the session, never used twice.
            pub number: u32,
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{:08x}", self.session, self.number)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let wrong = || Error::IdSyntax { kind: $kind, text: text.chars().take(80).collect() };
                let (session, number) = text.split_once('/').ok_or_else(wrong)?;
                let number = parse_hex::<4>($kind, number).map_err(|_| wrong())?;
                let session = session.parse().map_err(|_| wrong())?;
                Ok(Self { session, number: u32::from_be_bytes(number) })
            }
        }

        text_form!($name);
    };
}

numbered_name!(
    /// A pack: text form `<session>/<number as 8 hex digits>`.
    PackName, "pack name (<session>/<8 hex digits>)"
);
numbered_name!(
    /// A segment: text form `<session>/<number as 8 hex digits>`.
    SegmentName, "segment name (<session>/<8 hex digits>)"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_keeps_the_slot_of_its_open() {
        let id = SessionId::new([7; 10], 0x1234_5678_9abc);
        assert_eq!(id.open_seq(), 0x1234_5678_9abc);
        assert_eq!(id.to_string(), "07070707070707070707123456789abc");
    }

    #[test]
    fn text_and_json_forms_parse_back() {
        let name = PackName { session: SessionId::new([1; 10], 2), number: 0xab };
        assert_eq!(name.to_string().parse::<PackName>().unwrap(), name);
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<PackName>(&json).unwrap(), name);
        let id = ChunkId([0xfe; 32]);
        assert_eq!(serde_json::from_str::<ChunkId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    }

    #[test]
    fn anything_but_lower_case_hex_of_the_right_length_is_refused() {
        for text in
            ["", "00", "0G00000000000000", "0A00000000000000", "00000000000000000", "é000000000000000"]
        {
            assert!(matches!(text.parse::<EpochId>(), Err(Error::IdSyntax { .. })), "{text}");
        }
        for text in ["", "/", "x/1", "00000000000000000000000000000000/1", "00000000000000000000000000000000"]
        {
            assert!(matches!(text.parse::<SegmentName>(), Err(Error::IdSyntax { .. })), "{text}");
        }
    }
}
