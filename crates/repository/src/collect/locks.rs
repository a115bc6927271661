//! Keeping what is needed under object lock: the job that moves the end of locks on (docs/FORMAT.md, "Object lock").
//!
//! A lock ends a fixed period after its put. What a backup needs may be older than that, so a job extends the locks of
//! all that is needed, and of nothing else: garbage must become deletable. Not here: what a lock is, and when it is worth
//! a request ([`aquifer_store::ObjectStore::retain`]).
//!
//! Invariant: no lock of a needed object has less than half of its period left after a run that ended well.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_format::{PackName, SegmentName, State};
use aquifer_store::{Key, ObjectStore, Retained};
use serde::Serialize;
use tokio::task::JoinSet;

use super::listing::each;
use super::marks::Marks;
use super::{droppable, or_stopped};
use crate::repository::Repository;
use crate::world::random;
use crate::{Error, Result, layout};

/// Objects looked at, at one time.
const AT_ONCE: usize = 16;

/// What became of the locks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LockReport {
    /// Objects that are needed, in the stores that lock.
    pub objects: u64,
    /// Those whose lock was extended now.
    pub extended: u64,
    /// Objects that nobody needs; their locks run out.
    pub unneeded: u64,
    /// Chunks and tree nodes that are needed and of which no copy is known: a verification tells which.
    pub missing: u64,
    /// When the first lock of a needed object ends, in milliseconds since 1970 UTC.
    pub locked_until_ms: Option<u64>,
}

impl Repository {
    /// Extends the locks of everything that is needed: what tells of the repository, its log and its index, and the
    /// packs that backups have something in. `stop` ends it early; what was extended until then is.
    ///
    /// # Errors
    /// [`Error::NoObjectLock`] when no store locks anything; [`crate::RemovalError::RootUnreadable`] when nobody can say
    /// what is needed; [`Error::Stopped`]; those of the log, the stores and the index.
    pub async fn extend_locks(self: &Arc<Self>, stop: impl Future<Output = ()>) -> Result<LockReport> {
        or_stopped(Box::pin(self.extend_all(stores_of(self))), stop).await
    }

    async fn extend_all(self: &Arc<Self>, stores: Vec<Arc<dyn ObjectStore>>) -> Result<LockReport> {
        let format = layout::format();
        let mut locking = Vec::new();
        for store in stores {
            if store.retain(&format).await? != Retained::NoLock {
                locking.push(store);
            }
        }
        if locking.is_empty() {
            return Err(Error::NoObjectLock { store: self.stores.packs.describe() });
        }
        let needed = self.needed().await?;
        let mut report = LockReport { missing: needed.marks.missing, ..LockReport::default() };
        for store in locking {
            extend(&store, &needed, &mut report).await?;
        }
        Ok(report)
    }

    async fn needed(self: &Arc<Self>) -> Result<Needed> {
        let state = self.refresh().await?;
        let packs = self.parts.index.packs()?;
        let blobs = packs.iter().map(|pack| u64::from(pack.rows)).sum();
        let mut marks = Marks::new(blobs, u64::from_le_bytes(random(self.world().as_ref())));
        marks.walk(&self.parts, &state, &droppable(&state, self.world().wall_ms())).await?;
        let segments = state.segments().iter().map(|segment| segment.name).collect();
        Ok(Needed { marks, segments, state })
    }
}

fn stores_of(repository: &Repository) -> Vec<Arc<dyn ObjectStore>> {
    let stores = &repository.stores;
    std::iter::once(&stores.packs).chain(&stores.log).map(Arc::clone).collect()
}

/// What backups need.
struct Needed {
    marks: Marks,
    segments: BTreeSet<SegmentName>,
    state: Arc<State>,
}

impl Needed {
    fn has(&self, key: &Key) -> bool {
        if let Some(pack) = layout::below::<PackName>(layout::PACKS, key) {
            return self.marks.of(&pack).is_some();
        }
        if let Some(segment) = layout::below(layout::SEGMENTS, key) {
            return self.segments.contains(&segment);
        }
        match key.as_str().starts_with(layout::ENTRIES) || key.as_str().starts_with(layout::CHECKPOINTS) {
            true => layout::number(key).is_none_or(|seq| seq >= self.state.floor()),
            false => true,
        }
    }
}

async fn extend(store: &Arc<dyn ObjectStore>, needed: &Needed, report: &mut LockReport) -> Result<()> {
    let (mut keys, mut foreign) = (Vec::new(), Vec::new());
    each(&**store, "", &mut foreign, |entry| match needed.has(&entry.key) {
        true => keys.push(entry.key.clone()),
        false => report.unneeded += 1,
    })
    .await?;
    let (mut keys, mut running) = (keys.into_iter(), JoinSet::new());
    loop {
        while running.len() < AT_ONCE
            && let Some(key) = keys.next()
        {
            let store = Arc::clone(store);
            running.spawn(async move { store.retain(&key).await });
        }
        let Some(done) = running.join_next().await else { return Ok(()) };
        let until_ms = match done.map_err(|_| Error::Closed)? {
            Ok(Retained::NoLock) => continue,
            // Collected since it was listed.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
            Ok(Retained::Locked(until_ms)) => until_ms,
            Ok(Retained::Extended(until_ms)) => {
                report.extended += 1;
                until_ms
            }
        };
        report.objects += 1;
        report.locked_until_ms = Some(report.locked_until_ms.map_or(until_ms, |first| first.min(until_ms)));
    }
}
