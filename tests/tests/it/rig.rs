//! What the stories share: a guest with a user's set-up beside it.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{
    Aquifer, Disk, Format, Guest, GuestOptions, Moment, TempDir, check_grown, pattern::UNREPORTED_MAX,
    process, tempdir,
};
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
    /// What the disks with the guest's history were called, in the guest's order.
    pub(crate) names: Vec<String>,
    /// How much of each the history covers.
    pub(crate) history: Vec<u64>,
}

impl Taken {
    /// What the backup tells about a disk.
    pub(crate) fn disk(&self, name: &str) -> Result<&Value> {
        let disks = self.done["disks"].as_array();
        let found = disks.into_iter().flatten().find(|disk| disk["name"] == name);
        found.with_context(|| format!("no disk {name} in {}", self.done))
    }

    /// Proves that a disk was read in this mode. `word` stands in the reason; an empty one asks for none.
    pub(crate) fn ensure_mode(&self, name: &str, mode: &str, word: &str) -> Result<()> {
        let disk = self.disk(name)?;
        let reason = disk["reason"].as_str().unwrap_or_default();
        ensure!(disk["mode"] == mode && reason.contains(word), "{name} is not `{mode}: {word}`: {disk}");
        Ok(())
    }

    /// Proves that every disk was read by its bitmap.
    pub(crate) fn ensure_all_by_bitmap(&self) -> Result<()> {
        let disks = self.done["disks"].as_array().context("no disks")?;
        let whole: Vec<_> = disks.iter().filter(|disk| disk["mode"] != "bitmap").collect();
        ensure!(whole.is_empty() && !disks.is_empty(), "not by its bitmap: {whole:?}");
        Ok(())
    }
}

impl Rig {
    /// Boots a guest with these disks (`vda`, `vdb`, …) and makes a repository.
    pub(crate) fn start(disks: &[(Format, u64)]) -> Result<Rig> {
        Rig::start_with(disks, &GuestOptions { monitors: 2, ..GuestOptions::default() })
    }

    /// As [`Rig::start`], with a guest of other options.
    pub(crate) fn start_with(disks: &[(Format, u64)], options: &GuestOptions) -> Result<Rig> {
        let folder = tempdir()?;
        let disks = new_disks(folder.path(), disks)?;
        let mut guest = Guest::start(folder.path(), &disks, options)?;
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
        let arguments = self.backup_arguments(further);
        self.take(&arguments)
    }

    /// Backs the guest up with these arguments and no others.
    pub(crate) fn take(&mut self, arguments: &[String]) -> Result<Taken> {
        let earliest = self.guest.seq();
        let done = self.aquifer.run(&as_strs(arguments))?.ok()?.event("done")?;
        let latest = self.guest.next_seq()?;
        Ok(self.taken(done, earliest..=latest))
    }

    /// Backs the paused guest up: its last write is the only moment.
    pub(crate) fn backup_paused(&mut self) -> Result<Taken> {
        let arguments = self.backup_arguments(&[]);
        let done = self.aquifer.run(&as_strs(&arguments))?.ok()?.event("done")?;
        let earliest = self.guest.seq();
        Ok(self.taken(done, earliest..=earliest + UNREPORTED_MAX))
    }

    /// A backup whose `done` event this is, of the guest as it is now.
    pub(crate) fn taken(&self, done: Value, window: RangeInclusive<u64>) -> Taken {
        let history = self.guest.history().to_owned();
        let disks = &self.guest.disks()[..history.len()];
        let names = disks.iter().map(|disk| disk.name.clone()).collect();
        Taken { uuid: done["uuid"].as_str().unwrap_or_default().to_owned(), done, window, names, history }
    }

    /// Restores the disks of a backup into new files, and proves that they are the moment of that backup.
    pub(crate) fn prove(&self, taken: &Taken, name: &str) -> Result<Vec<PathBuf>> {
        self.prove_from(&self.aquifer, taken, name)
    }

    /// As [`Rig::prove`], for a backup in the repository of another user.
    pub(crate) fn prove_from(&self, user: &Aquifer, taken: &Taken, name: &str) -> Result<Vec<PathBuf>> {
        self.moment(user, taken, name).map(|(images, _)| images)
    }

    /// As [`Rig::prove`], and which moment it is.
    pub(crate) fn moment(&self, user: &Aquifer, taken: &Taken, name: &str) -> Result<(Vec<PathBuf>, Moment)> {
        let names: Vec<&str> = taken.names.iter().map(String::as_str).collect();
        let images = user.restore(&taken.uuid, &names, name)?;
        let moment = check_grown(&images, &taken.history, taken.window.clone())
            .with_context(|| format!("backup {} ({name})", taken.uuid))?;
        Ok((images, moment))
    }

    /// The bitmaps that Aquifer keeps on a node, by name.
    pub(crate) fn checkpoints(&mut self, node: &str) -> Result<Vec<String>> {
        let bitmaps = self.guest.qmp().bitmaps(node)?;
        let names = bitmaps.iter().filter_map(|bitmap| bitmap["name"].as_str());
        Ok(names.filter(|name| name.starts_with("aqf-")).map(str::to_owned).collect())
    }

    /// Waits until a backup in the background serves all these disks.
    pub(crate) fn wait_exports(&mut self, disks: usize) -> Result<()> {
        process::wait_for("the backup's exports", 60 * SECOND, || {
            Ok((self.guest.qmp().query("query-block-exports")?.len() == disks).then_some(()))
        })
    }

    /// Proves that the guest runs, and that nothing of a backup is left in QEMU or in the scratch folder.
    pub(crate) fn ensure_clean(&mut self) -> Result<()> {
        let status = self.guest.status()?;
        ensure!(status == "running", "the guest is {status}");
        let left = self.leftovers()?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        self.guest.next_seq().map(drop)
    }

    /// As [`Rig::ensure_clean`], where each disk has a bitmap for the managed chain, and for `external` readers of their own.
    pub(crate) fn ensure_clean_but_for_external(&mut self, external: usize) -> Result<()> {
        for node in ["vda", "vdb"] {
            let bitmaps = self.checkpoints(node)?;
            ensure!(bitmaps.len() == 1 + external, "{node} has the bitmaps {bitmaps:?}");
        }
        self.wait_clean_but_for_bitmaps()
    }

    /// Waits until nothing of a backup is left but Aquifer's own bitmaps: whether the backup that a killed one had begun was
    /// committed is for the next one to find out, and which bitmaps go with it.
    pub(crate) fn wait_clean_but_for_bitmaps(&mut self) -> Result<()> {
        process::wait_for("QEMU to be as it was but for bitmaps", 20 * SECOND, || {
            let left = self.leftovers()?;
            Ok(left.iter().all(|left| left.starts_with("bitmap: ") && left.contains("\"aqf-")).then_some(()))
        })?;
        let status = self.guest.status()?;
        ensure!(status == "running", "the guest is {status}");
        self.guest.next_seq().map(drop)
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
