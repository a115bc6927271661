//! `repository keys`: the passwords that open a repository, each in a slot of its own.

use aquifer_engine::repository::format::{KdfParams, SlotId};
use aquifer_engine::repository::{KeySlot, Secret};
use aquifer_engine::{Error, Kind, Result};
use serde::Serialize;

use super::open;
use crate::args::KeysCommand;
use crate::context::Context;
use crate::human;
use crate::output::Report;
use crate::password;

/// Runs `repository keys …`.
///
/// # Errors
/// As opening the repository; `NotFound` for an unknown slot, `Conflict` for the last one.
pub(crate) async fn run(context: &Context, command: KeysCommand) -> Result<()> {
    match command {
        KeysCommand::List => {
            let slots = open::reader(context).await?.keys_list().await?;
            context.output.report(&Slots(slots.into_iter().map(Slot::from).collect()))
        }
        KeysCommand::Add { new_password_file } => {
            let repository = open::reader(context).await?;
            let mut password = match new_password_file {
                Some(file) => password::from_file(&file)?,
                None => password::new_from_stdin()?,
            };
            let secret = Secret::new(std::mem::take(&mut *password));
            let slot = repository.key_add(&secret, KdfParams::default()).await?;
            context.output.report(&Changed { slot: slot.to_string(), change: "added" })
        }
        KeysCommand::Retire { slot } => {
            let slot: SlotId = slot.parse().map_err(|error| {
                Error::caused(Kind::Invalid, error).hint("`aquifer repository keys list` shows the slots")
            })?;
            open::reader(context).await?.key_retire(slot).await?;
            context.output.report(&Changed { slot: slot.to_string(), change: "retired" })
        }
    }
}

#[derive(Serialize)]
struct Slots(Vec<Slot>);

#[derive(Serialize)]
struct Slot {
    slot: String,
    in_use: bool,
}

impl From<KeySlot> for Slot {
    fn from(slot: KeySlot) -> Self {
        Slot { slot: slot.slot.to_string(), in_use: slot.in_use }
    }
}

#[derive(Serialize)]
struct Changed {
    slot: String,
    change: &'static str,
}

impl Report for Slots {
    fn human(&self) -> String {
        let rows = self.0.iter().map(|slot| {
            vec![slot.slot.clone(), if slot.in_use { "opened by this password" } else { "" }.to_owned()]
        });
        human::table(&["slot", ""], &[], rows)
    }
}

impl Report for Changed {
    fn human(&self) -> String {
        format!("slot {} {}\n", self.slot, self.change)
    }
}
