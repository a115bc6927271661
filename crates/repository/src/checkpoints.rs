//! Checkpoints of the log's state, the copy of log objects beside the packs, and where a replay starts.
//!
//! All three only save time or guard against the loss of a store; no decision rests on them alone.
//!
//! Invariant: a state is started from only if the log entry it claims as its tip exists with that very hash.

use std::sync::Arc;

use aquifer_format::log::{State, decode_checkpoint, encode_checkpoint, entry_hash};
use aquifer_format::{EntryHash, RepositoryConfig};
use aquifer_store::{Bytes, Created, GetRange, Key, ObjectStore};

use crate::log::{Log, optional, slot};
use crate::state_dir::Seen;
use crate::world::random;
use crate::{Error, Result, layout};

/// Entries after which a checkpoint is due.
pub(crate) const CHECKPOINT_ENTRIES: u64 = 256;

/// Entries that are read rather than looking for a newer checkpoint.
const NEAR_ENTRIES: u64 = 4 * CHECKPOINT_ENTRIES;

/// What this process knows of the entries since the newest checkpoint, and what the copy beside the packs still lacks.
#[derive(Debug, Default)]
pub(crate) struct Since {
    /// The entry of the newest checkpoint.
    pub(crate) checkpoint: u64,
    /// Entries that this process read or wrote, and their bytes: enough for an average.
    entries: u64,
    bytes: u64,
    /// Stored in the log, and not yet beside the packs.
    uncopied: Vec<(Key, Bytes)>,
}

impl Since {
    /// Counts an entry.
    pub(crate) fn entry(&mut self, object: &Bytes) {
        self.entries += 1;
        self.bytes += u64::try_from(object.len()).unwrap_or(u64::MAX);
    }

    /// Bytes of an entry, on average.
    fn average(&self) -> u64 {
        self.bytes.checked_div(self.entries).unwrap_or(0)
    }
}

impl Log {
    /// Stores a copy beside the packs, after those that failed before.
    pub(crate) async fn copy_beside_packs(&self, since: &mut Since, key: Key, object: Bytes) -> Result<()> {
        let Some(mirror) = &self.parts.mirror else { return Ok(()) };
        since.uncopied.push((key, object));
        while let Some((key, object)) = since.uncopied.first() {
            self.refuse_another_log(mirror, key, object).await?;
            let stored = mirror.put(key, object.clone()).await;
            stored.map_err(|source| Error::Mirror { key: key.to_string(), source: Box::new(source) })?;
            since.uncopied.remove(0);
        }
        Ok(())
    }

    /// A copy of another entry under this number means that two stores are in use as the log.
    async fn refuse_another_log(
        &self,
        mirror: &Arc<dyn ObjectStore>,
        key: &Key,
        object: &Bytes,
    ) -> Result<()> {
        if !key.as_str().starts_with(layout::ENTRIES) {
            return Ok(());
        }
        let copied = match mirror.get(key, GetRange::Whole).await {
            Ok(copied) => Some(copied),
            Err(error) if error.is_not_found() => None,
            Err(source) => return Err(Error::Mirror { key: key.to_string(), source: Box::new(source) }),
        };
        match (copied, layout::number(key)) {
            (Some(other), Some(entry)) if other != *object => {
                Err(Error::LogReplaced { store: self.parts.store.describe(), entry })
            }
            _ => Ok(()),
        }
    }

    /// An error when the copies beside the packs go on where this log ends: another store has taken its place.
    async fn refuse_longer_copy(&self, mirror: &Arc<dyn ObjectStore>) -> Result<()> {
        let next = self.state().seq() + 1;
        if optional(mirror.head(&layout::log(next)).await)?.is_none() {
            return Ok(());
        }
        // Another writer appended and copied meanwhile, or nobody did here.
        if self.replay().await?.seq() >= next {
            return Ok(());
        }
        Err(Error::LogReplaced { store: self.parts.store.describe(), entry: next })
    }

