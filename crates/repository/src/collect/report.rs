//! What a collection is asked and what it answers.
//!
//! Plain data, serialised as it is for `collect --json`. Lists are bounded; what does not fit is counted.

use std::time::Duration;

use aquifer_format::log::SessionKind;
use aquifer_format::{PackName, SessionId};
use serde::Serialize;
use uuid::Uuid;

/// Most packs of which one report says what becomes of them; more are counted.
pub const DECISIONS_MAX: usize = 1000;

/// What to do, and after which delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectRequest {
    /// Look and explain only: nothing is written or deleted.
    pub dry_run: bool,
    /// Most bytes to rewrite out of packs that are mostly garbage; `None` is no limit.
    pub max_repack_bytes: Option<u64>,
    /// How long condemned packs stay before they are deleted.
    pub grace: Duration,
    /// How long another host's session is silent before it is ended as dead.
    pub fence_after: Duration,
}

/// A number of objects, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What becomes of a pack that does not simply stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PackFate {
    /// No backup needs anything in it.
    Unused,
    /// A session that died stored it and never published it.
    Orphan,
    /// What is needed of it is rewritten; the rest is garbage.
    Rewritten,
    /// It was about to go, and stays; or nobody can tell.
    Kept,
}

/// One pack and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The pack.
    pub pack: PackName,
    /// Its bytes.
    pub bytes: u64,
    /// What becomes of it.
    pub fate: PackFate,
    /// Why.
    pub why: String,
}

/// A session that was open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeenSession {
    /// The session.
    pub session: SessionId,
    /// What it does.
    pub kind: SessionKind,
    /// Where it runs.
    pub host: String,
    /// For how long its heartbeat was seen unchanged, in seconds; `None` for one of this machine, which lives.
    pub silent_s: Option<u64>,
    /// Whether it was ended as dead.
    pub fenced: bool,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CollectReport {
    /// Nothing was written or deleted.
    pub dry_run: bool,
    /// Deleted backups that are gone for good now.
    pub dropped: Vec<Uuid>,
    /// Backups whose trees were walked.
    pub backups: u64,
    /// Tree nodes walked.
    pub nodes: u64,
    /// Packs in the store.
    pub packs: Tally,
    /// Blobs that the backups need, and their bytes, in packs of sessions that have ended.
    pub needed: Tally,
    /// Packs of sessions that are open, which are left alone.
    pub in_progress: Tally,
    /// Needed blobs that were rewritten into new packs, and their bytes.
    pub rewritten: Tally,
    /// Packs condemned now: nothing new counts on them, and they are deleted after the grace.
    pub condemned: Tally,
    /// Candidates that stay, because their own tables say so or do not tell.
    pub kept: Tally,
    /// Packs deleted.
    pub deleted: Tally,
    /// Condemned packs that still wait for their grace or for a session that may count on them.
    pub waiting: Tally,
    /// Segments deleted: merged ones, and those that nobody published.
    pub segments: u64,
    /// Heartbeats of ended sessions deleted.
    pub heartbeats: u64,
    /// Log entries and checkpoints deleted.
    pub log_entries: u64,
    /// Lowest log entry that stays.
    pub log_floor: u64,
    /// Needed chunks of which no copy is known: damage that `verify` describes.
    pub missing: u64,
    /// Objects that the store refuses to delete, to be tried again by a later run.
    pub refused: u64,
    /// Sessions that were open when the collection began.
    pub sessions: Vec<SeenSession>,
    /// What becomes of packs, the first of them.
    pub decisions: Vec<Decision>,
    /// Packs beyond those.
    pub more_decisions: u64,
    /// Names that are none of the repository's, left alone.
    pub foreign: Vec<String>,
}

impl CollectReport {
    pub(super) fn decide(&mut self, pack: PackName, bytes: u64, fate: PackFate, why: String) {
        if fate == PackFate::Kept {
            tracing::warn!(%pack, bytes, why, "a pack stays that was about to be collected");
            // What was said of it before does not hold.
            self.decisions.retain(|decision| decision.pack != pack);
        }
        if self.decisions.len() < DECISIONS_MAX {
            self.decisions.push(Decision { pack, bytes, fate, why });
        } else {
            self.more_decisions += 1;
        }
    }
}
