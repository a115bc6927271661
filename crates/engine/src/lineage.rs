//! Which earlier backup each disk of a new one is read against, and how far its dirty bitmap is believed.
//!
//! What QEMU and the repository say is gathered first ([`Facts`]); what follows for a disk ([`Facts::descent`]) is pure.
//! The base of a disk is the backup that its bitmap names, never just the newest one. Whatever makes a bitmap doubtful
//! costs that disk one whole read, compared with its newest earlier backup, and nothing else.
//!
//! Backups that somebody else read beside ours ([`crate::expose`]) are nobody's base here, and their bitmaps are left alone.
//!
//! Nothing of a parent is needed to restore its children. Invariant: a disk has a base only if its bitmap marks, for
//! certain, every change since the instant of a committed, undeleted backup of this domain and this disk.

use std::collections::BTreeMap;

use aquifer_qemu::{BitmapSupport, Checkpoint, CheckpointPlan, Disk, Domain};
use aquifer_repository::format::record::{Mode, Record};
use aquifer_repository::{BackupInfo, Fate, TreeSpec};
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::request::{BackupRequest, Source, WantedParent};
use crate::settings::JobContext;

/// Backups of a domain that are looked through for one that left a bitmap on a disk, when newer ones hold the disk without
/// one: they were read from an image, or the disk cannot have a bitmap.
const UNMARKED_MAX: usize = 16;

/// What is known before anything is decided.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    domain: String,
    /// Read everything, and compare with nothing.
    full: bool,
    /// These disks too.
    full_disks: Vec<String>,
    /// What the caller wants the disks to be read against.
    parent: Option<WantedParent>,
    /// Bytes that one bit of a new bitmap stands for.
    granularity_bytes: u64,
    /// Why a disk without any bitmap is read whole.
    no_bitmap: &'static str,
    /// Whether the source can have bitmaps at all.
    markable: bool,
    newest: Option<Uuid>,
    /// For each disk the newest earlier backup that holds it.
    earlier: BTreeMap<String, Earlier>,
    /// For each disk the newest earlier backup that left a bitmap on it: what the session pins to build upon.
    candidates: BTreeMap<String, Uuid>,
    fates: BTreeMap<Uuid, Fate>,
    /// The records of the backups that bitmaps name; `None` for one that cannot be read.
    records: BTreeMap<Uuid, Option<Record>>,
}

/// A disk in an earlier backup.
#[derive(Debug, Clone, Copy)]
enum Earlier {
    Readable(TreeSpec),
    Unreadable(Uuid),
}

/// How one disk is read.
#[derive(Debug, Clone)]
pub(crate) struct Descent {
    pub(crate) mode: Mode,
    pub(crate) reason: Option<String>,
    /// The earlier tree to compare with; in mode `Bitmap` the one to build upon.
    pub(crate) tree: Option<TreeSpec>,
    /// The backup whose tree is built upon.
    pub(crate) base: Option<Uuid>,
    /// What QEMU is told about the disk's bitmaps.
    pub(crate) plan: CheckpointPlan,
}

/// What a reader of its own is offered of one disk.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) plan: CheckpointPlan,
    /// The backup since which the changes are told.
    pub(crate) parent: Option<Uuid>,
    /// Why they are not, if somebody asked for them.
    pub(crate) reason: Option<String>,
}

/// A disk that cannot be read against the parent that its caller insists on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("disk {disk} cannot be read against {parent}: {reason}")]
pub struct ParentMismatch {
    /// The disk.
    pub disk: String,
    /// The parent asked for.
    pub parent: Uuid,
    /// What the disk's bitmap says.
    pub reason: String,
}

/// A bitmap that can be believed.
struct Base<'a> {
    checkpoint: &'a Checkpoint,
    backup: Uuid,
    tree: TreeSpec,
}

