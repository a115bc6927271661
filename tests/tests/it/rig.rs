//! What the stories share: a guest with a user's set-up beside it.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_testkit::{Aquifer, Disk, Format, Guest, GuestOptions, TempDir, check, process, tempdir};
use serde_json::Value;

/// One second, for deadlines.
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Size of a disk where the size does not matter.
pub(crate) const DISK_BYTES: u64 = 64 << 20;

/// A running guest, and a user who backs it up as the domain `vm` into a repository of their own.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    pub(crate) disks: Vec<Disk>,
    pub(crate) guest: Guest,
    pub(crate) aquifer: Aquifer,
}

/// A backup with the window in which its instant lies.
pub(crate) struct Taken {
    pub(crate) uuid: String,
    pub(crate) done: Value,
    pub(crate) window: RangeInclusive<u64>,
}

impl Rig {
    /// Boots a guest with these disks (`vda`, `vdb`, …) and makes a repository.
    pub(crate) fn start(disks: &[(Format, u64)]) -> Result<Rig> {
        let folder = tempdir()?;
        let disks = new_disks(folder.path(), disks)?;
        let options = GuestOptions { monitors: 2, ..GuestOptions::default() };
        let mut guest = Guest::start(folder.path(), &disks, &options)?;
        let aquifer = Aquifer::with_repository(folder.path())?;
        fs::create_dir(folder.path().join("scratch"))?;
        guest.wait_seq(200, 60 * SECOND)?;
        Ok(Rig { folder, disks, guest, aquifer })
    }

    /// Two raw disks.
    pub(crate) fn start_raw() -> Result<Rig> {
        Rig::start(&[(Format::Raw, DISK_BYTES); 2])
    }

    /// The address of the guest's first monitor.
    pub(crate) fn monitor(&self) -> String {
        address(&self.guest.monitor(0))
    }

    /// The folder of the scratch files.
    pub(crate) fn scratch(&self) -> String {
        text(&self.folder.path().join("scratch"))
    }

    /// The arguments of a backup of this guest, and further ones.
    pub(crate) fn backup_arguments(&self, further: &[&str]) -> Vec<String> {
        let own = ["backup", "vm", "--qmp", &self.monitor(), "--scratch", &self.scratch()].map(str::to_owned);
        own.into_iter().chain(further.iter().map(|&argument| argument.to_owned())).collect()
    }

    /// Backs the guest up.
    pub(crate) fn backup(&mut self, further: &[&str]) -> Result<Taken> {
        let earliest = self.guest.seq();
        let arguments = self.backup_arguments(further);
        let done = self.aquifer.run(&as_strs(&arguments))?.ok()?.event("done")?;
        let window = earliest..=self.guest.next_seq()?;
        Ok(Taken { uuid: done["uuid"].as_str().unwrap_or_default().to_owned(), done, window })
    }

    /// Restores all disks of a backup into new files, and proves that they are the moment of that backup.
    pub(crate) fn prove(&self, taken: &Taken, name: &str) -> Result<Vec<PathBuf>> {
        let names: Vec<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
        let images = self.aquifer.restore(&taken.uuid, &names, name)?;
        check(&images, taken.window.clone())?;
        Ok(images)
    }

    /// Proves that the guest runs, and that nothing of a backup is left in QEMU or in the scratch folder.
    pub(crate) fn ensure_clean(&mut self) -> Result<()> {
        let status = self.guest.status()?;
        ensure!(status == "running", "the guest is {status}");
        let left = self.leftovers()?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        self.guest.next_seq().map(drop)
    }

    /// Waits until nothing of a backup is left.
    pub(crate) fn wait_clean(&mut self) -> Result<()> {
        process::wait_for("QEMU to be as it was", 20 * SECOND, || {
            Ok(self.leftovers()?.is_empty().then_some(()))
        })?;
        self.ensure_clean()
    }

    /// What a backup has left in QEMU and in the scratch folder.
    pub(crate) fn leftovers(&mut self) -> Result<Vec<String>> {
        let mut left = self.guest.leftovers()?;
        for entry in fs::read_dir(self.folder.path().join("scratch"))? {
            left.push(format!("scratch file: {}", entry?.path().display()));
        }
        Ok(left)
    }
}

/// New empty disks `vda`, `vdb`, … of these formats and sizes.
pub(crate) fn new_disks(folder: &Path, disks: &[(Format, u64)]) -> Result<Vec<Disk>> {
    let named = ('a'..='z').zip(disks);
    named
        .map(|(letter, &(format, bytes))| Disk::create(folder, &format!("vd{letter}"), format, bytes))
        .collect()
}

/// A file of `bytes` bytes that do not compress and do not repeat, with zeroes in its second quarter.
pub(crate) fn sample(path: &Path, bytes: usize) -> Result<()> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut content: Vec<u8> = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content[bytes / 4..bytes / 2].fill(0);
    Ok(fs::write(path, content)?)
}

/// Proves that two files have the same bytes.
pub(crate) fn ensure_same(left: &Path, right: &Path) -> Result<()> {
    let (a, b) = (fs::read(left)?, fs::read(right)?);
    ensure!(
        a.len() == b.len(),
        "{} has {} bytes, {} has {}",
        left.display(),
        a.len(),
        right.display(),
        b.len()
    );
    let differs = a.iter().zip(&b).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "{} and {} differ at byte {differs:?}", left.display(), right.display());
    Ok(())
}

/// The address of a monitor on a unix socket.
pub(crate) fn address(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// A path as text: the test's own paths are UTF-8.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Arguments as the runner takes them.
pub(crate) fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}
