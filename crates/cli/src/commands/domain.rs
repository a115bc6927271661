//! `domain`: what is configured, what is stored of it, and the clean-up of what a crashed backup left in QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aquifer_engine::qemu::{self, CleanupReport, MonitorAddress, MonitorOptions, NbdListen, Scope};
use aquifer_engine::{Error, Kind, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::backup::{listen, scratch_dir};
use super::list::{Listed, listed};
use super::open;
use crate::args::DomainCommand;
use crate::config::DomainConfig;
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Runs `domain …`.
///
/// # Errors
/// `NotFound` for a domain that neither the configuration nor the repository knows; what QEMU says.
pub(crate) async fn run(context: &Context, command: DomainCommand) -> Result<Exit> {
    match command {
        DomainCommand::List => list(context).await?,
        DomainCommand::Show { name } => show(context, name).await?,
        DomainCommand::Cleanup { name, qmp, scratch } => cleanup(context, name, qmp, scratch).await?,
    }
    Ok(Exit::Done)
}

/// One domain in short.
#[derive(Debug, PartialEq, Serialize)]
struct Known {
    domain: String,
    configured: bool,
    qmp: Option<String>,
    backups: usize,
    latest: Option<Timestamp>,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct KnownList(Vec<Known>);

async fn list(context: &Context) -> Result<()> {
    let backups = stored(context).await?;
    let names: BTreeSet<&String> = context.config.domains.keys().chain(backups.keys()).collect();
    let known =
        names.into_iter().map(|name| known(name, context.config.domains.get(name), backups.get(name)));
    context.output.report(&KnownList(known.collect()))
}

fn known(name: &str, configured: Option<&DomainConfig>, backups: Option<&Vec<Listed>>) -> Known {
    let backups = backups.map_or(&[][..], Vec::as_slice);
    Known {
        domain: name.to_owned(),
        configured: configured.is_some(),
        qmp: configured.map(|domain| domain.qmp.clone()),
        backups: backups.len(),
        latest: backups.first().map(|backup| backup.created),
        stored_bytes: backups.iter().map(|backup| backup.stored_bytes).fold(0, u64::saturating_add),
    }
}

/// The backups of each domain, newest first; none when no repository is named.
async fn stored(context: &Context) -> Result<BTreeMap<String, Vec<Listed>>> {
    let mut domains: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
    if context.names_a_repository() {
        for listed in listed(&*open::reader(context).await?)? {
            domains.entry(listed.domain.clone()).or_default().push(listed);
        }
    }
    Ok(domains)
}

/// One domain in detail.
#[derive(Serialize)]
struct Shown {
    domain: String,
    configuration: Option<DomainConfig>,
    backups: usize,
    latest: Option<Listed>,
    stored_bytes: u64,
}

async fn show(context: &Context, name: String) -> Result<()> {
    let configuration = context.config.domains.get(&name).cloned();
    let mut backups = stored(context).await?;
    let backups = backups.remove(&name).unwrap_or_default();
    if configuration.is_none() && backups.is_empty() {
        return Err(Error::new(
            Kind::NotFound,
            format!("domain `{name}` is neither configured nor backed up"),
        )
        .hint("`aquifer domain list` shows those that are known")
        .with("domain", name));
    }
    let Known { backups: count, stored_bytes, .. } = known(&name, configuration.as_ref(), Some(&backups));
    let latest = backups.into_iter().next();
    context.output.report(&Shown { domain: name, configuration, backups: count, latest, stored_bytes })
}

/// What a clean-up did.
#[derive(Serialize)]
struct Cleaned {
    domain: String,
    removed: Vec<String>,
    foreign: Vec<String>,
    kept: Vec<String>,
    continued: bool,
    thawed: bool,
}

async fn cleanup(
    context: &Context,
    name: String,
    qmp: Option<String>,
    scratch: Option<PathBuf>,
) -> Result<()> {
    let configured = context.config.domains.get(&name);
    let monitor = qmp.as_ref().or_else(|| configured.map(|domain| &domain.qmp)).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("domain `{name}` is not configured"))
            .hint("add --qmp ADDRESS, or configure [domains.NAME]")
    })?;
    let monitor: MonitorAddress = monitor.parse()?;
    let tls_certificates = configured.and_then(|domain| domain.tls_certificates.clone());
    let options = MonitorOptions { tls_certificates, ..MonitorOptions::default() };
    let agent = configured.and_then(|domain| domain.agent.as_ref());
    let scope = Scope {
        repository: open::reader(context).await?.config().repository.to_string(),
        domain: name.clone(),
        scratch: scratch_dir(configured, scratch.as_deref()),
        nbd: configured.map_or(Ok(NbdListen::Unix), listen)?,
        agent: agent.map(|address| address.parse()).transpose()?,
    };
    let CleanupReport { removed, foreign, kept, continued, thawed, .. } =
        qemu::cleanup(&monitor, &options, &scope).await?;
    context.output.report(&Cleaned { domain: name, removed, foreign, kept, continued, thawed })
}

impl Report for KnownList {
    fn human(&self) -> String {
        if self.0.is_empty() {
            return "no domains\n".to_owned();
        }
        let rows = self.0.iter().map(|known| {
            vec![
                known.domain.clone(),
                known.backups.to_string(),
                known.latest.map_or_else(|| "-".to_owned(), human::time),
                human::size(known.stored_bytes),
                known.qmp.clone().unwrap_or_else(|| "not configured".to_owned()),
            ]
        });
        human::table(&["domain", "backups", "latest", "stored", "monitor"], &[1, 3], rows)
    }
}

impl Report for Shown {
    fn human(&self) -> String {
        let mut facts = vec![("domain", self.domain.clone())];
        if let Some(configured) = &self.configuration {
            facts.push(("monitor", configured.qmp.clone()));
            facts.extend(configured.agent.clone().map(|agent| ("agent", agent)));
            facts.push(("scratch", scratch_dir(Some(configured), None).display().to_string()));
            facts.extend(configured.nbd_listen.clone().map(|listen| ("exports", listen)));
            let disks =
                configured.disks.iter().map(|(name, selector)| ("disk", format!("{name} = {selector}")));
            facts.extend(disks);
        } else {
            facts.push(("monitor", "not configured".to_owned()));
        }
        facts.push(("backups", self.backups.to_string()));
        facts.push(("stored", human::size(self.stored_bytes)));
        facts.extend(self.latest.as_ref().map(|latest| ("latest", human::time(latest.created))));
        human::facts(&facts)
    }
}

impl Report for Cleaned {
    fn human(&self) -> String {
        let mut text = String::new();
        for (what, things) in
            [("removed", &self.removed), ("left alone, not ours", &self.foreign), ("kept", &self.kept)]
        {
            text.extend(things.iter().map(|thing| format!("{what}: {thing}\n")));
        }
        if self.continued {
            text += "the guest had been stopped by a full scratch file; it runs again\n";
        }
        if self.thawed {
            text += "the guest's file systems had been left frozen; they are thawed\n";
        }
        if text.is_empty() { format!("{}: nothing to clean up\n", self.domain) } else { text }
    }
}
