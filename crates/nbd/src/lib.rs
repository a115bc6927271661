//! Network Block Device for Aquifer: the wire protocol and an async client that reads and writes exports.
//!
//! [`proto`] is the protocol as pure state machines: bytes in, values out, no I/O, no clock, no task, so that it can be
//! fuzzed whole. [`Client`] drives it over unix sockets, TCP and TLS. What of the protocol is supported, and which
//! peers were tried, is in `docs/NBD.md`.
//!
//! It is not a block layer: it caches nothing, orders nothing, and never turns a failed read into zeros.
//!
//! Invariant: bytes that [`Client::read`] hands back were sent by the peer for exactly that range, or lie in a hole
//! that the peer reported for exactly that range; anything else is an [`Error`].

mod client;
mod error;
pub mod proto;
mod uri;

pub use client::{Client, ClientOptions, ExportInfo, ExtentStream, Read, list};
pub use error::{Command, Error, Stage};
pub use proto::extent::{Extent, STATE_DIRTY, STATE_HOLE, STATE_ZERO};
pub use proto::handshake::ListedExport;
pub use proto::violation::Violation;
pub use uri::{Transport, Uri, UriProblem};
