//! The fold: what each body does, and every reason for which one is void.

use aquifer_format::log::{BlobPlace, DefaultTargets, DefinedDomain, KeyChange, Role};
use aquifer_format::record::{Definition, DefinitionKind};
use aquifer_format::*;
use uuid::Uuid;

use crate::fixture::{self, BACKUP, CLOCK_MS, PARENT, next_entry, open_body, pack_name, session};

/// A log in memory: appends entries and applies them.
struct Log {
    state: State,
}

impl Log {
    /// A log whose first entry enrols the fixture's writer.
    fn new() -> Self {
        let mut log = Self { state: State::new(&fixture::config(true)) };
        log.apply(vec![Body::Key(KeyChange::Writer { id: fixture::signer().writer(), role: Role::Admin })]);
        log
    }

    /// A log with `BACKUP` committed by the session of slot 2, which is closed.
    fn with_backup() -> Self {
        let mut log = Self::new();
        log.apply(vec![open_body(2, BACKUP, vec![])]);
        log.apply(vec![
            Body::Publish { session: session(2), segments: vec![segment(2, 0)] },
            commit(2, BACKUP),
            Body::Close { session: session(2) },
        ]);
        log
    }

    fn append(&mut self, bodies: Vec<Body>) -> Vec<VoidReason> {
        let entry = next_entry(&self.state, bodies);
        let hash = EntryHash(fixture::salt(&entry.seq.to_string()));
        let applied = self.state.apply(&entry, hash).expect("the entry is the next one");
        assert_eq!((self.state.seq(), self.state.tip()), (entry.seq, hash));
        applied.void.into_iter().map(|(_, reason)| reason).collect()
    }

    fn apply(&mut self, bodies: Vec<Body>) {
        assert_eq!(self.append(bodies), []);
    }

    /// Appends a body that must be void and change nothing but the tip.
    fn void(&mut self, body: Body) -> VoidReason {
        let mut before = self.state.clone();
        let mut reasons = self.append(vec![body]);
        assert_eq!(reasons.len(), 1);
        let empty = next_entry(&before, vec![]);
        before.apply(&empty, self.state.tip()).expect("the entry is the next one");
        assert_eq!(before, self.state, "a void body left a trace");
        reasons.remove(0)
    }

    fn next(&self) -> u64 {
        self.state.seq() + 1
    }
}

fn segment(slot: u64, number: u32) -> SegmentName {
    SegmentName { session: session(slot), number }
}

fn commit(slot: u64, backup: Uuid) -> Body {
    let mut summary = fixture::record(&fixture::ring(true)).summary();
    summary.backup = backup;
    Body::Commit { session: session(slot), summary, record: ChunkId([3; 32]) }
}

fn forget(backup: Uuid, not_before_ms: u64) -> Body {
    Body::Forget { backups: vec![backup], not_before_ms }
}

fn protect(backup: Uuid, on: bool) -> Body {
    Body::Protect { backups: vec![backup], on }
}

fn condemn(packs: &[u32], dropped: &[Uuid]) -> Body {
    Body::Condemn { packs: packs.iter().copied().map(pack_name).collect(), dropped: dropped.to_vec() }
}

fn reaped(packs: &[u32]) -> Body {
    Body::Reaped { packs: packs.iter().copied().map(pack_name).collect() }
}

#[test]
fn an_entry_out_of_order_or_off_the_chain_is_an_error_and_changes_nothing() {
    let mut log = Log::new();
    let before = log.state.clone();
    let good = next_entry(&before, vec![]);
    let hash = EntryHash([1; 32]);
    for seq in [0, 1, 3] {
        let error = log.state.apply(&Entry { seq, ..good.clone() }, hash).unwrap_err();
        assert!(matches!(error, Error::Sequence { expected: 2, .. }), "{error}");
    }
    let forked = Entry { prev: EntryHash([9; 32]), ..good.clone() };
    let error = log.state.apply(&forked, hash).unwrap_err();
    assert!(matches!(error, Error::Chain { seq: 2, .. }), "{error}");
    assert!(error.to_string().contains("forked, rolled back or replaced"));
    assert_eq!(log.state, before);
}

#[test]
fn the_chain_begins_at_the_format_object() {
    let config = fixture::config(true);
    assert_eq!(State::new(&config).tip(), EntryHash(config.fingerprint()));
    let mut other = State::new(&RepositoryConfig { chunk_bytes: 128 << 10, ..config.clone() });
    let entry = next_entry(&State::new(&config), vec![]);
    assert!(matches!(other.apply(&entry, EntryHash([1; 32])), Err(Error::Chain { seq: 1, .. })));
}

