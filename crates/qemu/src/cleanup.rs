//! Taking away what is ours, by its names and by what QEMU says it has now; remembering nothing.
//!
//! The same sweep ends a session, ends it for a killed Aquifer (the guard), and precedes every new session. It is
//! idempotent, so it may be killed at any step and be run again. The order is the point: exports go before jobs,
//! because an export whose job is gone answers from live data; a stopped guest goes on only when no job of ours is
//! left to stop it again; files go last.
//!
//! Invariant: what does not carry this repository's name is never touched, and is reported instead.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::address::{MonitorAddress, MonitorOptions};
use crate::agent::Agent;
use crate::commands::{
    BlockdevDel, Cont, ExportDel, Job, JobCancel, JobDismiss, Node, QueryBlock, QueryExports, QueryJobs,
    QueryNodes, QueryStatus,
};
use crate::error::{Error, Result};
use crate::filter;
use crate::host::Host;
use crate::monitor::Monitor;
use crate::names::{FAMILY, Names, session_of};
use crate::nbd_server::{self, Answer, NbdListen};
use crate::transport::millis;

/// How long a job or export may take to end once told to.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// How often a state that QEMU announces by no reliable event is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Whose things are meant: one repository's on one domain, and where they lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Repository id, 32 hex digits.
    pub repository: String,
    /// Name of the domain.
    pub domain: String,
    /// Folder of the scratch files, on the machine of QEMU.
    pub scratch: PathBuf,
    /// Where the NBD server listens.
    pub nbd: NbdListen,
    /// The guest agent, if the domain has one: so that a guest which a killed run left frozen is thawed.
    pub agent: Option<MonitorAddress>,
}

/// What a clean-up found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CleanupReport {
    /// Ours, and gone now.
    pub removed: Vec<String>,
    /// Not ours, and left alone.
    pub foreign: Vec<String>,
    /// Ours, and kept: scratch files beside a QEMU that is reached by TLS alone.
    pub kept: Vec<String>,
    /// Whether the guest had stopped for our scratch, or was paused by us, and was told to go on.
    pub continued: bool,
    /// Whether a guest that a killed run had left frozen was thawed.
    pub thawed: bool,
}

/// Why a sweep is made. That of one session, which [`session_of`] its jobs and exports tells, leaves everything alone when
/// another one has taken its place: its process was taken for dead, and what is there is its successor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion<'a> {
    /// Something of ours may have been left by a run that was killed: a frozen guest and an NBD server included.
    AfterCrash,
    /// A session lost its process or its connection.
    CutOff {
        /// The session.
        session: &'a str,
    },
    /// A session of this process ends.
    SessionEnd {
        /// The session.
        session: &'a str,
        /// Whether it started the NBD server.
        server: bool,
    },
}

impl Occasion<'_> {
    fn session(&self) -> Option<&str> {
        match self {
            Occasion::AfterCrash => None,
            Occasion::CutOff { session } | Occasion::SessionEnd { session, .. } => Some(session),
        }
    }
}

impl Scope {
    pub(crate) fn names(&self) -> Result<Names> {
        Names::new(&self.repository, &self.domain)
    }
}

/// Removes what any earlier run of this repository left on a domain: exports, jobs, nodes, NBD server and scratch
/// files. A domain that does not run has only files. Bitmaps are left as they are.
///
/// # Errors
/// The monitor's; [`Error::Leftover`] when QEMU keeps something.
pub async fn cleanup(
    address: &MonitorAddress,
    options: &MonitorOptions,
    scope: &Scope,
) -> Result<CleanupReport> {
    connect_and_sweep(address, options, scope, Occasion::AfterCrash).await
}

/// Connects anew, and sweeps; where no QEMU is, only files are left.
pub(crate) async fn connect_and_sweep(
    address: &MonitorAddress,
    options: &MonitorOptions,
    scope: &Scope,
    occasion: Occasion<'_>,
) -> Result<CleanupReport> {
    let host = Arc::new(Host::of(address, options).await?);
    match Monitor::connect_on(address, options, Arc::clone(&host)).await {
        Ok(monitor) => sweep(&monitor, options, scope, occasion).await,
        Err(Error::NoSuchSocket { .. } | Error::NotListening { .. }) => remove_after_qemu(&host, scope).await,
        Err(error) => Err(error),
    }
}

