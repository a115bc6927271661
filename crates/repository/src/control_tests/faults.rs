//! A store in memory that fails at a chosen call, as stores and processes do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use aquifer_store::{BoxFuture, Bytes, Created, Error, GetRange, Key, Memory, ObjectStore, Page, Result};

/// What goes wrong, and at which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The process stops before this call reaches the store.
    StopBefore(u64),
    /// The process stops after this call took effect, before it hears of it.
    StopAfter(u64),
    /// This call fails and has no effect.
    Fail(u64),
    /// This call takes effect, and its answer is lost.
    LoseAnswer(u64),
    /// This write's answer is lost, and it takes effect only five calls later.
    Late(u64),
    /// This write is delivered a second time, five calls later.
    Twice(u64),
    /// This write finds no space.
    Full(u64),
    /// This write is answered as done, and never takes effect.
    Pretend(u64),
}

/// Calls between the lost answer of a late write and its effect.
const LATE_CALLS: u64 = 5;

/// A call that changes the store.
#[derive(Debug, Clone)]
enum Write {
    Put(Key, Bytes),
    Create(Key, Bytes),
    Delete(Key),
}

/// A store that fails as told. Heartbeats come from a task of their own and are not counted.
#[derive(Debug, Clone)]
pub(super) struct Faulty {
    pub(super) inner: Memory,
    fault: Fault,
    calls: Arc<AtomicU64>,
    late: Arc<Mutex<Vec<(u64, Write)>>>,
    interruption: Arc<Interruption>,
    overwritten: Arc<Mutex<Vec<String>>>,
}

/// What happens before which call.
#[derive(Default)]
struct Interruption(Mutex<Option<(u64, BoxFuture<'static, ()>)>>);

impl std::fmt::Debug for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interruption")
    }
}

/// What becomes of one call.
enum Fate {
    Do,
    Refuse,
    DoAndRefuse,
    RefuseAndDoLater,
    DoAndAgainLater,
    NoSpace,
    Pretend,
}

impl Faulty {
    pub(super) fn new(inner: &Memory, fault: Fault) -> Self {
        Self {
            inner: inner.clone(),
            fault,
            calls: Arc::default(),
            late: Arc::default(),
            interruption: Arc::default(),
            overwritten: Arc::default(),
        }
    }

    /// Lets this happen before a call, which waits for it.
    pub(super) fn interrupt_at(&self, call: u64, event: BoxFuture<'static, ()>) {
        *self.interruption.0.lock().unwrap() = Some((call, event));
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Objects that were replaced by other bytes, which nothing but a heartbeat may do.
    pub(super) fn overwritten(&self) -> Vec<String> {
        self.overwritten.lock().unwrap().clone()
    }

    /// Lets every late write arrive.
    pub(super) async fn settle(&self) {
        self.deliver(u64::MAX).await;
    }

    async fn deliver(&self, now: u64) {
        let due: Vec<_> = {
            let mut late = self.late.lock().unwrap();
            let (due, rest) = late.drain(..).partition(|(when, _)| *when <= now);
            *late = rest;
            due
        };
        for (_, write) in due {
            // Nobody waits for these answers.
            match write {
                Write::Put(key, bytes) => drop(self.put_watched(&key, bytes).await),
                Write::Create(key, bytes) => drop(self.inner.create(&key, bytes).await),
                Write::Delete(key) => drop(self.inner.delete(&key).await),
            }
        }
    }

    async fn put_watched(&self, key: &Key, bytes: Bytes) -> Result<()> {
        if let Ok(before) = self.inner.get(key, GetRange::Whole).await
            && before != bytes
            && !key.as_str().starts_with("hb/")
        {
            self.overwritten.lock().unwrap().push(key.to_string());
        }
        self.inner.put(key, bytes).await
    }

    async fn fate(&self, key: &str, write: bool) -> Fate {
        if key.starts_with("hb/") {
            return Fate::Do;
        }
        let now = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        self.deliver(now).await;
        let due = self.interruption.0.lock().unwrap().take_if(|(call, _)| *call <= now);
        if let Some((_, event)) = due {
            event.await;
        }
        match self.fault {
            Fault::StopBefore(at) if now >= at => Fate::Refuse,
            Fault::StopAfter(at) if now > at => Fate::Refuse,
            Fault::StopAfter(at) | Fault::LoseAnswer(at) if now == at => Fate::DoAndRefuse,
            Fault::Fail(at) if now == at => Fate::Refuse,
            Fault::Late(at) if now == at && write => Fate::RefuseAndDoLater,
            Fault::Twice(at) if now == at && write => Fate::DoAndAgainLater,
            Fault::Full(at) if now == at && write => Fate::NoSpace,
            Fault::Pretend(at) if now == at && write => Fate::Pretend,
            _ => Fate::Do,
        }
    }

    fn refusal(&self, operation: &'static str, key: &str) -> Error {
        let (store, key) = (self.describe(), key.to_owned());
        Error::Unavailable { store, operation, key, reason: "told to fail".to_owned() }
    }

    async fn read<T>(
        &self,
        name: &'static str,
        key: &str,
        read: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.fate(key, false).await {
            Fate::Do => read.await,
            _ => Err(self.refusal(name, key)),
        }
    }

    async fn write<T>(
        &self,
        name: &'static str,
        key: &Key,
        later: Write,
        pretended: T,
        write: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let push = |write: Write| {
            let when = self.calls() + LATE_CALLS;
            self.late.lock().unwrap().push((when, write));
        };
        match self.fate(key.as_str(), true).await {
            Fate::Do => write.await,
            Fate::Refuse => Err(self.refusal(name, key.as_str())),
            Fate::DoAndRefuse => {
                write.await?;
                Err(self.refusal(name, key.as_str()))
            }
            Fate::RefuseAndDoLater => {
                push(later);
                Err(self.refusal(name, key.as_str()))
            }
            Fate::DoAndAgainLater => {
                push(later);
                write.await
            }
            Fate::NoSpace => Err(Error::NoSpace { store: self.describe(), key: key.to_string() }),
            Fate::Pretend => Ok(pretended),
        }
    }
}

impl ObjectStore for Faulty {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        let later = Write::Put(key.clone(), bytes.clone());
        Box::pin(self.write("put", key, later, (), self.put_watched(key, bytes)))
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
        let later = Write::Create(key.clone(), bytes.clone());
        Box::pin(self.write("create", key, later, Created::Won, self.inner.create(key, bytes)))
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.read("get", key.as_str(), self.inner.get(key, range)))
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.read("head", key.as_str(), self.inner.head(key)))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.read("list", prefix, self.inner.list(prefix, after)))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.write("delete", key, Write::Delete(key.clone()), (), self.inner.delete(key)))
    }

    fn describe(&self) -> String {
        "a store that fails as told".to_owned()
    }
}

/// A wrapper that keeps the contract when nothing is to fail.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_fault_it_is_a_store_like_any_other() {
    aquifer_store::conformance::check(Arc::new(Faulty::new(&Memory::new(), Fault::None))).await;
}
