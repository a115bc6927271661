//! A session: the time in which the exports of a domain's disks show one frozen instant.
//!
//! Opening goes through the steps of docs/QEMU.md, each undone when a later one fails. While the session is open a
//! watch listens; [`ExportSession::check`] must be asked after the last read and before anything is committed.
//! Invariant: an error of `open` leaves nothing of ours in QEMU, and a session that is dropped without
//! [`ExportSession::close`] is ended by its guard.

use std::future::Future;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::broadcast;

use crate::address::{MonitorAddress, MonitorOptions};
use crate::agent::Frozen;
use crate::cleanup::{CleanupReport, Occasion, Scope, refuse_foreign, sweep};
use crate::commands::ExportAdd;
use crate::disk::{self, Disk, DiskChoice, Selection};
use crate::error::{Error, Result};
use crate::guard::{Guard, GuardCommand, Plan};
use crate::monitor::{Event, Monitor};
use crate::names::{Names, percent_encoded};
use crate::nbd_server::{self, NbdListen, dial_authority};
use crate::scratch::{self, Place};
use crate::transaction::Transaction;
use crate::watch::{Lost, Watch, Watched};

/// Whether the guest's file systems are frozen around the instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quiesce {
    /// Never: the backup is as if the power had failed.
    #[default]
    Off,
    /// If the agent can; a warning says when it could not.
    Try,
    /// Or no backup.
    Require,
}

impl FromStr for Quiesce {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            "try" => Ok(Self::Try),
            "require" => Ok(Self::Require),
            _ => Err(Error::QuiesceChoice { text: text.to_owned() }),
        }
    }
}

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct SessionRequest {
    /// Monitor of the domain, one of Aquifer's own.
    pub monitor: MonitorAddress,
    /// How it is reached.
    pub options: MonitorOptions,
    /// Repository, domain and where things lie.
    pub scope: Scope,
    /// Uuid of the backup: part of job ids and export names.
    pub backup: String,
    /// Which disks.
    pub disks: DiskChoice,
    /// Most that all scratch files together may take, in bytes; without it the free space is the limit.
    pub scratch_max_bytes: Option<u64>,
    /// NBD connections that QEMU shall accept at once.
    pub max_connections: u32,
    /// Whether to freeze the guest's file systems.
    pub quiesce: Quiesce,
    /// The guard's program; without it a killed Aquifer leaves its session until the next run.
    pub guard: Option<GuardCommand>,
}

/// One disk, frozen and served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The disk.
    pub disk: Disk,
    /// NBD URI to read it from.
    pub uri: String,
    /// Name of the export, `<backup uuid>/<disk>`: a reconnect that finds it reads the same instant.
    pub export_name: String,
}

/// An open session.
#[derive(Debug)]
pub struct ExportSession {
    opened: Opened,
    watched: Watched,
    watch: Watch,
    guard: Option<Guard>,
}

#[derive(Debug)]
struct Opened {
    exports: Vec<Export>,
    skipped: Vec<Disk>,
    warnings: Vec<String>,
    instant: Instant,
    ids: Vec<String>,
    files: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Instant {
    at_ms: Option<u64>,
    freeze_ms: Option<u64>,
    quiesced: bool,
}

impl ExportSession {
    /// Freezes the chosen disks at one instant and exports them.
    ///
    /// # Errors
    /// Whatever stands in the way, by name; nothing of ours is left in QEMU then. Dropping this future half way
    /// leaves the undoing to the guard.
    pub async fn open(request: SessionRequest) -> Result<Self> {
        let names = request.scope.names()?;
        if request.quiesce == Quiesce::Require && request.scope.agent.is_none() {
            return Err(Error::NoAgent);
        }
        if matches!(request.monitor, MonitorAddress::Tls { .. }) && request.scope.nbd == NbdListen::Unix {
            return Err(Error::NoWayToSocket { monitor: request.monitor.to_string() });
        }
        let monitor = Monitor::connect(&request.monitor, &request.options).await?;
        let guard = match &request.guard {
            None => None,
            Some(command) => Some(Guard::start(command, &request.plan()).await?),
        };
        let mut opening =
            Opening { request: &request, monitor: &monitor, names, warnings: Vec::new(), server: false };
        let (opened, events) = match Box::pin(opening.run()).await {
            Ok(opened) => opened,
            Err(error) => {
                opening.undo(guard).await;
                return Err(error);
            }
        };
        let watched = Watched {
            monitor,
            options: request.options,
            scope: request.scope,
            ids: opened.ids.clone(),
            files: opened.files.clone(),
        };
        let watch = Watch::start(watched.clone(), events);
        Ok(Self { opened, watched, watch, guard })
    }

    /// The frozen disks.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.opened.exports
    }

    /// Drives that were left out, each with its reason.
    #[must_use]
    pub fn skipped(&self) -> &[Disk] {
        &self.opened.skipped
    }

