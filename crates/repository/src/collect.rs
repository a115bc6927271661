//! Collection: finding what no backup reaches, and deleting it, from any host, while backups and restores run.
//!
//! The rules are G1 to G9 of docs/FORMAT.md, one file each: [`listing`] and [`marks`] look (G1, G2), [`plan`] and
//! [`repack`] tidy up (G3), [`condemn`] decides (G4 to G6), [`reap`] deletes (G7), [`segments`] and [`truncate`] keep
//! index and log short (G8, G9). Not here: which backups are deleted ([`crate::delete`], [`crate::retention`]).
//!
//! Why it is safe: a `Condemn` is computed for exactly the slot that it takes, and a writer replays every `Condemn` before
//! its own `Commit` can land. No step rests on a clock, on a fresh listing, or on the index.
//!
//! Invariants: no data is read except of packs that are rewritten; nothing is deleted before its entry is in the log and
//! every session that was open then has ended; an error leaves at most space behind.

mod condemn;
mod filter;
mod listing;
mod locks;
mod marks;
mod plan;
mod reap;
mod repack;
mod report;
mod segments;
mod tables;
mod truncate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_format::log::{Forgotten, SessionKind, State};
use aquifer_format::{PackName, SessionId};
use aquifer_index::PackSummary;
use uuid::Uuid;

use crate::presence::Purpose;
use crate::repository::Repository;
use crate::settings::Weakness;
use crate::world::random;
use crate::writing::Writing;
use crate::{Error, Result, open};
use condemn::{Candidate, Condemning};
use listing::Listing;
use marks::Marks;
use plan::Plan;
use repack::Repack;
use tables::Tables;

pub use locks::LockReport;
pub use report::{CollectReport, CollectRequest, DECISIONS_MAX, Decision, PackFate, SeenSession, Tally};

/// How long condemned packs stay, unless the caller says otherwise.
pub const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

impl Repository {
    /// Collects garbage, or explains what would be collected. `stop` ends it early, in order; what was done until then
    /// is done.
    ///
    /// # Errors
    /// [`crate::RemovalError::RootUnreadable`] when a backup's trees cannot be read whole, so that nobody can say what is garbage;
    /// [`Error::Fenced`], [`Error::Stopped`]; those of the log, the stores and the index.
    pub async fn collect(
        self: &Arc<Self>,
        request: &CollectRequest,
        stop: impl Future<Output = ()>,
    ) -> Result<CollectReport> {
        if request.dry_run {
            return or_stopped(Box::pin(self.explain(request)), stop).await;
        }
        open::prove_log_store(&self.stores, &self.config).await?;
        self.log.complete_mirror().await?;
        let mut parts = self.parts.clone();
        // What is rewritten loses its old copy, so it is always looked at once more.
        parts.settings.self_check = true;
        let (kind, pins) = (SessionKind::Collect, Vec::new());
        let purpose = Purpose { kind, domain: None, backup: None, pins, alone: None };
        let writing = Writing::open(self, parts, purpose, |_| Ok(())).await?;
        let mut report = match or_stopped(Box::pin(self.collect_in(&writing, request)), stop).await {
            Ok(report) => report,
            Err(error) => {
                writing.close_after_failure().await;
                return Err(error);
            }
        };
        writing.close().await?;
        writing.silent().await;
        self.delete_heartbeat(&writing.id(), &mut report).await?;
        Ok(report)
    }

    /// Everything but the session.
    async fn collect_in(
        self: &Arc<Self>,
        writing: &Writing,
        request: &CollectRequest,
    ) -> Result<CollectReport> {
        let mut report = CollectReport {
            sessions: self.fence_silent(request.fence_after, writing.id()).await?,
            ..CollectReport::default()
        };
        let Looked { listing, state, mut marks, mut plan } = self.look(request, &mut report).await?;
        writing.check_open(&state)?;
        let mut repack = Repack::new(writing);
        for sparse in std::mem::take(&mut plan.rewrite) {
            let Some(needed) = marks.of(&sparse.pack) else { continue };
            if repack.rewrite(&sparse, needed, &mut report).await? {
                plan.candidates.insert(sparse.pack, Candidate::new(sparse.bytes));
            }
        }
        repack.finish().await?;
        let mut condemning = self.condemning(&mut marks, plan.candidates, &mut report);
        Box::pin(condemning.run(writing)).await?;
        self.delete_packs(&plan.again, &mut report).await?;
        let due = self.due(&*self.log.replay().await?, Some(writing.id()), &marks, request);
        self.reap(due, &listing, &mut report).await?;
        self.tidy(&listing, &state, &mut report).await?;
        writing.merge_segments(&listing, &mut report).await?;
        self.truncate(&mut report).await?;
        self.finish(&listing, &marks, &mut report);
        Ok(report)
    }

