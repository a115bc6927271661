//! Collection: what goes, what stays, and what it is told by.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aquifer_format::PackName;
use aquifer_format::log::{Body, SessionKind};
use aquifer_store::{Memory, ObjectStore};

use super::silence::beating;
use super::{Host, backup, begin, listed, restore, uuid};
use crate::rig::{noise, run, store_disk};
use crate::{
    Access, CollectReport, CollectRequest, DeleteScope, Error, FENCE_AFTER, PackFate, RemovalError,
    Repository, Result, TreeSpec, layout,
};

const CHUNK: usize = super::CHUNK_BYTES as usize;
pub(super) const EMPTY: TreeSpec = TreeSpec { root: None, size_bytes: 0 };

/// Everything at once: no grace.
pub(super) const NOW: CollectRequest = CollectRequest {
    dry_run: false,
    max_repack_bytes: None,
    grace: Duration::ZERO,
    fence_after: FENCE_AFTER,
};

pub(super) async fn collect(repository: &Arc<Repository>) -> Result<CollectReport> {
    repository.collect(&NOW, std::future::pending()).await
}

/// What would be collected.
pub(super) async fn explained(repository: &Arc<Repository>) -> CollectReport {
    let request = CollectRequest { dry_run: true, ..NOW };
    repository.collect(&request, std::future::pending()).await.unwrap()
}

/// Deletes without a delay.
pub(super) async fn delete(repository: &Repository, backups: &[u128]) {
    let named: Vec<_> = backups.iter().map(|number| uuid(*number)).collect();
    repository.delete(&named, DeleteScope::Only, Duration::ZERO).await.unwrap();
}

/// Every key with this prefix.
pub(super) async fn keys(store: &Memory, prefix: &str) -> Vec<String> {
    let page = store.list(prefix, None).await.unwrap();
    assert!(!page.more, "the tests are small");
    page.entries.iter().map(|entry| entry.key.to_string()).collect()
}

/// Proves that nothing in the store is garbage: a collection finds nothing to do.
pub(super) async fn assert_tidy(store: &Memory, seed: u64) {
    let repository = Host::new(seed, store).open(Access::Read).await.unwrap();
    let report = explained(&repository).await;
    assert_eq!((report.condemned.objects, report.deleted.objects), (0, 0), "{report:#?}");
    assert_eq!(
        (report.kept.objects, report.waiting.objects, report.in_progress.objects),
        (0, 0, 0),
        "{report:#?}"
    );
    assert!(report.dropped.is_empty() && report.missing == 0, "{report:#?}");
    assert_eq!(keys(store, "hb/").await, Vec::<String>::new());
    let named: BTreeSet<String> = repository
        .state()
        .segments()
        .iter()
        .map(|segment| layout::segment(&segment.name).to_string())
        .collect();
    assert_eq!(keys(store, "index/").await.into_iter().collect::<BTreeSet<_>>(), named);
}

/// A disk of `chunks` chunks that nothing else shares.
pub(super) fn disk(number: u64, chunks: usize) -> Vec<u8> {
    noise(number + 1, chunks * CHUNK)
}

/// Backups 1 to 3 of disks that share their first half.
async fn three(store: &Memory) -> (Arc<Repository>, Vec<Vec<u8>>) {
    let repository = Host::new(1, store).init().await.unwrap();
    let mut disks = Vec::new();
    for number in 1..=3 {
        let disk = [disk(0, 8), disk(number, 8)].concat();
        backup(&repository, begin(u128::from(number), "web"), &disk).await.unwrap();
        disks.push(disk);
    }
    (repository, disks)
}

#[test]
fn whichever_backup_is_deleted_its_space_comes_back_and_the_others_are_whole() {
    run(async {
        for victim in 1..=3 {
            let store = Memory::new();
            let (repository, disks) = three(&store).await;
            delete(&repository, &[victim]).await;
            let before = explained(&repository).await;
            let report = collect(&repository).await.unwrap();
            assert_eq!(report.dropped, [uuid(victim)]);
            assert!(report.deleted.bytes >= 8 * CHUNK as u64, "{report:#?}");
            assert_eq!((report.waiting.objects, report.kept.objects), (0, 0), "{report:#?}");
            assert_eq!(before.condemned, report.condemned, "the explanation is another one");
            assert!(matches!(restore(&repository, victim).await, Err(Error::UnknownBackup { .. })));
            let other = Host::new(2, &store).open(Access::Read).await.unwrap();
            for kept in (1..=3).filter(|kept| *kept != victim) {
                assert_eq!(restore(&other, kept).await.unwrap(), disks[kept as usize - 1]);
            }
            assert_tidy(&store, 3).await;
        }
    });
}