    /// What the person should know.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.opened.warnings
    }

    /// For how long the guest's file systems stood still, in milliseconds, if they were frozen.
    #[must_use]
    pub fn freeze_ms(&self) -> Option<u64> {
        self.opened.instant.freeze_ms
    }

    /// Whether the guest's file systems were frozen at the instant.
    #[must_use]
    pub fn quiesced(&self) -> bool {
        self.opened.instant.quiesced
    }

    /// The instant by QEMU's own wall clock, in milliseconds since 1970, if QEMU told.
    #[must_use]
    pub fn instant_ms(&self) -> Option<u64> {
        self.opened.instant.at_ms
    }

    /// Asks whether the instant is whole to this moment: to be called after the last read and before the commit.
    ///
    /// # Errors
    /// [`Error::InstantLost`]: nothing of this session may be committed.
    pub async fn check(&mut self) -> Result<()> {
        if let Some(lost) = self.watch.lost().borrow().clone() {
            return Err(Error::InstantLost(lost));
        }
        self.watched.check().await.map_err(Error::InstantLost)
    }

    /// A future that ends when the instant is lost, so that a pull can stop at once. It never ends otherwise.
    pub fn failed(&self) -> impl Future<Output = Lost> + Send + 'static {
        let mut lost = self.watch.lost();
        async move {
            loop {
                if let Some(lost) = lost.borrow_and_update().clone() {
                    return lost;
                }
                if lost.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Ends the session: exports, jobs, nodes, server, scratch files, in that order.
    ///
    /// # Errors
    /// Those of the clean-up; the guard then tries once more.
    pub async fn close(mut self) -> Result<CleanupReport> {
        self.watch.stop().await;
        let report = self.watched.end().await?;
        if let Some(guard) = self.guard.take() {
            guard.dismiss().await?;
        }
        Ok(report)
    }
}

impl SessionRequest {
    fn plan(&self) -> Plan {
        Plan { monitor: self.monitor.clone(), options: self.options.clone(), scope: self.scope.clone() }
    }
}

/// A session on its way, and how far it has come.
struct Opening<'a> {
    request: &'a SessionRequest,
    monitor: &'a Monitor,
    names: Names,
    warnings: Vec<String>,
    /// Whether the NBD server was started.
    server: bool,
}

