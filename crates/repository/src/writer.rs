//! Chunks in: the blocking half of the data plane, one [`ChunkWriter`] a CPU thread.
//!
//! A batch goes: zero test, keyed id, claim and one index look-up for all ([`crate::dedup`]), and what is
//! left is compressed and sealed straight into this thread's own open pack, decoded again while it is hot,
//! and handed to the uploader when the pack is full. A writer decides nothing about disks or trees.
//!
//! Invariants: no lock is held over hashing, compressing or sealing; a chunk is copied only by the
//! compressor; a writer that is dropped with unsent chunks fails its session.

use std::sync::Arc;

use aquifer_format::{BlobKind, ChunkId, Compressor, Decompressor, PackBuilder, PackKind, TableRow};

use crate::dedup::Found;
use crate::pace::Pace;
use crate::plane::Plane;
use crate::session::BackupSession;
use crate::settings::Compression;
use crate::zero::is_zero;
use crate::{Error, Result, Settings};

/// One chunk of a disk as read.
#[derive(Debug, Clone, Copy)]
pub struct PlainChunk<'a> {
    /// Its bytes: the repository's chunk size, or less at the end of a disk; never empty.
    pub bytes: &'a [u8],
    /// What the parent backup has at this place, if anything.
    pub parent: Option<ChunkId>,
}

/// What became of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// All zero: not stored, the leaf's slot stays clear.
    Zero,
    /// The same as the parent's, which has a live copy.
    Kept(ChunkId),
    /// Stored before: by another backup, or earlier in this session.
    Known(ChunkId),
    /// Stored now.
    New {
        /// Its id.
        id: ChunkId,
        /// Bytes of its ciphertext and tag in the pack.
        stored_bytes: u32,
    },
}

impl Stored {
    /// What belongs into the leaf's slot.
    pub fn id(&self) -> Option<ChunkId> {
        match self {
            Stored::Zero => None,
            Stored::Kept(id) | Stored::Known(id) | Stored::New { id, .. } => Some(*id),
        }
    }
}

impl BackupSession {
    /// A writer for one CPU thread. Each must be finished before the session commits.
    pub fn chunk_writer(self: &Arc<Self>) -> ChunkWriter {
        ChunkWriter::new(Arc::clone(&self.plane))
    }

    /// For each of `ids`, whether a copy that a restore may use exists: published and not condemned or
    /// quarantined, or stored by this session. What has none is planned as a read, so that damage heals.
    ///
    /// # Errors
    /// Those of the chunk index.
    pub fn live_many(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        self.plane.live_many(ids)
    }
}

impl Plane {
    /// See [`BackupSession::live_many`].
    pub(crate) fn live_many(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        let stored = self.parts().live_packs(ids)?;
        Ok(ids.iter().zip(stored).map(|(id, pack)| pack.is_some() || self.dedup().holds(id)).collect())
    }
}

/// The zstd contexts of one sealing thread.
pub(crate) struct Tools {
    compressor: Compressor,
    /// For the self-check, if it is on.
    decompressor: Option<Decompressor>,
}

impl Tools {
    /// Contexts as the settings want them.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let decompressor = settings.self_check.then(Decompressor::new).transpose()?;
        let level = match settings.compression {
            Compression::Level(level) => level,
            Compression::Auto => Pace::LIGHTEST,
        };
        Ok(Tools { compressor: Compressor::new(level)?, decompressor })
    }

    /// Goes on at another level.
    fn set_level(&mut self, level: i32) -> Result<()> {
        Ok(self.compressor.set_level(level)?)
    }

    /// Seals one blob at the end of `pack` and, if the self-check is on, decodes it again while it is hot.
    pub(crate) fn seal(
        &mut self,
        pack: &mut PackBuilder,
        kind: BlobKind,
        id: &ChunkId,
        plain: &[u8],
    ) -> Result<TableRow> {
        let row = pack.push(&mut self.compressor, kind, id, plain)?;
        if let Some(decompressor) = &mut self.decompressor {
            pack.check_last(decompressor, plain).map_err(|source| Error::SelfCheck { chunk: *id, source })?;
        }
        Ok(row)
    }
}

/// Stores chunks for one CPU thread. Blocks; not for async code.
pub struct ChunkWriter {
    plane: Arc<Plane>,
    chunk_bytes: usize,
    tools: Option<Tools>,
    open: Option<PackBuilder>,
    /// With `auto` compression.
    pace: Option<Pace>,
    finished: bool,
    ids: Vec<ChunkId>,
    asked: Vec<ChunkId>,
    found: Vec<Found>,
}

impl ChunkWriter {
    /// A writer into `plane`.
    pub(crate) fn new(plane: Arc<Plane>) -> Self {
        plane.writer_opened();
        let auto = plane.parts().settings.compression == Compression::Auto;
        ChunkWriter {
            pace: auto.then(|| Pace::new(plane.parts().world.monotonic_ms())),
            chunk_bytes: plane.parts().chunk_bytes as usize,
            tools: None,
            open: None,
            finished: false,
            ids: Vec::new(),
            asked: Vec::new(),
            found: Vec::new(),
            plane,
        }
    }

