//! Bytes of the index: rows of a chunk, the entry of a pack.
//!
//! They are local to one machine and thrown away when the layout changes; all numbers are big-endian.
//!
//! Invariant: a value that does not decode exactly is damage, never a guess.

use aquifer_format::codec::Codec;
use aquifer_format::id::{ChunkId, PackName, SessionId};
use aquifer_format::pack::{BlobKind, PACK_HEADER_BYTES, PackHeader, PackKind, TableRow};
use aquifer_format::segment::SegmentPack;

use super::names::Table;
use crate::PackSummary;

/// Bytes of one row: pack number, offset, stored and plain length, codec, kind, ordinal.
const ROW_BYTES: usize = 20;

/// Takes fixed-size pieces off a value.
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn name(&mut self) -> Option<PackName> {
        Some(PackName { session: SessionId(self.array()?), number: self.u32()? })
    }
}

/// Appends the row of a chunk in pack `number`.
pub(super) fn encode(number: u32, row: &TableRow, out: &mut Vec<u8>) {
    for word in [number, row.offset, row.stored_bytes, row.plain_bytes] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    let codec = match row.codec {
        Codec::Raw => 0,
        Codec::Zstd => 1,
    };
    let [high, low] = row.ordinal.to_be_bytes();
    out.extend_from_slice(&[codec, row.kind.code(), high, low]);
}

/// The rows of one chunk.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a>(&'a [[u8; ROW_BYTES]]);

impl<'a> Rows<'a> {
    /// `None` unless the value is whole rows.
    pub(super) fn new(value: &'a [u8]) -> Option<Self> {
        let (rows, rest) = value.as_chunks();
        rest.is_empty().then_some(Self(rows))
    }

    /// The pack numbers only: all that the question "is it stored" needs.
    pub(super) fn numbers(self) -> impl Iterator<Item = u32> + 'a {
        self.0.iter().map(|[a, b, c, d, ..]| u32::from_be_bytes([*a, *b, *c, *d]))
    }

    /// Pack numbers with decoded rows; `None` for a row that does not decode.
    pub(super) fn decoded(self, id: &ChunkId) -> impl Iterator<Item = (u32, Option<TableRow>)> {
        self.numbers().zip(self.0.iter().map(|row| decode(id, row)))
    }

    /// Copies the rows whose packs are not gone.
    pub(super) fn copy_known(self, names: &Table, out: &mut Vec<u8>) {
        for (number, row) in self.numbers().zip(self.0) {
            if !names.is_gone(number) {
                out.extend_from_slice(row);
            }
        }
    }
}

fn decode(id: &ChunkId, row: &[u8; ROW_BYTES]) -> Option<TableRow> {
    let mut cursor = Cursor::new(row);
    let _number = cursor.u32()?;
    let (offset, stored_bytes, plain_bytes) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let [codec, kind] = cursor.array()?;
    let codec = match codec {
        0 => Codec::Raw,
        1 => Codec::Zstd,
        _ => return None,
    };
    let kind = BlobKind::from_code(kind)?;
    let ordinal = u16::from_be_bytes(cursor.array()?);
    Some(TableRow { id: *id, offset, stored_bytes, plain_bytes, codec, kind, ordinal })
}

/// The entry of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pack {
    pub(super) summary: PackSummary,
    pub(super) header: PackHeader,
}

impl Pack {
    pub(super) fn of(pack: &SegmentPack) -> Self {
        Self { summary: PackSummary::of(pack), header: pack.header }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let PackSummary { pack, name, kind, bytes, rows, hash } = &self.summary;
        let kind = match kind {
            PackKind::Data => 0_u8,
            PackKind::Meta => 1,
        };
        let mut out = Vec::with_capacity(256);
        for name in [pack, name] {
            out.extend_from_slice(&name.session.0);
            out.extend_from_slice(&name.number.to_be_bytes());
        }
        out.push(kind);
        out.extend_from_slice(&bytes.to_be_bytes());
        out.extend_from_slice(&rows.to_be_bytes());
        out.extend_from_slice(hash);
        out.extend_from_slice(&self.header.encode());
        out
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(value);
        let (pack, name) = (cursor.name()?, cursor.name()?);
        let kind = match cursor.array()? {
            [0] => PackKind::Data,
            [1] => PackKind::Meta,
            _ => return None,
        };
        let bytes = u64::from_be_bytes(cursor.array()?);
        let (rows, hash) = (cursor.u32()?, cursor.array()?);
        let header = PackHeader::decode(&cursor.array::<PACK_HEADER_BYTES>()?).ok()?;
        let summary = PackSummary { pack, name, kind, bytes, rows, hash };
        cursor.0.is_empty().then_some(Self { summary, header })
    }
}
