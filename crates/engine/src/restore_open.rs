//! The processor threads of a restore: fetched ranges are opened and put at their offsets, and what a volume holds is compared.
//!
//! Into a file they write themselves, one at a time; towards an export they hand chunks to its lanes. Not here: what is
//! fetched ([`crate::restore_disk`]).
//!
//! Invariant (P3): only bytes that hashed to the id in the tree, and have the length of their place on the disk, reach the
//! volume.

use std::ops::Range;
use std::sync::{Arc, PoisonError, TryLockError};

use aquifer_repository::{ChunkOpener, Location, Repository, blob_bytes};

use crate::buffers::Share;
use crate::compare::{Comparer, Comparison};
use crate::error::{Error, Kind, Result};
use crate::target::{Put, Suspect, Target};
use crate::volume::{Applied, Joined};
use crate::workers::Worker;

/// Open chunks of one thread that wait while another thread writes to the file.
const WAITING_CHUNKS: usize = 8;

/// One blob of a fetched range.
pub(crate) struct Item {
    pub(crate) location: Location,
    /// Where it begins in the range.
    pub(crate) at: u32,
    /// Its places on the disk.
    pub(crate) chunks: Vec<u64>,
}

impl From<Item> for Suspect {
    fn from(item: Item) -> Self {
        Suspect { id: item.location.row.id, chunks: item.chunks }
    }
}

/// What a processor thread of a restore does.
pub(crate) enum Job {
    Open(Fetched),
    Compare(Comparison),
}

impl From<Comparison> for Job {
    fn from(comparison: Comparison) -> Self {
        Job::Compare(comparison)
    }
}

/// A fetched range for the processor threads.
pub(crate) struct Fetched {
    target: Arc<Target>,
    blob: Vec<u8>,
    items: Vec<Item>,
    _share: Share,
}

impl Fetched {
    /// A range of a pack with what is wanted of it, and the part of the budget that it takes.
    pub(crate) fn new(target: Arc<Target>, blob: Vec<u8>, items: Vec<Item>, share: Share) -> Self {
        Fetched { target, blob, items, _share: share }
    }
}

/// A processor thread of a restore.
pub(crate) struct Opener {
    opener: ChunkOpener,
    comparer: Comparer,
    /// Open chunks that wait for their turn at the file.
    waiting: Vec<Opened>,
    /// Buffers to open into.
    spare: Vec<Vec<u8>>,
    old: Vec<u8>,
    /// Of a new file: what is not written yet.
    joined: Joined,
}

/// A chunk that is open, and the offsets on the volume that it belongs to.
struct Opened {
    offsets: Vec<u64>,
    plain: Vec<u8>,
}

impl Opener {
    /// # Errors
    /// When zstd has no memory for a context.
    pub(crate) fn new(repository: &Repository) -> Result<Self> {
        Ok(Opener {
            opener: repository.chunk_opener()?,
            comparer: Comparer::new(repository.ring()),
            waiting: Vec::new(),
            spare: Vec::new(),
            old: Vec::new(),
            joined: Joined::default(),
        })
    }

    fn put(&mut self, fetched: &mut Fetched) -> Result<()> {
        let target = &*fetched.target;
        let mut touched = Touched::default();
        for item in std::mem::take(&mut fetched.items) {
            let opened = match self.open(target, &mut fetched.blob, &item) {
                Ok(opened) => opened,
                Err(error) if error.kind() == Kind::Corrupt => {
                    target.suspect(item.into());
                    continue;
                }
                Err(error) => return Err(error),
            };
            for &offset in &opened.offsets {
                touched.add(offset, item.location.row.plain_bytes);
            }
            self.hand_on(&fetched.target, opened)?;
        }
        self.write_waiting(target, 0)?;
        if let (Some(file), Some(range)) = (target.volume.file(), touched.near()) {
            file.begin_writeback(range);
        }
        Ok(())
    }

