//! The index on disk: RocksDB with one writer process and any number of readers.
//!
//! Three column families: `chunks` (chunk id to its rows, see [`rows`]), `packs` (pack number to what is known of it)
//! and the default one for a few facts of the index itself. The names of all packs are in memory, about 30 bytes each,
//! so that a look-up needs nothing but the chunk's own row. Keys are hashes: no compression, a bloom filter of ten
//! bits, and look-ups in batches, because nearly every question is a miss. There is no write-ahead log: what was not
//! flushed is read again from the segments.
//!
//! A removed pack is taken out of the table of names at once; its rows are ignored from then on and vanish when their
//! chunk is written again or compacted.
//!
//! Invariant: pack numbers are never used twice, so a row can never point to another pack than the one it was written
//! for; flushes cover all families at one moment, so position, packs and rows on disk always fit each other.

mod names;
mod options;
mod reader;
mod rows;

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use aquifer_format::id::{ChunkId, EntryHash, PackName, RepositoryId};
use aquifer_format::segment::SegmentPack;
use rocksdb::{ColumnFamily, DB, DBPinnableSlice, FlushOptions, IteratorMode, WriteBatch, WriteOptions};

use crate::{ChunkIndex, Error, IndexStats, Location, PackSummary, Position, Result};
use names::Names;
use rows::Pack;

pub use reader::RocksReader;

/// Layout of keys and values; another number means rebuild.
const SCHEMA: u32 = 1;

const CHUNKS: &str = "chunks";
const PACKS: &str = "packs";

const KEY_SCHEMA: &[u8] = b"schema";
const KEY_REPOSITORY: &[u8] = b"repository";
const KEY_NEXT: &[u8] = b"next pack";
const KEY_POSITION: &[u8] = b"position";

/// An open database and the names of its packs: what writer and readers share.
struct Core {
    path: PathBuf,
    db: DB,
    names: Arc<Names>,
}

impl Core {
    fn open(path: &Path) -> Result<Self> {
        let names = Arc::new(Names::default());
        let db = options::open(path, &names).map_err(|source| failed(path, source))?;
        Ok(Self { path: path.to_owned(), db, names })
    }

    fn failed(&self, source: rocksdb::Error) -> Error {
        failed(&self.path, source)
    }

    fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.clone(), reason: reason.into() }
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily> {
        self.db.cf_handle(name).ok_or_else(|| self.corrupt(format!("it has no column family {name}")))
    }

    /// A fact of fixed length; `None` when it was never written.
    fn fact<const N: usize>(&self, key: &[u8]) -> Result<Option<[u8; N]>> {
        let Some(value) = self.db.get(key).map_err(|source| self.failed(source))? else { return Ok(None) };
        match <[u8; N]>::try_from(value.as_slice()) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.corrupt(format!("{} has {} bytes, not {N}", key.escape_ascii(), value.len()))),
        }
    }

    /// Checks that the index is of this program and of `expected`; `false` for one that was never filled.
    fn check(&self, expected: RepositoryId) -> Result<bool> {
        let Some(schema) = self.fact(KEY_SCHEMA)?.map(u32::from_be_bytes) else { return Ok(false) };
        if schema != SCHEMA {
            return Err(Error::Schema { path: self.path.clone(), expected: SCHEMA, found: schema });
        }
        let found = self.fact(KEY_REPOSITORY)?.map(RepositoryId);
        let found = found.ok_or_else(|| self.corrupt("it does not name its repository"))?;
        if found != expected {
            return Err(Error::OtherRepository { path: self.path.clone(), expected, found });
        }
        Ok(true)
    }

    fn position(&self) -> Result<Option<Position>> {
        let Some(value) = self.fact::<56>(KEY_POSITION)? else { return Ok(None) };
        let mut cursor = rows::Cursor::new(&value);
        let read = || -> Option<Position> {
            let repository = RepositoryId(cursor.array()?);
            let seq = u64::from_be_bytes(cursor.array()?);
            Some(Position { repository, seq, hash: EntryHash(cursor.array()?) })
        };
        let mut read = read;
        read().map(Some).ok_or_else(|| self.corrupt("its position is cut short"))
    }

    /// Every pack with its number, in the order of numbers.
    fn packs(&self) -> Result<Vec<(u32, Pack)>> {
        let mut found = Vec::new();
        for item in self.db.iterator_cf(self.family(PACKS)?, IteratorMode::Start) {
            let (key, value) = item.map_err(|source| self.failed(source))?;
            let number = <[u8; 4]>::try_from(key.as_ref()).map(u32::from_be_bytes).ok();
            let pack = Pack::decode(&value);
            let (number, pack) =
                number.zip(pack).ok_or_else(|| self.corrupt("the entry of a pack does not decode"))?;
            found.push((number, pack));
        }
        Ok(found)
    }

    /// The values of `ids`, in order. One call for the whole batch: misses are answered by the filters alone.
    fn values(&self, ids: &[ChunkId]) -> Result<Vec<Option<DBPinnableSlice<'_>>>> {
        let found = self.db.batched_multi_get_cf(self.family(CHUNKS)?, ids.iter(), false);
        found.into_iter().collect::<std::result::Result<_, _>>().map_err(|source| self.failed(source))
    }

    fn checked<'v>(&self, id: &ChunkId, value: &'v [u8]) -> Result<rows::Rows<'v>> {
        rows::Rows::new(value)
            .ok_or_else(|| self.corrupt(format!("the rows of chunk {id} have {} bytes", value.len())))
    }

    fn contains_many(
        &self,
        ids: &[ChunkId],
        live: &dyn Fn(&PackName) -> bool,
    ) -> Result<Vec<Option<PackName>>> {
        let values = self.values(ids)?;
        let names = self.names.read();
        let mut found = Vec::with_capacity(ids.len());
        for (id, value) in ids.iter().zip(&values) {
            let Some(value) = value else {
                found.push(None);
                continue;
            };
            let mut packs = self.checked(id, value)?.numbers().filter_map(|number| names.get(number));
            found.push(packs.find(|pack| live(pack)));
        }
        Ok(found)
    }

    fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let values = self.values(ids)?;
        let mut packs = HashMap::new();
        let mut found = Vec::with_capacity(ids.len());
        for (id, value) in ids.iter().zip(&values) {
            let mut locations = Vec::new();
            if let Some(value) = value {
                for (number, row) in self.checked(id, value)?.decoded(id) {
                    let row =
                        row.ok_or_else(|| self.corrupt(format!("a row of chunk {id} does not decode")))?;
                    if let Some(pack) = self.pack(&mut packs, number)? {
                        locations.push(Location { row, pack: pack.summary.pack, header: pack.header });
                    }
                }
            }
            found.push(locations);
        }
        Ok(found)
    }

    /// A pack that was not removed; `known` keeps those of one call.
    fn pack(&self, known: &mut HashMap<u32, Pack>, number: u32) -> Result<Option<Pack>> {
        if self.names.read().get(number).is_none() {
            return Ok(None);
        }
        if let Some(pack) = known.get(&number) {
            return Ok(Some(*pack));
        }
        let value = self.db.get_pinned_cf(self.family(PACKS)?, number.to_be_bytes());
        let Some(value) = value.map_err(|source| self.failed(source))? else { return Ok(None) };
        let pack = Pack::decode(&value).ok_or_else(|| self.corrupt("the entry of a pack does not decode"))?;
        known.insert(number, pack);
        Ok(Some(pack))
    }

    fn stats(&self) -> Result<IndexStats> {
        let property = |family: &str, name: &str| -> Result<u64> {
            let value = self.db.property_int_value_cf(self.family(family)?, name);
            Ok(value.map_err(|source| self.failed(source))?.unwrap_or_default())
        };
        const SIZE: &str = "rocksdb.total-sst-files-size";
        Ok(IndexStats {
            chunks: property(CHUNKS, "rocksdb.estimate-num-keys")?,
            packs: self.names.read().count(),
            disk_bytes: property(CHUNKS, SIZE)?.saturating_add(property(PACKS, SIZE)?),
        })
    }
}

/// The index of one repository, opened for writing: one process at a time.
pub struct RocksIndex {
    path: PathBuf,
    repository: RepositoryId,
    /// `None` only after a failed [`ChunkIndex::reset`].
    core: RwLock<Option<Core>>,
    /// Pack numbers by name, and the next number. Held by whoever writes.
    writing: Mutex<Writing>,
    /// Locked as long as this lives.
    _lock: File,
}

