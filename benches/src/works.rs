//! The works that are timed: each is one shell line, with what must be prepared outside the clock.
//!
//! Not the place of any figure. Invariant: a work leaves behind what the next one of the same round needs
//! (a full backup's repository is what the unchanged backup and the restore read).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::measure::{Cost, run, time, tree_bytes, warm};

/// One timed work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// `zstd -1 -T2` of the image.
    ZstdFloor,
    /// Full backup at default settings.
    Full,
    /// Full backup with the self-check of packs off.
    FullUnchecked,
    /// `nbdcopy` of the export to nowhere.
    NbdcopyFloor,
    /// The same disk again, read in full.
    Unchanged,
    /// `cp` of the image, sparse.
    CpFloor,
    /// Restore to a new raw file.
    Restore,
    /// restic's backup of the image (so that there is something to restore).
    ResticFull,
    /// restic's restore of it.
    ResticRestore,
}

impl Work {
    /// The order inside one round: each of ours next to its floor.
    pub(crate) const IN_ORDER: &[Self] = &[
        Self::ZstdFloor,
        Self::FullUnchecked,
        Self::Full,
        Self::NbdcopyFloor,
        Self::Unchanged,
        Self::CpFloor,
        Self::Restore,
        Self::ResticFull,
        Self::ResticRestore,
    ];

    /// What the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ZstdFloor => "`zstd -1 -T2` of the image",
            Self::Full => "aquifer: full backup",
            Self::FullUnchecked => "aquifer: full backup, self-check off",
            Self::NbdcopyFloor => "`nbdcopy` to `null:`",
            Self::Unchanged => "aquifer: unchanged disk, all read",
            Self::CpFloor => "`cp --sparse=always`",
            Self::Restore => "aquifer: restore to a raw file",
            Self::ResticFull => "restic: full backup of the file",
            Self::ResticRestore => "restic: restore",
        }
    }
}

/// A running qemu-nbd; ended with it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to do about a server that is already gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folders, the programs and the export that all works share.
pub(crate) struct Bench {
    image: PathBuf,
    aquifer: PathBuf,
    uri: String,
    work: TempDir,
    _server: Server,
}

impl Bench {
    /// Serves `DATA/disk.raw` with qemu-nbd and makes a working folder beside it.
    pub(crate) fn new(data: &Path) -> Result<Self> {
        let image =
            data.join("disk.raw").canonicalize().with_context(|| format!("{}/disk.raw", data.display()))?;
        let aquifer = std::env::current_exe()?.with_file_name("aquifer");
        let work = tempfile::Builder::new().prefix("work-").tempdir_in(data)?;
        fs::write(work.path().join("password"), "correct horse battery staple\n")?;
        fs::write(work.path().join("unchecked.toml"), "[defaults]\nself_check = false\n")?;
        let socket = work.path().join("nbd.sock");
        let server = Command::new("qemu-nbd")
            .args(["-r", "-t", "-e", "16", "-f", "raw", "-k"])
            .arg(&socket)
            .arg(&image)
            .stderr(Stdio::inherit())
            .spawn()
            .context("qemu-nbd")?;
        let server = Server(server);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if Instant::now() > deadline {
                bail!("qemu-nbd made no socket at {} in 10 s", socket.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Self { image, aquifer, uri, work, _server: server })
    }

    /// One line about the bytes.
    pub(crate) fn describe(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt as _;
        let about = fs::metadata(&self.image)?;
        Ok(format!(
            "Image: {} MiB, {} MiB allocated; repository after one backup: {} MiB (restic: {} MiB).",
            about.len() >> 20,
            (about.blocks() * 512) >> 20,
            tree_bytes(&self.path("full/repository"))? >> 20,
            tree_bytes(&self.path("restic"))? >> 20,
        ))
    }

    /// Prepares, warms and times one work.
    pub(crate) fn time(&self, work: Work) -> Result<Cost> {
        let command = self.prepare(work)?;
        warm(&self.image)?;
        time(&command, self.work.path(), &self.path("log"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn prepare(&self, work: Work) -> Result<String> {
        let (image, dir) = (self.image.display(), self.work.path().display());
        let aquifer = |kind: &str, options: &str| {
            format!(
                "exec {} -r {dir}/{kind}/repository --state-dir {dir}/{kind}/state --password-file {dir}/password {options}",
                self.aquifer.display()
            )
        };
        let backup = format!("backup disk --nbd vda='{}'", self.uri);
        Ok(match work {
            Work::ZstdFloor => format!("exec zstd -q -f -1 -T2 {image} -o {dir}/image.zst"),
            Work::Full => {
                self.new_repository("full", &aquifer("full", "repository init"))?;
                aquifer("full", &backup)
            }
            Work::FullUnchecked => {
                self.new_repository("unchecked", &aquifer("unchecked", "repository init"))?;
                aquifer("unchecked", &format!("--config {dir}/unchecked.toml {backup}"))
            }
            Work::NbdcopyFloor => format!("exec nbdcopy --connections=4 '{}' null:", self.uri),
            Work::Unchanged => aquifer("full", &backup),
            Work::CpFloor => {
                remove(&self.path("copy.raw"))?;
                format!("exec cp --reflink=never --sparse=always {image} {dir}/copy.raw")
            }
            Work::Restore => {
                remove(&self.path("restored.raw"))?;
                aquifer("full", &format!("restore latest:disk --disk vda=raw:{dir}/restored.raw"))
            }
            Work::ResticFull => {
                remove(&self.path("restic"))?;
                remove(&self.path("restic-restore"))?;
                run("sh", &["-c", &format!("{} init", self.restic())])?;
                format!("{} backup -q {image}", self.restic())
            }
            Work::ResticRestore => {
                // Outside the clock: a fast restore of other bytes would be worth nothing.
                let restored = self.path("restored.raw");
                run("cmp", &[&self.image.to_string_lossy(), &restored.to_string_lossy()])?;
                format!("{} restore -q latest --target {dir}/restic-restore", self.restic())
            }
        })
    }

    fn restic(&self) -> String {
        let dir = self.work.path().display();
        format!("restic --repo {dir}/restic --cache-dir {dir}/restic-cache --password-file {dir}/password")
    }

    fn new_repository(&self, kind: &str, init: &str) -> Result<()> {
        remove(&self.path(kind))?;
        fs::create_dir_all(self.path(kind))?;
        run("sh", &["-c", init])
    }
}

/// Removes a file or a folder; none is fine.
fn remove(path: &Path) -> Result<()> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
