//! Reads packs: one blob out of its own bytes, the table, a whole pack, or what is left of a torn one.
//!
//! Not here: where the bytes come from. The invariants: nothing is trusted before its tag was checked, a
//! blob's plain bytes always hash to its id, and every buffer has the length that its row promises.

use std::fmt;
use std::sync::Arc;

use super::{
    BLOB_FRAME_BYTES, FOOTER_BYTES, Footer, OBJECT, PACK_HEADER_BYTES, PackHeader, TABLE_BOX, TableRow,
    blob_aad, check_hash, decode_footer, table_aad,
};
use crate::cipher::Cipher;
use crate::codec::Decompressor;
use crate::cursor::{Cursor, index, widen};
use crate::error::{Error, Result};
use crate::keys::KeyRing;
use crate::magic;

/// Opens blobs of one pack; clones share its key.
#[derive(Clone)]
pub struct PackReader {
    ring: KeyRing,
    header_bytes: [u8; PACK_HEADER_BYTES],
    header: PackHeader,
    cipher: Arc<Cipher>,
}

impl fmt::Debug for PackReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackReader({})", self.header.name)
    }
}

impl PackReader {
    /// A reader for the pack with this header.
    ///
    /// # Errors
    /// [`Error::Mode`] for a plain pack in an encrypted repository or the reverse,
    /// [`Error::Generation`] when the ring does not hold the pack's master generation.
    pub fn new(ring: &KeyRing, header: &PackHeader) -> Result<Self> {
        let cipher = Arc::new(header.cipher(ring)?);
        Ok(Self { ring: ring.clone(), header_bytes: header.encode(), header: *header, cipher })
    }

    /// The pack's header.
    #[must_use]
    pub fn header(&self) -> &PackHeader {
        &self.header
    }

    /// Opens one blob: `blob` is frame, ciphertext and tag as stored and is decrypted in place; `out` has
    /// exactly `row.plain_bytes`. On an error `out` holds nothing of use.
    ///
    /// # Errors
    /// [`Error::Frame`], [`Error::Authentication`], [`Error::Decompress`] or [`Error::ChunkMismatch`] when
    /// the blob is not what the row promises; [`Error::BufferLength`] when a buffer is.
    pub fn open(
        &self,
        decompressor: &mut Decompressor,
        row: &TableRow,
        blob: &mut [u8],
        out: &mut [u8],
    ) -> Result<()> {
        check_length("blob", row.blob_bytes(), blob.len())?;
        check_length("chunk", u64::from(row.plain_bytes), out.len())?;
        let (frame, sealed) = blob.split_at_mut(BLOB_FRAME_BYTES);
        let expected = row.frame();
        if frame != expected {
            return Err(Error::Frame { ordinal: row.ordinal, id: row.id });
        }
        let aad = blob_aad(&self.header_bytes, &expected);
        let body = self.cipher.open("blob", u32::from(row.ordinal), &aad, sealed)?;
        decompressor.decode("blob", row.codec, body, out)?;
        let found = self.ring.chunk_id(row.kind, out);
        if found == row.id { Ok(()) } else { Err(Error::ChunkMismatch { expected: row.id, found }) }
    }
}

fn check_length(what: &'static str, expected: u64, found: usize) -> Result<()> {
    let found = widen(found);
    if expected == found { Ok(()) } else { Err(Error::BufferLength { what, expected, found }) }
}

/// Opens the table. `table` is `footer.table_bytes` long, from `footer.table_offset` on.
///
/// # Errors
/// [`Error::Authentication`] or another kind of corruption; in particular when the rows do not lie back to
/// back from the header to the table.
pub fn decode_table(
    ring: &KeyRing,
    header: &PackHeader,
    footer: &Footer,
    table: &[u8],
) -> Result<Vec<TableRow>> {
    const TABLE: &str = "pack table";
    check_length("pack table", u64::from(footer.table_bytes), table.len())?;
    let aad = table_aad(&header.encode(), footer.count, footer.table_offset);
    let mut sealed = table.to_vec();
    let plain = header.cipher(ring)?.open(TABLE, TABLE_BOX, &aad, &mut sealed)?;
    let mut cursor = Cursor::new(TABLE, plain);
    let mut rows = Vec::with_capacity(index(footer.count));
    let mut next = widen(PACK_HEADER_BYTES);
    for ordinal in 0..footer.count {
        let row = TableRow::decode(&mut cursor)?;
        if u32::from(row.ordinal) != ordinal {
            return Err(cursor.field("ordinal", u64::from(row.ordinal)));
        }
        if u64::from(row.offset) != next {
            return Err(cursor.field("offset", u64::from(row.offset)));
        }
        next = row.end();
        rows.push(row);
    }
    cursor.end()?;
    if next != u64::from(footer.table_offset) {
        return Err(cursor.field("table_offset", u64::from(footer.table_offset)));
    }
    Ok(rows)
}

