//! A folder that a self-test has for itself.
//!
//! Invariant: it is removed with everything in it when the test is over, whatever the end is.

use std::path::{Path, PathBuf};

use super::DoctorRequest;

/// Removed with everything in it when dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// A name of its own below the doctor's folder; nothing is made yet.
    pub(super) fn new(request: &DoctorRequest) -> Self {
        Folder(request.work.join(format!("aquifer-doctor-{}", crate::clock::new_uuid(&*request.world))))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} of the self-test could not be removed: {error}", self.0.display());
        }
    }
}
