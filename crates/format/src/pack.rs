//! Packs: one stored object of many sealed blobs, their table and a footer.
//!
//! Here are the fixed parts (header, frame, row, footer); [`builder`] writes packs, [`reader`] reads them.
//! The invariant: a blob opens only with its pack's header and its own frame, in its own place; who knows
//! header and row needs no other bytes of the pack. docs/FORMAT.md, "packs/".

pub mod builder;
pub mod reader;

use crate::cipher::{Cipher, Origin, TAG_BYTES};
use crate::codec::Codec;
use crate::cursor::{Cursor, index, widen};
use crate::error::{Error, Result};
use crate::id::{ChunkId, EpochId, PackName, RepositoryId, SessionId};
use crate::keys::{KeyRing, Purpose};
use crate::sealed::{HASH_BYTES, check_version, split_hash};
use crate::{key, magic};

pub use builder::{FinishedPack, PackBuilder};
pub use reader::{PackReader, decode_table, salvage, self_check};

pub(crate) const OBJECT: &str = "pack";

/// Size of the pack header in bytes.
pub const PACK_HEADER_BYTES: usize = 112;
/// Size of the frame before each blob in bytes.
pub const BLOB_FRAME_BYTES: usize = 48;
/// Size of a row of the table in bytes.
pub const ROW_BYTES: usize = 48;
/// Size of the footer in bytes.
pub const FOOTER_BYTES: usize = 56;
/// Size of the tag of each box in bytes.
pub const BLOB_TAG_BYTES: usize = TAG_BYTES;

/// Box index of the table; ordinals stay below.
pub(crate) const TABLE_BOX: u32 = 0xffff;
const CHECKED_HEADER_BYTES: usize = 96;

/// What a pack carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// Chunks of disks.
    Data,
    /// Tree nodes and records.
    Meta,
}

impl PackKind {
    fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Meta => 1,
        }
    }
}

/// What a blob is; part of how it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlobKind {
    /// A chunk of a disk.
    Data,
    /// A node of a disk's tree.
    Tree,
    /// A backup record.
    Record,
}

impl BlobKind {
    /// All kinds, in the order of their codes.
    pub const ALL: [Self; 3] = [Self::Data, Self::Tree, Self::Record];

    /// The byte in frames and rows.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Tree => 1,
            Self::Record => 2,
        }
    }

    /// The kind of a byte, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Greatest plain size in bytes.
    #[must_use]
    pub fn plain_bytes_max(self) -> u32 {
        match self {
            Self::Data => magic::CHUNK_BYTES_MAX,
            Self::Tree => crate::tree::NODE_BYTES_MAX,
            Self::Record => magic::RECORD_BYTES_MAX,
        }
    }
}

/// Where one blob lies in its pack, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableRow {
    /// Name of the plain bytes.
    pub id: ChunkId,
    /// Offset of the blob's frame in the pack, in bytes.
    pub offset: u32,
    /// Ciphertext and tag, without the frame, in bytes.
    pub stored_bytes: u32,
    /// Plain length in bytes, at least 1.
    pub plain_bytes: u32,
    /// How the plain bytes are stored.
    pub codec: Codec,
    /// What the blob is.
    pub kind: BlobKind,
    /// Place of the blob in the pack, counted from 0; its box index.
    pub ordinal: u16,
}