/// Decodes a whole pack from its own bytes: hash, table, and every blob down to its id (verify level V2,
/// and the check of a finished pack before it is stored).
///
/// # Errors
/// The first failure of any of them.
pub fn self_check(ring: &KeyRing, bytes: &[u8]) -> Result<Vec<TableRow>> {
    check_hash(bytes)?;
    let header = PackHeader::decode(bytes)?;
    let Some((before, tail)) = bytes.split_last_chunk::<FOOTER_BYTES>() else {
        return Err(Error::Truncated { object: OBJECT, need: widen(FOOTER_BYTES), have: widen(bytes.len()) });
    };
    let footer = decode_footer(tail, widen(bytes.len()))?;
    let table = Cursor::new(OBJECT, before).take(index(footer.table_offset)).map(<[u8]>::len)?;
    let rows = decode_table(ring, &header, &footer, &before[table..])?;
    let reader = PackReader::new(ring, &header)?;
    let mut decompressor = Decompressor::new()?;
    let mut scratch = Scratch::default();
    for row in &rows {
        scratch.open(&reader, &mut decompressor, row, bytes)?;
    }
    Ok(rows)
}

/// Finds the whole blobs of a pack whose tail is torn off, by their frames; damaged stretches are skipped.
///
/// Every row returned was opened and checked down to its id.
///
/// # Errors
/// Only when the header itself does not decode, or this ring cannot open its pack.
pub fn salvage(ring: &KeyRing, bytes: &[u8]) -> Result<Vec<TableRow>> {
    let header = PackHeader::decode(bytes)?;
    let reader = PackReader::new(ring, &header)?;
    let mut decompressor = Decompressor::new()?;
    let mut scratch = Scratch::default();
    let mut rows = Vec::new();
    let mut at = PACK_HEADER_BYTES;
    while let Some(frame) = bytes.get(at..).and_then(|rest| rest.first_chunk::<BLOB_FRAME_BYTES>()) {
        let row = u32::try_from(at).ok().and_then(|offset| TableRow::from_frame(frame, offset).ok());
        match row {
            Some(row) if scratch.open(&reader, &mut decompressor, &row, bytes).is_ok() => {
                at = row.range().end;
                rows.push(row);
            }
            _ => at = next_magic(bytes, at + 1),
        }
    }
    Ok(rows)
}

/// Offset of the next blob magic at or after `from`, or the end.
fn next_magic(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let found = rest.windows(magic::BLOB.len()).position(|window| window == magic::BLOB);
    found.map_or(bytes.len(), |position| from + position)
}

/// Reused buffers for opening blobs out of a borrowed pack.
#[derive(Default)]
struct Scratch {
    blob: Vec<u8>,
    out: Vec<u8>,
}

impl Scratch {
    fn open(
        &mut self,
        reader: &PackReader,
        decompressor: &mut Decompressor,
        row: &TableRow,
        pack: &[u8],
    ) -> Result<()> {
        let blob_bytes = index(row.stored_bytes) + BLOB_FRAME_BYTES;
        let blob = pack.get(index(row.offset)..).and_then(|rest| rest.get(..blob_bytes));
        let blob =
            blob.ok_or(Error::Truncated { object: OBJECT, need: row.end(), have: widen(pack.len()) })?;
        self.blob.clear();
        self.blob.extend_from_slice(blob);
        self.out.resize(index(row.plain_bytes), 0);
        reader.open(decompressor, row, &mut self.blob, &mut self.out)
    }
}