impl Facts {
    /// Looks through the domain's backups, newest first; a record that cannot be read is a warning.
    pub(crate) async fn gather(context: &JobContext, request: &BackupRequest) -> Self {
        let mut facts = Facts {
            domain: request.domain.clone(),
            full: request.full,
            full_disks: request.full_disks.clone(),
            parent: request.parent,
            granularity_bytes: u64::from(context.repository.config().chunk_bytes),
            no_bitmap: request.source.rescan_reason(),
            markable: matches!(request.source, Source::Qmp(_)),
            ..Facts::default()
        };
        facts.find_earlier(context).await;
        facts
    }

    async fn find_earlier(&mut self, context: &JobContext) {
        let mut backups = context.repository.backups();
        let held = |entry: &BackupInfo| entry.forgotten.is_none() && !entry.summary.external;
        backups.retain(|entry| held(entry) && entry.summary.domain == self.domain);
        for (age, entry) in backups.iter().enumerate() {
            let summary = &entry.summary;
            self.newest.get_or_insert(summary.backup);
            let known = |name: &String| {
                self.earlier.contains_key(name)
                    && (age >= UNMARKED_MAX || !self.markable || self.candidates.contains_key(name))
            };
            if summary.disks.iter().all(|disk| known(&disk.name)) {
                continue;
            }
            let record = self.load(context, summary.backup).await;
            for disk in record.iter().flat_map(|record| &record.disks) {
                let tree = TreeSpec { root: disk.root, size_bytes: disk.size_bytes };
                self.earlier.entry(disk.name.clone()).or_insert(Earlier::Readable(tree));
                if disk.bitmap.is_some() {
                    self.candidates.entry(disk.name.clone()).or_insert(summary.backup);
                }
            }
            for disk in summary.disks.iter().filter(|_| record.is_none()) {
                self.earlier.entry(disk.name.clone()).or_insert(Earlier::Unreadable(summary.backup));
            }
        }
    }

    /// Asks the log about the backups that the domain's bitmaps name. From the opening of the new session on nobody else
    /// can change what it says.
    pub(crate) async fn look_at(&mut self, context: &JobContext, domain: &Domain) {
        let checkpoints = domain.disks().flat_map(|(_, checkpoints)| checkpoints);
        for backup in checkpoints.filter_map(|checkpoint| checkpoint.backup.parse().ok()) {
            let fate = context.repository.fate(backup);
            if matches!(fate, Fate::Committed { forgotten: false, .. }) {
                self.load(context, backup).await;
            }
            self.fates.insert(backup, fate);
        }
    }

    async fn load(&mut self, context: &JobContext, backup: Uuid) -> Option<Record> {
        if let Some(known) = self.records.get(&backup) {
            return known.clone();
        }
        let record = context.repository.record(backup).await;
        if let Err(error) = &record {
            context.events.warn(format!("earlier backup {backup} cannot be compared with: {error}"));
        }
        self.records.entry(backup).or_insert(record.ok()).clone()
    }

    /// The changes that a reader of its own is offered, and since when: since the backup that it names, else since the
    /// newest that it, or somebody like it, read before. Nothing of ours is touched.
    ///
    /// # Errors
    /// Those of [`Facts::descent`].
    pub(crate) fn offer(&self, disk: &Disk, checkpoints: &[Checkpoint]) -> Result<Offer> {
        checkpoints.iter().try_for_each(|checkpoint| self.refuse_open(disk, checkpoint))?;
        let external: Vec<&Checkpoint> = checkpoints.iter().filter(|one| self.is_external(one)).collect();
        let seq = |checkpoint: &&&Checkpoint| match self.fate(checkpoint) {
            Some(Fate::Committed { seq, .. }) => *seq,
            _ => 0,
        };
        let newest = external.iter().max_by_key(seq).copied();
        let base = match self.parent {
            _ if self.is_full(&disk.name) => Err(String::new()),
            None => newest.ok_or_else(String::new),
            Some(wanted) => {
                let named =
                    |one: &&Checkpoint| one.backup.parse() == Ok(wanted.backup) && self.is_committed(one);
                let named = checkpoints.iter().find(named);
                named.ok_or_else(|| format!("the disk has no bitmap of backup {}", wanted.backup))
            }
        };
        let base = base.and_then(|base| self.check_offer(disk, base).map(|()| base));
        let parent = base.as_ref().ok().and_then(|base| base.backup.parse().ok());
        self.mismatch(disk, parent.ok_or(&base.as_ref().err().cloned().unwrap_or_default()))?;
        let reason = base.as_ref().err().filter(|reason| !reason.is_empty()).cloned();
        let plan = CheckpointPlan {
            mark_granularity_bytes: Some(self.granularity_bytes),
            changes: base.is_ok(),
            base: base.ok().cloned(),
            beside: true,
            superseded: external.iter().filter(|one| !one.busy).map(|one| one.name.clone()).collect(),
            ..CheckpointPlan::default()
        };
        Ok(Offer { plan, parent, reason })
    }

