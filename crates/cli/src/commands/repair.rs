//! `repair`: what was damaged, what is whole again, and what is not.

use aquifer_engine::repository::{RepairReport, RepairRequest, VerifyLevel, VerifyProgress};
use aquifer_engine::{Error, Kind, Result};

use super::{open, verify};
use crate::args::jobs::{RepairArgs, RepairDepth};
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;
use crate::progress;

/// Runs `repair`. Damage that stays is a result: it is printed, and only the exit code tells.
///
/// # Errors
/// `NotFound` for an unknown backup; whatever keeps the repository from being read, or the log from being written.
pub(crate) async fn run(context: &Context, args: RepairArgs) -> Result<Exit> {
    let repository = open::reader(context).await?;
    let from = match &args.from {
        Some(named) => Some(open::passing_reader(context, &context.named_repository(named)?).await?),
        None => None,
    };
    let level = match args.level {
        RepairDepth::Structure => VerifyLevel::Structure,
        RepairDepth::Packs => VerifyLevel::Packs,
        RepairDepth::Chunks => VerifyLevel::Chunks,
    };
    let backups = args.backups.iter().map(|backup| Ok(repository.resolve(backup)?)).collect::<Result<_>>()?;
    let request = RepairRequest { level, backups, dry_run: args.dry_run };
    let events = progress::quiet_sink(&context.output);
    let told = move |done: VerifyProgress| {
        events.send(done.into());
    };
    // A session that is left open is ended by the next command of this machine.
    let report = tokio::select! {
        biased;
        () = context.cancel.cancelled() => return Err(Error::cancelled()),
        report = Box::pin(repository.repair(&request, from.as_ref(), told)) => report?,
    };
    context.output.report(&report)?;
    Ok(if report.left.is_clean() { Exit::Done } else { Exit::Failed(Kind::Corrupt) })
}

impl Report for RepairReport {
    fn human(&self) -> String {
        let would = if self.dry_run { "to be " } else { "" };
        let mut text = String::new();
        let marked = [("packs", self.quarantined_packs), ("blobs", self.quarantined_blobs)];
        for (what, count) in marked.into_iter().filter(|(_, count)| *count > 0) {
            text += &format!("{what} {would}marked as damaged: {count}\n");
        }
        for (whence, tally) in [("this repository", self.healed), ("the other repository", self.fetched)] {
            if tally.objects > 0 {
                let (objects, bytes) = (tally.objects, human::size(tally.bytes));
                text += &format!("blobs stored anew out of {whence}: {objects} ({bytes})\n");
            }
        }
        text += &verify::damage(&self.left);
        text + if self.left.is_clean() { "nothing is damaged\n" } else { "STILL DAMAGED\n" }
    }
}
