//! The packs' own tables: what a pack really holds, whatever an index says (docs/FORMAT.md, G4).
//!
//! Three small reads a pack, never the data. A few of the tables that others are held against are kept.
//!
//! Invariant: a table counts only if it opened under the repository's keys.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use aquifer_format::{ChunkId, PackName};
use aquifer_store::Listed;
use tokio::task::JoinSet;

use crate::log::optional;
use crate::parts::Parts;
use crate::rebuild::read_rows;
use crate::verify::walk::is_damage;
use crate::{Error, Result, layout};

/// Tables to read at one time: what bounds the memory for them.
pub(super) const TABLES_AT_ONCE: usize = 16;
/// Tables kept for comparing; one of a full data pack has some hundred rows.
const TABLES_KEPT: usize = 64;

/// What a pack says of itself.
#[derive(Debug, Clone)]
pub(super) enum Table {
    /// The ids of its blobs.
    Ids(Arc<HashSet<ChunkId>>),
    /// It is not in the store.
    Gone,
    /// It does not tell.
    Unreadable(String),
}

/// Reads tables. See the module.
pub(super) struct Tables {
    parts: Parts,
    kept: VecDeque<(PackName, Table)>,
}

impl Tables {
    /// None read yet.
    pub(super) fn new(parts: &Parts) -> Self {
        Tables { parts: parts.clone(), kept: VecDeque::new() }
    }

    /// The tables of `packs`, all at a time: [`TABLES_AT_ONCE`] or fewer.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn read(&self, packs: &[PackName]) -> Result<BTreeMap<PackName, Table>> {
        let mut tables = BTreeMap::new();
        let mut reading = JoinSet::new();
        for pack in packs {
            let (parts, pack) = (self.parts.clone(), *pack);
            reading.spawn(async move { Ok::<_, Error>((pack, read_one(&parts, &pack).await?)) });
        }
        while let Some(read) = reading.join_next().await {
            let (pack, table) = read.map_err(|_| Error::Closed)??;
            tables.insert(pack, table);
        }
        Ok(tables)
    }

    /// Whether `pack` holds `id`, by its own table. The store was asked in this run.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn proves(&mut self, pack: &PackName, id: &ChunkId) -> Result<bool> {
        let table = match self.kept.iter().position(|(kept, _)| kept == pack) {
            Some(at) => self.kept.remove(at).map(|(_, table)| table).unwrap_or(Table::Gone),
            None => read_one(&self.parts, pack).await?,
        };
        let proved = matches!(&table, Table::Ids(ids) if ids.contains(id));
        self.kept.truncate(TABLES_KEPT - 1);
        self.kept.push_front((*pack, table));
        Ok(proved)
    }
}

async fn read_one(parts: &Parts, pack: &PackName) -> Result<Table> {
    let key = layout::pack(pack);
    let Some(bytes) = optional(parts.packs.head(&key).await)? else { return Ok(Table::Gone) };
    match read_rows(&parts.packs, &parts.ring, &Listed { key, bytes }).await {
        Ok(Some(rows)) => Ok(Table::Ids(Arc::new(rows.iter().map(|row| row.id).collect()))),
        Ok(None) => Ok(Table::Gone),
        Err(error) if is_damage(&error) => Ok(Table::Unreadable(error.to_string())),
        // An epoch or generation that is not ours, a later version: somebody else may be able to tell.
        Err(Error::Format(error)) => Ok(Table::Unreadable(error.to_string())),
        Err(other) => Err(other),
    }
}
