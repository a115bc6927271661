//! What is written down of one job.
//!
//! Not here: how and when it is written ([`super`]), and which steps there are ([`JobState`]).
//!
//! Invariant: everything that another process must know to finish or tidy up after the job is in its entry.

use aquifer_api::JobState;
use aquifer_engine::Exposed;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A backup into the repository.
    Backup,
    /// A backup that somebody else reads.
    Unmanaged,
    /// A restore.
    Restore,
}

/// One disk of a job, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryDisk {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// `full`, `bitmap` or `rescan`; empty while it is not known.
    pub mode: String,
    /// Why it was read so.
    pub reason: Option<String>,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
    /// Bytes that the repository had.
    pub dup_bytes: u64,
    /// Bytes that were new to it.
    pub new_bytes: u64,
    /// Bytes that these take in it.
    pub stored_bytes: u64,
}

/// A moment on the clock that goes on while the machine sleeps, of one run of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The run of the machine.
    pub boot: [u8; 16],
    /// Milliseconds since its start.
    pub ms: u64,
}

impl Moment {
    /// Milliseconds from `earlier` to here; `None` when the machine was started anew between the two.
    pub fn since(self, earlier: Moment) -> Option<u64> {
        (self.boot == earlier.boot).then(|| self.ms.saturating_sub(earlier.ms))
    }
}

/// What is known of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// The job; of a backup its own id.
    pub uuid: Uuid,
    /// Its domain.
    pub domain: String,
    /// What it does.
    pub kind: JobKind,
    /// Where it is.
    #[serde(with = "state_word")]
    pub state: JobState,
    /// The document that asked for it; empty for one that was asked for in other words.
    pub request: String,
    /// When it began, in milliseconds since 1970 UTC.
    pub started_ms: u64,
    /// When it took its last step, likewise.
    pub changed_ms: u64,
    /// The instant that it shows, likewise, once there is one.
    pub instant_ms: Option<u64>,
    /// How long the guest's file systems were frozen, in milliseconds, if they were.
    pub freeze_ms: Option<u64>,
    /// The process that has it.
    pub process: u32,
    /// What went wrong.
    pub error: Option<String>,
    /// Its disks.
    pub disks: Vec<EntryDisk>,
    /// Bytes dealt with so far.
    pub done_bytes: u64,
    /// Bytes a second.
    pub rate_bytes: u64,
    /// Of an unmanaged backup: what is served.
    pub exposed: Option<Box<Exposed>>,
    /// Of an unmanaged backup: for how long nobody may read it before it is cancelled, in milliseconds.
    pub lease_ms: u64,
    /// When somebody last did.
    pub touched: Option<Moment>,
}

mod state_word {
    use aquifer_api::JobState;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(state: &JobState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(state.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobState, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Entry {
    /// A job that was accepted and touched nothing yet.
    pub fn new(uuid: Uuid, domain: &str, kind: JobKind, request: &str, now_ms: u64) -> Self {
        Entry {
            uuid,
            domain: domain.to_owned(),
            kind,
            state: JobState::Defined,
            request: request.to_owned(),
            started_ms: now_ms,
            changed_ms: now_ms,
            instant_ms: None,
            freeze_ms: None,
            process: std::process::id(),
            error: None,
            disks: Vec::new(),
            done_bytes: 0,
            rate_bytes: 0,
            exposed: None,
            lease_ms: 0,
            touched: None,
        }
    }

    /// True if the job can go on without the process that began it: QEMU has it.
    pub(super) fn outlives(&self) -> bool {
        self.kind == JobKind::Unmanaged && matches!(self.state, JobState::Exposed | JobState::Finalizing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_another_run_of_the_machine_tells_no_time() {
        let moment = |boot, ms| Moment { boot: [boot; 16], ms };
        assert_eq!(moment(1, 30).since(moment(1, 10)), Some(20));
        assert_eq!(moment(2, 30).since(moment(1, 10)), None);
    }
}
