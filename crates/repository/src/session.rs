//! A backup session, from `Open` to `Commit`.
//!
//! The data plane fills packs; this file decides when they are published and when the backup exists
//! (docs/FORMAT.md, W1 to W6; publishing itself is in [`crate::publish`]).
//!
//! Invariant: a `Commit` is appended only to a state in which the session is open, its pins stand, and every pack it
//! depends on is live; and it is appended to exactly that state or not at all.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_format::id::{PackName, SessionId};
use aquifer_format::log::{Body, SessionKind, State};
use aquifer_format::pack::BlobKind;
use aquifer_format::record::{CommitSummary, Record};
use uuid::Uuid;

use crate::log::Attempt;
use crate::plane::Plane;
use crate::presence::Purpose;
use crate::publish::Publisher;
use crate::repository::{Access, Repository};
use crate::settings::Weakness;
use crate::writing::Writing;
use crate::{Error, Result};

/// Rounds of replay, check and append before a commit says that the log is too busy.
const COMMIT_TRIES: u32 = 256;

/// What a backup session is begun for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginBackup {
    /// The new backup's id.
    pub backup: Uuid,
    /// The virtual machine's name.
    pub domain: String,
    /// The backup that this one is read against; it is pinned.
    pub parent: Option<Uuid>,
    /// Backups whose trees this one keeps parts of; they are pinned like the parent, which need not be among them.
    pub bases: Vec<Uuid>,
    /// How long the heartbeat of another host's session of the domain must stand still before that session is ended as
    /// dead ([`crate::FENCE_AFTER`] unless the caller knows better); zero ends it at once.
    pub fence_after: Duration,
}

impl BeginBackup {
    /// The backups that must stay until this one is committed, each once: the parent, then the bases.
    pub(crate) fn pins(&self) -> Vec<Uuid> {
        let mut pins: Vec<Uuid> = Vec::with_capacity(1 + self.bases.len());
        for pin in self.parent.iter().chain(&self.bases) {
            if !pins.contains(pin) {
                pins.push(*pin);
            }
        }
        pins
    }
}

/// A backup that exists from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The log entry of its `Commit`.
    pub seq: u64,
    /// What lists show.
    pub summary: CommitSummary,
    /// Packs that the session stored.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
}

/// An open backup session.
pub struct BackupSession {
    pub(crate) writing: Arc<Writing>,
    pub(crate) plane: Arc<Plane>,
    begun: BeginBackup,
}

