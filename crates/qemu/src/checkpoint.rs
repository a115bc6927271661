//! Checkpoints: the dirty bitmaps by which a later backup knows what changed since an earlier one.
//!
//! Every disk carries one bitmap of a repository, named after the backup whose instant it marks, and a second one if
//! somebody else reads backups of their own beside ours. During a session
//! there are two: the one of the new backup marks what is written from its instant on, the one before it (the base)
//! rests. Which of them stays is decided by whether the backup was committed, and that only the repository's log knows:
//! here the names are read and what was decided is carried out.
//!
//! Invariant: at every moment, also between any two commands, the bitmaps of a disk together mark everything written
//! since the base's instant. So each change is one transaction, and a bitmap goes only when what it marks is no more
//! needed or stands in another one.

use serde::{Deserialize, Serialize};

use crate::commands::DirtyBitmap;
use crate::disk::{BitmapSupport, Disk};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::names::{DELTA, Names};
use crate::transaction::{At, Transaction};

/// A bitmap of this repository on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its name in QEMU.
    pub name: String,
    /// Uuid of the backup whose instant it marks.
    pub backup: String,
    /// Whether it was made for a disk of this disk's name.
    pub same_disk: bool,
    /// Bytes that one bit stands for.
    pub granularity_bytes: u64,
    /// Bytes that it marks, in whole bits.
    pub dirty_bytes: u64,
    /// Whether it takes note of writes.
    pub recording: bool,
    /// Whether an export or a job holds it, so that it cannot be touched.
    pub busy: bool,
    /// Whether QEMU lost track of it: it can only be removed.
    pub inconsistent: bool,
}

/// What is to be done with the checkpoints of one disk, by what the repository's log says of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointPlan {
    /// Bytes that one bit of the new bitmap stands for, a power of two from 512; `None` makes none.
    pub mark_granularity_bytes: Option<u64>,
    /// The checkpoint that the changes are counted from. It goes when the new backup is committed.
    pub base: Option<Checkpoint>,
    /// Set for a backup that stands beside the others: its base goes on marking and stays, whatever becomes of it.
    pub beside: bool,
    /// Whether the export tells what changed since the base.
    pub changes: bool,
    /// Checkpoints of backups that were never committed: what they mark is added to the base's, and they go.
    pub merge: Vec<String>,
    /// Checkpoints that nobody needs.
    pub remove: Vec<String>,
    /// Checkpoints that nobody needs once the new backup is committed.
    pub superseded: Vec<String>,
}

/// How a session ends for its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The backup is committed: its bitmaps are the bases of the next, the old ones go.
    Committed,
    /// There is no backup: the old ones go on, with what the new ones marked.
    Failed,
    /// Nobody knows yet: all stay, and the next session decides.
    Unknown,
}

impl Names {
    /// The checkpoint that a bitmap is, on a disk of that name; `None` for a bitmap that is not this repository's.
    pub(crate) fn checkpoint(&self, disk: &str, bitmap: &DirtyBitmap) -> Option<Checkpoint> {
        let name = bitmap.name.as_deref()?;
        let (backup, _) = self.read_bitmap(name)?;
        Some(Checkpoint {
            name: name.to_owned(),
            backup: backup.to_owned(),
            same_disk: self.bitmap(backup, disk) == name,
            granularity_bytes: bitmap.granularity,
            dirty_bytes: bitmap.count,
            recording: bitmap.recording,
            busy: bitmap.busy,
            inconsistent: bitmap.inconsistent,
        })
    }
}

/// One disk of a session, with what its checkpoints need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marked {
    node: String,
    /// The bitmap of the new backup, if there is to be one.
    mark: Option<Mark>,
    base: Option<Checkpoint>,
    beside: bool,
    changes: bool,
    merge: Vec<String>,
    remove: Vec<String>,
    superseded: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    name: String,
    granularity_bytes: u64,
    persistent: bool,
}

impl Marked {
    /// Lays a plan over a disk. A disk that can have no bitmap gets none, whatever the plan says.
    pub(crate) fn new(names: &Names, backup: &str, disk: &Disk, plan: CheckpointPlan) -> Self {
        let can = disk.bitmaps != BitmapSupport::No;
        let mark = plan.mark_granularity_bytes.filter(|_| can).map(|granularity_bytes| Mark {
            name: names.bitmap(backup, &disk.name),
            granularity_bytes,
            persistent: disk.bitmaps == BitmapSupport::Persistent,
        });
        // Without a successor the base must go on marking.
        let base = plan.base.clone().filter(|_| mark.is_some());
        let changes = plan.changes && base.is_some();
        let CheckpointPlan { beside, merge, remove, superseded, .. } = plan;
        Self { node: disk.node.clone(), mark, base, beside, changes, merge, remove, superseded }
    }

    /// Name of the new bitmap.
    pub(crate) fn mark(&self) -> Option<&str> {
        self.mark.as_ref().map(|mark| mark.name.as_str())
    }

    /// The bitmap that the disk's export offers.
    pub(crate) fn delta(&self) -> Option<&'static str> {
        self.changes.then_some(DELTA)
    }

    fn at<'a>(&'a self, name: &'a str) -> At<'a> {
        At { node: &self.node, name }
    }

    /// Brings what earlier runs left into order.
    fn settle(&self, transaction: &mut Transaction) {
        if let Some(base) = &self.base {
            for name in &self.merge {
                transaction.merge(self.at(name), self.at(&base.name));
            }
            if !base.recording {
                transaction.enable(self.at(&base.name));
            }
        }
        for name in self.merge.iter().chain(&self.remove) {
            transaction.remove(self.at(name));
        }
    }

    /// The part of the instant: from here on the new bitmap marks and the base rests, copied onto the overlay.
    pub(crate) fn begin(&self, transaction: &mut Transaction, overlay: &str) {
        let Some(mark) = &self.mark else { return };
        transaction.mark(self.at(&mark.name), mark.granularity_bytes, mark.persistent);
        let Some(base) = &self.base else { return };
        if !self.beside {
            transaction.disable(self.at(&base.name));
        }
        if self.changes {
            let delta = At { node: overlay, name: DELTA };
            transaction.collect_in(delta, base.granularity_bytes);
            transaction.merge(self.at(&base.name), delta);
        }
    }

    fn end(&self, transaction: &mut Transaction, committed: bool) {
        let Some(mark) = &self.mark else { return };
        if committed {
            self.superseded.iter().for_each(|name| transaction.remove(self.at(name)));
        }
        match (self.base.as_ref().filter(|_| !self.beside), committed) {
            (Some(base), true) => transaction.remove(self.at(&base.name)),
            (None, true) => {}
            (base, false) => {
                if let Some(base) = base {
                    transaction.enable(self.at(&base.name));
                    transaction.merge(self.at(&mark.name), self.at(&base.name));
                }
                transaction.remove(self.at(&mark.name));
            }
        }
    }
}

/// Brings into order what earlier runs left on all disks, at once.
pub(crate) async fn settle(monitor: &Monitor, disks: &[Marked]) -> Result<()> {
    let mut transaction = Transaction::default();
    disks.iter().for_each(|disk| disk.settle(&mut transaction));
    transaction.run(monitor).await
}

/// Ends the session's checkpoints on all disks, at once.
pub(crate) async fn end(monitor: &Monitor, disks: &[Marked], ending: Ending) -> Result<()> {
    let committed = match ending {
        Ending::Committed => true,
        Ending::Failed => false,
        Ending::Unknown => return Ok(()),
    };
    let mut transaction = Transaction::default();
    disks.iter().for_each(|disk| disk.end(&mut transaction, committed));
    transaction.run(monitor).await
}
