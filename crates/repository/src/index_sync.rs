//! The index follows the log: what was published beyond its position is read from the segments and added.
//!
//! The position names a log entry by number and hash, so an index of another repository, of another history, or of a
//! copy that was rolled back is recognised and made anew. A segment that cannot be read is made up for from the tables
//! of the packs themselves.
//!
//! Invariant: the position is moved only after everything up to it is in the index.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use aquifer_format::id::SegmentName;
use aquifer_format::keys::KeyRing;
use aquifer_format::log::{PublishedSegment, State, entry_hash};
use aquifer_format::segment::{SegmentPack, decode_segment};
use aquifer_index::{ChunkIndex, Position};
use aquifer_store::{Bytes, GetRange, ObjectStore};
use tokio::task::JoinSet;

use crate::log::slot;
use crate::rebuild::Tables;
use crate::repository::{Stores, blocking};
use crate::{Error, Result, layout};

/// Segments fetched at one time; each is a few MiB at most.
const PREFETCH: usize = 4;

/// Segments after which the position is moved, so that an interrupted rebuild does not begin again.
const MILESTONE: usize = 256;

/// What following did, for a caller who shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RebuildProgress {
    /// Segments, or packs, read so far.
    pub done: u64,
    /// How many there are to read.
    pub total: u64,
}

/// Whether an index that is right up to entry `seq` has left out every pack that `state` has forgotten since. The entry
/// that lets the state forget tells nothing new of packs: the one before it still names them.
pub(crate) fn knows_what_is_gone(seq: u64, state: &State) -> bool {
    seq.saturating_add(1) >= state.reaped_dropped()
}

/// Who hears about progress.
pub(crate) type Report<'a> = &'a (dyn Fn(RebuildProgress) + Send + Sync);

/// Keeps one index in step with the log.
pub(crate) struct Follower {
    index: Arc<dyn ChunkIndex>,
    packs: Arc<dyn ObjectStore>,
    log: Arc<dyn ObjectStore>,
    ring: KeyRing,
    /// Segments whose packs this process put into the index itself.
    own: Mutex<HashSet<SegmentName>>,
    turn: tokio::sync::Mutex<()>,
}

impl Follower {
    pub(crate) fn new(index: Arc<dyn ChunkIndex>, stores: &Stores, ring: &KeyRing) -> Self {
        Self {
            index,
            packs: Arc::clone(&stores.packs),
            log: Arc::clone(stores.of_log()),
            ring: ring.clone(),
            own: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Adds packs that this process published in `segments`.
    pub(crate) async fn add_own(&self, segments: &[SegmentName], packs: Arc<Vec<SegmentPack>>) -> Result<()> {
        let index = Arc::clone(&self.index);
        blocking(move || Ok(index.insert_packs(&packs)?)).await?;
        self.own.lock().unwrap_or_else(PoisonError::into_inner).extend(segments);
        Ok(())
    }

    /// Brings the index to `state`.
    pub(crate) async fn follow(&self, state: &State) -> Result<()> {
        self.follow_with(state, &|_| {}).await
    }

    /// Brings the index to `state` and tells how far it is.
    pub(crate) async fn follow_with(&self, state: &State, report: Report<'_>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let from = self.trusted_position(state).await?;
        if from == Some(state.seq()) {
            return Ok(());
        }
        let segments = state.segments_since(from.unwrap_or(0)).to_vec();
        if segments.len() > PREFETCH {
            tracing::info!(segments = segments.len(), "reading the index from the repository");
        }
        if !self.read_segments(&segments, state, report).await? {
            self.tables().add_missing(report).await?;
        }
        self.finish(state).await
    }

    /// Reads everything again, from the packs alone.
    pub(crate) async fn read_packs_anew(&self, state: &State, report: Report<'_>) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.reset().await?;
        self.tables().add_missing(report).await?;
        self.finish(state).await
    }

    /// Reads everything again, from the segments.
    pub(crate) async fn read_segments_anew(&self, state: &State, report: Report<'_>) -> Result<()> {
        {
            let _turn = self.turn.lock().await;
            self.reset().await?;
        }
        self.follow_with(state, report).await
    }

    fn tables(&self) -> Tables<'_> {
        Tables { index: &self.index, packs: &self.packs, ring: &self.ring }
    }

    async fn reset(&self) -> Result<()> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let index = Arc::clone(&self.index);
        blocking(move || Ok(index.reset()?)).await
    }

