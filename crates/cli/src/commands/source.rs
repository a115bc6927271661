//! A running domain as a source: what is typed and what is configured, put together.
//!
//! Not here: which of several kinds of source a backup has (`backup.rs`).

use std::path::{Path, PathBuf};

use aquifer_engine::qemu::{
    DiskChoice, DiskName, GuardCommand, MonitorAddress, MonitorOptions, NbdListen, Quiesce,
};
use aquifer_engine::{Error, FilterVerdicts, Kind, QmpSource, Result};

use crate::args::jobs::QuiesceMode;
use crate::config::DomainConfig;

/// What was typed of how a domain is reached and frozen; the rest is configured.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Typed<'a> {
    /// The guest agent.
    pub(crate) agent: Option<&'a str>,
    /// What to do about the guest's file systems.
    pub(crate) quiesce: Option<QuiesceMode>,
    /// Folder of the scratch files.
    pub(crate) scratch: Option<&'a Path>,
    /// Most bytes that they may take.
    pub(crate) scratch_max_bytes: Option<u64>,
    /// Only these disks.
    pub(crate) disks: &'a [String],
}

/// A running domain as the engine is told of it.
///
/// # Errors
/// `Invalid` for an address or a combination that cannot work.
pub(crate) fn qmp_source(
    configured: Option<&DomainConfig>,
    typed: &Typed<'_>,
    monitor: MonitorAddress,
    filter: Option<FilterVerdicts>,
) -> Result<QmpSource> {
    let agent = typed.agent.or_else(|| configured?.agent.as_deref());
    let agent = agent.map(|address| address.parse::<MonitorAddress>()).transpose()?;
    let quiesce = typed.quiesce.or_else(|| configured?.quiesce);
    let tls_certificates = configured.and_then(|domain| domain.tls_certificates.clone());
    let names = configured.map_or_else(Vec::new, |domain| {
        let name = |(name, selector): (&String, &String)| DiskName {
            name: name.clone(),
            selector: selector.clone(),
        };
        domain.disks.iter().map(name).collect()
    });
    Ok(QmpSource {
        monitor,
        monitor_options: MonitorOptions { tls_certificates, ..MonitorOptions::default() },
        disks: DiskChoice { names, only: typed.disks.to_vec() },
        scratch: scratch_dir(configured, typed.scratch),
        scratch_max_bytes: typed.scratch_max_bytes.or_else(|| configured?.scratch_max.map(|size| size.0)),
        listen: configured.map_or(Ok(NbdListen::Unix), listen)?,
        quiesce: quiesce_mode(quiesce, agent.is_some())?,
        filter,
        agent,
        guard: Some(guard_command()?),
    })
}

/// Where scratch files lie on the hypervisor: what was typed, what is configured, else `/var/tmp`.
pub(crate) fn scratch_dir(configured: Option<&DomainConfig>, typed: Option<&Path>) -> PathBuf {
    let configured = configured.and_then(|domain| domain.scratch.as_deref());
    typed.or(configured).unwrap_or(Path::new("/var/tmp")).to_owned()
}

fn quiesce_mode(wanted: Option<QuiesceMode>, has_agent: bool) -> Result<Quiesce> {
    match (wanted, has_agent) {
        (None | Some(QuiesceMode::Off), false) | (Some(QuiesceMode::Off), true) => Ok(Quiesce::Off),
        (None | Some(QuiesceMode::Try), true) => Ok(Quiesce::Try),
        (Some(QuiesceMode::Require), true) => Ok(Quiesce::Require),
        (Some(QuiesceMode::Try | QuiesceMode::Require), false) => Err(Error::new(
            Kind::Invalid,
            "freezing the guest's file systems needs its agent, and no agent's address is known",
        )
        .hint("add --agent ADDRESS, set `agent` in the configuration, or use --quiesce off")),
    }
}

/// Where a configured domain's QEMU serves its disks: `tls:ADDRESS:PORT`, or a unix socket without the key.
///
/// # Errors
/// `Invalid` when the address is not of that form or its TLS objects are missing.
pub(crate) fn listen(domain: &DomainConfig) -> Result<NbdListen> {
    let Some(text) = &domain.nbd_listen else { return Ok(NbdListen::Unix) };
    let wrong = |what: &str| {
        Error::new(Kind::Invalid, format!("nbd_listen = \"{text}\": {what}"))
            .hint("write tls:ADDRESS:PORT, or leave the key out for a unix socket")
    };
    let rest = text.strip_prefix("tls:").ok_or_else(|| wrong("disks go over a network with TLS only"))?;
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let port = port.parse().map_err(|_| wrong("the port is not a number up to 65535"))?;
    let creds =
        domain.tls_creds.clone().ok_or_else(|| wrong("it needs tls_creds, the id of QEMU's object"))?;
    if domain.tls_certificates.is_none() {
        return Err(wrong("it needs tls_certificates, the folder of our own certificate"));
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(NbdListen::Tls { host, port, creds, authz: None })
}

fn guard_command() -> Result<GuardCommand> {
    let program = std::env::current_exe()
        .map_err(|error| Error::caused(Kind::Internal, error).about("the path of this program"))?;
    Ok(GuardCommand { program, args: vec!["guard".into()] })
}