#[test]
fn an_unknown_writer_decides_nothing_until_it_enrols_itself() {
    let mut log = Log::new();
    let stranger = Signer::from_seed([9; 32]).unwrap().writer();
    let mut entry =
        next_entry(&log.state, vec![open_body(2, BACKUP, vec![]), Body::Close { session: session(2) }]);
    entry.writer = stranger;
    let applied = log.state.apply(&entry, EntryHash([1; 32])).unwrap();
    let unknown = VoidReason::WriterNotEnrolled(stranger);
    assert_eq!(applied.void, [(0, unknown.clone()), (1, unknown.clone())]);
    assert_eq!(applied.void_reason(1), Some(&unknown));
    let enrol = Body::Key(KeyChange::Writer { id: stranger, role: Role::Writer });
    let mut entry = next_entry(&log.state, vec![open_body(3, BACKUP, vec![]), enrol]);
    entry.writer = stranger;
    assert_eq!(log.state.apply(&entry, EntryHash([2; 32])).unwrap(), Applied::default());
    assert_eq!(log.state.writers().len(), 2);
    assert_eq!(log.state.sessions()[&session(3)].writer, stranger);
}

#[test]
fn a_backup_exists_from_its_commit_on() {
    let mut log = Log::new();
    log.apply(vec![open_body(2, BACKUP, vec![])]);
    assert!(log.state.backups().is_empty());
    log.apply(vec![commit(2, BACKUP)]);
    let backup = &log.state.backups()[&BACKUP];
    assert_eq!((backup.seq, backup.session, backup.forgotten), (3, session(2), None));
    assert!(!log.state.has_ended(&session(2)));
    log.apply(vec![Body::Close { session: session(2) }]);
    assert!(log.state.has_ended(&session(2)));
    assert!(!log.state.has_ended(&session(log.next())));
}

#[test]
fn publish_commit_and_close_are_void_after_close_or_fence() {
    for end in [Body::Close { session: session(2) }, Body::Fence { session: session(2), seen: 4 }] {
        let mut log = Log::new();
        log.apply(vec![open_body(2, BACKUP, vec![])]);
        log.apply(vec![end]);
        let reason = VoidReason::SessionNotOpen(session(2));
        let publish = Body::Publish { session: session(2), segments: vec![segment(2, 0)] };
        for body in [
            publish,
            commit(2, BACKUP),
            Body::Close { session: session(2) },
            Body::Fence { session: session(2), seen: 0 },
        ] {
            assert_eq!(log.void(body), reason);
        }
    }
}

#[test]
fn the_bodies_of_one_entry_see_each_other_in_order() {
    let mut log = Log::new();
    log.apply(vec![open_body(2, BACKUP, vec![])]);
    let reasons = log.append(vec![Body::Close { session: session(2) }, commit(2, BACKUP)]);
    assert_eq!(reasons, [VoidReason::SessionNotOpen(session(2))]);
    log.apply(vec![
        open_body(4, BACKUP, vec![]),
        commit(4, BACKUP),
        forget(BACKUP, 0),
        condemn(&[1], &[BACKUP]),
        reaped(&[1]),
    ]);
    assert!(log.state.backups().is_empty());
}

#[test]
fn an_open_must_carry_its_own_slot_and_be_new() {
    let mut log = Log::new();
    assert_eq!(log.void(open_body(7, BACKUP, vec![])), VoidReason::WrongSlot(session(7)));
    let twice = log.append(vec![open_body(3, BACKUP, vec![]), open_body(3, PARENT, vec![])]);
    assert_eq!(twice, [VoidReason::SessionExists(session(3))]);
}

#[test]
fn a_pin_needs_a_backup_that_is_not_dropped() {
    let mut log = Log::with_backup();
    let slot = log.next();
    assert_eq!(log.void(open_body(slot, PARENT, vec![PARENT])), VoidReason::UnknownBackup(PARENT));
    log.apply(vec![forget(BACKUP, 0)]);
    let slot = log.next();
    log.apply(vec![open_body(slot, PARENT, vec![BACKUP])]);
    assert!(log.state.is_pinned(&BACKUP));
    assert_eq!(log.void(condemn(&[1], &[BACKUP])), VoidReason::Pinned(BACKUP));
    assert!(log.state.is_live(&pack_name(1)));
    log.apply(vec![Body::Close { session: session(slot) }]);
    log.apply(vec![condemn(&[1], &[BACKUP])]);
    let slot = log.next();
    assert_eq!(log.void(open_body(slot, PARENT, vec![BACKUP])), VoidReason::UnknownBackup(BACKUP));
    assert_eq!(log.void(Body::Unforget { backups: vec![BACKUP] }), VoidReason::UnknownBackup(BACKUP));
}

