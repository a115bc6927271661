//! Who the domain is and how its guest sees its disks: what a backup's record keeps for whoever makes the machine anew.
//!
//! Only questions; no answer is one of the answers. Invariant: what QEMU does not tell is left open and never stops a
//! backup.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::commands::{QomGet, QueryUuid};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::monitor::Monitor;

/// The sizes of a disk's blocks that its device tells the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSizes {
    /// Smallest unit that the guest can address, in bytes.
    pub logical_bytes: u32,
    /// Smallest unit that the device says it writes at one stroke, in bytes.
    pub physical_bytes: u32,
}

/// The domain's UUID (`query-uuid`); `None` for a machine that was started without one, and for qemu-storage-daemon.
///
/// # Errors
/// Those of the monitor.
pub(crate) async fn domain_uuid(monitor: &Monitor) -> Result<Option<String>> {
    if !monitor.capabilities().await?.has_command("query-uuid") {
        return Ok(None);
    }
    let uuid = monitor.execute(QueryUuid(json!({}))).await?.uuid;
    Ok(Some(uuid).filter(|uuid| uuid.chars().any(|digit| !matches!(digit, '0' | '-'))))
}

/// Asks each disk's device for its block sizes.
///
/// # Errors
/// Those of the monitor.
pub(crate) async fn fill_block_sizes(monitor: &Monitor, disks: &mut [Disk]) -> Result<()> {
    if !monitor.capabilities().await?.has_command("qom-get") {
        return Ok(());
    }
    for disk in disks {
        let Some(device) = disk.qdev.clone() else { continue };
        let logical = property(monitor, &device, "logical_block_size").await?;
        let physical = property(monitor, &device, "physical_block_size").await?;
        disk.blocks = logical
            .zip(physical)
            .map(|(logical_bytes, physical_bytes)| BlockSizes { logical_bytes, physical_bytes });
    }
    Ok(())
}

/// A number among a device's properties; `None` where the device has none of this name.
async fn property(monitor: &Monitor, device: &str, name: &str) -> Result<Option<u32>> {
    match monitor.execute(QomGet(json!({"path": device, "property": name}))).await {
        Ok(value) => {
            Ok(value.as_u64().and_then(|bytes| u32::try_from(bytes).ok()).filter(|&bytes| bytes > 0))
        }
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
