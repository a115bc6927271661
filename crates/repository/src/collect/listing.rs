//! What lies in the pack store: packs and segments with their sizes, and heartbeats.
//!
//! Invariant: only names inside the grammar get in; the others are reported.

use std::collections::BTreeMap;

use aquifer_format::{PackName, SegmentName, SessionId};
use aquifer_store::{Key, Listed, ObjectStore};

use crate::verify::FOREIGN_MAX;
use crate::{Result, layout};

/// What a listing showed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Packs and their bytes.
    pub(super) packs: BTreeMap<PackName, u64>,
    /// Segments and their bytes.
    pub(super) segments: BTreeMap<SegmentName, u64>,
    /// Sessions that left a heartbeat.
    pub(super) heartbeats: Vec<SessionId>,
    /// Names that are no keys; the first of them.
    pub(super) foreign: Vec<String>,
}

impl Listing {
    /// Lists a pack store.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn take(store: &dyn ObjectStore) -> Result<Self> {
        let mut listing = Listing::default();
        let (packs, segments, heartbeats) =
            (&mut listing.packs, &mut listing.segments, &mut listing.heartbeats);
        let foreign = &mut listing.foreign;
        each(store, layout::PACKS, foreign, |entry| {
            let name = layout::below(layout::PACKS, &entry.key);
            packs.extend(name.map(|name| (name, entry.bytes)));
        })
        .await?;
        each(store, layout::SEGMENTS, foreign, |entry| {
            let name = layout::below(layout::SEGMENTS, &entry.key);
            segments.extend(name.map(|name| (name, entry.bytes)));
        })
        .await?;
        each(store, layout::HEARTBEATS, foreign, |entry| {
            heartbeats.extend(layout::below::<SessionId>(layout::HEARTBEATS, &entry.key));
        })
        .await?;
        Ok(listing)
    }
}

/// Tells `found` every object below `prefix`, in the order of keys, and puts names that are no keys into `foreign`.
///
/// # Errors
/// Those of the store.
pub(super) async fn each(
    store: &dyn ObjectStore,
    prefix: &str,
    foreign: &mut Vec<String>,
    mut found: impl FnMut(&Listed) + Send,
) -> Result<()> {
    let mut after: Option<Key> = None;
    loop {
        let page = store.list(prefix, after.as_ref()).await?;
        page.entries.iter().for_each(&mut found);
        let room = FOREIGN_MAX.saturating_sub(foreign.len());
        foreign.extend(page.foreign.into_iter().take(room));
        match page.entries.into_iter().next_back() {
            Some(entry) if page.more => after = Some(entry.key),
            _ => return Ok(()),
        }
    }
}