#[test]
fn a_commit_must_be_the_announced_backup_and_new() {
    let mut log = Log::with_backup();
    let slot = log.next();
    log.apply(vec![open_body(slot, PARENT, vec![])]);
    assert_eq!(log.void(commit(slot, BACKUP)), VoidReason::WrongBackup(BACKUP));
    let slot = log.next();
    log.apply(vec![open_body(slot, BACKUP, vec![])]);
    assert_eq!(log.void(commit(slot, BACKUP)), VoidReason::BackupExists(BACKUP));
}

#[test]
fn segments_come_in_log_order_and_ascend_within_their_session() {
    let mut log = Log::with_backup();
    let slot = log.next();
    log.apply(vec![open_body(slot, PARENT, vec![])]);
    let publish =
        |segments: &[SegmentName]| Body::Publish { session: session(slot), segments: segments.to_vec() };
    log.apply(vec![publish(&[segment(slot, 1), segment(slot, 4)])]);
    for wrong in [segment(slot, 4), segment(slot, 0), segment(2, 9)] {
        assert_eq!(log.void(publish(&[wrong])), VoidReason::SegmentOrder(wrong));
    }
    let wrong = log.void(publish(&[segment(slot, 6), segment(slot, 5)]));
    assert_eq!(wrong, VoidReason::SegmentOrder(segment(slot, 5)));
    log.apply(vec![publish(&[segment(slot, 5), segment(slot, u32::MAX)])]);
    assert_eq!(
        log.void(publish(&[segment(slot, u32::MAX)])),
        VoidReason::SegmentOrder(segment(slot, u32::MAX))
    );
    let names: Vec<_> = log.state.segments().iter().map(|segment| segment.name).collect();
    let expected =
        [segment(2, 0), segment(slot, 1), segment(slot, 4), segment(slot, 5), segment(slot, u32::MAX)];
    assert_eq!(names, expected);
    assert_eq!(log.state.segments_since(slot).len(), 4);
    assert_eq!(log.state.segments_since(0).len(), 5);
    assert_eq!(log.state.segments_since(log.state.seq()).len(), 0);
}

#[test]
fn forget_only_marks_and_the_later_deadline_wins() {
    let mut log = Log::with_backup();
    assert_eq!(log.void(forget(PARENT, 0)), VoidReason::UnknownBackup(PARENT));
    log.apply(vec![forget(BACKUP, 50)]);
    let first = log.state.seq();
    log.apply(vec![forget(BACKUP, 90)]);
    log.apply(vec![forget(BACKUP, 10)]);
    let mark = log.state.backups()[&BACKUP].forgotten.unwrap();
    assert_eq!((mark.seq, mark.not_before_ms), (first, 90));
    log.apply(vec![Body::Unforget { backups: vec![BACKUP] }]);
    assert_eq!(log.state.backups()[&BACKUP].forgotten, None);
    assert_eq!(log.void(condemn(&[], &[BACKUP])), VoidReason::NotForgotten(BACKUP));
    assert_eq!(log.void(condemn(&[], &[PARENT])), VoidReason::UnknownBackup(PARENT));
}

#[test]
fn a_pack_is_live_until_condemned_and_never_again() {
    let mut log = Log::with_backup();
    assert!(log.state.is_live(&pack_name(1)));
    log.apply(vec![condemn(&[1, 2], &[])]);
    let condemned = log.state.condemned()[&pack_name(1)];
    assert_eq!((condemned.seq, condemned.wall_ms), (log.state.seq(), CLOCK_MS));
    assert!(!log.state.is_live(&pack_name(1)));
    log.apply(vec![condemn(&[1], &[])]);
    assert_eq!(log.state.condemned()[&pack_name(1)], condemned, "the grace counts from the first Condemn");
    assert_eq!(log.void(reaped(&[1, 3])), VoidReason::NotCondemned(pack_name(3)));
    log.apply(vec![reaped(&[1])]);
    log.apply(vec![reaped(&[1, 2]), condemn(&[1], &[])]);
    assert!(log.state.condemned().is_empty());
    assert_eq!(log.state.reaped().len(), 2);
    assert!(!log.state.is_live(&pack_name(1)));
}