    /// Whether a bitmap can be offered to others as it is.
    fn check_offer(&self, disk: &Disk, base: &Checkpoint) -> Result<(), String> {
        if base.inconsistent {
            return Err("bitmap inconsistent: QEMU did not end in order".to_owned());
        }
        if base.busy {
            return Err(format!("bitmap {} is in use by somebody else", base.name));
        }
        if !base.recording {
            return Err(format!("bitmap {} does not take note of writes", base.name));
        }
        if !base.same_disk {
            return Err(format!("bitmap of backup {} marks another disk than {}", base.backup, disk.name));
        }
        Ok(())
    }

    /// What the new session must pin: the newest backup, and whatever its disks may be built upon.
    pub(crate) fn newest(&self) -> Option<Uuid> {
        self.newest
    }

    /// See [`Facts::newest`].
    pub(crate) fn candidates(&self) -> Vec<Uuid> {
        self.candidates.values().copied().collect()
    }

    /// Bytes that one bit of a new bitmap stands for.
    pub(crate) fn granularity_bytes(&self) -> u64 {
        self.granularity_bytes
    }

    /// The backup that the new one comes after: the newest of the bases, else the newest of the domain.
    pub(crate) fn parent(&self, descents: &[Descent]) -> Option<Uuid> {
        let seq = |backup: &Uuid| match self.fates.get(backup) {
            Some(Fate::Committed { seq, .. }) => *seq,
            _ => 0,
        };
        let newest = self.newest.filter(|_| !self.full);
        descents.iter().filter_map(|descent| descent.base).max_by_key(seq).or(newest)
    }

    /// How each disk of the source is read, in its order: those of the domain, or those that the request names.
    ///
    /// # Errors
    /// Those of [`Facts::descent`].
    pub(crate) fn descents(&self, source: &Source, domain: Option<&Domain>) -> Result<Vec<Descent>> {
        match domain {
            Some(domain) => {
                domain.disks().map(|(disk, checkpoints)| self.descent(disk, checkpoints)).collect()
            }
            None => Ok(source.names().map(|name| self.unmarked(name)).collect()),
        }
    }

    /// How a disk that nobody marks is read.
    fn unmarked(&self, name: &str) -> Descent {
        self.whole(name, self.no_bitmap.to_owned(), CheckpointPlan::default())
    }

