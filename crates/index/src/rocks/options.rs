//! How RocksDB is set up, and why.

use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBCompressionType, Options,
};

use super::names::Names;
use super::rows::Rows;
use super::{CHUNKS, PACKS};

/// Bytes of cached blocks. Hits are rare while a backup runs, and a restore reads packs in runs.
const CACHE_BYTES: usize = 32 << 20;

/// Bytes gathered in memory before a file is written; there are two such buffers at most.
const BUFFER_BYTES: usize = 16 << 20;

/// Bytes of one file of the database.
const FILE_BYTES: u64 = 64 << 20;

/// Bits of bloom filter a key: 1.2 bytes in memory, one false hit in a hundred.
const BLOOM_BITS: f64 = 10.0;

/// Opens for writing; makes what is missing.
pub(super) fn open(path: &Path, names: &Arc<Names>) -> Result<DB, rocksdb::Error> {
    let mut options = database();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    DB::open_cf_descriptors(&options, path, families(Some(names)))
}

/// Opens as a reader beside a writer.
pub(super) fn open_reader(path: &Path, own: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = database();
    // A reader keeps every file open, so that the writer may delete them meanwhile.
    options.set_max_open_files(-1);
    DB::open_cf_descriptors_as_secondary(&options, path, own, families(None))
}

fn database() -> Options {
    let mut options = Options::default();
    // All families are flushed at one moment, because there is no write-ahead log to fit them together again.
    options.set_atomic_flush(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(512);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_db_write_buffer_size(2 * BUFFER_BYTES);
    options
}

fn families(names: Option<&Arc<Names>>) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    let family = |options| move |name| ColumnFamilyDescriptor::new(name, options);
    let mut chunks = common(&cache);
    chunks.set_memtable_whole_key_filtering(true);
    chunks.set_memtable_prefix_bloom_ratio(0.05);
    if let Some(names) = names {
        let names = Arc::clone(names);
        chunks.set_compaction_filter(
            c"rows of removed packs",
            move |_level: u32, _key: &[u8], value: &[u8]| drop_gone(&names, value),
        );
    }
    let default = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
    vec![family(common(&cache))(default), family(chunks)(CHUNKS), family(common(&cache))(PACKS)]
}

fn common(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(BLOOM_BITS, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    // Ids and hashes do not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_target_file_size_base(FILE_BYTES);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

/// Drops the rows of a chunk none of whose packs is left. While the table of names is not loaded, nothing is gone.
fn drop_gone(names: &Names, value: &[u8]) -> CompactionDecision {
    let table = names.read();
    match Rows::new(value) {
        Some(rows) if rows.numbers().all(|number| table.is_gone(number)) => CompactionDecision::Remove,
        _ => CompactionDecision::Keep,
    }
}