impl TableRow {
    /// Bytes of the blob in the pack: frame, ciphertext, tag.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        widen(BLOB_FRAME_BYTES) + u64::from(self.stored_bytes)
    }

    /// Offset of the first byte after the blob.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + self.blob_bytes()
    }

    /// Where the whole blob lies in its pack: frame, ciphertext, tag.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        let from = index(self.offset);
        from..from.saturating_add(BLOB_FRAME_BYTES).saturating_add(index(self.stored_bytes))
    }

    /// The 48 bytes before the blob's ciphertext.
    pub(crate) fn frame(&self) -> [u8; BLOB_FRAME_BYTES] {
        let mut out = [0; BLOB_FRAME_BYTES];
        out[..4].copy_from_slice(&magic::BLOB);
        out[4] = self.codec.code();
        out[5] = self.kind.code();
        out[6..8].copy_from_slice(&self.ordinal.to_le_bytes());
        out[8..12].copy_from_slice(&self.plain_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[16..].copy_from_slice(&self.id.0);
        out
    }

    /// Reads a frame that lies at `offset`.
    pub(crate) fn from_frame(frame: &[u8], offset: u32) -> Result<Self> {
        let mut cursor = Cursor::new("blob frame", frame);
        cursor.magic(magic::BLOB)?;
        let codec = read_codec(&mut cursor)?;
        let kind = read_kind(&mut cursor)?;
        let ordinal = cursor.u16()?;
        let plain_bytes = cursor.u32()?;
        let stored_bytes = cursor.u32()?;
        let id = ChunkId(cursor.array()?);
        let row = Self { id, offset, stored_bytes, plain_bytes, codec, kind, ordinal };
        row.check(&cursor)?;
        Ok(row)
    }

    pub(crate) fn encode(&self) -> [u8; ROW_BYTES] {
        let mut out = [0; ROW_BYTES];
        out[..32].copy_from_slice(&self.id.0);
        out[32..36].copy_from_slice(&self.offset.to_le_bytes());
        out[36..40].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.plain_bytes.to_le_bytes());
        out[44] = self.codec.code();
        out[45] = self.kind.code();
        out[46..].copy_from_slice(&self.ordinal.to_le_bytes());
        out
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let id = ChunkId(cursor.array()?);
        let (offset, stored_bytes, plain_bytes) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (codec, kind) = (read_codec(cursor)?, read_kind(cursor)?);
        let ordinal = cursor.u16()?;
        let row = Self { id, offset, stored_bytes, plain_bytes, codec, kind, ordinal };
        row.check(cursor)?;
        Ok(row)
    }

    /// The laws of a row by itself.
    fn check(&self, cursor: &Cursor<'_>) -> Result<()> {
        let plain = u64::from(self.plain_bytes);
        let stored = u64::from(self.stored_bytes);
        cursor.limit("plain_bytes", plain, u64::from(self.kind.plain_bytes_max()))?;
        if plain == 0 {
            return Err(cursor.field("plain_bytes", 0));
        }
        let tag = widen(TAG_BYTES);
        let fits = match self.codec {
            Codec::Raw => stored == plain + tag,
            Codec::Zstd => stored > tag && stored < plain + tag,
        };
        if !fits {
            return Err(cursor.field("stored_bytes", stored));
        }
        if u32::from(self.ordinal) >= magic::PACK_BLOBS_MAX {
            return Err(cursor.field("ordinal", u64::from(self.ordinal)));
        }
        cursor.limit("offset", self.end(), u64::from(magic::PACK_BYTES_MAX))
    }
}

fn read_codec(cursor: &mut Cursor<'_>) -> Result<Codec> {
    let code = cursor.u8()?;
    Codec::from_code(code).ok_or_else(|| cursor.field("codec", u64::from(code)))
}

fn read_kind(cursor: &mut Cursor<'_>) -> Result<BlobKind> {
    let code = cursor.u8()?;
    BlobKind::from_code(code).ok_or_else(|| cursor.field("kind", u64::from(code)))
}

/// The first [`PACK_HEADER_BYTES`] of a pack: who wrote it, and the salt of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// What the pack carries.
    pub kind: PackKind,
    /// False in plain mode.
    pub sealed: bool,
    /// Master key generation; 0 in plain mode.
    pub generation: u32,
    /// Data epoch; zero in plain mode.
    pub epoch: EpochId,
    /// Repository that first wrote it (a replica keeps the bytes).
    pub repository: RepositoryId,
    /// Name under which it was first written (a replica may store it under another).
    pub name: PackName,
    /// Salt of the pack's key.
    pub salt: [u8; 32],
}