/// What QEMU has now, by owner.
struct Inventory {
    exports: Vec<String>,
    jobs: Vec<Job>,
    nodes: Vec<String>,
    /// Bitmaps that mark filtered disks and a paused guest.
    marks: Vec<String>,
    /// Every node, everybody's.
    all: Vec<Node>,
    foreign_exports: Vec<String>,
    foreign: Vec<String>,
}

impl Inventory {
    async fn take(monitor: &Monitor, names: &Names) -> Result<Self> {
        let (exports, other): (Vec<_>, Vec<_>) = monitor
            .execute(QueryExports(json!({})))
            .await?
            .into_iter()
            .partition(|export| names.owns(&export.id));
        let (jobs, other_jobs): (Vec<_>, Vec<_>) =
            monitor.execute(QueryJobs(json!({}))).await?.into_iter().partition(|job| names.owns(&job.id));
        let all = monitor.execute(QueryNodes(json!({"flat": true}))).await?;
        let (mut nodes, other_nodes): (Vec<_>, Vec<_>) = all
            .iter()
            .filter_map(|node| node.node_name.clone())
            .filter(|node| node.starts_with(FAMILY))
            .partition(|node| names.owns(node));
        // Filters (`…c0`) before the overlays that they copy to (`…d0`), and these before the files under them (`…f0`).
        nodes.sort();
        let foreign = other
            .iter()
            .map(|export| format!("{} export {}", export.kind, export.id))
            .chain(other_jobs.iter().map(|job| format!("{} job {} ({})", job.kind, job.id, job.status)))
            .chain(other_nodes.iter().map(|node| format!("node {node} of another repository")))
            .collect();
        Ok(Self {
            exports: exports.into_iter().map(|export| export.id).collect(),
            jobs,
            nodes,
            marks: filter::marks(names, &all).into_iter().map(|(_, mark)| mark.to_owned()).collect(),
            all,
            foreign_exports: other.into_iter().filter(|e| e.kind == "nbd").map(|e| e.id).collect(),
            foreign,
        })
    }

    /// A job or export of another session of ours.
    fn successor_of(&self, session: &str) -> Option<&str> {
        let jobs = self.jobs.iter().filter(|job| job.kind == "backup").map(|job| &job.id);
        jobs.chain(&self.exports).map(String::as_str).find(|id| session_of(id) != session)
    }

    fn names(&self) -> Vec<String> {
        let jobs = self.jobs.iter().map(|job| format!("job {}", job.id));
        let exports = self.exports.iter().map(|id| format!("export {id}"));
        let nodes = self.nodes.iter().map(|name| format!("node {name}"));
        let marks = self.marks.iter().map(|name| format!("bitmap {name}"));
        exports.chain(jobs).chain(nodes).chain(marks).collect()
    }
}

/// Takes away everything of the scope that QEMU has, then the files.
pub(crate) async fn sweep(
    monitor: &Monitor,
    options: &MonitorOptions,
    scope: &Scope,
    occasion: Occasion<'_>,
) -> Result<CleanupReport> {
    let names = scope.names()?;
    let found = Inventory::take(monitor, &names).await?;
    if let Some(successor) = occasion.session().and_then(|session| found.successor_of(session)) {
        tracing::warn!(successor, "another session has taken the place of this one, and is left alone");
        return Ok(CleanupReport { foreign: found.names(), ..CleanupReport::default() });
    }
    let went_on = filter::let_go_on(monitor, &names, &found.all).await?;
    let mut report =
        CleanupReport { removed: found.names(), foreign: found.foreign.clone(), ..CleanupReport::default() };
    // A guest that stands still loses no time to an agent that is slow to answer, nor the other way round. The
    // nodes stay until both are done: they are the sign that there is something to thaw.
    let thawing = async {
        let ask = !matches!(occasion, Occasion::SessionEnd { .. }) && !found.nodes.is_empty();
        ask && thaw(monitor, options, scope).await
    };
    let (thawed, continued) = tokio::join!(thawing, end_work(monitor, &found));
    report.thawed = thawed;
    report.continued = continued? || went_on;
    let (shown, rest): (Vec<_>, Vec<_>) = found.nodes.iter().partition(|node| names.is_access(node));
    for node in shown {
        remove_node(monitor, node).await?;
    }
    filter::take_out(monitor, &names, &found.all).await?;
    for node in rest {
        remove_node(monitor, node).await?;
    }
    filter::unmark(monitor, &names, &found.all).await?;
    let stop_server = match occasion {
        Occasion::AfterCrash | Occasion::CutOff { .. } => server_is_ours(monitor, scope, &found).await?,
        Occasion::SessionEnd { server, .. } => server && found.foreign_exports.is_empty(),
    };
    if stop_server && nbd_server::stop(monitor, scope).await? {
        report.removed.push("NBD server".to_owned());
    }
    if !found.jobs.is_empty() && !report.continued {
        // A write that failed just before its job ended stops the guest a moment later.
        report.continued = go_on(monitor).await?;
    }
    let left = Inventory::take(monitor, &names).await?.names();
    if !left.is_empty() {
        return Err(Error::Leftover { names: left });
    }
    remove_files(monitor.host(), scope, &mut report).await?;
    Ok(report)
}

