//! What a guest lives through: restarts, the death of its QEMU, disks that grow, come, go and change their names.
//!
//! The history goes on through all of it. A guest that starts again repeats the writes after the last one that its
//! console reported: what was before them is on the disks, and once the newest of the repeated ones is done, so is
//! everything else, however the old QEMU ended. While it repeats them the disks may be no moment of the history, so
//! nothing here returns before.
//!
//! Invariant: when a function here returns, the guest runs and its disks are one moment of one history.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::disk::Disk;
use crate::guest::{BOOT_WITHIN, Guest};
use crate::pattern::UNREPORTED_MAX;

impl Guest {
    /// Ends QEMU in order and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_with(|_| Ok(()))
    }

    /// As [`Guest::restart`], with the disks changed while nobody uses them. The disks with the history keep their
    /// places and their content; names, formats, files and sizes may change.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Vec<Disk>) -> Result<()>) -> Result<()> {
        self.qmp.execute("quit", json!({}))?;
        self.qemu.wait(Duration::from_secs(30))?;
        change(&mut self.disks)?;
        self.go_on()
    }

    /// Kills QEMU while the guest writes, and starts it again. Needs [`GuestOptions::flushes`](crate::GuestOptions).
    pub fn kill_and_restart(&mut self) -> Result<()> {
        ensure!(
            self.options.flushes,
            "nobody knows what is on the disks of a killed guest that never flushes"
        );
        self.qemu.kill()?;
        self.go_on()
    }

    /// Makes a disk larger or smaller while the guest runs. The history stays where it was: a disk that holds some
    /// cannot become smaller than it.
    pub fn resize(&mut self, name: &str, bytes: u64) -> Result<()> {
        let at = self.place(name)?;
        ensure!(self.history().get(at).is_none_or(|&history| history <= bytes), "{name} would lose history");
        self.qmp.execute("block_resize", json!({"node-name": name, "size": bytes}))?;
        self.disks[at].bytes = bytes;
        Ok(())
    }

    /// Plugs in one more disk. The guest writes nothing to it.
    pub fn add(&mut self, disk: Disk) -> Result<()> {
        for document in disk.blockdevs() {
            self.qmp.execute("blockdev-add", document)?;
        }
        let device = json!({"driver": "virtio-blk-pci", "id": disk.name, "drive": disk.name});
        self.qmp.execute("device_add", device)?;
        self.disks.push(disk);
        Ok(())
    }

    /// Has QEMU write `bytes` bytes of the value `byte` to a disk, as the guest would. Not for the history's bytes.
    pub fn overwrite(&mut self, name: &str, offset: u64, bytes: u64, byte: u8) -> Result<()> {
        let at = self.place(name)?;
        ensure!(self.history().get(at).is_none_or(|&history| history <= offset), "{name} has history there");
        let device = format!("/machine/peripheral/{name}/virtio-backend");
        for command in [format!("write -P {byte} {offset} {bytes}"), "flush".to_owned()] {
            let line = format!("qemu-io -d {device} \"{command}\"");
            let said = self.qmp.execute("human-monitor-command", json!({"command-line": line}))?;
            let said = said.as_str().unwrap_or_default();
            let failed = ["rror", "failed", "nvalid"].iter().any(|word| said.contains(word));
            ensure!(!failed, "{line}: {said}");
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Result<usize> {
        let found = self.disks.iter().position(|disk| disk.name == name);
        found.with_context(|| format!("the guest has no disk {name}"))
    }

    /// Starts QEMU again after its end, and returns when the history is beyond all that the old one can have written.
    fn go_on(&mut self) -> Result<()> {
        let reported = self.seq().max(self.options.first_write.saturating_sub(1));
        self.options.first_write = reported + 1;
        let (folder, options) = (self.folder().to_owned(), self.options.clone());
        *self = Guest::boot(&folder, self.disks.clone(), self.history().to_owned(), options)?;
        self.wait_seq(reported + UNREPORTED_MAX, BOOT_WITHIN).map(drop)
    }
}
