//! A store in memory in which something happens between the reading of a heartbeat and the answer to its reader, so
//! that a race between two hosts runs the same way each time.
//!
//! It is not a store that fails: see [`super::faults`].
//!
//! Invariant: each event happens once, and is over when the reader goes on.

use std::sync::{Arc, Mutex};

use aquifer_store::{BoxFuture, Bytes, Created, GetRange, Key, Memory, ObjectStore, Page};

/// See the file's head.
#[derive(Debug, Clone)]
pub(super) struct Interrupted {
    inner: Memory,
    meanwhile: Arc<Meanwhile>,
}

impl Interrupted {
    pub(super) fn new(inner: &Memory) -> Self {
        Self { inner: inner.clone(), meanwhile: Arc::default() }
    }

    /// Lets this happen after the next heartbeat was read and before its reader hears of it.
    pub(super) fn before_the_next_answer(&self, event: impl Future<Output = ()> + Send + 'static) {
        *self.meanwhile.0.lock().unwrap() = Some(Box::pin(event));
    }
}

#[derive(Default)]
struct Meanwhile(Mutex<Option<BoxFuture<'static, ()>>>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl ObjectStore for Interrupted {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, aquifer_store::Result<()>> {
        self.inner.put(key, bytes)
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, aquifer_store::Result<Created>> {
        self.inner.create(key, bytes)
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, aquifer_store::Result<Bytes>> {
        Box::pin(async move {
            let found = self.inner.get(key, range).await;
            let meanwhile =
                key.as_str().starts_with("hb/").then(|| self.meanwhile.0.lock().unwrap().take()).flatten();
            if let Some(meanwhile) = meanwhile {
                meanwhile.await;
            }
            found
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, aquifer_store::Result<u64>> {
        self.inner.head(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a Key>,
    ) -> BoxFuture<'a, aquifer_store::Result<Page>> {
        self.inner.list(prefix, after)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, aquifer_store::Result<()>> {
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        "a store with interruptions".to_owned()
    }
}
