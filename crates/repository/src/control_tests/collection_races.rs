//! Collections against everything else that may happen meanwhile: backups, restores, deletions taken back, fences, other
//! collections; and a crash or a failure of the store at any call. A race is staged by an [`Interrupted`] store, so that
//! it runs the same way each time.

use std::sync::Arc;
use std::time::Duration;

use aquifer_format::State;
use aquifer_format::log::{BlobPlace, Body, SessionKind};
use aquifer_store::{GetRange, Key, Memory, ObjectStore};

use super::collection::{EMPTY, NOW, assert_tidy, collect, delete, disk, explained, keys};
use super::faults::{Fault, Faulty};
use super::interrupted::Interrupted;
use super::{Host, backup, begin, listed, record_of, restore, store_and_commit, uuid};
use crate::checkpoints::CHECKPOINT_ENTRIES;
use crate::rig::{run, store_disk};
use crate::{Access, BeginBackup, CollectRequest, DeleteScope, Error, RemovalError, Repository, layout};

/// A repository in which backup 1 is deleted and backup 2 is not, of disks that have nothing in common.
async fn one_deleted(store: &Memory) -> Arc<Repository> {
    let repository = Host::new(1, store).init().await.unwrap();
    backup(&repository, begin(1, "web"), &disk(1, 8)).await.unwrap();
    backup(&repository, begin(2, "db"), &disk(2, 8)).await.unwrap();
    delete(&repository, &[1]).await;
    repository
}

/// A collector on a host of its own, in whose way something can come.
async fn collector(store: &Memory) -> (Interrupted, Arc<Repository>) {
    let interrupted = Interrupted::new(store);
    let host = Host::new(7, &interrupted);
    // Later than every deletion by this host's clock.
    host.world.now_ms.fetch_add(1_000_000, std::sync::atomic::Ordering::Relaxed);
    (interrupted.clone(), host.open(Access::Read).await.unwrap())
}

#[test]
fn a_backup_that_counted_on_what_is_condemned_stores_it_anew() {
    run(async {
        let store = Memory::new();
        let repository = one_deleted(&store).await;
        let writer = Host::new(2, &store).open(Access::Write).await.unwrap();
        let session = writer.begin_backup(begin(3, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk(1, 8), EMPTY, None).await.unwrap();
        assert_eq!(stored.new_chunks(), 0, "it counts on the packs of the deleted backup");
        let report = collect(&repository).await.unwrap();
        assert_eq!(report.dropped, [uuid(1)]);
        assert!(report.condemned.objects > 0 && report.deleted.objects == 0, "{report:#?}");
        Arc::clone(&session).commit(record_of(session.begun(), stored.tree)).await.unwrap();
        assert!(collect(&repository).await.unwrap().deleted.objects > 0);
        let other = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&other, 3).await.unwrap(), disk(1, 8));
        assert_eq!(restore(&other, 2).await.unwrap(), disk(2, 8));
        assert_tidy(&store, 4).await;
    });
}

#[test]
fn what_a_running_backup_has_published_is_not_collected_under_it() {
    run(async {
        let store = Memory::new();
        let repository = one_deleted(&store).await;
        let writer = Host::new(2, &store).open(Access::Write).await.unwrap();
        let session = writer.begin_backup(begin(3, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk(3, 8), EMPTY, None).await.unwrap();
        session.plane.flush().await.unwrap();
        session.writing.publish().await.unwrap();
        collect(&repository).await.unwrap();
        collect(&repository).await.unwrap();
        Arc::clone(&session).commit(record_of(session.begun(), stored.tree)).await.unwrap();
        collect(&repository).await.unwrap();
        assert_eq!(restore(&repository, 3).await.unwrap(), disk(3, 8));
        assert_tidy(&store, 4).await;
    });
}

#[test]
fn a_backup_committed_after_the_walk_keeps_what_it_shares_with_a_candidate() {
    run(async {
        let store = Memory::new();
        one_deleted(&store).await;
        let (interrupted, collecting) = collector(&store).await;
        let inner = store.clone();
        interrupted.before_a_pack_is_judged(async move {
            let writer = Host::new(2, &inner).open(Access::Write).await.unwrap();
            let committed = backup(&writer, begin(3, "web"), &disk(1, 8)).await.unwrap();
            assert_eq!(committed.packs, 1, "only the record is new");
        });
        let report = collect(&collecting).await.unwrap();
        assert!(report.kept.objects >= 2, "{report:#?}");
        let other = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&other, 3).await.unwrap(), disk(1, 8));
        collect(&collecting).await.unwrap();
        assert_eq!(restore(&other, 3).await.unwrap(), disk(1, 8));
        assert_tidy(&store, 4).await;
    });
}

