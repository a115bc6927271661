//! Everything that can go wrong with an export, told so that the reader knows which export, which bytes, and what the
//! peer did.
//!
//! Errors are cheap to clone because one lost connection fails many requests at once. They are not coarse: whoever maps
//! them to exit codes matches on the variants.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::consts::Errno;
use crate::proto::option::Refusal;
use crate::proto::violation::Violation;
use crate::uri::UriProblem;

pub use crate::proto::request::Command;

/// What the client was waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A connection of the transport.
    Dial,
    /// The server's first bytes. A server at its connection limit accepts and stays silent here.
    Greeting,
    /// The exchange of options.
    Handshake,
    /// The TLS handshake.
    Tls,
    /// The answer to a request.
    Request,
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Dial => "the connection",
            Self::Greeting => "the greeting",
            Self::Handshake => "the option handshake",
            Self::Tls => "the TLS handshake",
            Self::Request => "an answer to a request",
        })
    }
}

/// How an export differs after a reconnect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// Its size in bytes.
    #[error("its size was {was} bytes and is now {now}")]
    Size {
        /// Size at the first connection.
        was: u64,
        /// Size now.
        now: u64,
    },
    /// Its transmission flags.
    #[error("its flags were {was:#06x} and are now {now:#06x}")]
    Flags {
        /// Flags at the first connection.
        was: u16,
        /// Flags now.
        now: u16,
    },
    /// Its block sizes.
    #[error("its block sizes (minimum, preferred, maximum) are no longer the same")]
    Blocks,
    /// Its metadata contexts.
    #[error("its metadata contexts were [{}] and are now [{}]", was.join(", "), now.join(", "))]
    Contexts {
        /// Contexts at the first connection, sorted.
        was: Vec<String>,
        /// Contexts now, sorted.
        now: Vec<String>,
    },
}

/// Why the TLS side of a connection cannot even be tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblem {
    /// No folder was named.
    #[error("name the folder with ca-cert.pem in the URI: tls-certificates=DIR")]
    NoFolder,
    /// A file cannot be read.
    #[error("{} cannot be read: {message}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        message: String,
    },
    /// A file holds no usable PEM item.
    #[error("{} holds no usable {what}: {message}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// The parser's words.
        message: String,
    },
    /// One of the client's two files is there without the other.
    #[error("{} is missing beside its partner: a client certificate needs its key", path.display())]
    HalfPair {
        /// The missing file.
        path: PathBuf,
    },
    /// The name to verify is neither a DNS name nor an address.
    #[error("{0:?} is not a host name or address to look for in a certificate; set tls-hostname=NAME")]
    Name(String),
}

