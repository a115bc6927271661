//! What can go wrong between Aquifer and a hypervisor, each with the object, the number and the way out.
//!
//! Callers match on variants or on the coarse [`ErrorKind`]; nobody matches on text, least of all on QEMU's, whose
//! errors are nearly all of one class.

use std::io;
use std::path::PathBuf;

use crate::monitor::Closed;
use crate::watch::Lost;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller must do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong and stays wrong.
    Invalid,
    /// Something named does not exist.
    NotFound,
    /// Somebody else is at it: wait, or end the other.
    Conflict,
    /// Certificates, keys or permissions.
    Denied,
    /// Not reachable, gone, silent or full: a later attempt may succeed.
    Unavailable,
    /// This QEMU or this machine cannot do it.
    Unsupported,
    /// A fault of Aquifer or of its peer.
    Internal,
}

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no address of a monitor or agent.
    #[error("address {text:?}: {reason}")]
    Address {
        /// As given.
        text: String,
        /// What was expected.
        reason: &'static str,
    },
    /// The text is no repository id.
    #[error("repository id {text:?} is not 32 hex digits")]
    RepositoryId {
        /// As given.
        text: String,
    },
    /// The text is no choice of quiescing.
    #[error("quiesce {text:?}: expected off, try or require")]
    QuiesceChoice {
        /// As given.
        text: String,
    },
    /// The path of the socket does not exist.
    #[error("no socket at {address}: is the domain running, and has it a monitor of its own there?")]
    NoSuchSocket {
        /// Address that was tried.
        address: String,
    },
    /// A socket file without a listener: its QEMU is gone.
    #[error("nobody listens at {address}: the domain has ended, the socket is a leftover")]
    NotListening {
        /// Address that was tried.
        address: String,
    },
    /// The monitor accepted and stayed silent: QMP serves one client a socket.
    #[error(
        "monitor {address} accepted the connection and sent no greeting within {deadline_ms} ms: another client \
         holds it; give Aquifer a monitor of its own"
    )]
    MonitorTaken {
        /// Address that was tried.
        address: String,
        /// How long was waited.
        deadline_ms: u64,
    },
    /// A greeting came and then nothing.
    #[error(
        "monitor {address} (QEMU {version}) sent its greeting and did not answer qmp_capabilities within \
         {deadline_ms} ms; TLS monitors of QEMU 7.2 are known for this: use a unix socket through ssh:// instead"
    )]
    MonitorMute {
        /// Address that was tried.
        address: String,
        /// From the greeting.
        version: String,
        /// How long was waited.
        deadline_ms: u64,
    },
    /// The first line is no QMP greeting.
    #[error("{address} is not a QMP monitor: it sent {line:?}")]
    NotAMonitor {
        /// Address that was tried.
        address: String,
        /// Beginning of what it sent.
        line: String,
    },
    /// The connection could not be made.
    #[error("cannot connect to {address}")]
    Connect {
        /// Address that was tried.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// Certificates could not be loaded or used.
    #[error("TLS certificates in {}: {reason}", folder.display())]
    Certificates {
        /// Folder or file at fault.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A TLS address without a folder of certificates.
    #[error(
        "{address} needs certificates: set tls_certificates to a folder with ca-cert.pem, client-cert.pem and client-key.pem"
    )]
    NoCertificates {
        /// Address that needs them.
        address: String,
    },
    /// TLS was refused.
    #[error("TLS with {address} failed; QEMU's own log has the reason when it denied the certificate")]
    Tls {
        /// Address that was tried.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// The ssh session failed.
    #[error("ssh to {destination}: {what}")]
    Ssh {
        /// `ssh://[user@]host[:port]`.
        destination: String,
        /// What was done.
        what: &'static str,
        /// Cause.
        source: openssh::Error,
    },
    /// A command on the other machine failed.
    #[error("{destination}: {what} failed: {detail}")]
    Remote {
        /// `ssh://[user@]host[:port]`.
        destination: String,
        /// What was done.
        what: &'static str,
        /// Its standard error.
        detail: String,
    },
    /// The monitor's connection ended.
    #[error("monitor {address} closed the connection: {closed}")]
    MonitorClosed {
        /// Address of the monitor.
        address: String,
        /// Why.
        closed: Closed,
    },
    /// No answer in time.
    #[error("monitor {address} did not answer {command} within {deadline_ms} ms")]
    Deadline {
        /// Address of the monitor.
        address: String,
        /// QMP command.
        command: &'static str,
        /// How long was waited.
        deadline_ms: u64,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// QMP command.
        command: &'static str,
        /// QEMU's text.
        description: String,
    },
    /// The answer has not the shape that every QEMU gives it.
    #[error("QEMU answered {command} with something else than expected: {detail}")]
    UnexpectedReply {
        /// QMP command.
        command: &'static str,
        /// What was wrong.
        detail: String,
    },
    /// This QEMU lacks something.
    #[error("QEMU {version} lacks {}: Aquifer needs QEMU 6.0 or later with these", missing.join(", "))]
    Unsupported {
        /// From the greeting.
        version: String,
        /// QMP commands or transaction actions.
        missing: Vec<String>,
    },
    /// Disk name unknown.
    #[error("no disk matches {name:?}; this domain has: {}", existing.join(", "))]
    NoSuchDisk {
        /// As asked for.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// A disk without a device, where a filter is to stand between the two.
    #[error("disk {disk} belongs to no device, so that no filter can be put over it: use the classic method")]
    NoDevice {
        /// The disk.
        disk: String,
    },
    /// A filter of ours whose disk cannot be told.
    #[error(
        "filter {filter} is over a disk that nothing names any more: put its device back by hand (qom-set of `drive`), then run `domain cleanup`"
    )]
    FilterWithoutDisk {
        /// Node name of the filter.
        filter: String,
    },
    /// A selector that several disks match.
    #[error("{selector:?} matches several disks: {}; name one by its qdev id or node", matching.join(", "))]
    AmbiguousDisk {
        /// As asked for.
        selector: String,
        /// What it matches.
        matching: Vec<String>,
    },
    /// One name for two disks.
    #[error("disk name {name:?} is given twice")]
    DiskNameTwice {
        /// The name.
        name: String,
    },
    /// One disk under two names.
    #[error("{first:?} and {second:?} are the same disk, {node}")]
    DiskTwice {
        /// First name.
        first: String,
        /// Second name.
        second: String,
        /// Node of the disk.
        node: String,
    },
    /// The drive has no medium.
    #[error("drive {name:?} is empty: there is nothing to back up in it")]
    EmptyDrive {
        /// Name of the disk.
        name: String,
    },
    /// Nothing to back up.
    #[error("the domain has no disk to back up; it has: {}", existing.join(", "))]
    NoDisks {
        /// What there is, with the reason why each is skipped.
        existing: Vec<String>,
    },
    /// Somebody else's NBD server.
    #[error(
        "this QEMU already has an NBD server that is not Aquifer's{}; it was left alone: end its owner's work first",
        listed(exports)
    )]
    ForeignServer {
        /// Its exports, as far as there are any.
        exports: Vec<String>,
    },
    /// Somebody else's block job.
    #[error(
        "block job {id:?} ({kind}, {status}) is not Aquifer's and was left alone: wait until it has ended"
    )]
    ForeignJob {
        /// Job id.
        id: String,
        /// `backup`, `mirror`, …
        kind: String,
        /// `running`, …
        status: String,
    },
    /// Another repository's session.
    #[error(
        "{name:?} belongs to another Aquifer repository ({repository}…) that backs up this domain now, or whose run \
         was killed: wait for it, or run `aquifer domain cleanup` with that repository"
    )]
    OtherRepository {
        /// Node, job or export.
        name: String,
        /// First 8 hex digits of the other repository's id.
        repository: String,
    },
    /// The folder for scratch files cannot be used.
    #[error("scratch {}: {what}", path.display())]
    Scratch {
        /// Folder or file.
        path: PathBuf,
        /// What was done.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// Too little room to protect the guest at all.
    #[error(
        "scratch {}: {available_bytes} bytes to be had for {disks} disks, at least {needed_bytes} are needed; free some \
         space, choose another folder with --scratch, or raise --scratch-max", folder.display()
    )]
    ScratchTooSmall {
        /// Folder of the scratch files.
        folder: PathBuf,
        /// Free space or cap, whichever is less.
        available_bytes: u64,
        /// Least that makes sense.
        needed_bytes: u64,
        /// Number of disks.
        disks: usize,
    },
    /// A socket path does not fit.
    #[error("a socket in {} would have a path of {bytes} bytes and 107 is the limit: choose a shorter folder", folder.display())]
    SocketPathTooLong {
        /// The folder.
        folder: PathBuf,
        /// Length of the shortest name we could give.
        bytes: usize,
    },
    /// The frozen instant is gone; nothing read since may be trusted.
    #[error("the frozen instant is lost: {0}")]
    InstantLost(Lost),
    /// The clean-up did not get everything.
    #[error("after the clean-up QEMU still has {}; run `aquifer domain cleanup` again", names.join(", "))]
    Leftover {
        /// Nodes, jobs and exports of ours.
        names: Vec<String>,
    },
    /// Something of ours did not go away in time.
    #[error("{name} did not end within {deadline_ms} ms")]
    Stuck {
        /// Job or export.
        name: String,
        /// How long was waited.
        deadline_ms: u64,
    },
    /// The NBD server holds a connection that has not chosen an export: stopping it could stop the guest.
    #[error(
        "our NBD server was left running: for {deadline_ms} ms some client of it neither chose an export nor left, and \
         QEMU would wait for that client with the guest standing still"
    )]
    ServerBusy {
        /// How long was waited.
        deadline_ms: u64,
    },
    /// A job of ours failed.
    #[error("job {id} failed: {detail}")]
    JobFailed {
        /// Job id.
        id: String,
        /// QEMU's text.
        detail: String,
    },
    /// The guard process cannot be started or spoken to.
    #[error("guard process {program}: {what}")]
    Guard {
        /// Its program.
        program: String,
        /// What was done.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The guard's plan or message is not understood.
    #[error("guard: {0}")]
    GuardProtocol(String),
    /// The guest agent does not answer.
    #[error(
        "guest agent {address}: no answer to {command} within {deadline_ms} ms; is the agent running in the guest?"
    )]
    AgentSilent {
        /// Address of the agent.
        address: String,
        /// Command.
        command: &'static str,
        /// How long was waited.
        deadline_ms: u64,
    },
    /// The guest agent refused a command.
    #[error("guest agent {address} refused {command}: {description}")]
    AgentRefused {
        /// Address of the agent.
        address: String,
        /// Command.
        command: &'static str,
        /// Its text.
        description: String,
    },
    /// The guest agent's stream is broken.
    #[error("guest agent {address}: the connection broke")]
    AgentBroken {
        /// Address of the agent.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// The guest was already frozen, by somebody else.
    #[error(
        "the guest's file systems are already frozen, not by Aquifer (agent {address}); they were left as they are"
    )]
    AlreadyFrozen {
        /// Address of the agent.
        address: String,
    },
    /// A unix socket beside a QEMU that is reached by TLS alone.
    #[error(
        "the NBD server of {monitor} cannot listen on a unix socket, which is out of reach: set nbd_listen to \
         tls:HOST:PORT, or use ssh://"
    )]
    NoWayToSocket {
        /// Address of the monitor.
        monitor: String,
    },
    /// The path of the guest agent's socket does not exist.
    #[error("no guest agent at {address}: name its socket with --agent, or use --quiesce off")]
    NoSuchAgent {
        /// Address that was tried.
        address: String,
    },
    /// `require` without an agent.
    #[error("quiesce = require needs the address of the guest agent")]
    NoAgent,
    /// The watchdog thawed before the instant was frozen.
    #[error(
        "the guest was thawed by the watchdog after {frozen_ms} ms, before the disks were frozen: not quiesced"
    )]
    ThawedEarly {
        /// How long it had been frozen.
        frozen_ms: u64,
    },
    /// A program of the machine is missing.
    #[error("{program} is not installed: on Debian, apt-get install {package}")]
    ToolMissing {
        /// Program.
        program: &'static str,
        /// Debian package.
        package: &'static str,
    },
    /// A disk image that cannot be served.
    #[error("image {}: {detail}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong, and the way out.
        detail: String,
    },
    /// The image is not there.
    #[error("image {} does not exist", path.display())]
    NoSuchImage {
        /// The image.
        path: PathBuf,
    },
    /// The image is in use.
    #[error("image {} is in use: {detail}; stop its domain, or back it up with --qmp", path.display())]
    ImageInUse {
        /// The image.
        path: PathBuf,
        /// QEMU's text.
        detail: String,
    },
}

