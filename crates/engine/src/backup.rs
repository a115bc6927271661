//! One backup of all disks of a domain, from request to commit.
//!
//! The order is the promise: the session is open in the log before the guest is touched; the source is
//! checked after the last read and before the commit; it is closed as soon as the outcome is known, and
//! first of all when the outcome is a failure, because the guest comes first.
//!
//! Invariant: an outcome is returned if and only if the backup is committed.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use aquifer_qemu::{BlockSizes, Ending};
use aquifer_repository::format::record::{
    BitmapRecord, Definition, DefinitionKind, DiskRecord, DomainRecord, Mode, QuiesceRecord, RECORD_VERSION,
    Record,
};
use aquifer_repository::{BackupSession, BeginBackup, Committed};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Running;
use crate::backup_disk::{Batch, DiskDone, DiskRead, Sealer, Shared, read_disk, request_bytes};
use crate::buffers::Buffers;
use crate::changes::Changes;
use crate::clock::new_uuid;
use crate::draw::Draw;
use crate::error::{Error, Kind, Result};
use crate::lineage::{Descent, Facts};
use crate::plan::Grid;
use crate::progress::{Event, Meter, memory_peak_bytes};
use crate::request::{BackupOutcome, BackupRequest, BackupState, DiskOutcome};
use crate::settings::JobContext;
use crate::source::{OpenSource, SourceDisk, check_name};
use crate::throttle::Throttle;
use crate::workers::Workers;

/// Backs up the disks of one domain as they are at one instant.
///
/// # Errors
/// Any failure, after the source was closed and the session ended; no backup exists then. `Cancelled` if the
/// context's token was cancelled. `Conflict` if the uuid is taken.
pub fn backup(context: &JobContext, request: BackupRequest) -> Running<'_, Result<BackupOutcome>> {
    Box::pin(run(context, request))
}

async fn run(context: &JobContext, request: BackupRequest) -> Result<BackupOutcome> {
    let started_ms = context.world.monotonic_ms();
    check_name("domain", &request.domain)?;
    request.source.check_names()?;
    let uuid = request.uuid.unwrap_or_else(|| new_uuid(&*context.world));
    context.repository.refresh().await?;
    let facts = Facts::gather(context, &request).await;
    let begin = BeginBackup {
        backup: uuid,
        domain: request.domain.clone(),
        parent: facts.newest(),
        bases: facts.candidates(),
        fence_after: request.fence_after,
    };
    let session = context.repository.begin_backup(begin).await?;
    let job = Job { context, request: &request, uuid, session: Arc::clone(&session) };
    match Box::pin(job.run(facts)).await {
        Ok(made) => Ok(made.outcome(context, request.domain, started_ms)),
        // Nothing is undone while the outcome is unknown: the next run looks.
        Err(error) if outcome_unknown(&error) => Err(error),
        Err(error) => {
            // The first error is the one that counts; an open session is fenced by the next run.
            if let Err(second) = session.abandon().await {
                tracing::warn!(%uuid, "the session could not be ended in the log: {second}");
            }
            Err(error)
        }
    }
}

fn outcome_unknown(error: &Error) -> bool {
    let cause = error.cause().and_then(|cause| cause.downcast_ref::<aquifer_repository::Error>());
    matches!(cause, Some(aquifer_repository::Error::OutcomeUnknown { .. }))
}

/// A committed backup, before it is told.
struct Made {
    record: Record,
    disks: Vec<DiskOutcome>,
    committed: Committed,
    freeze_ms: Option<u64>,
    warnings: Vec<String>,
}

impl Made {
    fn outcome(self, context: &JobContext, domain: String, started_ms: u64) -> BackupOutcome {
        let elapsed_ms = context.world.monotonic_ms().saturating_sub(started_ms);
        BackupOutcome {
            uuid: self.record.backup,
            parent: self.record.parent,
            domain,
            created: timestamp(self.record.created_ms),
            state: BackupState::Completed,
            level: self.record.level(),
            seconds: std::time::Duration::from_millis(elapsed_ms).as_secs_f64(),
            freeze_ms: self.freeze_ms,
            memory_peak_bytes: memory_peak_bytes(),
            packs: self.committed.packs,
            disks: self.disks,
            warnings: self.warnings,
        }
    }
}