/// Everything that can go wrong between a URI and the bytes of its export.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The text is not an NBD URI.
    #[error("NBD URI {uri:?}: {problem}")]
    Uri {
        /// The text.
        uri: String,
        /// What is wrong with it.
        problem: UriProblem,
    },
    /// Nobody answers at the transport's address.
    #[error("cannot connect to the NBD server at {peer}: {source}")]
    Connect {
        /// The server.
        peer: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The peer stayed silent for too long.
    #[error("the NBD server at {peer} let {after:?} pass without {stage}{}", hint_of_silence(*stage))]
    Deadline {
        /// The server.
        peer: String,
        /// What was awaited.
        stage: Stage,
        /// The deadline.
        after: Duration,
    },
    /// The peer closed or broke the connection.
    #[error("the NBD server at {peer} closed the connection during {stage}{}", cause_of_end(.source))]
    Closed {
        /// The server.
        peer: String,
        /// What was awaited.
        stage: Stage,
        /// The system's error; `None` when the connection just ended.
        source: Option<Arc<io::Error>>,
    },
    /// TLS was asked for, but our side of it is not in order.
    #[error("TLS to {peer}: {problem}")]
    TlsSetup {
        /// The server.
        peer: String,
        /// What is missing.
        problem: TlsProblem,
    },
    /// The TLS handshake failed: a certificate that does not verify, a name that does not match, a refused client.
    #[error("TLS to {peer} failed: {source}")]
    Tls {
        /// The server.
        peer: String,
        /// The TLS library's error.
        source: Arc<io::Error>,
    },
    /// The server closed the connection right after TLS was set up.
    #[error(
        "the NBD server at {peer} closed the connection right after TLS was set up: \
         a server that does not accept this client's certificate does so, and its own log has the reason"
    )]
    TlsDropped {
        /// The server.
        peer: String,
    },
    /// The server wants TLS and the URI has none. Never upgraded silently.
    #[error("the NBD server at {peer} requires TLS: use an nbds URI{}", colon(message))]
    TlsRequired {
        /// The server.
        peer: String,
        /// The server's words.
        message: String,
    },
    /// The URI wants TLS and the server, or somebody in between, refuses it.
    #[error(
        "the NBD server at {peer} refused TLS ({refusal}), and this URI allows nothing else{}",
        colon(message)
    )]
    TlsRefused {
        /// The server.
        peer: String,
        /// The kind of refusal.
        refusal: Refusal,
        /// The server's words.
        message: String,
    },
    /// The server refused an option: mostly an export it does not have.
    #[error("the NBD server at {peer} refused {option} for export {export:?}: {refusal}{}", colon(message))]
    Refused {
        /// The server.
        peer: String,
        /// The export asked for.
        export: String,
        /// The option's name in the protocol.
        option: &'static str,
        /// The kind of refusal.
        refusal: Refusal,
        /// The server's words.
        message: String,
    },
    /// The peer broke the protocol. Never retried.
    #[error("the NBD server at {peer} broke the protocol on export {export:?}: {violation}")]
    Violation {
        /// The server.
        peer: String,
        /// The export.
        export: String,
        /// What it did.
        violation: Violation,
    },
    /// The server does not offer this command on this export.
    #[error("export {export:?} does not offer {command}")]
    NotOffered {
        /// The export.
        export: String,
        /// The command.
        command: Command,
    },
    /// A write to an export that is read-only, or through a client that was opened for reading.
    #[error("export {export:?} is not open for writing")]
    ReadOnly {
        /// The export.
        export: String,
    },
    /// The metadata context was not offered for this export.
    #[error("export {export:?} has no metadata context {context:?} (offered: [{}])", offered.join(", "))]
    NoContext {
        /// The export.
        export: String,
        /// The context asked for.
        context: String,
        /// The contexts that the server granted.
        offered: Vec<String>,
    },
    /// A request that lies outside the export.
    #[error("{command} of {bytes} bytes at {offset} leaves export {export:?} of {size_bytes} bytes")]
    OutOfRange {
        /// The export.
        export: String,
        /// The command.
        command: Command,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// The export's size in bytes.
        size_bytes: u64,
    },
    /// A write that does not keep to the export's minimum block.
    #[error(
        "{command} of {bytes} bytes at {offset}: export {export:?} takes only multiples of {block_bytes} bytes"
    )]
    Unaligned {
        /// The export.
        export: String,
        /// The command.
        command: Command,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// The export's minimum block in bytes.
        block_bytes: u32,
    },
    /// The peer answered with an error, also when the range was tried again in smaller pieces. The range is the
    /// smallest that still failed.
    #[error(
        "export {export:?}: {command} of {bytes} bytes at {offset} failed: the peer answered {errno}{}",
        colon(message)
    )]
    Failed {
        /// The export.
        export: String,
        /// The command.
        command: Command,
        /// First byte of the smallest range that failed.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
        /// The error code sent.
        errno: Errno,
        /// The server's words.
        message: String,
    },
    /// The connection was lost under a request, and re-dialing did not help or was not allowed.
    #[error(
        "export {export:?}: {command} of {bytes} bytes at {offset} lost its connection {losses} times: {cause}"
    )]
    Lost {
        /// The export.
        export: String,
        /// The command.
        command: Command,
        /// First byte.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
        /// How many connections were lost under this request.
        losses: u32,
        /// How the last one was lost.
        cause: Arc<Error>,
    },
    /// After a reconnect the export is no longer the one it was. The client is of no use any more.
    #[error("export {export:?} at {peer} changed while the connection was down: {change}")]
    Changed {
        /// The server.
        peer: String,
        /// The export.
        export: String,
        /// The difference.
        change: Change,
    },
    /// The client was disconnected by its owner.
    #[error("export {export:?}: the client is disconnected")]
    Disconnected {
        /// The export.
        export: String,
    },
}

impl Error {
    /// True when another connection may succeed where this one failed: silence, a closed connection, nobody listening.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Deadline { .. } | Self::Closed { .. })
            || matches!(self, Self::Refused { refusal: Refusal::Shutdown, .. })
    }
}

fn colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message:?}") }
}

fn hint_of_silence(stage: Stage) -> &'static str {
    match stage {
        Stage::Greeting => " (a server at its limit of connections accepts and stays silent)",
        _ => "",
    }
}

fn cause_of_end(source: &Option<Arc<io::Error>>) -> String {
    source.as_ref().map(|source| format!(": {source}")).unwrap_or_default()
}