impl PackHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut out = [0; PACK_HEADER_BYTES];
        out[..8].copy_from_slice(&magic::PACK);
        out[8..10].copy_from_slice(&magic::VERSION.to_le_bytes());
        out[10] = self.kind.code();
        out[11] = u8::from(self.sealed);
        out[12..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.0);
        out[24..28].copy_from_slice(&self.name.number.to_le_bytes());
        out[32..48].copy_from_slice(&self.repository.0);
        out[48..64].copy_from_slice(&self.name.session.0);
        out[64..96].copy_from_slice(&self.salt);
        let checksum = blake3::hash(&out[..CHECKED_HEADER_BYTES]);
        out[CHECKED_HEADER_BYTES..].copy_from_slice(&checksum.as_bytes()[..16]);
        out
    }

    /// Reads the header from the first bytes of a pack; more bytes may follow.
    ///
    /// # Errors
    /// [`Error::Version`] for a newer format, else a kind of corruption.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("pack header", bytes);
        let mut header = Cursor::new("pack header", cursor.take(PACK_HEADER_BYTES)?);
        header.magic(magic::PACK)?;
        check_version(&mut header, "pack header")?;
        let kind = match header.u8()? {
            0 => PackKind::Data,
            1 => PackKind::Meta,
            other => return Err(header.field("kind", u64::from(other))),
        };
        let sealed = match header.u8()? {
            0 => false,
            1 => true,
            other => return Err(header.field("mode", u64::from(other))),
        };
        let generation = header.u32()?;
        let epoch = EpochId(header.array()?);
        let number = header.u32()?;
        header.reserved(4)?;
        let repository = RepositoryId(header.array()?);
        let session = SessionId(header.array()?);
        let salt = header.array()?;
        let checksum = header.array::<16>()?;
        if blake3::hash(&bytes[..CHECKED_HEADER_BYTES]).as_bytes()[..16] != checksum {
            return Err(Error::Checksum { object: "pack header" });
        }
        let name = PackName { session, number };
        Ok(Self { kind, sealed, generation, epoch, repository, name, salt })
    }

    /// Fails unless the pack was written by this repository under this name.
    ///
    /// For packs met in a listing; a segment row decides by itself which header its pack has.
    ///
    /// # Errors
    /// [`Error::Origin`].
    pub fn check_origin(&self, repository: &RepositoryId, name: &PackName) -> Result<()> {
        if self.repository == *repository && self.name == *name {
            return Ok(());
        }
        Err(Error::Origin {
            object: OBJECT,
            expected: format!("{name} of repository {repository}"),
            found: format!("{} of repository {}", self.name, self.repository),
        })
    }

    /// The pack's cipher.
    pub(crate) fn cipher(&self, ring: &KeyRing) -> Result<Cipher> {
        let key = key::pack(&self.name);
        let origin = Origin { repository: &self.repository, key: &key, salt: &self.salt };
        ring.cipher(OBJECT, Purpose::Data(self.epoch), self.sealed, self.generation, &origin)
    }
}

/// AAD of a blob: the pack's header, then the blob's frame.
pub(crate) fn blob_aad(
    header: &[u8; PACK_HEADER_BYTES],
    frame: &[u8; BLOB_FRAME_BYTES],
) -> [u8; PACK_HEADER_BYTES + BLOB_FRAME_BYTES] {
    let mut out = [0; PACK_HEADER_BYTES + BLOB_FRAME_BYTES];
    out[..PACK_HEADER_BYTES].copy_from_slice(header);
    out[PACK_HEADER_BYTES..].copy_from_slice(frame);
    out
}

/// AAD of the table: the pack's header, `AQFT`, count, table offset.
pub(crate) fn table_aad(header: &[u8; PACK_HEADER_BYTES], count: u32, offset: u32) -> Vec<u8> {
    [&header[..], &magic::TABLE, &count.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// The last [`FOOTER_BYTES`] of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Offset of the sealed table in bytes.
    pub table_offset: u32,
    /// Size of the sealed table with its tag in bytes.
    pub table_bytes: u32,
    /// Number of rows.
    pub count: u32,
    /// BLAKE3 of everything before it.
    pub hash: [u8; 32],
}

/// Reads the footer out of the last [`FOOTER_BYTES`] of a pack of `object_bytes`.
///
/// # Errors
/// A kind of corruption; in particular when the table does not end where the footer begins.
pub fn decode_footer(tail: &[u8], object_bytes: u64) -> Result<Footer> {
    const FOOTER: &str = "pack footer";
    let mut cursor = Cursor::new(FOOTER, tail);
    cursor.magic(magic::PACK_END)?;
    let (table_offset, table_bytes, count) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    cursor.reserved(4)?;
    let hash = cursor.array()?;
    cursor.end()?;
    cursor.limit("object bytes", object_bytes, u64::from(magic::PACK_BYTES_MAX))?;
    cursor.limit("count", u64::from(count), u64::from(magic::PACK_BLOBS_MAX))?;
    if count == 0 {
        return Err(cursor.field("count", 0));
    }
    if u64::from(table_bytes) != u64::from(count) * widen(ROW_BYTES) + widen(TAG_BYTES) {
        return Err(cursor.field("table_bytes", u64::from(table_bytes)));
    }
    if u64::from(table_offset) + u64::from(table_bytes) + widen(FOOTER_BYTES) != object_bytes {
        return Err(cursor.field("table_offset", u64::from(table_offset)));
    }
    Ok(Footer { table_offset, table_bytes, count, hash })
}

/// Checks a whole pack without a key: BLAKE3 of everything before the last 32 bytes (verify level V1).
///
/// # Errors
/// [`Error::Magic`], [`Error::Truncated`] or [`Error::Checksum`].
pub fn check_hash(bytes: &[u8]) -> Result<[u8; HASH_BYTES]> {
    split_hash(OBJECT, magic::PACK, bytes).map(|(_, hash)| hash)
}
