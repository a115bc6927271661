//! The test that a QEMU must pass before its copy-before-write filter may hold the instant of a backup, and its verdicts.
//!
//! A storage daemon of the same build serves a disk twice: through the filter, where writers overwrite it and write
//! zeroes into it as fast as they can, and as the snapshot, which is read meanwhile and must show every byte as it was
//! before the first write. QEMU 7.2 shows zeroes for data and data for zeroes here, without an error anywhere.
//!
//! Not a proof: a build that passes may still be wrong in a way that some hundred thousand requests did not hit.
//! Invariant: a verdict counts for the very build that was tested and for no other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aquifer_nbd::{Client, ClientOptions, Uri};
use aquifer_qemu::commands::{BlockdevAdd, ExportAdd, NbdServerStart};
use aquifer_qemu::{Monitor, MonitorAddress, MonitorOptions};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result};

/// Size of the disk that is tested with.
const DISK_BYTES: u64 = 64 << 20;
/// The disk holds data and zeroes in turn, in pieces of this size.
const PIECE_BYTES: u64 = 64 << 10;
/// One request of the reader.
const READ_BYTES: u64 = 256 << 10;
/// Disks that are tested, one after the other.
const ROUNDS: u32 = 4;
/// How often the snapshot of each is read.
const PASSES: u64 = 3;
/// Requests of the readers at one time: what goes wrong goes wrong between the two halves of an answer, so there must be
/// many of them.
const READERS: u64 = 8;
const WRITERS: u32 = 4;
/// What the writers write where they do not write zeroes; no piece holds it.
const OVERWRITTEN: u8 = 0xff;
/// Until the storage daemon must answer.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// What a test found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterVerdict {
    /// Writes that ran beside the reads.
    pub writes: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Blocks of 4 KiB among them that were not what they had been.
    pub wrong_blocks: u64,
}

impl FilterVerdict {
    /// Whether every byte was right, and enough was tried to say so.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.wrong_blocks == 0 && self.writes > 0 && self.read_bytes > 0
    }
}

/// The verdicts that this host has, by build of QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FilterVerdicts(BTreeMap<String, FilterVerdict>);

impl FilterVerdicts {
    /// Reads the verdicts that an earlier doctor left in `state_dir`; without any, an empty set.
    ///
    /// # Errors
    /// `Unavailable` when the file is there and cannot be read. One that makes no sense counts as none.
    pub fn load(state_dir: &Path) -> Result<Self> {
        let path = place(state_dir);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::caused(Kind::Unavailable, error).about(path.display())),
        }
    }

    /// Refuses a QEMU that did not pass.
    ///
    /// # Errors
    /// `Unsupported`, with what was found and the way out.
    pub fn require(&self, build: &str) -> Result<()> {
        let refused = |text: String, hint: &str| Err(Error::new(Kind::Unsupported, text).hint(hint));
        match self.0.get(build) {
            Some(verdict) if verdict.passed() => Ok(()),
            Some(verdict) => refused(
                format!(
                    "the filter of QEMU {build} shows wrong data: {} blocks of {} bytes read beside {} writes were not \
                     what they had been",
                    verdict.wrong_blocks, verdict.read_bytes, verdict.writes
                ),
                "use --method classic, or a newer QEMU",
            ),
            None => refused(
                format!("the filter of QEMU {build} was not tested on this host"),
                "run `aquifer doctor` where the qemu-storage-daemon of that very build is installed, or use --method classic",
            ),
        }
    }

    fn keep(mut self, state_dir: &Path, build: String, verdict: FilterVerdict) -> Result<()> {
        self.0.insert(build, verdict);
        let (path, part) = (place(state_dir), state_dir.join("filter-tests.part"));
        let text = serde_json::to_vec_pretty(&self).map_err(|error| Error::caused(Kind::Internal, error))?;
        std::fs::write(&part, text)
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|error| Error::caused(Kind::Unavailable, error).about(path.display()))
    }
}

