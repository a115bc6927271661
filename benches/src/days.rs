//! The three days that are backed up, each an image and an NBD export of it.
//!
//! Not here: making them (`dataset.sh`). Invariant: the servers end with this value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// One day.
pub(crate) struct Day {
    /// The raw image.
    pub(crate) image: PathBuf,
    /// Where qemu-nbd serves it.
    pub(crate) uri: String,
    server: Child,
}

impl Day {
    /// Serves `DATA/NAME.raw`, read-only, to sixteen connections at most.
    pub(crate) fn serve(data: &Path, name: &str, folder: &Path) -> Result<Self> {
        let image = data.join(format!("{name}.raw"));
        let image = image.canonicalize().with_context(|| image.display().to_string())?;
        let socket = folder.join(format!("{name}.sock"));
        let mut server = Command::new("qemu-nbd")
            .args(["-r", "-t", "-e", "16", "-f", "raw", "-k"])
            .arg(&socket)
            .arg(&image)
            .stderr(Stdio::inherit())
            .spawn()
            .context("qemu-nbd")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if server.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("qemu-nbd makes no socket at {}", socket.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Day { image, uri, server })
    }
}

impl Drop for Day {
    fn drop(&mut self) {
        // Nothing to do about a server that is already gone.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