/// A wall clock time as it is shown; the epoch for one that no calendar has.
fn timestamp(wall_ms: u64) -> jiff::Timestamp {
    i64::try_from(wall_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// One disk that is connected and not yet read.
struct Reading {
    node: String,
    mode: Mode,
    reason: Option<String>,
    bitmap: Option<BitmapRecord>,
    blocks: Option<BlockSizes>,
    read: DiskRead,
}

struct Job<'a> {
    context: &'a JobContext,
    request: &'a BackupRequest,
    uuid: Uuid,
    session: Arc<BackupSession>,
}

impl Job<'_> {
    /// Everything between the open session and the commit.
    async fn run(&self, mut facts: Facts) -> Result<Made> {
        let context = self.context;
        if context.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        // Not raced against the cancel token: a half-open QEMU session must be whole to be taken away.
        let domain = OpenSource::look(context, self.request, self.uuid).await?;
        if let Some(domain) = &domain {
            facts.look_at(context, domain).await;
        }
        let descents = facts.descents(&self.request.source, domain.as_deref())?;
        let parent = facts.parent(&descents);
        let request_bytes = request_bytes(self.session.chunk_bytes());
        let transit_bytes = context.settings.transit_bytes(request_bytes);
        let queue = usize::try_from(transit_bytes / u64::from(request_bytes)).unwrap_or(usize::MAX);
        let failed = CancellationToken::new();
        let sealers = (0..context.settings.thread_count()).map(|_| Sealer::new(&self.session));
        let workers = Workers::start("seal", sealers.collect(), queue, &failed)?;
        let plans = descents.iter().map(|descent| descent.plan.clone()).collect();
        let source = OpenSource::open(context, &self.request.source, domain, plans).await?;
        source.warnings.iter().for_each(|warning| context.events.warn(warning));
        let shared = Shared {
            repository: Arc::clone(&context.repository),
            session: Arc::clone(&self.session),
            batches: workers.queue(),
            buffers: Buffers::new(transit_bytes, request_bytes),
            line_bytes: context.settings.line_bytes(request_bytes),
            throttle: Arc::new(Throttle::new(context.settings.read_limit_bytes)),
            events: context.events.clone(),
        };
        let readings = self.connect(&source, descents, facts.granularity_bytes());
        match Box::pin(self.read(&source, readings, shared, &failed)).await {
            Ok(disks) => self.commit(source, workers, parent, disks).await,
            Err(error) => {
                // The guest first: its session ends before the threads have ended their work.
                self.close(source, Ending::Failed).await;
                Err(workers.finish().await.err().unwrap_or(error))
            }
        }
    }

    /// Connects to all disks and reads them, unless something ends that first.
    async fn read(
        &self,
        source: &OpenSource,
        readings: impl Future<Output = Result<Vec<Reading>>> + Send,
        shared: Shared,
        failed: &CancellationToken,
    ) -> Result<Vec<Told>> {
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled()),
            error = source.lost() => Err(self.about_domain(error)),
            // The thread's own error takes the place of this one.
            () = failed.cancelled() => Err(Error::new(Kind::Internal, "a processor thread failed")),
            done = self.disks(readings, shared) => {
                done.map_err(|error| error.about(format_args!("domain {}", self.request.domain)))
            }
        }
    }

    /// A lost instant, said of the domain.
    fn about_domain(&self, error: Error) -> Error {
        let domain = &self.request.domain;
        error
            .about(format_args!("domain {domain}"))
            .with("domain", domain.as_str())
            .hint_or("run the backup again; the disks of a domain that has ended are backed up with --image")
    }

    async fn disks(
        &self,
        readings: impl Future<Output = Result<Vec<Reading>>> + Send,
        shared: Shared,
    ) -> Result<Vec<Told>> {
        let mut running = JoinSet::new();
        for (at, reading) in readings.await?.into_iter().enumerate() {
            let shared = shared.clone();
            running.spawn(async move { Ok::<_, Error>((at, reading.run(shared).await?)) });
        }
        let mut done = BTreeMap::new();
        while let Some(ended) = running.join_next().await {
            let (at, disk) = ended.map_err(|error| Error::caused(Kind::Internal, error))??;
            done.insert(at, disk);
        }
        Ok(done.into_values().collect())
    }

    async fn connect(
        &self,
        source: &OpenSource,
        descents: Vec<Descent>,
        granularity_bytes: u64,
    ) -> Result<Vec<Reading>> {
        let context = self.context;
        let mut clients = Vec::with_capacity(source.disks.len());
        for (disk, descent) in source.disks.iter().zip(descents) {
            clients.push((disk, descent, OpenSource::connect(context, disk).await?));
        }
        let sizes: BTreeMap<String, u64> =
            clients.iter().map(|(disk, _, client)| (disk.name.clone(), client.info().size_bytes)).collect();
        let meter = Meter::new(context.events.clone(), sizes.values().sum());
        context.events.send(Event::Started {
            uuid: self.uuid,
            domain: self.request.domain.clone(),
            disks: sizes,
            memory_bytes: context.settings.memory_bytes,
        });
        let reading = |(disk, descent, client): (&SourceDisk, Descent, aquifer_nbd::Client)| {
            let size_bytes = client.info().size_bytes;
            let bitmap = disk.checkpoint.clone().map(|name| BitmapRecord { name, granularity_bytes });
            let changes = descent.base.zip(descent.tree).zip(disk.changes.clone());
            let changes = changes.map(|((_, tree), context)| Changes {
                context,
                base_bytes: tree.size_bytes,
                draw: self.draw(size_bytes),
            });
            let meter = meter.disk(&disk.name, size_bytes);
            let read = DiskRead { name: disk.name.clone(), client, parent: descent.tree, changes, meter };
            Reading {
                node: disk.node.clone(),
                mode: descent.mode,
                reason: descent.reason,
                bitmap,
                blocks: disk.blocks,
                read,
            }
        };
        Ok(clients.into_iter().map(reading).collect())
    }

    /// The sample of a disk's unchanged chunks that is read all the same.
    fn draw(&self, size_bytes: u64) -> Draw {
        let mut seed = [0; 8];
        self.context.world.random(&mut seed);
        let grid = Grid::new(size_bytes, self.session.chunk_bytes());
        Draw::new(self.request.recheck_ppm, grid, u64::from_le_bytes(seed))
    }

    /// Everything after the last read.
    async fn commit(
        &self,
        mut source: OpenSource,
        workers: Workers<Batch>,
        parent: Option<Uuid>,
        disks: Vec<Told>,
    ) -> Result<Made> {
        let checked = source.check().await.map_err(|error| self.about_domain(error));
        let mut warnings = std::mem::take(&mut source.warnings);
        let (mut records, mut outcomes) = (Vec::with_capacity(disks.len()), Vec::with_capacity(disks.len()));
        for (record, outcome, warning) in disks {
            records.push(record);
            outcomes.push(outcome);
            warnings.extend(warning);
        }
        let record = self.record(&source, parent, records);
        let committed = match checked {
            Ok(()) => match workers.finish().await {
                // From here on the outcome is the log's: a cancel comes too late.
                Ok(()) => {
                    self.context.events.send(Event::Committing { uuid: self.uuid });
                    Arc::clone(&self.session).commit(record.clone()).await.map_err(Error::from)
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let freeze_ms = source.freeze_ms;
        let ending = match &committed {
            Ok(_) => Ending::Committed,
            Err(error) if outcome_unknown(error) => Ending::Unknown,
            Err(_) => Ending::Failed,
        };
        warnings.extend(self.close(source, ending).await);
        let committed = committed?;
        warnings.extend(self.prove().await);
        Ok(Made { record, disks: outcomes, committed, freeze_ms, warnings })
    }

    /// Checks the structure of what was just committed, as far as its parent does not have it already; says what is
    /// wrong. The guest is free by now.
    async fn prove(&self) -> Option<String> {
        let warning = match Box::pin(self.context.repository.verify_commit(self.uuid)).await {
            Ok(report) if report.is_clean() => return None,
            Ok(report) => {
                let first = report.damage.first().map(|damage| damage.what.as_str()).unwrap_or_default();
                format!("the backup is committed, and damaged: {first}; run `aquifer verify {}`", self.uuid)
            }
            Err(error) => {
                format!("the backup is committed, and its structure could not be verified: {error}")
            }
        };
        self.context.events.warn(&warning);
        Some(warning)
    }

    /// Closes the source; says what is left of it, if anything is.
    async fn close(&self, source: OpenSource, ending: Ending) -> Option<String> {
        let error = source.close(ending).await.err()?;
        let outcome = match ending {
            Ending::Committed => "the backup is committed",
            Ending::Failed => "the backup failed",
            Ending::Unknown => "whether the backup is committed is unknown",
        };
        let warning = format!("{outcome}, and its source is not clean: {error}");
        self.context.events.warn(&warning);
        Some(warning)
    }

    fn record(&self, source: &OpenSource, parent: Option<Uuid>, disks: Vec<DiskRecord>) -> Record {
        let request = self.request;
        Record {
            version: RECORD_VERSION,
            backup: self.uuid,
            parent,
            domain: DomainRecord {
                uuid: source.domain_uuid,
                name: request.domain.clone(),
                host: host_name(),
            },
            created_ms: source.instant_ms,
            description: request.description.clone(),
            disks,
            definition: request.definition.clone().map(definition_of),
            quiesce: QuiesceRecord { quiesced: source.quiesced, frozen_ms: source.freeze_ms, detail: None },
            tool: concat!("aquifer ", env!("CARGO_PKG_VERSION")).to_owned(),
            labels: request.labels.clone(),
            namespace: request.namespace.clone(),
            external: false,
        }
    }
}

/// What the record keeps of a disk, what the caller is told, and what the caller should know besides.
type Told = (DiskRecord, DiskOutcome, Option<String>);

impl Reading {
    /// Reads the disk.
    async fn run(self, shared: Shared) -> Result<Told> {
        let Reading { node, mut mode, mut reason, bitmap, blocks, read } = self;
        let (name, size_bytes) = (read.name.clone(), read.client.info().size_bytes);
        let DiskDone { tree, tally, compared_nodes, doubt } = read_disk(read, shared).await?;
        let warning = doubt.as_ref().map(|doubt| format!("disk {name}: {doubt}; it was read whole"));
        if doubt.is_some() {
            (mode, reason) = (Mode::Rescan, doubt);
        }
        let record = DiskRecord {
            name: name.clone(),
            node,
            size_bytes,
            logical_block_bytes: blocks.map_or(0, |blocks| blocks.logical_bytes),
            physical_block_bytes: blocks.map_or(0, |blocks| blocks.physical_bytes),
            root: tree.root,
            bitmap,
            mode,
            reason: reason.clone(),
            read_bytes: tally.read_bytes,
            new_bytes: tally.new_bytes,
            dedup_bytes: tally.kept_bytes + tally.deduplicated_bytes,
            zero_bytes: tally.zero_bytes,
            stored_bytes: tally.stored_bytes,
        };
        let outcome = DiskOutcome {
            name,
            size_bytes,
            mode,
            reason,
            read_bytes: tally.read_bytes,
            rechecked_bytes: tally.rechecked_bytes,
            zero_bytes: tally.zero_bytes,
            kept_bytes: tally.kept_bytes,
            deduplicated_bytes: tally.deduplicated_bytes,
            new_bytes: tally.new_bytes,
            stored_bytes: tally.stored_bytes,
            tree_nodes_read: tree.nodes_read + compared_nodes,
            tree_nodes_written: tree.nodes_written,
        };
        Ok((record, outcome, warning))
    }
}

/// A definition, and what it is written in by its first character.
pub fn definition_of(bytes: Vec<u8>) -> Definition {
    let kind = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'<') => DefinitionKind::Xml,
        Some(b'{' | b'[') => DefinitionKind::Json,
        _ => DefinitionKind::CommandLine,
    };
    Definition { kind, bytes }
}

/// This machine's name, as backups record it.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
