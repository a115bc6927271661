//! `domain`: what is configured, what is stored of it, and the clean-up of what a crashed backup left in QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aquifer_api::{BackupApi, TargetFlags, UndefineFlags};
use aquifer_engine::qemu::{self, CleanupReport, MonitorAddress, MonitorOptions, NbdListen, Scope};
use aquifer_engine::repository::format::log::{DefaultTargets, DefinedDomain};
use aquifer_engine::repository::format::record::DefinitionKind;
use aquifer_engine::{Error, Kind, Result};
use aquifer_service::DomainDefinition;
use jiff::Timestamp;
use serde::Serialize;

use super::list::{Listed, listed};
use super::service::told;
use super::source::{listen, scratch_dir};
use super::unmanaged::read_text;
use super::{open, service};
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
        DomainCommand::Define { file } => define(context, &file).await?,
        DomainCommand::Undefine { name, backups } => undefine(context, name, backups).await?,
        DomainCommand::SetDefaultTarget { name, xml, clear: _, force } => {
            set_default_target(context, name, xml.as_deref(), force).await?;
        }
        DomainCommand::Cleanup { name, qmp, scratch } => cleanup(context, name, qmp, scratch).await?,
    }
    Ok(Exit::Done)
}

/// One domain in short.
#[derive(Debug, PartialEq, Serialize)]
struct Known {
    domain: String,
    configured: bool,
    defined: bool,
    qmp: Option<String>,
    backups: usize,
    latest: Option<Timestamp>,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct KnownList(Vec<Known>);

async fn list(context: &Context) -> Result<()> {
    let Stored { backups, defined } = stored(context).await?;
    let names: BTreeSet<&String> =
        context.config.domains.keys().chain(backups.keys()).chain(defined.keys()).collect();
    let known = names.into_iter().map(|name| {
        let configured = context.config.domains.get(name);
        known(name, configured, defined.contains_key(name), backups.get(name))
    });
    context.output.report(&KnownList(known.collect()))
}

fn known(
    name: &str,
    configured: Option<&DomainConfig>,
    defined: bool,
    backups: Option<&Vec<Listed>>,
) -> Known {
    let backups = backups.map_or(&[][..], Vec::as_slice);
    Known {
        domain: name.to_owned(),
        configured: configured.is_some(),
        defined,
        qmp: configured.map(|domain| domain.qmp.clone()),
        backups: backups.len(),
        latest: backups.first().map(|backup| backup.created),
        stored_bytes: backups.iter().map(|backup| backup.stored_bytes).fold(0, u64::saturating_add),
    }
}

/// What the repository knows of domains; nothing when no repository is named.
#[derive(Default)]
struct Stored {
    /// The backups of each, newest first.
    backups: BTreeMap<String, Vec<Listed>>,
    /// Those that are defined.
    defined: BTreeMap<String, DefinedDomain>,
}

async fn stored(context: &Context) -> Result<Stored> {
    let mut stored = Stored::default();
    if context.names_a_repository() {
        let repository = open::reader(context).await?;
        for listed in listed(&repository)? {
            stored.backups.entry(listed.domain.clone()).or_default().push(listed);
        }
        stored.defined =
            repository.domains().into_iter().map(|domain| (domain.name.clone(), domain)).collect();
    }
    Ok(stored)
}

/// How a domain is defined.
#[derive(Serialize)]
struct Defined {
    uuid: Option<uuid::Uuid>,
    kind: Option<DefinitionKind>,
    bytes: usize,
    targets: DefaultTargets,
}

/// One domain in detail.
#[derive(Serialize)]
struct Shown {
    domain: String,
    configuration: Option<DomainConfig>,
    defined: Option<Defined>,
    backups: usize,
    latest: Option<Listed>,
    stored_bytes: u64,
}

async fn show(context: &Context, name: String) -> Result<()> {
    let configuration = context.config.domains.get(&name).cloned();
    let mut stored = stored(context).await?;
    let backups = stored.backups.remove(&name).unwrap_or_default();
    let defined = stored.defined.remove(&name).map(|domain| Defined {
        uuid: domain.uuid,
        kind: domain.definition.as_ref().map(|definition| definition.kind),
        bytes: domain.definition.map_or(0, |definition| definition.bytes.len()),
        targets: domain.targets,
    });
    if configuration.is_none() && defined.is_none() && backups.is_empty() {
        return Err(Error::new(
            Kind::NotFound,
            format!("domain `{name}` is neither configured nor defined nor backed up"),
        )
        .hint("`aquifer domain list` shows those that are known")
        .with("domain", name));
    }
    let Known { backups: count, stored_bytes, .. } =
        known(&name, configuration.as_ref(), defined.is_some(), Some(&backups));
    let latest = backups.into_iter().next();
    context.output.report(&Shown {
        domain: name,
        configuration,
        defined,
        backups: count,
        latest,
        stored_bytes,
    })
}

/// A change of what is known of a domain.
#[derive(Serialize)]
struct Changed {
    domain: String,
    change: &'static str,
}

async fn define(context: &Context, file: &Path) -> Result<()> {
    let text = read_text(file).await?;
    let definition = told(DomainDefinition::read(text.into_bytes()))?;
    let service = service::over(context, open::writing_job(context, None).await?)?;
    told(service.define(&definition).await)?;
    context.output.report(&Changed { domain: definition.name, change: "defined" })
}

async fn undefine(context: &Context, name: String, backups: bool) -> Result<()> {
    let service = service::over(context, open::writing_job(context, None).await?)?;
    let flags = if backups { UndefineFlags::BACKUP } else { UndefineFlags::NONE };
    told(service.undefine(&name, flags).await)?;
    context.output.report(&Changed { domain: name, change: "undefined" })
}

async fn set_default_target(context: &Context, name: String, xml: Option<&Path>, force: bool) -> Result<()> {
    let xml = match xml {
        Some(file) => Some(read_text(file).await?),
        None => None,
    };
    let flags = if force { TargetFlags::CONFIG | TargetFlags::FORCE } else { TargetFlags::CONFIG };
    let service = service::over(context, open::writing_job(context, None).await?)?;
    told(service.set_default_target(&name, xml.as_deref(), flags).await)?;
    let change = if xml.is_some() { "default target set" } else { "default target cleared" };
    context.output.report(&Changed { domain: name, change })
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
        if let Some(defined) = &self.defined {
            let kind = match defined.kind {
                Some(DefinitionKind::Xml) => "by libvirt's XML",
                Some(DefinitionKind::Json) => "by JSON",
                Some(DefinitionKind::CommandLine) => "by QEMU's command line",
                None => "without a definition of its machine",
            };
            facts.push(("defined", format!("{kind}, {} bytes", defined.bytes)));
            facts.extend(defined.uuid.map(|uuid| ("uuid", uuid.to_string())));
            facts.extend(defined.targets.backup.as_ref().map(|target| ("default target", target.clone())));
        }
        facts.push(("backups", self.backups.to_string()));
        facts.push(("stored", human::size(self.stored_bytes)));
        facts.extend(self.latest.as_ref().map(|latest| ("latest", human::time(latest.created))));
        human::facts(&facts)
    }
}

impl Report for Changed {
    fn human(&self) -> String {
        format!("domain {}: {}\n", self.domain, self.change)
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
