//! Typed parameters of a backup and of its job: from the journal while the job is remembered, else from the record.
//!
//! Invariant: a value that is not known is left out, and never a zero.

use aquifer_api::{Error, JobState, Parameters, Result, Value};
use aquifer_engine::repository::format::record::{Mode, Record};
use uuid::Uuid;

use crate::catalogue::Item;
use crate::error::repository;
use crate::journal::{Entry, EntryDisk, JobKind};
use crate::service::Service;

/// libvirt's `virDomainJobOperation`: `VIR_DOMAIN_JOB_OPERATION_BACKUP`, and the one without a name of its own.
const OPERATION_BACKUP: i32 = 9;
const OPERATION_UNKNOWN: i32 = 0;

impl Service {
    /// The parameters.
    ///
    /// # Errors
    /// `NoBackup`; those of the repository.
    pub(crate) async fn parameters(&self, uuid: Uuid) -> Result<Parameters> {
        let entry = self.entry(uuid)?;
        if let Some(job) = entry.clone().filter(|entry| entry.kind == JobKind::Restore) {
            return of_job(&job, job.state, self.now_ms());
        }
        let item = self.item(uuid).await?;
        let mut parameters = match (&item, entry) {
            (_, Some(entry)) => of_job(&entry, item.state(), self.now_ms())?,
            (Item::Job(entry), None) => of_job(entry, entry.state, self.now_ms())?,
            (Item::Stored(_), None) => {
                let record = self.repository().record(uuid).await.map_err(repository)?;
                of_record(&record)?
            }
        };
        if let Some(parent) = item.parent() {
            add(&mut parameters, "parent", Value::String(parent.to_string()))?;
        }
        Ok(parameters)
    }
}

fn add(parameters: &mut Parameters, name: impl Into<String>, value: Value) -> Result<()> {
    parameters.add(name, value).map_err(|error| Error::Internal(error.to_string()))
}

fn of_job(entry: &Entry, state: JobState, now_ms: u64) -> Result<Parameters> {
    let mut all = Parameters::new();
    let operation = if entry.kind == JobKind::Restore { OPERATION_UNKNOWN } else { OPERATION_BACKUP };
    add(&mut all, "operation", Value::Int(operation))?;
    add(&mut all, "state", Value::String(state.to_string()))?;
    add(&mut all, "domain", Value::String(entry.domain.clone()))?;
    add(&mut all, "job", Value::String(entry.uuid.to_string()))?;
    let until = if state.is_final() { entry.changed_ms } else { now_ms };
    add(&mut all, "time_elapsed", Value::Ullong(until.saturating_sub(entry.started_ms)))?;
    if state.is_final() {
        add(&mut all, "success", Value::Boolean(state == JobState::Completed))?;
    }
    if let Some(error) = &entry.error {
        add(&mut all, "errmsg", Value::String(error.clone()))?;
    }
    if let Some(freeze_ms) = entry.freeze_ms {
        add(&mut all, "freeze_ms", Value::Ullong(freeze_ms))?;
    }
    if let Some(exposed) = &entry.exposed {
        add(&mut all, "quiesced", Value::Boolean(exposed.quiesced))?;
    }
    let total: u64 = entry.disks.iter().map(|disk| disk.size_bytes).sum();
    if !entry.disks.is_empty() {
        add(&mut all, "disk_total", Value::Ullong(total))?;
    }
    if entry.kind != JobKind::Unmanaged && !entry.disks.is_empty() {
        let left = total.saturating_sub(entry.done_bytes);
        add(&mut all, "disk_processed", Value::Ullong(entry.done_bytes))?;
        add(&mut all, "disk_remaining", Value::Ullong(left))?;
        if !state.is_final() && entry.rate_bytes > 0 {
            add(&mut all, "disk_bps", Value::Ullong(entry.rate_bytes))?;
            add(&mut all, "time_remaining", Value::Ullong(left.saturating_mul(1000) / entry.rate_bytes))?;
        }
    }
    disks(&mut all, &entry.disks, entry.kind == JobKind::Backup && state == JobState::Completed)?;
    Ok(all)
}