    /// Stores what of `batch` is new and says, chunk by chunk in order, what became of each; `out` is cleared
    /// first. Blocks while the uploads are behind. A batch of 16 to 64 chunks pays for its index look-up.
    ///
    /// # Errors
    /// [`Error::ChunkSize`] for an empty or too long chunk; [`Error::SelfCheck`] when a chunk just sealed does
    /// not decode to what was read; [`Error::SessionFailed`] after any failure of the session. Every error
    /// fails the session.
    pub fn store(&mut self, batch: &[PlainChunk<'_>], out: &mut Vec<Stored>) -> Result<()> {
        self.plane.check()?;
        self.at_work(Pace::begin);
        let stored = self.store_batch(batch, out);
        self.at_work(Pace::pause);
        stored.map_err(|error| self.plane.fail(error))
    }

    /// Tells the pace, if there is one, what begins or ends now.
    fn at_work(&mut self, event: fn(&mut Pace, u64)) {
        if let Some(pace) = &mut self.pace {
            event(pace, self.plane.parts().world.monotonic_ms());
        }
    }

    /// Stores a chunk although the repository has it, once a session. `id` must be that of `plain`.
    ///
    /// # Errors
    /// As [`ChunkWriter::store`].
    pub(crate) fn store_anew(&mut self, id: &ChunkId, plain: &[u8]) -> Result<()> {
        self.plane.check()?;
        if !self.plane.dedup().claim(id) {
            return Ok(());
        }
        self.push(id, plain).map(drop).map_err(|error| self.plane.fail(error))
    }

    fn store_batch(&mut self, batch: &[PlainChunk<'_>], out: &mut Vec<Stored>) -> Result<()> {
        out.clear();
        self.identify(batch, out)?;
        self.plane.dedup().absent(self.plane.parts(), &self.ids, &mut self.asked, &mut self.found)?;
        let mut next = 0;
        for (chunk, stored) in batch.iter().zip(out.iter_mut()) {
            let Some(id) = stored.id() else { continue };
            let found = self.found.get(next).copied().unwrap_or(Found::Absent);
            next += 1;
            *stored = match found {
                Found::Stored if chunk.parent == Some(id) => Stored::Kept(id),
                Found::Stored | Found::InFlight => Stored::Known(id),
                Found::Absent => {
                    let row = self.push(&id, chunk.bytes)?;
                    Stored::New { id, stored_bytes: row.stored_bytes }
                }
            };
        }
        Ok(())
    }

    /// Fills `self.ids` with the ids of the chunks that are not zero, and `out` with a first guess.
    fn identify(&mut self, batch: &[PlainChunk<'_>], out: &mut Vec<Stored>) -> Result<()> {
        self.ids.clear();
        for chunk in batch {
            if chunk.bytes.is_empty() || chunk.bytes.len() > self.chunk_bytes {
                return Err(Error::ChunkSize { bytes: chunk.bytes.len(), limit: self.chunk_bytes });
            }
            if is_zero(chunk.bytes) {
                out.push(Stored::Zero);
                continue;
            }
            let id = self.plane.parts().ring.chunk_id(BlobKind::Data, chunk.bytes);
            self.ids.push(id);
            out.push(Stored::Known(id));
        }
        Ok(())
    }

    /// Seals one chunk into the open pack, and ends the pack when it has reached its target.
    fn push(&mut self, id: &ChunkId, plain: &[u8]) -> Result<TableRow> {
        if self.open.as_ref().is_some_and(|pack| !pack.has_room_for(plain.len())) {
            self.end_pack()?;
        }
        let mut pack = match self.open.take() {
            Some(pack) => pack,
            None => self.begin_pack()?,
        };
        let tools = match &mut self.tools {
            Some(tools) => tools,
            none => none.insert(Tools::new(&self.plane.parts().settings)?),
        };
        let row = tools.seal(&mut pack, BlobKind::Data, id, plain)?;
        let full = pack.bytes() >= self.plane.parts().settings.pack_bytes;
        self.open = Some(pack);
        if full {
            self.end_pack()?;
        }
        Ok(row)
    }

    fn begin_pack(&mut self) -> Result<PackBuilder> {
        self.at_work(Pace::pause);
        let buffer = self.plane.buffers().take_blocking().map_err(|_| self.plane.refusal())?;
        self.at_work(Pace::begin);
        self.plane.new_pack(PackKind::Data, buffer)
    }

    fn end_pack(&mut self) -> Result<()> {
        let Some(pack) = self.open.take().filter(|pack| pack.count() > 0) else { return Ok(()) };
        let pack = pack.finish()?;
        self.at_work(Pace::pause);
        self.plane.submit_blocking(pack)?;
        if let (Some(pace), Some(tools)) = (&mut self.pace, &mut self.tools) {
            tools.set_level(pace.next_level(self.plane.parts().world.monotonic_ms()))?;
        }
        self.at_work(Pace::begin);
        Ok(())
    }

    /// Sends the open pack and ends the writer.
    ///
    /// # Errors
    /// Those of [`ChunkWriter::store`].
    pub fn finish(mut self) -> Result<()> {
        self.plane.check()?;
        self.finished = true;
        self.end_pack().map_err(|error| self.plane.fail(error))
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        let unsent = self.open.as_ref().map_or(0, PackBuilder::count);
        if !self.finished && unsent > 0 {
            self.plane.fail(Error::WriterDropped { chunks: unsent });
        }
        self.plane.writer_closed();
    }
}
