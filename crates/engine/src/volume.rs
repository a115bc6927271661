//! Where a restored disk lands: a raw or qcow2 file, a block device, or an NBD export, behind one asynchronous face.
//!
//! Not here: what is written ([`crate::patch`] decides that, chunk by chunk) and in which order.
//!
//! Invariant: a volume that holds anything is opened only for a caller that allows rewriting it, and a
//! volume whose restore failed never looks complete.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use aquifer_nbd::{ExtentStream, STATE_ZERO};
use aquifer_repository::is_zero;

use crate::changes::ALLOCATION;
use crate::error::{Error, Kind, Result};
use crate::patch::{BLOCK_BYTES, Change, Patch};
use crate::request::VolumeSpec;
use crate::settings::JobSettings;

mod file;
mod image;
mod joined;
mod nbd;

use file::FileVolume;
use image::ImageVolume;
pub(crate) use joined::Joined;
use nbd::NbdVolume;

/// Bytes that are looked at together when a volume is searched for data.
const PIECE_BYTES: u64 = 1 << 20;

/// An open volume.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    place: Place,
    /// The image that the export is of, if it is one that is served for us.
    image: Option<Arc<ImageVolume>>,
    /// True if it reads as zero wherever nothing was written yet.
    pub(crate) blank: bool,
}

#[derive(Debug, Clone)]
enum Place {
    File(Arc<FileVolume>),
    Nbd(NbdVolume),
    /// Takes everything and keeps nothing: a restore that only proves that it would succeed.
    Nowhere,
}

/// What a chunk did to a volume, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) written_bytes: u64,
    pub(crate) skipped_bytes: u64,
    pub(crate) zero_bytes: u64,
}

impl Applied {
    /// Bytes of disk that it accounts for.
    pub(crate) fn bytes(&self) -> u64 {
        self.written_bytes + self.skipped_bytes + self.zero_bytes
    }

    /// Adds another chunk's.
    pub(crate) fn add(&mut self, other: &Applied) {
        self.written_bytes += other.written_bytes;
        self.skipped_bytes += other.skipped_bytes;
        self.zero_bytes += other.zero_bytes;
    }

    fn of(patches: &[Patch]) -> Self {
        let mut applied = Applied::default();
        for patch in patches {
            let bytes = u64::try_from(patch.range.len()).unwrap_or(u64::MAX);
            match patch.change {
                Change::Write => applied.written_bytes += bytes,
                Change::Same => applied.skipped_bytes += bytes,
                Change::Hole | Change::Clear => applied.zero_bytes += bytes,
            }
        }
        applied
    }
}