    fn open(&mut self, target: &Target, blob: &mut [u8], item: &Item) -> Result<Opened> {
        let bytes = usize::try_from(item.location.row.plain_bytes).unwrap_or(usize::MAX);
        let start = usize::try_from(item.at).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(blob_bytes(&item.location)).unwrap_or(usize::MAX));
        let limit = usize::try_from(target.grid.chunk_bytes()).unwrap_or(usize::MAX);
        let Some(blob) = blob.get_mut(start..end).filter(|_| bytes <= limit) else {
            return Err(misplaced(&item.location, "lies outside what was fetched"));
        };
        let mut plain = self.spare.pop().unwrap_or_default();
        plain.resize(bytes, 0);
        self.opener.open(&item.location, blob, &mut plain)?;
        let places = item.chunks.iter().map(|&chunk| target.place_of(chunk));
        let fitting = places.map(|place| {
            let fits = place.end - place.start == u64::from(item.location.row.plain_bytes);
            fits.then_some(place.start)
        });
        let offsets = fitting.collect::<Option<Vec<u64>>>();
        let offsets = offsets
            .ok_or_else(|| misplaced(&item.location, "has not the length of its place on the disk"))?;
        Ok(Opened { offsets, plain })
    }

    fn hand_on(&mut self, target: &Arc<Target>, opened: Opened) -> Result<()> {
        if target.volume.file().is_some() {
            self.waiting.push(opened);
            return self.write_waiting(target, WAITING_CHUNKS);
        }
        for offset in opened.offsets {
            match &target.puts {
                Some(puts) => {
                    let put = Put { target: Arc::clone(target), offset, bytes: opened.plain.clone() };
                    let sent = puts.send_blocking(put);
                    sent.map_err(|_| Error::new(Kind::Internal, "the lanes to the volume ended early"))?;
                }
                None => {
                    let written_bytes = u64::try_from(opened.plain.len()).unwrap_or(u64::MAX);
                    target.note(Applied { written_bytes, ..Applied::default() });
                }
            }
        }
        self.spare.push(opened.plain);
        Ok(())
    }

    /// Writes what waits to the file. While another thread writes, up to `most` chunks go on waiting.
    fn write_waiting(&mut self, target: &Target, most: usize) -> Result<()> {
        let Some(file) = target.volume.file() else { return Ok(()) };
        let _turn = match target.writing.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::WouldBlock)
                if self.waiting.len() <= most && (most > 0 || self.joined.is_empty()) =>
            {
                return Ok(());
            }
            Err(_) => target.writing.lock().unwrap_or_else(PoisonError::into_inner),
        };
        for opened in self.waiting.drain(..) {
            for offset in opened.offsets {
                let applied = match file.join(offset, &opened.plain, &mut self.joined)? {
                    Some(applied) => applied,
                    None => file.put(target.volume.blank, offset, &opened.plain, &mut self.old)?,
                };
                target.note(applied);
            }
            self.spare.push(opened.plain);
        }
        // Nobody else's chunks go on where these ended.
        if most == 0 { self.joined.write(file) } else { Ok(()) }
    }
}

/// The part of a volume that one fetched range went to.
#[derive(Default)]
struct Touched {
    span: Option<Range<u64>>,
    bytes: u64,
}

impl Touched {
    fn add(&mut self, offset: u64, bytes: u32) {
        let end = offset + u64::from(bytes);
        self.bytes += u64::from(bytes);
        let span = self.span.get_or_insert(offset..end);
        *span = span.start.min(offset)..span.end.max(end);
    }

    /// The span, if it is not mostly other ranges' places.
    fn near(self) -> Option<Range<u64>> {
        self.span.filter(|span| span.end - span.start <= 4 * self.bytes)
    }
}

fn misplaced(location: &Location, what: &str) -> Error {
    let text = format!("chunk {} of pack {} {what}", location.row.id, location.pack);
    Error::new(Kind::Corrupt, text).hint("verify the repository; rebuild the index if only that is damaged")
}

impl Worker for Opener {
    type Job = Job;

    fn run(&mut self, jobs: &mut Vec<Job>) -> Result<()> {
        for job in jobs.drain(..) {
            match job {
                Job::Open(mut fetched) => {
                    self.put(&mut fetched).map_err(|error| fetched.target.about(error))?;
                }
                Job::Compare(comparison) => self.comparer.compare(comparison),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}
