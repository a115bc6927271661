//! What a caller asks for and what it gets back: the requests and the outcomes of backup and restore.
//!
//! Plain data. The outcomes serialise as the `done` documents of the command line: snake_case, sizes in
//! bytes, times in RFC 3339.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use aquifer_nbd::Uri;
use aquifer_qemu::{DiskChoice, GuardCommand, MonitorAddress, MonitorOptions, NbdListen, Quiesce};
use aquifer_repository::format::record::{Level, Mode};
use serde::Serialize;
use uuid::Uuid;

use crate::error::{Error, Kind};
use crate::filter_test::FilterVerdicts;

/// One backup to make.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// Name of the domain that the backup is filed under.
    pub domain: String,
    /// Where its disks are read.
    pub source: Source,
    /// The backup's id; a new one is made if it is not given.
    pub uuid: Option<Uuid>,
    /// Free text.
    pub description: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Read everything and compare with no earlier backup. Chunks that the repository has are still not
    /// stored twice.
    pub full: bool,
    /// Disks that are read so even if the others are not.
    pub full_disks: Vec<String>,
    /// What the disks shall be read against; without it each against what its bitmap counts from.
    pub parent: Option<WantedParent>,
    /// The part of the repository that the backup is filed in.
    pub namespace: Option<String>,
    /// The domain's definition as the caller knows it, kept with the backup.
    pub definition: Option<Vec<u8>>,
    /// Share of the chunks that a bitmap calls unchanged that is read all the same and compared, in millionths; without it
    /// a small share, and of a large disk not more than some 16 MiB.
    pub recheck_ppm: Option<u32>,
    /// How long another host's session of the domain must be silent before it is ended as dead; zero ends it at once.
    pub fence_after: Duration,
}

/// A parent that the caller names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedParent {
    /// The backup.
    pub backup: Uuid,
    /// Refuse a disk that cannot be read against it, instead of reading it whole.
    pub strict: bool,
}

/// Where the disks of a backup are read.
#[derive(Debug, Clone)]
pub enum Source {
    /// A running domain, frozen at one instant through its monitor.
    Qmp(Box<QmpSource>),
    /// Exports that someone else serves, by disk name. Whoever serves them answers for the instant.
    Nbd(Vec<(String, Uri)>),
    /// Disk images of a stopped domain, by disk name, read through `qemu-nbd` with image locking.
    Images(Vec<(String, PathBuf)>),
}

/// A running domain.
#[derive(Debug, Clone)]
pub struct QmpSource {
    /// Its monitor.
    pub monitor: MonitorAddress,
    /// Certificates and deadlines for the monitor.
    pub monitor_options: MonitorOptions,
    /// Our names for its disks, and which of them are wanted.
    pub disks: DiskChoice,
    /// Folder for the old contents of blocks that the guest overwrites meanwhile.
    pub scratch: PathBuf,
    /// Most bytes that these may take, over all disks.
    pub scratch_max_bytes: Option<u64>,
    /// Where QEMU serves the frozen disks.
    pub listen: NbdListen,
    /// Whether the guest's file systems are frozen around the instant.
    pub quiesce: Quiesce,
    /// The verdicts on filters, where the instant shall be held by one; without them the classic method is used.
    pub filter: Option<FilterVerdicts>,
    /// The guest agent that does it.
    pub agent: Option<MonitorAddress>,
    /// The process that cleans up when this one is killed.
    pub guard: Option<GuardCommand>,
}

/// State of a backup in an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// Committed: its entry was read back from the repository's log.
    Completed,
}

/// A committed backup.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename = "done")]
pub struct BackupOutcome {
    /// Its id.
    pub uuid: Uuid,
    /// The backup it was compared with.
    pub parent: Option<Uuid>,
    /// Its domain.
    pub domain: String,
    /// The instant that it shows.
    pub created: jiff::Timestamp,
    /// Always `completed`.
    pub state: BackupState,
    /// `full` if no disk had a parent.
    pub level: Level,
    /// Wall time from request to commit.
    pub seconds: f64,
    /// How long the guest's file systems were frozen, if they were.
    pub freeze_ms: Option<u64>,
    /// The highest resident memory of this process.
    pub memory_peak_bytes: u64,
    /// Packs written.
    pub packs: u64,
    /// What happened to each disk, in the order of the request.
    pub disks: Vec<DiskOutcome>,
    /// What the caller should know although the backup is complete.
    pub warnings: Vec<String>,
}

/// One disk of a committed backup.
///
/// Every byte of the disk is in exactly one of zero, kept, deduplicated and new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskOutcome {
    /// Disk name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// How it was read.
    pub mode: Mode,
    /// Why it was read that way, unless there was nothing to choose.
    pub reason: Option<String>,
    /// Bytes read from the source, without rechecked ones.
    pub read_bytes: u64,
    /// Bytes read although the bitmap called them clean.
    pub rechecked_bytes: u64,
    /// Bytes in chunks that are zero.
    pub zero_bytes: u64,
    /// Bytes in chunks that are the parent's.
    pub kept_bytes: u64,
    /// Bytes in chunks that the repository had, but not at this place of the parent.
    pub deduplicated_bytes: u64,
    /// Bytes in chunks that were stored.
    pub new_bytes: u64,
    /// Bytes that these chunks take, compressed and sealed.
    pub stored_bytes: u64,
    /// Nodes of disk trees read, the parent's included.
    pub tree_nodes_read: u64,
    /// Nodes of the disk tree written.
    pub tree_nodes_written: u64,
}