/// Exports before jobs; then lets a guest go on that had stopped for us, which it then may for good.
async fn end_work(monitor: &Monitor, found: &Inventory) -> Result<bool> {
    for export in &found.exports {
        end_export(monitor, export).await?;
    }
    for job in &found.jobs {
        cancel_job(monitor, &job.id).await?;
    }
    let continued = !found.jobs.is_empty() && go_on(monitor).await?;
    // Until here the jobs are the sign, should this be killed, that the guest may have stopped for us.
    for job in &found.jobs {
        forget_job(monitor, &job.id).await?;
    }
    Ok(continued)
}

/// What is left of a session whose QEMU has ended: files.
async fn remove_after_qemu(host: &Host, scope: &Scope) -> Result<CleanupReport> {
    let mut report = CleanupReport::default();
    remove_files(host, scope, &mut report).await?;
    Ok(report)
}

/// Scratch files of the domain, and the socket of a server that is no more.
async fn remove_files(host: &Host, scope: &Scope, report: &mut CleanupReport) -> Result<()> {
    let names = scope.names()?;
    if matches!(host, Host::Unreachable) {
        report.kept.push(scope.scratch.join(names.scratch_prefix() + "*.qcow2").display().to_string());
        return Ok(());
    }
    for name in host.list(&scope.scratch, &names.scratch_prefix()).await? {
        let path = scope.scratch.join(&name);
        if names.owns_file(&name) && host.remove_file(&path).await? {
            report.removed.push(path.display().to_string());
        }
    }
    if scope.nbd == NbdListen::Unix {
        let socket = names.socket(&scope.scratch)?;
        let nobody = nbd_server::visit_socket(host, &socket).await == Answer::Nobody;
        if nobody && host.remove_file(&socket).await? {
            report.removed.push(socket.display().to_string());
        }
    }
    Ok(())
}

/// The server is ours if it answers where only ours does, and nobody else has an export on it. A TCP port is no such
/// sign by itself, so something of ours must also have been found.
async fn server_is_ours(monitor: &Monitor, scope: &Scope, found: &Inventory) -> Result<bool> {
    let sign = scope.nbd == NbdListen::Unix || !found.names().is_empty();
    Ok(sign && found.foreign_exports.is_empty() && nbd_server::visit(monitor, scope).await? != Answer::Nobody)
}

/// A run that was killed between freeze and thaw left its nodes as the sign of it; only then the agent is asked.
async fn thaw(monitor: &Monitor, options: &MonitorOptions, scope: &Scope) -> bool {
    let Some(address) = &scope.agent else { return false };
    let thawed = async {
        let mut agent = Agent::connect_beside(address, options, monitor.host()).await?;
        if !agent.is_frozen().await? {
            return Ok(false);
        }
        agent.thaw().await.map(|()| true)
    };
    thawed.await.unwrap_or_else(|error: Error| {
        tracing::warn!(%error, "cannot ask the guest agent whether the guest is still frozen");
        false
    })
}

async fn end_export(monitor: &Monitor, id: &str) -> Result<()> {
    let refused = monitor.execute(ExportDel(json!({"id": id, "mode": "hard"}))).await.err();
    if let Some(error @ (Error::MonitorClosed { .. } | Error::Deadline { .. })) = refused {
        return Err(error);
    }
    poll(id, || async {
        let exports = monitor.execute(QueryExports(json!({}))).await?;
        Ok((!exports.iter().any(|export| export.id == id)).then_some(()))
    })
    .await
}

