//! The commands: each turns its arguments into a request, hands it down, and prints the outcome.
//!
//! Not here: parsing words, and deciding anything about data.

mod backup;
mod collect;
mod debug;
mod delete;
mod doctor;
mod domain;
mod dumpxml;
mod keys;
mod list;
mod open;
mod parameters;
mod prune;
mod repair;
mod repository;
mod restore;
mod service;
mod source;
mod unmanaged;
mod verify;

use aquifer_engine::{Error, Result};

use crate::args::Command;
use crate::context::Context;
use crate::exit::Exit;

/// Runs one command to its end.
///
/// # Errors
/// Whatever ended the command before its result could be printed.
pub(crate) async fn run(context: &Context, command: Command) -> Result<Exit> {
    match command {
        // Jobs are told to stop and clean up behind themselves.
        Command::Backup(args) => Box::pin(backup::run(context, *args)).await,
        Command::Restore(args) => restore::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
        Command::Repair(args) => repair::run(context, args).await,
        Command::Domain(command) => domain::run(context, command).await,
        Command::Collect(args) => collect::run(context, args).await,
        Command::StartUnmanaged(args) => unmanaged::start(context, args).await,
        Command::Keep => unmanaged::keep(context).await,
        Command::Finish(args) => unmanaged::finish(context, args).await,
        // The others have nothing to clean up: whatever they were writing is not there yet, or is there whole.
        other => tokio::select! {
            end = run_short(context, other) => end,
            () = context.cancel.cancelled() => Err(Error::cancelled()),
        },
    }
}

async fn run_short(context: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Repository(command) => return repository::run(context, command).await,
        Command::List(args) => list::run(context, args).await?,
        Command::Delete(args) => delete::delete(context, args).await?,
        Command::Undelete(args) => delete::undelete(context, args).await?,
        Command::Protect(args) => delete::protect(context, args).await?,
        Command::Prune(args) => prune::run(context, args).await?,
        Command::Dumpxml(args) => dumpxml::run(context, &args).await?,
        Command::Children { backup, descendants } => list::children(context, &backup, descendants).await?,
        Command::Params { backup } => parameters::run(context, &backup).await?,
        Command::Doctor { nbd } => return doctor::run(context, nbd).await,
        Command::Debug(command) => debug::run(context, command).await?,
        // Started without configuration and runtime, or above.
        Command::Backup(_)
        | Command::Restore(_)
        | Command::Verify(_)
        | Command::Repair(_)
        | Command::Domain(_)
        | Command::Collect(_)
        | Command::StartUnmanaged(_)
        | Command::Keep
        | Command::Finish(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Guard => {}
    }
    Ok(Exit::Done)
}
