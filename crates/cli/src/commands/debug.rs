//! `debug`: objects, the log and trees in the clear, for people who want to know.
//!
//! Everything here is read only.

mod decode;

use std::sync::Arc;

use aquifer_engine::repository::format::{self, Entry};
use aquifer_engine::repository::store::{GetRange, Key, ObjectStore};
use aquifer_engine::repository::{self, Repository, TreeReader, TreeSpec};
use aquifer_engine::{Error, Kind, Result};
use serde::Serialize;

use super::list::timestamp;
use super::open;
use crate::args::DebugCommand;
use crate::context::Context;
use crate::human;
use crate::output::Report;

/// Runs `debug …`.
///
/// # Errors
/// `NotFound` for an object, backup or disk that is not there; `Corrupt` for an object that does not open.
pub(crate) async fn run(context: &Context, command: DebugCommand) -> Result<()> {
    let repository = open::reader(context).await?;
    match command {
        DebugCommand::Cat { key } => cat(context, &repository, &key).await,
        DebugCommand::Log => log(context, &repository).await,
        DebugCommand::Tree { backup, disk } => tree(context, &repository, &backup, &disk).await,
    }
}

/// An object as JSON, for people too.
#[derive(Serialize)]
#[serde(transparent)]
struct Object(serde_json::Value);

async fn cat(context: &Context, repository: &Repository, name: &str) -> Result<()> {
    let key = Key::parse(name).map_err(|error| {
        Error::caused(Kind::Invalid, error)
            .hint("write a key as it stands in the store, such as log/0000000000000001")
    })?;
    let bytes = store_of(repository, name).get(&key, GetRange::Whole).await.map_err(|error| {
        if error.is_not_found() {
            return Error::caused(Kind::NotFound, error)
                .hint("`aquifer debug log` names sessions and their objects");
        }
        repository::Error::from(error).into()
    })?;
    context.output.report(&Object(decode::object(repository.ring(), name, &bytes)?))
}

/// The store that holds objects named like `name`.
fn store_of<'a>(repository: &'a Repository, name: &str) -> &'a Arc<dyn ObjectStore> {
    let stores = repository.stores();
    let apart = ["log/", "ckpt/", "keys/"].iter().any(|prefix| name.starts_with(prefix));
    stores.log.as_ref().filter(|_| apart).unwrap_or(&stores.packs)
}

/// One entry of the log.
#[derive(Serialize)]
#[serde(transparent)]
struct LogEntry(Entry);

async fn log(context: &Context, repository: &Repository) -> Result<()> {
    let (first, last) = (repository.state().floor().max(1), repository.state().seq());
    for seq in first..=last {
        let name = format::key::log(seq);
        let key = Key::parse(&name).map_err(|error| Error::caused(Kind::Internal, error))?;
        let bytes = open::opened(store_of(repository, &name).get(&key, GetRange::Whole).await)?;
        let entry = decode::opened(format::open_entry(repository.ring(), seq, &bytes))?;
        context.output.done(&LogEntry(entry))?;
    }
    Ok(())
}

/// The tree of a disk: how it is filled, and each leaf that is not all zero.
#[derive(Serialize)]
struct Tree {
    disk: String,
    size_bytes: u64,
    root: Option<String>,
    levels: u8,
    chunk_bytes: u32,
    leaves: Vec<Leaf>,
}

#[derive(Serialize)]
struct Leaf {
    offset: u64,
    chunks: Vec<Chunk>,
}

#[derive(Serialize)]
struct Chunk {
    offset: u64,
    id: String,
}

async fn tree(context: &Context, repository: &Arc<Repository>, backup: &str, name: &str) -> Result<()> {
    let record = repository.record(repository.resolve(backup)?).await?;
    let Some(disk) = record.disks.iter().find(|disk| disk.name == name) else {
        let known: Vec<&str> = record.disks.iter().map(|disk| disk.name.as_str()).collect();
        return Err(Error::new(Kind::NotFound, format!("backup {} has no disk `{name}`", record.backup))
            .hint(format!("its disks: {}", known.join(", "))));
    };
    let chunk_bytes = repository.config().chunk_bytes;
    let spec = TreeSpec { root: disk.root, size_bytes: disk.size_bytes };
    let mut reader = TreeReader::new(repository, spec);
    let mut leaves = Vec::new();
    let mut next = 0;
    while let Some((index, node)) = reader.next_leaf(next).await? {
        let offset_of = |chunk: u64| chunk * u64::from(chunk_bytes);
        let first = index * u64::try_from(format::FAN_OUT).unwrap_or(u64::MAX);
        let chunks = node
            .iter()
            .map(|(slot, id)| Chunk { offset: offset_of(first + u64::from(slot)), id: id.to_string() })
            .collect();
        leaves.push(Leaf { offset: offset_of(first), chunks });
        next = index + 1;
    }
    context.output.report(&Tree {
        disk: disk.name.clone(),
        size_bytes: disk.size_bytes,
        root: disk.root.map(|root| root.to_string()),
        levels: format::levels(disk.size_bytes.div_ceil(u64::from(chunk_bytes))),
        chunk_bytes,
        leaves,
    })
}

impl Report for Object {
    fn human(&self) -> String {
        format!("{:#}\n", self.0)
    }
}

impl Report for LogEntry {
    fn human(&self) -> String {
        let Entry { seq, writer, wall_ms, bodies, .. } = &self.0;
        let at = timestamp(*wall_ms).map_or_else(|_| format!("{wall_ms} ms"), human::time);
        let writer = writer.to_string();
        let mut text = format!("{seq:>6}  {at}  writer {}\n", &writer[..16]);
        for body in bodies {
            let body = serde_json::to_string(body).unwrap_or_else(|error| format!("unprintable: {error}"));
            text += &format!("        {body}\n");
        }
        text
    }
}

impl Report for Tree {
    fn human(&self) -> String {
        let root = self.root.clone().unwrap_or_else(|| "none, all zero".to_owned());
        let mut text = human::facts(&[
            ("disk", self.disk.clone()),
            ("size", human::size(self.size_bytes)),
            ("root", root),
            ("levels", self.levels.to_string()),
            ("chunk size", human::size(u64::from(self.chunk_bytes))),
        ]);
        for chunk in self.leaves.iter().flat_map(|leaf| &leaf.chunks) {
            text += &format!("{:>16}  {}\n", chunk.offset, chunk.id);
        }
        text
    }
}
