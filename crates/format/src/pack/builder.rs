//! Builds a pack in one buffer: each blob is compressed into the buffer's tail and encrypted there.
//!
//! Not here: when a pack is full enough, and where it goes. The invariants: an ordinal, and so a nonce,
//! is used once; rows lie back to back from the header to the table.

use std::fmt;

use super::{
    BLOB_FRAME_BYTES, BlobKind, FOOTER_BYTES, OBJECT, PACK_HEADER_BYTES, PackHeader, PackKind, ROW_BYTES,
    TABLE_BOX, TableRow, blob_aad, table_aad,
};
use crate::cipher::{Cipher, TAG_BYTES};
use crate::codec::{Compressor, Decompressor};
use crate::cursor::{check_limit, index, narrow, widen};
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackName};
use crate::keys::KeyRing;
use crate::magic;

/// The trailing hash is computed in steps of this size, while the bytes are still in the cache; a power of
/// two keeps BLAKE3 at full width.
const HASH_STEP_BYTES: usize = 256 << 10;

/// A pack that is being filled.
pub struct PackBuilder {
    header: PackHeader,
    header_bytes: [u8; PACK_HEADER_BYTES],
    cipher: Cipher,
    /// Bytes up to `length` are the pack; the rest is room that was already set to zero.
    buffer: Vec<u8>,
    length: usize,
    hasher: blake3::Hasher,
    hashed: usize,
    rows: Vec<TableRow>,
}

impl fmt::Debug for PackBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackBuilder")
            .field("name", &self.header.name)
            .field("bytes", &self.length)
            .field("count", &self.rows.len())
            .finish_non_exhaustive()
    }
}

/// A pack that is ready to be stored.
#[derive(Clone)]
pub struct FinishedPack {
    /// Its name.
    pub name: PackName,
    /// What it carries.
    pub kind: PackKind,
    /// The object.
    pub bytes: Vec<u8>,
    /// Its table.
    pub rows: Vec<TableRow>,
    /// Its header.
    pub header: PackHeader,
    /// Its trailing BLAKE3.
    pub hash: [u8; 32],
}

impl fmt::Debug for FinishedPack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishedPack")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("bytes", &self.bytes.len())
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

impl PackBuilder {
    /// An empty pack. `salt` is fresh and random, `name` never used before. `capacity_bytes` is reserved
    /// at once (as untouched zero pages); the pack grows beyond it up to the hard limit when it must.
    ///
    /// # Errors
    /// [`Error::NoEpoch`] when the ring knows no data epoch yet.
    pub fn new(
        ring: &KeyRing,
        name: PackName,
        kind: PackKind,
        salt: [u8; 32],
        capacity_bytes: usize,
    ) -> Result<Self> {
        Self::reusing(ring, name, kind, salt, capacity_bytes, Vec::new())
    }

