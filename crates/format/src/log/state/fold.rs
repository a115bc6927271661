//! What each body does to the state, and when it is void.
//!
//! The invariant: a body is checked whole before it changes anything, so a void body leaves no trace.

use std::sync::Arc;

use uuid::Uuid;

use super::{Backup, Body, Condemned, Forgotten, OpenSession, PublishedSegment, State};
use crate::error::{Error, Result};
use crate::id::{EntryHash, PackName, SegmentName, SessionId, WriterId};
use crate::log::{BlobPlace, DefinedDomain, Entry, Feature, KeyChange};
use crate::magic::{DEFINITION_BYTES_MAX, DOMAIN_NAME_CHARS};
use crate::record::CommitSummary;

/// Why a body changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VoidReason {
    /// The entry's writer is neither enrolled nor enrols itself in the entry.
    #[error("writer {0} is not enrolled")]
    WriterNotEnrolled(WriterId),
    /// The log moved to another store; nothing counts after that.
    #[error("the log moved to another store")]
    LogMoved,
    /// An `Open` whose session id carries another slot.
    #[error("session {0} carries another slot than the one of its Open")]
    WrongSlot(SessionId),
    /// The session was never opened, or was closed or fenced.
    #[error("session {0} is not open: it was closed or fenced")]
    SessionNotOpen(SessionId),
    /// The session is open already.
    #[error("session {0} is open already")]
    SessionExists(SessionId),
    /// No such backup: it was never committed, or was dropped.
    #[error("backup {0} does not exist: it was never committed, or was dropped")]
    UnknownBackup(Uuid),
    /// A backup of this id is committed already.
    #[error("backup {0} is committed already")]
    BackupExists(Uuid),
    /// A `Commit` of another backup than the session's `Open` announced.
    #[error("backup {0} is not the one that its session announced")]
    WrongBackup(Uuid),
    /// A backup would be forgotten that is protected.
    #[error("backup {0} is protected, so it cannot be forgotten")]
    Protected(Uuid),
    /// A backup would be protected that is forgotten.
    #[error("backup {0} is forgotten, so it cannot be protected")]
    Forgotten(Uuid),
    /// A backup would be dropped that is not forgotten.
    #[error("backup {0} is not forgotten, so it cannot be dropped")]
    NotForgotten(Uuid),
    /// A backup would be dropped that an open session pins.
    #[error("backup {0} is pinned by an open session, so it cannot be dropped")]
    Pinned(Uuid),
    /// A segment of another session, or one whose number is not above those before it.
    #[error("segment {0} is of another session, or out of order")]
    SegmentOrder(SegmentName),
    /// A segment that is not published.
    #[error("segment {0} is not published")]
    UnknownSegment(SegmentName),
    /// A pack is reported gone that was never condemned.
    #[error("pack {0} is not condemned")]
    NotCondemned(PackName),
    /// A pack would be dropped from the state that was never reaped.
    #[error("pack {0} is not reaped")]
    NotReaped(PackName),
    /// A domain would be undefined that is not defined.
    #[error("domain {0} is not defined")]
    UnknownDomain(String),
    /// A domain would be defined whose name or definition is out of bounds.
    #[error("domain {name}: a name of 1 to 64 characters and a definition of at most 1 MiB are allowed")]
    DomainBounds {
        /// Its name.
        name: String,
    },
    /// The key is enrolled already, as something else.
    #[error("the key {0} is enrolled already")]
    KeyExists(String),
    /// A floor that is not above the present one, is above the entry itself, or above an open session.
    #[error("floor {0} is not above the present floor, or above this entry or an open session")]
    WrongFloor(u64),
}

/// What applying an entry found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Bodies that changed nothing: their place in the entry and why.
    pub void: Vec<(usize, VoidReason)>,
}

impl Applied {
    /// Why the body at `index` is void, if it is.
    #[must_use]
    pub fn void_reason(&self, index: usize) -> Option<&VoidReason> {
        self.void.iter().find(|(at, _)| *at == index).map(|(_, reason)| reason)
    }
}

type Fold = std::result::Result<(), VoidReason>;