#[test]
fn quarantine_takes_packs_or_single_blobs_out_of_use_until_they_are_gone() {
    let mut log = Log::with_backup();
    let (id, other) = (ChunkId([1; 32]), ChunkId([2; 32]));
    let blobs = vec![BlobPlace { pack: pack_name(2), id }];
    log.apply(vec![Body::Quarantine { packs: vec![pack_name(1)], blobs: blobs.clone() }]);
    assert!(!log.state.is_live(&pack_name(1)) && log.state.is_live(&pack_name(2)));
    assert!(log.state.is_quarantined(&pack_name(1), &id) && log.state.is_quarantined(&pack_name(2), &id));
    assert!(!log.state.is_quarantined(&pack_name(2), &other));
    assert_eq!((log.state.quarantined_packs().len(), log.state.quarantined_blobs().len()), (1, 1));
    log.apply(vec![condemn(&[1, 2], &[]), reaped(&[1, 2])]);
    assert_eq!((log.state.quarantined_packs().len(), log.state.quarantined_blobs().len()), (0, 0));
    log.apply(vec![Body::Quarantine { packs: vec![pack_name(1)], blobs }]);
    assert!(log.state.quarantined_packs().is_empty() && log.state.quarantined_blobs().is_empty());
}

#[test]
fn reindex_replaces_segments_and_lets_reaped_packs_go() {
    let mut log = Log::with_backup();
    let slot = log.next();
    log.apply(vec![open_body(slot, PARENT, vec![]), condemn(&[1, 2], &[]), reaped(&[1])]);
    let reindex = |old: SegmentName, new: SegmentName, dropped: u32| Body::Reindex {
        old: vec![old],
        new: vec![new],
        dropped: vec![pack_name(dropped)],
    };
    let (old, new) = (segment(2, 0), segment(slot, 0));
    assert_eq!(log.void(reindex(segment(2, 1), new, 1)), VoidReason::UnknownSegment(segment(2, 1)));
    assert_eq!(log.void(reindex(old, new, 2)), VoidReason::NotReaped(pack_name(2)));
    assert_eq!(log.void(reindex(old, segment(2, 1), 1)), VoidReason::SessionNotOpen(session(2)));
    assert_eq!(log.state.reaped_dropped(), 0);
    log.apply(vec![reindex(old, new, 1)]);
    let names: Vec<_> = log.state.segments().iter().map(|segment| segment.name).collect();
    assert_eq!(names, [new]);
    assert!(log.state.reaped().is_empty());
    assert_eq!(log.state.reaped_dropped(), log.state.seq(), "older indexes are told to start anew");
    assert_eq!(log.state.segments_since(slot).len(), 1);
}

#[test]
fn keys_are_enrolled_once() {
    let mut log = Log::new();
    let epoch = EpochId([4; 8]);
    log.apply(vec![Body::Key(KeyChange::Epoch { id: epoch })]);
    let again = log.void(Body::Key(KeyChange::Epoch { id: epoch }));
    assert_eq!(again, VoidReason::KeyExists(epoch.to_string()));
    log.apply(vec![Body::Key(KeyChange::Epoch { id: EpochId([5; 8]) })]);
    assert_eq!(log.state.epochs(), [epoch, EpochId([5; 8])]);
    let writer = fixture::signer().writer();
    log.apply(vec![Body::Key(KeyChange::Writer { id: writer, role: Role::Admin })]);
    let other = log.void(Body::Key(KeyChange::Writer { id: writer, role: Role::Writer }));
    assert_eq!(other, VoidReason::KeyExists(writer.to_string()));
}

#[test]
fn the_floor_rises_only_below_the_tip_and_open_sessions() {
    let mut log = Log::with_backup();
    assert_eq!(log.state.floor(), 1);
    for floor in [0, 1, 99] {
        assert_eq!(log.void(Body::Truncate { floor }), VoidReason::WrongFloor(floor));
    }
    let slot = log.next();
    log.apply(vec![open_body(slot, PARENT, vec![])]);
    assert_eq!(log.void(Body::Truncate { floor: slot + 1 }), VoidReason::WrongFloor(slot + 1));
    log.apply(vec![Body::Truncate { floor: slot }]);
    assert_eq!(log.state.floor(), slot);
    let floor = log.next();
    log.apply(vec![Body::Close { session: session(slot) }, Body::Truncate { floor }]);
    assert_eq!(log.state.floor(), floor);
}

