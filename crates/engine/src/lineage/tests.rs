//! Every reason for which a bitmap is not believed, and that a doubt about one costs only a read.

use std::collections::BTreeMap;

use aquifer_repository::format::id::SessionId;
use aquifer_repository::format::record::{
    BitmapRecord, DiskRecord, DomainRecord, QuiesceRecord, RECORD_VERSION,
};

use super::*;

const GIB: u64 = 1 << 30;
const GRANULARITY: u64 = 128 << 10;
const OLD: Uuid = Uuid::from_u128(1);
const BASE: Uuid = Uuid::from_u128(2);
const LOST: Uuid = Uuid::from_u128(3);

fn name(backup: Uuid) -> String {
    format!("aqf-r-{backup}-vda")
}

fn mark(backup: Uuid) -> Checkpoint {
    Checkpoint {
        name: name(backup),
        backup: backup.to_string(),
        same_disk: true,
        granularity_bytes: GRANULARITY,
        dirty_bytes: 0,
        recording: true,
        busy: false,
        inconsistent: false,
    }
}

fn disk() -> Disk {
    Disk {
        name: "vda".to_owned(),
        node: "n0".to_owned(),
        qdev: None,
        device: None,
        file: None,
        size_bytes: GIB,
        format: "qcow2".to_owned(),
        skip: None,
        bitmaps: BitmapSupport::Persistent,
        blocks: None,
    }
}

fn record(backup: Uuid) -> Record {
    let disk = DiskRecord {
        name: "vda".to_owned(),
        node: "n0".to_owned(),
        size_bytes: GIB,
        logical_block_bytes: 0,
        physical_block_bytes: 0,
        root: None,
        bitmap: Some(BitmapRecord { name: name(backup), granularity_bytes: GRANULARITY }),
        mode: Mode::Full,
        reason: None,
        read_bytes: 0,
        new_bytes: 0,
        dedup_bytes: 0,
        zero_bytes: GIB,
        stored_bytes: 0,
    };
    Record {
        version: RECORD_VERSION,
        backup,
        parent: None,
        domain: DomainRecord { uuid: None, name: "web01".to_owned(), host: "h".to_owned() },
        created_ms: 0,
        description: String::new(),
        disks: vec![disk],
        quiesce: QuiesceRecord::default(),
        tool: String::new(),
        labels: BTreeMap::new(),
        namespace: None,
        definition: None,
        external: false,
    }
}

/// A domain with two committed backups and one that was never committed.
fn facts() -> Facts {
    let committed = |seq| Fate::Committed { seq, forgotten: false, external: false };
    Facts {
        domain: "web01".to_owned(),
        granularity_bytes: GRANULARITY,
        no_bitmap: "no bitmap at all",
        newest: Some(BASE),
        earlier: [("vda".to_owned(), Earlier::Readable(TreeSpec { root: None, size_bytes: GIB }))].into(),
        candidates: [("vda".to_owned(), BASE)].into(),
        fates: [(OLD, committed(5)), (BASE, committed(9)), (LOST, Fate::Absent)].into(),
        records: [(OLD, Some(record(OLD))), (BASE, Some(record(BASE)))].into(),
        ..Facts::default()
    }
}

fn descent(facts: &Facts, checkpoints: &[Checkpoint]) -> Descent {
    facts.descent(&disk(), checkpoints).unwrap()
}

/// Proves that the disk is read whole for a reason with these words, and that nothing of what is there stays.
fn assert_rescan(facts: &Facts, disk: &Disk, checkpoints: &[Checkpoint], words: &str) {
    let found = facts.descent(disk, checkpoints).unwrap();
    assert_eq!((found.mode, found.base), (Mode::Rescan, None));
    assert!(found.reason.as_ref().unwrap().contains(words), "{:?}", found.reason);
    assert!(found.tree.is_some(), "there is an earlier backup to compare with");
    assert_eq!(found.plan.base, None);
    let gone: Vec<String> = checkpoints.iter().filter(|c| !c.busy).map(|c| c.name.clone()).collect();
    assert_eq!(found.plan.remove, gone);
}

#[test]
fn the_newest_committed_bitmap_is_the_base_and_older_ones_go() {
    let found = descent(&facts(), &[mark(OLD), mark(BASE)]);
    assert_eq!((found.mode, found.base, found.reason), (Mode::Bitmap, Some(BASE), None));
    assert_eq!(found.plan.base.unwrap().name, name(BASE));
    assert_eq!((found.plan.remove, found.plan.merge, found.plan.changes), (vec![name(OLD)], vec![], true));
    assert_eq!(found.plan.mark_granularity_bytes, Some(GRANULARITY));
}

#[test]
fn what_was_never_committed_is_added_to_the_base() {
    let resting = Checkpoint { recording: false, ..mark(BASE) };
    let found = descent(&facts(), &[mark(LOST), resting]);
    assert_eq!((found.mode, found.base), (Mode::Bitmap, Some(BASE)));
    assert_eq!((found.plan.merge, found.plan.remove), (vec![name(LOST)], vec![]));
}

#[test]
fn a_disk_without_any_backup_is_full_and_says_nothing() {
    let facts = Facts { earlier: BTreeMap::new(), ..facts() };
    let found = descent(&facts, &[]);
    assert_eq!((found.mode, found.reason), (Mode::Full, None));
    assert!(found.plan.mark_granularity_bytes.is_some());
}