#[derive(Default)]
struct Writing {
    numbers: HashMap<PackName, u32>,
    next: u32,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksIndex").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RocksIndex {
    /// Opens the index in the folder `path`, and makes an empty one where there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it open for writing; [`Error::Corrupt`],
    /// [`Error::OtherRepository`] and [`Error::Schema`] when it must be rebuilt ([`RocksIndex::recreate`]).
    pub fn open(path: &Path, repository: RepositoryId) -> Result<Self> {
        let lock = lock(path)?;
        Self::open_locked(path, repository, lock)
    }

    /// Throws away whatever is in the folder `path` and opens an empty index there.
    ///
    /// # Errors
    /// [`Error::Locked`] as [`RocksIndex::open`]; [`Error::Io`] when the folder cannot be emptied.
    pub fn recreate(path: &Path, repository: RepositoryId) -> Result<Self> {
        let lock = lock(path)?;
        empty(path)?;
        Self::open_locked(path, repository, lock)
    }

    fn open_locked(path: &Path, repository: RepositoryId, lock: File) -> Result<Self> {
        let (core, writing) = load(path, repository)?;
        Ok(Self {
            path: path.to_owned(),
            repository,
            core: RwLock::new(Some(core)),
            writing: Mutex::new(writing),
            _lock: lock,
        })
    }

    fn core(&self) -> Result<CoreGuard<'_>> {
        let guard = self.core.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() { Ok(CoreGuard(guard)) } else { Err(Error::Gone { path: self.path.clone() }) }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(core: &Core, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        core.db.write_opt(batch, &options).map_err(|source| core.failed(source))
    }

    /// Adds one pack that is not known yet.
    fn insert(core: &Core, writing: &mut Writing, pack: &SegmentPack) -> Result<()> {
        let number = writing.next;
        let next = number.checked_add(1).ok_or_else(|| Error::Full { path: core.path.clone() })?;
        let mut batch = WriteBatch::default();
        Self::put_rows(core, &mut batch, number, pack)?;
        batch.put_cf(core.family(PACKS)?, number.to_be_bytes(), Pack::of(pack).encode());
        batch.put(KEY_NEXT, next.to_be_bytes());
        Self::write(core, batch)?;
        writing.next = next;
        writing.numbers.insert(pack.stored_as, number);
        core.names.push(number, pack.stored_as);
        Ok(())
    }

    /// Appends the pack's rows to those that its chunks have already, without those of removed packs.
    fn put_rows(core: &Core, batch: &mut WriteBatch, number: u32, pack: &SegmentPack) -> Result<()> {
        let chunks = core.family(CHUNKS)?;
        let mut sorted: Vec<_> = pack.rows.iter().collect();
        sorted.sort_by_key(|row| row.id);
        let mut ids: Vec<_> = sorted.iter().map(|row| row.id).collect();
        ids.dedup();
        let values = core.values(&ids)?;
        let mut rest = sorted.as_slice();
        let mut joined = Vec::new();
        for (id, value) in ids.iter().zip(&values) {
            joined.clear();
            if let Some(value) = value {
                core.checked(id, value)?.copy_known(&core.names.read(), &mut joined);
            }
            let count = rest.iter().take_while(|row| row.id == *id).count();
            let (same, others) = rest.split_at(count);
            same.iter().for_each(|row| rows::encode(number, row, &mut joined));
            rest = others;
            batch.put_cf(chunks, id, &joined);
        }
        Ok(())
    }
}

/// A read guard that is known to hold an open database.
struct CoreGuard<'a>(RwLockReadGuard<'a, Option<Core>>);

impl std::ops::Deref for CoreGuard<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.0.as_ref().expect("RocksIndex::core checks that it is open before it makes the guard")
    }
}

