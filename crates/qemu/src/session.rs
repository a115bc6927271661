//! A session: the time in which the exports of a domain's disks show one frozen instant.
//!
//! Opening goes through the steps of docs/QEMU.md, each undone when a later one fails. While the session is open a
//! watch listens; [`ExportSession::check`] must be asked after the last read and before anything is committed.
//! Invariant: an error of `open` leaves nothing of ours in QEMU, and a session that is dropped without
//! [`ExportSession::close`] is ended by its guard.

use std::future::Future;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::{MonitorAddress, MonitorOptions};
use crate::checkpoint::{self, CheckpointPlan, Ending, Marked};
use crate::cleanup::{CleanupReport, Scope};
use crate::disk::{Disk, DiskChoice};
use crate::error::{Error, Result};
use crate::guard::{Guard, GuardCommand, Plan};
use crate::monitor::Monitor;
use crate::names::Names;
use crate::nbd_server::NbdListen;
use crate::opening::{Opened, Opening};
use crate::survey::Domain;
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

/// How the instant is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A backup job of all disks in one transaction; the guest does not stand still for it.
    #[default]
    Classic,
    /// Filters between disks and devices; the guest is paused for the moment in which they are put in.
    Filter,
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
    /// How the instant is held.
    pub method: Method,
    /// The guard's program; without it a killed Aquifer leaves its session until the next run.
    pub guard: Option<GuardCommand>,
}

/// One disk, frozen and served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The disk.
    pub disk: Disk,
    /// NBD URI to read it from.
    pub uri: String,
    /// Name of the export, `<backup uuid>/<disk>`: a reconnect that finds it reads the same instant.
    pub export_name: String,
    /// The metadata context that tells what changed since the base, where there is one.
    pub changes: Option<String>,
    /// The bitmap that marks this instant, where the disk can have one.
    pub checkpoint: Option<String>,
}

/// An open session.
#[derive(Debug)]
pub struct ExportSession {
    opened: Opened,
    skipped: Vec<Disk>,
    domain_uuid: Option<String>,
    marked: Vec<Marked>,
    watched: Watched,
    watch: Watch,
    guard: Option<Guard>,
}

impl ExportSession {
    /// Freezes the chosen disks at one instant and exports them, without checkpoints.
    ///
    /// # Errors
    /// Those of [`Domain::connect`] and [`Domain::open`].
    pub async fn open(request: SessionRequest) -> Result<Self> {
        Domain::connect(request).await?.open(Vec::new()).await
    }

    /// Goes on from a domain that was looked at.
    pub(crate) async fn begin(domain: Domain, plans: Vec<CheckpointPlan>) -> Result<Self> {
        let Domain { monitor, request, names, disks, skipped, warnings, uuid: domain_uuid, .. } = domain;
        let guard = match &request.guard {
            None => None,
            Some(command) => Some(Guard::start(command, &request.plan(&names)).await?),
        };
        let plans = plans.into_iter().chain(std::iter::repeat_with(CheckpointPlan::default));
        let marked: Vec<Marked> = disks
            .iter()
            .zip(plans)
            .map(|(disk, plan)| Marked::new(&names, &request.backup, disk, plan))
            .collect();
        let mut opening = Opening::new(&request, &monitor, &names, &disks, &marked, warnings);
        let (opened, events) = match Box::pin(opening.run()).await {
            Ok(opened) => opened,
            Err(error) => {
                opening.undo(guard).await;
                return Err(error);
            }
        };
        let watched = Watched {
            address: request.monitor,
            monitor,
            options: request.options,
            scope: request.scope,
            ids: opened.ids.clone(),
            files: opened.files.clone(),
            method: request.method,
        };
        let watch = Watch::start(watched.clone(), events);
        Ok(Self { opened, skipped, domain_uuid, marked, watched, watch, guard })
    }