#[test]
fn nothing_counts_after_the_log_moved() {
    let mut log = Log::with_backup();
    log.apply(vec![Body::Moved { log_store: StoreId([9; 16]) }]);
    assert_eq!(log.state.moved_to(), Some(StoreId([9; 16])));
    assert_eq!(log.void(forget(BACKUP, 0)), VoidReason::LogMoved);
    let slot = log.next();
    assert_eq!(log.void(open_body(slot, PARENT, vec![])), VoidReason::LogMoved);
}

#[test]
fn a_clone_is_not_changed_by_what_is_applied_later() {
    let mut log = Log::with_backup();
    let before = log.state.clone();
    log.apply(vec![forget(BACKUP, 0), condemn(&[1], &[BACKUP])]);
    assert!(before.backups().contains_key(&BACKUP) && before.is_live(&pack_name(1)));
    assert!(log.state.backups().is_empty() && !log.state.is_live(&pack_name(1)));
}

#[test]
fn a_protected_backup_is_not_forgotten_and_a_forgotten_one_not_protected() {
    let mut log = Log::with_backup();
    assert_eq!(log.void(protect(PARENT, true)), VoidReason::UnknownBackup(PARENT));
    log.apply(vec![protect(BACKUP, true)]);
    assert!(log.state.backups()[&BACKUP].protected);
    assert_eq!(log.void(forget(BACKUP, 0)), VoidReason::Protected(BACKUP));
    assert_eq!(log.state.backups()[&BACKUP].forgotten, None);
    log.apply(vec![protect(BACKUP, false), forget(BACKUP, 0)]);
    assert_eq!(log.void(protect(BACKUP, true)), VoidReason::Forgotten(BACKUP));
    log.apply(vec![Body::Unforget { backups: vec![BACKUP] }, protect(BACKUP, true)]);
    assert_eq!(log.void(forget(BACKUP, 0)), VoidReason::Protected(BACKUP));
}

#[test]
fn a_checkpoint_keeps_a_protection_and_says_nothing_where_there_is_none() {
    let mut log = Log::with_backup();
    let json = |state: &State| serde_json::to_string(state).unwrap();
    assert!(!json(&log.state).contains("protected"));
    log.apply(vec![protect(BACKUP, true)]);
    let back: State = serde_json::from_str(&json(&log.state)).unwrap();
    assert_eq!(back, log.state);
}

fn defined(name: &str, definition: &str) -> Body {
    let definition = Definition { kind: DefinitionKind::Xml, bytes: definition.into() };
    let targets = DefaultTargets { backup: Some("<domainbackup/>".to_owned()), ..DefaultTargets::default() };
    let uuid = Some(BACKUP);
    Body::Define {
        domain: Box::new(DefinedDomain {
            name: name.to_owned(),
            uuid,
            definition: Some(definition),
            targets,
        }),
    }
}

#[test]
fn a_domain_is_what_it_was_last_defined_as_until_it_is_undefined() {
    let mut log = Log::new();
    let undefine = || Body::Undefine { domain: "web01".to_owned() };
    assert_eq!(log.void(undefine()), VoidReason::UnknownDomain("web01".to_owned()));
    log.apply(vec![defined("web01", "<domain/>"), defined("web01", "<domain type='kvm'/>")]);
    let domain = &log.state.domains()["web01"];
    assert_eq!(domain.definition.as_ref().unwrap().bytes, b"<domain type='kvm'/>");
    let json = serde_json::to_string(&log.state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&json).unwrap(), log.state);
    log.apply(vec![undefine()]);
    assert!(log.state.domains().is_empty());
    assert!(!serde_json::to_string(&log.state).unwrap().contains("domains"), "none says nothing");
}

#[test]
fn a_domain_out_of_bounds_is_void() {
    let mut log = Log::new();
    let long = "x".repeat(65);
    for (name, definition) in [("", ""), (long.as_str(), ""), ("web01", "x".repeat((1 << 20) + 1).as_str())] {
        let reason = log.void(defined(name, definition));
        assert!(matches!(reason, VoidReason::DomainBounds { .. }), "{reason}");
    }
}

#[test]
fn a_summary_says_that_a_backup_is_external_and_nothing_when_it_is_not() {
    let mut record = fixture::record(&fixture::ring(true));
    assert!(!serde_json::to_string(&record.summary()).unwrap().contains("external"));
    record.external = true;
    assert!(record.summary().external);
    let json = serde_json::to_string(&record.summary()).unwrap();
    assert!(json.contains(r#""external":true"#), "{json}");
}
