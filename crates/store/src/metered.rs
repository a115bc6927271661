//! A wrapper that counts requests and bytes of another store.
//!
//! It changes no answer. Invariant: a request is counted when it is sent, its bytes when it succeeded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

use crate::{BoxFuture, Created, GetRange, Key, ObjectStore, Page, Result, Retained};

/// What went through a [`Metered`] store since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Number of `put` requests, extensions of a lock included.
    pub puts: u64,
    /// Number of `create` requests.
    pub creates: u64,
    /// Number of `get` requests.
    pub gets: u64,
    /// Number of `head` requests, looks at a lock included.
    pub heads: u64,
    /// Number of `list` requests, one a page.
    pub lists: u64,
    /// Number of `delete` requests.
    pub deletes: u64,
    /// Bytes stored by `put` and by `create` that won.
    pub sent_bytes: u64,
    /// Bytes returned by `get`.
    pub received_bytes: u64,
}

macro_rules! by_field {
    ($trait:ident, $method:ident, $operation:ident) => {
        impl std::ops::$trait for Counters {
            type Output = Self;

            fn $method(self, other: Self) -> Self {
                Self {
                    puts: self.puts.$operation(other.puts),
                    creates: self.creates.$operation(other.creates),
                    gets: self.gets.$operation(other.gets),
                    heads: self.heads.$operation(other.heads),
                    lists: self.lists.$operation(other.lists),
                    deletes: self.deletes.$operation(other.deletes),
                    sent_bytes: self.sent_bytes.$operation(other.sent_bytes),
                    received_bytes: self.received_bytes.$operation(other.received_bytes),
                }
            }
        }
    };
}

by_field!(Add, add, saturating_add);
by_field!(Sub, sub, saturating_sub);

#[derive(Debug, Default)]
struct Atoms {
    puts: AtomicU64,
    creates: AtomicU64,
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

/// A store that counts.
#[derive(Debug)]
pub struct Metered {
    inner: Arc<dyn ObjectStore>,
    atoms: Atoms,
}

impl Metered {
    /// Counts what goes through to `inner` from now on.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, atoms: Atoms::default() }
    }

    /// The counters as they are now.
    pub fn counters(&self) -> Counters {
        let Atoms { puts, creates, gets, heads, lists, deletes, sent_bytes, received_bytes } = &self.atoms;
        Counters {
            puts: puts.load(Relaxed),
            creates: creates.load(Relaxed),
            gets: gets.load(Relaxed),
            heads: heads.load(Relaxed),
            lists: lists.load(Relaxed),
            deletes: deletes.load(Relaxed),
            sent_bytes: sent_bytes.load(Relaxed),
            received_bytes: received_bytes.load(Relaxed),
        }
    }
}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl ObjectStore for Metered {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.atoms.puts.fetch_add(1, Relaxed);
            let sent = length(&bytes);
            self.inner.put(key, bytes).await?;
            self.atoms.sent_bytes.fetch_add(sent, Relaxed);
            Ok(())
        })
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
        Box::pin(async move {
            self.atoms.creates.fetch_add(1, Relaxed);
            let sent = length(&bytes);
            let created = self.inner.create(key, bytes).await?;
            if created == Created::Won {
                self.atoms.sent_bytes.fetch_add(sent, Relaxed);
            }
            Ok(created)
        })
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move {
            self.atoms.gets.fetch_add(1, Relaxed);
            let bytes = self.inner.get(key, range).await?;
            self.atoms.received_bytes.fetch_add(length(&bytes), Relaxed);
            Ok(bytes)
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
        self.atoms.heads.fetch_add(1, Relaxed);
        self.inner.head(key)
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
        self.atoms.lists.fetch_add(1, Relaxed);
        self.inner.list(prefix, after)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        self.atoms.deletes.fetch_add(1, Relaxed);
        self.inner.delete(key)
    }

    fn retain<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Retained>> {
        Box::pin(async move {
            self.atoms.heads.fetch_add(1, Relaxed);
            let retained = self.inner.retain(key).await?;
            self.atoms.puts.fetch_add(u64::from(matches!(retained, Retained::Extended(_))), Relaxed);
            Ok(retained)
        })
    }

    fn range_bytes(&self) -> u32 {
        self.inner.range_bytes()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, conformance};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_metered_store_keeps_the_contract() {
        conformance::check(Arc::new(Metered::new(Arc::new(Memory::new())))).await;
    }

    #[tokio::test]
    async fn requests_and_bytes_are_counted() {
        let store = Metered::new(Arc::new(Memory::new()));
        let key = Key::parse("format").unwrap();
        assert!(store.get(&key, GetRange::Whole).await.is_err());
        store.put(&key, Bytes::from_static(b"12345")).await.unwrap();
        assert_eq!(store.create(&key, Bytes::from_static(b"lost")).await.unwrap(), Created::Exists);
        store.get(&key, GetRange::Last(2)).await.unwrap();
        store.head(&key).await.unwrap();
        store.list("", None).await.unwrap();
        store.delete(&key).await.unwrap();
        let expected = Counters {
            puts: 1,
            creates: 1,
            gets: 2,
            heads: 1,
            lists: 1,
            deletes: 1,
            sent_bytes: 5,
            received_bytes: 2,
        };
        assert_eq!(store.counters(), expected);
        assert_eq!(expected + expected - expected, expected);
    }
}
