//! Which packs go: each held against the ids that were walked, by its own table, and condemned for exactly the slot of
//! the log that this was decided on (docs/FORMAT.md, G4 to G6).
//!
//! A candidate may hold needed blobs, if each has another copy that its pack's own table proves. Not here: what made a
//! pack a candidate.
//!
//! Invariant: when a `Condemn` lands, every id that its state's backups need has a copy in a live pack that is no
//! candidate.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use aquifer_format::log::{BlobPlace, Body};
use aquifer_format::{ChunkId, PackName, State};
use uuid::Uuid;

use super::droppable;
use super::marks::Marks;
use super::report::{CollectReport, PackFate};
use super::tables::{TABLES_AT_ONCE, Table, Tables};
use crate::log::Attempt;
use crate::parts::{Parts, is_live};
use crate::repository::{Repository, blocking};
use crate::settings::Weakness;
use crate::writing::Writing;
use crate::{Error, Result};

/// Packs that one entry condemns: some 200 KiB.
const BATCH_PACKS: usize = 4096;
/// Lost slots after which the log is called too busy.
const SLOT_TRIES: u32 = 256;

/// A pack that may go.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidate {
    /// Its bytes.
    pub(super) bytes: u64,
    /// One more than the backups that were walked when its table was last held against the filter; 0 before.
    checked_at: usize,
    /// Packs with proven copies of what it holds and others need.
    relies_on: BTreeSet<PackName>,
}

impl Candidate {
    pub(super) fn new(bytes: u64) -> Self {
        Candidate { bytes, ..Candidate::default() }
    }
}

/// The candidates and what is known of them.
pub(super) struct Condemning<'a> {
    pub(super) repository: &'a Arc<Repository>,
    pub(super) marks: &'a mut Marks,
    pub(super) candidates: BTreeMap<PackName, Candidate>,
    pub(super) tables: Tables,
    /// The damage that was known when tables were last checked: a damaged copy proves nothing.
    pub(super) quarantined: BTreeSet<BlobPlace>,
    pub(super) report: &'a mut CollectReport,
}

