//! A look at a domain before a session: which disks it has, and which checkpoints of ours they carry.
//!
//! What a killed run left is taken away first, because a backup job of it stands between a device and its disk, and hides
//! the disk's node. Beyond that there are only questions. What the answers mean for a backup is decided by whoever knows
//! the repository's log; then [`Domain::open`] goes on over the same connection. Invariant: dropping a [`Domain`] leaves
//! nothing of ours in QEMU but checkpoints.

use serde_json::json;

use crate::address::MonitorAddress;
use crate::checkpoint::{Checkpoint, CheckpointPlan};
use crate::cleanup::{Occasion, sweep};
use crate::commands::QueryNodes;
use crate::disk::{self, Disk, Selection};
use crate::error::{Error, Result};
use crate::identity;
use crate::monitor::Monitor;
use crate::names::Names;
use crate::nbd_server::NbdListen;
use crate::session::{ExportSession, Quiesce, SessionRequest};

/// A domain that is connected and looked at.
#[derive(Debug)]
pub struct Domain {
    pub(crate) monitor: Monitor,
    pub(crate) request: SessionRequest,
    pub(crate) names: Names,
    pub(crate) disks: Vec<Disk>,
    pub(crate) skipped: Vec<Disk>,
    pub(crate) warnings: Vec<String>,
    pub(crate) uuid: Option<String>,
    checkpoints: Vec<Vec<Checkpoint>>,
}

impl Domain {
    /// Connects to the monitor, takes away what a killed run left, finds the chosen disks, and reads their checkpoints.
    /// Whoever calls this holds the domain in the repository's log: what is found there of ours has no master.
    ///
    /// # Errors
    /// What cannot work in the request; the monitor's; [`Error::Unsupported`]; those of [`disk::select`].
    pub async fn connect(request: SessionRequest) -> Result<Self> {
        let names = request.scope.names()?;
        if request.quiesce == Quiesce::Require && request.scope.agent.is_none() {
            return Err(Error::NoAgent);
        }
        if matches!(request.monitor, MonitorAddress::Tls { .. }) && request.scope.nbd == NbdListen::Unix {
            return Err(Error::NoWayToSocket { monitor: request.monitor.to_string() });
        }
        let monitor = Monitor::connect(&request.monitor, &request.options).await?;
        monitor.capabilities().await?.require_backup(monitor.version())?;
        let left = sweep(&monitor, &request.options, &request.scope, Occasion::AfterCrash).await?.removed;
        let warnings = match left.is_empty() {
            true => Vec::new(),
            false => vec![format!("removed what a killed run had left: {}", left.join(", "))],
        };
        let Selection { mut disks, skipped } = disk::select(disk::list(&monitor).await?, &request.disks)?;
        identity::fill_block_sizes(&monitor, &mut disks).await?;
        let uuid = identity::domain_uuid(&monitor).await?;
        let checkpoints = checkpoints(&monitor, &names, &disks).await?;
        Ok(Self { monitor, request, names, disks, skipped, warnings, uuid, checkpoints })
    }

    /// The chosen disks, each with the checkpoints of this repository that it carries.
    pub fn disks(&self) -> impl Iterator<Item = (&Disk, &[Checkpoint])> {
        self.disks.iter().zip(self.checkpoints.iter().map(Vec::as_slice))
    }

    /// QEMU's version and package, as [`Monitor::build`].
    #[must_use]
    pub fn build(&self) -> String {
        self.monitor.build()
    }

    /// Freezes the disks at one instant and exports them. `plans` has one for each of [`Domain::disks`], in their order;
    /// a disk without one gets no checkpoint.
    ///
    /// # Errors
    /// Whatever stands in the way, by name; nothing of ours is left in QEMU then, and the checkpoints go on. Dropping
    /// this future half way leaves the undoing to the guard.
    pub async fn open(self, plans: Vec<CheckpointPlan>) -> Result<ExportSession> {
        ExportSession::begin(self, plans).await
    }
}

async fn checkpoints(monitor: &Monitor, names: &Names, disks: &[Disk]) -> Result<Vec<Vec<Checkpoint>>> {
    let nodes = monitor.execute(QueryNodes(json!({"flat": true}))).await?;
    let of = |disk: &Disk| {
        let node = nodes.iter().find(|node| node.node_name.as_deref() == Some(&disk.node));
        let bitmaps = node.into_iter().flat_map(|node| &node.dirty_bitmaps);
        bitmaps.filter_map(|bitmap| names.checkpoint(&disk.name, bitmap)).collect()
    };
    Ok(disks.iter().map(of).collect())
}
