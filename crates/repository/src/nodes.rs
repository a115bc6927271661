//! Reading single blobs from whichever copy opens: tree nodes and records, whose packs are fetched whole and kept, and
//! chunks that the fast way ([`crate::reader`]) could not read. Decoded nodes are kept for a while.
//!
//! Two bounded caches: [`MetaCache`], shared by a repository, holds the stored bytes of recent meta packs, so
//! that neighbouring nodes cost one request; [`Nodes`], one a tree walk, holds a few decoded nodes, so that a
//! walk in order reads each node once. Neither is ever as large as a tree.
//!
//! Invariant: a blob is returned only if its keyed id is the one asked for; every known copy is tried before
//! an error is given.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aquifer_format::{BlobKind, ChunkId, Decompressor, Node, PackName, PackReader};
use aquifer_index::Location;
use bytes::{Bytes, BytesMut};

use crate::dedup::lock;
use crate::parts::Parts;
use crate::reader::{blob_bytes, blob_of};
use crate::{Error, Result};

/// Stored bytes of meta packs that a repository keeps in memory: four full packs.
pub(crate) const META_CACHE_BYTES: usize = 32 << 20;
/// Decoded nodes that one tree walk keeps: several paths of the greatest height.
const NODES_KEPT: usize = 32;

/// Recent meta packs as stored, newest use first.
#[derive(Debug, Default)]
pub(crate) struct MetaCache {
    packs: Mutex<VecDeque<(PackName, Bytes)>>,
}

impl MetaCache {
    fn get(&self, pack: &PackName) -> Option<Bytes> {
        let mut packs = lock(&self.packs);
        let at = packs.iter().position(|(name, _)| name == pack)?;
        let hit = packs.remove(at)?;
        packs.push_front(hit.clone());
        Some(hit.1)
    }

    /// Drops everything.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        lock(&self.packs).clear();
    }

    fn put(&self, pack: PackName, body: Bytes) {
        let mut packs = lock(&self.packs);
        packs.retain(|(name, _)| *name != pack);
        packs.push_front((pack, body));
        let mut sum = 0;
        let kept = packs.iter().take_while(|(_, body)| {
            sum += body.len();
            sum <= META_CACHE_BYTES
        });
        let kept = kept.count().max(1);
        packs.truncate(kept);
    }
}

impl Parts {
    /// Reads a blob from whichever copy still opens: plain bytes whose keyed id is `id`.
    ///
    /// # Errors
    /// [`Error::Missing`] when no copy is known; otherwise the error of the last copy tried.
    pub(crate) async fn read_blob(&self, kind: BlobKind, id: &ChunkId) -> Result<Vec<u8>> {
        let mut failed = Error::Missing { chunk: *id };
        for copy in self.copies(id)? {
            match self.read_copy(kind, &copy).await {
                Ok(plain) => return Ok(plain),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn read_copy(&self, kind: BlobKind, copy: &Location) -> Result<Vec<u8>> {
        if copy.row.kind != kind || copy.row.plain_bytes > kind.plain_bytes_max() {
            return Err(Error::IndexRow {
                chunk: copy.row.id,
                pack: copy.pack,
                plain_bytes: copy.row.plain_bytes,
            });
        }
        let mut blob = match kind {
            BlobKind::Data => {
                self.fetch(&copy.pack, u64::from(copy.row.offset), u64::from(blob_bytes(copy))).await?
            }
            _ => BytesMut::from(blob_of(&self.meta_pack(&copy.pack).await?, copy)?),
        };
        let mut plain = vec![0; copy.row.plain_bytes as usize];
        PackReader::new(&self.ring, &copy.header)
            .and_then(|reader| reader.open(&mut Decompressor::new()?, &copy.row, &mut blob, &mut plain))
            .map_err(|source| Error::Damaged {
                pack: copy.pack,
                chunk: copy.row.id,
                source: Box::new(source),
            })?;
        Ok(plain)
    }

    async fn meta_pack(&self, pack: &PackName) -> Result<Bytes> {
        if let Some(body) = self.meta_cache.get(pack) {
            return Ok(body);
        }
        let body = self.fetch_whole(pack).await?;
        self.meta_cache.put(*pack, body.clone());
        Ok(body)
    }
}

/// Decoded nodes for one walk, and how many were read for it.
pub(crate) struct Nodes {
    parts: Parts,
    kept: VecDeque<(ChunkId, Arc<Node>)>,
    reads: u64,
}

impl Nodes {
    /// Nothing read yet.
    pub(crate) fn new(parts: Parts) -> Self {
        Nodes { parts, kept: VecDeque::with_capacity(NODES_KEPT), reads: 0 }
    }

    /// The node `id`, which must be one of `level`.
    ///
    /// # Errors
    /// Those of [`Parts::read_blob`]; [`Error::Node`] when the bytes are no node of that level.
    pub(crate) async fn get(&mut self, id: &ChunkId, level: u8) -> Result<Arc<Node>> {
        if let Some(at) = self.kept.iter().position(|(kept, node)| kept == id && node.level() == level)
            && let Some(hit) = self.kept.remove(at)
        {
            self.kept.push_front(hit.clone());
            return Ok(hit.1);
        }
        let plain = self.parts.read_blob(BlobKind::Tree, id).await?;
        let node = Node::decode(&plain, level).map_err(|source| Error::Node { node: *id, level, source })?;
        let node = Arc::new(node);
        self.reads += 1;
        self.kept.truncate(NODES_KEPT - 1);
        self.kept.push_front((*id, Arc::clone(&node)));
        Ok(node)
    }

    /// Nodes read and decoded, kept ones not counted again.
    pub(crate) fn reads(&self) -> u64 {
        self.reads
    }
}
