//! The backup record: everything about one backup except its data, as JSON in a meta blob.
//!
//! Not here: the short summary's place in the log. The invariant: a record alone, with the packs, restores
//! its disks: it names their sizes and roots. docs/FORMAT.md, "Record".

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::cursor::{check_limit, widen};
use crate::error::{Error, Result};
use crate::id::{ChunkId, parse_hex};
use crate::magic;

const OBJECT: &str = "record";

/// Version of the record's JSON.
pub const RECORD_VERSION: u32 = 1;

/// How a disk was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything that is allocated, without a parent.
    Full,
    /// What a dirty bitmap names.
    Bitmap,
    /// Everything again, compared with the parent, because no bitmap could be used.
    Rescan,
}

/// Whether a backup was read whole or against a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No disk was read against a parent.
    Full,
    /// At least one disk was.
    Incremental,
}

/// The virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// Its UUID, when the hypervisor told it.
    pub uuid: Option<Uuid>,
    /// Its name.
    pub name: String,
    /// The host that it ran on.
    pub host: String,
}

/// A dirty bitmap that marks this backup's instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitmapRecord {
    /// Its name in QEMU.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity_bytes: u64,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Target name, as `vda`; unique in the record.
    pub name: String,
    /// Node or file that was read, for people.
    pub node: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes, 0 when unknown.
    pub logical_block_bytes: u32,
    /// Physical block size in bytes, 0 when unknown.
    pub physical_block_bytes: u32,
    /// Root of the disk's tree; null when every byte is zero.
    pub root: Option<ChunkId>,
    /// The bitmap that a later incremental counts from.
    pub bitmap: Option<BitmapRecord>,
    /// How it was read.
    pub mode: Mode,
    /// Why, when the mode is not what was asked for.
    pub reason: Option<String>,
    /// Bytes read from the export.
    pub read_bytes: u64,
    /// Plain bytes of chunks that were new to the repository.
    pub new_bytes: u64,
    /// Plain bytes of chunks that were there already.
    pub dedup_bytes: u64,
    /// Bytes known or found to be zero.
    pub zero_bytes: u64,
    /// Bytes that the new chunks take in packs.
    pub stored_bytes: u64,
}

/// How the guest was brought to rest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuiesceRecord {
    /// True when its file systems were frozen at the instant.
    pub quiesced: bool,
    /// For how long, in milliseconds.
    pub frozen_ms: Option<u64>,
    /// What happened, when it is worth saying.
    pub detail: Option<String>,
}

/// What a definition is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefinitionKind {
    /// libvirt domain XML.
    Xml,
    /// JSON, as QEMU speaks it.
    Json,
    /// QEMU's command line.
    CommandLine,
}

/// The machine's definition, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What it is written in.
    pub kind: DefinitionKind,
    /// Its bytes. In JSON: a string when they are UTF-8, else `{"hex": "…"}`.
    #[serde(serialize_with = "write_bytes", deserialize_with = "read_bytes")]
    pub bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextOrHex {
    Text(String),
    Hex { hex: String },
}

fn write_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => TextOrHex::Hex { hex: crate::cursor::hex(bytes) }.serialize(serializer),
    }
}

fn read_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u8>, D::Error> {
    match TextOrHex::deserialize(deserializer)? {
        TextOrHex::Text(text) => Ok(text.into_bytes()),
        TextOrHex::Hex { hex } => {
            let pairs = hex.as_bytes().chunks(2).map(|pair| {
                let text = std::str::from_utf8(pair).map_err(serde::de::Error::custom)?;
                parse_hex::<1>("byte (2 hex digits)", text)
                    .map(|byte| byte[0])
                    .map_err(serde::de::Error::custom)
            });
            pairs.collect()
        }
    }
}

