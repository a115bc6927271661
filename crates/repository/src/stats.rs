//! Sizes and counts of a repository, from the log's state and the index: nothing is read from the packs.

use std::collections::BTreeSet;

use aquifer_format::pack::PackKind;

use crate::Result;
use crate::repository::Repository;

/// Sizes and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RepositoryStats {
    /// Backups that are not deleted.
    pub backups: u64,
    /// Deleted backups that can be brought back.
    pub forgotten: u64,
    /// Virtual machines with a backup.
    pub domains: u64,
    /// Bytes of all disks of all backups, as if each were stored alone.
    pub logical_bytes: u64,
    /// Published packs that are in use.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Bytes of those that hold tree nodes and records.
    pub meta_bytes: u64,
    /// Packs that wait to be removed.
    pub condemned_packs: u64,
    /// Chunks, tree nodes and records in packs that are in use; one that is stored twice counts twice.
    pub chunks: u64,
    /// Bytes of the index on this host's disk.
    pub index_bytes: u64,
    /// Segments that the log names.
    pub segments: u64,
    /// Entries of the log.
    pub log_entries: u64,
    /// Sessions that are open.
    pub sessions: u64,
}

impl Repository {
    /// Sizes and counts as of the last refresh.
    ///
    /// # Errors
    /// Those of the index.
    pub fn stats(&self) -> Result<RepositoryStats> {
        let state = self.state();
        let index = self.parts.index.stats()?;
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let (kept, forgotten): (Vec<_>, Vec<_>) =
            state.backups().values().partition(|backup| backup.forgotten.is_none());
        let domains: BTreeSet<_> = kept.iter().map(|backup| &backup.summary.domain).collect();
        let disks = kept.iter().flat_map(|backup| &backup.summary.disks);
        let mut stats = RepositoryStats {
            backups: count(kept.len()),
            forgotten: count(forgotten.len()),
            domains: count(domains.len()),
            logical_bytes: disks.fold(0, |sum, disk| sum.saturating_add(disk.size_bytes)),
            condemned_packs: count(state.condemned().len()),
            index_bytes: index.disk_bytes,
            segments: count(state.segments().len()),
            log_entries: state.seq(),
            sessions: count(state.sessions().len()),
            ..RepositoryStats::default()
        };
        for pack in self.parts.index.packs()?.iter().filter(|pack| state.is_live(&pack.pack)) {
            stats.packs += 1;
            stats.pack_bytes += pack.bytes;
            stats.chunks += u64::from(pack.rows);
            if pack.kind == PackKind::Meta {
                stats.meta_bytes += pack.bytes;
            }
        }
        Ok(stats)
    }
}