impl Condemning<'_> {
    /// Condemns every candidate that can go, and drops the forgotten backups whose time has come.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::LogBusy`], [`crate::RemovalError::RootUnreadable`], and those of the log and the stores.
    pub(super) async fn run(&mut self, writing: &Writing) -> Result<()> {
        let mut lost = 0;
        while lost < SLOT_TRIES {
            let state = self.repository.refresh().await?;
            // A fenced session may count on packs that are gone by now (docs/FORMAT.md, G5).
            writing.check_open(&state)?;
            let dropped = droppable(&state, self.repository.world().wall_ms());
            let batch = self.choose(&state, &dropped).await?;
            if batch.is_empty() && dropped.is_empty() {
                return Ok(());
            }
            let (packs, dropped): (Vec<_>, Vec<Uuid>) = (batch, dropped.into_iter().collect());
            let body = Body::Condemn { packs: packs.clone(), dropped: dropped.clone() };
            match self.repository.log.append_to(&state, vec![body]).await? {
                Attempt::Landed(_) => self.condemned(&packs, dropped),
                Attempt::Lost => lost += 1,
            }
        }
        Err(Error::LogBusy { tries: SLOT_TRIES })
    }

    /// The next packs that can go on `state`; candidates that cannot are given up.
    pub(super) async fn choose(&mut self, state: &State, dropped: &BTreeSet<Uuid>) -> Result<Vec<PackName>> {
        let parts = self.repository.parts().clone();
        if !parts.settings.lacks(Weakness::StaleMark) {
            self.marks.walk(&parts, state, dropped).await?;
        }
        // Others were faster.
        self.candidates
            .retain(|pack, _| !state.condemned().contains_key(pack) && !state.reaped().contains(pack));
        if self.quarantined != *state.quarantined_blobs() {
            self.quarantined.clone_from(state.quarantined_blobs());
            self.candidates.values_mut().for_each(|candidate| candidate.checked_at = 0);
        }
        let batch: Vec<PackName> = self.candidates.keys().copied().take(BATCH_PACKS).collect();
        let stale = |pack: &&PackName| {
            self.candidates.get(*pack).is_some_and(|candidate| candidate.checked_at <= self.marks.roots())
        };
        let unchecked: Vec<PackName> = batch.iter().filter(stale).copied().collect();
        for few in unchecked.chunks(TABLES_AT_ONCE) {
            for (pack, table) in self.tables.read(few).await? {
                self.check(&parts, state, pack, table).await?;
            }
        }
        // What they rely on must still stand on this very state.
        let fallen: Vec<PackName> = batch
            .iter()
            .filter(|pack| {
                let relies_on = self.candidates.get(*pack).map(|candidate| &candidate.relies_on);
                relies_on.is_some_and(|packs| packs.iter().any(|pack| !self.stands(state, pack)))
            })
            .copied()
            .collect();
        for pack in fallen {
            self.give_up(pack, "another collection condemned what held its blobs elsewhere".to_owned());
        }
        Ok(batch.into_iter().filter(|pack| self.candidates.contains_key(pack)).collect())
    }

    fn stands(&self, state: &State, pack: &PackName) -> bool {
        state.is_live(pack) && !self.candidates.contains_key(pack)
    }

    /// Holds one candidate's own table against the filter.
    async fn check(&mut self, parts: &Parts, state: &State, pack: PackName, table: Table) -> Result<()> {
        let ids = match table {
            Table::Ids(ids) => ids,
            // Condemning what is gone lets the log and the indexes forget it.
            Table::Gone => Arc::default(),
            Table::Unreadable(why) => {
                self.give_up(pack, format!("nobody can tell what is in it: {why}"));
                return Ok(());
            }
        };
        let needed: Vec<ChunkId> = ids.iter().filter(|id| self.marks.may_need(id)).copied().collect();
        match self.elsewhere(parts, state, needed).await? {
            Ok(relies_on) => {
                let checked_at = self.marks.roots() + 1;
                if let Some(candidate) = self.candidates.get_mut(&pack) {
                    (candidate.checked_at, candidate.relies_on) = (checked_at, relies_on);
                }
            }
            Err(blobs) => {
                self.give_up(pack, format!("{blobs} of its blobs are needed and proven nowhere else"));
            }
        }
        Ok(())
    }

    /// Packs that together hold all of `needed`, each proven by its own table; or how many ids have no such copy.
    async fn elsewhere(
        &mut self,
        parts: &Parts,
        state: &State,
        needed: Vec<ChunkId>,
    ) -> Result<std::result::Result<BTreeSet<PackName>, u64>> {
        if needed.is_empty() {
            return Ok(Ok(BTreeSet::new()));
        }
        let (index, ids) = (Arc::clone(&parts.index), needed.clone());
        let found = blocking(move || Ok(index.get_many(&ids)?)).await?;
        let (mut packs, mut unproven) = (BTreeSet::new(), 0);
        for (id, copies) in needed.iter().zip(found) {
            let others = copies.into_iter().filter(|copy| is_live(state, copy));
            let others: HashSet<PackName> =
                others.map(|copy| copy.pack).filter(|other| self.stands(state, other)).collect();
            // One that is counted on already is as good as another, and its table is at hand.
            let mut others: Vec<PackName> = others.into_iter().collect();
            others.sort_by_key(|other| (!packs.contains(other), *other));
            let mut proven = false;
            for other in others {
                if self.tables.proves(&other, id).await? {
                    proven = packs.insert(other) || packs.contains(&other);
                    break;
                }
            }
            unproven += u64::from(!proven);
        }
        Ok(if unproven == 0 { Ok(packs) } else { Err(unproven) })
    }

    fn give_up(&mut self, pack: PackName, why: String) {
        if let Some(candidate) = self.candidates.remove(&pack) {
            self.report.kept.add(candidate.bytes);
            self.report.decide(pack, candidate.bytes, PackFate::Kept, why);
        }
    }

    fn condemned(&mut self, packs: &[PackName], dropped: Vec<Uuid>) {
        self.report.dropped.extend(dropped);
        for pack in packs {
            if let Some(candidate) = self.candidates.remove(pack) {
                self.report.condemned.add(candidate.bytes);
            }
        }
    }
}