#[test]
fn without_anything_to_collect_only_the_session_is_written() {
    run(async {
        let store = Memory::new();
        let (repository, _) = three(&store).await;
        let (seq, packs) = (repository.state().seq(), keys(&store, "packs/").await);
        let report = collect(&repository).await.unwrap();
        assert_eq!(repository.state().seq(), seq + 2, "Open and Close: {report:#?}");
        assert_eq!(keys(&store, "packs/").await, packs);
        assert_eq!((report.backups, report.packs.objects), (3, packs.len() as u64));
    });
}

#[test]
fn an_explanation_changes_nothing() {
    run(async {
        let store = Memory::new();
        let (repository, _) = three(&store).await;
        delete(&repository, &[1, 2]).await;
        let before = (keys(&store, "").await, repository.state().seq());
        let report = explained(&repository).await;
        assert_eq!((keys(&store, "").await, repository.state().seq()), before);
        assert_eq!(report.dropped, [uuid(1), uuid(2)]);
        assert!(report.decisions.iter().any(|decision| decision.fate == PackFate::Unused), "{report:#?}");
    });
}

#[test]
fn a_deleted_backup_stays_whole_until_its_time_has_come() {
    run(async {
        let host = Host::new(1, &Memory::new());
        let repository = host.init().await.unwrap();
        backup(&repository, begin(1, "web"), &disk(1, 8)).await.unwrap();
        let week = Duration::from_secs(7 * 24 * 3600);
        repository.delete(&[uuid(1)], DeleteScope::Only, week).await.unwrap();
        let report = collect(&repository).await.unwrap();
        assert_eq!((report.dropped.len(), report.condemned.objects), (0, 0));
        repository.undelete(&[uuid(1)]).await.unwrap();
        assert_eq!(restore(&repository, 1).await.unwrap(), disk(1, 8));
        repository.delete(&[uuid(1)], DeleteScope::Only, week).await.unwrap();
        host.world.now_ms.fetch_add(8 * 24 * 3_600_000, Ordering::Relaxed);
        assert_eq!(collect(&repository).await.unwrap().dropped, [uuid(1)]);
        assert!(listed(&repository).is_empty());
    });
}

#[test]
fn condemned_packs_stay_for_the_grace_and_go_after_it() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        let repository = host.init().await.unwrap();
        backup(&repository, begin(1, "web"), &disk(1, 8)).await.unwrap();
        let packs = keys(&store, "packs/").await;
        delete(&repository, &[1]).await;
        let day = CollectRequest { grace: crate::GRACE, ..NOW };
        let collect = || repository.collect(&day, std::future::pending());
        let report = collect().await.unwrap();
        assert_eq!(
            (report.condemned.objects, report.waiting.objects),
            (packs.len() as u64, packs.len() as u64)
        );
        assert_eq!(keys(&store, "packs/").await, packs);
        host.world.now_ms.fetch_add(23 * 3_600_000, Ordering::Relaxed);
        assert_eq!(collect().await.unwrap().deleted.objects, 0);
        host.world.now_ms.fetch_add(2 * 3_600_000, Ordering::Relaxed);
        assert_eq!(collect().await.unwrap().deleted.objects, packs.len() as u64);
        assert!(keys(&store, "packs/").await.is_empty());
    });
}

#[test]
fn a_pack_that_is_mostly_garbage_is_rewritten_as_far_as_allowed() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        // Of each pack of four chunks the second backup needs one.
        let first = disk(1, 16);
        let second: Vec<u8> = first.chunks(CHUNK).step_by(4).flatten().copied().collect();
        backup(&repository, begin(1, "web"), &first).await.unwrap();
        backup(&repository, begin(2, "db"), &second).await.unwrap();
        delete(&repository, &[1]).await;
        let nothing = CollectRequest { max_repack_bytes: Some(0), ..NOW };
        let report = repository.collect(&nothing, std::future::pending()).await.unwrap();
        assert_eq!((report.dropped.len(), report.rewritten.objects), (1, 0), "{report:#?}");
        let some = CollectRequest { max_repack_bytes: Some(2 * (CHUNK as u64 + 1024)), ..NOW };
        let report = repository.collect(&some, std::future::pending()).await.unwrap();
        assert_eq!(report.rewritten.objects, 2, "{report:#?}");
        let report = collect(&repository).await.unwrap();
        assert!(report.rewritten.objects >= 2 && report.kept.objects == 0, "{report:#?}");
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&other, 2).await.unwrap(), second);
        let bytes = explained(&other).await.packs.bytes;
        assert!(bytes < 6 * CHUNK as u64, "{bytes} bytes for four chunks");
    });
}

