//! Deleting: condemned packs after their grace, packs that are there again, and what ended sessions left beside them
//! (docs/FORMAT.md, G7).
//!
//! A condemned pack waits for two things: its grace, in which an operator may find out that something is wrong, and the
//! end of every session that was open when it was condemned. Those may still read it, or count on it.
//!
//! Invariant: a pack is deleted only if the log has it condemned, a segment only if no entry can name it any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_format::log::{Body, Condemned};
use aquifer_format::{PackName, SegmentName, SessionId, State};
use aquifer_store::{Key, ObjectStore};
use tokio::task::JoinSet;

use super::listing::Listing;
use super::report::CollectReport;
use crate::repository::Repository;
use crate::{Error, Result, layout};

/// Objects deleted at one time.
const AT_ONCE: usize = 16;
/// Packs that one entry reports gone.
const BATCH_PACKS: usize = 4096;

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deletion {
    Gone,
    /// The store does not let us: later.
    Refused,
}

/// Condemned packs whose time has come at `now_ms`. `own` is the session of this collection, which reads none of them.
pub(super) fn due(
    state: &State,
    own: Option<SessionId>,
    endangered: &BTreeSet<PackName>,
    grace: Duration,
    now_ms: u64,
    wait_for_older: bool,
) -> Vec<PackName> {
    let others = state.sessions().keys().filter(|session| wait_for_older && Some(**session) != own);
    let oldest = others.map(SessionId::open_seq).min().unwrap_or(u64::MAX);
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let is_due = |mark: &Condemned| {
        // Without a grace no clock is asked, not even one that goes wrong.
        mark.seq < oldest && (grace_ms == 0 || now_ms.saturating_sub(mark.wall_ms) >= grace_ms)
    };
    let packs = state.condemned().iter().filter(|(pack, mark)| is_due(mark) && !endangered.contains(pack));
    packs.map(|(pack, _)| *pack).collect()
}

impl Repository {
    /// Deletes condemned packs and reports them gone.
    ///
    /// # Errors
    /// Those of the log, and of the store when it does not answer.
    pub(super) async fn reap(
        &self,
        packs: Vec<PackName>,
        listing: &Listing,
        report: &mut CollectReport,
    ) -> Result<()> {
        for batch in packs.chunks(BATCH_PACKS) {
            let gone = self.delete_packs(batch, report).await?;
            for pack in &gone {
                // What another collection deleted was never there for us.
                report.deleted.add(listing.packs.get(pack).copied().unwrap_or(0));
            }
            let reaped = |state: &State| {
                let packs = gone.iter().filter(|pack| state.condemned().contains_key(pack));
                let packs: Vec<_> = packs.copied().collect();
                Ok((!packs.is_empty()).then(|| vec![Body::Reaped { packs }]))
            };
            self.log.append_if(reaped).await?;
        }
        Ok(())
    }

    /// Deletes packs, and returns those that are gone for sure.
    pub(super) async fn delete_packs(
        &self,
        packs: &[PackName],
        report: &mut CollectReport,
    ) -> Result<Vec<PackName>> {
        let keys = packs.iter().map(layout::pack).collect();
        let outcomes = delete_all(&self.stores.packs, keys).await?;
        let outcomes = packs.iter().zip(outcomes);
        Ok(outcomes.filter(|(_, outcome)| count(*outcome, report)).map(|(pack, _)| *pack).collect())
    }

    /// Deletes segments that no entry names.
    pub(super) async fn delete_segments(
        &self,
        segments: &[SegmentName],
        report: &mut CollectReport,
    ) -> Result<()> {
        let keys = segments.iter().map(layout::segment).collect();
        for outcome in delete_all(&self.stores.packs, keys).await? {
            report.segments += u64::from(count(outcome, report));
        }
        Ok(())
    }

    /// Deletes what ended sessions left beside their packs: heartbeats, and segments that were never published or were
    /// replaced since.
    pub(super) async fn tidy(
        &self,
        listing: &Listing,
        state: &State,
        report: &mut CollectReport,
    ) -> Result<()> {
        let ended = listing.heartbeats.iter().filter(|session| state.has_ended(session));
        for outcome in delete_all(&self.stores.packs, ended.map(layout::heartbeat).collect()).await? {
            report.heartbeats += u64::from(count(outcome, report));
        }
        self.delete_segments(&unnamed(listing, state), report).await
    }

    /// Deletes the heartbeat of the collection's own session, which has ended.
    pub(super) async fn delete_heartbeat(
        &self,
        session: &SessionId,
        report: &mut CollectReport,
    ) -> Result<()> {
        let outcome = delete(&*self.stores.packs, &layout::heartbeat(session)).await?;
        count(outcome, report);
        Ok(())
    }
}

/// Listed segments that no entry can name any more.
fn unnamed(listing: &Listing, state: &State) -> Vec<SegmentName> {
    let named: BTreeSet<SegmentName> = state.segments().iter().map(|segment| segment.name).collect();
    let dead = |name: &&SegmentName| state.has_ended(&name.session) && !named.contains(name);
    listing.segments.keys().filter(dead).copied().collect()
}

fn count(outcome: Deletion, report: &mut CollectReport) -> bool {
    report.refused += u64::from(outcome == Deletion::Refused);
    outcome == Deletion::Gone
}

/// Deletes objects and looks that they are gone; the outcomes are in the order of `keys`.
///
/// # Errors
/// When the store does not answer.
async fn delete_all(store: &Arc<dyn ObjectStore>, keys: Vec<Key>) -> Result<Vec<Deletion>> {
    let mut outcomes = vec![Deletion::Refused; keys.len()];
    for (few, outcomes) in keys.chunks(AT_ONCE).zip(outcomes.chunks_mut(AT_ONCE)) {
        let mut deleting = JoinSet::new();
        for (at, key) in few.iter().enumerate() {
            let (store, key) = (Arc::clone(store), key.clone());
            deleting.spawn(async move { Ok::<_, Error>((at, delete(&*store, &key).await?)) });
        }
        while let Some(deleted) = deleting.join_next().await {
            let (at, outcome) = deleted.map_err(|_| Error::Closed)??;
            outcomes[at] = outcome;
        }
    }
    Ok(outcomes)
}

async fn delete(store: &dyn ObjectStore, key: &Key) -> Result<Deletion> {
    match store.delete(key).await {
        Ok(()) => {}
        Err(error @ aquifer_store::Error::Denied { .. }) => {
            tracing::warn!(%key, %error, "the store refuses to delete this now; a later collection tries again");
            return Ok(Deletion::Refused);
        }
        Err(other) => return Err(other.into()),
    }
    match store.head(key).await {
        Err(error) if error.is_not_found() => Ok(Deletion::Gone),
        Ok(_) => Ok(Deletion::Refused),
        Err(other) => Err(other.into()),
    }
}

/// Deletes one object of the log store or its copy, and looks that it is gone.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn delete_one(store: &dyn ObjectStore, key: &Key) -> Result<bool> {
    Ok(delete(store, key).await? == Deletion::Gone)
}