fn place(state_dir: &Path) -> PathBuf {
    state_dir.join("filter-tests.json")
}

/// Tests the `qemu-storage-daemon` of this host with files in `folder`, and keeps the verdict in `state_dir`. Gives the
/// build with it; `None` where there is no such program.
///
/// # Errors
/// What kept the test from its end; there is no verdict then.
pub(crate) async fn test_filter(folder: &Path, state_dir: &Path) -> Result<Option<(String, FilterVerdict)>> {
    let mut total = FilterVerdict { writes: 0, read_bytes: 0, wrong_blocks: 0 };
    let mut build = String::new();
    for seed in 1..=ROUNDS {
        let Some(daemon) = StorageDaemon::start(folder).await? else { return Ok(None) };
        build = daemon.monitor.build();
        let verdict = Box::pin(daemon.round(seed)).await?;
        total.writes += verdict.writes;
        total.read_bytes += verdict.read_bytes;
        total.wrong_blocks += verdict.wrong_blocks;
    }
    FilterVerdicts::load(state_dir)?.keep(state_dir, build.clone(), total)?;
    Ok(Some((build, total)))
}

/// A storage daemon with the disk `disk`, and its export through the filter and of the snapshot.
struct StorageDaemon {
    _process: tokio::process::Child,
    monitor: Monitor,
    socket: PathBuf,
}

impl StorageDaemon {
    async fn start(folder: &Path) -> Result<Option<Self>> {
        let failed = |error: std::io::Error| Error::caused(Kind::Unavailable, error).about(folder.display());
        let at = |name: &str| folder.join(name);
        write_disk(&at("filtered.raw")).map_err(failed)?;
        std::fs::File::create(at("copied.raw")).and_then(|file| file.set_len(DISK_BYTES)).map_err(failed)?;
        for socket in ["filter.qmp", "filter.nbd"] {
            match std::fs::remove_file(at(socket)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let disk = json!({"driver": "raw", "node-name": "disk", "discard": "unmap",
            "file": {"driver": "file", "filename": at("filtered.raw"), "discard": "unmap"}});
        let started = tokio::process::Command::new("qemu-storage-daemon")
            .args(["--blockdev", &disk.to_string(), "--chardev"])
            .arg(format!("socket,id=qmp,server=on,wait=off,path={}", at("filter.qmp").display()))
            .args(["--monitor", "chardev=qmp"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error).hint("reinstall qemu-storage-daemon")),
        };
        let monitor = connect(&at("filter.qmp")).await?;
        let daemon = Self { _process: process, monitor, socket: at("filter.nbd") };
        daemon.serve(&at("copied.raw")).await?;
        Ok(Some(daemon))
    }

    async fn serve(&self, copied: &Path) -> Result<()> {
        let address = json!({"addr": {"type": "unix", "data": {"path": self.socket}}});
        self.monitor.execute(NbdServerStart(address)).await?;
        for node in [
            json!({"driver": "file", "node-name": "copied", "filename": copied, "discard": "unmap"}),
            json!({"driver": "copy-before-write", "node-name": "filter", "file": "disk", "target": "copied",
                "on-cbw-error": "break-snapshot"}),
            json!({"driver": "snapshot-access", "node-name": "snapshot", "file": "filter"}),
        ] {
            self.monitor.execute(BlockdevAdd(node)).await?;
        }
        for (node, writable) in [("filter", true), ("snapshot", false)] {
            let export =
                json!({"type": "nbd", "id": node, "node-name": node, "name": node, "writable": writable});
            self.monitor.execute(ExportAdd(export)).await?;
        }
        Ok(())
    }

    async fn client(&self, export: &str, writable: bool) -> Result<Client> {
        let uri: Uri = format!("nbd+unix:///{export}?socket={}", self.socket.display()).parse()?;
        Ok(Client::connect(&uri, &ClientOptions { writable, ..ClientOptions::default() }).await?)
    }

    /// Reads the snapshot while the disk is overwritten.
    async fn round(&self, seed: u32) -> Result<FilterVerdict> {
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, stop, writes) =
                (self.client("filter", true).await?, Arc::clone(&stop), Arc::clone(&writes));
            writers.spawn(overwrite(client, u64::from(seed * WRITERS + writer), stop, writes));
        }
        let reader = self.client("snapshot", false).await?;
        let mut readers = JoinSet::new();
        for part in 0..READERS {
            readers.spawn(compare(reader.clone(), part));
        }
        let mut wrong_blocks = Ok(0);
        while let Some(ended) = readers.join_next().await {
            let found = ended.map_err(|error| Error::caused(Kind::Internal, error)).flatten();
            wrong_blocks = wrong_blocks.and_then(|sum| Ok::<u64, Error>(sum + found?));
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(ended) = writers.join_next().await {
            ended.map_err(|error| Error::caused(Kind::Internal, error))??;
        }
        Ok(FilterVerdict {
            writes: writes.load(Ordering::Relaxed),
            read_bytes: PASSES * DISK_BYTES,
            wrong_blocks: wrong_blocks?,
        })
    }
}

