//! Object lock: the bucket itself keeps what was stored from being deleted or replaced, whoever asks.
//!
//! Every put carries a time until which its object stays. What is needed for longer has that time moved on
//! ([`crate::ObjectStore::retain`]), and deletions remove the very version, so that they are refused before its time and
//! give space back after it. Heartbeats and probes are not locked: they are overwritten and removed all the time, and
//! nothing is lost with them.
//!
//! Invariant: a lock is never shortened.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};

use super::connect::Bounded;
use super::failure::{Class, Failure};
use super::{ANSWER_BYTES_MAX, S3, this_clock};
use crate::{Key, Result, Retained};

/// First words of keys that are never locked.
const UNLOCKED: [&str; 2] = ["hb", "probe"];

/// Most versions of one object that a deletion removes: a repeated put makes a second one, nothing of ours more.
const VERSIONS_MAX: usize = 16;

/// Who may end a lock before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Who has `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody.
    Compliance,
}

/// How long, and how strictly, objects are kept by the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// How strictly.
    pub mode: LockMode,
    /// From each put, and from each extension on.
    pub period: Duration,
}

impl ObjectLock {
    pub(super) fn mode(self) -> ObjectLockMode {
        match self.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        }
    }

    /// Until when what is stored now is locked, in whole seconds, which all servers can read.
    pub(super) fn until(self) -> DateTime {
        DateTime::from_secs(DateTime::from(this_clock() + self.period).secs().saturating_add(1))
    }

    /// Whether a lock until `until` covers more than half of a period from `now` on.
    fn covered(self, until: DateTime, now: SystemTime) -> bool {
        until > DateTime::from(now + self.period / 2)
    }
}

fn millis(until: DateTime) -> u64 {
    until.to_millis().ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}

impl S3 {
    /// The lock that an object of this name gets.
    pub(super) fn lock_of(&self, key: &Key) -> Option<ObjectLock> {
        let kind = key.as_str().split('/').next().unwrap_or_default();
        self.settings.object_lock.filter(|_| !UNLOCKED.contains(&kind))
    }

    pub(super) async fn lock_on(&self, key: &Key) -> Result<Retained> {
        let Some(lock) = self.lock_of(key) else { return Ok(Retained::NoLock) };
        let (_, head) = self.look_at(key).await?;
        if let Some(until) = head.object_lock_retain_until_date
            && lock.covered(until, this_clock())
        {
            return Ok(Retained::Locked(millis(until)));
        }
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let until = lock.until();
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(until).build();
        let mut retry = self.retry("lock", key.as_str());
        loop {
            let request = self
                .client
                .put_object_retention()
                .bucket(&self.settings.bucket)
                .key(self.name(key.as_str()))
                .retention(retention.clone())
                .customize()
                .interceptor(Bounded(ANSWER_BYTES_MAX));
            match self.attempt(0, request.send()).await {
                Ok(_) => return Ok(Retained::Extended(millis(until))),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }

    /// Removes the versions of an object, the newest first, until the name is free.
    pub(super) async fn remove_versions(&self, key: &Key) -> Result<()> {
        for _ in 0..VERSIONS_MAX {
            let version = match self.look_at(key).await {
                Ok((_, head)) => head.version_id,
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            };
            self.remove(key, version).await?;
        }
        let told = format!("{VERSIONS_MAX} versions were removed, and there are more");
        Err(Failure::new(Class::Conflict, told).into_error(&self.task("delete", key.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_extended_when_half_of_its_period_is_over() {
        let lock = ObjectLock { mode: LockMode::Compliance, period: Duration::from_secs(100) };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(lock.covered(DateTime::from_secs(1_000_051), now));
        assert!(!lock.covered(DateTime::from_secs(1_000_050), now));
        assert!(!lock.covered(DateTime::from_secs(0), now));
    }
}