    /// How a disk is read, by the checkpoints that it carries.
    ///
    /// # Errors
    /// `Conflict` when a bitmap belongs to a backup that somebody else is making.
    ///
    /// `Conflict` from [`ParentMismatch`] when the caller insists on another parent than the bitmap's.
    fn descent(&self, disk: &Disk, checkpoints: &[Checkpoint]) -> Result<Descent> {
        checkpoints.iter().try_for_each(|checkpoint| self.refuse_open(disk, checkpoint))?;
        let ours = |checkpoint: &&Checkpoint| !self.is_external(checkpoint);
        let checkpoints: Vec<Checkpoint> = checkpoints.iter().filter(ours).cloned().collect();
        let checkpoints = checkpoints.as_slice();
        let mark_granularity_bytes = Some(self.granularity_bytes);
        let base = self.base(disk, checkpoints);
        let other = self.mismatch(disk, base.as_ref().map(|base| base.backup))?;
        let full = self.is_full(&disk.name);
        match base {
            Ok(Base { checkpoint, backup, tree }) => {
                let others = checkpoints.iter().filter(|other| other.name != checkpoint.name);
                let (older, never) = others.partition(|other| self.is_committed(other));
                let names =
                    |others: Vec<&Checkpoint>| others.iter().map(|other| other.name.clone()).collect();
                let plan = CheckpointPlan {
                    mark_granularity_bytes,
                    base: Some(checkpoint.clone()),
                    changes: !full && other.is_none(),
                    merge: names(never),
                    remove: names(older),
                    ..CheckpointPlan::default()
                };
                if full || other.is_some() {
                    return Ok(self.whole(&disk.name, other.unwrap_or_default(), plan));
                }
                Ok(Descent { mode: Mode::Bitmap, reason: None, tree: Some(tree), base: Some(backup), plan })
            }
            Err(reason) => {
                let free = checkpoints.iter().filter(|checkpoint| !checkpoint.busy);
                let remove = free.map(|checkpoint| checkpoint.name.clone()).collect();
                let plan = CheckpointPlan { mark_granularity_bytes, remove, ..CheckpointPlan::default() };
                let whole = self.whole(&disk.name, reason.clone(), plan);
                // Of a disk without an earlier backup a bitmap tells where it was before: under another name, say.
                let told = whole.reason.or((!checkpoints.is_empty()).then_some(reason));
                Ok(Descent { reason: told, ..whole })
            }
        }
    }

    fn whole(&self, name: &str, reason: String, plan: CheckpointPlan) -> Descent {
        let (mode, reason, tree) = match self.earlier.get(name) {
            _ if self.is_full(name) => (Mode::Full, Some("a full backup was asked for".to_owned()), None),
            None => (Mode::Full, None, None),
            Some(Earlier::Readable(tree)) => (Mode::Rescan, Some(reason), Some(*tree)),
            Some(Earlier::Unreadable(backup)) => {
                (Mode::Rescan, Some(format!("the record of earlier backup {backup} cannot be read")), None)
            }
        };
        Descent { mode, reason, tree, base: None, plan }
    }

    fn is_full(&self, disk: &str) -> bool {
        self.full || self.full_disks.iter().any(|full| full == disk)
    }

    /// Why the disk cannot be read against the parent that the caller wants, if it wants another than `base`.
    fn mismatch(&self, disk: &Disk, base: Result<Uuid, &String>) -> Result<Option<String>> {
        let Some(wanted) = self.parent.filter(|wanted| base != Ok(wanted.backup)) else { return Ok(None) };
        let reason = match base {
            Ok(base) => format!("its bitmap counts from backup {base}, not from {}", wanted.backup),
            Err(reason) => reason.clone(),
        };
        if wanted.strict {
            let (disk, parent) = (disk.name.clone(), wanted.backup);
            return Err(Error::caused(Kind::Conflict, ParentMismatch { disk, parent, reason }));
        }
        Ok(Some(reason))
    }

    /// Whether a bitmap is of a backup that somebody else read, and that is there.
    fn is_external(&self, checkpoint: &Checkpoint) -> bool {
        matches!(self.fate(checkpoint), Some(Fate::Committed { external: true, forgotten: false, .. }))
    }

    fn refuse_open(&self, disk: &Disk, checkpoint: &Checkpoint) -> Result<()> {
        let Some(Fate::Open { session, host }) = self.fate(checkpoint) else { return Ok(()) };
        Err(Error::new(
            Kind::Conflict,
            format!(
                "disk {}: session {session} of host {host} is making backup {} of it",
                disk.name, checkpoint.backup
            ),
        )
        .hint("wait for its end; if that host is known to be dead, back up with --fence-after 0s")
        .with("disk", disk.name.as_str()))
    }

    fn fate(&self, checkpoint: &Checkpoint) -> Option<&Fate> {
        self.fates.get(&checkpoint.backup.parse().ok()?)
    }

