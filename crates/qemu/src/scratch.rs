//! Scratch overlays: how large each may grow, and how each comes into QEMU.
//!
//! A scratch keeps what the guest overwrites while a backup reads the frozen instant. If it fills, QEMU stops the
//! guest; so its space is reserved before the instant, and a write threshold below its budget ends the backup
//! while the guest still runs. Invariant: an overlay is exactly as long as its disk, in bytes.

use std::path::Path;

use serde_json::json;

use crate::cleanup::{forget_job, wait_job};
use crate::commands::{BlockdevAdd, BlockdevCreate, SetWriteThreshold};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::monitor::Monitor;
use crate::names::Names;

/// QEMU's default cluster of a qcow2, in bytes; the threshold is counted from it upwards.
const CLUSTER_BYTES: u64 = 64 << 10;
/// Room for header, first tables and a margin: without it the first guest write would already end the backup.
const BUDGET_BYTES_MIN: u64 = 4 << 20;
/// A reservation leaves this part of the free space to the machine.
const FREE_SHARE_LEFT: u64 = 16;

/// How large one scratch may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// File size when the guest overwrites everything.
    pub(crate) need_bytes: u64,
    /// What it may take; less than the need means that a busy guest ends the backup.
    pub(crate) budget_bytes: u64,
}

impl Budget {
    /// File offset whose crossing ends the backup: an eighth below the budget, so that the clean-up, which takes
    /// some ten milliseconds, wins against a guest that writes at full speed.
    fn threshold_bytes(self) -> u64 {
        self.budget_bytes - (self.budget_bytes / 8).clamp(CLUSTER_BYTES, 1 << 30)
    }
}

/// Shares out cap and free space by the sizes of the disks.
pub(crate) fn plan(sizes: &[u64], cap: Option<u64>, free: Option<u64>, folder: &Path) -> Result<Vec<Budget>> {
    let needs: Vec<u64> = sizes.iter().map(|&size| need_bytes(size)).collect();
    let total: u128 = needs.iter().map(|&need| u128::from(need)).sum();
    let free = free.map(|free| free - free / FREE_SHARE_LEFT);
    let available = [cap, free].into_iter().flatten().min();
    let budgets: Vec<Budget> = needs
        .iter()
        .map(|&need_bytes| {
            let share = |available: u64| {
                let share = u128::from(available) * u128::from(need_bytes) / total.max(1);
                u64::try_from(share).unwrap_or(u64::MAX)
            };
            Budget { need_bytes, budget_bytes: available.map_or(need_bytes, share).min(need_bytes) }
        })
        .collect();
    let least: u64 = needs.iter().map(|need| BUDGET_BYTES_MIN.min(*need)).sum();
    if budgets.iter().any(|budget| budget.budget_bytes < BUDGET_BYTES_MIN.min(budget.need_bytes)) {
        return Err(Error::ScratchTooSmall {
            folder: folder.to_owned(),
            available_bytes: available.unwrap_or(0),
            needed_bytes: least,
            disks: sizes.len(),
        });
    }
    Ok(budgets)
}

/// Largest file of a qcow2 overlay of `size` bytes: data, its L2 tables (8 bytes a cluster), its refcounts (2 bytes
/// a cluster), their upper tables and the header.
fn need_bytes(size: u64) -> u64 {
    let clusters = size.div_ceil(CLUSTER_BYTES);
    let tables =
        |entry_bytes: u64| clusters.saturating_mul(entry_bytes).div_ceil(CLUSTER_BYTES) * CLUSTER_BYTES;
    size.saturating_add(tables(8)).saturating_add(tables(2)).saturating_add(tables(8) / 8192 + (1 << 20))
}

/// The space of one file that could not be reserved, for a warning.
#[derive(Debug)]
pub(crate) struct Shortfall {
    pub(crate) disk: String,
    pub(crate) reserved_bytes: u64,
    pub(crate) need_bytes: u64,
}

impl Shortfall {
    pub(crate) fn warning(&self, folder: &Path) -> String {
        format!(
            "scratch of {}: {} of {} bytes reserved in {}; a guest that overwrites more than that ends this backup \
             (it is not stopped)",
            self.disk,
            self.reserved_bytes,
            self.need_bytes,
            folder.display()
        )
    }
}

/// Where one scratch goes.
pub(crate) struct Place<'a> {
    pub(crate) monitor: &'a Monitor,
    pub(crate) host: &'a Host,
    pub(crate) names: &'a Names,
    pub(crate) folder: &'a Path,
    /// Number of the disk in its session.
    pub(crate) number: usize,
}

