//! Tries whether a store's `create` is atomic, because a repository's safety rests on it and some stores only claim it.
//!
//! Passing is evidence, not proof: the log reads every slot back and chains its entries, so that a fork is noticed
//! later too. See docs/FORMAT.md, "Prove, don't believe".
//!
//! Invariant: the probe only touches `probe/` keys with fresh random names, and removes them again as far as it may.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Barrier;

use crate::{Created, Error, GetRange, Key, ObjectStore, Result};

/// Racing creates of one round.
pub const RACERS: u8 = 16;

/// Rounds of one probe.
pub const ROUNDS: usize = 4;

/// What happened in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// How many racers were told that they won; one is right.
    pub winners: usize,
    /// How many got an error instead of an answer.
    pub failures: usize,
    /// Whether the object found afterwards is that of the only winner.
    pub winner_kept: bool,
}

impl Round {
    /// Exactly one winner, and its bytes are there.
    pub fn passed(&self) -> bool {
        self.winners == 1 && self.winner_kept
    }
}

/// The outcome of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// The rounds in order.
    pub rounds: Vec<Round>,
    /// Probe objects that could not be removed (no right to delete): harmless and small.
    pub left_behind: usize,
}

impl ProbeReport {
    /// Whether every round had exactly one winner that is still there.
    pub fn passed(&self) -> bool {
        self.rounds.iter().all(Round::passed)
    }

    /// Winners per round, for a message: `1 1 1 16`.
    pub fn winners(&self) -> String {
        self.rounds.iter().map(|round| round.winners.to_string()).collect::<Vec<_>>().join(" ")
    }
}

/// Lets [`RACERS`] creates of one key run against each other, [`ROUNDS`] times, each racer with its own bytes.
/// `random` fills a buffer with random bytes for the names.
///
/// # Errors
/// What the store said when no racer of a round got an answer, or when the object cannot be read back.
pub async fn race(
    store: &Arc<dyn ObjectStore>,
    random: &(dyn Fn(&mut [u8]) + Send + Sync),
) -> Result<ProbeReport> {
    let mut report = ProbeReport { rounds: Vec::with_capacity(ROUNDS), left_behind: 0 };
    for _ in 0..ROUNDS {
        let mut name = [0; 16];
        random(&mut name);
        let key = probe_key(name);
        report.rounds.push(round(store, &key).await?);
        if store.delete(&key).await.is_err() {
            report.left_behind += 1;
        }
    }
    Ok(report)
}

/// The key of a probe object.
fn probe_key(name: [u8; 16]) -> Key {
    Key::parse(&format!("probe/{:032x}", u128::from_be_bytes(name)))
        .expect("32 hex digits after probe/ are inside the grammar")
}

async fn round(store: &Arc<dyn ObjectStore>, key: &Key) -> Result<Round> {
    let barrier = Arc::new(Barrier::new(usize::from(RACERS)));
    let racers: Vec<_> = (0..RACERS)
        .map(|racer| {
            let (store, key, barrier) = (Arc::clone(store), key.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                store.create(&key, Bytes::from(vec![racer; 64])).await
            })
        })
        .collect();
    let (mut winner, mut winners, mut answers, mut failure) = (None, 0, 0, None);
    for (racer, task) in (0..RACERS).zip(racers) {
        match task.await {
            Ok(Ok(Created::Won)) => {
                winner = Some(racer);
                winners += 1;
                answers += 1;
            }
            Ok(Ok(Created::Exists)) => answers += 1,
            Ok(Err(error)) => failure = Some(error),
            Err(stopped) => failure = Some(unanswered(store.as_ref(), key, &stopped)),
        }
    }
    if let (0, Some(error)) = (answers, failure) {
        return Err(error);
    }
    let stored = store.get(key, GetRange::Whole).await?;
    let winner_kept = winner.is_some_and(|racer| stored.as_ref() == [racer; 64]);
    Ok(Round { winners, failures: usize::from(RACERS) - answers, winner_kept })
}

fn unanswered(store: &dyn ObjectStore, key: &Key, reason: &dyn std::fmt::Display) -> Error {
    let (store, key, reason) = (store.describe(), key.to_string(), reason.to_string());
    Error::Unavailable { store, operation: "create", key, reason }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{BoxFuture, Memory, Page};

    fn names() -> impl Fn(&mut [u8]) + Send + Sync {
        let next = AtomicU64::new(1);
        move |out: &mut [u8]| out.fill(u8::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap())
    }

    /// A store that ignores the condition, as some servers do, or looks first and writes later, as others do.
    #[derive(Debug)]
    struct Careless {
        inner: Memory,
        looks_first: bool,
    }

    impl ObjectStore for Careless {
        fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
            self.inner.put(key, bytes)
        }
        fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
            Box::pin(async move {
                if self.looks_first && self.inner.head(key).await.is_ok() {
                    return Ok(Created::Exists);
                }
                tokio::task::yield_now().await;
                self.inner.put(key, bytes).await?;
                Ok(Created::Won)
            })
        }
        fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
            self.inner.get(key, range)
        }
        fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
            self.inner.head(key)
        }
        fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
            self.inner.list(prefix, after)
        }
        fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
            Box::pin(async move {
                let (store, key) = (self.describe(), key.to_string());
                let source = std::io::ErrorKind::PermissionDenied.into();
                Err(Error::Denied { store, operation: "delete", key, source })
            })
        }
        fn describe(&self) -> String {
            "a careless store".to_owned()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_atomic_store_passes_and_is_left_clean() {
        let memory = Memory::new();
        let store: Arc<dyn ObjectStore> = Arc::new(memory.clone());
        let report = race(&store, &names()).await.unwrap();
        assert!(report.passed(), "{report:?}");
        assert_eq!((report.winners().as_str(), report.left_behind), ("1 1 1 1", 0));
        assert_eq!(memory.list("", None).await.unwrap(), Page::default());
    }

    #[tokio::test]
    async fn a_store_that_ignores_the_condition_is_caught() {
        let store: Arc<dyn ObjectStore> = Arc::new(Careless { inner: Memory::new(), looks_first: false });
        let report = race(&store, &names()).await.unwrap();
        assert!(!report.passed());
        assert_eq!(report.winners(), "16 16 16 16");
        assert_eq!(report.left_behind, ROUNDS);
    }

    #[tokio::test]
    async fn a_store_that_looks_before_it_writes_is_caught() {
        let store: Arc<dyn ObjectStore> = Arc::new(Careless { inner: Memory::new(), looks_first: true });
        let report = race(&store, &names()).await.unwrap();
        assert!(!report.passed(), "{report:?}");
    }
}