impl Volume {
    /// Checks what can be checked without writing.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub(crate) async fn probe(
        spec: &VolumeSpec,
        size_bytes: u64,
        rewrite: bool,
        job: &JobSettings,
    ) -> Result<()> {
        if let VolumeSpec::Raw(path) | VolumeSpec::Qcow2(path) = spec
            && !path.exists()
        {
            return file::must_have_folder(path);
        }
        Volume::attach(spec, size_bytes, rewrite, job).await?.close().await
    }

    /// Opens a volume for a disk of `size_bytes`.
    ///
    /// # Errors
    /// `Conflict` if it holds data and `rewrite` is not set, or if it is in use; `Invalid` if it is too small.
    pub(crate) async fn open(
        spec: &VolumeSpec,
        size_bytes: u64,
        rewrite: bool,
        job: &JobSettings,
    ) -> Result<Self> {
        let volume = Volume::attach(spec, size_bytes, rewrite, job).await?;
        if let Place::File(file) = &volume.place {
            file.prepare().inspect_err(|_| volume.release())?;
        }
        Ok(volume)
    }

    async fn attach(spec: &VolumeSpec, size_bytes: u64, rewrite: bool, job: &JobSettings) -> Result<Self> {
        let mut image = None;
        let (place, blank) = match spec {
            VolumeSpec::Raw(path) | VolumeSpec::Block(path) => {
                if let VolumeSpec::Block(path) = spec {
                    file::must_be_device(path)?;
                }
                let file = FileVolume::open(path, size_bytes, rewrite)?;
                let blank = file.is_blank();
                (Place::File(Arc::new(file)), blank)
            }
            VolumeSpec::Qcow2(path) => {
                let (served, uri) = ImageVolume::open(path, size_bytes, rewrite).await?;
                let opened = NbdVolume::open(&uri, spec.to_string(), size_bytes, job).await;
                let blank = served.is_blank();
                if opened.is_err() {
                    served.give_up().await;
                }
                image = Some(Arc::new(served));
                (Place::Nbd(opened?), blank)
            }
            VolumeSpec::Nbd(uri) => {
                (Place::Nbd(NbdVolume::open(uri, uri.to_string(), size_bytes, job).await?), false)
            }
        };
        let mut volume = Volume { place, image, blank };
        if !volume.blank && !rewrite {
            if let Some(offset) = volume.first_data(0..size_bytes).await? {
                return Err(holds_data(spec, None).with("offset", offset));
            }
            volume.blank = true;
        }
        Ok(volume)
    }

    /// A volume that keeps nothing and reads as zero.
    pub(crate) fn nowhere() -> Self {
        Volume { place: Place::Nowhere, image: None, blank: true }
    }

    /// Reads `buffer.len()` bytes at `offset`.
    pub(crate) async fn read(&self, offset: u64, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        match &self.place {
            Place::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.read(offset, &mut buffer).map(|()| buffer)).await
            }
            Place::Nbd(nbd) => nbd.read(offset, buffer).await,
            Place::Nowhere => {
                buffer.fill(0);
                Ok(buffer)
            }
        }
    }

    /// Puts a chunk at `offset`, touching as little as possible.
    pub(crate) async fn put(&self, offset: u64, bytes: Vec<u8>) -> Result<Applied> {
        match &self.place {
            Place::File(file) => {
                let (file, blank) = (Arc::clone(file), self.blank);
                blocking(move || file.put(blank, offset, &bytes, &mut Vec::new())).await
            }
            Place::Nbd(nbd) => nbd.put(self.blank, offset, bytes).await.map(|(applied, _)| applied),
            Place::Nowhere => Ok(Applied {
                written_bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
                ..Applied::default()
            }),
        }
    }

    /// Makes `range` read as zero where it does not.
    pub(crate) async fn clear(&self, range: Range<u64>) -> Result<()> {
        if self.blank {
            return Ok(());
        }
        let mut survey = self.survey(range)?;
        let mut buffer = Vec::new();
        while let Some(piece) = survey.next().await? {
            buffer = self.read_piece(&piece, buffer).await?;
            if is_zero(&buffer) {
                continue;
            }
            match &self.place {
                Place::File(file) => {
                    let file = Arc::clone(file);
                    blocking(move || file.clear(piece)).await?;
                }
                Place::Nbd(nbd) => nbd.clear(piece).await?,
                Place::Nowhere => {}
            }
        }
        Ok(())
    }

    /// The offset of a block in `range` that does not read as zero.
    pub(crate) async fn first_data(&self, range: Range<u64>) -> Result<Option<u64>> {
        let mut survey = self.survey(range)?;
        let mut buffer = Vec::new();
        while let Some(piece) = survey.next().await? {
            buffer = self.read_piece(&piece, buffer).await?;
            if let Some(block) = buffer.chunks(BLOCK_BYTES).position(|block| !is_zero(block)) {
                return Ok(Some(piece.start + u64::try_from(block * BLOCK_BYTES).unwrap_or(0)));
            }
        }
        Ok(None)
    }

    async fn read_piece(&self, piece: &Range<u64>, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        // A piece has at most PIECE_BYTES.
        buffer.resize(usize::try_from(piece.end - piece.start).unwrap_or(0), 0);
        self.read(piece.start, buffer).await
    }

    /// The pieces of `range` that may hold data, in order.
    fn survey(&self, range: Range<u64>) -> Result<Survey<'_>> {
        let extents = match &self.place {
            Place::Nbd(nbd) if nbd.has_extents() && !range.is_empty() => {
                let extents = nbd.client.extents(ALLOCATION, range.clone());
                Some(extents.map_err(|error| nbd.failed(error))?)
            }
            Place::Nbd(_) | Place::File(_) | Place::Nowhere => None,
        };
        Ok(Survey { volume: self, extents, data: range.start..range.start, end: range.end })
    }

    /// The file or device, for threads that may block.
    pub(crate) fn file(&self) -> Option<&FileVolume> {
        match &self.place {
            Place::File(file) => Some(file),
            Place::Nbd(_) | Place::Nowhere => None,
        }
    }

    /// The export, if it is one.
    pub(crate) fn nbd(&self) -> Option<&NbdVolume> {
        match &self.place {
            Place::Nbd(nbd) => Some(nbd),
            Place::File(_) | Place::Nowhere => None,
        }
    }

    /// Makes everything durable and checks the size.
    pub(crate) async fn finish(&self) -> Result<()> {
        match &self.place {
            Place::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.finish()).await
            }
            Place::Nbd(nbd) => nbd.finish().await,
            Place::Nowhere => Ok(()),
        }
    }

    /// Makes reading it again ask the storage.
    pub(crate) fn drop_cache(&self) {
        if let Place::File(file) = &self.place {
            file.drop_cache();
        }
    }

    /// Ends what serves the volume, once nobody else has it.
    pub(crate) async fn close(self) -> Result<()> {
        // The last client is what keeps the server.
        drop(self.place);
        match self.image {
            Some(image) => image.close().await,
            None => Ok(()),
        }
    }

    /// After a failure: removes what would look like a restored disk. Says what is left.
    pub(crate) fn undo(&self) -> Option<String> {
        if let Some(image) = &self.image {
            return image.undo();
        }
        match &self.place {
            Place::File(file) => file.undo(),
            Place::Nbd(nbd) => Some(nbd.undo()),
            Place::Nowhere => None,
        }
    }

    /// Gives up a volume to which nothing was written.
    pub(crate) fn release(&self) {
        let left = match (&self.place, &self.image) {
            (_, Some(image)) if image.is_blank() => image.undo(),
            (Place::File(file), _) if file.is_blank() => file.undo(),
            _ => None,
        };
        if let Some(left) = left {
            tracing::warn!("{left}");
        }
    }
}