    /// What a collection would do now.
    async fn explain(self: &Arc<Self>, request: &CollectRequest) -> Result<CollectReport> {
        let mut report = CollectReport { dry_run: true, ..CollectReport::default() };
        let Looked { listing, state, mut marks, plan } = self.look(request, &mut report).await?;
        for sparse in &plan.rewrite {
            let needed =
                marks.of(&sparse.pack).map(|needed| (needed.blobs, needed.bytes)).unwrap_or_default();
            report.rewritten.objects += needed.0;
            report.rewritten.bytes += needed.1;
            report.condemned.add(sparse.bytes);
            let why = format!("{} of its {} bytes are needed", sparse.needed_bytes, sparse.bytes);
            report.decide(sparse.pack, sparse.bytes, PackFate::Rewritten, why);
        }
        let due = self.due(&state, None, &marks, request);
        for pack in &due {
            report.deleted.add(listing.packs.get(pack).copied().unwrap_or(0));
        }
        let dropped = droppable(&state, self.world().wall_ms());
        let mut condemning = self.condemning(&mut marks, plan.candidates, &mut report);
        loop {
            let batch = condemning.choose(&state, &dropped).await?;
            if batch.is_empty() {
                break;
            }
            for pack in batch {
                let bytes = condemning.candidates.remove(&pack).map_or(0, |candidate| candidate.bytes);
                condemning.report.condemned.add(bytes);
            }
        }
        report.dropped = dropped.into_iter().collect();
        report.log_floor = state.floor();
        self.finish(&listing, &marks, &mut report);
        Ok(report)
    }

    /// G1 to G3 without writing: lists, then replays, then marks, then plans. The order is what makes every listed pack
    /// one of a session that the state knows or one that is dead.
    async fn look(self: &Arc<Self>, request: &CollectRequest, report: &mut CollectReport) -> Result<Looked> {
        let mut listing = Listing::take(&*self.stores.packs).await?;
        report.foreign = std::mem::take(&mut listing.foreign);
        let state = self.refresh().await?;
        let summaries: HashMap<_, PackSummary> =
            self.parts.index.packs()?.into_iter().map(|pack| (pack.pack, pack)).collect();
        let blobs = summaries.values().map(|pack| u64::from(pack.rows)).sum();
        let mut marks = Marks::new(blobs, u64::from_le_bytes(random(self.world().as_ref())));
        let dropped = droppable(&state, self.world().wall_ms());
        marks.walk(&self.parts, &state, &dropped).await?;
        let settings = &self.parts.settings;
        let mut plan = Plan::of(&listing.packs, &state, &summaries, &marks, settings, report);
        plan.limit(request.max_repack_bytes);
        Ok(Looked { listing, state, marks, plan })
    }

    fn condemning<'a>(
        self: &'a Arc<Self>,
        marks: &'a mut Marks,
        candidates: BTreeMap<PackName, Candidate>,
        report: &'a mut CollectReport,
    ) -> Condemning<'a> {
        let tables = Tables::new(&self.parts);
        Condemning { repository: self, marks, candidates, tables, quarantined: BTreeSet::new(), report }
    }

    fn due(
        &self,
        state: &State,
        own: Option<SessionId>,
        marks: &Marks,
        request: &CollectRequest,
    ) -> Vec<PackName> {
        let wait = !self.parts.settings.lacks(Weakness::OlderSessionsIgnored);
        let endangered =
            if self.parts.settings.has_net() { marks.endangered.clone() } else { BTreeSet::new() };
        reap::due(state, own, &endangered, request.grace, self.world().wall_ms(), wait)
    }

    /// Counts what is known at the end.
    fn finish(&self, listing: &Listing, marks: &Marks, report: &mut CollectReport) {
        (report.backups, report.nodes) = (marks.roots() as u64, marks.nodes() as u64);
        report.missing = marks.missing;
        for pack in self.state().condemned().keys() {
            report.waiting.add(listing.packs.get(pack).copied().unwrap_or(0));
        }
        for pack in &marks.endangered {
            tracing::error!(%pack, "a condemned pack holds the only known copy of something that a backup needs; it is not deleted: rebuild the index from the packs and verify");
        }
    }
}

/// What was found before anything was changed.
struct Looked {
    listing: Listing,
    state: Arc<State>,
    marks: Marks,
    plan: Plan,
}

/// Forgotten backups whose time has come and that nobody pins: they are no roots any more.
fn droppable(state: &State, now_ms: u64) -> BTreeSet<Uuid> {
    let is_due = |mark: &Forgotten| mark.not_before_ms <= now_ms;
    let forgotten =
        state.backups().iter().filter(|(_, backup)| backup.forgotten.as_ref().is_some_and(is_due));
    forgotten.map(|(backup, _)| *backup).filter(|backup| !state.is_pinned(backup)).collect()
}

async fn or_stopped<T>(work: impl Future<Output = Result<T>>, stop: impl Future<Output = ()>) -> Result<T> {
    let (work, stop) = (pin!(work), pin!(stop));
    tokio::select! {
        biased;
        () = stop => Err(Error::Stopped),
        done = work => done,
    }
}
