//! Pruning and protection: what stays whatever the policy says, and what is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aquifer_format::log::SessionKind;
use aquifer_store::{Memory, ObjectStore};
use uuid::Uuid;

use super::{Host, backup, begin, restore, uuid};
use crate::rig::{noise, run};
use crate::{
    DeleteScope, Error, FORGET_DELAY, KeepRules, PruneReport, PruneRequest, RemovalError, Repository, Result,
    layout,
};

fn disk(number: u128) -> Vec<u8> {
    noise(u64::try_from(number).unwrap(), 200_000)
}

/// Backups 1 to `count` of `web`; all show the same instant.
async fn backups(store: &Memory, count: u128) -> Arc<Repository> {
    let repository = Host::new(1, store).init().await.unwrap();
    for number in 1..=count {
        backup(&repository, begin(number, "web"), &disk(number)).await.unwrap();
    }
    repository
}

fn keep_last(last: u32) -> PruneRequest {
    let policies = BTreeMap::from([("web".to_owned(), KeepRules { last, ..KeepRules::default() })]);
    PruneRequest { policies, dry_run: false, force: false, delay: FORGET_DELAY }
}

fn dropped(report: &PruneReport) -> Vec<Uuid> {
    report.domains.iter().flat_map(|domain| &domain.dropped).map(|judged| judged.backup).collect()
}

fn why(report: &PruneReport, backup: u128) -> String {
    let judged = report.domains.iter().flat_map(|domain| domain.kept.iter().chain(&domain.dropped));
    judged.filter(|judged| judged.backup == uuid(backup)).flat_map(|judged| judged.reasons.clone()).collect()
}

fn visible(repository: &Repository) -> usize {
    repository.backups().iter().filter(|info| info.forgotten.is_none()).count()
}

#[test]
fn what_no_rule_keeps_is_deleted_and_can_be_brought_back() {
    run(async {
        let repository = backups(&Memory::new(), 4).await;
        let dry = repository.prune(&PruneRequest { dry_run: true, ..keep_last(2) }).await.unwrap();
        assert_eq!((visible(&repository), dry.not_before_ms), (4, None));
        let report = repository.prune(&keep_last(2)).await.unwrap();
        assert_eq!(dropped(&report), [uuid(2), uuid(1)], "newest first");
        assert_eq!((&report.domains, visible(&repository)), (&dry.domains, 2));
        assert_eq!((why(&report, 4), why(&report, 1)), ("last 1 of 2".into(), "no rule keeps it".into()));
        repository.undelete(&[uuid(1)]).await.unwrap();
        assert_eq!(restore(&repository, 1).await.unwrap(), disk(1));
        let again = repository.prune(&keep_last(3)).await.unwrap();
        assert!(dropped(&again).is_empty() && again.not_before_ms.is_none());
    });
}

#[test]
fn other_domains_are_left_alone() {
    run(async {
        let repository = backups(&Memory::new(), 2).await;
        backup(&repository, begin(7, "db"), &disk(7)).await.unwrap();
        backup(&repository, begin(8, "db"), &disk(8)).await.unwrap();
        let report = repository.prune(&keep_last(1)).await.unwrap();
        assert_eq!((report.domains.len(), dropped(&report)), (1, vec![uuid(1)]));
        assert_eq!(visible(&repository), 3);
    });
}

#[test]
fn protected_backups_and_those_being_read_stay_with_that_reason() {
    run(async {
        let repository = backups(&Memory::new(), 5).await;
        let protected = repository.protect(&[uuid(1), uuid(2)], true).await.unwrap();
        assert_eq!((protected.changed, protected.already), (vec![uuid(1), uuid(2)], vec![]));
        let reading = repository.begin_read(SessionKind::Export, vec![uuid(3)]).await.unwrap();
        let report = repository.prune(&keep_last(1)).await.unwrap();
        assert_eq!(dropped(&report), [uuid(4)]);
        assert_eq!(why(&report, 1), "protected");
        assert!(why(&report, 3).contains("reads it"), "{report:?}");
        reading.close().await.unwrap();
        assert!(repository.backup(uuid(1)).unwrap().protected);
    });
}

