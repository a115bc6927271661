//! A live guest: QEMU without hardware help, Debian's kernel, and a program that writes a known history to its disks.
//!
//! [`Guest`] is ended when it is dropped, and dies by itself after [`GuestOptions::life`]. `/dev/kvm` is never used, so
//! that it runs the same everywhere. What else happens to it in its life, restarts and new disks, is in `life.rs`.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::disk::Disk;
use crate::initramfs::Boot;
use crate::latency::Latency;
use crate::process::{Daemon, connect_to, wait_for};
use crate::qmp::Qmp;
use crate::tools;

/// From the start of QEMU to the first write, on a machine that is busy with other tests.
pub(crate) const BOOT_WITHIN: Duration = Duration::from_secs(120);

/// How a guest is started.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Writes a second at most, 0 for as many as it can.
    pub writes_per_second: u64,
    /// The first write: not 1 when the disks hold the history up to the one before.
    pub first_write: u64,
    /// QMP monitors beside the one that the test itself uses.
    pub monitors: usize,
    /// One more disk, with an ext4 file system that the guest mounts and writes files to. The guest agent runs, too.
    pub file_system: Option<Disk>,
    /// Flush the disks before each report: only then the history can go on after a SIGKILL of QEMU.
    pub flushes: bool,
    /// Report the duration of every write, for [`Guest::latency`].
    pub latencies: bool,
    /// Hard limit of the life of each of the guest's QEMUs.
    pub life: Duration,
    /// Further arguments for QEMU.
    pub arguments: Vec<String>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions {
            writes_per_second: 300,
            first_write: 1,
            monitors: 1,
            file_system: None,
            flushes: false,
            latencies: false,
            life: Duration::from_secs(300),
            arguments: Vec::new(),
        }
    }
}

/// A running guest that writes to its disks.
#[derive(Debug)]
pub struct Guest {
    pub(crate) qemu: Daemon,
    pub(crate) qmp: Qmp,
    folder: PathBuf,
    pub(crate) disks: Vec<Disk>,
    /// For each disk that the history is written to: how many bytes of it the history covers.
    history: Vec<u64>,
    pub(crate) options: GuestOptions,
}

impl Guest {
    /// Boots a guest with these disks and waits for its first writes. Sockets and logs lie in `folder`.
    pub fn start(folder: &Path, disks: &[Disk], options: &GuestOptions) -> Result<Guest> {
        let history = disks.iter().map(|disk| disk.bytes).collect();
        let disks = disks.iter().chain(&options.file_system).cloned().collect();
        Guest::boot(folder, disks, history, options.clone())
    }

    /// Boots with all these disks, of which the first hold a history, and waits for the first writes.
    pub(crate) fn boot(
        folder: &Path,
        disks: Vec<Disk>,
        history: Vec<u64>,
        options: GuestOptions,
    ) -> Result<Guest> {
        let command = command_line(folder, &disks, &history, &options)?;
        // What an earlier guest left here must not be taken for this one's.
        for name in ["serial.log", "own.qmp"] {
            if folder.join(name).exists() {
                fs::remove_file(folder.join(name))?;
            }
        }
        let mut qemu = Daemon::spawn(&command, &folder.join("qemu.log"), options.life)?;
        let qmp = Qmp::over(connect_to(&mut qemu, &folder.join("own.qmp"))?)?;
        let first_write = options.first_write;
        let mut guest = Guest { qemu, qmp, folder: folder.to_owned(), disks, history, options };
        guest.wait_seq(first_write, BOOT_WITHIN)?;
        Ok(guest)
    }

    /// The socket of monitor `number`, counted from zero. The test uses none of these itself.
    pub fn monitor(&self, number: usize) -> PathBuf {
        monitor_socket(&self.folder, number)
    }

    /// The guest agent's socket, where the guest has a file system.
    pub fn agent(&self) -> PathBuf {
        agent_socket(&self.folder)
    }

    /// How many times the guest has written to its file system: it cannot while that is frozen.
    pub fn files_written(&self) -> u64 {
        reports(&self.serial(), "FILE ").last().unwrap_or(0)
    }

    /// The test's own monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The guest's disks, in its order: those with the history, the one with the file system, and those added later.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// How many bytes of each of the first disks the history covers, as [`check_grown`](crate::check_grown) wants it.
    pub fn history(&self) -> &[u64] {
        &self.history
    }

    /// The folder of its sockets and logs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// QEMU itself.
    pub fn process(&mut self) -> &mut Daemon {
        &mut self.qemu
    }