async fn connect(socket: &Path) -> Result<Monitor> {
    let (address, options) = (MonitorAddress::Unix(socket.to_owned()), MonitorOptions::default());
    let deadline = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        match Monitor::connect(&address, &options).await {
            Ok(monitor) => return Ok(monitor),
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// What the disk holds at `offset` before the first write: never [`OVERWRITTEN`].
fn byte_at(offset: u64) -> u8 {
    let piece = offset / PIECE_BYTES;
    match piece.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 {
        0 => 0,
        _ => u8::try_from(1 + piece % 250).unwrap_or(1),
    }
}

fn write_disk(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(path)?;
    file.set_len(DISK_BYTES)?;
    let mut piece = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
    for offset in (0..DISK_BYTES).step_by(piece.len()).filter(|&offset| byte_at(offset) != 0) {
        piece.fill(byte_at(offset));
        file.write_all_at(&piece, offset)?;
    }
    Ok(())
}

/// Writes data and zeroes all over the disk until it is told to stop.
async fn overwrite(client: Client, seed: u64, stop: Arc<AtomicBool>, writes: Arc<AtomicU64>) -> Result<()> {
    const SIZES: [u64; 3] = [4 << 10, 64 << 10, 1 << 20];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    while !stop.load(Ordering::Relaxed) {
        let bytes = SIZES[usize::try_from(random(3)).unwrap_or(0)];
        let offset = random((DISK_BYTES - bytes) / 4096 + 1) * 4096;
        if random(5) < 3 {
            client.write_zeroes(offset, bytes, false).await?;
        } else {
            client.write(offset, vec![OVERWRITTEN; usize::try_from(bytes).unwrap_or(0)]).await?;
        }
        writes.fetch_add(1, Ordering::Relaxed);
    }
    client.disconnect().await;
    Ok(())
}

/// Reads one part of the snapshot and counts the blocks of 4 KiB that are not what they were.
async fn compare(client: Client, part: u64) -> Result<u64> {
    let mut wrong_blocks = 0;
    for request in (part..PASSES * DISK_BYTES / READ_BYTES).step_by(usize::try_from(READERS).unwrap_or(1)) {
        let offset = request * READ_BYTES % DISK_BYTES;
        let buffer = vec![0; usize::try_from(READ_BYTES).unwrap_or(0)];
        let mut read = client.read(offset, buffer).await?;
        read.zero_holes();
        for (number, block) in (0..).zip(read.buffer.chunks(4096)) {
            let expected = byte_at(offset + number * 4096);
            wrong_blocks += u64::from(block.iter().any(|&byte| byte != expected));
        }
    }
    Ok(wrong_blocks)
}
