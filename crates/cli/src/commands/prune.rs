//! `prune`: which policy each domain has, and what it kept.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_engine::repository::{Judged, KeepRules, PruneReport, PruneRequest};
use aquifer_engine::{Error, Kind, Result};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::list::timestamp;
use super::open;
use crate::args::removal::{KeepArgs, PruneArgs};
use crate::context::Context;
use crate::human;
use crate::output::Report;

/// Runs `prune`.
///
/// # Errors
/// `NotFound` for a domain without backups, `Invalid` for one without a policy, `Conflict` for a policy that would delete
/// too much.
pub(crate) async fn run(context: &Context, args: PruneArgs) -> Result<()> {
    let repository = open::reader(context).await?;
    let backups = repository.backups().into_iter().filter(|backup| backup.forgotten.is_none());
    let stored: BTreeSet<String> = backups.map(|backup| backup.summary.domain).collect();
    let request = PruneRequest {
        policies: policies(context, &args, stored)?,
        dry_run: args.dry_run,
        force: args.force,
        delay: args.forget_delay.0,
    };
    let report = repository.prune(&request).await?;
    context.output.report(&Pruned::new(report)?)
}

/// The policy of each domain that is asked for: that of the command line, else its own.
fn policies(
    context: &Context,
    args: &PruneArgs,
    stored: BTreeSet<String>,
) -> Result<BTreeMap<String, KeepRules>> {
    let given = args.keep.rules();
    let configured = |domain: &String| context.config.domains.get(domain).and_then(|domain| domain.retention);
    let policy = |domain: &String| given.or_else(|| configured(domain).map(KeepRules::from));
    let Some(domain) = &args.domain else {
        // Without rules for all, the domains that have none of their own are left alone.
        let policies = stored.into_iter().filter_map(|domain| policy(&domain).map(|rules| (domain, rules)));
        let policies: BTreeMap<_, _> = policies.collect();
        return if policies.is_empty() && given.is_none() {
            Err(no_rules("any domain"))
        } else {
            Ok(policies)
        };
    };
    if !stored.contains(domain) {
        return Err(Error::new(Kind::NotFound, format!("domain `{domain}` has no backup"))
            .hint("`aquifer domain list` shows those that have")
            .with("domain", domain.clone()));
    }
    let rules = policy(domain).ok_or_else(|| no_rules(&format!("domain `{domain}`")))?;
    Ok(BTreeMap::from([(domain.clone(), rules)]))
}

fn no_rules(whose: &str) -> Error {
    Error::new(Kind::Invalid, format!("no rule says which backups of {whose} to keep"))
        .hint("give one, such as --keep-daily 7, or configure `retention` of the domain")
}

impl KeepArgs {
    /// The rules, if any is given.
    fn rules(&self) -> Option<KeepRules> {
        let given = [
            self.keep_last,
            self.keep_hourly,
            self.keep_daily,
            self.keep_weekly,
            self.keep_monthly,
            self.keep_yearly,
        ];
        given.iter().any(Option::is_some).then(|| KeepRules {
            last: self.keep_last.unwrap_or(0),
            hourly: self.keep_hourly.unwrap_or(0),
            daily: self.keep_daily.unwrap_or(0),
            weekly: self.keep_weekly.unwrap_or(0),
            monthly: self.keep_monthly.unwrap_or(0),
            yearly: self.keep_yearly.unwrap_or(0),
        })
    }
}

/// What became of the backups.
#[derive(Debug, Serialize)]
struct Pruned {
    dry_run: bool,
    deleted_until: Option<Timestamp>,
    domains: Vec<Domain>,
}

#[derive(Debug, Serialize)]
struct Domain {
    domain: String,
    kept: Vec<Shown>,
    dropped: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    uuid: Uuid,
    created: Timestamp,
    reasons: Vec<String>,
}

impl Pruned {
    fn new(report: PruneReport) -> Result<Self> {
        let shown = |judged: Vec<Judged>| -> Result<Vec<Shown>> {
            let one = |judged: Judged| {
                Ok(Shown {
                    uuid: judged.backup,
                    created: timestamp(judged.created_ms)?,
                    reasons: judged.reasons,
                })
            };
            judged.into_iter().map(one).collect()
        };
        let domains = report.domains.into_iter().map(|domain| {
            let (kept, dropped) = (shown(domain.kept)?, shown(domain.dropped)?);
            Ok(Domain { domain: domain.domain, kept, dropped })
        });
        Ok(Pruned {
            dry_run: report.dry_run,
            deleted_until: report.not_before_ms.map(timestamp).transpose()?,
            domains: domains.collect::<Result<_>>()?,
        })
    }
}

impl Report for Pruned {
    fn human(&self) -> String {
        let gone = if self.dry_run { "would be deleted" } else { "deleted" };
        let mut rows = Vec::new();
        for domain in &self.domains {
            for (what, backups) in [("kept", &domain.kept), (gone, &domain.dropped)] {
                rows.extend(backups.iter().map(|shown| {
                    let (uuid, created) = (shown.uuid.to_string(), human::time(shown.created));
                    vec![domain.domain.clone(), created, uuid, what.to_owned(), shown.reasons.join(", ")]
                }));
            }
        }
        if rows.is_empty() {
            return "no backups\n".to_owned();
        }
        let mut text = human::table(&["domain", "created", "uuid", "", "why"], &[], rows);
        if let Some(until) = self.deleted_until {
            text += &format!("until {} `aquifer undelete` brings them back\n", human::time(until));
        }
        text
    }
}
