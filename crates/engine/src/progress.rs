//! What a running job tells its caller: progress, warnings, and the bytes done so far.
//!
//! Events are advisory. A sink is called from the job's own tasks and must return quickly; what a job
//! found and did is in its outcome, never only in an event.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aquifer_repository::VerifyProgress;
use serde::Serialize;
use uuid::Uuid;

use crate::clock::whole_ms;

/// One event; serialises as one line of the command line's JSON output.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The instant exists and reading begins.
    Started {
        /// The backup that is written or restored.
        uuid: Uuid,
        /// Its domain.
        domain: String,
        /// Disk names with their sizes in bytes.
        disks: BTreeMap<String, u64>,
        /// Budget of the job in bytes.
        memory_bytes: u64,
    },
    /// How far one disk is.
    Progress {
        /// Disk name.
        disk: String,
        /// Bytes of the disk dealt with so far, whether read or known to need no read.
        done_bytes: u64,
        /// Size of the disk in bytes.
        total_bytes: u64,
        /// Bytes a second over all disks since the job began.
        rate_bytes: u64,
        /// Estimated time to the end of the job in milliseconds, once there is a rate.
        eta_ms: Option<u64>,
    },
    /// Everything is read and stored, and the backup is about to be committed: a cancel comes too late.
    Committing {
        /// The backup.
        uuid: Uuid,
    },
    /// How far a verification is.
    Verifying {
        /// Backups whose trees were walked.
        backups_done: u64,
        /// Backups to walk.
        backups_total: u64,
        /// Stored bytes of packs that were read.
        bytes_done: u64,
        /// Stored bytes to read; 0 until it is known.
        bytes_total: u64,
    },
    /// Something the caller should know that does not end the job.
    Warning {
        /// The whole message.
        message: String,
    },
}

impl From<VerifyProgress> for Event {
    fn from(progress: VerifyProgress) -> Self {
        let VerifyProgress { backups_done, backups_total, bytes_done, bytes_total } = progress;
        Event::Verifying { backups_done, backups_total, bytes_done, bytes_total }
    }
}

type Callback = dyn Fn(Event) + Send + Sync;

/// Where events go. Cheap to clone.
#[derive(Clone, Default)]
pub struct EventSink(Option<Arc<Callback>>);

impl EventSink {
    /// Calls `callback` for each event, from several tasks at once.
    pub fn new(callback: impl Fn(Event) + Send + Sync + 'static) -> Self {
        EventSink(Some(Arc::new(callback)))
    }

    /// Drops all events.
    pub fn none() -> Self {
        EventSink(None)
    }

    /// Calls the callback.
    pub fn send(&self, event: Event) {
        if let Some(callback) = &self.0 {
            callback(event);
        }
    }

    /// Sends a warning and logs it.
    pub(crate) fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::warn!("{message}");
        self.send(Event::Warning { message });
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "EventSink(set)" } else { "EventSink(none)" })
    }
}

/// Time between two progress events of a disk.
const EVERY: Duration = Duration::from_millis(500);

/// Bytes done of each disk of a job, and the rate over all of them.
#[derive(Debug)]
pub(crate) struct Meter {
    events: EventSink,
    started: Instant,
    done_bytes: AtomicU64,
    total_bytes: u64,
}

impl Meter {
    pub(crate) fn new(events: EventSink, total_bytes: u64) -> Arc<Self> {
        Arc::new(Meter { events, started: Instant::now(), done_bytes: AtomicU64::new(0), total_bytes })
    }

    /// The part of the meter for one disk.
    pub(crate) fn disk(self: &Arc<Self>, disk: &str, total_bytes: u64) -> DiskMeter {
        DiskMeter {
            meter: Arc::clone(self),
            disk: disk.to_owned(),
            total_bytes,
            done_bytes: AtomicU64::new(0),
            said: Mutex::new(None),
        }
    }

    /// Rate in bytes a second and the time left in milliseconds.
    fn estimate(&self) -> (u64, Option<u64>) {
        let done = self.done_bytes.load(Ordering::Relaxed);
        let elapsed_ms = whole_ms(self.started.elapsed()).max(1);
        let rate = done.saturating_mul(1000) / elapsed_ms;
        let left = self.total_bytes.saturating_sub(done);
        (rate, left.saturating_mul(1000).checked_div(rate))
    }
}

/// Bytes done of one disk.
#[derive(Debug)]
pub(crate) struct DiskMeter {
    meter: Arc<Meter>,
    disk: String,
    total_bytes: u64,
    done_bytes: AtomicU64,
    said: Mutex<Option<Instant>>,
}

impl DiskMeter {
    /// Begins again from the first byte.
    pub(crate) fn restart(&self) {
        let done = self.done_bytes.swap(0, Ordering::Relaxed);
        self.meter.done_bytes.fetch_sub(done, Ordering::Relaxed);
    }

    /// Adds `bytes`, and tells the caller when it is time to.
    pub(crate) fn add(&self, bytes: u64) {
        self.meter.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if done_bytes < self.total_bytes && said.is_some_and(|last| last.elapsed() < EVERY) {
                return;
            }
            *said = Some(Instant::now());
        }
        let (rate_bytes, eta_ms) = self.meter.estimate();
        self.meter.events.send(Event::Progress {
            disk: self.disk.clone(),
            done_bytes,
            total_bytes: self.total_bytes,
            rate_bytes,
            eta_ms,
        });
    }
}

/// The highest resident memory of this process so far in bytes (`VmHWM` of `/proc/self/status`); 0 where
/// the kernel does not say.
pub(crate) fn memory_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    peak_of(&status).unwrap_or(0)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_of_a_disk_is_always_told() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let seen = Arc::clone(&seen);
            EventSink::new(move |event| seen.lock().unwrap().push(event))
        };
        let disk = Meter::new(sink, 10).disk("vda", 10);
        disk.add(1);
        disk.add(2);
        disk.add(7);
        let done: Vec<u64> = seen
            .lock()
            .unwrap()
            .iter()
            .map(|event| match event {
                Event::Progress { done_bytes, .. } => *done_bytes,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(done, [1, 10]);
    }

    #[test]
    fn the_peak_is_read_from_the_kernels_text() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS: 1 kB\n"), Some(2 << 20));
        assert_eq!(peak_of("Name:\tx\n"), None);
    }

    #[test]
    fn a_warning_serialises_as_the_documented_event() {
        let event = Event::Warning { message: "m".into() };
        assert_eq!(serde_json::to_string(&event).unwrap(), r#"{"event":"warning","message":"m"}"#);
    }
}
