//! The backup API over the repository that is meant: how commands get it, and what it tells them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_engine::{FilterVerdicts, JobContext, QmpSource, Result};
use aquifer_service::{LEASE, Service, ServiceOptions, from_api, to_api};

use super::source::{Typed, qmp_source};
use crate::config::DomainConfig;
use crate::context::Context;

/// How a service is to be, where it is not as usual.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// The monitor of a domain that is not configured.
    pub(crate) qmp: Option<String>,
    /// For how long nobody may read an unmanaged backup.
    pub(crate) lease: Option<Duration>,
}

/// The API over an open repository.
///
/// # Errors
/// The journal's.
pub(crate) fn over(context: &Context, job: JobContext) -> Result<Service> {
    with(context, job, Wishes::default())
}

/// The same, with wishes.
///
/// # Errors
/// The journal's.
pub(crate) fn with(context: &Context, job: JobContext, wishes: Wishes) -> Result<Service> {
    let state_dir = context.state_dir()?;
    let domains = context.config.domains.clone();
    let options = ServiceOptions {
        context: job,
        store: context.repository()?.name,
        configured: domains.keys().cloned().collect(),
        filter: FilterVerdicts::load(&state_dir).ok(),
        lease: wishes.lease.unwrap_or(LEASE),
        source: Arc::new(move |domain: &str| source(&domains, domain, wishes.qmp.as_deref())),
        state_dir,
    };
    Service::new(options).map_err(|error| from_api(&error))
}

fn source(
    domains: &BTreeMap<String, DomainConfig>,
    domain: &str,
    qmp: Option<&str>,
) -> Result<Option<QmpSource>> {
    let configured = domains.get(domain);
    let Some(monitor) = qmp.or_else(|| configured.map(|domain| domain.qmp.as_str())) else { return Ok(None) };
    qmp_source(configured, &Typed::default(), monitor.parse()?, None).map(Some)
}

/// What the API said, as commands report errors.
///
/// # Errors
/// What it said.
pub(crate) fn told<T>(answer: aquifer_api::Result<T>) -> Result<T> {
    answer.map_err(|error| from_api(&error))
}

/// A backup that a person means, among those of the repository and the jobs of this host.
///
/// # Errors
/// `NotFound`, and `Invalid` for too few digits.
pub(crate) fn resolve(service: &Service, wanted: &str) -> Result<aquifer_api::Backup> {
    // A job is named by its whole uuid only: it is short-lived, and its name was printed.
    if let Ok(uuid) = wanted.parse() {
        return Ok(aquifer_api::Backup::new(uuid));
    }
    let found = service.repository().resolve(wanted);
    let found = found.map_err(|error| from_api(&to_api(&aquifer_engine::Error::from(error), "")))?;
    Ok(aquifer_api::Backup::new(found))
}