    /// Everything the guest has said on its console.
    pub fn serial(&self) -> String {
        let bytes = fs::read(self.folder.join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The newest write that the guest is known to have completed; 0 before the first report.
    pub fn seq(&self) -> u64 {
        reports(&self.serial(), "SEQ ").last().unwrap_or(0)
    }

    /// Waits until write `seq` is known to have completed, and returns the newest one that is.
    pub fn wait_seq(&mut self, seq: u64, within: Duration) -> Result<u64> {
        let (qemu, serial) = (&mut self.qemu, self.folder.join("serial.log"));
        wait_for(&format!("write {seq} of the guest"), within, || {
            let console = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
            let failed = console.lines().find(|line| line.contains("FAIL ") || line.contains("Kernel panic"));
            ensure!(failed.is_none(), "the guest gave up: {}", failed.unwrap_or_default());
            qemu.ensure_running().with_context(|| format!("its console: {console}"))?;
            Ok(reports(&console, "SEQ ").last().filter(|&newest| newest >= seq))
        })
    }

    /// A write that had not completed before this call: the upper end of the window of what happened before it.
    pub fn next_seq(&mut self) -> Result<u64> {
        // The first report from now on may speak of a write from before; the guest issues the next one after it.
        let newest = self.seq();
        self.wait_seq(newest + 1, Duration::from_secs(60))
    }

    /// How long the writes of this window took, of a guest with [`GuestOptions::latencies`].
    pub fn latency(&self, writes: RangeInclusive<u64>) -> Result<Latency> {
        Latency::of(&self.serial(), writes)
    }

    /// How many times QEMU has stopped the guest since it was started, for whatever reason.
    pub fn stops(&mut self) -> Result<u64> {
        // The answer comes behind the events of what was before it.
        self.status()?;
        Ok(self.qmp.stops())
    }

    /// Stops the guest's processor: nothing is written any more.
    pub fn pause(&mut self) -> Result<()> {
        self.qmp.execute("stop", json!({})).map(drop)
    }

    /// Lets a paused guest go on.
    pub fn resume(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// QEMU's word for the state of the guest: `running`, `paused`, `io-error`, …
    pub fn status(&mut self) -> Result<String> {
        let answer = self.qmp.execute("query-status", json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// What a backup has left in QEMU, as [`Qmp::leftovers`].
    pub fn leftovers(&mut self) -> Result<Vec<String>> {
        let known: Vec<String> = self.disks.iter().flat_map(Disk::nodes).collect();
        self.qmp.leftovers(&known)
    }

    /// Ends QEMU in order, so that its images are whole, and returns the disks.
    pub fn quit(mut self) -> Result<Vec<Disk>> {
        self.qmp.execute("quit", json!({}))?;
        self.qemu.wait(Duration::from_secs(30))?;
        Ok(self.disks.clone())
    }
}

fn command_line(folder: &Path, disks: &[Disk], history: &[u64], options: &GuestOptions) -> Result<Command> {
    let boot = Boot::prepare()?;
    let mut qemu = Command::new(tools::tool("qemu-system-x86_64")?);
    if let Some(prefix) = tools::qemu_prefix() {
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(prefix.join(data));
        }
    }
    qemu.args(["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "128"]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    qemu.args(["-serial", &format!("file:{}", folder.join("serial.log").display())]);
    qemu.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initramfs);
    let history: Vec<String> = history.iter().map(u64::to_string).collect();
    qemu.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 rig.history={} rig.first={} rig.rate={} rig.files={} rig.flushes={} \
         rig.latencies={}",
        history.join(","),
        options.first_write,
        options.writes_per_second,
        u8::from(options.file_system.is_some()),
        u8::from(options.flushes),
        u8::from(options.latencies),
    ));
    let monitors = (0..options.monitors).map(|number| monitor_socket(folder, number));
    for (number, socket) in monitors.chain([folder.join("own.qmp")]).enumerate() {
        qemu.args([
            "-chardev",
            &format!("socket,id=mon{number},server=on,wait=off,path={}", socket.display()),
        ]);
        qemu.args(["-mon", &format!("chardev=mon{number},mode=control")]);
    }
    if options.file_system.is_some() {
        let socket = agent_socket(folder);
        qemu.args(["-chardev", &format!("socket,id=agent,server=on,wait=off,path={}", socket.display())]);
        qemu.args(["-device", "virtio-serial-pci", "-device"]);
        qemu.arg("virtserialport,chardev=agent,name=org.qemu.guest_agent.0");
    }
    for disk in disks {
        for document in disk.blockdevs() {
            qemu.arg("-blockdev").arg(document.to_string());
        }
        qemu.args(["-device", &format!("virtio-blk-pci,id={0},drive={0}", disk.name)]);
    }
    qemu.args(&options.arguments);
    Ok(qemu)
}

fn monitor_socket(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.qmp"))
}

fn agent_socket(folder: &Path) -> PathBuf {
    folder.join("agent.sock")
}

/// The numbers that the console reports after `word`. A line still being printed is left out.
fn reports(console: &str, word: &str) -> impl Iterator<Item = u64> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    whole.lines().filter_map(move |line| line.strip_prefix(word)?.trim_end().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::reports;

    #[test]
    fn a_report_counts_once_its_line_is_whole() {
        assert_eq!(reports("READY 2 disks\r\nSEQ 12\r\nSEQ 13", "SEQ ").last(), Some(12));
        assert_eq!(reports("SEQ 12\r\nFILE 7\r\nSEQ 1345\r\n", "SEQ ").last(), Some(1345));
        assert_eq!(reports("", "SEQ ").last(), None);
    }
}
