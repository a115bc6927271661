//! Backup sessions: what they pin, when they publish, how they end, and what ends them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aquifer_format::log::{Body, SessionKind, State};
use aquifer_format::record::Record;
use aquifer_store::{Key, Memory, ObjectStore};

use super::{Host, backup, begin, cause, listed, record_of, restore, store_and_commit, uuid};
use crate::rig::{noise, run, store_disk};
use crate::{Access, BeginBackup, Error, TreeSpec};

const EMPTY: TreeSpec = TreeSpec { root: None, size_bytes: 0 };

#[test]
fn a_backup_is_listed_when_it_is_committed_and_not_before() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        let repository = host.init().await.unwrap();
        let disk = noise(1, 700_000);
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        session.plane.flush().await.unwrap();
        session.writing.publish().await.unwrap();
        let other = Host::new(2, &store).open(Access::Read).await.unwrap();
        assert!(listed(&other).is_empty());
        let record = record_of(session.begun(), stored.tree);
        let done = Arc::clone(&session).commit(record.clone()).await.unwrap();
        assert_eq!(other.refresh().await.unwrap().seq(), done.seq);
        assert_eq!(listed(&other), [uuid(1)]);
        assert_eq!(other.record(uuid(1)).await.unwrap(), record);
        assert_eq!(restore(&other, 1).await.unwrap(), disk);
        assert_eq!(other.state().sessions().len(), 0);
        assert!(done.packs >= 2 && done.pack_bytes > 700_000);
    });
}

#[test]
fn an_unchanged_backup_costs_two_log_entries() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 300_000);
        backup(&repository, begin(1, "web"), &disk).await.unwrap();
        let before = repository.state().seq();
        let child = BeginBackup { parent: Some(uuid(1)), ..begin(2, "web") };
        backup(&repository, child, &disk).await.unwrap();
        assert_eq!(repository.state().seq(), before + 2);
        assert_eq!(repository.children(uuid(1)), [uuid(2)]);
    });
}

#[test]
fn backups_are_found_by_uuid_prefix_and_domain() {
    run(async {
        let repository = Host::new(1, &Memory::new()).init().await.unwrap();
        for number in 1..=3 {
            backup(&repository, begin(number, "web"), &noise(1, 1000)).await.unwrap();
        }
        let full = uuid(2).to_string();
        for wanted in [full.as_str(), &full[..8], &full.replace('-', ""), &full.to_uppercase()] {
            assert_eq!(repository.resolve(wanted).unwrap(), uuid(2), "{wanted}");
        }
        assert_eq!(repository.resolve("latest:web").unwrap(), uuid(3));
        let error = |wanted: &str| repository.resolve(wanted).unwrap_err();
        assert!(matches!(error("latest:db"), Error::NoBackupOfDomain { .. }));
        for unknown in ["", "abc", "ffffffff", "latest", "not a uuid"] {
            assert!(matches!(error(unknown), Error::UnknownBackup { .. }), "{unknown}");
        }
        let twin = uuid(2).as_u128() + 5;
        let begin = BeginBackup { backup: uuid::Uuid::from_u128(twin), ..begin(2, "web") };
        backup(&repository, begin, &noise(1, 1000)).await.unwrap();
        assert!(matches!(error(&full[..8]), Error::AmbiguousBackup { matches: 2, .. }));
    });
}

#[test]
fn a_backup_is_refused_while_its_domain_is_backed_up() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        let error = other.begin_backup(begin(2, "web")).await.err().unwrap();
        assert!(
            matches!(&error, Error::DomainBusy { session: busy, .. } if *busy == session.id()),
            "{error}"
        );
        backup(&other, begin(3, "db"), &noise(1, 1000)).await.unwrap();
        session.abandon().await.unwrap();
        backup(&other, begin(4, "web"), &noise(1, 1000)).await.unwrap();
    });
}

