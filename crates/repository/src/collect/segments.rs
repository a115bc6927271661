//! Merging segments: many small ones, or ones that mostly name packs that are gone, become few (docs/FORMAT.md, G8).
//!
//! Segments are caches of the packs' tables, so a lost one costs time only. But the log's state remembers every pack that
//! is gone until no segment names it, so this is also what lets the state forget.
//!
//! Invariant: old segments are deleted after the `Reindex` that replaces them is in the log; the state forgets a pack
//! only when every segment was read and none that stays names it.

use std::collections::{BTreeSet, HashSet};

use aquifer_format::log::Body;
use aquifer_format::segment::{SegmentPack, decode_segment};
use aquifer_format::{PackName, SegmentName, State};
use aquifer_store::GetRange;

use super::listing::Listing;
use super::report::CollectReport;
use crate::log::{Attempt, optional};
use crate::publish::{Publisher, SEGMENT_BYTES};
use crate::repository::blocking;
use crate::verify::walk::is_damage;
use crate::writing::Writing;
use crate::{Result, layout};

/// A segment below this many stored bytes is small.
const SMALL_BYTES: u64 = 1 << 20;
/// So many small segments are merged.
const SMALL_COUNT: usize = 16;
/// One gone pack in so many known ones is worth reading all segments for.
const GONE_SHARE: usize = 4;

/// What is to be merged.
struct Merge {
    segments: Vec<SegmentName>,
    /// All segments are read, so what is gone can be forgotten.
    whole: bool,
}

/// Whether, and what, to merge.
fn choose(state: &State, listing: &Listing, packs: usize) -> Option<Merge> {
    let names = state.segments().iter().map(|segment| segment.name);
    if !state.reaped().is_empty() && state.reaped().len() * GONE_SHARE >= packs {
        return Some(Merge { segments: names.collect(), whole: true });
    }
    let small = |name: &SegmentName| listing.segments.get(name).is_some_and(|bytes| *bytes < SMALL_BYTES);
    let segments: Vec<SegmentName> = names.filter(small).collect();
    (segments.len() >= SMALL_COUNT).then_some(Merge { segments, whole: false })
}

/// Segments on their way into fewer.
#[derive(Default)]
struct Merged {
    old: Vec<SegmentName>,
    new: Vec<SegmentName>,
    seen: HashSet<PackName>,
    waiting: Vec<SegmentPack>,
    waiting_bytes: usize,
}

impl Writing {
    /// Merges segments, if it is worth it.
    ///
    /// # Errors
    /// [`crate::Error::Fenced`]; those of the log, the index and the store.
    pub(super) async fn merge_segments(&self, listing: &Listing, report: &mut CollectReport) -> Result<()> {
        let repository = &self.repository;
        let state = repository.refresh().await?;
        self.check_open(&state)?;
        let Some(merge) = choose(&state, listing, listing.packs.len()) else { return Ok(()) };
        let mut publisher = self.publisher.lock().await;
        let mut merged = Merged::default();
        for name in &merge.segments {
            if !self.read(&state, name, &mut merged, &mut publisher).await? && merge.whole {
                tracing::warn!(segment = %name, "a segment cannot be read, so no segments are merged; rebuild the index from the packs");
                return Ok(());
            }
        }
        self.store_merged(&mut merged, &mut publisher, 0).await?;
        if merged.old.len() <= merged.new.len() && !merge.whole {
            return Ok(());
        }
        let reaped = if merge.whole { state.reaped().clone() } else { BTreeSet::new() };
        if self.reindex(&merged, &reaped).await? {
            repository.follower.add_own(&merged.new, std::sync::Arc::default()).await?;
            repository.delete_segments(&merged.old, report).await?;
        }
        Ok(())
    }

    /// Takes in one segment; `false` when it cannot be read.
    async fn read(
        &self,
        state: &State,
        name: &SegmentName,
        merged: &mut Merged,
        publisher: &mut Publisher,
    ) -> Result<bool> {
        let parts = self.repository.parts();
        let Some(object) = optional(parts.packs.get(&layout::segment(name), GetRange::Whole).await)? else {
            return Ok(false);
        };
        let (ring, segment) = (parts.ring.clone(), *name);
        let packs = match blocking(move || Ok(decode_segment(&ring, segment, &object)?)).await {
            Ok(packs) => packs,
            Err(error) if is_damage(&error) => return Ok(false),
            Err(other) => return Err(other),
        };
        merged.old.push(*name);
        for pack in packs {
            if !state.reaped().contains(&pack.stored_as) && merged.seen.insert(pack.stored_as) {
                merged.waiting_bytes += pack.encoded_bytes();
                merged.waiting.push(pack);
            }
        }
        self.store_merged(merged, publisher, SEGMENT_BYTES).await?;
        Ok(true)
    }

    /// Stores what waits, as far as it is more than `keep_bytes`.
    async fn store_merged(
        &self,
        merged: &mut Merged,
        publisher: &mut Publisher,
        keep_bytes: usize,
    ) -> Result<()> {
        while merged.waiting_bytes > keep_bytes {
            let mut bytes = 0;
            let fits = merged.waiting.iter().take_while(|pack| {
                let first = bytes == 0;
                bytes += pack.encoded_bytes();
                first || bytes <= SEGMENT_BYTES
            });
            let count = fits.count();
            let group: Vec<SegmentPack> = merged.waiting.drain(..count).collect();
            merged.waiting_bytes -= group.iter().map(SegmentPack::encoded_bytes).sum::<usize>();
            merged.new.push(self.store_segment(publisher, group).await?);
        }
        Ok(())
    }

    /// Replaces the old segments by the new ones; `false` when another collection was faster.
    async fn reindex(&self, merged: &Merged, reaped: &BTreeSet<PackName>) -> Result<bool> {
        loop {
            // An index that is right up to the entry before needs not be made anew.
            let state = self.repository.refresh().await?;
            self.check_open(&state)?;
            let known: HashSet<SegmentName> = state.segments().iter().map(|segment| segment.name).collect();
            if !merged.old.iter().all(|name| known.contains(name)) {
                return Ok(false);
            }
            let dropped = reaped.iter().filter(|pack| state.reaped().contains(pack)).copied().collect();
            let (old, new) = (merged.old.clone(), merged.new.clone());
            let body = Body::Reindex { old, new, dropped };
            if let Attempt::Landed(_) = self.repository.log.append_to(&state, vec![body]).await? {
                return Ok(true);
            }
        }
    }
}
