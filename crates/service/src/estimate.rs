//! How much a backup would read, without making one.

use aquifer_api::{DiskEstimate, Result};
use aquifer_engine::{BackupRequest, EstimatedDisk};

use crate::error::to_api;
use crate::service::Service;

impl Service {
    /// What each disk would cost now.
    ///
    /// # Errors
    /// As [`aquifer_engine::estimate`].
    pub(crate) async fn estimate(&self, request: BackupRequest) -> Result<Vec<DiskEstimate>> {
        let domain = request.domain.clone();
        let disks = aquifer_engine::estimate(self.context(), request).await;
        let told = |disk: EstimatedDisk| DiskEstimate {
            disk: disk.name,
            size_bytes: disk.size_bytes,
            read_bytes: disk.read_bytes,
        };
        let disks = disks.map_err(|error| to_api(&error, &domain))?;
        Ok(disks.into_iter().map(told).collect())
    }
}
