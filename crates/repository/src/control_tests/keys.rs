//! Opening with the right and the wrong secrets, and everything that is not a repository.

use std::sync::Arc;

use aquifer_format::id::SlotId;
use aquifer_format::log::SessionKind;
use aquifer_store::{Bytes, GetRange, Key, Memory, ObjectStore};

use super::{Host, cheap, secret};
use crate::rig::run;
use crate::{Access, Error, Repository, Stores};

#[test]
fn a_second_init_is_refused() {
    run(async {
        let store = Memory::new();
        Host::new(1, &store).init().await.unwrap();
        let error = Host::new(2, &store).init().await.unwrap_err();
        assert!(matches!(error, Error::AlreadyInitialised { .. }), "{error}");
    });
}

#[test]
fn an_empty_store_is_not_a_repository() {
    run(async {
        let error = Host::new(1, &Memory::new()).open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::NotARepository { .. }), "{error}");
        assert!(error.to_string().contains("repository init"), "{error}");
    });
}

#[test]
fn an_interrupted_init_says_so() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        host.init().await.unwrap();
        store.delete(&Key::parse("log/0000000000000001").unwrap()).await.unwrap();
        let error = host.open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::NoLog { .. }), "{error}");
    });
}

#[test]
fn a_wrong_password_is_told_from_damage() {
    run(async {
        let store = Memory::new();
        let mut host = Host::new(1, &store);
        host.init().await.unwrap();
        host.secret = Some(secret("battery staple"));
        assert!(matches!(host.open(Access::Read).await.unwrap_err(), Error::WrongSecret { slots: 1 }));
        host.secret = None;
        let error = host.open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::Format(aquifer_format::Error::SecretNeeded)), "{error}");
        let slots = store.list("keys/", None).await.unwrap().entries;
        let mut slot = store.get(&slots[0].key, GetRange::Whole).await.unwrap().to_vec();
        slot[80] ^= 1;
        store.put(&slots[0].key, Bytes::from(slot)).await.unwrap();
        host.secret = Some(secret("correct horse"));
        let error = host.open(Access::Read).await.unwrap_err();
        assert!(matches!(&error, Error::Object { key, .. } if *key == slots[0].key.as_str()), "{error}");
        store.delete(&slots[0].key).await.unwrap();
        assert!(matches!(host.open(Access::Read).await.unwrap_err(), Error::NoSlot { .. }));
    });
}

#[test]
fn a_password_for_a_plain_repository_is_refused() {
    run(async {
        let store = Memory::new();
        let mut host = Host::new(1, &store);
        host.secret = None;
        let repository = host.init().await.unwrap();
        assert!(matches!(repository.keys_list().await.unwrap_err(), Error::NotEncrypted));
        assert!(matches!(repository.key_add(&secret("x"), cheap()).await.unwrap_err(), Error::NotEncrypted));
        host.open(Access::Read).await.unwrap();
        host.secret = Some(secret("x"));
        let error = host.open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::Format(aquifer_format::Error::Downgrade)), "{error}");
    });
}

#[test]
fn slots_are_added_used_and_retired() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        let repository = host.init().await.unwrap();
        let first = repository.keys_list().await.unwrap()[0].slot;
        let second = repository.key_add(&secret("second"), cheap()).await.unwrap();
        let mut other = host.clone();
        other.secret = Some(secret("second"));
        let opened = other.open(Access::Read).await.unwrap();
        let in_use: Vec<_> = opened
            .keys_list()
            .await
            .unwrap()
            .iter()
            .filter(|slot| slot.in_use)
            .map(|slot| slot.slot)
            .collect();
        assert_eq!(in_use, [second]);
        opened.key_retire(first).await.unwrap();
        assert!(matches!(host.open(Access::Read).await.unwrap_err(), Error::WrongSecret { slots: 1 }));
        assert!(matches!(opened.key_retire(second).await.unwrap_err(), Error::LastSlot { .. }));
        let unknown = SlotId([1; 8]);
        assert!(
            matches!(opened.key_retire(unknown).await.unwrap_err(), Error::UnknownSlot { slot } if slot == unknown)
        );
    });
}

#[test]
fn a_recovery_key_opens_too() {
    run(async {
        let store = Memory::new();
        let mut host = Host::new(1, &store);
        let options = crate::InitOptions { recovery: Some(secret("in the safe")), ..host.init_options() };
        let repository = Repository::init(options).await.unwrap();
        assert_eq!(repository.keys_list().await.unwrap().len(), 2);
        host.secret = Some(secret("in the safe"));
        host.open(Access::Write).await.unwrap();
    });
}