#[test]
fn many_small_packs_become_few_and_then_stay() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        for number in 1..=20 {
            let parent = [disk(0, 4), noise(1000 + number, 5000)].concat();
            backup(&repository, begin(u128::from(number), "web"), &parent).await.unwrap();
        }
        let before = keys(&store, "packs/").await.len();
        let report = collect(&repository).await.unwrap();
        assert!(report.rewritten.objects >= 20, "{report:#?}");
        let after = keys(&store, "packs/").await.len();
        assert!(after + 15 < before, "{before} packs became {after}");
        for run in 0..3 {
            let again = collect(&repository).await.unwrap();
            assert_eq!((again.rewritten.objects, again.deleted.objects), (0, 0), "run {run}: {again:#?}");
        }
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        for number in 1..=20_u64 {
            let expected = [disk(0, 4), noise(1000 + number, 5000)].concat();
            assert_eq!(restore(&other, u128::from(number)).await.unwrap(), expected);
        }
        assert_tidy(&store, 3).await;
    });
}

#[test]
fn packs_of_a_dead_session_go_and_those_of_an_open_one_stay() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        let open = other.begin_backup(begin(1, "web")).await.unwrap();
        beating(&store, &open.id()).await;
        store_disk(&open.plane, &disk(1, 8), EMPTY, None).await.unwrap();
        open.plane.flush().await.unwrap();
        let packs = keys(&store, "packs/").await.len() as u64;
        let report = collect(&repository).await.unwrap();
        assert_eq!((report.in_progress.objects, report.condemned.objects), (packs, 0), "{report:#?}");
        // Its process is gone, and somebody knows: nothing of it was ever published.
        let fence = |_: &aquifer_format::State| Ok(vec![Body::Fence { session: open.id(), seen: 0 }]);
        repository.log.append(fence).await.unwrap();
        let report = collect(&repository).await.unwrap();
        assert!(report.decisions.iter().all(|decision| decision.fate == PackFate::Orphan), "{report:#?}");
        assert_eq!((report.deleted.objects, report.heartbeats), (packs, 1), "{report:#?}");
        assert_tidy(&store, 3).await;
    });
}

#[test]
fn a_silent_session_of_another_host_is_ended_and_told_of() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        let repository = host.init().await.unwrap();
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        let open = other.begin_backup(begin(1, "web")).await.unwrap();
        beating(&store, &open.id()).await;
        let report = collect(&repository).await.unwrap();
        let seen = &report.sessions[..];
        assert!(matches!(seen, [seen] if seen.session == open.id() && !seen.fenced), "{seen:?}");
        host.world.pass(FENCE_AFTER);
        let report = collect(&repository).await.unwrap();
        assert!(matches!(&report.sessions[..], [seen] if seen.fenced), "{:?}", report.sessions);
        assert!(!repository.state().sessions().contains_key(&open.id()));
    });
}

#[test]
fn an_index_that_lies_deletes_nothing() {
    run(async {
        let store = Memory::new();
        let (repository, disks) = three(&store).await;
        let all: Vec<PackName> =
            repository.parts().index.packs().unwrap().iter().map(|pack| pack.pack).collect();
        // The index of this host has lost the data packs: nothing seems to be in them that anybody needs.
        let data: Vec<PackName> = {
            let packs = repository.parts().index.packs().unwrap();
            let data = packs.iter().filter(|pack| pack.kind == aquifer_format::PackKind::Data);
            data.map(|pack| pack.pack).collect()
        };
        repository.parts().index.remove_packs(&data).unwrap();
        let report = collect(&repository).await.unwrap();
        assert_eq!((report.condemned.objects, report.kept.objects), (0, data.len() as u64), "{report:#?}");
        assert!(report.missing > 0 && report.deleted.objects == 0, "{report:#?}");
        assert_eq!(keys(&store, "packs/").await.len(), all.len());
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&other, 2).await.unwrap(), disks[1]);
    });
}

