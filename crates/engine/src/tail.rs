//! The last chunk of the base that holds anything and is said to be unchanged: it is always read and compared.
//!
//! A disk that shrank and grew again between two backups has lost its end without a mark in its bitmap, because QEMU cuts
//! bitmaps with the disk and lets them grow clean. Whatever was lost lies at the end: so if anything was, this chunk was,
//! and one read finds it. Not here: the random sample ([`crate::draw`]).

use aquifer_nbd::{Client, STATE_DIRTY};
use aquifer_repository::TreeReader;

use crate::backup_disk::Halt;
use crate::changes::Changes;
use crate::plan::Grid;

/// Finds the chunk, from the end of the base: a question and a path for each leaf whose chunks have all changed.
///
/// # Errors
/// The source's; a doubt where the base cannot be read.
pub(crate) async fn last_kept(
    client: &Client,
    base: &mut TreeReader,
    grid: Grid,
    changes: &Changes,
) -> Result<Option<u64>, Halt> {
    let mut end = u64::MAX;
    loop {
        let found = base.last_leaf(end).await;
        let found =
            found.map_err(|error| Halt::Doubt(format!("the earlier backup cannot be read: {error}")))?;
        let Some((leaf, node)) = found else { return Ok(None) };
        let chunks = grid.stripe_chunks(leaf);
        let mut dirty = Vec::new();
        let mut extents = client.extents(&changes.context, grid.bytes_of(chunks.clone()))?;
        while let Some(extent) = extents.next().await? {
            if extent.flags & STATE_DIRTY != 0 {
                dirty.push(extent.offset..extent.offset + extent.bytes);
            }
        }
        let unchanged = |chunk: &u64| {
            let bytes = grid.bytes_of(*chunk..*chunk + 1);
            bytes.end <= changes.base_bytes
                && !dirty.iter().any(|dirty| dirty.start < bytes.end && bytes.start < dirty.end)
        };
        let held = node.iter().map(|(slot, _)| chunks.start + u64::from(slot));
        if let Some(chunk) = held.filter(unchanged).last() {
            return Ok(Some(chunk));
        }
        end = leaf;
    }
}
