//! One restore of some disks of a backup, from request to durable volumes.
//!
//! Everything that can be refused is refused before a byte is written: unknown disks, volumes that hold
//! data, are too small, or are in use. A restore that fails later leaves nothing behind that looks like a
//! restored disk.

use std::sync::Arc;

use aquifer_repository::format::log::SessionKind;
use aquifer_repository::format::record::{DiskRecord, Record};
use aquifer_repository::{Error as RepositoryError, TreeSpec};
use async_channel::Sender;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Running;
use crate::buffers::Buffers;
use crate::error::{Error, Kind, Result};
use crate::plan::Grid;
use crate::progress::{Event, EventSink, Meter, memory_peak_bytes};
use crate::request::{MissingRange, RestoreOutcome, RestoreRequest, RestoredDisk, VolumeSpec};
use crate::rescue::rescue;
use crate::restore_check;
use crate::restore_disk::{Shared, read_tree, walk};
use crate::restore_open::Opener;
use crate::settings::{JobContext, REQUESTS_PER_CONNECTION};
use crate::target::{Put, Target, put_lane};
use crate::volume::{Applied, Volume, blocking};
use crate::walk::Walked;
use crate::workers::Workers;

/// Ranges of packs that can be on their way at once, whatever the budget.
const RANGES_IN_FLIGHT: u64 = 4;

/// Restores disks of a backup into volumes.
///
/// # Errors
/// `NotFound` for an unknown backup or disk; `Conflict` for a volume that holds data without
/// `rewrite_existing`, or is in use; `Invalid` for one that does not fit; `Corrupt` if the repository is
/// damaged where the disk needs it and this is no salvage, or if the volume does not verify; `Cancelled`.
pub fn restore(context: &JobContext, request: RestoreRequest) -> Running<'_, Result<RestoreOutcome>> {
    Box::pin(run(context, request))
}

async fn run(context: &JobContext, request: RestoreRequest) -> Result<RestoreOutcome> {
    let started_ms = context.world.monotonic_ms();
    let record = context.repository.record(request.backup).await?;
    let wanted = choose(&record, &request)?;
    let session = context.repository.begin_read(SessionKind::Restore, vec![request.backup]).await?;
    let restored = if request.dry_run {
        Box::pin(rehearse(context, &request, &wanted)).await
    } else {
        Box::pin(write(context, &request, &record, &wanted)).await
    };
    if let Err(error) = session.close().await {
        // It holds nothing but a pin, which the next run of this host gives up.
        tracing::warn!("the restore's session could not be ended in the log: {error}");
    }
    let elapsed_ms = context.world.monotonic_ms().saturating_sub(started_ms);
    Ok(RestoreOutcome {
        uuid: request.backup,
        seconds: std::time::Duration::from_millis(elapsed_ms).as_secs_f64(),
        dry_run: request.dry_run,
        memory_peak_bytes: memory_peak_bytes(),
        disks: restored?,
    })
}

/// A disk and where it goes.
struct Wanted<'a> {
    disk: &'a DiskRecord,
    volume: &'a VolumeSpec,
}

impl Wanted<'_> {
    fn tree(&self) -> TreeSpec {
        TreeSpec { root: self.disk.root, size_bytes: self.disk.size_bytes }
    }

    fn about(&self, error: Error) -> Error {
        error.about(format_args!("disk {}", self.disk.name)).with("disk", self.disk.name.clone())
    }

    fn target(
        &self,
        context: &JobContext,
        meter: &Arc<Meter>,
        volume: Volume,
        puts: Option<Sender<Put>>,
    ) -> Target {
        let (name, size_bytes) = (self.disk.name.clone(), self.disk.size_bytes);
        let meter = meter.disk(&name, size_bytes);
        let grid = Grid::new(size_bytes, context.repository.config().chunk_bytes);
        Target::new(name, grid, self.tree(), volume, meter, puts)
    }

    fn told(&self, applied: Applied, missing: Vec<MissingRange>, verified: bool) -> RestoredDisk {
        RestoredDisk {
            name: self.disk.name.clone(),
            volume: self.volume.to_string(),
            size_bytes: self.disk.size_bytes,
            written_bytes: applied.written_bytes,
            skipped_bytes: applied.skipped_bytes,
            zero_bytes: applied.zero_bytes,
            missing_bytes: missing.iter().map(|range| range.length).sum(),
            missing,
            verified,
        }
    }
}

