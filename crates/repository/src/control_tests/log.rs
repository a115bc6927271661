//! One log, several processes, and stores that lose things.

use std::sync::Arc;

use aquifer_format::log::{Body, SessionKind};
use aquifer_store::{Bytes, GetRange, Key, Memory, Metered, ObjectStore};

use super::faults::{Fault, Faulty};
use super::{Host, backup, begin, listed, restore};
use crate::checkpoints::CHECKPOINT_ENTRIES;
use crate::rig::{noise, run};
use crate::{Access, Error, Repository, Stores};

fn entry(seq: u64) -> Key {
    Key::parse(&format!("log/{seq:016x}")).unwrap()
}

/// Appends entries that decide nothing.
async fn pad(repository: &Repository, entries: u64) {
    for _ in 0..entries {
        repository.log.append(|_| Ok(Vec::new())).await.unwrap();
    }
}

#[test]
fn processes_that_append_at_once_get_a_slot_each_and_see_all() {
    run(async {
        let store = Memory::new();
        Host::new(1, &store).init().await.unwrap();
        let mut processes = Vec::new();
        for seed in 2..6 {
            let repository = Host::new(seed, &store).open(Access::Write).await.unwrap();
            processes.push(tokio::spawn(async move {
                for _ in 0..10 {
                    let session = repository.begin_read(SessionKind::Verify, Vec::new()).await.unwrap();
                    session.close().await.unwrap();
                }
                repository
            }));
        }
        let mut repositories = Vec::new();
        for process in processes {
            repositories.push(process.await.unwrap());
        }
        for repository in repositories {
            let state = repository.refresh().await.unwrap();
            assert_eq!((state.seq(), state.sessions().len()), (1 + 4 * 20, 0));
            assert_eq!(state.writers().len(), 5);
        }
    });
}

#[test]
fn backups_of_two_hosts_at_once_both_exist_and_restore() {
    run(async {
        let store = Memory::new();
        Host::new(1, &store).init().await.unwrap();
        let disks = [noise(5, 1 << 20), noise(6, 1 << 20)];
        let mut hosts = Vec::new();
        for (number, disk) in disks.clone().into_iter().enumerate() {
            let repository = Host::new(10 + number as u64, &store).open(Access::Write).await.unwrap();
            hosts.push(tokio::spawn(async move {
                let name = format!("domain {number}");
                backup(&repository, begin(number as u128 + 1, &name), &disk).await.unwrap();
            }));
        }
        for host in hosts {
            host.await.unwrap();
        }
        let repository = Host::new(20, &store).open(Access::Read).await.unwrap();
        assert_eq!(restore(&repository, 1).await.unwrap(), disks[0]);
        assert_eq!(restore(&repository, 2).await.unwrap(), disks[1]);
    });
}

#[test]
fn a_missing_entry_below_the_tip_is_named() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        pad(&repository, 7).await;
        let tip = repository.state().seq();
        assert_eq!(tip, 8);
        for lost in 1..tip {
            let bytes = store.get(&entry(lost), GetRange::Whole).await.unwrap();
            store.delete(&entry(lost)).await.unwrap();
            let error = Host::new(2, &store).open(Access::Read).await.unwrap_err();
            assert!(
                matches!(error, Error::LogGap { missing, next } if missing == lost && (next > lost && next <= tip)),
                "{lost}: {error}"
            );
            store.put(&entry(lost), bytes).await.unwrap();
        }
        Host::new(2, &store).open(Access::Read).await.unwrap();
    });
}

#[test]
fn a_damaged_entry_is_named() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        pad(&repository, 3).await;
        let bytes = store.get(&entry(3), GetRange::Whole).await.unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x40;
            store.put(&entry(3), Bytes::from(damaged)).await.unwrap();
            let error = Host::new(2, &store).open(Access::Read).await.unwrap_err();
            assert!(matches!(&error, Error::Object { key, .. } if key == entry(3).as_str()), "{at}: {error}");
        }
    });
}

#[test]
fn a_store_that_is_rolled_back_is_noticed_by_whoever_saw_more() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = Host::new(1, &store).with_state(folder.path());
        let repository = host.init().await.unwrap();
        let older = store.snapshot();
        pad(&repository, 3).await;
        drop(repository);
        let back = Host { stores: Stores { packs: Arc::new(older.clone()), log: None }, ..host.clone() };
        let error = back.open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::RolledBack { seen: 4, found: 1, .. }), "{error}");
        // Another host writes on from the old state: the same number, another history.
        let other = Host::new(9, &older).open(Access::Write).await.unwrap();
        pad(&other, 5).await;
        let error = back.open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::OtherHistory { seq: 4, .. }), "{error}");
        host.open(Access::Read).await.unwrap();
    });
}