async fn cancel_job(monitor: &Monitor, id: &str) -> Result<()> {
    match monitor.execute(JobCancel(json!({"id": id}))).await {
        // It ended by itself, or cannot be cancelled and ends soon: the wait below tells.
        Ok(_) | Err(Error::Refused { .. }) => wait_job(monitor, id).await.map(drop),
        Err(error) => Err(error),
    }
}

/// Waits until a job has concluded, or is gone (`None`).
pub(crate) async fn wait_job(monitor: &Monitor, id: &str) -> Result<Option<Job>> {
    poll(id, || async {
        let jobs = monitor.execute(QueryJobs(json!({}))).await?;
        match jobs.into_iter().find(|job| job.id == id) {
            None => Ok(Some(None)),
            Some(job) if job.status == "concluded" => Ok(Some(Some(job))),
            Some(_) => Ok(None),
        }
    })
    .await
}

/// Dismisses a concluded job; one that is gone already is fine.
pub(crate) async fn forget_job(monitor: &Monitor, id: &str) -> Result<()> {
    match monitor.execute(JobDismiss(json!({"id": id}))).await {
        Ok(_) | Err(Error::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A guest that stopped while a job of ours ran, with a drive that reports an error, stopped for our scratch: QEMU
/// repeats the failed write on `cont`. Had the drive itself failed, the guest stops again at once, as before.
async fn go_on(monitor: &Monitor) -> Result<bool> {
    if !monitor.capabilities().await?.has_command("query-status") {
        return Ok(false);
    }
    if monitor.execute(QueryStatus(json!({}))).await?.status != "io-error" {
        return Ok(false);
    }
    let drives = monitor.execute(QueryBlock(json!({}))).await?;
    let failed = |status: &str| status == "nospace" || status == "failed";
    if !drives.iter().any(|drive| drive.io_status.as_deref().is_some_and(failed)) {
        return Ok(false);
    }
    monitor.execute(Cont(json!({}))).await?;
    Ok(true)
}

/// An export that has just gone may hold its node for a moment; the refusal is repeated until it lets go.
async fn remove_node(monitor: &Monitor, node: &str) -> Result<()> {
    poll(node, || async {
        match monitor.execute(BlockdevDel(json!({"node-name": node}))).await {
            Ok(_) => Ok(Some(())),
            Err(error @ Error::Refused { .. }) => {
                let gone = !node_names(monitor).await?.iter().any(|name| name == node);
                tracing::debug!(%error, node, gone, "node not removed");
                Ok(gone.then_some(()))
            }
            Err(error) => Err(error),
        }
    })
    .await
}

pub(crate) async fn node_names(monitor: &Monitor) -> Result<Vec<String>> {
    let nodes = monitor.execute(QueryNodes(json!({"flat": true}))).await?;
    Ok(nodes.into_iter().filter_map(|node| node.node_name).collect())
}

/// Asks until there is an answer, at most [`END_DEADLINE`] long.
async fn poll<T, F: Future<Output = Result<Option<T>>>>(name: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let end = Instant::now() + END_DEADLINE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            return Err(Error::Stuck { name: name.to_owned(), deadline_ms: millis(END_DEADLINE) });
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Refuses when somebody else is at work on this QEMU in a way that a backup would disturb, or be disturbed by.
pub(crate) async fn refuse_foreign(monitor: &Monitor, names: &Names) -> Result<()> {
    let others = |name: &str| name.starts_with(FAMILY) && !names.owns(name);
    let repository = |name: &str| name.get(FAMILY.len()..FAMILY.len() + 8).unwrap_or_default().to_owned();
    if let Some(name) = node_names(monitor).await?.into_iter().find(|name| others(name)) {
        return Err(Error::OtherRepository { repository: repository(&name), name });
    }
    for job in monitor.execute(QueryJobs(json!({}))).await? {
        let moves_blocks = ["backup", "mirror", "commit", "stream"].contains(&job.kind.as_str());
        if moves_blocks && job.status != "concluded" && !names.owns(&job.id) {
            return Err(Error::ForeignJob { id: job.id, kind: job.kind, status: job.status });
        }
    }
    let exports = monitor.execute(QueryExports(json!({}))).await?;
    let foreign: Vec<String> =
        exports.into_iter().filter(|e| e.kind == "nbd" && !names.owns(&e.id)).map(|e| e.id).collect();
    if foreign.is_empty() { Ok(()) } else { Err(Error::ForeignServer { exports: foreign }) }
}
