//! `collect`: what to free, and what became of it.

use aquifer_engine::Result;
use aquifer_engine::repository::{CollectReport, CollectRequest, Decision, PackFate, SeenSession, Tally};

use super::open;
use crate::args::removal::CollectArgs;
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Packs of which a person is told what becomes of them; JSON has more.
const DECISIONS_SHOWN: usize = 20;

/// Runs `collect`. A signal ends it in order; what was done until then is done.
///
/// # Errors
/// `Corrupt` when a backup cannot be walked, `Conflict` when another host ended this one's session; what the stores say.
pub(crate) async fn run(context: &Context, args: CollectArgs) -> Result<Exit> {
    // A collection needs no index of its own, so it waits for no backup on this machine.
    let repository = open::reader(context).await?;
    let request = CollectRequest {
        dry_run: args.dry_run,
        max_repack_bytes: args.max_repack.map(|size| size.0),
        grace: args.grace.0,
        fence_after: args.fence_after.0,
    };
    let report = repository.collect(&request, context.cancel.cancelled()).await?;
    context.output.report(&report)?;
    Ok(Exit::Done)
}

impl Report for CollectReport {
    fn human(&self) -> String {
        let mut text = String::new();
        for backup in &self.dropped {
            text += &format!("gone for good: backup {backup}\n");
        }
        for session in &self.sessions {
            text += &session_line(session);
        }
        let kept = self.decisions.iter().filter(|decision| decision.fate == PackFate::Kept);
        let shown = if self.dry_run { self.decisions.iter().collect() } else { kept.collect::<Vec<_>>() };
        for decision in shown.iter().take(DECISIONS_SHOWN) {
            text += &decision_line(decision);
        }
        let hidden = shown.len().saturating_sub(DECISIONS_SHOWN);
        if hidden > 0 {
            text += &format!("… and {hidden} packs more: --json has them\n");
        }
        for (what, tally) in tallies(self) {
            if tally.objects > 0 {
                text += &format!("{what}: {} ({})\n", tally.objects, human::size(tally.bytes));
            }
        }
        for (what, count) in counts(self) {
            if count > 0 {
                text += &format!("{what}: {count}\n");
            }
        }
        let end = if self.dry_run { "nothing was changed" } else { "done" };
        let Tally { objects, bytes } = self.packs;
        text + &format!("{} backups, {objects} packs ({}): {end}\n", self.backups, human::size(bytes))
    }
}

fn tallies(report: &CollectReport) -> [(&'static str, Tally); 7] {
    [
        ("blobs that backups need", report.needed),
        ("packs of running sessions, left alone", report.in_progress),
        ("blobs rewritten into new packs", report.rewritten),
        ("packs condemned", report.condemned),
        ("packs that stay although no backup seems to need them", report.kept),
        ("packs deleted", report.deleted),
        ("packs that wait for their grace or for a session", report.waiting),
    ]
}

fn counts(report: &CollectReport) -> [(&'static str, u64); 5] {
    [
        ("segments deleted", report.segments),
        ("heartbeats deleted", report.heartbeats),
        ("log entries deleted", report.log_entries),
        ("chunks that are needed and nowhere to be found (run `aquifer verify`)", report.missing),
        ("objects that the store refuses to delete now", report.refused),
    ]
}

fn session_line(seen: &SeenSession) -> String {
    let SeenSession { session, kind, host, silent_s, fenced } = seen;
    let what = match (fenced, silent_s) {
        (true, _) => "ended as dead".to_owned(),
        (false, None) => "running on this machine".to_owned(),
        (false, Some(silent_s)) => format!("open, silent for {silent_s} s"),
    };
    format!("session {session} ({kind:?}) of host {host}: {what}\n")
}

fn decision_line(decision: &Decision) -> String {
    let fate = match decision.fate {
        PackFate::Unused | PackFate::Orphan => "goes",
        PackFate::Rewritten => "is rewritten",
        PackFate::Kept => "stays",
    };
    format!("pack {} ({}) {fate}: {}\n", decision.pack, human::size(decision.bytes), decision.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_what_was_done_and_nothing_of_what_was_not() {
        let report = CollectReport {
            backups: 3,
            packs: Tally { objects: 9, bytes: 9 << 20 },
            needed: Tally { objects: 40, bytes: 5 << 20 },
            deleted: Tally { objects: 4, bytes: 4 << 20 },
            heartbeats: 2,
            ..CollectReport::default()
        };
        assert_eq!(
            report.human(),
            "blobs that backups need: 40 (5.0 MiB)\npacks deleted: 4 (4.0 MiB)\nheartbeats deleted: 2\n\
             3 backups, 9 packs (9.0 MiB): done\n"
        );
    }
}