    /// The frozen disks.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.opened.exports
    }

    /// Drives that were left out, each with its reason.
    #[must_use]
    pub fn skipped(&self) -> &[Disk] {
        &self.skipped
    }

    /// The domain's UUID, as QEMU told it; `None` when it has none.
    #[must_use]
    pub fn domain_uuid(&self) -> Option<&str> {
        self.domain_uuid.as_deref()
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

    /// Ends the session: exports, jobs, nodes, server, scratch files, in that order; then its checkpoints, as `ending`
    /// says.
    ///
    /// # Errors
    /// Those of the clean-up; the guard then tries once more. Checkpoints that are left as they were are brought into
    /// order by the next session.
    pub async fn close(mut self, ending: Ending) -> Result<CleanupReport> {
        self.watch.stop().await;
        let report = self.watched.end().await?;
        let ended = match checkpoint::end(&self.watched.monitor, &self.marked, ending).await {
            // They ended with QEMU, or are in its images: the next session finds them there.
            Err(Error::MonitorClosed { .. }) => Ok(()),
            ended => ended,
        };
        if let Some(guard) = self.guard.take() {
            guard.dismiss().await?;
        }
        ended.map(|()| report)
    }
}

/// A session as another process can take it over: everything but the connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSession {
    monitor: MonitorAddress,
    options: MonitorOptions,
    scope: Scope,
    method: Method,
    opened: Opened,
    domain_uuid: Option<String>,
    marked: Vec<Marked>,
}

impl SavedSession {
    /// How the instant is held.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// How its monitor is reached, and whose things it has there: for a clean-up of what is left of it.
    #[must_use]
    pub fn parts(&self) -> (&MonitorAddress, &MonitorOptions, &Scope) {
        (&self.monitor, &self.options, &self.scope)
    }
}

impl ExportSession {
    /// What another process needs to take the session over.
    #[must_use]
    pub fn saved(&self) -> SavedSession {
        SavedSession {
            monitor: self.watched.address.clone(),
            options: self.watched.options.clone(),
            scope: self.watched.scope.clone(),
            method: self.watched.method,
            opened: self.opened.clone(),
            domain_uuid: self.domain_uuid.clone(),
            marked: self.marked.clone(),
        }
    }

    /// Lets go of the session and leaves it in QEMU, for [`ExportSession::resume`]. From here on nobody watches it.
    ///
    /// # Errors
    /// The guard's, which then ends the session.
    pub async fn leave(mut self) -> Result<()> {
        self.watch.stop().await;
        match self.guard.take() {
            Some(guard) => guard.dismiss().await,
            None => Ok(()),
        }
    }

    /// Gives up a session of which nothing is left in QEMU but its bitmaps, and these too. What is there besides may be
    /// another session's and is not touched.
    ///
    /// # Errors
    /// The monitor's.
    pub async fn disown(mut self) -> Result<()> {
        self.watch.stop().await;
        match checkpoint::end(&self.watched.monitor, &self.marked, Ending::Failed).await {
            // Then somebody brought them into order already, and QEMU refuses to remove what is not there.
            Ok(()) | Err(Error::Refused { .. } | Error::MonitorClosed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How many clients are connected to the exports; `None` where the kernel's table of sockets does not tell.
    ///
    /// # Errors
    /// Those of the machine that QEMU runs on.
    pub async fn readers(&self) -> Result<Option<usize>> {
        let Watched { monitor, scope, .. } = &self.watched;
        match &scope.nbd {
            NbdListen::Unix => {
                let socket = scope.names()?.socket(&scope.scratch)?;
                monitor.host().connections(&socket).await.map(Some)
            }
            NbdListen::Tls { .. } => Ok(None),
        }
    }

    /// Takes over a session that another process left, or died beside. Whether its instant is still whole,
    /// [`ExportSession::check`] tells.
    ///
    /// # Errors
    /// The monitor's.
    pub async fn resume(saved: SavedSession) -> Result<Self> {
        let SavedSession { monitor: address, options, scope, method, opened, domain_uuid, marked } = saved;
        let monitor = Monitor::connect(&address, &options).await?;
        let events = monitor.events();
        let (ids, files) = (opened.ids.clone(), opened.files.clone());
        let watched = Watched { address, monitor, options, scope, ids, files, method };
        let watch = Watch::start(watched.clone(), events);
        Ok(Self { opened, skipped: Vec::new(), domain_uuid, marked, watched, watch, guard: None })
    }
}

impl SessionRequest {
    fn plan(&self, names: &Names) -> Plan {
        Plan {
            monitor: self.monitor.clone(),
            options: self.options.clone(),
            scope: self.scope.clone(),
            session: names.session_prefix(&self.backup),
        }
    }
}