#[test]
fn a_backup_brought_back_or_read_after_the_walk_is_not_dropped() {
    run(async {
        for read in [false, true] {
            let store = Memory::new();
            let repository = one_deleted(&store).await;
            let (interrupted, collecting) = collector(&store).await;
            let (other, reading) = (Arc::clone(&repository), Arc::new(tokio::sync::Mutex::new(None)));
            let held = Arc::clone(&reading);
            interrupted.before_a_pack_is_judged(async move {
                if read {
                    let session = other.begin_read(SessionKind::Restore, vec![uuid(1)]).await.unwrap();
                    *held.lock().await = Some(session);
                } else {
                    other.undelete(&[uuid(1)]).await.unwrap();
                }
            });
            let report = collect(&collecting).await.unwrap();
            assert!(report.dropped.is_empty() && report.condemned.objects == 0, "{report:#?}");
            assert_eq!(restore(&repository, 1).await.unwrap(), disk(1, 8));
            if let Some(session) = reading.lock().await.take() {
                session.close().await.unwrap();
            }
        }
    });
}

#[test]
fn a_collection_that_was_fenced_decides_nothing() {
    run(async {
        let store = Memory::new();
        let repository = one_deleted(&store).await;
        let (interrupted, collecting) = collector(&store).await;
        let other = Arc::clone(&repository);
        interrupted.before_a_pack_is_judged(async move {
            let fence = |state: &State| {
                let open = state.sessions().keys();
                Ok(open.map(|session| Body::Fence { session: *session, seen: 0 }).collect())
            };
            other.log.append(fence).await.unwrap();
        });
        let error = collect(&collecting).await.unwrap_err();
        assert!(matches!(error, Error::Fenced { .. }), "{error}");
        let state = repository.refresh().await.unwrap();
        assert!(state.condemned().is_empty() && state.backups().contains_key(&uuid(1)));
        collect(&collecting).await.unwrap();
        assert_tidy(&store, 4).await;
    });
}

#[test]
fn a_copy_found_damaged_meanwhile_proves_nothing() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        // Two backups that do not know of each other: everything is there twice.
        let (one, two) = (
            repository.begin_backup(begin(1, "web")).await.unwrap(),
            other.begin_backup(begin(2, "db")).await.unwrap(),
        );
        for session in [&one, &two] {
            store_and_commit(session, &disk(1, 4)).await.unwrap();
        }
        let (interrupted, collecting) = collector(&store).await;
        let newer = collecting.parts().index.packs().unwrap();
        let newer: Vec<_> = newer.iter().filter(|pack| pack.pack.session == two.id()).copied().collect();
        let rows = |pack| {
            let repository = Arc::clone(&repository);
            async move {
                let body = repository.parts().fetch_whole(&pack).await.unwrap();
                let whole = crate::whole::WholePack::open(repository.ring(), &pack, &body).unwrap();
                whole.rows().iter().map(|row| row.id).collect::<Vec<_>>()
            }
        };
        let mut blobs = Vec::new();
        for pack in &newer {
            blobs.extend(rows(pack.pack).await.into_iter().map(|id| BlobPlace { pack: pack.pack, id }));
        }
        let marker = Arc::clone(&other);
        interrupted.before_a_pack_is_judged(async move {
            let quarantine =
                |_: &State| Ok(vec![Body::Quarantine { packs: Vec::new(), blobs: blobs.clone() }]);
            marker.log.append(quarantine).await.unwrap();
        });
        let report = collect(&collecting).await.unwrap();
        assert_eq!(report.condemned.objects, 0, "{report:#?}");
        let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
        for number in [1, 2] {
            assert_eq!(restore(&reader, number).await.unwrap(), disk(1, 4));
        }
    });
}

