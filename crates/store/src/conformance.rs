//! The contract of [`ObjectStore`] as a suite: every implementation and every wrapper passes it.
//!
//! It tries what a repository relies on and nothing more. Call [`check`] with an empty store, in a runtime with
//! more than one thread so that the races are races.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Created, Error, GetRange, Key, ObjectStore, Result};

type Store = Arc<dyn ObjectStore>;

/// Tries the whole contract on an empty store.
///
/// # Panics
/// When the store breaks it; the message says where.
pub async fn check(store: Store) {
    a_missing_object_is_not_found(&store).await;
    an_object_is_read_back_whole_and_in_parts(&store).await;
    a_range_beyond_the_object_is_an_error(&store).await;
    an_empty_object_is_an_object(&store).await;
    put_replaces_whole_objects(&store).await;
    create_keeps_what_is_there(&store).await;
    of_racing_creates_one_wins(&store).await;
    racing_readers_never_see_a_part(&store).await;
    delete_is_idempotent(&store).await;
    a_listing_is_ordered_and_has_no_neighbours(&store).await;
    an_object_beyond_the_limit_is_refused(&store).await;
}

fn key(name: &str) -> Key {
    Key::parse(name).expect("the suite's own names are keys")
}

fn log(seq: u64) -> Key {
    key(&format!("log/{seq:016x}"))
}

fn pack(session: u128, number: u32) -> Key {
    key(&format!("packs/{session:032x}/{number:08x}"))
}

fn done<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("the store failed: {error}"))
}

async fn read(store: &Store, key: &Key) -> Bytes {
    done(store.get(key, GetRange::Whole).await)
}

async fn a_missing_object_is_not_found(store: &Store) {
    let missing = log(0xdead);
    for error in [
        store.get(&missing, GetRange::Whole).await.map(|_| ()),
        store.get(&missing, GetRange::Last(0)).await.map(|_| ()),
        store.head(&missing).await.map(|_| ()),
    ] {
        assert!(error.is_err_and(|error| error.is_not_found()), "a missing object must be NotFound");
    }
    assert!(done(store.list("log/", None).await).entries.is_empty(), "an empty store lists nothing");
}

async fn an_object_is_read_back_whole_and_in_parts(store: &Store) {
    let (key, body) = (pack(1, 0), Bytes::from((0..=255).cycle().take(100_000).collect::<Vec<u8>>()));
    done(store.put(&key, body.clone()).await);
    assert_eq!(read(store, &key).await, body);
    assert_eq!(done(store.head(&key).await), 100_000);
    let part = GetRange::From { offset: 70_001, bytes: 20_000 };
    assert_eq!(done(store.get(&key, part).await), body.slice(70_001..90_001));
    let none = GetRange::From { offset: 100_000, bytes: 0 };
    assert_eq!(done(store.get(&key, none).await), Bytes::new());
    assert_eq!(done(store.get(&key, GetRange::Last(7)).await), body.slice(99_993..));
    assert_eq!(done(store.get(&key, GetRange::Last(100_000)).await), body);
}

async fn a_range_beyond_the_object_is_an_error(store: &Store) {
    let key = pack(2, 0);
    done(store.put(&key, Bytes::from_static(b"0123456789")).await);
    for range in [
        GetRange::From { offset: 5, bytes: 6 },
        GetRange::From { offset: 11, bytes: 0 },
        GetRange::From { offset: u64::MAX, bytes: u64::MAX },
        GetRange::Last(11),
    ] {
        let error = store.get(&key, range).await;
        let right = matches!(error, Err(Error::Range { object_bytes: 10, .. }));
        assert!(right, "{range:?} of ten bytes gave {error:?}");
    }
}

async fn an_empty_object_is_an_object(store: &Store) {
    let key = pack(3, 0);
    assert_eq!(done(store.create(&key, Bytes::new()).await), Created::Won);
    assert_eq!(done(store.head(&key).await), 0);
    assert_eq!(read(store, &key).await, Bytes::new());
    assert_eq!(done(store.create(&key, Bytes::from_static(b"x")).await), Created::Exists);
}