/// One restore to make.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The backup.
    pub backup: Uuid,
    /// Where each disk goes. Disks that are not named are not restored.
    pub disks: Vec<(String, VolumeSpec)>,
    /// Allow volumes with content; only what differs is written.
    pub rewrite_existing: bool,
    /// Read every volume again at the end and compare it with the backup by hash.
    pub verify: bool,
    /// Check everything that can be checked without writing, and write nothing.
    pub dry_run: bool,
    /// Go on where the repository is damaged: write what is whole, leave the rest of the volume alone, and tell where
    /// that is. Not with `verify`.
    pub salvage: bool,
}

/// Where a restored disk lands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSpec {
    /// A raw image file.
    Raw(PathBuf),
    /// A qcow2 image file.
    Qcow2(PathBuf),
    /// A block device.
    Block(PathBuf),
    /// A writable NBD export.
    Nbd(Uri),
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeSpec::Raw(path) => write!(f, "raw:{}", path.display()),
            VolumeSpec::Qcow2(path) => write!(f, "qcow2:{}", path.display()),
            VolumeSpec::Block(path) => write!(f, "{}", path.display()),
            VolumeSpec::Nbd(uri) => write!(f, "{uri}"),
        }
    }
}

impl FromStr for VolumeSpec {
    type Err = Error;

    /// Reads `raw:PATH`, `qcow2:PATH`, the path of a block device, or an NBD URI.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some((format @ ("raw" | "qcow2"), path)) = text.split_once(':') {
            if path.is_empty() {
                return Err(Error::new(Kind::Invalid, format!("volume `{format}:` names no path"))
                    .hint(format!("write {format}:PATH")));
            }
            let path = PathBuf::from(path);
            return Ok(if format == "raw" { VolumeSpec::Raw(path) } else { VolumeSpec::Qcow2(path) });
        }
        if text.starts_with("nbd") && text.contains("://") {
            let uri = text.parse::<Uri>().map_err(Error::from)?;
            return Ok(VolumeSpec::Nbd(uri));
        }
        if text.starts_with('/') {
            return Ok(VolumeSpec::Block(PathBuf::from(text)));
        }
        Err(Error::new(Kind::Invalid, format!("`{text}` is not a volume")).hint(
            "write raw:PATH or qcow2:PATH for an image file, /dev/… for a block device, or an nbd:// URI",
        ))
    }
}

/// A finished restore.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename = "done")]
pub struct RestoreOutcome {
    /// The backup.
    pub uuid: Uuid,
    /// Wall time.
    pub seconds: f64,
    /// True if nothing was written because the caller asked for that.
    pub dry_run: bool,
    /// The highest resident memory of this process.
    pub memory_peak_bytes: u64,
    /// What happened to each disk, in the order of the request.
    pub disks: Vec<RestoredDisk>,
}

/// A range of a disk of which the repository has no readable copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MissingRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// One restored disk. Every byte is in exactly one of written, skipped, zero and missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredDisk {
    /// Disk name.
    pub name: String,
    /// Where it went.
    pub volume: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes written as data.
    pub written_bytes: u64,
    /// Bytes that the volume held already.
    pub skipped_bytes: u64,
    /// Bytes left as, or turned into, holes.
    pub zero_bytes: u64,
    /// Bytes of the disk that are lost, and were left alone on the volume: only what a salvage accepts.
    pub missing_bytes: u64,
    /// Where they are, in order.
    pub missing: Vec<MissingRange>,
    /// True if the volume was read again and matched.
    pub verified: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_told_apart_by_their_spelling() {
        assert_eq!("raw:/a b".parse::<VolumeSpec>().unwrap(), VolumeSpec::Raw("/a b".into()));
        assert_eq!("qcow2:/a:b".parse::<VolumeSpec>().unwrap(), VolumeSpec::Qcow2("/a:b".into()));
        assert_eq!("/dev/vdb".parse::<VolumeSpec>().unwrap(), VolumeSpec::Block("/dev/vdb".into()));
        let nbd = "nbd+unix:///x?socket=/tmp/s".parse::<VolumeSpec>().unwrap();
        assert!(matches!(nbd, VolumeSpec::Nbd(_)));
    }

    #[test]
    fn a_volume_without_a_kind_is_refused_with_the_way_out() {
        for text in ["disk.img", "raw:", "", "vmdk:/x"] {
            let error = text.parse::<VolumeSpec>().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.hint_text().unwrap().contains("raw:PATH"));
        }
    }

    #[test]
    fn a_restore_outcome_is_the_documented_document() {
        let outcome = RestoreOutcome {
            uuid: Uuid::nil(),
            seconds: 0.5,
            dry_run: false,
            memory_peak_bytes: 7,
            disks: vec![RestoredDisk {
                name: "vda".into(),
                volume: "raw:/x".into(),
                size_bytes: 10,
                written_bytes: 1,
                skipped_bytes: 2,
                zero_bytes: 3,
                missing_bytes: 4,
                missing: vec![MissingRange { offset: 8, length: 4 }],
                verified: false,
            }],
        };
        assert_eq!(
            serde_json::to_value(&outcome).unwrap(),
            serde_json::json!({"event": "done", "uuid": Uuid::nil(), "seconds": 0.5, "dry_run": false,
                "memory_peak_bytes": 7,
                "disks": [{"name": "vda", "volume": "raw:/x", "size_bytes": 10, "written_bytes": 1,
                           "skipped_bytes": 2, "zero_bytes": 3, "missing_bytes": 4,
                           "missing": [{"offset": 8, "length": 4}], "verified": false}]})
        );
    }
}