#[test]
fn what_was_condemned_by_mistake_is_not_deleted() {
    run(async {
        let store = Memory::new();
        let repository = one_deleted(&store).await;
        let packs: Vec<_> = repository.parts().index.packs().unwrap().iter().map(|pack| pack.pack).collect();
        let condemn = |_: &State| Ok(vec![Body::Condemn { packs: packs.clone(), dropped: Vec::new() }]);
        repository.log.append(condemn).await.unwrap();
        let report = collect(&repository).await.unwrap();
        assert!(report.waiting.objects > 0, "{report:#?}");
        let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&reader, 2).await.unwrap(), disk(2, 8));
    });
}

#[test]
fn collections_of_several_hosts_at_once_lose_nothing_and_leave_nothing() {
    run(async {
        for seed in 0..8 {
            let store = Memory::new();
            let repository = Host::new(1, &store).init().await.unwrap();
            for number in 1..=6 {
                let content = [disk(number % 2, 3), disk(10 + number, 3)].concat();
                backup(&repository, begin(u128::from(number), "web"), &content).await.unwrap();
            }
            delete(&repository, &[1, 3, 4]).await;
            let mut running = tokio::task::JoinSet::new();
            for host in 0..3 {
                let host = Host::new(100 * (seed + 1) + host, &store);
                host.world.now_ms.fetch_add(1_000_000, std::sync::atomic::Ordering::Relaxed);
                running.spawn(async move {
                    let repository = host.open(Access::Read).await.unwrap();
                    collect(&repository).await.unwrap();
                });
            }
            let writer = Host::new(50 + seed, &store).open(Access::Write).await.unwrap();
            let fresh = [disk(1, 3), disk(11, 3)].concat();
            backup(&writer, begin(7, "new"), &fresh).await.unwrap();
            running.join_all().await;
            // What one waited for, the next one finds.
            collect(&repository).await.unwrap();
            collect(&repository).await.unwrap();
            let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
            assert_eq!(listed(&reader), [uuid(2), uuid(5), uuid(6), uuid(7)]);
            for number in [2, 5, 6] {
                let content = [disk(number % 2, 3), disk(10 + number, 3)].concat();
                assert_eq!(restore(&reader, u128::from(number)).await.unwrap(), content, "seed {seed}");
            }
            assert_eq!(restore(&reader, 7).await.unwrap(), fresh, "seed {seed}");
            assert_tidy(&store, 4).await;
        }
    });
}

#[test]
fn the_state_forgets_what_is_gone_and_an_old_index_does_not_count_on_it() {
    run(async {
        let store = Memory::new();
        let repository = one_deleted(&store).await;
        let late = Host::new(2, &store).open(Access::Write).await.unwrap();
        let gone = late.parts().index.packs().unwrap().len();
        collect(&repository).await.unwrap();
        let state = repository.refresh().await.unwrap();
        assert!(state.reaped().is_empty() && state.reaped_dropped() > 0, "{:?}", state.reaped());
        let own = repository.parts().index.position().unwrap().unwrap();
        assert_eq!(own.seq, state.seq(), "the host that did it needs not read its index anew");
        // This one has not looked since: its index has packs that the state names no more.
        let committed = backup(&late, begin(3, "web"), &disk(1, 8)).await.unwrap();
        assert!(committed.pack_bytes > 8 * u64::from(super::CHUNK_BYTES), "{committed:?}");
        assert!(late.parts().index.packs().unwrap().len() < gone + 3);
        let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&reader, 3).await.unwrap(), disk(1, 8));
        collect(&repository).await.unwrap();
        assert_tidy(&store, 4).await;
    });
}

