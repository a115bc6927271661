//! The only place that slices foreign bytes: a reader that knows the object's name and its end.
//!
//! Not a parser of anything: values out, no meaning. The invariant: no method panics, whatever the bytes,
//! and none allocates.

use crate::error::{Error, Result};
use crate::id::write_hex;

/// Reads fixed-size little-endian fields in order.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    object: &'static str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(object: &'static str, bytes: &'a [u8]) -> Self {
        Self { object, rest: bytes }
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(count) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(Error::Truncated {
                object: self.object,
                need: widen(count),
                have: widen(self.rest.len()),
            }),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Checks the magic that an object begins with.
    pub(crate) fn magic<const N: usize>(&mut self, expected: [u8; N]) -> Result<()> {
        let found = self.array::<N>()?;
        if found == expected { Ok(()) } else { Err(Error::Magic { object: self.object, found: hex(&found) }) }
    }

    /// Checks that reserved bytes are zero.
    pub(crate) fn reserved(&mut self, count: usize) -> Result<()> {
        match self.take(count)?.iter().find(|byte| **byte != 0) {
            None => Ok(()),
            Some(byte) => Err(self.field("reserved", u64::from(*byte))),
        }
    }

    /// Bytes not yet read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Fails when bytes are left.
    pub(crate) fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::Trailing { object: self.object, bytes: widen(self.rest.len()) })
        }
    }

    /// An error about a value that the format does not allow.
    pub(crate) fn field(&self, field: &'static str, value: u64) -> Error {
        Error::Field { object: self.object, field, value }
    }

    /// Fails when `value` is above `limit`.
    pub(crate) fn limit(&self, field: &'static str, value: u64, limit: u64) -> Result<()> {
        check_limit(self.object, field, value, limit)
    }
}

/// Fails when `value` is above `limit`.
pub(crate) fn check_limit(object: &'static str, field: &'static str, value: u64, limit: u64) -> Result<()> {
    if value <= limit { Ok(()) } else { Err(Error::Limit { object, field, value, limit }) }
}

/// A length as u64: lossless on every platform that Rust supports.
pub(crate) fn widen(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A u32 as usize; platforms with 16-bit addresses are not supported and saturate into an error later.
pub(crate) fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A length as u32, or a limit error.
pub(crate) fn narrow(object: &'static str, field: &'static str, length: usize) -> Result<u32> {
    u32::try_from(length).map_err(|_| Error::Limit {
        object,
        field,
        value: widen(length),
        limit: u64::from(u32::MAX),
    })
}

/// Lower-case hex of a few bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    struct Hex<'a>(&'a [u8]);
    impl std::fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write_hex(self.0, f)
        }
    }
    Hex(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_out_in_order_and_little_endian() {
        let mut cursor = Cursor::new("test", &[1, 2, 0, 3, 0, 0, 0, 9]);
        assert_eq!(cursor.u8().unwrap(), 1);
        assert_eq!(cursor.u16().unwrap(), 2);
        assert_eq!(cursor.u32().unwrap(), 3);
        assert!(matches!(cursor.end(), Err(Error::Trailing { bytes: 1, .. })));
        assert!(matches!(cursor.u16(), Err(Error::Truncated { need: 2, have: 1, .. })));
        assert_eq!(cursor.rest(), [9]);
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        assert!(Cursor::new("test", &[0, 0]).reserved(2).is_ok());
        let error = Cursor::new("test", &[0, 5]).reserved(2).unwrap_err();
        assert_eq!(error.to_string(), "test: field reserved holds 5, which the format does not allow");
    }
}