impl State {
    /// Applies the next entry; `hash` is [`crate::entry_hash`] of its object.
    ///
    /// Bodies apply in order, each against the state that those before it left. A void body changes
    /// nothing and is reported; the entry still takes its slot.
    ///
    /// # Errors
    /// [`Error::Sequence`] when the entry is not the next one, [`Error::Chain`] when it does not follow the
    /// object that this state ends with. The state is unchanged then.
    pub fn apply(&mut self, entry: &Entry, hash: EntryHash) -> Result<Applied> {
        let expected = self.seq.saturating_add(1);
        if entry.seq != expected {
            return Err(Error::Sequence { expected, found: entry.seq });
        }
        if entry.prev != self.tip {
            return Err(Error::Chain { seq: entry.seq, expected: self.tip, found: entry.prev });
        }
        let mut applied = Applied::default();
        let known = self.knows_writer(entry);
        for (index, body) in entry.bodies.iter().enumerate() {
            let folded =
                if known { self.fold(entry, body) } else { Err(VoidReason::WriterNotEnrolled(entry.writer)) };
            if let Err(reason) = folded {
                applied.void.push((index, reason));
            }
        }
        self.seq = entry.seq;
        self.tip = hash;
        Ok(applied)
    }

    /// Enrolled before, or by this very entry.
    fn knows_writer(&self, entry: &Entry) -> bool {
        let enrols =
            |body: &Body| matches!(body, Body::Key(KeyChange::Writer { id, .. }) if *id == entry.writer);
        self.writers.contains_key(&entry.writer) || entry.bodies.iter().any(enrols)
    }

    fn fold(&mut self, entry: &Entry, body: &Body) -> Fold {
        if self.moved_to.is_some() {
            return Err(VoidReason::LogMoved);
        }
        match body {
            Body::Open { session, kind, domain, backup, pins, host } => {
                let opened = OpenSession {
                    kind: *kind,
                    domain: domain.clone(),
                    backup: *backup,
                    pins: pins.clone(),
                    host: host.clone(),
                    writer: entry.writer,
                    wall_ms: entry.wall_ms,
                    next_segment: 0,
                };
                self.open(entry.seq, *session, opened)
            }
            Body::Publish { session, segments } => self.publish(entry.seq, session, segments),
            Body::Commit { session, summary, record } => self.commit(
                session,
                Backup {
                    summary: summary.clone(),
                    record: *record,
                    session: *session,
                    seq: entry.seq,
                    forgotten: None,
                    protected: false,
                },
            ),
            Body::Close { session } | Body::Fence { session, .. } => self.end(session),
            Body::Forget { backups, not_before_ms } => self.forget(entry.seq, backups, *not_before_ms),
            Body::Unforget { backups } => self.unforget(backups),
            Body::Protect { backups, on } => self.protect(backups, *on),
            Body::Condemn { packs, dropped } => {
                self.condemn(Condemned { seq: entry.seq, wall_ms: entry.wall_ms }, packs, dropped)
            }
            Body::Reaped { packs } => self.reap(packs),
            Body::Reindex { old, new, dropped } => self.reindex(entry.seq, old, new, dropped),
            Body::Quarantine { packs, blobs } => {
                self.quarantine(packs, blobs);
                Ok(())
            }
            Body::Define { domain } => self.define(domain),
            Body::Undefine { domain } => self.undefine(domain),
            Body::Key(change) => self.change_key(change),
            Body::Config { features } => {
                self.add_features(features);
                Ok(())
            }
            Body::Moved { log_store } => {
                self.moved_to = Some(*log_store);
                Ok(())
            }
            Body::Truncate { floor } => self.truncate(entry.seq, *floor),
        }
    }

    fn open(&mut self, seq: u64, session: SessionId, opened: OpenSession) -> Fold {
        if session.open_seq() != seq {
            return Err(VoidReason::WrongSlot(session));
        }
        if self.sessions.contains_key(&session) {
            return Err(VoidReason::SessionExists(session));
        }
        self.all_known(&opened.pins)?;
        Arc::make_mut(&mut self.sessions).insert(session, opened);
        Ok(())
    }

    fn all_known(&self, backups: &[Uuid]) -> Fold {
        match backups.iter().find(|backup| !self.backups.contains_key(backup)) {
            Some(backup) => Err(VoidReason::UnknownBackup(*backup)),
            None => Ok(()),
        }
    }

    fn is_open(&self, session: &SessionId) -> Fold {
        if self.sessions.contains_key(session) { Ok(()) } else { Err(VoidReason::SessionNotOpen(*session)) }
    }