#[test]
fn a_backup_that_cannot_be_walked_ends_the_collection_before_it_decides() {
    run(async {
        let store = Memory::new();
        let (repository, disks) = three(&store).await;
        delete(&repository, &[3]).await;
        let packs = repository.parts().index.packs().unwrap();
        let meta = packs.iter().find(|pack| pack.kind == aquifer_format::PackKind::Meta).unwrap();
        store.delete(&layout::pack(&meta.pack)).await.unwrap();
        let host = Host::new(2, &store);
        // Later than the deletion by the clock of this host, too.
        host.world.now_ms.fetch_add(1_000_000, Ordering::Relaxed);
        let other = host.open(Access::Read).await.unwrap();
        let before = keys(&store, "packs/").await;
        let error = collect(&other).await.unwrap_err();
        assert!(
            matches!(&error, Error::Removal(RemovalError::RootUnreadable { backup, .. }) if *backup == uuid(1)),
            "{error}"
        );
        assert_eq!(keys(&store, "packs/").await, before);
        assert!(other.state().condemned().is_empty() && other.state().sessions().is_empty());
        // The way out that the message names.
        delete(&other, &[1]).await;
        assert_eq!(collect(&other).await.unwrap().dropped, [uuid(1), uuid(3)]);
        assert_eq!(restore(&other, 2).await.unwrap(), disks[1]);
    });
}

#[test]
fn a_pack_whose_table_does_not_open_is_left_alone_and_told_of() {
    run(async {
        let store = Memory::new();
        let (repository, _) = three(&store).await;
        delete(&repository, &[1, 2, 3]).await;
        let victim = layout::pack(&repository.parts().index.packs().unwrap()[0].pack);
        let mut bytes = store.get(&victim, aquifer_store::GetRange::Whole).await.unwrap().to_vec();
        let last = bytes.len() - 40;
        bytes[last] ^= 1;
        store.put(&victim, bytes.into()).await.unwrap();
        let report = collect(&repository).await.unwrap();
        assert_eq!(report.kept.objects, 1, "{report:#?}");
        assert!(
            report.decisions.iter().any(|decision| decision.why.contains("nobody can tell")),
            "{report:#?}"
        );
        assert_eq!(keys(&store, "packs/").await, [victim.to_string()]);
    });
}

#[test]
fn a_pack_that_comes_back_after_its_deletion_is_deleted_again() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        backup(&repository, begin(1, "web"), &disk(1, 4)).await.unwrap();
        let packs = keys(&store, "packs/").await;
        let key = aquifer_store::Key::parse(&packs[0]).unwrap();
        let bytes = store.get(&key, aquifer_store::GetRange::Whole).await.unwrap();
        delete(&repository, &[1]).await;
        collect(&repository).await.unwrap();
        assert!(keys(&store, "packs/").await.is_empty());
        // A put that was sent twice and delivered late.
        store.put(&key, bytes).await.unwrap();
        collect(&repository).await.unwrap();
        assert_tidy(&store, 3).await;
    });
}

#[test]
fn a_collection_that_is_stopped_ends_its_session() {
    run(async {
        let store = Memory::new();
        let (repository, disks) = three(&store).await;
        delete(&repository, &[1]).await;
        let stopped = repository.collect(&NOW, std::future::ready(())).await;
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert!(repository.refresh().await.unwrap().sessions().is_empty());
        collect(&repository).await.unwrap();
        assert_eq!(restore(&repository, 2).await.unwrap(), disks[1]);
    });
}

#[test]
fn a_restore_that_runs_keeps_everything_that_it_may_read() {
    run(async {
        let store = Memory::new();
        let (repository, disks) = three(&store).await;
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        let reading = other.begin_read(SessionKind::Restore, vec![uuid(1)]).await.unwrap();
        // Deleted by somebody who does not ask, and collected at once.
        let forget = |_: &aquifer_format::State| {
            Ok(vec![Body::Forget { backups: vec![uuid(1), uuid(2)], not_before_ms: 0 }])
        };
        repository.log.append(forget).await.unwrap();
        let report = collect(&repository).await.unwrap();
        assert_eq!(
            (report.dropped.as_slice(), report.deleted.objects),
            ([uuid(2)].as_slice(), 0),
            "{report:#?}"
        );
        assert!(report.waiting.objects > 0, "packs that the reader may still read wait for it");
        assert_eq!(restore(&other, 1).await.unwrap(), disks[0]);
        reading.close().await.unwrap();
        let report = collect(&repository).await.unwrap();
        assert_eq!(report.dropped, [uuid(1)]);
        assert!(report.deleted.objects > 0, "{report:#?}");
        assert_tidy(&store, 3).await;
    });
}