    /// Like [`PackBuilder::new`], in the memory of an earlier pack, whose bytes do not matter: its pages are
    /// mapped already, which spares a fault for each.
    ///
    /// # Errors
    /// As [`PackBuilder::new`].
    pub fn reusing(
        ring: &KeyRing,
        name: PackName,
        kind: PackKind,
        salt: [u8; 32],
        capacity_bytes: usize,
        mut buffer: Vec<u8>,
    ) -> Result<Self> {
        let header = PackHeader {
            kind,
            sealed: !ring.is_plain(),
            generation: ring.newest_generation(),
            epoch: ring.writing_epoch()?,
            repository: ring.repository(),
            name,
            salt,
        };
        let header_bytes = header.encode();
        let capacity = capacity_bytes.clamp(PACK_HEADER_BYTES, index(magic::PACK_BYTES_MAX));
        if buffer.capacity() < capacity {
            buffer = vec![0; capacity];
        }
        buffer.resize(capacity, 0);
        buffer[..PACK_HEADER_BYTES].copy_from_slice(&header_bytes);
        Ok(Self {
            header,
            header_bytes,
            cipher: header.cipher(ring)?,
            buffer,
            length: PACK_HEADER_BYTES,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            rows: Vec::new(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> PackName {
        self.header.name
    }

    /// Bytes of the pack so far, without table and footer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.length
    }

    /// Number of blobs so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// True when nothing was pushed yet; such a pack is not stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// True when a blob of `plain_bytes` fits under the hard limits of a pack, table and footer included.
    #[must_use]
    pub fn has_room_for(&self, plain_bytes: usize) -> bool {
        self.check_room(plain_bytes).is_ok()
    }

    fn check_room(&self, plain_bytes: usize) -> Result<()> {
        let count = widen(self.rows.len()) + 1;
        check_limit(OBJECT, "count", count, u64::from(magic::PACK_BLOBS_MAX))?;
        let blob = widen(BLOB_FRAME_BYTES + TAG_BYTES).saturating_add(widen(plain_bytes));
        let trailer = count * widen(ROW_BYTES) + widen(TAG_BYTES + FOOTER_BYTES);
        let total = widen(self.length).saturating_add(blob).saturating_add(trailer);
        check_limit(OBJECT, "object bytes", total, u64::from(magic::PACK_BYTES_MAX))
    }

    /// Appends a blob: compressed straight into the pack's buffer, encrypted in place.
    ///
    /// `id` is [`KeyRing::chunk_id`] of the same kind and bytes: the caller has it from its look-up.
    ///
    /// # Errors
    /// [`Error::Limit`] when the blob is too large for its kind or the pack is full (see
    /// [`PackBuilder::has_room_for`]), [`Error::Field`] when it is empty. The pack stays as it was.
    pub fn push(
        &mut self,
        compressor: &mut Compressor,
        kind: BlobKind,
        id: &ChunkId,
        plain: &[u8],
    ) -> Result<TableRow> {
        if plain.is_empty() {
            return Err(Error::Field { object: OBJECT, field: "plain_bytes", value: 0 });
        }
        let plain_max = u64::from(kind.plain_bytes_max());
        check_limit(OBJECT, "plain_bytes", widen(plain.len()), plain_max)?;
        self.check_room(plain.len())?;
        let body_at = self.length + BLOB_FRAME_BYTES;
        self.reserve(body_at + plain.len() + TAG_BYTES);
        let (codec, body_bytes) = compressor.compress(plain, &mut self.buffer[body_at..])?;
        let row = TableRow {
            id: *id,
            offset: narrow(OBJECT, "offset", self.length)?,
            stored_bytes: narrow(OBJECT, "stored_bytes", body_bytes + TAG_BYTES)?,
            plain_bytes: narrow(OBJECT, "plain_bytes", plain.len())?,
            codec,
            kind,
            // check_room keeps the count below 65 535.
            ordinal: u16::try_from(self.rows.len()).unwrap_or(u16::MAX),
        };
        let frame = row.frame();
        let aad = blob_aad(&self.header_bytes, &frame);
        let tag_at = body_at + body_bytes;
        let tag = self.cipher.seal(u32::from(row.ordinal), &aad, &mut self.buffer[body_at..tag_at]);
        self.buffer[tag_at..tag_at + TAG_BYTES].copy_from_slice(&tag);
        self.buffer[self.length..body_at].copy_from_slice(&frame);
        self.length = tag_at + TAG_BYTES;
        self.rows.push(row);
        self.hash_steps();
        Ok(row)
    }

    /// Makes the buffer at least `bytes` long.
    fn reserve(&mut self, bytes: usize) {
        if self.buffer.len() < bytes {
            let doubled = self.buffer.len().saturating_mul(2).min(index(magic::PACK_BYTES_MAX));
            self.buffer.resize(bytes.max(doubled), 0);
        }
    }

    fn hash_steps(&mut self) {
        let ready = self.length - self.length % HASH_STEP_BYTES;
        self.hasher.update(&self.buffer[self.hashed..ready]);
        self.hashed = ready;
    }

    /// Decodes the blob just pushed from the pack's own buffer and compares it with the bytes that it was
    /// made of, while both are still in the cache. Catches faults of memory, CPU and compressor.
    ///
    /// # Errors
    /// [`Error::SelfCheck`] when they differ, [`Error::NothingToCheck`] before the first push.
    pub fn check_last(&self, decompressor: &mut Decompressor, plain: &[u8]) -> Result<()> {
        let row = self.rows.last().ok_or(Error::NothingToCheck)?;
        let [mut body, mut back] = decompressor.take_scratch();
        let checked = self.decode_copy(decompressor, row, &mut body, &mut back);
        let same = checked.is_ok() && back == plain;
        decompressor.return_scratch([body, back]);
        if same { Ok(()) } else { Err(Error::SelfCheck { ordinal: row.ordinal }) }
    }

    fn decode_copy(
        &self,
        decompressor: &mut Decompressor,
        row: &TableRow,
        body: &mut Vec<u8>,
        back: &mut Vec<u8>,
    ) -> Result<()> {
        let stored = &self.buffer[row.range()][BLOB_FRAME_BYTES..];
        body.resize(stored.len() - TAG_BYTES, 0);
        back.resize(index(row.plain_bytes), 0);
        let aad = blob_aad(&self.header_bytes, &row.frame());
        self.cipher.open_to(OBJECT, u32::from(row.ordinal), &aad, stored, body)?;
        decompressor.decode(OBJECT, row.codec, body, back)
    }

    /// Appends table and footer. A pack without blobs is never finished: drop it.
    ///
    /// # Errors
    /// [`Error::Field`] when the pack is empty.
    pub fn finish(mut self) -> Result<FinishedPack> {
        if self.rows.is_empty() {
            return Err(Error::Field { object: OBJECT, field: "count", value: 0 });
        }
        let count = narrow(OBJECT, "count", self.rows.len())?;
        let table_offset = narrow(OBJECT, "table_offset", self.length)?;
        let mut table: Vec<u8> = self.rows.iter().flat_map(TableRow::encode).collect();
        let aad = table_aad(&self.header_bytes, count, table_offset);
        let tag = self.cipher.seal(TABLE_BOX, &aad, &mut table);
        self.buffer.truncate(self.length);
        self.buffer.extend_from_slice(&table);
        self.buffer.extend_from_slice(&tag);
        let table_bytes = narrow(OBJECT, "table_bytes", table.len() + TAG_BYTES)?;
        self.buffer.extend_from_slice(&magic::PACK_END);
        for field in [table_offset, table_bytes, count, 0] {
            self.buffer.extend_from_slice(&field.to_le_bytes());
        }
        self.hasher.update(&self.buffer[self.hashed..]);
        let hash = *self.hasher.finalize().as_bytes();
        self.buffer.extend_from_slice(&hash);
        let (name, kind) = (self.header.name, self.header.kind);
        Ok(FinishedPack { name, kind, bytes: self.buffer, rows: self.rows, header: self.header, hash })
    }
}