impl Error {
    /// What the caller must do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. }
            | Self::RepositoryId { .. }
            | Self::QuiesceChoice { .. }
            | Self::AmbiguousDisk { .. }
            | Self::DiskNameTwice { .. }
            | Self::DiskTwice { .. }
            | Self::EmptyDrive { .. }
            | Self::NoDisks { .. }
            | Self::NoAgent
            | Self::NoWayToSocket { .. }
            | Self::NoCertificates { .. }
            | Self::Image { .. }
            | Self::NotAMonitor { .. }
            | Self::SocketPathTooLong { .. } => ErrorKind::Invalid,
            Self::NoSuchSocket { .. }
            | Self::NoSuchAgent { .. }
            | Self::NoSuchDisk { .. }
            | Self::NoSuchImage { .. } => ErrorKind::NotFound,
            Self::MonitorTaken { .. }
            | Self::ForeignServer { .. }
            | Self::ForeignJob { .. }
            | Self::OtherRepository { .. }
            | Self::AlreadyFrozen { .. }
            | Self::ImageInUse { .. } => ErrorKind::Conflict,
            Self::Certificates { .. } | Self::Tls { .. } => ErrorKind::Denied,
            Self::Scratch { source, .. } | Self::Connect { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ErrorKind::Denied
            }
            Self::Unsupported { .. }
            | Self::NoDevice { .. }
            | Self::ToolMissing { .. }
            | Self::MonitorMute { .. } => ErrorKind::Unsupported,
            Self::NotListening { .. }
            | Self::Connect { .. }
            | Self::Ssh { .. }
            | Self::Remote { .. }
            | Self::MonitorClosed { .. }
            | Self::Deadline { .. }
            | Self::Scratch { .. }
            | Self::ScratchTooSmall { .. }
            | Self::InstantLost(_)
            | Self::Stuck { .. }
            | Self::ServerBusy { .. }
            | Self::AgentSilent { .. }
            | Self::AgentRefused { .. }
            | Self::AgentBroken { .. }
            | Self::ThawedEarly { .. }
            | Self::Refused { .. }
            | Self::JobFailed { .. } => ErrorKind::Unavailable,
            Self::UnexpectedReply { .. }
            | Self::FilterWithoutDisk { .. }
            | Self::Leftover { .. }
            | Self::Guard { .. }
            | Self::GuardProtocol(_) => ErrorKind::Internal,
        }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (exports: {})", names.join(", ")) }
}
