//! What the caller chooses, and what the server told.

use std::time::Duration;

use crate::proto::consts::{TRANSMISSION_CAN_MULTI_CONN, TRANSMISSION_READ_ONLY};
use crate::proto::handshake::{BlockSizes, Negotiated};
use crate::proto::reply::ReplyMode;

/// The caller's choices for one client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Connections; more than one is used only where the server offers MULTI_CONN.
    pub connections: u16,
    /// Most connections, over a line whose latency leaves the first ones idle. Not more than `connections` means no more.
    pub connections_max: u16,
    /// Requests in flight on each connection. QEMU works on 16 at once.
    pub depth: u16,
    /// Length of one request in bytes, within what the server allows.
    pub request_bytes: u32,
    /// Most bytes of reads and writes on the wire at once, over all connections. A longer operation travels alone.
    pub in_flight_bytes: u64,
    /// Metadata contexts to ask for, by exact name, such as `qemu:dirty-bitmap:NAME`.
    pub contexts: Vec<String>,
    /// Time to connect, and then again to the end of the server's greeting.
    pub greeting_deadline: Duration,
    /// Time from the greeting to an open export, TLS included.
    pub handshake_deadline: Duration,
    /// Time from sending a request to the end of its answer.
    pub request_deadline: Duration,
    /// How often a lost connection is dialed again in a row before it is given up. Writable clients never dial again.
    pub reconnect_attempts: u32,
    /// Pause before the second attempt; doubled for each further one, up to five seconds.
    pub reconnect_backoff: Duration,
    /// True to write. The export must then be writable.
    pub writable: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            connections_max: 16,
            depth: 16,
            request_bytes: 512 * 1024,
            in_flight_bytes: 64 * 1024 * 1024,
            contexts: vec!["base:allocation".to_owned()],
            greeting_deadline: Duration::from_secs(10),
            handshake_deadline: Duration::from_secs(20),
            request_deadline: Duration::from_secs(60),
            reconnect_attempts: 8,
            reconnect_backoff: Duration::from_millis(100),
            writable: false,
        }
    }
}

/// What the server told about the export.
#[derive(Debug, Clone)]
pub struct ExportInfo {
    /// The server, as messages name it.
    pub peer: String,
    /// The export's name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its transmission flags (NBD protocol, "Transmission flags").
    pub flags: u16,
    /// Its block sizes, or what the protocol says to assume.
    pub blocks: BlockSizes,
    /// The metadata contexts that were granted, sorted.
    pub contexts: Vec<String>,
    /// The form of requests and replies.
    pub reply_mode: ReplyMode,
    /// False when the server knew only the option EXPORT_NAME.
    pub with_go: bool,
    /// True when the connections are encrypted.
    pub tls: bool,
    /// Connections that were opened.
    pub connections: u16,
}

impl ExportInfo {
    pub(crate) fn new(peer: &str, name: &str, tls: bool, negotiated: &Negotiated) -> Self {
        let mut contexts: Vec<String> =
            negotiated.contexts.iter().map(|context| context.name.clone()).collect();
        contexts.sort_unstable();
        Self {
            peer: peer.to_owned(),
            name: name.to_owned(),
            size_bytes: negotiated.size_bytes,
            flags: negotiated.flags,
            blocks: negotiated.blocks,
            contexts,
            reply_mode: negotiated.mode,
            with_go: negotiated.with_go,
            tls,
            connections: 1,
        }
    }

    /// True when the export cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.flags & TRANSMISSION_READ_ONLY != 0
    }

    /// True when the server lets several connections share the export.
    pub fn is_multi_conn(&self) -> bool {
        self.flags & TRANSMISSION_CAN_MULTI_CONN != 0
    }
}
