//! Rebuilding the index: from segments, or from the tables at the end of the packs alone.
//!
//! A pack costs two small ranged reads. A pack with a torn tail is salvaged by reading it whole.
//!
//! Invariant: a pack is indexed only with a header and a table that opened under the repository's keys. Packs that
//! nobody published may get in; they are orphans whose collection checks their own tables first (docs/FORMAT.md, G4).

use std::collections::HashSet;
use std::sync::Arc;

use aquifer_format::id::PackName;
use aquifer_format::keys::KeyRing;
use aquifer_format::pack::{
    FOOTER_BYTES, PACK_HEADER_BYTES, PackHeader, TableRow, decode_footer, decode_table, salvage,
};
use aquifer_format::segment::SegmentPack;
use aquifer_index::ChunkIndex;
use aquifer_store::{GetRange, Listed, ObjectStore};
use tokio::task::JoinSet;

use crate::index_sync::{RebuildProgress, Report};
use crate::log::optional;
use crate::repository::{Repository, blocking};
use crate::{Error, Result, layout};

/// Packs whose tables are read at one time.
const AT_ONCE: usize = 8;

/// What an index is rebuilt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildFrom {
    /// The segments that the log names: fast.
    Segments,
    /// The tables of all packs in the store: when segments are lost or distrusted.
    Packs,
}

impl Repository {
    /// Throws the index away and makes it anew. `report` hears how far it is.
    ///
    /// # Errors
    /// Those of the stores and of the index. Opened for reading, the new index lasts as long as the repository is open.
    pub async fn rebuild_index(
        &self,
        from: RebuildFrom,
        report: &(dyn Fn(RebuildProgress) + Send + Sync),
    ) -> Result<()> {
        let state = self.log.replay().await?;
        match from {
            RebuildFrom::Segments => self.follower.read_segments_anew(&state, report).await,
            RebuildFrom::Packs => self.follower.read_packs_anew(&state, report).await,
        }
    }
}

/// Reads the tables of packs into an index.
pub(crate) struct Tables<'a> {
    pub(crate) index: &'a Arc<dyn ChunkIndex>,
    pub(crate) packs: &'a Arc<dyn ObjectStore>,
    pub(crate) ring: &'a KeyRing,
}

impl Tables<'_> {
    /// Adds every pack of the store that the index does not have.
    pub(crate) async fn add_missing(&self, report: Report<'_>) -> Result<()> {
        let known: HashSet<PackName> = self.index.packs()?.into_iter().map(|pack| pack.pack).collect();
        let (mut done, mut last) = (0, None);
        loop {
            let page = self.packs.list(layout::PACKS, last.as_ref()).await?;
            for name in &page.foreign {
                tracing::warn!(name, "a foreign name among the packs is left alone");
            }
            let unknown: Vec<_> = page.entries.iter().filter(|entry| !is_known(&known, entry)).collect();
            for few in unknown.chunks(AT_ONCE) {
                self.add(few).await?;
                done += u64::try_from(few.len()).unwrap_or(u64::MAX);
                // A listing does not say how much is to come.
                report(RebuildProgress { done, total: done });
            }
            match page.entries.into_iter().next_back() {
                Some(entry) if page.more => last = Some(entry.key),
                _ => return Ok(()),
            }
        }
    }

    async fn add(&self, listed: &[&Listed]) -> Result<()> {
        let mut tasks = JoinSet::new();
        for entry in listed {
            let (store, ring, entry) = (Arc::clone(self.packs), self.ring.clone(), (*entry).clone());
            tasks.spawn(async move { (read_pack(&store, &ring, &entry).await, entry) });
        }
        let mut found = Vec::new();
        for (result, entry) in tasks.join_all().await {
            match result {
                Ok(pack) => found.extend(pack),
                Err(Error::Format(error)) => {
                    tracing::warn!(key = %entry.key, %error, "a pack cannot be read; its chunks are not indexed");
                }
                Err(other) => return Err(other),
            }
        }
        // Tasks end in any order; the index shall not depend on it.
        found.sort_by_key(|pack: &SegmentPack| pack.stored_as);
        let index = Arc::clone(self.index);
        blocking(move || Ok(index.insert_packs(&found)?)).await
    }
}

fn is_known(known: &HashSet<PackName>, entry: &Listed) -> bool {
    name_of(entry).is_some_and(|name| known.contains(&name))
}

fn name_of(entry: &Listed) -> Option<PackName> {
    entry.key.as_str().strip_prefix(layout::PACKS)?.parse().ok()
}

/// Reads header and table of a pack; `None` when it was deleted meanwhile.
async fn read_pack(
    store: &Arc<dyn ObjectStore>,
    ring: &KeyRing,
    entry: &Listed,
) -> Result<Option<SegmentPack>> {
    let Some(stored_as) = name_of(entry) else { return Ok(None) };
    let Some(header) = read_header(store, entry).await? else { return Ok(None) };
    let (rows, hash) = match read_table(store, ring, &header, entry).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(Error::Format(error)) => {
            tracing::warn!(key = %entry.key, %error, "the table of a pack does not open; reading the pack whole");
            let Some(object) = optional(store.get(&entry.key, GetRange::Whole).await)? else {
                return Ok(None);
            };
            let ring = ring.clone();
            // No hash is known of a torn pack, so verification will call it damaged, which it is.
            (blocking(move || Ok(salvage(&ring, &object)?)).await?, [0; 32])
        }
        Err(other) => return Err(other),
    };
    let (name, kind) = (header.name, header.kind);
    Ok(Some(SegmentPack { name, stored_as, bytes: entry.bytes, kind, header, hash, rows }))
}

/// The rows of a pack by its own table, in three small reads; `None` when it is not there.
///
/// # Errors
/// Those of the format when header, footer or table do not open; those of the store.
pub(crate) async fn read_rows(
    store: &Arc<dyn ObjectStore>,
    ring: &KeyRing,
    entry: &Listed,
) -> Result<Option<Vec<TableRow>>> {
    let Some(header) = read_header(store, entry).await? else { return Ok(None) };
    Ok(read_table(store, ring, &header, entry).await?.map(|(rows, _)| rows))
}

async fn read_header(store: &Arc<dyn ObjectStore>, entry: &Listed) -> Result<Option<PackHeader>> {
    let header_bytes = u64::try_from(PACK_HEADER_BYTES).unwrap_or(u64::MAX);
    let range = GetRange::From { offset: 0, bytes: header_bytes.min(entry.bytes) };
    let header = optional(store.get(&entry.key, range).await)?;
    Ok(header.map(|header| PackHeader::decode(&header)).transpose()?)
}

/// Reads footer and table of a pack, and the hash that the footer names; `None` when the pack was deleted meanwhile.
async fn read_table(
    store: &Arc<dyn ObjectStore>,
    ring: &KeyRing,
    header: &PackHeader,
    entry: &Listed,
) -> Result<Option<(Vec<TableRow>, [u8; 32])>> {
    let footer_bytes = u64::try_from(FOOTER_BYTES).unwrap_or(u64::MAX).min(entry.bytes);
    let tail = optional(store.get(&entry.key, GetRange::Last(footer_bytes)).await)?;
    let Some(tail) = tail else { return Ok(None) };
    let footer = decode_footer(&tail, entry.bytes)?;
    let range =
        GetRange::From { offset: u64::from(footer.table_offset), bytes: u64::from(footer.table_bytes) };
    let Some(table) = optional(store.get(&entry.key, range).await)? else { return Ok(None) };
    Ok(Some((decode_table(ring, header, &footer, &table)?, footer.hash)))
}