    /// Checks that new segments are of open sessions and ascend in each.
    fn check_new_segments(&self, segments: &[SegmentName]) -> Fold {
        let mut before: Option<SegmentName> = None;
        for name in segments {
            let session = self.sessions.get(&name.session).ok_or(VoidReason::SessionNotOpen(name.session))?;
            let ascends = before.is_none_or(|before| before < *name);
            if u64::from(name.number) < session.next_segment || !ascends {
                return Err(VoidReason::SegmentOrder(*name));
            }
            before = Some(*name);
        }
        Ok(())
    }

    fn add_segments(&mut self, seq: u64, segments: &[SegmentName]) {
        if segments.is_empty() {
            return;
        }
        let sessions = Arc::make_mut(&mut self.sessions);
        for name in segments {
            if let Some(session) = sessions.get_mut(&name.session) {
                session.next_segment = u64::from(name.number) + 1;
            }
        }
        Arc::make_mut(&mut self.segments)
            .extend(segments.iter().map(|name| PublishedSegment { name: *name, seq }));
    }

    fn publish(&mut self, seq: u64, session: &SessionId, segments: &[SegmentName]) -> Fold {
        self.is_open(session)?;
        if let Some(foreign) = segments.iter().find(|name| name.session != *session) {
            return Err(VoidReason::SegmentOrder(*foreign));
        }
        self.check_new_segments(segments)?;
        self.add_segments(seq, segments);
        Ok(())
    }

    fn commit(&mut self, session: &SessionId, backup: Backup) -> Fold {
        let CommitSummary { backup: id, .. } = backup.summary;
        let open = self.sessions.get(session).ok_or(VoidReason::SessionNotOpen(*session))?;
        if open.backup != Some(id) {
            return Err(VoidReason::WrongBackup(id));
        }
        if self.backups.contains_key(&id) {
            return Err(VoidReason::BackupExists(id));
        }
        Arc::make_mut(&mut self.backups).insert(id, backup);
        Ok(())
    }

    fn end(&mut self, session: &SessionId) -> Fold {
        self.is_open(session)?;
        Arc::make_mut(&mut self.sessions).remove(session);
        Ok(())
    }

    fn forget(&mut self, seq: u64, backups: &[Uuid], not_before_ms: u64) -> Fold {
        self.all_known(backups)?;
        let protected = |id: &&Uuid| self.backups.get(id).is_some_and(|backup| backup.protected);
        if let Some(id) = backups.iter().find(protected) {
            return Err(VoidReason::Protected(*id));
        }
        for id in backups {
            if let Some(backup) = Arc::make_mut(&mut self.backups).get_mut(id) {
                // A second Forget never shortens the time in which the first can be undone.
                let earlier = backup.forgotten.unwrap_or(Forgotten { seq, not_before_ms });
                let not_before_ms = earlier.not_before_ms.max(not_before_ms);
                backup.forgotten = Some(Forgotten { seq: earlier.seq, not_before_ms });
            }
        }
        Ok(())
    }

    fn unforget(&mut self, backups: &[Uuid]) -> Fold {
        self.all_known(backups)?;
        for id in backups {
            if let Some(backup) = Arc::make_mut(&mut self.backups).get_mut(id) {
                backup.forgotten = None;
            }
        }
        Ok(())
    }

    fn protect(&mut self, backups: &[Uuid], on: bool) -> Fold {
        self.all_known(backups)?;
        let forgotten = |id: &&Uuid| self.backups.get(id).is_some_and(|backup| backup.forgotten.is_some());
        if let Some(id) = backups.iter().find(forgotten) {
            return Err(VoidReason::Forgotten(*id));
        }
        for id in backups {
            if let Some(backup) = Arc::make_mut(&mut self.backups).get_mut(id) {
                backup.protected = on;
            }
        }
        Ok(())
    }

    fn condemn(&mut self, mark: Condemned, packs: &[PackName], dropped: &[Uuid]) -> Fold {
        for id in dropped {
            let backup = self.backups.get(id).ok_or(VoidReason::UnknownBackup(*id))?;
            if backup.forgotten.is_none() {
                return Err(VoidReason::NotForgotten(*id));
            }
            if self.is_pinned(id) {
                return Err(VoidReason::Pinned(*id));
            }
        }
        for id in dropped {
            Arc::make_mut(&mut self.backups).remove(id);
        }
        for pack in packs.iter().filter(|pack| !self.reaped.contains(pack)) {
            Arc::make_mut(&mut self.condemned).entry(*pack).or_insert(mark);
        }
        Ok(())
    }