#[test]
fn a_log_that_lost_its_end_is_noticed_by_a_checkpoint_even_on_a_new_host() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        pad(&repository, CHECKPOINT_ENTRIES + 10).await;
        let checkpoints = store.list("ckpt/", None).await.unwrap().entries;
        assert_eq!(checkpoints.len(), 1);
        let last = u64::from_str_radix(&checkpoints[0].key.as_str()["ckpt/".len()..], 16).unwrap();
        for seq in last..=repository.state().seq() {
            store.delete(&entry(seq)).await.unwrap();
        }
        let error = Host::new(2, &store).open(Access::Read).await.unwrap_err();
        let found = last - 1;
        assert!(
            matches!(error, Error::CheckpointAhead { checkpoint, found: seq } if (checkpoint, seq) == (last, found)),
            "{error}"
        );
    });
}

#[test]
fn a_long_log_is_read_from_its_checkpoint() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        backup(&repository, begin(1, "one"), &noise(1, 1 << 18)).await.unwrap();
        pad(&repository, 2 * CHECKPOINT_ENTRIES).await;
        let metered = Arc::new(Metered::new(Arc::new(store.clone())));
        let mut host = Host::new(2, &store);
        host.stores.packs = Arc::clone(&metered) as Arc<dyn ObjectStore>;
        let opened = host.open(Access::Read).await.unwrap();
        assert_eq!(opened.state(), repository.state());
        assert!(metered.counters().gets < 300, "{:?}", metered.counters());
        // A damaged checkpoint costs time, nothing else.
        for listed in store.list("ckpt/", None).await.unwrap().entries {
            store.put(&listed.key, Bytes::from_static(b"nonsense")).await.unwrap();
        }
        let opened = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(opened.state(), repository.state());
    });
}

#[test]
fn a_host_starts_from_its_own_copy_of_the_state() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = Host::new(1, &store).with_state(folder.path());
        let repository = host.init().await.unwrap();
        pad(&repository, 100).await;
        drop(repository);
        let metered = Arc::new(Metered::new(Arc::new(store.clone())));
        let again = Host { stores: Stores { packs: metered.clone(), log: None }, ..host };
        let opened = again.open(Access::Read).await.unwrap();
        assert_eq!(opened.state().seq(), 101);
        assert!(metered.counters().gets < 10, "{:?}", metered.counters());
    });
}

#[test]
fn the_log_is_copied_beside_the_packs_before_success_is_reported() {
    run(async {
        let (packs, log) = (Memory::new(), Memory::new());
        let host = Host::new(1, &packs).with_log(&log);
        let repository = host.init().await.unwrap();
        pad(&repository, CHECKPOINT_ENTRIES + 2).await;
        for prefix in ["keys/", "log/", "ckpt/", "format"] {
            let original = log.list(prefix, None).await.unwrap().entries;
            assert!(!original.is_empty(), "{prefix}");
            for listed in original {
                let copy = packs.get(&listed.key, GetRange::Whole).await.unwrap();
                assert_eq!(copy, log.get(&listed.key, GetRange::Whole).await.unwrap(), "{}", listed.key);
            }
        }
    });
}

#[test]
fn a_copy_that_failed_is_an_error_now_and_completed_by_the_next_writer() {
    run(async {
        let (packs, log) = (Memory::new(), Memory::new());
        let host = Host::new(1, &packs).with_log(&log);
        host.init().await.unwrap();
        let broken = Faulty::new(&packs, Fault::None);
        let mut failing = host.clone();
        failing.stores.packs = Arc::new(broken.clone());
        let repository = failing.open(Access::Write).await.unwrap();
        let calls = broken.calls();
        let mut failing = host.clone();
        failing.stores.packs = Arc::new(Faulty::new(&packs, Fault::StopBefore(calls + 1)));
        let stopped = failing.open(Access::Write).await.unwrap();
        let error = stopped.log.append(|_| Ok(Vec::new())).await.unwrap_err();
        assert!(matches!(&error, Error::Mirror { key, .. } if key == entry(2).as_str()), "{error}");
        assert_eq!(repository.refresh().await.unwrap().seq(), 2, "the entry itself is in the log");
        assert!(packs.head(&entry(2)).await.is_err());
        host.open(Access::Write).await.unwrap();
        assert!(packs.head(&entry(2)).await.is_ok());
    });
}

