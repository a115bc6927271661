//! The program that runs in the test guest, as its first and only process.
//!
//! It loads the kernel modules that the initramfs carries, waits for the disks that the kernel command line announces,
//! and writes the history of [`pattern`] to them, one write at a time, each straight to the device. Asked to, it also
//! mounts the ext4 file system of one more disk, writes files there, and starts the guest agent, which can freeze it. On
//! the serial console it reports `SEQ n` (write n has completed) and `FILE n` (file n is written and synced), and `FAIL why`
//! before it gives up; the kernel then panics and QEMU ends. Asked to, it flushes the disks before each `SEQ`, so that what
//! is reported survives the death of QEMU, and says before it how long the flush and each write since the last report took:
//! `LAT n FLUSH WRITE…`, in microseconds. It is compiled by itself, without dependencies, into a static executable.
//!
//! Invariants: write n + 1 is not issued before write n has completed, and no write is issued while
//! [`pattern::UNREPORTED_MAX`] ones before it are not on the console.

#[path = "../src/pattern.rs"]
#[allow(dead_code, reason = "what only the checker needs")]
mod pattern;

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pattern::{BLOCK, Content, DATA_BLOCKS_MAX, Pattern, UNREPORTED_MAX, Write};

/// How often the console hears of progress: often enough for a narrow window, seldom enough not to slow the writes.
const REPORT_EVERY: Duration = Duration::from_millis(50);
/// How long the disks may take to appear.
const DISKS_WITHIN: Duration = Duration::from_secs(30);

const O_DIRECT: i32 = 0o40000;
const SYS_FINIT_MODULE: c_long = 313;
const MODULE_INIT_COMPRESSED_FILE: c_int = 4;
const TCSBRK: c_ulong = 0x5409;
const BLKDISCARD: c_ulong = 0x1277;
const BLKZEROOUT: c_ulong = 0x127f;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
}

fn main() {
    // Anywhere else than in a guest of its own this program would mount over and write to what is not the test's.
    if std::process::id() != 1 {
        eprintln!("this is the first process of a test guest, and nothing to run by hand");
        std::process::exit(2);
    }
    if let Err(error) = run() {
        println!("FAIL {error}");
    }
}

fn run() -> io::Result<()> {
    mount_kernel_files()?;
    let settings = Settings::of_kernel_command_line()?;
    load_modules(Path::new("/modules"))?;
    let disks = open_disks(settings.history.len())?;
    for (disk, &bytes) in disks.iter().zip(&settings.history) {
        if disk_bytes(disk)? < bytes {
            return Err(io::Error::other(format!("a disk is smaller than its history of {bytes} bytes")));
        }
    }
    let pattern = Pattern::new(&settings.history);
    let pattern = pattern.ok_or_else(|| io::Error::other("no disks, or one is too small"))?;
    if settings.files {
        start_agent()?;
        start_files(settings.history.len())?;
    }
    println!("READY {} disks", disks.len());
    write_history(&pattern, &disks, &settings)
}

struct Settings {
    /// How many bytes of each disk the history covers, from the first on.
    history: Vec<u64>,
    first_write: u64,
    writes_per_second: u64,
    files: bool,
    flushes: bool,
    latencies: bool,
}

impl Settings {
    fn of_kernel_command_line() -> io::Result<Settings> {
        let line = fs::read_to_string("/proc/cmdline")?;
        let missing = |name: &str| io::Error::other(format!("no {name}= on {line}"));
        let word = |name: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| missing(name))
        };
        let number = |name: &str| word(name)?.parse::<u64>().map_err(|_| missing(name));
        let history = word("rig.history")?.split(',').map(|bytes| bytes.parse().map_err(io::Error::other));
        Ok(Settings {
            history: history.collect::<io::Result<_>>()?,
            first_write: number("rig.first")?,
            writes_per_second: number("rig.rate")?,
            files: number("rig.files")? != 0,
            flushes: number("rig.flushes")? != 0,
            latencies: number("rig.latencies")? != 0,
        })
    }
}

fn mount_kernel_files() -> io::Result<()> {
    for (kind, target) in [(c"proc", c"/proc"), (c"devtmpfs", c"/dev"), (c"sysfs", c"/sys")] {
        mount_at(kind, target, kind)?;
    }
    Ok(())
}

fn mount_at(source: &CStr, target: &CStr, kind: &CStr) -> io::Result<()> {
    // SAFETY: all strings end in zero and live through the call; none of these file systems takes further data.
    let failed = unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) } != 0;
    if failed { Err(context(io::Error::last_os_error(), &format!("mounting {source:?}"))) } else { Ok(()) }
}

/// Starts the guest agent at the port that QEMU has named for it, as soon as it is there.
fn start_agent() -> io::Result<()> {
    let deadline = Instant::now() + DISKS_WITHIN;
    let port = loop {
        if let Some(port) = agent_port()? {
            break port;
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other("there is no port for the guest agent"));
        }
        thread::sleep(Duration::from_millis(10));
    };
    let mut agent = Command::new("/usr/sbin/qemu-ga");
    agent.args(["-m", "virtio-serial", "-t", "/run", "-f", "/run/agent.pid", "-p"]).arg(port);
    agent.spawn().map(drop).map_err(|error| context(error, "qemu-ga"))
}

