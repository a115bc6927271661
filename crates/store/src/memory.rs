//! A store in memory: for tests and simulations, and the simplest reading of the contract.
//!
//! It is not a cache and has no bound of its own.
//!
//! Invariant: every operation happens under one lock, so this store is linearizable.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::object::{BoxFuture, Created, GetRange, LIST_PAGE_ENTRIES, Listed, OBJECT_BYTES_MAX};
use crate::{Error, Key, ObjectStore, Page, Result};

type Objects = BTreeMap<Key, Bytes>;

/// An object store in memory. Clones share the objects.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    objects: Arc<Mutex<Objects>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A separate store with the same objects: what a copy of the medium at this moment would hold.
    pub fn snapshot(&self) -> Self {
        Self { objects: Arc::new(Mutex::new(self.lock().clone())) }
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // A panic cannot happen between two halves of a change here, so a poisoned map is a whole map.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checked(&self, key: &Key, bytes: &Bytes) -> Result<()> {
        check_size(self, key, u64::try_from(bytes.len()).unwrap_or(u64::MAX))
    }

    fn find(&self, key: &Key) -> Result<Bytes> {
        let found = self.lock().get(key).cloned();
        found.ok_or_else(|| Error::NotFound { store: self.describe(), key: key.to_string() })
    }
}

/// The first byte and the number of bytes that a range asks of an object of known size.
///
/// Shared by the implementations, so that they refuse the same ranges with the same words.
pub(crate) fn resolve(
    store: &dyn ObjectStore,
    key: &Key,
    range: GetRange,
    object_bytes: u64,
) -> Result<(u64, u64)> {
    let (offset, bytes) = match range {
        GetRange::Whole => (0, object_bytes),
        GetRange::From { offset, bytes } => (offset, bytes),
        GetRange::Last(bytes) => (object_bytes.saturating_sub(bytes), bytes),
    };
    let end = offset.saturating_add(bytes);
    if end > object_bytes {
        let (store, key) = (store.describe(), key.to_string());
        return Err(Error::Range { store, key, offset, end, object_bytes });
    }
    check_size(store, key, bytes)?;
    Ok((offset, bytes))
}

/// Refuses what no object of a repository can be.
pub(crate) fn check_size(store: &dyn ObjectStore, key: &Key, object_bytes: u64) -> Result<()> {
    if object_bytes > OBJECT_BYTES_MAX {
        let (store, key) = (store.describe(), key.to_string());
        return Err(Error::TooLarge { store, key, object_bytes, limit_bytes: OBJECT_BYTES_MAX });
    }
    Ok(())
}

impl ObjectStore for Memory {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.checked(key, &bytes)?;
            self.lock().insert(key.clone(), bytes);
            Ok(())
        })
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
        Box::pin(async move {
            self.checked(key, &bytes)?;
            let mut objects = self.lock();
            if objects.contains_key(key) {
                return Ok(Created::Exists);
            }
            objects.insert(key.clone(), bytes);
            Ok(Created::Won)
        })
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move {
            let object = self.find(key)?;
            let size = u64::try_from(object.len()).unwrap_or(u64::MAX);
            let (offset, bytes) = resolve(self, key, range, size)?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            Ok(object.slice(start..start.saturating_add(length)))
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move { Ok(u64::try_from(self.find(key)?.len()).unwrap_or(u64::MAX)) })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let start = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut page = Page::default();
            let objects = self.lock();
            let matching = objects.range::<Key, _>((start, Bound::Unbounded));
            for (key, bytes) in matching.filter(|(key, _)| key.as_str().starts_with(prefix)) {
                if page.entries.len() == LIST_PAGE_ENTRIES {
                    page.more = true;
                    break;
                }
                let bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                page.entries.push(Listed { key: key.clone(), bytes });
            }
            Ok(page)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.lock().remove(key);
            Ok(())
        })
    }

    fn describe(&self) -> String {
        "the store in memory".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_keeps_the_contract() {
        conformance::check(Arc::new(Memory::new())).await;
    }

    #[tokio::test]
    async fn a_snapshot_does_not_follow_the_original() {
        let store = Memory::new();
        let key = Key::parse("format").unwrap();
        let before = store.snapshot();
        store.put(&key, Bytes::from_static(b"x")).await.unwrap();
        assert!(before.head(&key).await.unwrap_err().is_not_found());
        assert_eq!(store.snapshot().head(&key).await.unwrap(), 1);
    }
}
