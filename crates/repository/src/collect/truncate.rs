//! Cutting the log short below a checkpoint that was derived again and found equal (docs/FORMAT.md, G9).
//!
//! Two checkpoints stay: the floor's, and a newer one, so that one damaged object does not cost the state of the log.
//! Nothing is made here; a log without checkpoints stays whole.
//!
//! Invariant: an object of the log is deleted only below the floor that the log itself names, older ones first, each
//! seen to be gone before the next.

use aquifer_format::log::{Body, State, decode_checkpoint};
use aquifer_store::{GetRange, Key, ObjectStore};

use super::reap::delete_one;
use super::report::CollectReport;
use crate::checkpoints::CHECKPOINT_ENTRIES;
use crate::log::{Log, optional, slot};
use crate::repository::Repository;
use crate::{Error, RemovalError, Result, layout};

impl Repository {
    /// Truncates the log if there is enough of it, and finishes a truncation that was cut short.
    ///
    /// # Errors
    /// [`crate::RemovalError::CheckpointDiffers`]; those of the log and its stores.
    pub(super) async fn truncate(&self, report: &mut CollectReport) -> Result<()> {
        let state = self.log.replay().await?;
        if let Some(floor) = self.next_floor(&state).await? {
            let truncate = |state: &State| {
                // Another collection may have cut further, and an older session cannot have come.
                Ok((state.floor() < floor).then(|| vec![Body::Truncate { floor }]))
            };
            self.log.append_if(truncate).await?;
        }
        let floor = self.state().floor();
        report.log_floor = floor;
        // The copy first: a store that lost its log is rebuilt from the copy, not the other way round.
        for store in self.stores.mirror().into_iter().chain([self.stores.of_log()]) {
            report.log_entries += delete_below(&**store, floor).await?;
        }
        Ok(())
    }

    /// The newest but one checkpoint, if enough entries lie below it, no open session is older, and it is proven.
    async fn next_floor(&self, state: &State) -> Result<Option<u64>> {
        let oldest = state.sessions().keys().map(|session| session.open_seq()).min();
        let mut checkpoints = self.log.checkpoints().await?;
        checkpoints.retain(|seq| *seq > state.floor() && *seq <= state.seq());
        let Some((newest, older)) = checkpoints.split_last() else { return Ok(None) };
        let may = |seq: &&u64| oldest.is_none_or(|oldest| **seq <= oldest);
        let Some(floor) = older.iter().rev().find(may).copied() else { return Ok(None) };
        if floor - state.floor() < CHECKPOINT_ENTRIES {
            return Ok(None);
        }
        self.log.prove(&self.config, state.floor(), &[floor, *newest]).await?;
        Ok(Some(floor))
    }
}

impl Log {
    /// Derives the states of `checkpoints` (ascending) again from `from` on, and holds the stored ones against them.
    ///
    /// # Errors
    /// [`crate::RemovalError::CheckpointDiffers`], [`Error::Object`] for one that does not open, [`Error::LogGap`], and those of the
    /// store.
    async fn prove(
        &self,
        config: &aquifer_format::RepositoryConfig,
        from: u64,
        checkpoints: &[u64],
    ) -> Result<()> {
        let mut state = if from == 1 { State::new(config) } else { self.stored_checkpoint(from).await? };
        for &checkpoint in checkpoints {
            while state.seq() < checkpoint {
                let missing = state.seq() + 1;
                let entry = slot(self.parts.store.as_ref(), missing).await?;
                let entry = entry.ok_or(Error::LogGap { missing, next: checkpoint })?;
                self.apply(&mut state, &entry)?;
            }
            if self.stored_checkpoint(checkpoint).await? != state {
                return Err(RemovalError::CheckpointDiffers { checkpoint }.into());
            }
            if let Some(mirror) = &self.parts.mirror {
                let key = layout::checkpoint(checkpoint);
                if optional(mirror.head(&key).await)?.is_none() {
                    let object = self.parts.store.get(&key, GetRange::Whole).await?;
                    mirror.put(&key, object).await?;
                }
            }
        }
        Ok(())
    }

    async fn stored_checkpoint(&self, seq: u64) -> Result<State> {
        let key = layout::checkpoint(seq);
        let object = self.parts.store.get(&key, GetRange::Whole).await?;
        decode_checkpoint(&self.parts.ring, seq, &object)
            .map_err(|source| Error::Object { key: key.to_string(), source })
    }
}

/// Deletes checkpoints and then entries below `floor`, oldest first; stops at the first that does not go. Says how many
/// went.
async fn delete_below(store: &dyn ObjectStore, floor: u64) -> Result<u64> {
    let mut deleted = 0;
    for prefix in [layout::CHECKPOINTS, layout::LOG] {
        let mut after = None;
        loop {
            let page = store.list(prefix, after.as_ref()).await?;
            let number = |key: &Key| u64::from_str_radix(layout::last_part(key), 16).ok();
            for entry in &page.entries {
                if number(&entry.key).is_none_or(|seq| seq >= floor) {
                    break;
                }
                if !delete_one(store, &entry.key).await? {
                    return Ok(deleted);
                }
                deleted += 1;
            }
            match page.entries.into_iter().next_back() {
                Some(last) if page.more && number(&last.key).is_some_and(|seq| seq < floor) => {
                    after = Some(last.key);
                }
                _ => break,
            }
        }
    }
    Ok(deleted)
}