/// The description of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The backup.
    pub backup: Uuid,
    /// The backup that it was read against.
    pub parent: Option<Uuid>,
    /// The virtual machine.
    pub domain: DomainRecord,
    /// The instant that it shows, in milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// For people.
    pub description: String,
    /// Its disks, at most 256.
    pub disks: Vec<DiskRecord>,
    /// The machine's definition.
    pub definition: Option<Definition>,
    /// How the guest was brought to rest.
    pub quiesce: QuiesceRecord,
    /// Program and version that wrote it.
    pub tool: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// The part of the repository that the backup was asked into; left out when it is the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// True for a backup whose data somebody else read and has: here are no bytes of its disks, and their roots say
    /// nothing. Left out when false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub external: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Record {
    /// The record's bytes: the plain bytes of a [`crate::BlobKind::Record`] blob.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than 256 disks or more than 4 MiB, [`Error::Field`] for a disk name that
    /// occurs twice.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let bytes = serde_json::to_vec(self).map_err(|source| Error::Json { object: OBJECT, source })?;
        check_limit(OBJECT, "bytes", widen(bytes.len()), u64::from(magic::RECORD_BYTES_MAX))?;
        Ok(bytes)
    }

    /// Reads a record; fields that this version does not know are ignored.
    ///
    /// # Errors
    /// [`Error::Version`] for a newer record, [`Error::Json`] or [`Error::Limit`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        check_limit(OBJECT, "bytes", widen(bytes.len()), u64::from(magic::RECORD_BYTES_MAX))?;
        let json = |source| Error::Json { object: OBJECT, source };
        let found = serde_json::from_slice::<Versioned>(bytes).map_err(json)?.version;
        if found > RECORD_VERSION {
            return Err(Error::Version { object: OBJECT, found, supported: RECORD_VERSION });
        }
        let record: Self = serde_json::from_slice(bytes).map_err(json)?;
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<()> {
        if self.version != RECORD_VERSION {
            return Err(Error::Field { object: OBJECT, field: "version", value: u64::from(self.version) });
        }
        check_limit(OBJECT, "disks", widen(self.disks.len()), widen(magic::DISKS_MAX))?;
        let names: BTreeSet<_> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
        if names.len() != self.disks.len() {
            let twice = widen(self.disks.len() - names.len());
            return Err(Error::Field { object: OBJECT, field: "disk names used twice", value: twice });
        }
        Ok(())
    }

    /// Whether any disk was read against a parent.
    #[must_use]
    pub fn level(&self) -> Level {
        if self.disks.iter().all(|disk| disk.mode == Mode::Full) { Level::Full } else { Level::Incremental }
    }

    /// The short form for the log. Long texts are cut; the record has them whole.
    #[must_use]
    pub fn summary(&self) -> CommitSummary {
        let sum = |field: fn(&DiskRecord) -> u64| self.disks.iter().map(field).fold(0, u64::saturating_add);
        let labels = self.labels.iter().take(SUMMARY_LABELS_MAX);
        CommitSummary {
            backup: self.backup,
            parent: self.parent,
            domain: cut(&self.domain.name, SUMMARY_NAME_CHARS),
            created_ms: self.created_ms,
            level: self.level(),
            description: cut(&self.description, SUMMARY_TEXT_CHARS),
            labels: labels
                .map(|(name, value)| (cut(name, SUMMARY_NAME_CHARS), cut(value, SUMMARY_NAME_CHARS)))
                .collect(),
            disks: self
                .disks
                .iter()
                .map(|disk| DiskSummary {
                    name: cut(&disk.name, SUMMARY_NAME_CHARS),
                    size_bytes: disk.size_bytes,
                    mode: disk.mode,
                })
                .collect(),
            read_bytes: sum(|disk| disk.read_bytes),
            new_bytes: sum(|disk| disk.new_bytes),
            stored_bytes: sum(|disk| disk.stored_bytes),
            external: self.external,
        }
    }
}

const SUMMARY_LABELS_MAX: usize = 8;
const SUMMARY_NAME_CHARS: usize = 64;
const SUMMARY_TEXT_CHARS: usize = 160;

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// A disk in a [`CommitSummary`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSummary {
    /// Target name.
    pub name: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// How it was read.
    pub mode: Mode,
}

/// What a list of backups shows, carried by the log's `Commit` ([`Record::summary`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitSummary {
    /// The backup.
    pub backup: Uuid,
    /// The backup that it was read against.
    pub parent: Option<Uuid>,
    /// Name of the virtual machine.
    pub domain: String,
    /// The instant that it shows, in milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Whether it was read whole.
    pub level: Level,
    /// For people; cut to 160 characters.
    pub description: String,
    /// At most 8 labels.
    pub labels: BTreeMap<String, String>,
    /// Its disks.
    pub disks: Vec<DiskSummary>,
    /// Bytes read from the exports.
    pub read_bytes: u64,
    /// Plain bytes of chunks that were new.
    pub new_bytes: u64,
    /// Bytes that they take in packs.
    pub stored_bytes: u64,
    /// True for a backup without data here, see [`Record::external`]; left out when false. A program that does not
    /// know it refuses the entry, and so never restores such a backup as zeros.
    #[serde(default, skip_serializing_if = "is_false")]
    pub external: bool,
}

#[cfg(test)]
mod tests;
