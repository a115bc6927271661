//! Backups and restores through real NBD servers into a real repository, one file a theme.
//!
//! The servers are qemu-nbd and nbdkit with its filters; a missing one fails the test by the name of its
//! Debian package.

#![allow(clippy::unwrap_used, reason = "what a helper cannot do fails the test that asked for it")]

mod backups;
mod doctor;
mod domains;
mod faults;
mod increments;
mod restores;
mod rig;
mod salvage;