/// Finds the disks that are asked for.
fn choose<'a>(record: &'a Record, request: &'a RestoreRequest) -> Result<Vec<Wanted<'a>>> {
    if record.external {
        return Err(Error::new(
            Kind::Unsupported,
            format!("backup {} is external: somebody else read its disks, and has the data", request.backup),
        )
        .hint("restore it with the program that read it; `aquifer list` shows which backups are external"));
    }
    if request.salvage && request.verify {
        return Err(Error::new(Kind::Invalid, "a salvage is not compared with the backup, which is damaged")
            .hint("verify, or salvage"));
    }
    if request.disks.is_empty() {
        return Err(
            Error::new(Kind::Invalid, "no disk is named").hint("name at least one: --disk NAME=VOLUME")
        );
    }
    let mut wanted: Vec<Wanted<'a>> = Vec::with_capacity(request.disks.len());
    for (name, volume) in &request.disks {
        let disk = record.disks.iter().find(|disk| disk.name == *name).ok_or_else(|| {
            let names: Vec<&str> = record.disks.iter().map(|disk| disk.name.as_str()).collect();
            Error::new(Kind::NotFound, format!("backup {} has no disk {name}", request.backup))
                .hint(format!("it has {}", names.join(", ")))
                .with("disk", name.clone())
        })?;
        if wanted.iter().any(|other| other.disk.name == *name) {
            return Err(
                Error::new(Kind::Invalid, format!("disk {name} is named twice")).with("disk", name.clone())
            );
        }
        if let Some(other) = wanted.iter().find(|other| other.volume == volume) {
            let text = format!("disks {} and {name} are both sent to {volume}", other.disk.name);
            return Err(Error::new(Kind::Invalid, text).hint("give each disk a volume of its own"));
        }
        wanted.push(Wanted { disk, volume });
    }
    Ok(wanted)
}