impl Place<'_> {
    /// Makes and formats the file, puts the overlay over the node `backing` where one is given, reserves its
    /// space, and sets the threshold where the space is less than the need. Over TLS alone QEMU does the reserving,
    /// and the file stays for the next run.
    pub(crate) async fn make(
        &self,
        disk: &Disk,
        backing: Option<&str>,
        budget: Budget,
    ) -> Result<Option<Shortfall>> {
        let path = self.folder.join(self.names.scratch(&disk.name));
        let (overlay, file) = (self.names.overlay(self.number), self.names.file(self.number));
        let protocol = json!({"driver": "file", "node-name": file, "filename": path});
        let ours = !matches!(self.host, Host::Unreachable);
        if ours {
            self.host.create_image(&path, disk.size_bytes).await?;
            self.monitor.execute(BlockdevAdd(protocol)).await?;
        } else {
            let bytes = budget.budget_bytes;
            let reserved =
                json!({"driver": "file", "filename": path, "size": bytes, "preallocation": "falloc"});
            self.create(reserved).await.map_err(|error| match error {
                Error::JobFailed { id, detail } => Error::JobFailed {
                    id,
                    detail: format!("{bytes} bytes for {}: {detail}; set --scratch-max", disk.name),
                },
                other => other,
            })?;
            self.monitor.execute(BlockdevAdd(protocol)).await?;
            self.create(json!({"driver": "qcow2", "file": file, "size": disk.size_bytes})).await?;
        }
        let node = json!({"driver": "qcow2", "node-name": overlay, "file": file, "backing": backing,
            "discard": "unmap"});
        self.monitor.execute(BlockdevAdd(node)).await?;
        let reserved_bytes =
            if ours { self.host.reserve(&path, budget.budget_bytes).await? } else { budget.budget_bytes };
        if reserved_bytes >= budget.need_bytes {
            return Ok(None);
        }
        let threshold = json!({"node-name": file, "write-threshold": budget.threshold_bytes()});
        self.monitor.execute(SetWriteThreshold(threshold)).await?;
        Ok(Some(Shortfall { disk: disk.name.clone(), reserved_bytes, need_bytes: budget.need_bytes }))
    }

    /// `blockdev-create`, waited for and dismissed. Only beside a TLS monitor: QEMU 7.2, which does not survive a
    /// query meanwhile, has no TLS monitor that works.
    async fn create(&self, options: serde_json::Value) -> Result<()> {
        let job = self.names.format_job(self.number);
        self.monitor.execute(BlockdevCreate(json!({"job-id": job, "options": options}))).await?;
        let ended = wait_job(self.monitor, &job).await?;
        forget_job(self.monitor, &job).await?;
        match ended.and_then(|job| job.error) {
            None => Ok(()),
            Some(detail) => Err(Error::JobFailed { id: job, detail }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn planned(sizes: &[u64], cap: Option<u64>, free: Option<u64>) -> Result<Vec<Budget>> {
        plan(sizes, cap, free, Path::new("/scratch"))
    }

    #[test]
    fn with_room_for_all_every_disk_gets_its_whole_need() {
        let budgets = planned(&[GIB, 2 * GIB], None, Some(100 * GIB)).unwrap();
        assert!(
            budgets.iter().all(|budget| budget.budget_bytes == budget.need_bytes && budget.need_bytes > GIB)
        );
    }

    #[test]
    fn a_cap_is_shared_by_size_and_never_exceeded() {
        let budgets = planned(&[GIB, 3 * GIB], Some(GIB), Some(100 * GIB)).unwrap();
        assert!(budgets.iter().map(|budget| budget.budget_bytes).sum::<u64>() <= GIB);
        assert!(budgets[1].budget_bytes > 2 * budgets[0].budget_bytes);
        assert!(budgets.iter().all(|budget| budget.threshold_bytes() < budget.budget_bytes));
    }

    #[test]
    fn the_free_space_is_not_taken_whole() {
        let budgets = planned(&[100 * GIB], None, Some(16 * GIB)).unwrap();
        assert_eq!(budgets[0].budget_bytes, 15 * GIB);
    }

    #[test]
    fn no_room_at_all_is_an_error_with_the_figures() {
        let error = planned(&[GIB, GIB], Some(1 << 20), None).unwrap_err().to_string();
        assert!(error.contains("1048576 bytes") && error.contains("8388608"), "{error}");
    }

    #[test]
    fn the_largest_disk_that_qemu_takes_overflows_nothing() {
        let budgets = planned(&[u64::MAX / 2, u64::MAX / 2], Some(GIB), Some(u64::MAX)).unwrap();
        assert!(budgets.iter().all(|budget| budget.budget_bytes <= GIB));
    }

    #[test]
    fn a_disk_of_no_bytes_needs_only_its_header() {
        let budgets = planned(&[0], None, Some(GIB)).unwrap();
        assert!(budgets[0].budget_bytes == budgets[0].need_bytes && budgets[0].need_bytes <= 2 << 20);
    }
}