    fn is_committed(&self, checkpoint: &Checkpoint) -> bool {
        matches!(self.fate(checkpoint), Some(Fate::Committed { .. }))
    }

    /// The bitmap to count from, or why there is none.
    fn base<'a>(&self, disk: &Disk, checkpoints: &'a [Checkpoint]) -> Result<Base<'a>, String> {
        match disk.bitmaps {
            BitmapSupport::No => return Err("no bitmap: the disk is read-only".to_owned()),
            BitmapSupport::Volatile if checkpoints.is_empty() => {
                let format = &disk.format;
                return Err(format!("no bitmap: on a {format} image it ends with the QEMU that made it"));
            }
            _ if checkpoints.is_empty() => return Err(self.no_bitmap.to_owned()),
            _ => {}
        }
        let committed = checkpoints.iter().filter_map(|checkpoint| match self.fate(checkpoint)? {
            Fate::Committed { seq, forgotten, external: false } => Some((*seq, *forgotten, checkpoint)),
            Fate::Committed { external: true, .. } | Fate::Open { .. } | Fate::Absent => None,
        });
        let Some((_, forgotten, checkpoint)) = committed.max_by_key(|(seq, ..)| *seq) else {
            return Err("no bitmap of a backup that exists".to_owned());
        };
        if forgotten {
            return Err(format!("bitmap of backup {}, which was deleted", checkpoint.backup));
        }
        self.check_marks(checkpoint, checkpoints)?;
        self.check_record(disk, checkpoint)
    }

    /// Whether the bitmap, with those of later backups that were never committed, marks every change.
    fn check_marks(&self, base: &Checkpoint, all: &[Checkpoint]) -> Result<(), String> {
        let later = || all.iter().filter(|other| !self.is_committed(other));
        if base.inconsistent || later().any(|other| other.inconsistent) {
            return Err("bitmap inconsistent: QEMU did not end in order".to_owned());
        }
        if base.busy || later().any(|other| other.busy) {
            return Err(format!("bitmap {} is in use by somebody else", base.name));
        }
        if !base.recording && !later().any(|other| other.recording) {
            return Err(format!("bitmap {} was stopped by somebody else", base.name));
        }
        Ok(())
    }

    /// Whether the backup that the bitmap names is one of this disk, as far as its record tells.
    fn check_record<'a>(&self, disk: &Disk, checkpoint: &'a Checkpoint) -> Result<Base<'a>, String> {
        let named = &checkpoint.backup;
        let unreadable = || format!("the record of earlier backup {named} cannot be read");
        let backup: Uuid = named.parse().map_err(|_| unreadable())?;
        let record = self.records.get(&backup).and_then(Option::as_ref).ok_or_else(unreadable)?;
        if record.domain.name != self.domain {
            return Err(format!("bitmap of backup {named} of another domain, {}", record.domain.name));
        }
        let held = record.disks.iter().find(|held| held.name == disk.name);
        let Some(held) = held.filter(|_| checkpoint.same_disk) else {
            return Err(format!("bitmap of backup {named} marks another disk"));
        };
        match &held.bitmap {
            Some(bitmap) if bitmap.name == checkpoint.name => {
                let (then, now) = (bitmap.granularity_bytes, checkpoint.granularity_bytes);
                if then != now {
                    return Err(format!("bitmap of another granularity: {now} bytes instead of {then}"));
                }
            }
            _ => return Err(format!("no bitmap that backup {named} knows of")),
        }
        if disk.size_bytes < held.size_bytes {
            let (now, then) = (disk.size_bytes, held.size_bytes);
            return Err(format!("disk smaller than in backup {named}: {now} bytes instead of {then}"));
        }
        if self.candidates.get(&disk.name) != Some(&backup) {
            return Err(format!("bitmap of backup {named}, after which there was another of this disk"));
        }
        let tree = TreeSpec { root: held.root, size_bytes: held.size_bytes };
        Ok(Base { checkpoint, backup, tree })
    }
}

#[cfg(test)]
mod tests;