/// Checks volumes, trees and index, and counts what would be written.
async fn rehearse(
    context: &JobContext,
    request: &RestoreRequest,
    wanted: &[Wanted<'_>],
) -> Result<Vec<RestoredDisk>> {
    let mut told = Vec::with_capacity(wanted.len());
    for disk in wanted {
        let size_bytes = disk.disk.size_bytes;
        let probed =
            Volume::probe(disk.volume, size_bytes, request.rewrite_existing, &context.settings).await;
        probed.map_err(|error| disk.about(error))?;
        let target =
            disk.target(context, &Meter::new(EventSink::none(), size_bytes), Volume::nowhere(), None);
        let target = if request.salvage { target.salvaging() } else { target };
        count(context, &target).await.map_err(|error| disk.about(error))?;
        told.push(disk.told(target.total()?, target.missing(), false));
    }
    Ok(told)
}

async fn count(context: &JobContext, target: &Target) -> Result<()> {
    let mut walk = walk(&context.repository, target.tree, target.grid);
    while let Some(piece) = walk.next().await? {
        if context.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        match piece {
            Walked::Lost(range, error) => target.lose([range], error)?,
            Walked::Gap(range) => {
                target.note(Applied { zero_bytes: range.end - range.start, ..Applied::default() });
            }
            Walked::Chunks(first, ids) => {
                let repository = Arc::clone(&context.repository);
                let (ids, found) =
                    blocking(move || Ok(repository.locate(&ids).map(|found| (ids, found))?)).await?;
                for ((chunk, id), location) in (first..).zip(ids).zip(found) {
                    let place = target.place_of(chunk);
                    match location {
                        Some(_) => target
                            .note(Applied { written_bytes: place.end - place.start, ..Applied::default() }),
                        None => target.lose([place], RepositoryError::Missing { chunk: id }.into())?,
                    }
                }
            }
        }
    }
    Ok(())
}

/// Opens all volumes, fills them, makes them durable, and checks them if asked.
async fn write(
    context: &JobContext,
    request: &RestoreRequest,
    record: &Record,
    wanted: &[Wanted<'_>],
) -> Result<Vec<RestoredDisk>> {
    let mut volumes = Vec::with_capacity(wanted.len());
    for disk in wanted {
        let opened =
            Volume::open(disk.volume, disk.disk.size_bytes, request.rewrite_existing, &context.settings);
        match opened.await {
            Ok(volume) => volumes.push(volume),
            Err(error) => {
                // Nothing was written yet.
                volumes.iter().for_each(Volume::release);
                close(volumes).await.unwrap_or_else(|error| tracing::warn!(%error, "a volume"));
                return Err(disk.about(error));
            }
        }
    }
    context.events.send(Event::Started {
        uuid: request.backup,
        domain: record.domain.name.clone(),
        disks: wanted.iter().map(|disk| (disk.disk.name.clone(), disk.disk.size_bytes)).collect(),
        memory_bytes: context.settings.memory_bytes,
    });
    let filled = Box::pin(fill(context, request, wanted, &volumes)).await;
    if filled.is_err() {
        for left in volumes.iter().filter_map(Volume::undo) {
            context.events.warn(left);
        }
    }
    let closed = close(volumes).await;
    filled.and_then(|told| closed.map(|()| told))
}

/// Ends what serves volumes. All are ended; the first failure is told.
async fn close(volumes: Vec<Volume>) -> Result<()> {
    let mut closed = Ok(());
    for volume in volumes {
        closed = closed.and(volume.close().await);
    }
    closed
}

async fn fill(
    context: &JobContext,
    request: &RestoreRequest,
    wanted: &[Wanted<'_>],
    volumes: &[Volume],
) -> Result<Vec<RestoredDisk>> {
    let chunk_bytes = context.repository.config().chunk_bytes;
    let meter = Meter::new(context.events.clone(), wanted.iter().map(|disk| disk.disk.size_bytes).sum());
    let lanes_max =
        usize::try_from(context.settings.transit_bytes(chunk_bytes) / u64::from(chunk_bytes)).unwrap_or(1);
    let (mut targets, mut lanes) = (Vec::new(), JoinSet::new());
    for (disk, volume) in wanted.iter().zip(volumes) {
        let puts = volume.nbd().map(|nbd| {
            let wished = usize::from(nbd.client.info().connections.max(1) * REQUESTS_PER_CONNECTION);
            let count = wished.min(lanes_max);
            let (puts, queue) = async_channel::bounded(count);
            for _ in 0..count {
                lanes.spawn(put_lane(queue.clone()));
            }
            puts
        });
        let target = disk.target(context, &meter, volume.clone(), puts);
        targets.push(Arc::new(if request.salvage { target.salvaging() } else { target }));
    }
    copy(context, &targets, lanes).await?;
    let mut told = Vec::with_capacity(wanted.len());
    for (disk, target) in wanted.iter().zip(&targets) {
        target.volume.finish().await.map_err(|error| target.about(error))?;
        told.push(disk.told(target.total()?, target.missing(), request.verify));
    }
    if request.verify {
        Box::pin(restore_check::check(context, &targets)).await?;
    }
    Ok(told)
}

/// Moves all chunks of all targets; `lanes` put them into those that are exports.
pub(crate) async fn copy(
    context: &JobContext,
    targets: &[Arc<Target>],
    mut lanes: JoinSet<Result<()>>,
) -> Result<()> {
    let chunk_bytes = context.repository.config().chunk_bytes;
    // A bucket is read in few large ranges, and several must be on their way.
    let ranges_bytes = RANGES_IN_FLIGHT * u64::from(context.repository.range_bytes());
    let transit_bytes = context.settings.transit_bytes(chunk_bytes).max(ranges_bytes);
    let failed = CancellationToken::new();
    let threads = context.settings.thread_count();
    let openers = (0..threads).map(|_| Opener::new(&context.repository));
    let workers = Workers::start("open", openers.collect::<Result<_>>()?, 2 * threads, &failed)?;
    let shared = Shared {
        repository: Arc::clone(&context.repository),
        jobs: workers.queue(),
        buffers: Buffers::new(transit_bytes, chunk_bytes),
    };
    let mut disks = JoinSet::new();
    for target in targets {
        disks.spawn(read_tree(Arc::clone(target), shared.clone()));
    }
    drop(shared);
    let read = tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(Error::cancelled()),
        // The thread's own error takes the place of this one.
        () = failed.cancelled() => Err(Error::new(Kind::Internal, "a processor thread failed")),
        put = join_all(&mut lanes), if !lanes.is_empty() => put,
        read = join_all(&mut disks) => read,
    };
    if read.is_err() {
        // The lanes go first: a thread may be waiting for one that never ends.
        disks.abort_all();
        lanes.abort_all();
        targets.iter().for_each(|target| target.close());
    }
    let opened = workers.finish().await;
    targets.iter().for_each(|target| target.close());
    let put = join_all(&mut lanes).await;
    the_cause([opened, put, read])?;
    for target in targets {
        // Those that the last fetches put aside.
        let rescued = tokio::select! {
            biased;
            () = context.cancel.cancelled() => Err(Error::cancelled()),
            rescued = rescue(target, &context.repository) => rescued.map_err(|error| target.about(error)),
        };
        rescued?;
    }
    Ok(())
}

/// Of what several parts of a job ended with, the failure that made the others fail: those fall over a closed
/// queue, which is `Internal`.
fn the_cause<const N: usize>(ends: [Result<()>; N]) -> Result<()> {
    let mut first = Ok(());
    for end in ends {
        match (&first, end) {
            (_, Ok(())) => {}
            (_, Err(error)) if error.kind() != Kind::Internal => return Err(error),
            (Ok(()), Err(error)) => first = Err(error),
            (Err(_), Err(_)) => {}
        }
    }
    first
}

async fn join_all(running: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = running.join_next().await {
        ended.map_err(|error| Error::caused(Kind::Internal, error))??;
    }
    Ok(())
}
