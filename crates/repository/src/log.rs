//! The log: replaying it to the tip, and appending one entry to exactly the tip that a decision was made for.
//!
//! What the entries mean is the format's business ([`State`]); what to append is the caller's. Here are the rules that
//! make a slot a decision (docs/FORMAT.md, W4 to W6): the entry is created for the slot after the state that it was
//! decided on; a lost slot means replay and decide anew; a lost answer is settled by reading; success is reported only
//! after the slot and its predecessor were read back and the copy beside the packs is stored.
//!
//! Invariant: the shared state only ever moves forward along one chain of hashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_format::id::EntryHash;
use aquifer_format::keys::{KeyRing, Signer};
use aquifer_format::log::{Body, Entry, KeyChange, Role, State, entry_hash, open_entry, seal_entry};
use aquifer_store::{Bytes, Created, GetRange, ObjectStore};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;

use crate::checkpoints::Since;
use crate::parts::StateCell;
use crate::state_dir::{Seen, StateDir};
use crate::world::{World, random};
use crate::{Error, Result, layout};

/// Slots fetched at one time while the log is read.
const PREFETCH: u64 = 32;

/// Slots that one append tries before it says that the log is too busy.
const SLOT_TRIES: u32 = 256;

/// How often a lost answer is asked for again before the outcome is reported as unknown.
const SETTLE_TRIES: u32 = 4;

/// How an attempt to append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The entry is in this slot.
    Landed(u64),
    /// Another entry is in the slot: replay, look again, and decide anew.
    Lost,
}

/// What a [`Log`] is made of.
pub(crate) struct LogParts {
    /// Where the log is.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Where its copy is kept, when the packs are in another store.
    pub(crate) mirror: Option<Arc<dyn ObjectStore>>,
    /// Keys.
    pub(crate) ring: KeyRing,
    /// Who signs; `None` cannot append.
    pub(crate) signer: Option<Signer>,
    /// Clock and randomness.
    pub(crate) world: Arc<dyn World>,
    /// What this host remembers; `None` remembers nothing.
    pub(crate) local: Option<StateDir>,
    /// The shared state.
    pub(crate) state: Arc<StateCell>,
}

/// The log of one repository, as one process sees it.
pub(crate) struct Log {
    pub(crate) parts: LogParts,
    /// Held while the log is read or written, so that the state moves in one place only.
    turn: Mutex<Since>,
    /// The newest entry that this host remembers having seen.
    seen: AtomicU64,
}

impl Log {
    /// A log whose shared state stands where `parts.state` stands.
    pub(crate) fn new(parts: LogParts) -> Self {
        Self { parts, turn: Mutex::new(Since::default()), seen: AtomicU64::new(0) }
    }

    /// The state as last replayed.
    pub(crate) fn state(&self) -> Arc<State> {
        self.parts.state.get()
    }

    /// Reads what was appended since the last call and returns the state at the tip.
    ///
    /// # Errors
    /// [`Error::LogGap`], [`Error::Object`] for an entry that does not open, chain or apply,
    /// [`Error::RolledBack`], [`Error::OtherHistory`], and those of the store.
    pub(crate) async fn replay(&self) -> Result<Arc<State>> {
        let mut turn = self.turn.lock().await;
        let state = self.replay_in(&mut turn).await?;
        self.see(&state)?;
        Ok(state)
    }

    /// Reads to the tip for the first time; `checkpoint` is the entry of the newest checkpoint. What was found is not
    /// remembered before it was held against what this host saw earlier.
    pub(crate) async fn first_replay(&self, checkpoint: u64) -> Result<Arc<State>> {
        let mut turn = self.turn.lock().await;
        turn.checkpoint = checkpoint;
        self.replay_in(&mut turn).await
    }

