//! What a new backup builds on, and what became of one that was begun.

use aquifer_format::log::{Body, SessionKind, State};
use aquifer_store::Memory;
use uuid::Uuid;

use super::{Host, backup, begin, store_and_commit, uuid};
use crate::rig::{noise, run};
use crate::{Access, BeginBackup, Error, Fate, Repository};

/// A repository with the backups 1 to `backups` of one domain.
async fn with_backups(store: &Memory, backups: u128) -> std::sync::Arc<Repository> {
    let repository = Host::new(1, store).init().await.unwrap();
    for number in 1..=backups {
        backup(&repository, begin(number, "web"), &noise(1, 1000)).await.unwrap();
    }
    repository
}

fn building_on(parent: Option<u128>, bases: &[u128]) -> BeginBackup {
    let bases = bases.iter().copied().map(uuid).collect();
    BeginBackup { parent: parent.map(uuid), bases, ..begin(9, "web") }
}

async fn forget(repository: &Repository, number: u128) {
    let forget = |_: &State| Ok(vec![Body::Forget { backups: vec![uuid(number)], not_before_ms: 0 }]);
    repository.log.append(forget).await.unwrap();
}

fn pins(repository: &Repository) -> Vec<Uuid> {
    repository.state().sessions().values().flat_map(|open| open.pins.clone()).collect()
}

#[test]
fn parent_and_bases_are_pinned_once_each() {
    run(async {
        let repository = with_backups(&Memory::new(), 3).await;
        let begun = building_on(Some(2), &[1, 2, 3, 1]);
        let session = repository.begin_backup(begun).await.unwrap();
        assert_eq!(pins(&repository), [uuid(2), uuid(1), uuid(3)]);
        session.abandon().await.unwrap();
    });
}

#[test]
fn a_backup_may_have_bases_without_a_parent() {
    run(async {
        let repository = with_backups(&Memory::new(), 1).await;
        let session = repository.begin_backup(building_on(None, &[1])).await.unwrap();
        assert_eq!(pins(&repository), [uuid(1)]);
        store_and_commit(&session, &noise(2, 1000)).await.unwrap();
    });
}

#[test]
fn an_unknown_base_is_refused_by_name() {
    run(async {
        let repository = with_backups(&Memory::new(), 1).await;
        let error = repository.begin_backup(building_on(Some(1), &[1, 7])).await.err().unwrap();
        let wanted = uuid(7).to_string();
        assert!(matches!(&error, Error::UnknownBackup { wanted: named } if *named == wanted), "{error}");
        assert!(repository.state().sessions().is_empty());
    });
}

#[test]
fn a_forgotten_base_is_refused_by_name() {
    run(async {
        let repository = with_backups(&Memory::new(), 2).await;
        forget(&repository, 1).await;
        let error = repository.begin_backup(building_on(Some(2), &[2, 1])).await.err().unwrap();
        assert!(matches!(error, Error::BaseForgotten { backup } if backup == uuid(1)), "{error}");
        assert!(repository.state().sessions().is_empty());
    });
}

#[test]
fn a_base_cannot_be_dropped_while_a_backup_builds_on_it() {
    run(async {
        let store = Memory::new();
        let repository = with_backups(&store, 2).await;
        let session = repository.begin_backup(building_on(Some(2), &[1])).await.unwrap();
        let collector = Host::new(2, &store).open(Access::Write).await.unwrap();
        forget(&collector, 1).await;
        let drop_it = |_: &State| Ok(vec![Body::Condemn { packs: vec![], dropped: vec![uuid(1)] }]);
        let error = collector.log.append(drop_it).await.unwrap_err();
        assert!(matches!(error, Error::Void { .. }), "the pin makes the drop void: {error}");
        store_and_commit(&session, &noise(2, 1000)).await.unwrap();
        collector.log.append(drop_it).await.unwrap();
    });
}

/// The log itself never comes to such a state while the session is open; the check is the second of two.
#[test]
fn a_base_that_is_gone_at_the_commit_fails_it_like_the_parent() {
    run(async {
        let repository = with_backups(&Memory::new(), 2).await;
        let session = repository.begin_backup(building_on(Some(1), &[2])).await.unwrap();
        session.check_pins(&repository.state()).unwrap();
        let nothing = State::new(repository.config());
        let error = session.check_pins(&nothing).unwrap_err();
        assert!(matches!(error, Error::PinLost { backup } if backup == uuid(1)), "{error}");
        session.abandon().await.unwrap();
        let session = repository.begin_backup(building_on(None, &[2])).await.unwrap();
        let error = session.check_pins(&nothing).unwrap_err();
        assert!(matches!(error, Error::PinLost { backup } if backup == uuid(2)), "{error}");
        session.abandon().await.unwrap();
    });
}

#[test]
fn the_fate_of_a_backup_follows_its_session() {
    run(async {
        let repository = with_backups(&Memory::new(), 0).await;
        assert_eq!(repository.fate(uuid(1)), Fate::Absent);
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        let open = Fate::Open { session: session.id(), host: repository.host.clone() };
        assert_eq!(repository.fate(uuid(1)), open);
        let seq = store_and_commit(&session, &noise(1, 1000)).await.unwrap().seq;
        assert_eq!(repository.fate(uuid(1)), Fate::Committed { seq, forgotten: false, external: false });
        forget(&repository, 1).await;
        assert_eq!(repository.fate(uuid(1)), Fate::Committed { seq, forgotten: true, external: false });
        let drop_it = |_: &State| Ok(vec![Body::Condemn { packs: vec![], dropped: vec![uuid(1)] }]);
        repository.log.append(drop_it).await.unwrap();
        assert_eq!(repository.fate(uuid(1)), Fate::Absent);
    });
}

#[test]
fn the_fate_of_a_backup_whose_session_ended_without_it_is_absent() {
    run(async {
        let repository = with_backups(&Memory::new(), 0).await;
        repository.begin_backup(begin(1, "web")).await.unwrap().abandon().await.unwrap();
        assert_eq!(repository.fate(uuid(1)), Fate::Absent);
        let fenced = repository.begin_backup(begin(2, "web")).await.unwrap();
        let fence = |_: &State| Ok(vec![Body::Fence { session: fenced.id(), seen: 0 }]);
        repository.log.append(fence).await.unwrap();
        assert_eq!(repository.fate(uuid(2)), Fate::Absent);
    });
}

#[test]
fn a_session_that_reads_a_backup_is_not_its_fate() {
    run(async {
        let repository = with_backups(&Memory::new(), 1).await;
        let reading = repository.begin_read(SessionKind::Restore, vec![uuid(1)]).await.unwrap();
        assert!(matches!(repository.fate(uuid(1)), Fate::Committed { .. }));
        reading.close().await.unwrap();
    });
}