async fn put_replaces_whole_objects(store: &Store) {
    let key = key("hb/000102030405060708090a0b0c0d0e0f");
    done(store.put(&key, Bytes::from_static(b"a long first body")).await);
    done(store.put(&key, Bytes::from_static(b"short")).await);
    assert_eq!(read(store, &key).await.as_ref(), b"short");
}

async fn create_keeps_what_is_there(store: &Store) {
    assert_eq!(done(store.create(&log(1), Bytes::from_static(b"first")).await), Created::Won);
    assert_eq!(done(store.create(&log(1), Bytes::from_static(b"second")).await), Created::Exists);
    assert_eq!(read(store, &log(1)).await.as_ref(), b"first");
}

async fn of_racing_creates_one_wins(store: &Store) {
    for seq in 100..110 {
        let racers: Vec<_> = (0..8u8)
            .map(|racer| {
                let store = Arc::clone(store);
                tokio::spawn(async move { store.create(&log(seq), Bytes::from(vec![racer; 4096])).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (racer, task) in (0..8u8).zip(racers) {
            match task.await.expect("a racer does not panic") {
                Ok(Created::Won) => winners.push(racer),
                Ok(Created::Exists) => {}
                Err(error) => panic!("a racer failed: {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "slot {seq} was won by {winners:?}");
        assert_eq!(read(store, &log(seq)).await, vec![winners[0]; 4096]);
    }
}

async fn racing_readers_never_see_a_part(store: &Store) {
    const BYTES: usize = 1 << 20;
    for number in 0..4 {
        let key = pack(4, number);
        let writer = {
            let (store, key) = (Arc::clone(store), key.clone());
            tokio::spawn(async move { store.put(&key, Bytes::from(vec![7; BYTES])).await })
        };
        loop {
            match store.get(&key, GetRange::Whole).await {
                Ok(body) => {
                    assert_eq!(body.len(), BYTES, "a reader saw a part of an object");
                    break;
                }
                Err(error) => assert!(error.is_not_found(), "{error}"),
            }
        }
        done(writer.await.expect("the writer does not panic"));
    }
}

async fn delete_is_idempotent(store: &Store) {
    let key = pack(5, 0);
    done(store.put(&key, Bytes::from_static(b"x")).await);
    done(store.delete(&key).await);
    done(store.delete(&key).await);
    assert!(store.head(&key).await.is_err_and(|error| error.is_not_found()));
    assert_eq!(done(store.create(&key, Bytes::from_static(b"y")).await), Created::Won);
    done(store.delete(&key).await);
}

async fn a_listing_is_ordered_and_has_no_neighbours(store: &Store) {
    for (session, number) in [(0x20, 1), (0x1f, 9), (0x20, 0), (0x21, 3)] {
        done(store.put(&pack(session, number), Bytes::from(vec![0; 3])).await);
    }
    let names = |page: crate::Page| -> Vec<String> {
        page.entries.into_iter().map(|entry| entry.key.to_string()).collect()
    };
    let session = format!("packs/{:032x}/", 0x20);
    let of_session = done(store.list(&session, None).await);
    assert!(of_session.entries.iter().all(|entry| entry.bytes == 3));
    assert_eq!(names(of_session), [format!("{session}00000000"), format!("{session}00000001")]);
    let after = names(done(store.list("packs/", Some(&pack(0x1f, 9))).await));
    let expected = [pack(0x20, 0), pack(0x20, 1), pack(0x21, 3)].map(|key| key.to_string());
    assert_eq!(after, expected);
    let part = format!("packs/{:031x}", 2);
    assert_eq!(names(done(store.list(&part, None).await)), expected);
    let all = names(done(store.list("", None).await));
    assert!(all.is_sorted() && all.len() > 20, "{all:?}");
    assert!(names(done(store.list("par/", None).await)).is_empty());
}

async fn an_object_beyond_the_limit_is_refused(store: &Store) {
    let limit = usize::try_from(crate::OBJECT_BYTES_MAX).expect("the limit fits in memory");
    let key = pack(6, 0);
    let refused = store.put(&key, Bytes::from(vec![0; limit + 1])).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    assert!(store.head(&key).await.is_err_and(|error| error.is_not_found()));
}