#[test]
fn impossible_beginnings_are_refused() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        backup(&repository, begin(1, "web"), &noise(1, 1000)).await.unwrap();
        let orphan = BeginBackup { parent: Some(uuid(9)), ..begin(2, "web") };
        assert!(matches!(repository.begin_backup(orphan).await, Err(Error::UnknownBackup { .. })));
        assert!(matches!(repository.begin_backup(begin(1, "web")).await, Err(Error::BackupExists { .. })));
        let pins = vec![uuid(9)];
        assert!(matches!(
            repository.begin_read(SessionKind::Restore, pins).await,
            Err(Error::UnknownBackup { .. })
        ));
        let reader = Host::new(2, &store).open(Access::Read).await.unwrap();
        assert!(matches!(reader.begin_backup(begin(2, "web")).await, Err(Error::ReadOnly)));
        let session = repository.begin_backup(begin(3, "web")).await.unwrap();
        let record: Record = record_of(&begin(4, "web"), EMPTY);
        let error = Arc::clone(&session).commit(record).await.unwrap_err();
        assert!(matches!(error, Error::OtherBackup { .. }), "{error}");
        session.abandon().await.unwrap();
    });
}

#[test]
fn an_abandoned_backup_is_resumed_by_the_next_one() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 2 << 20);
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        session.abandon().await.unwrap();
        assert!(listed(&repository).is_empty() && repository.state().sessions().is_empty());
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        let session = other.begin_backup(begin(2, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        assert_eq!(stored.new_chunks(), 0, "everything was published by the abandoned session");
        session.clone().commit(record_of(session.begun(), stored.tree)).await.unwrap();
        assert_eq!(restore(&other, 2).await.unwrap(), disk);
    });
}

#[test]
fn a_session_of_a_process_that_died_is_fenced_by_the_next_one_of_the_host() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = Host::new(1, &store).with_state(folder.path());
        let repository = host.init().await.unwrap();
        let died = repository.begin_backup(begin(1, "web")).await.unwrap();
        let (id, alive) = (died.id(), repository.begin_read(SessionKind::Verify, vec![]).await.unwrap());
        // What a killed process leaves: an open session and an unlocked journal.
        drop(died);
        let session = repository.begin_backup(begin(2, "web")).await.unwrap();
        let sessions: Vec<_> = repository.state().sessions().keys().copied().collect();
        assert!(!sessions.contains(&id), "the dead session is over");
        assert!(sessions.contains(&alive.id().unwrap()), "the living one is not");
        session.abandon().await.unwrap();
        alive.close().await.unwrap();
        let journals = std::fs::read_dir(repository.local.as_ref().unwrap().sessions()).unwrap().count();
        assert_eq!(journals, 0);
    });
}

#[test]
fn a_fenced_session_cannot_commit_and_its_packs_are_found_by_the_next() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 1 << 20);
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        let id = session.id();
        let stored = store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        session.plane.flush().await.unwrap();
        session.writing.publish().await.unwrap();
        let janitor = Host::new(2, &store).open(Access::Write).await.unwrap();
        janitor.log.append(|_| Ok(vec![Body::Fence { session: id, seen: 0 }])).await.unwrap();
        let error = session.clone().commit(record_of(session.begun(), stored.tree)).await.unwrap_err();
        assert!(matches!(cause(&error), Error::Fenced { session } if *session == id), "{error}");
        session.abandon().await.unwrap();
        assert!(listed(&janitor).is_empty());
        let next = repository.begin_backup(begin(2, "web")).await.unwrap();
        let stored = store_disk(&next.plane, &disk, EMPTY, None).await.unwrap();
        assert_eq!(stored.new_chunks(), 0);
        next.abandon().await.unwrap();
    });
}

/// W4: a pack that a backup deduplicated against is condemned before the backup commits.
#[test]
fn what_was_condemned_meanwhile_is_stored_again_before_the_commit() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 1 << 20);
        backup(&repository, begin(1, "web"), &disk).await.unwrap();
        let old: Vec<_> = repository.parts.index.packs().unwrap().iter().map(|pack| pack.pack).collect();
        let session = repository.begin_backup(begin(2, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        assert_eq!(stored.new_chunks(), 0);
        let collector = Host::new(2, &store).open(Access::Write).await.unwrap();
        let collect = |_: &State| {
            let forget = Body::Forget { backups: vec![uuid(1)], not_before_ms: 0 };
            Ok(vec![forget, Body::Condemn { packs: old.clone(), dropped: vec![uuid(1)] }])
        };
        collector.log.append(collect).await.unwrap();
        let record = record_of(session.begun(), stored.tree);
        session.commit(record).await.unwrap();
        // The collector goes through with it: the condemned packs are deleted.
        for pack in &old {
            store.delete(&Key::parse(&format!("packs/{pack}")).unwrap()).await.unwrap();
        }
        let restorer = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(listed(&restorer), [uuid(2)]);
        assert_eq!(restore(&restorer, 2).await.unwrap(), disk);
    });
}

