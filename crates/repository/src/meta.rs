//! Tree nodes and records: small blobs that share one meta pack a session.
//!
//! They are deduplicated exactly like chunks (ids are separated by kind), so an unchanged subtree of any two
//! backups is one object. Not for data: the lock is held while a node is sealed, which takes microseconds.
//!
//! Invariant: a meta pack holds only trees and records, so that it can be read and cached whole.

use std::sync::Arc;

use aquifer_format::{BlobKind, ChunkId, FinishedPack, PackBuilder, PackKind};

use crate::Result;
use crate::dedup::{Found, lock};
use crate::plane::Plane;
use crate::session::BackupSession;
use crate::writer::Tools;

/// The open meta pack of a session.
#[derive(Default)]
pub(crate) struct MetaPack {
    tools: Option<Tools>,
    open: Option<PackBuilder>,
}

impl MetaPack {
    /// Ends the open pack, if it holds anything.
    pub(crate) fn take(&mut self) -> Result<Option<FinishedPack>> {
        match self.open.take() {
            Some(pack) if pack.count() > 0 => Ok(Some(pack.finish()?)),
            Some(_) | None => Ok(None),
        }
    }

    /// Seals one blob; gives back the pack that was ended for it, if one was full.
    fn push(
        &mut self,
        plane: &Plane,
        kind: BlobKind,
        id: &ChunkId,
        plain: &[u8],
    ) -> Result<Option<FinishedPack>> {
        let target = plane.parts().settings.meta_pack_bytes;
        let full =
            self.open.as_ref().is_some_and(|pack| pack.bytes() >= target || !pack.has_room_for(plain.len()));
        let ended = if full { self.take()? } else { None };
        let pack = match &mut self.open {
            Some(pack) => pack,
            none => none.insert(plane.new_pack(PackKind::Meta, Vec::new())?),
        };
        let tools = match &mut self.tools {
            Some(tools) => tools,
            none => none.insert(Tools::new(&plane.parts().settings)?),
        };
        tools.seal(pack, kind, id, plain)?;
        Ok(ended)
    }
}

/// Whether a meta blob had to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MetaStored {
    /// Its id.
    pub(crate) id: ChunkId,
    /// Not known before.
    pub(crate) new: bool,
}

impl Plane {
    /// Stores a tree node or a record, unless the repository has it.
    pub(crate) async fn store_meta(&self, kind: BlobKind, plain: &[u8]) -> Result<MetaStored> {
        self.check()?;
        let id = self.parts().ring.chunk_id(kind, plain);
        let new = self.store_blob(kind, &id, plain).await.map_err(|error| self.fail(error))?;
        Ok(MetaStored { id, new })
    }

    async fn store_blob(&self, kind: BlobKind, id: &ChunkId, plain: &[u8]) -> Result<bool> {
        let mut found = Vec::with_capacity(1);
        self.dedup().absent(self.parts(), &[*id], &mut Vec::with_capacity(1), &mut found)?;
        if found.first() != Some(&Found::Absent) {
            return Ok(false);
        }
        self.push_meta(kind, id, plain).await?;
        Ok(true)
    }

    /// Stores a tree node or a record although the repository has it, once a session. `id` must be that of `plain`.
    pub(crate) async fn store_meta_anew(&self, kind: BlobKind, id: &ChunkId, plain: &[u8]) -> Result<()> {
        self.check()?;
        if !self.dedup().claim(id) {
            return Ok(());
        }
        self.push_meta(kind, id, plain).await.map_err(|error| self.fail(error))
    }

    async fn push_meta(&self, kind: BlobKind, id: &ChunkId, plain: &[u8]) -> Result<()> {
        let ended = lock(self.meta()).push(self, kind, id, plain)?;
        match ended {
            Some(pack) => self.submit(pack).await,
            None => Ok(()),
        }
    }
}

impl BackupSession {
    /// Stores a tree node or the record in the session's meta pack and returns its id; a blob that the
    /// repository has already is not stored again.
    ///
    /// # Errors
    /// Those of the chunk index and the format; [`crate::Error::SessionFailed`] after any failure of the session.
    pub async fn store_meta(self: &Arc<Self>, kind: BlobKind, plain: &[u8]) -> Result<ChunkId> {
        Ok(self.plane.store_meta(kind, plain).await?.id)
    }
}
