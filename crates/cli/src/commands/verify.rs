//! `verify`: how deep, which backups, and what was found.

use aquifer_engine::repository::{Damage, DamagedObject, Touched};
use aquifer_engine::{EventSink, Kind, Result, VerifyDepth, VerifyJob, VerifyOutcome};

use super::open;
use crate::args::jobs::{DepthName, VerifyArgs};
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Byte ranges of one disk that are shown to a person; JSON has them all.
const RANGES_SHOWN: usize = 8;

/// Runs `verify`. Damage is a result: it is printed, and only the exit code tells.
///
/// # Errors
/// `NotFound` for an unknown backup, and whatever keeps the verification from looking.
pub(crate) async fn run(context: &Context, args: VerifyArgs) -> Result<Exit> {
    let mut job = open::reading_job(context).await?;
    if context.output.json() {
        // One document, so no events.
        job.events = EventSink::none();
    }
    let backups =
        args.backups.iter().map(|backup| Ok(job.repository.resolve(backup)?)).collect::<Result<_>>()?;
    let request = VerifyJob { depth: depth(args.level), backups, sample_percent: args.sample.0 };
    let outcome = aquifer_engine::verify(&job, request).await?;
    context.output.report(&outcome)?;
    if outcome.clean {
        return Ok(Exit::Done);
    }
    context.output.say("error: damage was found; backups that are not named above are whole");
    Ok(Exit::Failed(Kind::Corrupt))
}

fn depth(name: DepthName) -> VerifyDepth {
    match name {
        DepthName::Structure => VerifyDepth::Structure,
        DepthName::Packs => VerifyDepth::Packs,
        DepthName::Chunks => VerifyDepth::Chunks,
        DepthName::Restore => VerifyDepth::Restore,
    }
}

impl Report for VerifyOutcome {
    fn human(&self) -> String {
        let report = &self.report;
        let mut text = String::new();
        for Damage { object, what } in &report.damage {
            text += &format!("damaged: {}: {what}\n", named(object));
        }
        if report.more_damage > 0 {
            text += &format!("damaged: {} more\n", report.more_damage);
        }
        for touched in &report.touched {
            text += &touched_line(touched);
        }
        for disk in &self.unreadable {
            text +=
                &format!("cannot be restored: backup {} disk {}: {}\n", disk.backup, disk.disk, disk.what);
        }
        let read = match self.disks_read {
            0 => String::new(),
            disks => format!(", {disks} disks read whole ({})", human::size(self.bytes_restored)),
        };
        text + &format!(
            "{} backups, {} objects, {} tree nodes, {} chunks; {} of {} packs read ({}){read}: {}, {:.1}s\n",
            report.backups.len(),
            report.objects,
            report.nodes,
            report.chunks,
            report.packs_read,
            report.packs,
            human::size(report.bytes_read),
            if self.clean { "no damage" } else { "DAMAGED" },
            self.seconds,
        )
    }
}

fn named(object: &DamagedObject) -> String {
    match object {
        DamagedObject::Pack(name) => format!("pack {name}"),
        DamagedObject::Chunk(id) => format!("chunk {id}"),
        DamagedObject::Node(id) => format!("tree node {id}"),
        DamagedObject::Record(backup) => format!("record of backup {backup}"),
        DamagedObject::Object(key) => key.clone(),
    }
}

fn touched_line(touched: &Touched) -> String {
    let shown = touched.ranges.iter().take(RANGES_SHOWN);
    let ranges: Vec<String> = shown.map(|(offset, length)| format!("{length} bytes at {offset}")).collect();
    let hidden = touched.ranges.len().saturating_sub(RANGES_SHOWN);
    let hidden = u64::try_from(hidden).unwrap_or(u64::MAX).saturating_add(touched.more_ranges);
    let more = if hidden > 0 { format!(", and {hidden} more ranges") } else { String::new() };
    let Touched { backup, domain, disk, .. } = touched;
    format!("touched: backup {backup} of {domain}, disk {disk}: {}{more}\n", ranges.join(", "))
}