    /// Remembers the tip as the newest that this host saw.
    pub(crate) fn see(&self, state: &State) -> Result<()> {
        if let Some(local) = &self.parts.local
            && self.seen.load(Ordering::Relaxed) != state.seq()
        {
            // Another process of this host may have seen more.
            if local.seen()?.is_none_or(|seen| seen.seq <= state.seq()) {
                local.set_seen(Seen { seq: state.seq(), hash: state.tip() })?;
            }
            self.seen.store(state.seq(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Appends what `decide` makes of the state at the tip, again and again until a slot is won.
    ///
    /// # Errors
    /// Those of `decide`, of [`Log::replay`] and of [`Log::append_to`]; [`Error::LogBusy`].
    pub(crate) async fn append(
        &self,
        mut decide: impl FnMut(&State) -> Result<Vec<Body>> + Send,
    ) -> Result<u64> {
        let appended = self.append_if(|state| decide(state).map(Some)).await?;
        Ok(appended.unwrap_or_else(|| self.state().seq()))
    }

    /// As [`Log::append`], but when `decide` finds that there is nothing to decide, nothing is appended.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub(crate) async fn append_if(
        &self,
        mut decide: impl FnMut(&State) -> Result<Option<Vec<Body>>> + Send,
    ) -> Result<Option<u64>> {
        let mut turn = self.turn.lock().await;
        for _ in 0..SLOT_TRIES {
            let state = self.replay_in(&mut turn).await?;
            let Some(bodies) = decide(&state)? else { return Ok(None) };
            if let Attempt::Landed(seq) = self.try_append(&mut turn, &state, bodies).await? {
                return Ok(Some(seq));
            }
        }
        Err(Error::LogBusy { tries: SLOT_TRIES })
    }

    /// Appends `bodies` to exactly the tip of `state`, or says that the slot is taken.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the store did not tell whether the entry is there, [`Error::NotKept`],
    /// [`Error::Mirror`], [`Error::ReadOnly`] without a signer, and those of the store, after which the slot is free.
    pub(crate) async fn append_to(&self, state: &State, bodies: Vec<Body>) -> Result<Attempt> {
        let mut turn = self.turn.lock().await;
        if self.state().seq() != state.seq() {
            return Ok(Attempt::Lost);
        }
        self.try_append(&mut turn, state, bodies).await
    }

    async fn replay_in(&self, turn: &mut MutexGuard<'_, Since>) -> Result<Arc<State>> {
        let before = self.state();
        let mut state = (*before).clone();
        let mut window = 1;
        loop {
            let objects = self.fetch(state.seq() + 1, window).await?;
            let complete = u64::try_from(objects.len()).is_ok_and(|found| found == window);
            for object in objects {
                self.apply(&mut state, &object)?;
                turn.entry(&object);
            }
            if !complete {
                break;
            }
            window = (window * 2).min(PREFETCH);
        }
        if state.seq() == before.seq() {
            return Ok(before);
        }
        self.accept(state)
    }

    /// Makes `state` the shared one.
    fn accept(&self, state: State) -> Result<Arc<State>> {
        state.check_features(false)?;
        if let Some(store) = state.moved_to() {
            let mark = layout::store_mark(&store);
            return Err(Error::WrongLogStore { store: self.parts.store.describe(), expected: store, mark });
        }
        let state = Arc::new(state);
        self.parts.state.set(Arc::clone(&state));
        Ok(state)
    }

    /// Opens the object of the next slot and applies it.
    pub(crate) fn apply(&self, state: &mut State, object: &Bytes) -> Result<()> {
        let seq = state.seq() + 1;
        let failed = |source| Error::Object { key: layout::log(seq).to_string(), source };
        let entry = open_entry(&self.parts.ring, seq, object).map_err(failed)?;
        let applied = state.apply(&entry, entry_hash(object)).map_err(failed)?;
        for (number, reason) in applied.void {
            tracing::debug!(seq, number, %reason, "a decision in the log is void");
        }
        Ok(())
    }

    /// The objects of up to `count` slots from `from`, as far as they exist without a gap.
    async fn fetch(&self, from: u64, count: u64) -> Result<Vec<Bytes>> {
        let mut tasks = JoinSet::new();
        for seq in from..from.saturating_add(count) {
            let store = Arc::clone(&self.parts.store);
            tasks.spawn(async move { (seq, slot(store.as_ref(), seq).await) });
        }
        let mut slots: Vec<_> = tasks.join_all().await;
        slots.sort_unstable_by_key(|(seq, _)| *seq);
        let mut objects = Vec::with_capacity(slots.len());
        let mut missing = None;
        for (seq, object) in slots {
            match (object?, missing) {
                (Some(object), None) => objects.push(object),
                (None, None) => missing = Some(seq),
                // Both slots may have been filled between the two looks: only a second look tells.
                (Some(_), Some(missing)) => match slot(self.parts.store.as_ref(), missing).await? {
                    Some(_) => break,
                    None => return Err(Error::LogGap { missing, next: seq }),
                },
                (None, Some(_)) => {}
            }
        }
        Ok(objects)
    }

    async fn try_append(
        &self,
        turn: &mut MutexGuard<'_, Since>,
        state: &State,
        bodies: Vec<Body>,
    ) -> Result<Attempt> {
        state.check_features(true)?;
        let seq = state.seq() + 1;
        let object = self.seal(state, bodies)?;
        if !self.win(seq, &object).await? {
            return Ok(Attempt::Lost);
        }
        self.read_back(seq, &object, state.tip()).await?;
        self.copy_beside_packs(turn, layout::log(seq), object.clone()).await?;
        let mut next = state.clone();
        let entry = open_entry(&self.parts.ring, seq, &object)?;
        let applied = next.apply(&entry, entry_hash(&object))?;
        turn.entry(&object);
        let next = self.accept(next)?;
        self.see(&next)?;
        if let Some((_, reason)) = applied.void.first() {
            return Err(Error::Void { seq, reason: reason.to_string() });
        }
        self.checkpoint_if_due(turn, &next).await;
        Ok(Attempt::Landed(seq))
    }

    /// Signs and seals the entry after `state`; a writer that the log does not know yet enrols itself in it.
    fn seal(&self, state: &State, mut bodies: Vec<Body>) -> Result<Bytes> {
        let LogParts { signer, world, ring, .. } = &self.parts;
        let signer = signer.as_ref().ok_or(Error::ReadOnly)?;
        let writer = signer.writer();
        if !state.writers().contains_key(&writer) {
            let role = if state.writers().is_empty() { Role::Admin } else { Role::Writer };
            bodies.insert(0, Body::Key(KeyChange::Writer { id: writer, role }));
        }
        let entry = Entry {
            seq: state.seq() + 1,
            prev: state.tip(),
            writer,
            nonce: aquifer_format::id::EntryNonce(random(world.as_ref())),
            wall_ms: world.wall_ms(),
            bodies,
        };
        Ok(Bytes::from(seal_entry(ring, signer, random(world.as_ref()), &entry)?))
    }

    /// Creates the slot (W5). A lost answer is settled by reading the slot: the same bytes mean that we won.
    async fn win(&self, seq: u64, object: &Bytes) -> Result<bool> {
        use aquifer_store::Error as Store;
        let (store, key) = (&self.parts.store, layout::log(seq));
        let mut failure = None;
        for _ in 0..SETTLE_TRIES {
            match store.create(&key, object.clone()).await {
                Ok(Created::Won) => return Ok(true),
                Ok(Created::Exists) => {}
                // These answers say that nothing was stored; but only the first try can know it.
                Err(refused @ (Store::Denied { .. } | Store::NoSpace { .. } | Store::TooLarge { .. }))
                    if failure.is_none() =>
                {
                    return Err(refused.into());
                }
                Err(error) => failure = Some(error),
            }
            match slot(store.as_ref(), seq).await {
                Ok(Some(there)) => return Ok(there == *object),
                Ok(None) => {}
                Err(Error::Store(error)) => failure = Some(error),
                Err(other) => return Err(other),
            }
        }
        match failure {
            Some(source) => Err(Error::OutcomeUnknown { seq, source }),
            // "Exists" and yet nothing to read, several times over.
            None => Err(Error::NotKept { seq }),
        }
    }

    /// Reads the slot and its predecessor back (W6).
    async fn read_back(&self, seq: u64, object: &Bytes, prev: EntryHash) -> Result<()> {
        let unknown = |error| match error {
            Error::Store(source) => Error::OutcomeUnknown { seq, source },
            other => other,
        };
        let store = self.parts.store.as_ref();
        let there = slot(store, seq).await.map_err(unknown)?;
        let before = if seq == 1 {
            optional(store.get(&layout::format(), GetRange::Whole).await).map_err(unknown)?
        } else {
            slot(store, seq - 1).await.map_err(unknown)?
        };
        let kept = there.is_some_and(|there| there == *object)
            && before.is_some_and(|before| entry_hash(&before) == prev);
        if kept { Ok(()) } else { Err(Error::NotKept { seq }) }
    }
}

/// The object of a slot, if it is filled.
pub(crate) async fn slot(store: &dyn ObjectStore, seq: u64) -> Result<Option<Bytes>> {
    optional(store.get(&layout::log(seq), GetRange::Whole).await)
}

/// A missing object as `None`.
pub(crate) fn optional<T>(result: aquifer_store::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
