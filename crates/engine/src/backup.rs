//! One backup of all disks of a domain, from request to commit.
//!
//! The order is the promise: the session is open in the log before the guest is touched; the source is
//! checked after the last read and before the commit; it is closed as soon as the outcome is known, and
//! first of all when the outcome is a failure, because the guest comes first.
//!
//! Invariant: an outcome is returned if and only if the backup is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_repository::format::record::{
    Definition, DefinitionKind, DiskRecord, DomainRecord, Mode, QuiesceRecord, RECORD_VERSION, Record,
};
use aquifer_repository::{BackupSession, BeginBackup, Committed};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Running;
use crate::backup_disk::{Batch, DiskDone, DiskRead, Sealer, Shared, read_disk, request_bytes};
use crate::buffers::Buffers;
use crate::clock::new_uuid;
use crate::error::{Error, Kind, Result};
use crate::parents::{Parent, Parents};
use crate::progress::{Event, Meter, memory_peak_bytes};
use crate::request::{BackupOutcome, BackupRequest, BackupState, DiskOutcome, Source};
use crate::settings::JobContext;
use crate::source::{OpenSource, check_name};
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
    let parents = Parents::find(context, &request).await;
    let session = context
        .repository
        .begin_backup(BeginBackup {
            backup: uuid,
            domain: request.domain.clone(),
            parent: parents.newest(),
            bases: Vec::new(),
            fence_after: request.fence_after,
        })
        .await?;
    let job = Job { context, request: &request, uuid, parents, session: Arc::clone(&session) };
    match Box::pin(job.run()).await {
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
    read: DiskRead,
}

struct Job<'a> {
    context: &'a JobContext,
    request: &'a BackupRequest,
    uuid: Uuid,
    parents: Parents,
    session: Arc<BackupSession>,
}