impl Opening<'_> {
    async fn run(&mut self) -> Result<(Opened, broadcast::Receiver<Event>)> {
        let (request, monitor) = (self.request, self.monitor);
        let left = sweep(monitor, &request.options, &request.scope, Occasion::AfterCrash).await?;
        if !left.removed.is_empty() {
            self.warnings.push(format!("removed what a killed run had left: {}", left.removed.join(", ")));
        }
        monitor.capabilities().await?.require_backup(monitor.version())?;
        refuse_foreign(monitor, &self.names).await?;
        let Selection { disks, skipped } = disk::select(disk::list(monitor).await?, &request.disks)?;
        self.make_scratches(&disks).await?;
        self.start_server().await?;
        // From here on, so that nothing between the instant and the watch is missed.
        let events = monitor.events();
        let instant = self.freeze(&disks).await?;
        let ids: Vec<String> = (0..disks.len()).map(|disk| self.id(disk)).collect();
        let files = (0..disks.len()).map(|disk| self.names.file(disk)).collect();
        let exports = self.export(disks).await?;
        let warnings = std::mem::take(&mut self.warnings);
        Ok((Opened { exports, skipped, warnings, instant, ids, files }, events))
    }

    fn id(&self, disk: usize) -> String {
        self.names.session(&self.request.backup, disk)
    }

    async fn make_scratches(&mut self, disks: &[Disk]) -> Result<()> {
        let host = self.monitor.host();
        let folder = self.request.scope.scratch.as_path();
        let sizes: Vec<u64> = disks.iter().map(|disk| disk.size_bytes).collect();
        let free = host.free_bytes(folder).await?;
        let budgets = scratch::plan(&sizes, self.request.scratch_max_bytes, free, folder)?;
        for (number, (disk, budget)) in disks.iter().zip(budgets).enumerate() {
            let place = Place { monitor: self.monitor, host, names: &self.names, folder, number };
            if let Some(shortfall) = place.make(disk, budget).await? {
                self.warnings.push(shortfall.warning(folder));
            }
        }
        Ok(())
    }

    async fn start_server(&mut self) -> Result<()> {
        match nbd_server::start(self.monitor, &self.request.scope, self.request.max_connections).await {
            Ok(()) => {
                self.server = true;
                Ok(())
            }
            // QEMU has no query for its server; of all its refusals this one is told apart by its words, for the
            // better text alone.
            Err(Error::Refused { description, .. }) if description.contains("already running") => {
                Err(Error::ForeignServer { exports: Vec::new() })
            }
            Err(error) => Err(error),
        }
    }

    /// The instant itself, between freeze and thaw of the guest's file systems.
    async fn freeze(&mut self, disks: &[Disk]) -> Result<Instant> {
        let frozen = self.quiesce().await?;
        let mut events = self.monitor.events();
        let mut transaction = Transaction::default();
        for (number, disk) in disks.iter().enumerate() {
            transaction.freeze(&self.id(number), &disk.node, &self.names.overlay(number));
        }
        let outcome = transaction.run(self.monitor).await;
        // Thaw first: an error of the transaction must not keep the guest waiting.
        let thawed = match frozen {
            None => None,
            Some(frozen) => Some(frozen.thaw().await),
        };
        outcome?;
        let first = self.id(0);
        let mut at_ms = None;
        while let Ok(event) = events.try_recv() {
            if at_ms.is_none() && event.name == "JOB_STATUS_CHANGE" && event.text("id") == first {
                at_ms = Some(event.at_ms);
            }
        }
        let thawed = match thawed {
            None => return Ok(Instant { at_ms, freeze_ms: None, quiesced: false }),
            Some(thawed) => thawed?,
        };
        if thawed.by_watchdog {
            self.tolerate(Error::ThawedEarly { frozen_ms: thawed.frozen_ms })?;
        }
        Ok(Instant { at_ms, freeze_ms: Some(thawed.frozen_ms), quiesced: !thawed.by_watchdog })
    }

    async fn quiesce(&mut self) -> Result<Option<Frozen>> {
        let Some(agent) = &self.request.scope.agent else { return Ok(None) };
        if self.request.quiesce == Quiesce::Off {
            return Ok(None);
        }
        match Frozen::begin(agent, &self.request.options, self.monitor.host()).await {
            Ok(frozen) => Ok(Some(frozen)),
            Err(error) => self.tolerate(error).map(|()| None),
        }
    }

    /// What `require` refuses and `try` only warns of.
    fn tolerate(&mut self, error: Error) -> Result<()> {
        if self.request.quiesce == Quiesce::Require {
            return Err(error);
        }
        self.warnings.push(format!("the guest is not quiesced: {error}"));
        Ok(())
    }

    async fn export(&self, disks: Vec<Disk>) -> Result<Vec<Export>> {
        let mut exports = Vec::with_capacity(disks.len());
        let mut socket = None;
        for (number, disk) in disks.into_iter().enumerate() {
            let export_name = format!("{}/{}", self.request.backup, disk.name);
            let arguments = json!({
                "type": "nbd", "id": self.id(number), "node-name": self.names.overlay(number), "name": export_name,
                "writable": false, "allocation-depth": true,
            });
            self.monitor.execute(ExportAdd(arguments)).await?;
            if socket.is_none() {
                socket = Some(self.server_uri().await?);
            }
            // The name stands between the two halves of the URI.
            let (before, after) = socket.as_ref().expect("it was set just above");
            let path = percent_encoded(&export_name, |byte| byte == b'/' || is_unreserved(byte));
            exports.push(Export { disk, uri: format!("{before}{path}{after}"), export_name });
        }
        Ok(exports)
    }

    /// What goes before and after an export's name in its URI (NBD URI specification).
    async fn server_uri(&self) -> Result<(String, String)> {
        let query = |text: &str| percent_encoded(text, is_unreserved_or_slash);
        match &self.request.scope.nbd {
            NbdListen::Unix => {
                let path = self.names.socket(&self.request.scope.scratch)?;
                let local = self.monitor.host().reach_socket(&path, &path.display().to_string()).await?;
                Ok(("nbd+unix:///".to_owned(), format!("?socket={}", query(&local.to_string_lossy()))))
            }
            NbdListen::Tls { host, port, .. } => {
                let mut parameters = Vec::new();
                if let Some(folder) = &self.request.options.tls_certificates {
                    parameters.push(format!("tls-certificates={}", query(&folder.to_string_lossy())));
                }
                if let Some(name) = &self.request.options.tls_hostname {
                    parameters.push(format!("tls-hostname={}", query(name)));
                }
                let tail =
                    if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
                Ok((format!("nbds://{}/", dial_authority(host, *port, &self.request.monitor)), tail))
            }
        }
    }

    /// After an error: takes back what was done. If that fails too, the guard is left to do it.
    async fn undo(&self, guard: Option<Guard>) {
        let occasion = Occasion::SessionEnd { server: self.server };
        let swept = sweep(self.monitor, &self.request.options, &self.request.scope, occasion).await;
        let outcome = match (swept, guard) {
            (Ok(_), Some(guard)) => guard.dismiss().await,
            (Ok(_), None) => Ok(()),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "the session that failed to open was not taken back whole");
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn is_unreserved_or_slash(byte: u8) -> bool {
    byte == b'/' || is_unreserved(byte)
}
