//! `verify`: how deep, which backups, and what was found.

use std::sync::Arc;
use std::time::Duration;

use aquifer_engine::clock::System;
use aquifer_engine::repository::{
    Damage, DamagedObject, Touched, VerifyLevel, VerifyProgress, VerifyReport, World, verify_keyless,
};
use aquifer_engine::{Error, Kind, Result, VerifyDepth, VerifyJob, VerifyOutcome};

use super::list::timestamp;
use super::open::{self, IfMissing};
use crate::args::jobs::{DepthName, VerifyArgs};
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;
use crate::progress;

/// Byte ranges of one disk that are shown to a person; JSON has them all.
const RANGES_SHOWN: usize = 8;

/// Runs `verify`. Damage is a result: it is printed, and only the exit code tells.
///
/// # Errors
/// `NotFound` for an unknown backup, and whatever keeps the verification from looking.
pub(crate) async fn run(context: &Context, args: VerifyArgs) -> Result<Exit> {
    if args.keyless {
        return keyless(context, &args).await;
    }
    let mut job = open::reading_job(context).await?;
    job.events = progress::quiet_sink(&context.output);
    let backups =
        args.backups.iter().map(|backup| Ok(job.repository.resolve(backup)?)).collect::<Result<_>>()?;
    let request = VerifyJob { depth: depth(args.level), backups, sample_percent: args.sample.0 };
    let outcome = aquifer_engine::verify(&job, request).await?;
    told(context, &outcome)
}

/// Verifies a repository that this host cannot open.
async fn keyless(context: &Context, args: &VerifyArgs) -> Result<Exit> {
    let level = match args.level {
        DepthName::Structure => VerifyLevel::Structure,
        DepthName::Packs => VerifyLevel::Packs,
        DepthName::Chunks | DepthName::Restore => {
            return Err(Error::new(
                Kind::Invalid,
                "without its password nothing of a repository can be opened",
            )
            .hint("--keyless goes with --level structure and --level packs"));
        }
    };
    let stores = open::stores(context, &context.repository()?, IfMissing::Refuse).await?;
    let world: Arc<dyn World> = Arc::new(System::new());
    let (state_dir, started_ms) = (context.state_dir()?, world.monotonic_ms());
    let events = progress::quiet_sink(&context.output);
    let tell = |done: VerifyProgress| {
        events.send(done.into());
    };
    let verified = verify_keyless(&stores, &world, Some(&state_dir), level, args.sample.0, tell);
    let report = tokio::select! {
        biased;
        () = context.cancel.cancelled() => return Err(Error::cancelled()),
        report = Box::pin(verified) => report?,
    };
    let elapsed_ms = world.monotonic_ms().saturating_sub(started_ms);
    let outcome = VerifyOutcome {
        depth: depth(args.level),
        seconds: Duration::from_millis(elapsed_ms).as_secs_f64(),
        clean: report.is_clean(),
        report,
        disks_read: 0,
        bytes_restored: 0,
        unreadable: Vec::new(),
    };
    told(context, &outcome)
}

fn told(context: &Context, outcome: &VerifyOutcome) -> Result<Exit> {
    context.output.report(outcome)?;
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
        let mut text = damage(report);
        for disk in &self.unreadable {
            text +=
                &format!("cannot be restored: backup {} disk {}: {}\n", disk.backup, disk.disk, disk.what);
        }
        let read = match self.disks_read {
            0 => String::new(),
            disks => format!(", {disks} disks read whole ({})", human::size(self.bytes_restored)),
        };
        if let Some(line) = ages(report) {
            text += &line;
        }
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

/// What is damaged, and what that takes along.
pub(super) fn damage(report: &VerifyReport) -> String {
    let mut text = String::new();
    for Damage { object, what } in &report.damage {
        text += &format!("damaged: {}: {what}\n", named(object));
    }
    if report.more_damage > 0 {
        text += &format!("damaged: {} more\n", report.more_damage);
    }
    text.extend(report.touched.iter().map(touched_line));
    text
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

/// How long the packs have waited to be read; nothing where none is ever read.
fn ages(report: &VerifyReport) -> Option<String> {
    let never = match report.never_read {
        0 => String::new(),
        packs => format!("; {packs} of {} never", report.packs),
    };
    let oldest = match report.oldest_read_ms {
        Some(ms) => timestamp(ms).map_or_else(|_| format!("{ms} ms"), human::time),
        None if never.is_empty() => return None,
        None => "none".to_owned(),
    };
    Some(format!("packs read by this host, the longest ago: {oldest}{never}\n"))
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