/// Walks the pieces of a range that may hold data.
struct Survey<'a> {
    volume: &'a Volume,
    extents: Option<ExtentStream>,
    /// What is left of the extent at hand.
    data: Range<u64>,
    end: u64,
}

impl Survey<'_> {
    /// The next piece, of at most [`PIECE_BYTES`].
    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        while self.data.is_empty() {
            let Some(data) = self.next_extent().await? else { return Ok(None) };
            self.data = data;
        }
        let start = self.data.start;
        self.data.start = self.data.end.min(start + PIECE_BYTES - start % PIECE_BYTES);
        Ok(Some(start..self.data.start))
    }

    /// The next extent that may hold data; empty for one that does not.
    async fn next_extent(&mut self) -> Result<Option<Range<u64>>> {
        match (&self.volume.place, &mut self.extents) {
            (Place::File(file), _) => file.next_data(self.data.end, self.end),
            (Place::Nbd(nbd), Some(extents)) => {
                let extent = extents.next().await.map_err(|error| nbd.failed(error))?;
                Ok(extent.map(|extent| {
                    let end = extent.offset + extent.bytes;
                    if extent.flags & STATE_ZERO == 0 { extent.offset..end } else { end..end }
                }))
            }
            (Place::Nowhere, _) => Ok(None),
            (Place::Nbd(_), None) => Ok((self.data.end < self.end).then_some(self.data.end..self.end)),
        }
    }
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::caused(Kind::Internal, error))?
}

/// The error of a volume that holds data.
fn holds_data(volume: impl Display, bytes: Option<u64>) -> Error {
    let text = match bytes {
        Some(bytes) => format!("{volume} exists and has {bytes} bytes"),
        None => format!("{volume} holds data"),
    };
    Error::new(Kind::Conflict, text)
        .hint("name a new or empty volume, or allow --rewrite-existing")
        .with("volume", volume.to_string())
}

/// The error of a volume that the disk does not fit.
fn too_small(volume: impl Display, bytes: u64, size_bytes: u64) -> Error {
    Error::new(Kind::Invalid, format!("{volume} has {bytes} bytes, the disk needs {size_bytes}"))
        .hint("give a larger volume")
        .with("volume", volume.to_string())
        .with("volume_bytes", bytes)
        .with("disk_bytes", size_bytes)
}