/// W6: an answer is not enough, the slot is read back.
#[test]
fn an_entry_that_the_store_did_not_keep_is_not_a_success() {
    run(async {
        let store = Memory::new();
        Host::new(1, &store).init().await.unwrap();
        let counting = Faulty::new(&store, Fault::None);
        let repository = Host::new(2, &counting).open(Access::Write).await.unwrap();
        repository.log.replay().await.unwrap();
        // One more look at the tip, then the create of the slot.
        let create = counting.calls() + 2;
        let forgetful = Faulty::new(&store, Fault::Pretend(create));
        let repository = Host::new(2, &forgetful).open(Access::Write).await.unwrap();
        repository.log.replay().await.unwrap();
        let error = repository.log.append(|_| Ok(Vec::new())).await.unwrap_err();
        assert!(matches!(error, Error::NotKept { seq: 2 }), "{error}");
        assert_eq!(repository.log.replay().await.unwrap().seq(), 1);
    });
}

/// W5: nothing is known until the slot is seen filled, and nothing is claimed.
#[test]
fn a_store_that_falls_silent_leaves_the_outcome_unknown() {
    run(async {
        let store = Memory::new();
        Host::new(1, &store).init().await.unwrap();
        let counting = Faulty::new(&store, Fault::None);
        let repository = Host::new(2, &counting).open(Access::Write).await.unwrap();
        repository.log.replay().await.unwrap();
        let create = counting.calls() + 2;
        for (fault, filled) in [(Fault::StopBefore(create), 1), (Fault::StopAfter(create), 2)] {
            let copy = store.snapshot();
            let silent = Faulty::new(&copy, fault);
            let repository = Host::new(2, &silent).open(Access::Write).await.unwrap();
            repository.log.replay().await.unwrap();
            let error = repository.log.append(|_| Ok(Vec::new())).await.unwrap_err();
            assert!(matches!(error, Error::OutcomeUnknown { seq: 2, .. }), "{fault:?}: {error}");
            let state = Host::new(3, &copy).open(Access::Read).await.unwrap().state();
            assert_eq!(state.seq(), filled, "{fault:?}");
        }
    });
}

#[test]
fn a_reader_without_write_rights_reads_without_a_pin() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let disk = noise(1, 1 << 18);
        backup(&repository, begin(1, "one"), &disk).await.unwrap();
        let mut host = Host::new(2, &store);
        host.stores.packs = Arc::new(ReadOnly(store));
        let reader = host.open(Access::Read).await.unwrap();
        let session = reader.begin_read(SessionKind::Restore, listed(&reader)).await.unwrap();
        assert_eq!(session.id(), None);
        assert_eq!(restore(&reader, 1).await.unwrap(), disk);
        session.close().await.unwrap();
        let error = host.open(Access::Write).await.unwrap_err();
        assert!(matches!(error, Error::Store(aquifer_store::Error::Denied { .. })), "{error}");
    });
}

#[test]
fn an_unenrolled_entry_decides_nothing() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        let writers = other.state().writers().len();
        other.log.append(|_| Ok(vec![Body::Config { features: Vec::new() }])).await.unwrap();
        assert_eq!(repository.refresh().await.unwrap().writers().len(), writers + 1, "it enrols itself");
    });
}

/// Credentials that may read only.
#[derive(Debug)]
struct ReadOnly(Memory);

impl ReadOnly {
    fn denied<T>(key: &Key) -> aquifer_store::Result<T> {
        let source = std::io::ErrorKind::PermissionDenied.into();
        let (store, key) = ("a store for reading".to_owned(), key.to_string());
        Err(aquifer_store::Error::Denied { store, operation: "write", key, source })
    }
}

impl ObjectStore for ReadOnly {
    fn put<'a>(&'a self, key: &'a Key, _: Bytes) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<()>> {
        Box::pin(async move { Self::denied(key) })
    }
    fn create<'a>(
        &'a self,
        key: &'a Key,
        _: Bytes,
    ) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<aquifer_store::Created>> {
        Box::pin(async move { Self::denied(key) })
    }
    fn get<'a>(
        &'a self,
        key: &'a Key,
        range: GetRange,
    ) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<Bytes>> {
        self.0.get(key, range)
    }
    fn head<'a>(&'a self, key: &'a Key) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<u64>> {
        self.0.head(key)
    }
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a Key>,
    ) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<aquifer_store::Page>> {
        self.0.list(prefix, after)
    }
    fn delete<'a>(&'a self, key: &'a Key) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<()>> {
        Box::pin(async move { Self::denied(key) })
    }
    fn describe(&self) -> String {
        "a store for reading".to_owned()
    }
}
