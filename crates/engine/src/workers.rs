//! Threads for the work that burns a processor: one for each core, fed by one bounded queue.
//!
//! Tokio's own threads stay free for sockets. A worker never waits for anything but its queue and what its
//! own work blocks on; it takes what is queued in small batches, a fair share at a time, so that a look-up
//! pays for many chunks while no other worker starves.
//!
//! Invariant: the first failure ends the pool and is what [`Workers::finish`] returns.

use std::thread;

use async_channel::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// Jobs that one worker takes at once at most.
const BATCH_JOBS: usize = 16;

/// What one thread does.
pub(crate) trait Worker: Send + 'static {
    /// One unit of work.
    type Job: Send + 'static;

    /// Does the work; leaves `jobs` empty.
    fn run(&mut self, jobs: &mut Vec<Self::Job>) -> Result<()>;

    /// Ends the worker after its last job.
    fn finish(self) -> Result<()>;
}

/// A running pool.
#[derive(Debug)]
pub(crate) struct Workers<J> {
    jobs: Sender<J>,
    ends: Vec<oneshot::Receiver<Result<()>>>,
}

impl<J: Send + 'static> Workers<J> {
    /// Starts a thread for each of `workers`, with one queue of `queue` jobs. `failed` is cancelled when one fails.
    ///
    /// # Errors
    /// `Unavailable` if the system gives no thread.
    pub(crate) fn start<W: Worker<Job = J>>(
        name: &str,
        workers: Vec<W>,
        queue: usize,
        failed: &CancellationToken,
    ) -> Result<Self> {
        let count = workers.len();
        let (jobs, queue) = async_channel::bounded(queue.max(1));
        let mut ends = Vec::with_capacity(count);
        for (number, worker) in workers.into_iter().enumerate() {
            let (end, ended) = oneshot::channel();
            let (queue, failed) = (queue.clone(), failed.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || {
                    let result = drain(worker, &queue, count);
                    if result.is_err() {
                        // In this order, so that whoever finds the queue closed can know why.
                        failed.cancel();
                        queue.close();
                    }
                    // The receiver is gone only if the job was dropped as a whole.
                    let _ = end.send(result);
                })
                .map_err(|error| {
                    Error::caused(Kind::Unavailable, error).about(format!("thread {name}-{number}"))
                })?;
            ends.push(ended);
        }
        Ok(Workers { jobs, ends })
    }

    /// The way into the queue.
    pub(crate) fn queue(&self) -> Sender<J> {
        self.jobs.clone()
    }

    /// Closes the queue, lets the workers end what is in it, and waits for them.
    ///
    /// # Errors
    /// The first failure of a worker; `Internal` if one panicked.
    pub(crate) async fn finish(self) -> Result<()> {
        self.jobs.close();
        let mut first = Ok(());
        for ended in self.ends {
            let result = ended.await.unwrap_or_else(|_| {
                Err(Error::new(Kind::Internal, "a processor thread ended without a result"))
            });
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

fn drain<W: Worker>(mut worker: W, queue: &Receiver<W::Job>, workers: usize) -> Result<()> {
    let mut jobs = Vec::with_capacity(BATCH_JOBS);
    while let Ok(job) = queue.recv_blocking() {
        jobs.push(job);
        let share = (queue.len() / workers).min(BATCH_JOBS - 1);
        while jobs.len() <= share {
            match queue.try_recv() {
                Ok(job) => jobs.push(job),
                Err(_) => break,
            }
        }
        worker.run(&mut jobs)?;
        jobs.clear();
    }
    worker.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Summing {
        sum: Arc<AtomicU64>,
        refuse: Option<u64>,
    }

    impl Worker for Summing {
        type Job = u64;

        fn run(&mut self, jobs: &mut Vec<u64>) -> Result<()> {
            for job in jobs.drain(..) {
                if Some(job) == self.refuse {
                    return Err(Error::new(Kind::Corrupt, format!("job {job}")));
                }
                self.sum.fetch_add(job, Ordering::Relaxed);
            }
            Ok(())
        }

        fn finish(self) -> Result<()> {
            self.sum.fetch_add(1_000_000, Ordering::Relaxed);
            Ok(())
        }
    }

    fn pool(refuse: Option<u64>, failed: &CancellationToken) -> (Workers<u64>, Arc<AtomicU64>) {
        let sum = Arc::new(AtomicU64::new(0));
        let threads = (0..3).map(|_| Summing { sum: Arc::clone(&sum), refuse }).collect();
        (Workers::start("test", threads, 4, failed).unwrap(), sum)
    }

    #[tokio::test]
    async fn every_job_is_done_and_every_worker_finished() {
        let (workers, sum) = pool(None, &CancellationToken::new());
        let queue = workers.queue();
        for job in 1..=1_000 {
            queue.send(job).await.unwrap();
        }
        workers.finish().await.unwrap();
        assert_eq!(sum.load(Ordering::Relaxed), 3_000_000 + 500_500);
    }

    #[tokio::test]
    async fn the_first_failure_closes_the_queue_and_is_returned() {
        let failed = CancellationToken::new();
        let (workers, _) = pool(Some(7), &failed);
        let queue = workers.queue();
        let mut job = 0;
        while queue.send(job).await.is_ok() {
            job += 1;
        }
        assert!(failed.is_cancelled());
        assert_eq!(workers.finish().await.unwrap_err().message(), "job 7");
    }
}
