//! Whole packs in memory: their table, and every blob in order.
//!
//! For what handles packs and not disks: verification, and storing a condemned pack's blobs anew. Reads of
//! single chunks go through [`crate::reader`].
//!
//! Invariant: rows come from the pack's own sealed table, never from an index.

use aquifer_format::{
    Decompressor, FOOTER_BYTES, KeyRing, PackHeader, PackName, PackReader, TableRow, decode_footer,
    decode_table,
};

use crate::{Error, Result};

/// A pack whose table was opened.
pub(crate) struct WholePack<'a> {
    bytes: &'a [u8],
    header: PackHeader,
    rows: Vec<TableRow>,
    reader: PackReader,
    blob: Vec<u8>,
    plain: Vec<u8>,
}

impl<'a> WholePack<'a> {
    /// Opens header, footer and table of the pack `name`.
    ///
    /// # Errors
    /// [`Error::Object`] with what is wrong with them.
    pub(crate) fn open(ring: &KeyRing, name: &PackName, bytes: &'a [u8]) -> Result<Self> {
        let named = |source| Error::Object { key: aquifer_format::key::pack(name), source };
        let header = PackHeader::decode(bytes).map_err(named)?;
        let tail = bytes.get(bytes.len().saturating_sub(FOOTER_BYTES)..).unwrap_or_default();
        let footer = decode_footer(tail, bytes.len() as u64).map_err(named)?;
        let start = footer.table_offset as usize;
        // A footer decodes only if the table ends where it begins.
        let table = bytes.get(start..start + footer.table_bytes as usize).unwrap_or_default();
        let rows = decode_table(ring, &header, &footer, table).map_err(named)?;
        let reader = PackReader::new(ring, &header).map_err(named)?;
        Ok(WholePack { bytes, header, rows, reader, blob: Vec::new(), plain: Vec::new() })
    }

    /// Its header.
    pub(crate) fn header(&self) -> &PackHeader {
        &self.header
    }

    /// Its table.
    pub(crate) fn rows(&self) -> &[TableRow] {
        &self.rows
    }

    /// The plain bytes of one of its rows, checked down to the id.
    pub(crate) fn blob(
        &mut self,
        decompressor: &mut Decompressor,
        row: &TableRow,
    ) -> aquifer_format::Result<&[u8]> {
        let end = usize::try_from(row.end()).unwrap_or(usize::MAX);
        self.blob.clear();
        // A table decodes only if its rows lie between header and table.
        self.blob.extend_from_slice(self.bytes.get(row.offset as usize..end).unwrap_or_default());
        self.plain.resize(row.plain_bytes as usize, 0);
        self.reader.open(decompressor, row, &mut self.blob, &mut self.plain)?;
        Ok(&self.plain)
    }
}
