//! `delete`, `undelete` and `protect`: which backups, and what became of them.

use aquifer_engine::Result;
use aquifer_engine::repository::{DeleteScope, Repository};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::list::timestamp;
use super::open;
use crate::args::removal::{DeleteArgs, ProtectArgs, UndeleteArgs};
use crate::context::Context;
use crate::human;
use crate::output::Report;

/// What a deletion did.
#[derive(Debug, Serialize)]
struct Deleted {
    deleted: Vec<Uuid>,
    already: Vec<Uuid>,
    deleted_until: Timestamp,
}

/// What bringing back did.
#[derive(Debug, Serialize)]
struct Undeleted {
    restored: Vec<Uuid>,
    already: Vec<Uuid>,
}

/// What protecting did.
#[derive(Debug, Serialize)]
struct Protected {
    #[serde(skip)]
    on: bool,
    changed: Vec<Uuid>,
    already: Vec<Uuid>,
}

/// Runs `delete`.
///
/// # Errors
/// `NotFound` for an unknown backup, `Conflict` while one of them is read.
pub(crate) async fn delete(context: &Context, args: DeleteArgs) -> Result<()> {
    let repository = open::reader(context).await?;
    let named = resolved(&repository, &args.backups)?;
    let scope = match (args.all, args.all_children) {
        // Every backup of a domain takes in every child.
        (true, _) => DeleteScope::Domains,
        (false, true) => DeleteScope::Descendants,
        (false, false) => DeleteScope::Only,
    };
    let done = repository.delete(&named, scope, args.forget_delay.0).await?;
    let deleted_until = timestamp(done.not_before_ms)?;
    context.output.report(&Deleted { deleted: done.deleted, already: done.already, deleted_until })
}

/// Runs `undelete`.
///
/// # Errors
/// `NotFound` for a backup that is unknown or was dropped.
pub(crate) async fn undelete(context: &Context, args: UndeleteArgs) -> Result<()> {
    let repository = open::reader(context).await?;
    let done = repository.undelete(&resolved(&repository, &args.backups)?).await?;
    context.output.report(&Undeleted { restored: done.restored, already: done.already })
}

/// Runs `protect`.
///
/// # Errors
/// `NotFound` for an unknown backup, `Conflict` for a deleted one.
pub(crate) async fn protect(context: &Context, args: ProtectArgs) -> Result<()> {
    let repository = open::reader(context).await?;
    let done = repository.protect(&resolved(&repository, &args.backups)?, !args.off).await?;
    context.output.report(&Protected { on: !args.off, changed: done.changed, already: done.already })
}

fn resolved(repository: &Repository, wanted: &[String]) -> Result<Vec<Uuid>> {
    wanted.iter().map(|wanted| Ok(repository.resolve(wanted)?)).collect()
}

impl Report for Deleted {
    fn human(&self) -> String {
        let until = human::time(self.deleted_until);
        let mut text = lines("deleted", &self.deleted) + &lines("was deleted before", &self.already);
        if !self.deleted.is_empty() {
            text += &format!(
                "until {until} `aquifer undelete` brings back; then `aquifer collect` frees the space\n"
            );
        }
        text
    }
}

impl Report for Undeleted {
    fn human(&self) -> String {
        lines("brought back", &self.restored) + &lines("was not deleted", &self.already)
    }
}

impl Report for Protected {
    fn human(&self) -> String {
        let (now, before) = match self.on {
            true => ("protected", "was protected before"),
            false => ("not protected any more", "was not protected"),
        };
        lines(now, &self.changed) + &lines(before, &self.already)
    }
}

fn lines(what: &str, backups: &[Uuid]) -> String {
    backups.iter().map(|backup| format!("{what}: {backup}\n")).collect()
}