    fn reap(&mut self, packs: &[PackName]) -> Fold {
        let gone = |pack: &PackName| self.condemned.contains_key(pack) || self.reaped.contains(pack);
        if let Some(pack) = packs.iter().find(|pack| !gone(pack)) {
            return Err(VoidReason::NotCondemned(*pack));
        }
        for pack in packs {
            Arc::make_mut(&mut self.condemned).remove(pack);
            Arc::make_mut(&mut self.reaped).insert(*pack);
            if self.quarantined_packs.contains(pack) {
                Arc::make_mut(&mut self.quarantined_packs).remove(pack);
            }
        }
        self.drop_quarantined_blobs();
        Ok(())
    }

    /// Single blobs need no mark once their whole pack is gone.
    fn drop_quarantined_blobs(&mut self) {
        let reaped = &self.reaped;
        if self.quarantined_blobs.iter().any(|place| reaped.contains(&place.pack)) {
            Arc::make_mut(&mut self.quarantined_blobs).retain(|place| !reaped.contains(&place.pack));
        }
    }

    fn reindex(&mut self, seq: u64, old: &[SegmentName], new: &[SegmentName], dropped: &[PackName]) -> Fold {
        let published = |name: &SegmentName| self.segments.iter().any(|segment| segment.name == *name);
        if let Some(name) = old.iter().find(|name| !published(name)) {
            return Err(VoidReason::UnknownSegment(*name));
        }
        if let Some(pack) = dropped.iter().find(|pack| !self.reaped.contains(pack)) {
            return Err(VoidReason::NotReaped(*pack));
        }
        self.check_new_segments(new)?;
        Arc::make_mut(&mut self.segments).retain(|segment| !old.contains(&segment.name));
        self.add_segments(seq, new);
        for pack in dropped {
            Arc::make_mut(&mut self.reaped).remove(pack);
            self.reaped_dropped = seq;
        }
        Ok(())
    }

    fn quarantine(&mut self, packs: &[PackName], blobs: &[BlobPlace]) {
        for pack in packs.iter().filter(|pack| !self.reaped.contains(pack)) {
            Arc::make_mut(&mut self.quarantined_packs).insert(*pack);
        }
        for place in blobs.iter().filter(|place| !self.reaped.contains(&place.pack)) {
            Arc::make_mut(&mut self.quarantined_blobs).insert(*place);
        }
    }

    fn define(&mut self, domain: &DefinedDomain) -> Fold {
        let definition_bytes = domain.definition.as_ref().map_or(0, |definition| definition.bytes.len());
        let name_chars = domain.name.chars().count();
        if name_chars == 0 || name_chars > DOMAIN_NAME_CHARS || definition_bytes > DEFINITION_BYTES_MAX {
            return Err(VoidReason::DomainBounds {
                name: domain.name.chars().take(DOMAIN_NAME_CHARS).collect(),
            });
        }
        Arc::make_mut(&mut self.domains).insert(domain.name.clone(), domain.clone());
        Ok(())
    }

    fn undefine(&mut self, name: &str) -> Fold {
        if !self.domains.contains_key(name) {
            return Err(VoidReason::UnknownDomain(name.chars().take(DOMAIN_NAME_CHARS).collect()));
        }
        Arc::make_mut(&mut self.domains).remove(name);
        Ok(())
    }

    fn change_key(&mut self, change: &KeyChange) -> Fold {
        match change {
            KeyChange::Epoch { id } if self.epochs.contains(id) => Err(VoidReason::KeyExists(id.to_string())),
            KeyChange::Epoch { id } => {
                self.epochs.push(*id);
                Ok(())
            }
            // The same enrolment again is no change: every first session may carry it.
            KeyChange::Writer { id, role } => match self.writers.get(id) {
                Some(known) if known == role => Ok(()),
                Some(_) => Err(VoidReason::KeyExists(id.to_string())),
                None => {
                    Arc::make_mut(&mut self.writers).insert(*id, *role);
                    Ok(())
                }
            },
        }
    }

    fn add_features(&mut self, features: &[Feature]) {
        for feature in features {
            if !self.features.contains(feature) {
                self.features.push(feature.clone());
            }
        }
    }

    fn truncate(&mut self, seq: u64, floor: u64) -> Fold {
        let older_session = self.sessions.keys().any(|session| session.open_seq() < floor);
        if floor <= self.floor || floor > seq || older_session {
            return Err(VoidReason::WrongFloor(floor));
        }
        self.floor = floor;
        Ok(())
    }
}
