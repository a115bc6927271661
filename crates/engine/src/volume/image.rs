//! A volume that is a qcow2 image file. `qemu-nbd` knows the format and writes it; this serves the file and takes care of
//! what happens to it.
//!
//! Not here: the writing itself, which is that into any export ([`super::nbd`]).
//!
//! Invariant: a file that was made here is removed again if its restore fails.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aquifer_nbd::Uri;
use aquifer_qemu::{ImageExport, ImageRequest, create_qcow2};

use super::file;
use crate::error::{Error, Kind, Result};

/// A served image.
#[derive(Debug)]
pub(super) struct ImageVolume {
    path: PathBuf,
    /// It did not exist before.
    made: bool,
    export: Mutex<Option<ImageExport>>,
}

impl ImageVolume {
    /// Serves `path` for a disk of `size_bytes`; a file that does not exist is made.
    ///
    /// # Errors
    /// `Conflict` if there is one and `rewrite` is not set, or if it is in use; `Invalid` if its size does not fit.
    pub(super) async fn open(path: &Path, size_bytes: u64, rewrite: bool) -> Result<(Self, Uri)> {
        let made = match std::fs::metadata(path) {
            Ok(found) if !rewrite => return Err(super::holds_data(path.display(), Some(found.len()))),
            Ok(_) => false,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                file::must_have_folder(path)?;
                create_qcow2(path, size_bytes).await?;
                true
            }
            Err(error) => return Err(file::failed(error, path, "look at")),
        };
        let mut volume = ImageVolume { path: path.to_owned(), made, export: Mutex::default() };
        let served = volume.serve(size_bytes).await;
        if served.is_err() {
            volume.give_up().await;
        }
        Ok((volume, served?))
    }

    /// Gives up a volume to which nothing was written.
    pub(super) async fn give_up(&self) {
        if let Err(error) = self.close().await {
            tracing::warn!(%error, "what served {} could not be ended", self.path.display());
        }
        if self.made
            && let Some(left) = self.undo()
        {
            tracing::warn!("{left}");
        }
    }

    async fn serve(&mut self, size_bytes: u64) -> Result<Uri> {
        let request = ImageRequest {
            path: self.path.clone(),
            format: Some("qcow2".to_owned()),
            sockets: std::env::temp_dir(),
            writable: true,
        };
        let export = ImageExport::open(&request).await?;
        let (bytes, uri) = (export.size_bytes(), export.uri());
        self.export = Mutex::new(Some(export));
        if bytes > size_bytes.next_multiple_of(512) {
            let text = format!("{} is a disk of {bytes} bytes, not of {size_bytes}", self.path.display());
            return Err(Error::new(Kind::Invalid, text)
                .hint("an image must have the disk's size: name another")
                .with("volume_bytes", bytes)
                .with("disk_bytes", size_bytes));
        }
        uri.parse().map_err(Error::from)
    }

    /// True if it reads as zero wherever nothing was written yet.
    pub(super) fn is_blank(&self) -> bool {
        self.made
    }

    /// Ends the serving, which writes the last of the image. No client may be left.
    pub(super) async fn close(&self) -> Result<()> {
        let export = self.export.lock().unwrap_or_else(PoisonError::into_inner).take();
        match export {
            Some(export) => Ok(export.close().await?),
            None => Ok(()),
        }
    }

    /// After a failure: removes what would look like a restored disk. Says what is left.
    pub(super) fn undo(&self) -> Option<String> {
        if !self.made {
            return Some(format!("{} is partly overwritten", self.path.display()));
        }
        let removed = std::fs::remove_file(&self.path);
        let left = |error| format!("{} is incomplete and could not be removed: {error}", self.path.display());
        removed.err().map(left)
    }
}
