//! Storing anew what a session counted on and a collector condemned meanwhile (FORMAT.md, "Writer", W4).
//!
//! A condemned pack still exists for a grace period, so its blobs are taken from there. What has another live
//! copy is not stored again: the usual deduplication decides. Nothing here appends to the log.

use std::sync::Arc;

use aquifer_format::{BlobKind, Decompressor, PackName};

use crate::Result;
use crate::plane::Plane;
use crate::repository::blocking;
use crate::whole::WholePack;
use crate::writer::{ChunkWriter, PlainChunk};

impl Plane {
    /// Stores the blobs of `pack` anew in this session's packs, as far as no live copy of them is known. The
    /// caller flushes and publishes.
    ///
    /// # Errors
    /// [`crate::Error::PackLost`] when the pack is gone; [`crate::Error::Object`] or [`crate::Error::Damaged`]
    /// when it does not open. The chunks must then come from the source again.
    pub(crate) async fn store_again(self: &Arc<Self>, pack: &PackName) -> Result<()> {
        let (body, name, plane) = (self.parts().fetch_whole(pack).await?, *pack, Arc::clone(self));
        let meta = blocking(move || store_chunks(&plane, &name, &body)).await?;
        for (kind, plain) in meta {
            self.store_meta(kind, &plain).await?;
        }
        Ok(())
    }
}

/// Stores the pack's data chunks and returns its other blobs, of which a meta pack has a few MiB.
fn store_chunks(plane: &Arc<Plane>, name: &PackName, body: &[u8]) -> Result<Vec<(BlobKind, Vec<u8>)>> {
    let mut pack = WholePack::open(&plane.parts().ring, name, body)?;
    let mut decompressor = Decompressor::new()?;
    let mut writer = ChunkWriter::new(Arc::clone(plane));
    let (mut meta, mut stored) = (Vec::new(), Vec::new());
    for row in pack.rows().to_vec() {
        let plain = pack.blob(&mut decompressor, &row).map_err(|source| crate::Error::Damaged {
            pack: *name,
            chunk: row.id,
            source: Box::new(source),
        })?;
        if row.kind == BlobKind::Data {
            writer.store(&[PlainChunk { bytes: plain, parent: None }], &mut stored)?;
        } else {
            meta.push((row.kind, plain.to_vec()));
        }
    }
    writer.finish()?;
    Ok(meta)
}