/// The device of the port with the agent's name. QEMU tells the name some time after the port itself, and the kernel
/// shows none before.
fn agent_port() -> io::Result<Option<PathBuf>> {
    for port in fs::read_dir("/sys/class/virtio-ports").map_err(|error| context(error, "virtio-ports"))? {
        let port = port?;
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        let device = Path::new("/dev").join(port.file_name());
        if name.trim() == "org.qemu.guest_agent.0" && device.exists() {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// Mounts the disk behind the first `disks` ones, and writes one file after the other there, for ever.
fn start_files(disks: usize) -> io::Result<()> {
    let device = CString::new(format!("/dev/vd{}", ('a'..='z').nth(disks).unwrap_or('a')))?;
    mount_at(&device, c"/mnt", c"ext4")?;
    thread::spawn(|| {
        for number in 1_u64.. {
            let written = File::create(format!("/mnt/{}", number % 16)).and_then(|mut file| {
                file.write_all(format!("{number}\n").repeat(5000).as_bytes())?;
                file.sync_all()
            });
            match written {
                Ok(()) => println!("FILE {number}"),
                Err(error) => return println!("FAIL file {number}: {error}"),
            }
            thread::sleep(REPORT_EVERY);
        }
    });
    Ok(())
}

/// Loads every module of the folder, in the order of the names.
fn load_modules(folder: &Path) -> io::Result<()> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let flags =
            if path.extension().is_some_and(|end| end == "ko") { 0 } else { MODULE_INIT_COMPRESSED_FILE };
        let file = File::open(&path)?;
        // SAFETY: the descriptor is open through the call and the parameter string ends in zero.
        let failed = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), flags) } != 0;
        if failed {
            return Err(context(io::Error::last_os_error(), &path.display().to_string()));
        }
    }
    Ok(())
}

/// Opens `/dev/vda`, `/dev/vdb`, … as soon as they are there.
fn open_disks(count: usize) -> io::Result<Vec<File>> {
    let deadline = Instant::now() + DISKS_WITHIN;
    let open = |letter: char| {
        let path = format!("/dev/vd{letter}");
        while !Path::new(&path).exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(&path);
        file.map_err(|error| context(error, &path))
    };
    ('a'..='z').take(count).map(open).collect()
}

fn disk_bytes(mut disk: &File) -> io::Result<u64> {
    io::Seek::seek(&mut disk, io::SeekFrom::End(0))
}

fn write_history(pattern: &Pattern, disks: &[File], settings: &Settings) -> io::Result<()> {
    let mut buffer = Box::new(Aligned([0; DATA_BLOCKS_MAX as usize * BLOCK]));
    let started = Instant::now();
    let mut reporter = Reporter { settings, disks, reported: started, took: Vec::new() };
    for seq in settings.first_write.. {
        let write = pattern.write(seq);
        let issued = Instant::now();
        issue(pattern, seq, write, &disks[write.disk], &mut buffer.0)
            .map_err(|error| context(error, &format!("write {seq}, {write:?}")))?;
        reporter.completed(seq, issued.elapsed())?;
        if let Some(due_ms) = ((seq - settings.first_write) * 1000).checked_div(settings.writes_per_second) {
            thread::sleep(
                (started + Duration::from_millis(due_ms)).saturating_duration_since(Instant::now()),
            );
        }
    }
    Ok(())
}

/// What the console hears of the writes.
struct Reporter<'a> {
    settings: &'a Settings,
    disks: &'a [File],
    reported: Instant,
    /// How long each write since the last report took.
    took: Vec<Duration>,
}

impl Reporter<'_> {
    /// Takes note of a write, and reports when it is time to. The report has left the guest when this returns.
    fn completed(&mut self, seq: u64, took: Duration) -> io::Result<()> {
        self.took.push(took);
        if self.reported.elapsed() <= REPORT_EVERY && (self.took.len() as u64) < UNREPORTED_MAX {
            return Ok(());
        }
        let flushing = Instant::now();
        if self.settings.flushes {
            self.disks.iter().try_for_each(File::sync_data).map_err(|error| context(error, "a flush"))?;
        }
        let mut report = String::new();
        if self.settings.latencies {
            report += &format!("LAT {seq} {}", flushing.elapsed().as_micros());
            self.took.iter().for_each(|took| report += &format!(" {}", took.as_micros()));
            report += "\n";
        }
        let mut console = io::stdout();
        console.write_all(format!("{report}SEQ {seq}\n").as_bytes())?;
        // SAFETY: with the argument 1 the request only waits until everything is sent; the descriptor is open.
        if unsafe { ioctl(console.as_raw_fd(), TCSBRK, 1) } != 0 {
            return Err(context(io::Error::last_os_error(), "waiting for the console"));
        }
        self.took.clear();
        self.reported = Instant::now();
        Ok(())
    }
}

fn issue(pattern: &Pattern, seq: u64, write: Write, disk: &File, buffer: &mut [u8]) -> io::Result<()> {
    let offset = write.block * BLOCK as u64;
    let bytes = write.blocks * BLOCK as u64;
    match write.content {
        Content::Zeroes => range_command(disk, BLKZEROOUT, offset, bytes),
        Content::Discard => range_command(disk, BLKDISCARD, offset, bytes),
        Content::Plain | Content::Noise => {
            let (blocks, _) = buffer[..bytes as usize].as_chunks_mut::<BLOCK>();
            for (block, content) in (write.block..).zip(blocks) {
                pattern.fill(seq, block, content);
            }
            disk.write_all_at(&buffer[..bytes as usize], offset)
        }
    }
}

fn range_command(disk: &File, request: c_ulong, offset: u64, bytes: u64) -> io::Result<()> {
    let range = [offset, bytes];
    // SAFETY: both requests read two 64-bit numbers, which live through the call; the descriptor is open.
    let failed = unsafe { ioctl(disk.as_raw_fd(), request, range.as_ptr()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Memory that a device may be written from directly.
#[repr(align(4096))]
struct Aligned<const BYTES: usize>([u8; BYTES]);

fn context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
