//! `doctor`: everything that is configured, looked at.
//!
//! What cannot even be tried (a wrong address, a missing folder) is a finding like any other.

use std::sync::Arc;

use aquifer_engine::clock::System;
use aquifer_engine::nbd::Uri;
use aquifer_engine::qemu::{MonitorAddress, MonitorOptions};
use aquifer_engine::repository::Access;
use aquifer_engine::{DoctorRequest, Error, Finding, Health, Kind, Result};
use serde::Serialize;

use super::open;
use super::source::scratch_dir;
use crate::args::values::Named;
use crate::context::{Chosen, Context};
use crate::exit::Exit;
use crate::output::Report;

/// Runs `doctor`.
///
/// # Errors
/// Only what keeps it from printing; whatever is wrong otherwise is a finding, and the exit code its kind.
pub(crate) async fn run(context: &Context, exports: Vec<Named>) -> Result<Exit> {
    let mut request = DoctorRequest {
        world: Arc::new(System::new()),
        stores: Vec::new(),
        monitors: Vec::new(),
        exports: Vec::new(),
        scratch: Vec::new(),
        work: context.state_dir()?,
    };
    let mut findings = Vec::new();
    repositories(context, &mut request, &mut findings).await;
    domains(context, &mut request, &mut findings);
    for named in exports {
        match named.value.parse::<Uri>() {
            Ok(uri) => request.exports.push((named.name, uri)),
            Err(error) => findings.push(bad("export", &named.name, &error.into())),
        }
    }
    findings.extend(aquifer_engine::doctor(&request).await);
    let exit = findings
        .iter()
        .filter(|finding| finding.health == Health::Bad)
        .map(|finding| Exit::Failed(finding.kind.unwrap_or(Kind::Internal)))
        .fold(Exit::Done, Exit::and);
    context.output.report(&Findings(findings))?;
    Ok(exit)
}

/// Opens the named repository and every configured one, and hands on the stores of their logs.
async fn repositories(context: &Context, request: &mut DoctorRequest, findings: &mut Vec<Finding>) {
    let mut all: Vec<(String, Result<Chosen>)> = Vec::new();
    if context.names_a_repository() {
        let name = context.repository().map_or_else(|_| "default".to_owned(), |chosen| chosen.name);
        all.push((name, context.repository()));
    }
    for (name, configured) in &context.config.repositories {
        if all.iter().all(|(other, _)| other != name) {
            all.push((name.clone(), context.configured(name, configured)));
        }
    }
    for (name, chosen) in all {
        let opened = match &chosen {
            Ok(chosen) => Box::pin(open::chosen(context, chosen, Access::Read)).await,
            Err(error) => Err(Error::new(error.kind(), error.message())),
        };
        match opened {
            Ok(repository) => {
                let info = repository.info();
                let text = format!("{}, {} backups", info.config.repository, info.backups);
                findings.push(Finding { text, ..good("repository", &name) });
                let stores = repository.stores();
                request.stores.push((name, Arc::clone(stores.log.as_ref().unwrap_or(&stores.packs))));
            }
            Err(error) => findings.push(bad("repository", &name, &error)),
        }
    }
}

fn domains(context: &Context, request: &mut DoctorRequest, findings: &mut Vec<Finding>) {
    for (name, domain) in &context.config.domains {
        let address = match domain.qmp.parse::<MonitorAddress>() {
            Ok(address) => address,
            Err(error) => {
                findings.push(bad("monitor", name, &error.into()));
                continue;
            }
        };
        if matches!(address, MonitorAddress::Unix(_)) {
            let scratch = scratch_dir(Some(domain), None);
            if !request.scratch.contains(&scratch) {
                request.scratch.push(scratch);
            }
        }
        let options =
            MonitorOptions { tls_certificates: domain.tls_certificates.clone(), ..MonitorOptions::default() };
        request.monitors.push((name.clone(), address, options));
    }
}

fn good(check: &'static str, object: &str) -> Finding {
    let (object, text) = (object.to_owned(), String::new());
    Finding { check, object, health: Health::Good, text, hint: None, kind: None }
}

fn bad(check: &'static str, object: &str, error: &Error) -> Finding {
    Finding {
        health: Health::Bad,
        text: error.message().to_owned(),
        hint: error.hint_text().map(str::to_owned),
        kind: Some(error.kind()),
        ..good(check, object)
    }
}

#[derive(Serialize)]
struct Findings(Vec<Finding>);

impl Report for Findings {
    fn human(&self) -> String {
        let mut text = String::new();
        for finding in &self.0 {
            let health = match finding.health {
                Health::Good => "good",
                Health::Warning => "look",
                Health::Bad => "BAD ",
            };
            text += &format!("{health}  {} {}: {}\n", finding.check, finding.object, finding.text);
            if let Some(hint) = &finding.hint {
                text += &format!("      hint: {hint}\n");
            }
        }
        let count = |health| self.0.iter().filter(|finding| finding.health == health).count();
        let (bad, look) = (count(Health::Bad), count(Health::Warning));
        text + &match (bad, look) {
            (0, 0) => format!("all {} checks are good\n", self.0.len()),
            _ => format!("{bad} bad, {look} to look at, of {} checks\n", self.0.len()),
        }
    }
}
