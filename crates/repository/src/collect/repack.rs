//! Rewriting what is needed of packs that are mostly garbage (docs/FORMAT.md, G3).
//!
//! A pack is read whole, its marked blobs are opened down to their ids, sealed anew in packs of the collection's own
//! session, and published. The old pack becomes a candidate like any other: that everything needed of it lies elsewhere
//! is proven later, by tables that are read back from the store.
//!
//! Invariant: a pack with a blob that does not open is left as it is.

use std::sync::Arc;

use aquifer_format::{BlobKind, ChunkId, Decompressor, PackName};
use bytes::Bytes;

use super::marks::PackMarks;
use super::plan::Sparse;
use super::report::{CollectReport, PackFate};
use crate::plane::Plane;
use crate::repository::blocking;
use crate::verify::walk::is_damage;
use crate::whole::WholePack;
use crate::writer::ChunkWriter;
use crate::writing::Writing;
use crate::{Error, Result};

/// Rewrites packs one after the other; uploads run meanwhile.
pub(super) struct Repack<'a> {
    writing: &'a Writing,
    writer: Option<ChunkWriter>,
}

/// A blob of a meta pack.
type Meta = (BlobKind, ChunkId, Vec<u8>);

impl<'a> Repack<'a> {
    pub(super) fn new(writing: &'a Writing) -> Self {
        Repack { writing, writer: None }
    }

    /// Rewrites what `marks` say is needed of a pack; `false` when it cannot be read whole.
    ///
    /// # Errors
    /// Those of the store and of the session.
    pub(super) async fn rewrite(
        &mut self,
        sparse: &Sparse,
        marks: &PackMarks,
        report: &mut CollectReport,
    ) -> Result<bool> {
        let plane = &self.writing.plane;
        let rewritten = match plane.parts().fetch_whole(&sparse.pack).await {
            Ok(body) => self.blobs(sparse.pack, body, marks.clone()).await,
            Err(error) => Err(error),
        };
        match rewritten {
            Ok(meta) => {
                for (kind, id, plain) in meta {
                    plane.store_meta_anew(kind, &id, &plain).await?;
                }
                report.rewritten.objects += marks.blobs;
                report.rewritten.bytes += marks.bytes;
                let why = format!("{} of its {} bytes are needed", sparse.needed_bytes, sparse.bytes);
                report.decide(sparse.pack, sparse.bytes, PackFate::Rewritten, why);
                Ok(true)
            }
            Err(error) if is_damage(&error) => {
                let why = format!("it was to be rewritten, and is damaged: {error}");
                report.decide(sparse.pack, sparse.bytes, PackFate::Kept, why);
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    async fn blobs(&mut self, pack: PackName, body: Bytes, marks: PackMarks) -> Result<Vec<Meta>> {
        let plane = Arc::clone(&self.writing.plane);
        let mut writer = self.writer.take().unwrap_or_else(|| ChunkWriter::new(Arc::clone(&plane)));
        let (writer, meta) = blocking(move || {
            let meta = seal_anew(&plane, &mut writer, &pack, &body, &marks);
            Ok((writer, meta))
        })
        .await?;
        self.writer = Some(writer);
        meta
    }

    /// Stores and publishes what is rewritten.
    ///
    /// # Errors
    /// Those of the store, the session and the log.
    pub(super) async fn finish(mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            blocking(move || writer.finish()).await?;
        }
        self.writing.plane.flush().await?;
        self.writing.publish().await
    }
}

/// Seals the marked data chunks of a pack anew, and returns its other marked blobs.
fn seal_anew(
    plane: &Plane,
    writer: &mut ChunkWriter,
    name: &PackName,
    body: &[u8],
    marks: &PackMarks,
) -> Result<Vec<Meta>> {
    let mut pack = WholePack::open(&plane.parts().ring, name, body)?;
    let mut decompressor = Decompressor::new()?;
    let rows: Vec<_> = pack.rows().iter().filter(|row| marks.has(row.ordinal)).copied().collect();
    let damaged = |id: ChunkId, source| Error::Damaged { pack: *name, chunk: id, source: Box::new(source) };
    // All are opened before any is stored: a damaged pack leaves nothing behind.
    for row in &rows {
        pack.blob(&mut decompressor, row).map_err(|source| damaged(row.id, source))?;
    }
    let mut meta = Vec::new();
    for row in &rows {
        let plain = pack.blob(&mut decompressor, row).map_err(|source| damaged(row.id, source))?;
        if row.kind == BlobKind::Data {
            writer.store_anew(&row.id, plain)?;
        } else {
            meta.push((row.kind, row.id, plain.to_vec()));
        }
    }
    Ok(meta)
}