#[test]
fn a_protected_backup_is_not_deleted_and_a_deleted_one_not_protected() {
    run(async {
        let repository = backups(&Memory::new(), 3).await;
        repository.protect(&[uuid(2)], true).await.unwrap();
        let refused = repository.delete(&[uuid(1), uuid(2)], DeleteScope::Only, FORGET_DELAY).await;
        assert!(
            matches!(refused, Err(Error::Removal(RemovalError::Protected { backup })) if backup == uuid(2))
        );
        let refused = repository.delete(&[uuid(1)], DeleteScope::Domains, FORGET_DELAY).await;
        assert!(matches!(refused, Err(Error::Removal(RemovalError::Protected { .. }))));
        assert_eq!(visible(&repository), 3);
        let seq = repository.state().seq();
        assert_eq!(repository.protect(&[uuid(2)], true).await.unwrap().already, [uuid(2)]);
        assert_eq!(repository.state().seq(), seq, "nothing changed, so nothing is written");
        repository.protect(&[uuid(2)], false).await.unwrap();
        repository.delete(&[uuid(2)], DeleteScope::Only, FORGET_DELAY).await.unwrap();
        let refused = repository.protect(&[uuid(2)], true).await;
        assert!(matches!(refused, Err(Error::Removal(RemovalError::Deleted { .. }))));
    });
}

#[test]
fn a_run_that_would_take_more_than_half_takes_nothing_unless_forced() {
    run(async {
        let repository = backups(&Memory::new(), 5).await;
        let refused = repository.prune(&keep_last(1)).await;
        let Err(Error::Removal(error @ RemovalError::TooMuch { dropped: 4, all: 5, .. })) = &refused else {
            panic!("{refused:?}")
        };
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(visible(&repository), 5);
        repository.prune(&PruneRequest { force: true, ..keep_last(1) }).await.unwrap();
        assert_eq!(visible(&repository), 1);
        let none = repository.prune(&keep_last(0)).await;
        assert!(matches!(none, Err(Error::Removal(RemovalError::NoRules { .. }))));
    });
}

/// A policy that keeps the newest two, of which neither can be walked.
async fn two_newest_damaged() -> Result<Arc<Repository>> {
    let store = Memory::new();
    let repository = backups(&store, 4).await;
    for number in [3, 4] {
        let session = repository.backup(uuid(number))?.session;
        let packs = repository.parts().index.packs()?;
        let meta = packs.iter().filter(|pack| pack.kind == aquifer_format::PackKind::Meta);
        for pack in meta.filter(|pack| pack.pack.session == session) {
            store.delete(&layout::pack(&pack.pack)).await?;
        }
    }
    drop(repository);
    let host = Host::new(9, &store);
    host.world.now_ms.fetch_add(1_000_000, Ordering::Relaxed);
    host.open(crate::Access::Read).await
}

#[test]
fn the_newest_backup_that_verifies_stays_when_newer_ones_are_damaged() {
    run(async {
        let repository = two_newest_damaged().await.unwrap();
        let report = repository.prune(&keep_last(2)).await.unwrap();
        assert_eq!(dropped(&report), [uuid(1)], "{report:?}");
        assert_eq!(why(&report, 2), "newest backup of disk vda that verifies");
        let order: Vec<Uuid> = report.domains[0].kept.iter().map(|judged| judged.backup).collect();
        assert_eq!(order, [uuid(4), uuid(3), uuid(2)]);
        let forced = repository.prune(&PruneRequest { force: true, ..keep_last(2) }).await.unwrap();
        assert_eq!(dropped(&forced), [uuid(2)]);
    });
}
