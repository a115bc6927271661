//! The names of objects: one strict grammar, checked once, carried as a type.
//!
//! A [`Key`] can be turned into a path or a URL without further thought because nothing but lower-case hex digits,
//! a fixed set of first words and `/` can be in it. See docs/FORMAT.md, "Keys". What the numbers mean is the
//! repository's business, not this module's.
//!
//! Invariant: keys of one first word have one length, so the order of strings is the order of a directory walk.

use std::fmt;
use std::sync::Arc;

/// First words and the hex digits of each part after them. `format` stands alone.
const SHAPES: [(&str, &[usize]); 9] = [
    ("ckpt", &[16]),
    ("format", &[]),
    ("hb", &[32]),
    ("index", &[32, 8]),
    ("keys", &[16]),
    ("log", &[16]),
    ("packs", &[32, 8]),
    ("par", &[32, 8]),
    ("probe", &[32]),
];

/// Why a name is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of a repository's object")]
pub struct KeyError {
    /// The name, shortened when it is long.
    pub name: String,
}

/// The name of an object, inside the grammar.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks a name against the grammar.
    ///
    /// # Errors
    /// [`KeyError`] when the name is anything but a key.
    pub fn parse(name: &str) -> Result<Self, KeyError> {
        match Shape::of(name) {
            Shape::Object => Ok(Self(name.into())),
            Shape::Folder | Shape::Foreign => Err(KeyError { name: name.chars().take(128).collect() }),
        }
    }

    /// The name, as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

/// What a name can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The whole name of an object.
    Object,
    /// A beginning that objects share, without the slash.
    Folder,
    /// Nothing of ours.
    Foreign,
}

impl Shape {
    /// Sorts a name into the grammar.
    pub(crate) fn of(name: &str) -> Self {
        let mut parts = name.split('/');
        let first = parts.next().unwrap_or_default();
        let Some((_, digits)) = SHAPES.iter().find(|(word, _)| *word == first) else {
            return Self::Foreign;
        };
        let mut expected = digits.iter();
        for part in parts {
            match expected.next() {
                Some(&length) if part.len() == length && part.bytes().all(is_hex) => {}
                _ => return Self::Foreign,
            }
        }
        if expected.len() == 0 { Self::Object } else { Self::Folder }
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_object_has_a_name() {
        for name in [
            "format",
            "log/0000000000000001",
            "ckpt/00000000000000ff",
            "keys/0123456789abcdef",
            "packs/00112233445566778899aabbccddeeff/0000000a",
            "index/00112233445566778899aabbccddeeff/00000000",
            "par/00112233445566778899aabbccddeeff/00000000",
            "hb/00112233445566778899aabbccddeeff",
            "probe/00112233445566778899aabbccddeeff",
        ] {
            assert_eq!(Key::parse(name).map(|key| key.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn nothing_else_is_a_key() {
        for name in [
            "",
            "/",
            ".",
            "..",
            "../format",
            "/format",
            "format/",
            "formats",
            "Format",
            "log",
            "log/",
            "log/1",
            "log/000000000000000A",
            "log/000000000000000g",
            "log/00000000000000001",
            "log/0000000000000001/",
            "log/../log/00000001",
            "packs/00112233445566778899aabbccddeeff",
            "packs/00112233445566778899aabbccddeeff/..",
            "log/000000000000000\u{661}",
            "hb/0011223344556677\0899aabbccddeeff",
        ] {
            assert!(Key::parse(name).is_err(), "{name:?} passed");
        }
    }

    #[test]
    fn the_error_does_not_repeat_an_endless_name() {
        let error = Key::parse(&"x".repeat(10_000)).unwrap_err();
        assert_eq!(error.name.len(), 128);
    }

    #[test]
    fn the_order_of_keys_is_the_order_of_their_numbers() {
        let key = |n: u64| Key::parse(&format!("log/{n:016x}")).unwrap();
        assert!(key(9) < key(10) && key(0xff) < key(0x100) && key(u64::MAX - 1) < key(u64::MAX));
    }
}
