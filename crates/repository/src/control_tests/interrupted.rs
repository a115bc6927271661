//! A store in memory in which something happens between a chosen question and its answer, so that a race between two
//! hosts runs the same way each time.
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
        *self.meanwhile.0.lock().unwrap() = Some(("hb/", Box::pin(event)));
    }

    /// Lets this happen after the next pack was asked for its size, and before the answer. A collection asks that of
    /// every pack that it is about to condemn.
    pub(super) fn before_a_pack_is_judged(&self, event: impl Future<Output = ()> + Send + 'static) {
        *self.meanwhile.0.lock().unwrap() = Some(("packs/", Box::pin(event)));
    }

    async fn happen(&self, question: &str) {
        let due = {
            let mut meanwhile = self.meanwhile.0.lock().unwrap();
            meanwhile.take_if(|(asked, _)| question.starts_with(*asked))
        };
        if let Some((_, event)) = due {
            event.await;
        }
    }
}

/// What happens, and the beginning of the keys that it waits for.
type Event = (&'static str, BoxFuture<'static, ()>);

#[derive(Default)]
struct Meanwhile(Mutex<Option<Event>>);

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
            if key.as_str().starts_with("hb/") {
                self.happen(key.as_str()).await;
            }
            found
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, aquifer_store::Result<u64>> {
        Box::pin(async move {
            let found = self.inner.head(key).await;
            self.happen(key.as_str()).await;
            found
        })
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