impl Job<'_> {
    /// Everything between the open session and the commit.
    async fn run(&self) -> Result<Made> {
        let context = self.context;
        let request_bytes = request_bytes(self.session.chunk_bytes());
        let transit_bytes = context.settings.transit_bytes(request_bytes);
        let queue = usize::try_from(transit_bytes / u64::from(request_bytes)).unwrap_or(usize::MAX);
        let failed = CancellationToken::new();
        let sealers = (0..context.settings.thread_count()).map(|_| Sealer::new(&self.session));
        let workers = Workers::start("seal", sealers.collect(), queue, &failed)?;
        if context.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        // Not raced against the cancel token: a half-open QEMU session must be whole to be taken away.
        let request = self.request;
        let source = OpenSource::open(context, &request.source, &request.domain, self.uuid).await?;
        source.warnings.iter().for_each(|warning| context.events.warn(warning));
        let shared = Shared {
            repository: Arc::clone(&context.repository),
            session: Arc::clone(&self.session),
            batches: workers.queue(),
            buffers: Buffers::new(transit_bytes, request_bytes),
            throttle: Arc::new(Throttle::new(context.settings.read_limit_bytes)),
            events: context.events.clone(),
        };
        match Box::pin(self.read(&source, shared, &failed)).await {
            Ok(disks) => self.commit(source, workers, disks).await,
            Err(error) => {
                // The guest first: its session ends before the threads have ended their work.
                self.close(source, "the backup failed").await;
                Err(workers.finish().await.err().unwrap_or(error))
            }
        }
    }

    /// Connects to all disks and reads them, unless something ends that first.
    async fn read(
        &self,
        source: &OpenSource,
        shared: Shared,
        failed: &CancellationToken,
    ) -> Result<Vec<Told>> {
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled()),
            error = source.lost() => Err(self.about_domain(error)),
            // The thread's own error takes the place of this one.
            () = failed.cancelled() => Err(Error::new(Kind::Internal, "a processor thread failed")),
            done = self.disks(source, shared) => {
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

    async fn disks(&self, source: &OpenSource, shared: Shared) -> Result<Vec<Told>> {
        let readings = self.connect(source).await?;
        let mut running = JoinSet::new();
        for (at, reading) in readings.into_iter().enumerate() {
            let shared = shared.clone();
            running.spawn(async move {
                let Reading { node, mode, reason, read } = reading;
                let (name, size_bytes) = (read.name.clone(), read.client.info().size_bytes);
                let done = read_disk(read, shared).await?;
                Ok::<_, Error>((at, told(name, node, size_bytes, mode, reason, &done)))
            });
        }
        let mut done = BTreeMap::new();
        while let Some(ended) = running.join_next().await {
            let (at, disk) = ended.map_err(|error| Error::caused(Kind::Internal, error))??;
            done.insert(at, disk);
        }
        Ok(done.into_values().collect())
    }

    async fn connect(&self, source: &OpenSource) -> Result<Vec<Reading>> {
        let mut clients = Vec::with_capacity(source.disks.len());
        for disk in &source.disks {
            clients.push((disk, OpenSource::connect(self.context, disk).await?));
        }
        let sizes: BTreeMap<String, u64> =
            clients.iter().map(|(disk, client)| (disk.name.clone(), client.info().size_bytes)).collect();
        let meter = Meter::new(self.context.events.clone(), sizes.values().sum());
        self.context.events.send(Event::Started {
            uuid: self.uuid,
            domain: self.request.domain.clone(),
            disks: sizes,
            memory_bytes: self.context.settings.memory_bytes,
        });
        let reading = |(disk, client): (&crate::source::SourceDisk, aquifer_nbd::Client)| {
            let Parent { mode, reason, tree } = self.parents.of(&disk.name, self.request);
            let meter = meter.disk(&disk.name, client.info().size_bytes);
            let read = DiskRead { name: disk.name.clone(), client, parent: tree, meter };
            Reading { node: disk.node.clone(), mode, reason, read }
        };
        Ok(clients.into_iter().map(reading).collect())
    }

    /// Everything after the last read.
    async fn commit(
        &self,
        mut source: OpenSource,
        workers: Workers<Batch>,
        disks: Vec<Told>,
    ) -> Result<Made> {
        let checked = source.check().await.map_err(|error| self.about_domain(error));
        let (records, disks) = disks.into_iter().unzip();
        let record = self.record(&source, records);
        let committed = match checked {
            Ok(()) => match workers.finish().await {
                // From here on the outcome is the log's: a cancel comes too late.
                Ok(()) => Arc::clone(&self.session).commit(record.clone()).await.map_err(Error::from),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let freeze_ms = source.freeze_ms;
        let mut warnings = std::mem::take(&mut source.warnings);
        let outcome = if committed.is_ok() { "the backup is committed" } else { "the backup failed" };
        warnings.extend(self.close(source, outcome).await);
        let committed = committed?;
        warnings.extend(self.prove().await);
        Ok(Made { record, disks, committed, freeze_ms, warnings })
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
    async fn close(&self, source: OpenSource, outcome: &str) -> Option<String> {
        let error = source.close().await.err()?;
        let warning = format!("{outcome}, and its source is not clean: {error}");
        self.context.events.warn(&warning);
        Some(warning)
    }

    fn record(&self, source: &OpenSource, disks: Vec<DiskRecord>) -> Record {
        let request = self.request;
        let definition = match &request.source {
            Source::Qmp(qmp) => qmp.definition.clone(),
            Source::Nbd(_) | Source::Images(_) => None,
        };
        Record {
            version: RECORD_VERSION,
            backup: self.uuid,
            parent: self.parents.newest(),
            domain: DomainRecord { uuid: None, name: request.domain.clone(), host: host_name() },
            created_ms: source.instant_ms,
            description: request.description.clone(),
            disks,
            definition: definition.map(|bytes| Definition { kind: definition_kind(&bytes), bytes }),
            quiesce: QuiesceRecord { quiesced: source.quiesced, frozen_ms: source.freeze_ms, detail: None },
            tool: concat!("aquifer ", env!("CARGO_PKG_VERSION")).to_owned(),
            labels: request.labels.clone(),
        }
    }
}

/// What the record keeps of a disk, and what the caller is told.
type Told = (DiskRecord, DiskOutcome);

fn told(
    name: String,
    node: String,
    size_bytes: u64,
    mode: Mode,
    reason: Option<String>,
    done: &DiskDone,
) -> Told {
    let tally = done.tally;
    let record = DiskRecord {
        name: name.clone(),
        node,
        size_bytes,
        logical_block_bytes: 0,
        physical_block_bytes: 0,
        root: done.tree.root,
        bitmap: None,
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
        rechecked_bytes: 0,
        zero_bytes: tally.zero_bytes,
        kept_bytes: tally.kept_bytes,
        deduplicated_bytes: tally.deduplicated_bytes,
        new_bytes: tally.new_bytes,
        stored_bytes: tally.stored_bytes,
        tree_nodes_read: done.tree.nodes_read + done.compared_nodes,
        tree_nodes_written: done.tree.nodes_written,
    };
    (record, outcome)
}

fn definition_kind(bytes: &[u8]) -> DefinitionKind {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'<') => DefinitionKind::Xml,
        _ => DefinitionKind::Json,
    }
}

/// This machine's name, as backups record it.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