impl Repository {
    /// Begins a backup (W1): when this returns, the `Open` is durable and the parent and the bases are pinned. A session
    /// of the same domain that this host knows to be dead is ended first, and one of another host that was silent for
    /// [`BeginBackup::fence_after`].
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::UnknownBackup`] for the parent or a base; [`Error::BaseForgotten`];
    /// [`Error::BackupExists`]; [`Error::DomainBusy`] while another session backs the domain up; those of the log, and
    /// of the pack store and the state folder when a heartbeat is looked at.
    pub async fn begin_backup(self: &Arc<Self>, begin: BeginBackup) -> Result<Arc<BackupSession>> {
        if self.access != Access::Write {
            return Err(Error::ReadOnly);
        }
        let purpose = Purpose {
            kind: SessionKind::Backup,
            domain: Some(begin.domain.clone()),
            backup: Some(begin.backup),
            pins: begin.pins(),
            alone: Some(begin.fence_after),
        };
        let allowed = |state: &State| may_begin(state, &begin);
        let writing = Writing::open(self, self.parts.clone(), purpose, allowed).await?;
        Ok(Arc::new(BackupSession { plane: Arc::clone(&writing.plane), writing, begun: begin }))
    }
}

/// Whether a backup may begin on this state, if no other session is in its way.
fn may_begin(state: &State, begin: &BeginBackup) -> Result<()> {
    if let Some(pin) = begin.pins().iter().find(|pin| !state.backups().contains_key(pin)) {
        return Err(Error::UnknownBackup { wanted: pin.to_string() });
    }
    let forgotten = |base: &&Uuid| state.backups().get(base).is_some_and(|backup| backup.forgotten.is_some());
    if let Some(base) = begin.bases.iter().find(forgotten) {
        return Err(Error::BaseForgotten { backup: *base });
    }
    if state.backups().contains_key(&begin.backup) {
        return Err(Error::BackupExists { backup: begin.backup });
    }
    Ok(())
}

impl BackupSession {
    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.writing.id()
    }

    /// What it was begun for.
    pub fn begun(&self) -> &BeginBackup {
        &self.begun
    }

    /// The repository's chunk size in bytes.
    pub fn chunk_bytes(&self) -> u32 {
        self.repository().config.chunk_bytes
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.writing.repository
    }

    /// Publishes what is stored, if it is time (about every 64 packs or five minutes), so that a crash loses little.
    ///
    /// # Errors
    /// [`Error::Fenced`]; those of the log, the pack store and the index.
    pub async fn checkpoint_progress(&self) -> Result<()> {
        self.writing.checkpoint_progress().await
    }

    /// Commits the backup: when this returns `Ok`, it exists (W4 to W6). Every chunk writer must be finished.
    ///
    /// # Errors
    /// [`Error::OtherBackup`] for a record of another backup; the session's first failure; [`Error::Fenced`];
    /// [`Error::PinLost`]; [`Error::OutcomeUnknown`] when the backup may or may not exist, which the log tells later.
    /// After any other error it does not exist: end the session with [`BackupSession::abandon`].
    pub async fn commit(self: Arc<Self>, record: Record) -> Result<Committed> {
        if record.backup != self.begun.backup {
            let (expected, found) = (self.begun.backup, record.backup);
            return Err(Error::OtherBackup { session: self.id(), expected, found });
        }
        let summary = record.summary();
        let blob = self.store_meta(BlobKind::Record, &record.encode()?).await?;
        self.plane.flush().await?;
        let mut healed = HashSet::new();
        for _ in 0..COMMIT_TRIES {
            let state = self.repository().log.replay().await?;
            self.writing.check_open(&state)?;
            self.check_pins(&state)?;
            if self.heal(&state, &mut healed).await? {
                // That took time: others may have condemned more meanwhile.
                continue;
            }
            // Not before: healing stores packs, and their uploaders may want to publish.
            let mut publisher = self.writing.publisher.lock().await;
            let mut bodies = self.writing.publication(&mut publisher).await?;
            let session = self.id();
            bodies.push(Body::Commit { session, summary: summary.clone(), record: blob });
            bodies.push(Body::Close { session });
            if let Attempt::Landed(seq) = self.repository().log.append_to(&state, bodies).await? {
                self.writing.ended();
                self.index_after_commit(&mut publisher).await;
                let totals = self.plane.totals();
                return Ok(Committed { seq, summary, packs: totals.packs, pack_bytes: totals.pack_bytes });
            }
        }
        Err(Error::LogBusy { tries: COMMIT_TRIES })
    }

    /// An error unless every backup that this one builds on is in `state`.
    pub(crate) fn check_pins(&self, state: &State) -> Result<()> {
        match self.begun.pins().into_iter().find(|pin| !state.backups().contains_key(pin)) {
            Some(backup) => Err(Error::PinLost { backup }),
            None => Ok(()),
        }
    }

    /// Stores anew what this backup shares with packs that were condemned since it looked (W4). Says whether it did.
    async fn heal(&self, state: &State, healed: &mut HashSet<PackName>) -> Result<bool> {
        if self.plane.parts().settings.lacks(Weakness::NoRecheckAtCommit) {
            return Ok(false);
        }
        let dead = |pack: &PackName| !state.is_live(pack) && !healed.contains(pack);
        let condemned: Vec<_> = self.plane.dependencies().into_iter().filter(dead).collect();
        for pack in &condemned {
            tracing::warn!(%pack, "a pack that this backup shares was condemned; its chunks are stored anew");
            self.plane.store_again(pack).await?;
            healed.insert(*pack);
        }
        if condemned.is_empty() {
            return Ok(false);
        }
        self.plane.flush().await?;
        Ok(true)
    }

    /// The backup exists; an index that lags behind only costs the next run time.
    async fn index_after_commit(&self, publisher: &mut Publisher) {
        let indexed = async {
            self.writing.settle(publisher).await?;
            self.repository().follower.follow(&self.repository().state()).await
        };
        if let Err(error) = indexed.await {
            tracing::warn!(%error, "the index was not brought up to date after the commit");
        }
    }

    /// Ends the session without a backup. What is stored stays published, so that the next run finds it.
    ///
    /// # Errors
    /// Those of the log; the next session of this host then fences this one.
    pub async fn abandon(self: Arc<Self>) -> Result<()> {
        self.writing.close().await
    }
}