#[test]
fn a_disk_that_came_from_another_name_is_full_and_says_so() {
    let facts = Facts { earlier: BTreeMap::new(), ..facts() };
    let found = descent(&facts, &[Checkpoint { same_disk: false, ..mark(BASE) }]);
    assert_eq!(found.mode, Mode::Full);
    assert!(found.reason.unwrap().contains("another disk"));
    assert_eq!(found.plan.remove, [name(BASE)]);
}

#[test]
fn every_doubt_is_a_whole_read_that_says_why() {
    let (facts, disk) = (facts(), disk());
    let base = || mark(BASE);
    assert_rescan(&facts, &disk, &[], "no bitmap at all");
    assert_rescan(&facts, &disk, &[mark(LOST)], "no bitmap of a backup that exists");
    assert_rescan(&facts, &disk, &[Checkpoint { inconsistent: true, ..base() }], "inconsistent");
    assert_rescan(&facts, &disk, &[base(), Checkpoint { inconsistent: true, ..mark(LOST) }], "inconsistent");
    assert_rescan(&facts, &disk, &[Checkpoint { busy: true, ..base() }], "in use");
    assert_rescan(&facts, &disk, &[Checkpoint { recording: false, ..base() }], "stopped");
    assert_rescan(&facts, &disk, &[Checkpoint { same_disk: false, ..base() }], "another disk");
    assert_rescan(&facts, &disk, &[Checkpoint { granularity_bytes: 65536, ..base() }], "granularity");
    let shrunk = Disk { size_bytes: GIB - 512, ..disk.clone() };
    assert_rescan(&facts, &shrunk, &[base()], "smaller");
    let raw = Disk { bitmaps: BitmapSupport::Volatile, format: "raw".to_owned(), ..disk.clone() };
    assert_rescan(&facts, &raw, &[], "no bitmap: on a raw image");
    let fixed = Disk { bitmaps: BitmapSupport::No, ..disk };
    assert_rescan(&facts, &fixed, &[], "read-only");
}

#[test]
fn a_base_that_is_not_what_the_bitmap_says_is_not_trusted() {
    let disk = disk();
    let mut deleted = facts();
    deleted.fates.insert(BASE, Fate::Committed { seq: 9, forgotten: true, external: false });
    assert_rescan(&deleted, &disk, &[mark(BASE)], "deleted");
    // An older one that still exists does not know what came between.
    assert_rescan(&deleted, &disk, &[mark(OLD), mark(BASE)], "deleted");
    let mut unreadable = facts();
    unreadable.records.insert(BASE, None);
    assert_rescan(&unreadable, &disk, &[mark(BASE)], "cannot be read");
    let mut foreign = facts();
    foreign.records.get_mut(&BASE).unwrap().as_mut().unwrap().domain.name = "db01".to_owned();
    assert_rescan(&foreign, &disk, &[mark(BASE)], "another domain, db01");
    let mut renamed = facts();
    renamed.records.get_mut(&BASE).unwrap().as_mut().unwrap().disks[0].name = "vdb".to_owned();
    assert_rescan(&renamed, &disk, &[mark(BASE)], "another disk");
    let mut overtaken = facts();
    overtaken.candidates.insert("vda".to_owned(), OLD);
    assert_rescan(&overtaken, &disk, &[mark(BASE)], "there was another of this disk");
    let mut unknown = facts();
    unknown.records.get_mut(&BASE).unwrap().as_mut().unwrap().disks[0].bitmap = None;
    assert_rescan(&unknown, &disk, &[mark(BASE)], "no bitmap that backup");
}

#[test]
fn a_grown_disk_stays_an_increment_on_the_tree_of_its_old_size() {
    let grown = Disk { size_bytes: 2 * GIB, ..disk() };
    let found = facts().descent(&grown, &[mark(BASE)]).unwrap();
    assert_eq!((found.mode, found.tree.unwrap().size_bytes), (Mode::Bitmap, GIB));
}

#[test]
fn a_full_backup_that_was_asked_for_reads_all_and_keeps_the_chain_until_it_is_committed() {
    let facts = Facts { full: true, ..facts() };
    let found = descent(&facts, &[mark(BASE)]);
    assert_eq!((found.mode, found.base, found.tree), (Mode::Full, None, None));
    assert!(found.reason.unwrap().contains("asked for"));
    assert_eq!((found.plan.base.unwrap().name, found.plan.changes), (name(BASE), false));
}

#[test]
fn a_bitmap_of_a_backup_that_somebody_is_making_is_a_conflict() {
    let mut facts = facts();
    let session = SessionId::new([1; 10], 7);
    facts.fates.insert(LOST, Fate::Open { session, host: "hv2".to_owned() });
    let both = [mark(BASE), mark(LOST)];
    let error = facts.descent(&disk(), &both).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(
        error.message().contains("hv2") && error.hint_text().unwrap().contains("--fence-after 0s"),
        "{error}"
    );
}

#[test]
fn the_parent_is_the_newest_base_and_without_one_the_newest_backup() {
    let facts = facts();
    let on = |backup| Descent { base: Some(backup), ..descent(&facts, &[]) };
    assert_eq!(facts.parent(&[on(OLD), on(BASE), descent(&facts, &[])]), Some(BASE));
    assert_eq!(facts.parent(&[on(OLD)]), Some(OLD));
    assert_eq!(facts.parent(&[descent(&facts, &[])]), Some(BASE));
}