#[test]
fn objects_of_another_repository_do_not_open() {
    run(async {
        let (ours, theirs) = (Memory::new(), Memory::new());
        Host::new(1, &ours).init().await.unwrap();
        Host::new(2, &theirs).init().await.unwrap();
        let key = Key::parse("log/0000000000000001").unwrap();
        let swapped = theirs.get(&key, GetRange::Whole).await.unwrap();
        ours.put(&key, swapped).await.unwrap();
        let error = Host::new(3, &ours).open(Access::Read).await.unwrap_err();
        assert!(matches!(&error, Error::Object { key, .. } if key == "log/0000000000000001"), "{error}");
    });
}

#[test]
fn a_log_store_of_its_own_must_be_named_and_be_the_right_one() {
    run(async {
        let (packs, log) = (Memory::new(), Memory::new());
        let host = Host::new(1, &packs).with_log(&log);
        host.init().await.unwrap();
        host.open(Access::Write).await.unwrap();
        let error = Host::new(2, &packs).open(Access::Write).await.unwrap_err();
        assert!(matches!(error, Error::WrongLogStore { .. }), "{error}");
        let (other_packs, other_log) = (Memory::new(), Memory::new());
        Host::new(3, &other_packs).with_log(&other_log).init().await.unwrap();
        let error = Host::new(2, &packs).with_log(&other_log).open(Access::Read).await.unwrap_err();
        assert!(matches!(error, Error::StoresDiffer { .. }), "{error}");
    });
}

#[test]
fn a_lost_mark_of_the_log_store_stops_writers_until_it_is_put_again_and_never_readers() {
    run(async {
        let store = Memory::new();
        let host = Host::new(1, &store);
        host.init().await.unwrap();
        let listed = store.list("probe/", None).await.unwrap().entries;
        store.delete(&listed[0].key).await.unwrap();
        let before = store.list("", None).await.unwrap().entries;
        let reader = host.open(Access::Read).await.unwrap();
        let session = reader.begin_read(SessionKind::Restore, Vec::new()).await.unwrap();
        assert_eq!(session.id(), None, "a store that may be a copy of the log got an entry");
        session.close().await.unwrap();
        let error = host.open(Access::Write).await.unwrap_err();
        let Error::WrongLogStore { mark, .. } = error else { panic!("{error}") };
        assert_eq!(store.list("", None).await.unwrap().entries, before);
        store.put(&mark, Bytes::from_static(b"any")).await.unwrap();
        host.open(Access::Write).await.unwrap();
    });
}

/// A store whose `create` ignores that the name is taken.
#[derive(Debug, Clone)]
struct Careless(Memory);

impl ObjectStore for Careless {
    fn put<'a>(
        &'a self,
        key: &'a Key,
        bytes: Bytes,
    ) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<()>> {
        self.0.put(key, bytes)
    }
    fn create<'a>(
        &'a self,
        key: &'a Key,
        bytes: Bytes,
    ) -> aquifer_store::BoxFuture<'a, aquifer_store::Result<aquifer_store::Created>> {
        Box::pin(async move { self.0.put(key, bytes).await.map(|()| aquifer_store::Created::Won) })
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
        self.0.delete(key)
    }
    fn describe(&self) -> String {
        "a careless store".to_owned()
    }
}

#[test]
fn a_store_without_atomic_create_may_hold_packs_but_no_log() {
    run(async {
        let careless = Careless(Memory::new());
        let host = Host::new(1, &careless);
        let error = host.init().await.unwrap_err();
        assert!(matches!(&error, Error::AtomicCreate { winners, .. } if winners == "16 16 16 16"), "{error}");
        assert!(error.to_string().contains("--log URL"), "{error}");
        let host = host.with_log(&Memory::new());
        host.init().await.unwrap();
        host.open(Access::Write).await.unwrap();
    });
}

#[test]
fn a_log_store_that_stopped_refusing_is_caught_by_the_next_writer() {
    run(async {
        let store = Memory::new();
        let mut host = Host::new(1, &store);
        host.init().await.unwrap();
        host.stores = Stores { packs: Arc::new(Careless(store)), log: None };
        host.open(Access::Read).await.unwrap();
        let error = host.open(Access::Write).await.unwrap_err();
        assert!(matches!(error, Error::AtomicCreate { .. }), "{error}");
    });
}
