//! Every QMP command that Aquifer may send, and the replies it reads: the whole list of what a hypervisor is asked.
//!
//! The arguments are JSON, checked by QEMU itself; the replies are our own structs with optional fields, because
//! the generated ones of a later schema refuse what an older QEMU leaves out. Unknown fields and values are ignored.

use qapi::Command;
use qapi::qmp::QmpCommand;
use serde::{Deserialize, Serialize};
use serde_json::Value;

macro_rules! commands {
    ($($(#[$doc:meta])* $type:ident = $name:literal -> $reply:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize)]
        #[serde(transparent)]
        pub struct $type(pub Value);

        impl Command for $type {
            type Ok = $reply;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }

        impl QmpCommand for $type {}
    )*};
}

commands! {
    /// `query-qmp-schema`: what this QEMU can do; one line of 236 kB.
    QuerySchema = "query-qmp-schema" -> Vec<Value>;
    /// `query-named-block-nodes`, always with `flat`.
    QueryNodes = "query-named-block-nodes" -> Vec<Node>;
    /// `query-block`: the guest's drives. Absent in qemu-storage-daemon.
    QueryBlock = "query-block" -> Vec<Drive>;
    /// `query-jobs`.
    QueryJobs = "query-jobs" -> Vec<Job>;
    /// `query-block-exports`.
    QueryExports = "query-block-exports" -> Vec<BlockExport>;
    /// `query-status`: asked once when a guest has stopped, never as a ping. Absent in qemu-storage-daemon.
    QueryStatus = "query-status" -> Status;
    /// `query-uuid`. Absent in qemu-storage-daemon.
    QueryUuid = "query-uuid" -> DomainUuid;
    /// `qom-get`: one property of a device.
    QomGet = "qom-get" -> Value;
    /// `nbd-server-start`.
    NbdServerStart = "nbd-server-start" -> Value;
    /// `nbd-server-stop`: drops every export, so only for a server known as ours.
    NbdServerStop = "nbd-server-stop" -> Value;
    /// `blockdev-add`.
    BlockdevAdd = "blockdev-add" -> Value;
    /// `blockdev-create`: makes a scratch, as a job, where Aquifer has no other way to the file.
    BlockdevCreate = "blockdev-create" -> Value;
    /// `blockdev-del`.
    BlockdevDel = "blockdev-del" -> Value;
    /// `block-set-write-threshold`.
    SetWriteThreshold = "block-set-write-threshold" -> Value;
    /// `transaction`.
    RunTransaction = "transaction" -> Value;
    /// `block-export-add`.
    ExportAdd = "block-export-add" -> Value;
    /// `block-export-del`.
    ExportDel = "block-export-del" -> Value;
    /// `job-cancel`.
    JobCancel = "job-cancel" -> Value;
    /// `job-dismiss`.
    JobDismiss = "job-dismiss" -> Value;
    /// `stop`: only for the moment in which filters are put in, see [`Cont`].
    Stop = "stop" -> Value;
    /// `qom-set`: one property of a device; only a disk's `drive`.
    QomSet = "qom-set" -> Value;
    /// `cont`: only for a guest that stopped because of our scratch, or that we paused.
    Cont = "cont" -> Value;
}

/// One entry of `query-named-block-nodes`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Name of the node; `#block…` when QEMU made it up.
    pub node_name: Option<String>,
    /// Driver, such as `qcow2`.
    pub drv: Option<String>,
    /// File behind it, as QEMU prints it.
    pub file: Option<String>,
    /// What the image says about itself.
    pub image: Option<Image>,
    /// Whether nothing may be written to it.
    #[serde(default)]
    pub ro: bool,
    /// Its dirty bitmaps, everybody's.
    #[serde(default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
}

/// One of `dirty-bitmaps` of a node.
#[derive(Debug, Clone, Deserialize)]
pub struct DirtyBitmap {
    /// Its name; absent for one that a job has for itself.
    pub name: Option<String>,
    /// Bytes that one bit stands for.
    #[serde(default)]
    pub granularity: u64,
    /// Dirty bytes, in whole bits.
    #[serde(default)]
    pub count: u64,
    /// Whether it takes note of writes.
    #[serde(default)]
    pub recording: bool,
    /// Whether an export or a job holds it.
    #[serde(default)]
    pub busy: bool,
    /// Whether QEMU was killed while it was in use: it can only be removed.
    #[serde(default)]
    pub inconsistent: bool,
}

/// `image` of a node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// Size that the guest sees, in bytes.
    pub virtual_size: Option<u64>,
    /// What only its format has.
    pub format_specific: Option<FormatSpecific>,
}

/// `format-specific` of an image.
#[derive(Debug, Clone, Deserialize)]
pub struct FormatSpecific {
    /// Of a qcow2: `compat`, among others.
    #[serde(default)]
    pub data: Value,
}

/// One entry of `query-block`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Drive {
    /// Name given by `-drive`; empty with `-blockdev`.
    #[serde(default)]
    pub device: String,
    /// Path of the device in QEMU's object tree.
    pub qdev: Option<String>,
    /// Whether the medium can be changed.
    #[serde(default)]
    pub removable: bool,
    /// `ok`, `failed` or `nospace`, where the device reports it.
    pub io_status: Option<String>,
    /// The medium.
    pub inserted: Option<Node>,
}

/// One entry of `query-jobs`.
#[derive(Debug, Clone, Deserialize)]
pub struct Job {
    /// Job id.
    pub id: String,
    /// `backup`, `mirror`, `create`, …
    #[serde(rename = "type", default)]
    pub kind: String,
    /// `running`, `concluded`, …
    #[serde(default)]
    pub status: String,
    /// Why it failed.
    pub error: Option<String>,
}

/// One entry of `query-block-exports`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExport {
    /// Export id.
    pub id: String,
    /// `nbd`, `vhost-user-blk`, `fuse`, …
    #[serde(rename = "type", default)]
    pub kind: String,
}

/// Reply of `query-uuid`.
#[derive(Debug, Clone, Deserialize)]
pub struct DomainUuid {
    /// All zeros when none was given.
    #[serde(rename = "UUID")]
    pub uuid: String,
}

/// Reply of `query-status`.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `running`, `io-error`, `paused`, …
    pub status: String,
}
