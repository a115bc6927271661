//! Segments: one object that lists the chunks of many packs, so that an index is rebuilt from few reads.
//!
//! Not here: the index. The invariant: a segment's pack carries everything that reading any of its blobs
//! needs (current key, header with salt, rows), and its rows obey the laws of a pack's own table.
//! docs/FORMAT.md, "index/".

use crate::cursor::{Cursor, check_limit, index, narrow, widen};
use crate::error::Result;
use crate::id::{PackName, SegmentName, SessionId};
use crate::keys::KeyRing;
use crate::magic;
use crate::pack::{FOOTER_BYTES, PACK_HEADER_BYTES, PackHeader, PackKind, ROW_BYTES, TableRow};
use crate::sealed::{self, Place};

const OBJECT: &str = "segment";
/// Session and number of the current key, object bytes, count, header, hash.
const ENTRY_BYTES: usize = 16 + 4 + 4 + 4 + PACK_HEADER_BYTES + 32;

/// One pack as a segment lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentPack {
    /// Name under which the pack was first written; the same as in the header.
    pub name: PackName,
    /// Name under which it is stored in this repository.
    pub stored_as: PackName,
    /// Size of the object in bytes.
    pub bytes: u64,
    /// What it carries; the same as in the header.
    pub kind: PackKind,
    /// The pack's header.
    pub header: PackHeader,
    /// The pack's trailing BLAKE3.
    pub hash: [u8; 32],
    /// The pack's table.
    pub rows: Vec<TableRow>,
}

impl SegmentPack {
    /// Bytes that this pack takes in a segment before compression.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        ENTRY_BYTES + self.rows.len() * ROW_BYTES
    }
}

/// Builds a segment. `salt` is fresh and random; `name` was never used before.
///
/// # Errors
/// [`crate::Error::Limit`] when the packs take more than 128 MiB together
/// ([`SegmentPack::encoded_bytes`]): publish several segments.
pub fn encode_segment(
    ring: &KeyRing,
    name: SegmentName,
    salt: [u8; 32],
    packs: &[SegmentPack],
) -> Result<Vec<u8>> {
    let total = packs.iter().map(SegmentPack::encoded_bytes).fold(4usize, usize::saturating_add);
    check_limit(OBJECT, "plain_bytes", widen(total), u64::from(magic::SEGMENT_BYTES_MAX))?;
    let mut plain = Vec::with_capacity(total);
    plain.extend_from_slice(&narrow(OBJECT, "packs", packs.len())?.to_le_bytes());
    for pack in packs {
        check_limit(OBJECT, "pack bytes", pack.bytes, u64::from(magic::PACK_BYTES_MAX))?;
        plain.extend_from_slice(&pack.stored_as.session.0);
        plain.extend_from_slice(&pack.stored_as.number.to_le_bytes());
        plain.extend_from_slice(&u32::try_from(pack.bytes).unwrap_or(u32::MAX).to_le_bytes());
        plain.extend_from_slice(&narrow(OBJECT, "rows", pack.rows.len())?.to_le_bytes());
        plain.extend_from_slice(&pack.header.encode());
        plain.extend_from_slice(&pack.hash);
        for row in &pack.rows {
            plain.extend_from_slice(&row.encode());
        }
    }
    sealed::seal(ring, Place::Segment(name), salt, &plain)
}

/// Reads a segment that the log names `name`.
///
/// # Errors
/// [`crate::Error::Authentication`], [`crate::Error::Origin`] or another kind of corruption.
pub fn decode_segment(ring: &KeyRing, name: SegmentName, bytes: &[u8]) -> Result<Vec<SegmentPack>> {
    let plain = sealed::open(ring, Place::Segment(name), bytes)?;
    let mut cursor = Cursor::new(OBJECT, &plain);
    let count = index(cursor.u32()?);
    cursor.limit("packs", widen(count), widen(cursor.rest().len() / ENTRY_BYTES))?;
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        packs.push(decode_pack(&mut cursor)?);
    }
    cursor.end()?;
    Ok(packs)
}

fn decode_pack(cursor: &mut Cursor<'_>) -> Result<SegmentPack> {
    let stored_as = PackName { session: SessionId(cursor.array()?), number: cursor.u32()? };
    let bytes = u64::from(cursor.u32()?);
    let count = cursor.u32()?;
    let header = PackHeader::decode(cursor.take(PACK_HEADER_BYTES)?)?;
    let hash = cursor.array()?;
    cursor.limit("rows", u64::from(count), widen(cursor.rest().len() / ROW_BYTES))?;
    cursor.limit("pack bytes", bytes, u64::from(magic::PACK_BYTES_MAX))?;
    let mut rows = Vec::with_capacity(index(count));
    let mut next = widen(PACK_HEADER_BYTES);
    for ordinal in 0..count {
        let row = TableRow::decode(cursor)?;
        if u32::from(row.ordinal) != ordinal || u64::from(row.offset) != next {
            return Err(cursor.field("offset", u64::from(row.offset)));
        }
        next = row.end();
        rows.push(row);
    }
    let trailer = widen(rows.len() * ROW_BYTES + crate::pack::BLOB_TAG_BYTES + FOOTER_BYTES);
    if next + trailer != bytes {
        return Err(cursor.field("pack bytes", bytes));
    }
    Ok(SegmentPack { name: header.name, stored_as, bytes, kind: header.kind, header, hash, rows })
}