#[test]
fn a_long_log_is_cut_short_and_every_host_goes_on() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = Host::new(1, &store).with_state(folder.path());
        let repository = host.init().await.unwrap();
        backup(&repository, begin(1, "web"), &disk(1, 4)).await.unwrap();
        let before = repository.state();
        // A host that looks now, and then not for long.
        drop(Host::new(5, &store).with_state(&folder.path().join("other")).open(Access::Read).await.unwrap());
        let nothing = |_: &State| Ok(vec![Body::Quarantine { packs: Vec::new(), blobs: Vec::new() }]);
        while repository.state().seq() < 3 * CHECKPOINT_ENTRIES + 20 {
            repository.log.append(nothing).await.unwrap();
        }
        let report = collect(&repository).await.unwrap();
        assert!(report.log_floor > CHECKPOINT_ENTRIES, "{report:#?}");
        assert_eq!(report.log_entries, report.log_floor - 1 + 1, "the entries below, and one checkpoint");
        assert_eq!(keys(&store, "ckpt/").await.len(), 2);
        let first = keys(&store, "log/").await.remove(0);
        assert_eq!(first, layout::log(report.log_floor).to_string());
        drop(repository);
        for host in
            [host, Host::new(2, &store), Host::new(5, &store).with_state(&folder.path().join("other"))]
        {
            let again = host.open(Access::Write).await.unwrap();
            assert_eq!(again.state().backups().get(&uuid(1)), before.backups().get(&uuid(1)));
            assert_eq!(restore(&again, 1).await.unwrap(), disk(1, 4));
            backup(&again, begin(u128::from(again.state().seq()), "web"), &disk(1, 4)).await.unwrap();
            assert_eq!(collect(&again).await.unwrap().log_entries, 0, "not enough for another cut");
        }
    });
}

#[test]
fn an_open_session_keeps_the_log_from_its_slot_on_and_a_wrong_checkpoint_keeps_all() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let held = Host::new(2, &store).open(Access::Write).await.unwrap();
        let held = held.begin_backup(begin(1, "web")).await.unwrap();
        let nothing = |_: &State| Ok(vec![Body::Quarantine { packs: Vec::new(), blobs: Vec::new() }]);
        while repository.state().seq() < 3 * CHECKPOINT_ENTRIES + 20 {
            repository.log.append(nothing).await.unwrap();
        }
        assert_eq!(collect(&repository).await.unwrap().log_floor, 1);
        held.abandon().await.unwrap();
        // Somebody replaces a checkpoint by another state, sealed with the right key.
        let listed = keys(&store, "ckpt/").await;
        let key = Key::parse(&listed[listed.len() - 2]).unwrap();
        let seq = u64::from_str_radix(layout::last_part(&key), 16).unwrap();
        let wrong = State::clone(&repository.refresh().await.unwrap());
        let stored = store.get(&key, GetRange::Whole).await.unwrap();
        let mut forged = serde_json::to_value(&wrong).unwrap();
        let right = aquifer_format::decode_checkpoint(repository.ring(), seq, &stored).unwrap();
        forged["seq"] = seq.into();
        forged["tip"] = serde_json::to_value(right.tip()).unwrap();
        let forged: State = serde_json::from_value(forged).unwrap();
        let object = aquifer_format::encode_checkpoint(repository.ring(), [9; 32], &forged).unwrap();
        store.put(&key, object.into()).await.unwrap();
        let error = collect(&repository).await.unwrap_err();
        assert!(
            matches!(error, Error::Removal(RemovalError::CheckpointDiffers { checkpoint }) if checkpoint == seq),
            "{error}"
        );
        assert_eq!(repository.refresh().await.unwrap().floor(), 1);
    });
}

/// A store with the same objects.
async fn copy(store: &Memory) -> Memory {
    let copy = Memory::new();
    for key in keys(store, "").await {
        let key = Key::parse(&key).unwrap();
        copy.put(&key, store.get(&key, GetRange::Whole).await.unwrap()).await.unwrap();
    }
    copy
}

