//! `restore`: which backup, which disk into which volume.

use aquifer_engine::{Error, Kind, RestoreOutcome, RestoreRequest, Result, VolumeSpec};

use super::open;
use crate::args::jobs::RestoreArgs;
use crate::args::values::Named;
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Runs `restore`.
///
/// # Errors
/// As the engine says.
pub(crate) async fn run(context: &Context, args: RestoreArgs) -> Result<Exit> {
    let disks = volumes(&args.disk)?;
    let job = open::reading_job(context).await?;
    let request = RestoreRequest {
        backup: job.repository.resolve(&args.backup)?,
        disks,
        rewrite_existing: args.rewrite_existing,
        verify: args.verify,
        dry_run: args.dry_run,
    };
    let outcome = aquifer_engine::restore(&job, request).await?;
    context.output.done(&outcome)?;
    Ok(Exit::Done)
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
            + &format!("backup {}: {end}, {:.1}s\n", self.uuid, self.seconds)
    }
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
