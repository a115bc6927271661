//! Verification without a key, of what only it has to cope with: objects under wrong names, and a listing that is stale.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_store::{BoxFuture, Bytes, Created, GetRange, Key, Memory, ObjectStore, Page, Result};

use super::whole_tests::Whole;
use super::*;
use crate::rig::{TestWorld, noise, run};
use crate::{Stores, World};

async fn verify(store: Arc<dyn ObjectStore>) -> VerifyReport {
    let world: Arc<dyn World> = Arc::new(TestWorld::default());
    let stores = Stores { packs: store, log: None };
    verify_keyless(&stores, &world, None, VerifyLevel::Packs, 100, |_| ()).await.unwrap()
}

/// A repository with a backup, and the keys of its packs.
async fn with_packs() -> (Whole, Vec<Key>) {
    let whole = Whole::new().await;
    whole.backup(1, None, &noise(1, 12 << 20), None).await;
    let packs: Vec<Key> =
        whole.keys().await.into_iter().filter(|key| key.as_str().starts_with("packs/")).collect();
    assert!(packs.len() > 3);
    (whole, packs)
}

#[test]
fn two_packs_under_each_others_names_are_both_found() {
    run(async {
        let (whole, packs) = with_packs().await;
        let store: Arc<dyn ObjectStore> = Arc::new(whole.store.clone());
        assert!(verify(Arc::clone(&store)).await.is_clean());
        let (first, second) = (whole.get(&packs[0]).await, whole.get(&packs[1]).await);
        store.put(&packs[0], second).await.unwrap();
        store.put(&packs[1], first).await.unwrap();
        let report = verify(store).await;
        let found: BTreeSet<String> = report.damage.iter().map(|damage| damage.what.clone()).collect();
        let name = |key: &Key| key.as_str().trim_start_matches("packs/").to_owned();
        let (one, other) = (name(&packs[0]), name(&packs[1]));
        let expected = [format!("pack {one}: it is pack {other}"), format!("pack {other}: it is pack {one}")];
        assert_eq!(found, BTreeSet::from(expected));
    });
}

/// A store that still lists an object which is gone.
#[derive(Debug)]
struct Stale {
    inner: Memory,
    gone: Key,
}

impl ObjectStore for Stale {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        self.inner.put(key, bytes)
    }
    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
        self.inner.create(key, bytes)
    }
    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
        if *key == self.gone {
            let (store, key) = (self.describe(), key.to_string());
            return Box::pin(std::future::ready(Err(aquifer_store::Error::NotFound { store, key })));
        }
        self.inner.get(key, range)
    }
    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
        self.inner.head(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
        self.inner.list(prefix, after)
    }
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        self.inner.delete(key)
    }
    fn describe(&self) -> String {
        "a store whose listing is stale".to_owned()
    }
}

#[test]
fn a_pack_that_was_collected_since_it_was_listed_is_no_damage() {
    run(async {
        let (whole, packs) = with_packs().await;
        let gone = packs[1].clone();
        let report = verify(Arc::new(Stale { inner: whole.store.clone(), gone })).await;
        assert!(report.is_clean(), "{report:#?}");
        let left = packs.len() as u64 - 1;
        assert_eq!((report.packs, report.packs_read, report.never_read), (left, left, 0));
    });
}
