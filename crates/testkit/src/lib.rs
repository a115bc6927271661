//! What the tests and the demo stand on: a live guest, servers to read from, a checker that can fail.
//!
//! The guest is a real QEMU with a real kernel whose program writes a history that [`pattern`] fixes in advance, and
//! [`check()`] proves which moment of that history a set of images is. Nothing in this crate is part of the product,
//! and it links none of the product's crates: what proves a backup must not share code with what makes it.
//!
//! Every process started here ends with the value that started it, and dies by itself after a hard limit of time.

pub mod pattern;
pub mod process;
pub mod tools;

mod aquifer;
mod certificates;
mod check;
mod disk;
mod freezer;
mod guest;
mod http_proxy;
mod initramfs;
mod latency;
mod libvirt;
mod life;
mod proxy;
mod qmp;
mod s3_server;
mod server;
mod sshd;

pub use aquifer::{Aquifer, Ended, Running, aquifer_binary, write_password};
pub use certificates::{CLIENT_NAME, make_certificates};
pub use check::{Flaw, Moment, check, check_grown};
pub use disk::{Disk, Format};
pub use freezer::Freezer;
pub use guest::{Guest, GuestOptions};
pub use http_proxy::{Fault, HttpProxy, Rule, Seen};
pub use latency::Latency;
pub use libvirt::Libvirt;
pub use proxy::{Hold, Proxy, Side};
pub use qmp::Qmp;
pub use s3_server::{AccessKey, S3Server};
pub use server::Server;
pub use sshd::Sshd;
pub use tempfile::{TempDir, tempdir};
