//! Pruning: deleting what a retention policy does not keep, with a reason for every backup.
//!
//! Whatever the policy says, some backups stay: protected ones, ones that are being read, and of each disk the newest
//! backup whose structure verifies. And no run takes more than half of a domain's backups, unless it is forced to: a
//! wrong policy, or a clock that went wrong, shall not cost the history.
//!
//! Invariant: what is dropped is deleted as [`Repository::delete`] deletes: by one entry, and it can be brought back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_format::log::State;
use serde::Serialize;
use uuid::Uuid;

use crate::backups::BackupInfo;
use crate::delete::{DeleteScope, reader_of};
use crate::repository::Repository;
use crate::retention::{Dated, KeepRules};
use crate::verify::{VerifyLevel, VerifyRequest};
use crate::{RemovalError, Result};

/// Of so many backups of a domain one run drops at most one, rounded up.
const DROPPED_SHARE: usize = 2;

/// What to prune.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneRequest {
    /// The policy of each domain; others are left alone.
    pub policies: BTreeMap<String, KeepRules>,
    /// Say what would be deleted, and delete nothing.
    pub dry_run: bool,
    /// Delete more than half of a domain's backups, and even the newest that verifies.
    pub force: bool,
    /// How long the deleted ones can be brought back.
    pub delay: Duration,
}

/// A backup that is kept or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The backup.
    pub backup: Uuid,
    /// The instant that it shows, in milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Why.
    pub reasons: Vec<String>,
}

/// A domain's backups, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunedDomain {
    /// The domain.
    pub domain: String,
    /// Backups that stay.
    pub kept: Vec<Judged>,
    /// Backups that are deleted.
    pub dropped: Vec<Judged>,
}

/// What pruning did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Nothing was deleted.
    pub dry_run: bool,
    /// The domains that have a policy and backups.
    pub domains: Vec<PrunedDomain>,
    /// No collection drops the deleted ones before this wall-clock time, in milliseconds since 1970 UTC; `None` when
    /// nothing was deleted.
    pub not_before_ms: Option<u64>,
}

impl Repository {
    /// Deletes what the policies do not keep.
    ///
    /// # Errors
    /// [`RemovalError::NoRules`] for a policy that keeps nothing; [`RemovalError::TooMuch`] without force; those of
    /// [`Repository::delete`] and [`Repository::verify`]. Nothing is deleted then.
    pub async fn prune(&self, request: &PruneRequest) -> Result<PruneReport> {
        if let Some((domain, _)) = request.policies.iter().find(|(_, rules)| rules.is_empty()) {
            return Err(RemovalError::NoRules { domain: domain.clone() }.into());
        }
        let state = self.refresh().await?;
        let mut domains: Vec<PrunedDomain> = request
            .policies
            .iter()
            .map(|(domain, rules)| judge(&state, domain, rules, &self.of_domain(domain)))
            .filter(|domain| !domain.kept.is_empty() || !domain.dropped.is_empty())
            .collect();
        if !request.force {
            for domain in &mut domains {
                self.keep_newest_verified(domain).await?;
                refuse_too_much(domain)?;
            }
        }
        let dropped = domains.iter().flat_map(|domain| &domain.dropped).map(|judged| judged.backup);
        let dropped: Vec<Uuid> = dropped.collect();
        let mut not_before_ms = None;
        if !request.dry_run && !dropped.is_empty() {
            let deleted = self.delete(&dropped, DeleteScope::Only, request.delay).await?;
            not_before_ms = Some(deleted.not_before_ms);
        }
        Ok(PruneReport { dry_run: request.dry_run, domains, not_before_ms })
    }

    fn of_domain(&self, domain: &str) -> Vec<BackupInfo> {
        let mut backups = self.backups();
        // An external backup is somebody else's to keep or to drop, and must never take the place of one with data.
        let own = |info: &BackupInfo| info.forgotten.is_none() && !info.summary.external;
        backups.retain(|info| own(info) && info.summary.domain == domain);
        backups
    }

    /// Takes back from what is dropped the newest backup of each disk whose structure verifies, if it is there.
    async fn keep_newest_verified(&self, domain: &mut PrunedDomain) -> Result<()> {
        if domain.dropped.is_empty() {
            return Ok(());
        }
        let backups = self.of_domain(&domain.domain);
        let disks: BTreeSet<&String> =
            backups.iter().flat_map(|info| &info.summary.disks).map(|disk| &disk.name).collect();
        let mut verified: BTreeMap<Uuid, bool> = BTreeMap::new();
        for disk in disks {
            let holds = |info: &&BackupInfo| info.summary.disks.iter().any(|held| held.name == *disk);
            for info in backups.iter().filter(holds) {
                let backup = info.summary.backup;
                let clean = match verified.get(&backup) {
                    Some(clean) => *clean,
                    None => self.has_sound_structure(backup).await?,
                };
                verified.insert(backup, clean);
                if clean {
                    domain.keep(backup, format!("newest backup of disk {disk} that verifies"));
                    break;
                }
            }
        }
        let newest_first =
            |judged: &Judged| backups.iter().position(|info| info.summary.backup == judged.backup);
        domain.kept.sort_by_key(newest_first);
        Ok(())
    }

    async fn has_sound_structure(&self, backup: Uuid) -> Result<bool> {
        let level = VerifyLevel::Structure;
        let request = VerifyRequest { level, backups: vec![backup], sample_percent: 100 };
        let report = self.verify(&request, |_| {}).await?;
        // Other damage in the repository is not this backup's.
        let record = crate::DamagedObject::Record(backup);
        Ok(report.touched.is_empty() && !report.damage.iter().any(|damage| damage.object == record))
    }
}

impl PrunedDomain {
    /// Keeps a backup after all; one that is kept anyway keeps its own reasons.
    fn keep(&mut self, backup: Uuid, reason: String) {
        if let Some(at) = self.dropped.iter().position(|judged| judged.backup == backup) {
            let mut judged = self.dropped.remove(at);
            judged.reasons = vec![reason];
            self.kept.push(judged);
        } else if let Some(judged) = self.kept.iter_mut().find(|judged| judged.backup == backup)
            && judged.reasons.iter().all(|given| given.starts_with("newest backup of disk"))
        {
            judged.reasons.push(reason);
        }
    }
}

fn judge(state: &State, domain: &str, rules: &KeepRules, backups: &[BackupInfo]) -> PrunedDomain {
    let dated =
        |info: &BackupInfo| Dated { backup: info.summary.backup, created_ms: info.summary.created_ms };
    let mut reasons = rules.reasons(&backups.iter().map(dated).collect::<Vec<_>>());
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for info in backups {
        let Dated { backup, created_ms } = dated(info);
        let mut why = reasons.remove(&backup).unwrap_or_default();
        if info.protected {
            why.push("protected".to_owned());
        }
        if let Some((session, _)) = reader_of(state, &backup) {
            why.push(format!("session {session} reads it"));
        }
        if why.is_empty() {
            let reasons = vec!["no rule keeps it".to_owned()];
            dropped.push(Judged { backup, created_ms, reasons });
        } else {
            kept.push(Judged { backup, created_ms, reasons: why });
        }
    }
    PrunedDomain { domain: domain.to_owned(), kept, dropped }
}

fn refuse_too_much(domain: &PrunedDomain) -> Result<()> {
    let (dropped, all) = (domain.dropped.len(), domain.dropped.len() + domain.kept.len());
    if dropped <= all.div_ceil(DROPPED_SHARE) {
        return Ok(());
    }
    Err(RemovalError::TooMuch { domain: domain.domain.clone(), dropped, all }.into())
}
