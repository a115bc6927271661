//! The copy-before-write filter: the other way to hold an instant, for a QEMU that passed the test of it.
//!
//! A filter node is put between a disk and its device. From then on what the guest overwrites is first copied to the
//! scratch, and a `snapshot-access` node shows the disk as it was. When the scratch is full or slow the snapshot breaks,
//! and not the guest. The price: devices are moved one by one, so that several disks are at one instant only if the guest
//! is paused for that moment.
//!
//! Which node a filter stands over is told by no query, so a bitmap on that node says it (docs/QEMU.md). Another bitmap
//! says that the guest was paused by us. Invariant: whatever step a crash hits, [`take_out`] and [`let_go_on`] find from
//! QEMU alone what to put back.

use serde_json::json;

use crate::commands::{BlockdevAdd, Cont, Drive, Node, QomSet, QueryBlock, QueryStatus, Stop};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::names::Names;
use crate::transaction::{At, Transaction};

/// How long a write of the guest may wait for its copy before the snapshot is given up instead, in seconds.
const COPY_SECONDS_MAX: u32 = 10;
/// A mark is there or not; what it covers does not matter, so it is as coarse as QEMU allows.
const MARK_GRANULARITY_BYTES: u64 = 1 << 31;

/// The filters of one session, one a disk.
pub(crate) struct Filters<'a> {
    pub(crate) monitor: &'a Monitor,
    pub(crate) names: &'a Names,
    pub(crate) disks: &'a [Disk],
}

impl Filters<'_> {
    /// Makes the filters and marks the nodes they belong over. Nothing goes through them yet.
    pub(crate) async fn prepare(&self) -> Result<()> {
        let mut marks = Transaction::default();
        for (number, disk) in self.disks.iter().enumerate() {
            if disk.qdev.is_none() {
                return Err(Error::NoDevice { disk: disk.name.clone() });
            }
            let filter = self.names.filter(number);
            marks.collect_in(
                At { node: &disk.node, name: &self.names.under(&filter) },
                MARK_GRANULARITY_BYTES,
            );
            let node = json!({"driver": "copy-before-write", "node-name": filter, "file": disk.node,
                "target": self.names.overlay(number), "on-cbw-error": "break-snapshot",
                "cbw-timeout": COPY_SECONDS_MAX});
            self.monitor.execute(BlockdevAdd(node)).await?;
        }
        marks.run(self.monitor).await
    }

    /// The instant: runs `transaction` and lets every device read and write through its filter, while the guest is
    /// paused. A guest that is paused anyway stays so.
    pub(crate) async fn switch(&self, transaction: Transaction) -> Result<()> {
        if self.monitor.execute(QueryStatus(json!({}))).await?.status != "running" {
            return self.switch_devices(transaction).await;
        }
        let (Some(first), mark) = (self.disks.first(), self.names.paused()) else { return Ok(()) };
        let mark = At { node: &first.node, name: &mark };
        let mut marking = Transaction::default();
        marking.collect_in(mark, MARK_GRANULARITY_BYTES);
        marking.run(self.monitor).await?;
        let switched = async {
            self.monitor.execute(Stop(json!({}))).await?;
            self.switch_devices(transaction).await
        };
        let switched = switched.await;
        // Before anything else, and also after a failure.
        self.monitor.execute(Cont(json!({}))).await?;
        let mut unmarking = Transaction::default();
        unmarking.remove(mark);
        unmarking.run(self.monitor).await?;
        switched
    }

    async fn switch_devices(&self, transaction: Transaction) -> Result<()> {
        transaction.run(self.monitor).await?;
        for (number, disk) in self.disks.iter().enumerate() {
            let device = disk.qdev.as_deref().unwrap_or_default();
            attach(self.monitor, device, &self.names.filter(number)).await?;
        }
        Ok(())
    }

    /// Makes the nodes that show the disks as they were.
    pub(crate) async fn show(&self) -> Result<()> {
        for number in 0..self.disks.len() {
            let node = json!({"driver": "snapshot-access", "node-name": self.names.access(number),
                "file": self.names.filter(number)});
            self.monitor.execute(BlockdevAdd(node)).await?;
        }
        Ok(())
    }
}

/// Lets the device read and write through another node, which shows the same bytes (`qom-set` of `drive`).
async fn attach(monitor: &Monitor, device: &str, node: &str) -> Result<()> {
    let property = json!({"path": device, "property": "drive", "value": node});
    monitor.execute(QomSet(property)).await.map(drop)
}

/// Puts every device back on the disk's own node where a filter of ours stands between them; nodes and marks stay. QEMU
/// refuses for as long as a snapshot is shown.
pub(crate) async fn take_out(monitor: &Monitor, names: &Names, nodes: &[Node]) -> Result<()> {
    let filters: Vec<&str> = nodes
        .iter()
        .filter_map(|node| node.node_name.as_deref())
        .filter(|name| names.is_filter(name))
        .collect();
    if filters.is_empty() {
        return Ok(());
    }
    let drives = monitor.execute(QueryBlock(json!({}))).await?;
    for filter in filters {
        for device in
            drives.iter().filter(|drive| reads_from(drive, filter)).filter_map(|drive| drive.qdev.as_deref())
        {
            let mark = names.under(filter);
            let under =
                nodes.iter().find(|node| carries(node, &mark)).and_then(|node| node.node_name.as_deref());
            let Some(under) = under else {
                return Err(Error::FilterWithoutDisk { filter: filter.to_owned() });
            };
            attach(monitor, device, under).await?;
        }
    }
    Ok(())
}

/// Lets a guest go on that a killed run had paused for the instant.
pub(crate) async fn let_go_on(monitor: &Monitor, names: &Names, nodes: &[Node]) -> Result<bool> {
    let mark = names.paused();
    let paused = nodes.iter().any(|node| carries(node, &mark))
        && monitor.execute(QueryStatus(json!({}))).await?.status == "paused";
    if paused {
        monitor.execute(Cont(json!({}))).await?;
    }
    Ok(paused)
}

/// Removes the marks.
pub(crate) async fn unmark(monitor: &Monitor, names: &Names, nodes: &[Node]) -> Result<()> {
    let mut transaction = Transaction::default();
    for (node, mark) in marks(names, nodes) {
        transaction.remove(At { node, name: mark });
    }
    transaction.run(monitor).await
}

/// Node and name of each mark.
pub(crate) fn marks<'a>(names: &Names, nodes: &'a [Node]) -> Vec<(&'a str, &'a str)> {
    let of = |node: &'a Node| {
        let bitmaps = node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.as_deref());
        node.node_name.as_deref().map(|name| bitmaps.map(move |bitmap| (name, bitmap)))
    };
    nodes.iter().filter_map(of).flatten().filter(|(_, bitmap)| names.is_filter_mark(bitmap)).collect()
}

/// Whether a device reads from this node.
fn reads_from(drive: &Drive, node: &str) -> bool {
    drive.inserted.as_ref().and_then(|inserted| inserted.node_name.as_deref()) == Some(node)
}

fn carries(node: &Node, bitmap: &str) -> bool {
    node.dirty_bitmaps.iter().any(|known| known.name.as_deref() == Some(bitmap))
}
