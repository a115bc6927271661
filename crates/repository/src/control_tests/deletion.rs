//! Deleting backups and bringing them back: what is listed, what stays restorable, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use aquifer_format::log::{Body, SessionKind, State};
use aquifer_store::Memory;

use super::{Host, backup, begin, listed, restore, uuid};
use crate::rig::{noise, run};
use crate::{Access, BeginBackup, DeleteScope, Error, FORGET_DELAY, RemovalError, Repository};

/// Backups 1 to 3 of `web`, each read against the one before, and backup 4 of `db`.
async fn chain(store: &Memory) -> Arc<Repository> {
    let repository = Host::new(1, store).init().await.unwrap();
    for number in 1..=3 {
        let parent = (number > 1).then(|| uuid(number - 1));
        backup(&repository, BeginBackup { parent, ..begin(number, "web") }, &disk(number)).await.unwrap();
    }
    backup(&repository, begin(4, "db"), &disk(4)).await.unwrap();
    repository
}

fn disk(number: u128) -> Vec<u8> {
    noise(u64::try_from(number).unwrap(), 300_000)
}

/// The backups that are not deleted.
fn visible(repository: &Repository) -> Vec<uuid::Uuid> {
    let mut visible: Vec<_> = repository.backups();
    visible.retain(|info| info.forgotten.is_none());
    let mut visible: Vec<_> = visible.iter().map(|info| info.summary.backup).collect();
    visible.sort();
    visible
}

#[test]
fn a_deleted_backup_is_not_listed_and_comes_back() {
    run(async {
        let store = Memory::new();
        let repository = chain(&store).await;
        let deleted = repository.delete(&[uuid(2)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        assert_eq!((deleted.deleted, deleted.already), (vec![uuid(2)], vec![]));
        assert_eq!(visible(&repository), [uuid(1), uuid(3), uuid(4)]);
        for number in [1, 3, 4] {
            assert_eq!(restore(&repository, number).await.unwrap(), disk(number));
        }
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        let back = other.undelete(&[uuid(2)]).await.unwrap();
        assert_eq!(back.restored, [uuid(2)]);
        repository.refresh().await.unwrap();
        assert_eq!(visible(&repository).len(), 4);
        assert_eq!(restore(&repository, 2).await.unwrap(), disk(2));
    });
}

#[test]
fn children_of_a_deleted_backup_are_its_parents() {
    run(async {
        let repository = chain(&Memory::new()).await;
        assert_eq!(repository.children(uuid(1)), [uuid(2)]);
        repository.delete(&[uuid(2)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        assert_eq!(repository.backup(uuid(3)).unwrap().parent, Some(uuid(1)));
        assert_eq!(repository.children(uuid(1)), [uuid(3)]);
        repository.delete(&[uuid(1)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        assert_eq!(repository.backup(uuid(3)).unwrap().parent, None);
        repository.undelete(&[uuid(1), uuid(2)]).await.unwrap();
        assert_eq!(repository.backup(uuid(3)).unwrap().parent, Some(uuid(2)));
    });
}

#[test]
fn descendants_or_the_whole_domain_go_along_when_asked_for() {
    run(async {
        let repository = chain(&Memory::new()).await;
        let deleted = repository.delete(&[uuid(2)], DeleteScope::Descendants, FORGET_DELAY).await.unwrap();
        assert_eq!(deleted.deleted, [uuid(2), uuid(3)]);
        let deleted = repository.delete(&[uuid(3)], DeleteScope::Domains, FORGET_DELAY).await.unwrap();
        assert_eq!((deleted.deleted, deleted.already), (vec![uuid(1)], vec![uuid(2), uuid(3)]));
        assert_eq!(visible(&repository), [uuid(4)]);
    });
}

#[test]
fn a_second_deletion_changes_nothing_and_costs_no_entry() {
    run(async {
        let repository = chain(&Memory::new()).await;
        repository.delete(&[uuid(2)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        let (seq, info) = (repository.state().seq(), repository.backup(uuid(2)).unwrap());
        let again = repository.delete(&[uuid(2)], DeleteScope::Only, Duration::ZERO).await.unwrap();
        assert_eq!((again.deleted, again.already), (vec![], vec![uuid(2)]));
        assert_eq!(repository.state().seq(), seq);
        assert_eq!(repository.backup(uuid(2)).unwrap(), info);
        let back = repository.undelete(&[uuid(1)]).await.unwrap();
        assert_eq!((back.restored, back.already), (vec![], vec![uuid(1)]));
        assert_eq!(repository.state().seq(), seq);
    });
}

#[test]
fn a_backup_that_is_read_is_not_deleted_and_nothing_with_it_is() {
    run(async {
        let store = Memory::new();
        let repository = chain(&store).await;
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        let reading = other.begin_read(SessionKind::Restore, vec![uuid(3)]).await.unwrap();
        let refused = repository.delete(&[uuid(1), uuid(3)], DeleteScope::Only, FORGET_DELAY).await;
        let error = refused.unwrap_err();
        assert!(
            matches!(&error, Error::Removal(RemovalError::Busy { backup, .. }) if *backup == uuid(3)),
            "{error}"
        );
        assert!(error.to_string().contains("a restore of host "), "{error}");
        assert_eq!(visible(&repository).len(), 4);
        reading.close().await.unwrap();
        repository.delete(&[uuid(1), uuid(3)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        assert_eq!(visible(&repository), [uuid(2), uuid(4)]);
    });
}

#[test]
fn the_base_of_a_running_backup_can_be_deleted_and_the_backup_is_whole() {
    run(async {
        let repository = chain(&Memory::new()).await;
        let begin = BeginBackup { parent: Some(uuid(3)), bases: vec![uuid(3)], ..begin(5, "web") };
        let session = repository.begin_backup(begin).await.unwrap();
        repository.delete(&[uuid(3)], DeleteScope::Only, Duration::ZERO).await.unwrap();
        super::store_and_commit(&session, &disk(3)).await.unwrap();
        assert_eq!(restore(&repository, 5).await.unwrap(), disk(3));
    });
}

#[test]
fn a_killed_restore_of_this_host_is_not_in_the_way() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = Host::new(1, &store).with_state(folder.path());
        let repository = host.init().await.unwrap();
        backup(&repository, begin(1, "web"), &disk(1)).await.unwrap();
        // What a killed process leaves: an open session and an unlocked journal.
        drop(repository.begin_read(SessionKind::Restore, vec![uuid(1)]).await.unwrap());
        repository.delete(&[uuid(1)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        assert!(visible(&repository).is_empty());
    });
}

#[test]
fn unknown_and_dropped_backups_are_told_apart_from_deleted_ones() {
    run(async {
        let repository = chain(&Memory::new()).await;
        let unknown = repository.delete(&[uuid(1), uuid(9)], DeleteScope::Only, FORGET_DELAY).await;
        assert!(matches!(unknown, Err(Error::UnknownBackup { .. })));
        assert_eq!(visible(&repository).len(), 4, "all or nothing");
        repository.delete(&[uuid(1)], DeleteScope::Only, Duration::ZERO).await.unwrap();
        let drop = |_: &State| Ok(vec![Body::Condemn { packs: vec![], dropped: vec![uuid(1)] }]);
        repository.log.append(drop).await.unwrap();
        assert!(matches!(repository.undelete(&[uuid(1)]).await, Err(Error::UnknownBackup { .. })));
        assert_eq!(listed(&repository), [uuid(2), uuid(3), uuid(4)]);
        assert_eq!(restore(&repository, 2).await.unwrap(), disk(2));
    });
}
