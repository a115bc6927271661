//! `aquifer`: the command line of the backup appliance.
//!
//! Words become [`args`], args with configuration and environment become a [`context::Context`], a command runs and
//! prints through [`output::Output`], and its end becomes an exit code. How backups are made is the engine's matter.
//!
//! Invariant: every way out goes through [`exit::Exit`]; nothing panics on what was typed, read or received.

mod allocator;
mod args;
mod commands;
mod config;
mod context;
mod exit;
mod human;
mod location;
mod manual;
mod output;
mod password;
mod progress;
mod signals;
mod start;
mod traffic;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_buffers();
    start::start(std::env::args_os()).into()
}
