//! The NBD client against peers: real servers, each started for one test, and a hostile one that breaks the protocol in one
//! named way at a time.
//!
//! Needs the Debian packages qemu-utils, qemu-system-common (qemu-storage-daemon), nbdkit, nbd-server, libnbd-bin and
//! gnutls-bin. A missing one fails its tests with the package's name.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that panics has told its story"
)]

mod foreign;
mod handshakes;
mod hostile;
mod lost;
mod machines;
mod nbdkit;
mod peers;
mod qemu;
mod replies;
mod tls;
