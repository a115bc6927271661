//! `restore`: which backup, which disk into which volume.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use aquifer_api::RestoreFlags;
use aquifer_engine::{Error, Kind, RestoreOutcome, RestoreRequest, RestoredDisk, Result, VolumeSpec};
use aquifer_service::{PlannedRestore, Service};

use super::service::told;
use super::unmanaged::read_text;
use super::{open, service};
use crate::args::jobs::RestoreArgs;
use crate::args::values::Named;
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Missing ranges of a disk that a person is shown; a program gets all.
const SHOWN_RANGES: usize = 20;

/// Runs `restore`.
///
/// # Errors
/// As the engine says.
pub(crate) async fn run(context: &Context, args: RestoreArgs) -> Result<Exit> {
    // A new domain is entered in the log.
    let job = match args.new_domain {
        Some(_) => open::writing_job(context, None).await?,
        None => open::reading_job(context).await?,
    };
    let service = service::over(context, job)?;
    let planned = match &args.xml {
        Some(file) => told(
            service.plan_restore(&read_text(file).await?, args.new_domain.as_deref(), flags(&args)).await,
        )?,
        None => plan(&service, &args).await?,
    };
    if let (Some(file), Some(definition)) = (&args.definition, &planned.definition)
        && !args.dry_run
    {
        // Before the disks: what cannot be written down shall not cost an hour first.
        write_new(file, &definition.bytes)?;
    }
    let outcome = service.restore_planned(planned).await?;
    context.done(&outcome)?;
    let missing = outcome.disks.iter().any(|disk| disk.missing_bytes > 0);
    Ok(if missing { Exit::Failed(Kind::Corrupt) } else { Exit::Done })
}

/// A restore in the words of the command line.
async fn plan(service: &Service, args: &RestoreArgs) -> Result<PlannedRestore> {
    let wanted = args.backup.as_deref().unwrap_or_default();
    let request = RestoreRequest {
        backup: service.repository().resolve(wanted)?,
        disks: volumes(&args.disk)?,
        rewrite_existing: args.rewrite_existing,
        verify: args.verify,
        dry_run: args.dry_run,
        salvage: args.salvage,
    };
    told(service.plan_into_volumes(request, args.new_domain.as_deref()).await)
}

fn flags(args: &RestoreArgs) -> RestoreFlags {
    let flags = [
        (args.new_domain.is_some(), RestoreFlags::NEW_DOMAIN),
        (args.rewrite_existing, RestoreFlags::REWRITE_EXISTING_DISK),
        (args.verify, RestoreFlags::VERIFY),
        (args.dry_run, RestoreFlags::DRY_RUN),
        (args.salvage, RestoreFlags::SALVAGE),
    ];
    let set = flags.into_iter().filter(|(set, _)| *set);
    set.fold(RestoreFlags::NONE, |flags, (_, flag)| flags | flag)
}

/// Writes a file that was not there.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::AlreadyExists => Kind::Conflict,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Unavailable,
        };
        Error::caused(kind, error).about(path.display()).hint("name a new file in a folder that is there")
    })
}

fn volumes(given: &[Named]) -> Result<Vec<(String, VolumeSpec)>> {
    let mut volumes: Vec<(String, VolumeSpec)> = Vec::with_capacity(given.len());
    for named in given {
        if volumes.iter().any(|(name, _)| *name == named.name) {
            return Err(Error::new(Kind::Invalid, format!("disk `{}` is given twice", named.name))
                .hint("run a second restore to have it in two volumes"));
        }
        let volume = named.value.parse::<VolumeSpec>()?;
        if let Some((other, _)) = volumes.iter().find(|(_, taken)| *taken == volume) {
            return Err(Error::new(
                Kind::Invalid,
                format!("disks `{other}` and `{}` are given the same volume, {volume}", named.name),
            ));
        }
        volumes.push((named.name.clone(), volume));
    }
    Ok(volumes)
}

impl Report for RestoreOutcome {
    fn human(&self) -> String {
        let head = ["disk", "size", "written", "same", "zero", "volume"];
        let rows = self.disks.iter().map(|disk| {
            let sizes = [disk.size_bytes, disk.written_bytes, disk.skipped_bytes, disk.zero_bytes];
            let mut row = vec![disk.name.clone()];
            row.extend(sizes.map(human::size));
            row.push(disk.volume.clone());
            row
        });
        let verified = self.disks.iter().all(|disk| disk.verified);
        let end = match (self.dry_run, verified) {
            (true, _) => "checked, nothing written",
            (false, true) => "restored, read back and equal",
            (false, false) => "restored",
        };
        human::table(&head, &[1, 2, 3, 4], rows)
            + &self.disks.iter().map(lost).collect::<String>()
            + &format!("backup {}: {end}, {:.1}s\n", self.uuid, self.seconds)
    }
}

/// What a salvage left out of a disk.
fn lost(disk: &RestoredDisk) -> String {
    if disk.missing.is_empty() {
        return String::new();
    }
    let shown = disk.missing.iter().take(SHOWN_RANGES);
    let mut text =
        format!("disk {}: {} are lost and were not written:\n", disk.name, human::size(disk.missing_bytes));
    text.extend(shown.map(|range| format!("  {} bytes at {}\n", range.length, range.offset)));
    if disk.missing.len() > SHOWN_RANGES {
        text += &format!("  and {} more; --json lists them all\n", disk.missing.len() - SHOWN_RANGES);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(pairs: &[&str]) -> Error {
        volumes(&pairs.iter().map(|pair| pair.parse().unwrap()).collect::<Vec<Named>>()).unwrap_err()
    }

    #[test]
    fn a_disk_goes_into_one_volume_and_a_volume_takes_one_disk() {
        assert_eq!(refusal(&["vda=raw:/a", "vda=raw:/b"]).message(), "disk `vda` is given twice");
        assert_eq!(
            refusal(&["vda=raw:/a", "vdb=raw:/a"]).message(),
            "disks `vda` and `vdb` are given the same volume, raw:/a"
        );
    }
}