impl ChunkIndex for RocksIndex {
    fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        self.core()?.get_many(ids)
    }

    fn contains_many(
        &self,
        ids: &[ChunkId],
        live: &dyn Fn(&PackName) -> bool,
    ) -> Result<Vec<Option<PackName>>> {
        self.core()?.contains_many(ids, live)
    }

    fn insert_packs(&self, packs: &[SegmentPack]) -> Result<()> {
        let core = self.core()?;
        let mut writing = self.writing();
        for pack in packs {
            if !writing.numbers.contains_key(&pack.stored_as) {
                Self::insert(&core, &mut writing, pack)?;
            }
        }
        Ok(())
    }

    fn remove_packs(&self, packs: &[PackName]) -> Result<()> {
        let core = self.core()?;
        let mut writing = self.writing();
        let mut batch = WriteBatch::default();
        let mut gone = Vec::new();
        for pack in packs {
            if let Some(number) = writing.numbers.remove(pack) {
                batch.delete_cf(core.family(PACKS)?, number.to_be_bytes());
                gone.push(number);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        Self::write(&core, batch)?;
        core.names.remove(&gone);
        Ok(())
    }

    fn packs(&self) -> Result<Vec<PackSummary>> {
        Ok(self.core()?.packs()?.into_iter().map(|(_, pack)| pack.summary).collect())
    }

    fn position(&self) -> Result<Option<Position>> {
        self.core()?.position()
    }

    fn set_position(&self, position: &Position) -> Result<()> {
        let core = self.core()?;
        let _turn = self.writing();
        let mut batch = WriteBatch::default();
        let seq = position.seq.to_be_bytes();
        batch.put(KEY_POSITION, [&position.repository.0[..], &seq, &position.hash.0].concat());
        Self::write(&core, batch)
    }

    fn flush(&self) -> Result<()> {
        let core = self.core()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let default = core.family(rocksdb::DEFAULT_COLUMN_FAMILY_NAME)?;
        let families = [core.family(CHUNKS)?, core.family(PACKS)?, default];
        core.db.flush_cfs_opt(&families, &options).map_err(|source| core.failed(source))
    }

    fn reset(&self) -> Result<()> {
        // In the same order as every writer: first the database, then the numbers.
        let mut place = self.core.write().unwrap_or_else(PoisonError::into_inner);
        let mut writing = self.writing();
        // Closed before its files go.
        drop(place.take());
        empty(&self.path)?;
        let (core, fresh) = load(&self.path, self.repository)?;
        *place = Some(core);
        *writing = fresh;
        Ok(())
    }

    fn stats(&self) -> Result<IndexStats> {
        self.core()?.stats()
    }
}

/// Opens the database, and writes the first facts into an empty one.
fn load(path: &Path, repository: RepositoryId) -> Result<(Core, Writing)> {
    fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let core = Core::open(path)?;
    if !core.check(repository)? {
        let mut batch = WriteBatch::default();
        batch.put(KEY_REPOSITORY, repository.0);
        batch.put(KEY_SCHEMA, SCHEMA.to_be_bytes());
        RocksIndex::write(&core, batch)?;
    }
    let packs = core.packs()?;
    let next = core.fact(KEY_NEXT)?.map_or(0, u32::from_be_bytes);
    if packs.last().is_some_and(|(number, _)| *number >= next) {
        return Err(core.corrupt(format!("a pack has a number from {next} on, which is not given out yet")));
    }
    core.names.replace(next, packs.iter().map(|(number, pack)| (*number, pack.summary.pack)));
    let numbers = packs.iter().map(|(number, pack)| (pack.summary.pack, *number)).collect();
    Ok((core, Writing { numbers, next }))
}

/// Takes the lock of the index: the file `<path>.lock`, which holds the process id of the holder for messages.
fn lock(path: &Path) -> Result<File> {
    let name = path.with_extension("lock");
    let failed = |source| Error::Io { path: name.clone(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = (&file).take(20).read_to_string(&mut holder);
            let holder = match (read, holder.trim().parse::<u32>()) {
                (Ok(_), Ok(process)) => format!("process {process}"),
                _ => "another process".to_owned(),
            };
            return Err(Error::Locked { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let note = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    note(&mut file).map_err(failed)?;
    Ok(file)
}

/// Removes the database's files.
fn empty(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Sorts RocksDB's errors: damage can be rebuilt, anything else is the disk's or the system's.
fn failed(path: &Path, source: rocksdb::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        rocksdb::ErrorKind::Corruption => Error::Corrupt { path, reason: source.into_string() },
        _ => Error::Database { path, source },
    }
}