/// The uploaders of what is stored anew publish on the way, and the commit must not wait for them while they wait for it.
#[test]
fn a_publish_that_falls_due_while_a_commit_heals_does_not_block_it() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        let repository = host.init().await.unwrap();
        let disk = noise(1, 2 << 20);
        backup(&repository, begin(1, "web"), &disk).await.unwrap();
        let old: Vec<_> = repository.parts.index.packs().unwrap().iter().map(|pack| pack.pack).collect();
        let session = repository.begin_backup(begin(2, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        let condemn = |_: &State| Ok(vec![Body::Condemn { packs: old.clone(), dropped: vec![] }]);
        repository.log.append(condemn).await.unwrap();
        host.world.now_ms.fetch_add(crate::plane::PUBLISH_MS, Ordering::Relaxed);
        let record = record_of(session.begun(), stored.tree);
        let deadline = std::time::Duration::from_secs(60);
        tokio::time::timeout(deadline, session.commit(record))
            .await
            .expect("the commit waits for ever")
            .unwrap();
        assert_eq!(restore(&repository, 2).await.unwrap(), disk);
    });
}

#[test]
fn a_condemned_dependency_that_is_gone_fails_the_commit() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 1 << 20);
        backup(&repository, begin(1, "web"), &disk).await.unwrap();
        let old: Vec<_> = repository.parts.index.packs().unwrap().iter().map(|pack| pack.pack).collect();
        let session = repository.begin_backup(begin(2, "web")).await.unwrap();
        let stored = store_disk(&session.plane, &disk, EMPTY, None).await.unwrap();
        let condemn = |_: &State| Ok(vec![Body::Condemn { packs: old.clone(), dropped: vec![] }]);
        repository.log.append(condemn).await.unwrap();
        for pack in &old {
            store.delete(&Key::parse(&format!("packs/{pack}")).unwrap()).await.unwrap();
        }
        let record = record_of(session.begun(), stored.tree);
        assert!(session.clone().commit(record).await.is_err());
        session.abandon().await.unwrap();
        assert_eq!(listed(&repository), [uuid(1)]);
    });
}

#[test]
fn a_pinned_parent_cannot_be_dropped_and_a_dropped_one_fails_the_commit() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 100_000);
        backup(&repository, begin(1, "web"), &disk).await.unwrap();
        let child = BeginBackup { parent: Some(uuid(1)), ..begin(2, "web") };
        let session = repository.begin_backup(child).await.unwrap();
        let drop_it = |_: &State| {
            let forget = Body::Forget { backups: vec![uuid(1)], not_before_ms: 0 };
            Ok(vec![forget, Body::Condemn { packs: vec![], dropped: vec![uuid(1)] }])
        };
        let collector = Host::new(2, &store).open(Access::Write).await.unwrap();
        let error = collector.log.append(drop_it).await.unwrap_err();
        assert!(matches!(error, Error::Void { .. }), "the pin makes the drop void: {error}");
        store_and_commit(&session, &disk).await.unwrap();
        collector.log.append(drop_it).await.unwrap();
        collector.refresh().await.unwrap();
        assert_eq!(listed(&collector), [uuid(2)]);
        assert_eq!(restore(&collector, 2).await.unwrap(), disk);
    });
}

#[test]
fn a_heartbeat_tells_that_the_session_lives() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        let key = Key::parse(&format!("hb/{}", session.id())).unwrap();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        let beat = loop {
            match store.get(&key, aquifer_store::GetRange::Whole).await {
                Ok(beat) => break beat,
                Err(_) if tokio::time::Instant::now() < deadline => tokio::task::yield_now().await,
                Err(error) => panic!("no heartbeat within ten seconds: {error}"),
            }
        };
        let beat = aquifer_format::open_heartbeat(repository.ring(), session.id(), &beat).unwrap();
        assert_eq!((beat.session, beat.beat), (session.id(), 1));
        session.abandon().await.unwrap();
    });
}