fn of_record(record: &Record) -> Result<Parameters> {
    let mut all = Parameters::new();
    add(&mut all, "operation", Value::Int(OPERATION_BACKUP))?;
    add(&mut all, "state", Value::String(JobState::Completed.to_string()))?;
    add(&mut all, "domain", Value::String(record.domain.name.clone()))?;
    add(&mut all, "job", Value::String(record.backup.to_string()))?;
    add(&mut all, "success", Value::Boolean(true))?;
    if let Some(frozen_ms) = record.quiesce.frozen_ms {
        add(&mut all, "freeze_ms", Value::Ullong(frozen_ms))?;
    }
    add(&mut all, "quiesced", Value::Boolean(record.quiesce.quiesced))?;
    let total = record.disks.iter().map(|disk| disk.size_bytes).sum();
    add(&mut all, "disk_total", Value::Ullong(total))?;
    let told: Vec<EntryDisk> = record
        .disks
        .iter()
        .map(|disk| EntryDisk {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            mode: match disk.mode {
                Mode::Full => "full",
                Mode::Bitmap => "bitmap",
                Mode::Rescan => "rescan",
            }
            .to_owned(),
            reason: disk.reason.clone(),
            read_bytes: disk.read_bytes,
            zero_bytes: disk.zero_bytes,
            dup_bytes: disk.dedup_bytes,
            new_bytes: disk.new_bytes,
            stored_bytes: disk.stored_bytes,
        })
        .collect();
    disks(&mut all, &told, !record.external)?;
    Ok(all)
}

/// The parameters of each disk and, when their data was read here, the sums.
fn disks(all: &mut Parameters, disks: &[EntryDisk], read_here: bool) -> Result<()> {
    if read_here {
        let sum = |bytes: fn(&EntryDisk) -> u64| {
            Value::Ullong(disks.iter().map(bytes).fold(0, u64::saturating_add))
        };
        add(all, "bytes_read", sum(|disk| disk.read_bytes))?;
        add(all, "bytes_zero", sum(|disk| disk.zero_bytes))?;
        add(all, "bytes_dup", sum(|disk| disk.dup_bytes))?;
        add(all, "bytes_new", sum(|disk| disk.new_bytes))?;
        add(all, "bytes_stored", sum(|disk| disk.stored_bytes))?;
        let level = if disks.iter().all(|disk| disk.mode == "full") { "full" } else { "incremental" };
        add(all, "level", Value::String(level.to_owned()))?;
    }
    for (number, disk) in disks.iter().enumerate() {
        add(all, format!("disk.{number}.name"), Value::String(disk.name.clone()))?;
        add(all, format!("disk.{number}.size"), Value::Ullong(disk.size_bytes))?;
        if !disk.mode.is_empty() {
            add(all, format!("disk.{number}.level"), Value::String(disk.mode.clone()))?;
        }
        if read_here {
            add(all, format!("disk.{number}.bytes_read"), Value::Ullong(disk.read_bytes))?;
            add(all, format!("disk.{number}.bytes_zero"), Value::Ullong(disk.zero_bytes))?;
            add(all, format!("disk.{number}.bytes_dup"), Value::Ullong(disk.dup_bytes))?;
            add(all, format!("disk.{number}.bytes_new"), Value::Ullong(disk.new_bytes))?;
            add(all, format!("disk.{number}.bytes_stored"), Value::Ullong(disk.stored_bytes))?;
        }
        if let Some(reason) = &disk.reason {
            let name = format!("fallback.{}", disk.name);
            // A disk's name may be longer than libvirt's field for it.
            if name.len() <= aquifer_api::parameters::NAME_BYTES_MAX {
                add(all, name, Value::String(reason.clone()))?;
            }
        }
    }
    Ok(())
}