    /// Copies log entries that an interrupted writer left without a copy beside the packs.
    pub(crate) async fn complete_mirror(&self) -> Result<()> {
        let Some(mirror) = &self.parts.mirror else { return Ok(()) };
        self.refuse_longer_copy(mirror).await?;
        let state = self.state();
        let mut first = state.seq() + 1;
        while first > state.floor() && optional(mirror.head(&layout::log(first - 1)).await)?.is_none() {
            first -= 1;
        }
        for seq in first..=state.seq() {
            let object = slot(self.parts.store.as_ref(), seq).await?;
            let object = object.ok_or(Error::LogGap { missing: seq, next: state.seq() })?;
            let (key, copied) = (layout::log(seq), mirror.put(&layout::log(seq), object).await);
            copied.map_err(|source| Error::Mirror { key: key.to_string(), source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Writes a checkpoint when enough was appended since the last one. It only saves time, so failing is a warning.
    pub(crate) async fn checkpoint_if_due(&self, since: &mut Since, state: &Arc<State>) {
        if state.seq().saturating_sub(since.checkpoint) < CHECKPOINT_ENTRIES {
            return;
        }
        if let Err(error) = self.checkpoint(since, state).await {
            tracing::warn!(seq = state.seq(), %error, "no checkpoint was written");
        }
    }

    async fn checkpoint(&self, since: &mut Since, state: &Arc<State>) -> Result<()> {
        let object =
            Bytes::from(encode_checkpoint(&self.parts.ring, random(self.parts.world.as_ref()), state)?);
        let replaced = since.average().saturating_mul(state.seq() - since.checkpoint);
        if u64::try_from(object.len()).unwrap_or(u64::MAX) > replaced {
            // It outweighs the entries that it would replace: wait until it does not.
            return Ok(());
        }
        let key = layout::checkpoint(state.seq());
        let created = self.parts.store.create(&key, object.clone()).await?;
        since.checkpoint = state.seq();
        match created {
            Created::Won => self.copy_beside_packs(since, key, object).await,
            // Another writer's checkpoint of this entry says the same, and copying it is that writer's business.
            Created::Exists => Ok(()),
        }
    }

    /// Finds a state to start from, replays to the tip, and holds the result against what this host saw before (P7).
    ///
    /// # Errors
    /// [`Error::RolledBack`], [`Error::OtherHistory`], [`Error::CheckpointAhead`], [`Error::NoLog`], and those of
    /// [`Log::replay`].
    pub(crate) async fn load(&self, config: &RepositoryConfig) -> Result<()> {
        let seen = self.parts.local.as_ref().map_or(Ok(None), |local| local.seen())?;
        let mut start = self.start(config).await?;
        let listed = self.checkpoints().await?;
        let newest = listed.last().copied().unwrap_or(0);
        if newest > start.seq() + NEAR_ENTRIES || start.seq() == 0 {
            start = self.newest_usable(listed).await?.unwrap_or(start);
        }
        self.parts.state.set(Arc::new(start));
        let state = self.first_replay(newest).await?;
        self.ensure_last(&state).await?;
        if state.seq() == 0 {
            return Err(Error::NoLog { store: self.parts.store.describe() });
        }
        if newest > state.seq() {
            return Err(Error::CheckpointAhead { checkpoint: newest, found: state.seq() });
        }
        self.hold_against(seen, &state).await?;
        self.remember(&state)
    }

    /// A log that ends where one of its objects was lost looks shorter than it is, and would be written on from there. So
    /// nothing may be listed behind the end that was found. (A listing that is behind the truth finds less, never more.)
    async fn ensure_last(&self, state: &State) -> Result<()> {
        let store = self.parts.store.as_ref();
        let listed = store.list(layout::ENTRIES, Some(&layout::log(state.seq()))).await?;
        let Some(next) = listed.entries.first().and_then(|entry| layout::number(&entry.key)) else {
            return Ok(());
        };
        let missing = state.seq() + 1;
        // Others may have appended in the meantime.
        if next == missing || slot(store, missing).await?.is_some() {
            return Ok(());
        }
        Err(Error::LogGap { missing, next })
    }

    /// The copy that this host keeps, when the log still has its tip; else the state before entry 1.
    async fn start(&self, config: &RepositoryConfig) -> Result<State> {
        let kept = self.parts.local.as_ref().and_then(|local| local.state(&self.parts.ring));
        match kept {
            Some(state) if self.has(state.seq(), state.tip()).await? => Ok(state),
            _ => Ok(State::new(config)),
        }
    }

    /// Whether the log has this very entry.
    async fn has(&self, seq: u64, hash: EntryHash) -> Result<bool> {
        Ok(slot(self.parts.store.as_ref(), seq).await?.is_some_and(|object| entry_hash(&object) == hash))
    }

    /// The entries of all checkpoints, in order.
    pub(crate) async fn checkpoints(&self) -> Result<Vec<u64>> {
        let (mut listed, mut last) = (Vec::new(), None);
        loop {
            let page = self.parts.store.list(layout::CHECKPOINTS, last.as_ref()).await?;
            listed.extend(page.entries.iter().filter_map(|entry| layout::number(&entry.key)));
            match page.entries.into_iter().next_back() {
                Some(entry) if page.more => last = Some(entry.key),
                _ => return Ok(listed),
            }
        }
    }

    /// The newest checkpoint that can be used.
    async fn newest_usable(&self, listed: Vec<u64>) -> Result<Option<State>> {
        for seq in listed.into_iter().rev() {
            if let Some(state) = self.usable_checkpoint(self.parts.store.as_ref(), seq).await? {
                return Ok(Some(state));
            }
        }
        Ok(None)
    }

    async fn usable_checkpoint(&self, store: &dyn ObjectStore, seq: u64) -> Result<Option<State>> {
        let key = layout::checkpoint(seq);
        let Some(object) = optional(store.get(&key, GetRange::Whole).await)? else { return Ok(None) };
        match decode_checkpoint(&self.parts.ring, seq, &object) {
            Ok(state) if self.has(seq, state.tip()).await? => Ok(Some(state)),
            Ok(_) => {
                tracing::warn!(%key, "the checkpoint's own log entry is missing or another; not used");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%key, %error, "the checkpoint cannot be opened; not used");
                Ok(None)
            }
        }
    }

    /// Compares with the newest entry that this host saw (P7).
    async fn hold_against(&self, seen: Option<Seen>, state: &State) -> Result<()> {
        let (Some(seen), Some(local)) = (seen, &self.parts.local) else { return Ok(()) };
        let remembered = local.seen_path();
        if state.seq() < seen.seq {
            return Err(Error::RolledBack { seen: seen.seq, found: state.seq(), state: remembered });
        }
        let found = if state.seq() == seen.seq {
            state.tip()
        } else if let Some(object) = slot(self.parts.store.as_ref(), seen.seq).await? {
            entry_hash(&object)
        } else if seen.seq < state.floor() {
            return Ok(());
        } else {
            return Err(Error::LogGap { missing: seen.seq, next: state.seq() });
        };
        if found == seen.hash {
            return Ok(());
        }
        Err(Error::OtherHistory { seq: seen.seq, seen: seen.hash, found, state: remembered })
    }

    /// Keeps a copy of the state for the next run. It only saves time, so a failure to keep it is a warning.
    pub(crate) fn remember(&self, state: &State) -> Result<()> {
        self.see(state)?;
        let Some(local) = &self.parts.local else { return Ok(()) };
        if let Err(error) = local.set_state(&self.parts.ring, self.parts.world.as_ref(), state) {
            tracing::warn!(%error, "no copy of the log's state was kept");
        }
        Ok(())
    }
}