    /// Takes out what is gone from the store, and moves the position.
    async fn finish(&self, state: &State) -> Result<()> {
        let index = Arc::clone(&self.index);
        let reaped: Vec<_> = state.reaped().iter().copied().collect();
        let position = Position { repository: state.repository(), seq: state.seq(), hash: state.tip() };
        blocking(move || {
            index.remove_packs(&reaped)?;
            index.set_position(&position)?;
            Ok(index.flush()?)
        })
        .await
    }

    /// The entry up to which the index is right; an index that cannot be trusted is emptied.
    async fn trusted_position(&self, state: &State) -> Result<Option<u64>> {
        let reason = match self.index.position() {
            Ok(None) => return Ok(None),
            Ok(Some(position)) if !knows_what_is_gone(position.seq, state) => {
                "packs that were removed since are not told any more".to_owned()
            }
            Ok(Some(position)) if self.is_of(&position, state).await? => return Ok(Some(position.seq)),
            Ok(Some(_)) => "it reflects another log".to_owned(),
            Err(error) if error.needs_rebuild() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        tracing::warn!(reason, "the index is made anew");
        self.reset().await?;
        Ok(None)
    }

    async fn is_of(&self, position: &Position, state: &State) -> Result<bool> {
        if position.repository != state.repository() || position.seq > state.seq() {
            return Ok(false);
        }
        if position.seq == state.seq() {
            return Ok(position.hash == state.tip());
        }
        match slot(self.log.as_ref(), position.seq).await? {
            Some(object) => Ok(entry_hash(&object) == position.hash),
            // Truncated since: the state that was replayed over it vouches for what came before.
            None => Ok(position.seq < state.floor()),
        }
    }

    /// Reads `segments` in order; `false` when one of them cannot be read.
    async fn read_segments(
        &self,
        segments: &[PublishedSegment],
        state: &State,
        report: Report<'_>,
    ) -> Result<bool> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut whole, mut done) = (true, 0);
        let total = u64::try_from(segments.len()).unwrap_or(u64::MAX);
        for group in segments.chunks(MILESTONE) {
            let unknown: Vec<_> = group.iter().filter(|segment| !own.contains(&segment.name)).collect();
            for few in unknown.chunks(PREFETCH) {
                for (name, object) in self.fetch(few).await? {
                    whole &= self.add(name, object).await?;
                }
            }
            done += u64::try_from(group.len()).unwrap_or(u64::MAX);
            report(RebuildProgress { done, total });
            if let (true, true, Some(last)) = (whole, done < total, group.last()) {
                self.milestone(last.seq, segments, state).await?;
            }
        }
        Ok(whole)
    }

    /// Moves the position to the entry before `seq`, whose segments may not all be read yet.
    async fn milestone(&self, seq: u64, segments: &[PublishedSegment], state: &State) -> Result<()> {
        let before = seq.saturating_sub(1);
        if before < state.floor() || segments.first().is_none_or(|first| first.seq > before) {
            return Ok(());
        }
        let Some(object) = slot(self.log.as_ref(), before).await? else { return Ok(()) };
        let position = Position { repository: state.repository(), seq: before, hash: entry_hash(&object) };
        let index = Arc::clone(&self.index);
        blocking(move || {
            index.set_position(&position)?;
            Ok(index.flush()?)
        })
        .await
    }

    async fn fetch(&self, segments: &[&PublishedSegment]) -> Result<Vec<(SegmentName, Option<Bytes>)>> {
        let mut tasks = JoinSet::new();
        for (at, segment) in segments.iter().enumerate() {
            let (store, name) = (Arc::clone(&self.packs), segment.name);
            tasks.spawn(async move { (at, name, store.get(&layout::segment(&name), GetRange::Whole).await) });
        }
        let mut found = tasks.join_all().await;
        found.sort_by_key(|(at, ..)| *at);
        let one = |(_, name, object)| Ok((name, crate::log::optional(object)?));
        found.into_iter().map(one).collect()
    }

    /// Adds the packs of a segment; `false` when it is missing or damaged.
    async fn add(&self, name: SegmentName, object: Option<Bytes>) -> Result<bool> {
        let key = layout::segment(&name);
        let Some(object) = object else {
            tracing::warn!(%key, "a segment is missing; the tables of the packs will be read instead");
            return Ok(false);
        };
        let (index, ring) = (Arc::clone(&self.index), self.ring.clone());
        let added = blocking(move || {
            let packs = decode_segment(&ring, name, &object)?;
            Ok(index.insert_packs(&packs)?)
        });
        match added.await {
            Ok(()) => Ok(true),
            Err(Error::Format(error)) => {
                tracing::warn!(%key, %error, "a segment is damaged; the tables of the packs will be read instead");
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }
}
