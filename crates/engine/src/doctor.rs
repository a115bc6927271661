//! The doctor: does everything that a backup and a restore stand on work here and now?
//!
//! Each check ends in a [`Finding`], good or bad, with the way out; nothing stops at the first bad one, and
//! nothing of anybody's is changed. Its self-test is a real backup and a real restore of an image made for it.

use std::path::PathBuf;
use std::sync::Arc;

use aquifer_nbd::{Client, ClientOptions, Uri};
use aquifer_qemu::{Monitor, MonitorAddress, MonitorOptions};
use aquifer_repository::World;
use aquifer_repository::store::{ObjectStore, probe};
use serde::Serialize;

use crate::Running;
use crate::error::{Error, Kind, Result};
use crate::filter_test::{FilterVerdict, test_filter};

mod folder;
mod peer;
mod self_test;

use folder::Folder;

/// What to look at.
#[derive(Clone)]
pub struct DoctorRequest {
    /// Clock and randomness.
    pub world: Arc<dyn World>,
    /// Stores by repository name, each of which must hold a log.
    pub stores: Vec<(String, Arc<dyn ObjectStore>)>,
    /// Monitors by domain name.
    pub monitors: Vec<(String, MonitorAddress, MonitorOptions)>,
    /// Exports by name, which are read twice and compared.
    pub exports: Vec<(String, Uri)>,
    /// Folders of scratch files on this machine.
    pub scratch: Vec<PathBuf>,
    /// Folder in which the self-tests make and remove folders of their own; verdicts on QEMU are kept in it.
    pub work: PathBuf,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Good,
    /// Works, and somebody should look at it.
    Warning,
    /// Does not work.
    Bad,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// What was looked at.
    pub object: String,
    /// How it ended.
    pub health: Health,
    /// What was found, with the numbers.
    pub text: String,
    /// The way out, if there is something to do.
    pub hint: Option<String>,
    /// Kind of the failure, if it is one.
    pub kind: Option<Kind>,
}

impl Finding {
    fn good(check: &'static str, object: impl Into<String>, text: impl Into<String>) -> Self {
        let (object, text) = (object.into(), text.into());
        Finding { check, object, health: Health::Good, text, hint: None, kind: None }
    }

    fn warning(check: &'static str, object: impl Into<String>, text: impl Into<String>, hint: &str) -> Self {
        let health = Health::Warning;
        Finding { health, hint: Some(hint.to_owned()), ..Finding::good(check, object, text) }
    }

    fn of(check: &'static str, object: impl Into<String>, result: Result<String>) -> Self {
        match result {
            Ok(text) => Finding::good(check, object, text),
            Err(error) => Finding {
                health: Health::Bad,
                hint: error.hint_text().map(str::to_owned),
                kind: Some(error.kind()),
                ..Finding::good(check, object, error.message())
            },
        }
    }
}

/// Looks at everything that is asked for, one after the other.
pub fn doctor(request: &DoctorRequest) -> Running<'_, Vec<Finding>> {
    Box::pin(run(request))
}

async fn run(request: &DoctorRequest) -> Vec<Finding> {
    let mut findings = vec![versions()];
    for (tool, package) in [("qemu-nbd", "qemu-utils"), ("qemu-img", "qemu-utils")] {
        findings.push(tool_version(tool, package).await);
    }
    for (name, store) in &request.stores {
        findings.push(Finding::of("store", name.clone(), race(store, &*request.world).await));
    }
    for (domain, address, options) in &request.monitors {
        findings.push(Finding::of("monitor", domain.clone(), Box::pin(monitor(address, options)).await));
    }
    for folder in &request.scratch {
        findings.push(scratch(folder));
    }
    for (name, uri) in &request.exports {
        findings.push(Finding::of("export", name.clone(), Box::pin(cross_check(uri)).await));
    }
    findings.extend(Box::pin(self_test::run(request)).await);
    findings.push(Box::pin(filter(request)).await);
    findings
}

