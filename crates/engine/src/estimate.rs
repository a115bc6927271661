//! What a backup of a running domain would read now, without making it.
//!
//! Only questions are asked, but they are asked of a QEMU that a backup could be at work in; so the domain is held in the
//! log meanwhile. What a disk without a believed bitmap would cost is not asked of its image: the answer is its size.
//!
//! Invariant: an estimate leaves no bitmap, no export and no backup.

use aquifer_qemu::Domain;
use aquifer_repository::format::record::Mode;

use crate::Running;
use crate::clock::new_uuid;
use crate::error::{Error, Kind, Result};
use crate::lineage::Facts;
use crate::request::{BackupRequest, Source};
use crate::settings::JobContext;
use crate::source::{check_name, session_request};

/// What a backup of one disk would read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EstimatedDisk {
    /// Disk name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that would be read at most.
    pub read_bytes: u64,
}

/// Estimates a backup.
///
/// # Errors
/// As [`crate::backup()`]; `Unsupported` for a source that is no running domain.
pub fn estimate(context: &JobContext, request: BackupRequest) -> Running<'_, Result<Vec<EstimatedDisk>>> {
    Box::pin(run(context, request))
}

async fn run(context: &JobContext, request: BackupRequest) -> Result<Vec<EstimatedDisk>> {
    check_name("domain", &request.domain)?;
    let Source::Qmp(qmp) = &request.source else {
        return Err(Error::new(Kind::Unsupported, "only a backup of a running domain can be estimated"));
    };
    let uuid = request.uuid.unwrap_or_else(|| new_uuid(&*context.world));
    context.repository.refresh().await?;
    let mut facts = Facts::gather(context, &request).await;
    let hold = context.repository.hold_domain(&request.domain, uuid, request.fence_after).await?;
    let estimated = async {
        let domain = Domain::connect(session_request(context, qmp, &request.domain, uuid)).await?;
        facts.look_at(context, &domain).await;
        let descents = facts.descents(&request.source, Some(&domain))?;
        let disk =
            |((disk, _), descent): ((&aquifer_qemu::Disk, _), crate::lineage::Descent)| EstimatedDisk {
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
                read_bytes: match (descent.mode, &descent.plan.base) {
                    (Mode::Bitmap, Some(base)) => base.dirty_bytes.min(disk.size_bytes),
                    _ => disk.size_bytes,
                },
            };
        Ok(domain.disks().zip(descents).map(disk).collect())
    };
    let estimated: Result<Vec<EstimatedDisk>> = estimated.await;
    if let Err(error) = hold.release().await {
        tracing::warn!("the hold on the domain could not be ended in the log: {error}");
    }
    estimated.map_err(|error| error.about(format_args!("domain {}", request.domain)))
}
