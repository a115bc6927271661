//! What went to and from the stores of a command: requests and bytes, for the outcome of a job and for `-v`.
//!
//! Requests are what the repository asked for. What a bucket's client repeats of them after a failure is told by the
//! log, each time.

use std::sync::{Arc, Mutex, PoisonError};

use aquifer_engine::Result;
use aquifer_engine::repository::store::{Counters, Metered, ObjectStore};
use serde::Serialize;

use crate::context::Context;
use crate::human;
use crate::output::Report;

/// The stores that a command has opened.
#[derive(Default)]
pub(crate) struct Traffic {
    stores: Mutex<Vec<Arc<Metered>>>,
    told: Mutex<Counters>,
}

impl Traffic {
    /// The same store, counted from now on.
    pub(crate) fn count(&self, store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        let metered = Arc::new(Metered::new(store));
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&metered));
        metered
    }

    fn total(&self) -> Counters {
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.iter().map(|store| store.counters()).fold(Counters::default(), |sum, store| sum + store)
    }

    /// What was counted since this was last asked.
    fn news(&self) -> Requests {
        let total = self.total();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = Requests::of(total - *told);
        *told = total;
        news
    }

    /// Says in the log what there was in all.
    pub(crate) fn log(&self) {
        let Requests { puts, creates, gets, heads, lists, deletes, sent_bytes, received_bytes } =
            Requests::of(self.total());
        let (sent, received) = (human::size(sent_bytes), human::size(received_bytes));
        if puts + creates + gets + heads + lists + deletes > 0 {
            tracing::info!(
                puts,
                creates,
                gets,
                heads,
                lists,
                deletes,
                sent,
                received,
                "requests to the stores"
            );
        }
    }
}

/// Requests and bytes, as JSON has them.
#[derive(Serialize)]
struct Requests {
    puts: u64,
    creates: u64,
    gets: u64,
    heads: u64,
    lists: u64,
    deletes: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Requests {
    fn of(counters: Counters) -> Self {
        let Counters { puts, creates, gets, heads, lists, deletes, sent_bytes, received_bytes } = counters;
        Requests { puts, creates, gets, heads, lists, deletes, sent_bytes, received_bytes }
    }
}

/// An outcome with the requests that it took.
#[derive(Serialize)]
struct Counted<'a, T> {
    #[serde(flatten)]
    outcome: &'a T,
    requests: Requests,
}

impl<T: Report> Report for Counted<'_, T> {
    fn human(&self) -> String {
        self.outcome.human()
    }
}

impl Context {
    /// Prints the last event of a job, with the requests since the last one.
    ///
    /// # Errors
    /// As [`crate::output::Output::report`].
    pub(crate) fn done(&self, outcome: &impl Report) -> Result<()> {
        self.output.done(&Counted { outcome, requests: self.traffic.news() })
    }
}