/// Tests the filter of this host's QEMU. One that fails is no fault of the host: only `--method filter` is refused.
async fn filter(request: &DoctorRequest) -> Finding {
    const CHECK: &str = "filter";
    const DAEMON: &str = "qemu-storage-daemon";
    let folder = Folder::new(request);
    let made = std::fs::create_dir_all(folder.path());
    let tested = match made {
        Ok(()) => test_filter(folder.path(), &request.work).await,
        Err(error) => Err(Error::caused(Kind::Unavailable, error).about(folder.path().display())),
    };
    match tested {
        Ok(Some((build, verdict))) => {
            let FilterVerdict { writes, read_bytes, wrong_blocks } = verdict;
            let text =
                format!("{wrong_blocks} wrong blocks in {read_bytes} bytes read beside {writes} writes");
            match verdict.passed() {
                true => Finding::good(CHECK, format!("QEMU {build}"), text),
                false => {
                    let hint =
                        "backups by the classic method are not concerned; --method filter is refused here";
                    Finding::warning(CHECK, format!("QEMU {build}"), text, hint)
                }
            }
        }
        Ok(None) => {
            let hint = "only needed for --method filter: apt-get install qemu-system-common or qemu-utils";
            Finding::warning(CHECK, DAEMON, "is not installed", hint)
        }
        Err(error) => Finding::warning(
            CHECK,
            DAEMON,
            error.message(),
            "--method filter is refused until this test ends",
        ),
    }
}

fn versions() -> Finding {
    let system = rustix::system::uname();
    let kernel = system.release().to_string_lossy();
    Finding::good("version", "aquifer", format!("{}, Linux {kernel}", env!("CARGO_PKG_VERSION")))
}

async fn tool_version(tool: &'static str, package: &str) -> Finding {
    match tokio::process::Command::new(tool).arg("--version").output().await {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::good("version", tool, text.lines().next().unwrap_or_default())
        }
        Ok(output) => {
            Finding::warning("version", tool, format!("ended with {}", output.status), "reinstall it")
        }
        Err(error) => {
            let hint = format!("needed to back up images of stopped domains: apt-get install {package}");
            Finding::warning("version", tool, format!("cannot be run: {error}"), &hint)
        }
    }
}

/// Proves that the store lets exactly one of several racing creates win.
async fn race(store: &Arc<dyn ObjectStore>, world: &dyn World) -> Result<String> {
    let raced = probe::race(store, &|out: &mut [u8]| world.random(out)).await;
    let report = raced.map_err(|error| Error::from(aquifer_repository::Error::from(error)))?;
    if !report.passed() {
        let text = format!(
            "{}: winners of each round were {}, exactly 1 must win",
            store.describe(),
            report.winners()
        );
        return Err(Error::new(Kind::Unsupported, text)
            .hint("it may hold packs, but the log needs a store of its own: see --log"));
    }
    Ok(format!("{}: of racing creates exactly one wins, in {} rounds", store.describe(), report.rounds.len()))
}

async fn monitor(address: &MonitorAddress, options: &MonitorOptions) -> Result<String> {
    let monitor = Monitor::connect(address, options).await?;
    monitor.capabilities().await?;
    let disks = aquifer_qemu::disk::list(&monitor).await?;
    let names: Vec<String> = disks
        .iter()
        .map(|disk| match disk.skip {
            None => format!("{} ({} bytes)", disk.name, disk.size_bytes),
            Some(reason) => format!("{} ({reason}, skipped)", disk.name),
        })
        .collect();
    Ok(format!("QEMU {}; disks: {}", monitor.version(), names.join(", ")))
}

/// Scratch files lie there while a backup runs, and after it only if it was killed with its guard.
fn scratch(folder: &std::path::Path) -> Finding {
    let object = folder.display().to_string();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            let error = Error::caused(Kind::NotFound, error).hint("make the folder, or configure another");
            return Finding::of("scratch", object, Err(error));
        }
    };
    let mut kept: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("aquifer-") && name.ends_with(".qcow2"))
        .collect();
    kept.sort();
    if kept.is_empty() {
        return Finding::good("scratch", object, "no scratch file is left");
    }
    let hint =
        "a running backup needs them; what a killed one left is removed by `aquifer domain cleanup NAME`";
    Finding::warning("scratch", object, format!("scratch files: {}", kept.join(", ")), hint)
}

/// Reads samples of an export with our client and with an independent one, and compares them.
async fn cross_check(uri: &Uri) -> Result<String> {
    let client = Client::connect(
        uri,
        &ClientOptions { connections: 1, connections_max: 1, ..ClientOptions::default() },
    )
    .await?;
    let compared = peer::compare(&client, uri).await;
    client.disconnect().await;
    compared
}