/// A repository with work of every kind: a backup to drop, packs to rewrite, orphans, a heartbeat of the dead.
async fn with_work(store: &Memory) {
    let repository = Host::new(1, store).init().await.unwrap();
    let first = disk(1, 16);
    let chunk = super::CHUNK_BYTES as usize;
    let second: Vec<u8> = first.chunks(chunk).step_by(4).flatten().copied().collect();
    backup(&repository, begin(1, "web"), &first).await.unwrap();
    backup(&repository, begin(2, "db"), &second).await.unwrap();
    let child = BeginBackup { parent: Some(uuid(1)), ..begin(3, "web") };
    backup(&repository, child, &[disk(3, 4), second.clone()].concat()).await.unwrap();
    delete(&repository, &[1]).await;
    let died = repository.begin_backup(begin(4, "dead")).await.unwrap();
    store_disk(&died.plane, &disk(4, 4), EMPTY, None).await.unwrap();
    died.plane.flush().await.unwrap();
    let fence = |_: &State| Ok(vec![Body::Fence { session: died.id(), seen: 0 }]);
    repository.log.append(fence).await.unwrap();
}

#[test]
fn a_crash_or_a_failure_at_any_call_costs_at_most_space_that_comes_back() {
    run(async {
        let original = Memory::new();
        with_work(&original).await;
        let healthy = copy(&original).await;
        let whole = Faulty::new(&healthy, Fault::None);
        let at_once = CollectRequest { fence_after: Duration::ZERO, ..NOW };
        let host = |seed, store: &Faulty| {
            let host = Host::new(seed, store);
            host.world.now_ms.fetch_add(1_000_000, std::sync::atomic::Ordering::Relaxed);
            host
        };
        let collecting = host(7, &whole).open(Access::Read).await.unwrap();
        let opened = whole.calls();
        collecting.collect(&at_once, std::future::pending()).await.unwrap();
        let calls = whole.calls();
        assert!(calls > opened + 60, "{opened} to {calls} calls");
        let expected = keys(&healthy, "packs/").await.len();
        for call in opened + 1..=calls {
            let faults = [
                Fault::StopBefore(call),
                Fault::StopAfter(call),
                Fault::LoseAnswer(call),
                Fault::Late(call),
                Fault::Twice(call),
            ];
            let fault = faults[usize::try_from(call % 5).unwrap()];
            let store = copy(&original).await;
            let faulty = Faulty::new(&store, fault);
            let collecting = host(7, &faulty).open(Access::Read).await.unwrap();
            // It may end well or not; what counts is what it leaves.
            let _ = collecting.collect(&at_once, std::future::pending()).await;
            faulty.settle().await;
            assert!(faulty.overwritten().is_empty(), "{fault:?}: {:?}", faulty.overwritten());
            prove(&store, 20, fault).await;
            let next = host(30, &Faulty::new(&store, Fault::None)).open(Access::Read).await.unwrap();
            next.collect(&at_once, std::future::pending()).await.unwrap();
            next.collect(&at_once, std::future::pending()).await.unwrap();
            prove(&store, 40, fault).await;
            assert_tidy(&store, 50).await;
            assert!(keys(&store, "packs/").await.len() <= expected + 1, "{fault:?}");
        }
    });
}

async fn prove(store: &Memory, seed: u64, fault: Fault) {
    let reader = Host::new(seed, store).open(Access::Read).await.unwrap();
    let first = disk(1, 16);
    let second: Vec<u8> = first.chunks(super::CHUNK_BYTES as usize).step_by(4).flatten().copied().collect();
    assert_eq!(restore(&reader, 2).await.unwrap(), second, "{fault:?}");
    assert_eq!(restore(&reader, 3).await.unwrap(), [disk(3, 4), second].concat(), "{fault:?}");
    let _ = explained(&reader).await;
}

#[test]
fn a_deleted_backup_can_be_deleted_for_good_by_bringing_it_back_first() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        backup(&repository, begin(1, "web"), &disk(1, 4)).await.unwrap();
        repository.delete(&[uuid(1)], DeleteScope::Only, crate::FORGET_DELAY).await.unwrap();
        repository.delete(&[uuid(1)], DeleteScope::Only, Duration::ZERO).await.unwrap();
        assert!(collect(&repository).await.unwrap().dropped.is_empty(), "the first delay counts");
        repository.undelete(&[uuid(1)]).await.unwrap();
        delete(&repository, &[1]).await;
        assert_eq!(collect(&repository).await.unwrap().dropped, [uuid(1)]);
    });
}
