//! The QEMU session against real parts: qemu-system-x86_64, qemu-storage-daemon, qemu-nbd, ssh. Only what a real
//! QEMU cannot be asked to do (garbage, silence, unknown events) comes from a scripted monitor.
//!
//! Needs the Debian packages qemu-system-x86, qemu-utils, libnbd-bin, openssl, openssh-server and openssh-client.
//! `QEMU_PREFIX` names the root of an unpacked other QEMU to use instead of the installed one.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod checkpoints;
mod crash;
mod filter;
mod freeze;
mod image;
mod mute;
mod remote;
mod scratch;
mod session;
mod support;
