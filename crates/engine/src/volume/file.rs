//! A volume that is a raw image file or a block device, written at offsets from any thread.
//!
//! Blocking. It is locked for as long as it is open: against other restores by `flock`, against QEMU's
//! image locks by a record lock over the whole file (QEMU locks bytes from 100 on), against mounts and the
//! kernel's other users of a block device by `O_EXCL`.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aquifer_repository::store::direct;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::Applied;
use super::joined::Joined;
use crate::error::{Error, Kind, Result};
use crate::patch::{self, Change, Patch};

/// What a failed restore does to the volume, so that it never looks complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    /// It did not exist before.
    Remove,
    /// It was empty before.
    Empty,
    /// It had content before, which is partly overwritten now.
    Leave,
}

/// An open file or device.
#[derive(Debug)]
pub(crate) struct FileVolume {
    file: File,
    /// The same file for writes past the page cache, where it is new and can be written so. It is closed with the other:
    /// closing either gives record locks up.
    direct: Option<File>,
    path: PathBuf,
    size_bytes: u64,
    device: bool,
    undo: Undo,
}

/// Whether there is something at the path, and what.
enum Found {
    Nothing,
    File { bytes: u64 },
    Device,
}

impl FileVolume {
    /// Opens `path` for a disk of `size_bytes`; a file that does not exist is created, an empty one is grown.
    ///
    /// # Errors
    /// `Conflict` if it holds data and `rewrite` is not set, or is in use; `Invalid` if its size does not fit
    /// or it is neither file nor block device.
    pub(crate) fn open(path: &Path, size_bytes: u64, rewrite: bool) -> Result<Self> {
        let found = found(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let undo = match found {
            Found::Nothing => {
                options.create_new(true);
                Undo::Remove
            }
            Found::File { bytes: 0 } => Undo::Empty,
            Found::File { bytes } => {
                check_file(path, bytes, size_bytes, rewrite)?;
                Undo::Leave
            }
            Found::Device => {
                options.custom_flags(OFlags::EXCL.bits().cast_signed());
                Undo::Leave
            }
        };
        let device = matches!(found, Found::Device);
        let file = options.open(path).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => in_use(path),
            _ => failed(error, path, "open"),
        })?;
        let direct = if undo == Undo::Leave { None } else { open_directly(&file) };
        let mut volume = FileVolume { file, direct, path: path.to_owned(), size_bytes, device, undo };
        volume.lock()?;
        if device {
            volume.check_device()?;
        }
        Ok(volume)
    }

    /// Gives a new or empty file its size; all of it is a hole then.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn prepare(&self) -> Result<()> {
        if self.undo == Undo::Leave {
            return Ok(());
        }
        self.file.set_len(self.size_bytes).map_err(|error| failed(error, &self.path, "size"))
    }

    /// True if it reads as zero for certain, because it was new or empty.
    pub(crate) fn is_blank(&self) -> bool {
        self.undo != Undo::Leave
    }

    fn lock(&self) -> Result<()> {
        let operation = FlockOperation::NonBlockingLockExclusive;
        for locked in
            [rustix::fs::flock(&self.file, operation), rustix::fs::fcntl_lock(&self.file, operation)]
        {
            match locked {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => return Err(in_use(&self.path)),
                // A file system without locks cannot hold anybody else's either.
                Err(Errno::NOTSUP | Errno::NOLCK | Errno::INVAL | Errno::NOSYS) => {}
                Err(error) => return Err(failed(error.into(), &self.path, "lock")),
            }
        }
        Ok(())
    }

    fn check_device(&mut self) -> Result<()> {
        let bytes = self.file.seek(SeekFrom::End(0)).map_err(|error| failed(error, &self.path, "measure"))?;
        if bytes < self.size_bytes {
            return Err(too_small(&self.path, bytes, self.size_bytes));
        }
        Ok(())
    }

    /// Reads all of `buffer` at `offset`.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| self.failed_at(error, "read", offset, buffer.len()))
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed_at(error, "write", offset, bytes.len()))
    }

    /// Writes what [`Joined`] has joined.
    pub(super) fn write_joined(&self, offset: u64, piece: &[u8]) -> Result<()> {
        let taken = match &self.direct {
            Some(direct) => direct::write_at(direct, offset, piece)
                .map_err(|error| self.failed_at(error, "write", offset, piece.len()))?,
            None => 0,
        };
        match &piece[taken..] {
            [] => Ok(()),
            rest => self.write(offset + u64::try_from(taken).unwrap_or(u64::MAX), rest),
        }
    }

    /// Makes `range` read as zero: a hole where that can be, zeros otherwise.
    pub(crate) fn clear(&self, range: Range<u64>) -> Result<()> {
        let bytes = range.end - range.start;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, mode, range.start, bytes) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                // A device punches whole sectors only; a file system may not punch at all.
                Err(Errno::NOTSUP | Errno::INVAL | Errno::NOSYS) => break,
                Err(error) => return Err(self.failed_at(error.into(), "clear", range.start, 0)),
            }
        }
        let zeros = [0_u8; 64 << 10];
        let mut offset = range.start;
        while offset < range.end {
            let piece = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(zeros.len());
            self.write(offset, &zeros[..piece])?;
            offset += u64::try_from(piece).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Makes the volume hold the chunk `bytes` at `offset`, writing no more than needed. `blank`: it reads as
    /// zero there. `old` is room for what it holds.
    pub(crate) fn put(&self, blank: bool, offset: u64, bytes: &[u8], old: &mut Vec<u8>) -> Result<Applied> {
        let patches = if blank {
            patch::onto_zeros(bytes)
        } else {
            old.resize(bytes.len(), 0);
            self.read(offset, old)?;
            patch::onto_old(bytes, old)
        };
        for Patch { change, range } in &patches {
            let at = patch::place(offset, range);
            match change {
                Change::Same | Change::Hole => {}
                Change::Write => self.write(at.start, &bytes[range.clone()])?,
                Change::Clear => self.clear(at)?,
            }
        }
        Ok(Applied::of(&patches))
    }

    /// As [`FileVolume::put`] into a new file that can be written past the page cache; what `joined` holds after it is for
    /// the caller to write. `None`: it is no such file.
    pub(crate) fn join(&self, offset: u64, bytes: &[u8], joined: &mut Joined) -> Result<Option<Applied>> {
        if self.direct.is_none() {
            return Ok(None);
        }
        let patches = patch::onto_zeros(bytes);
        for Patch { range, .. } in patches.iter().filter(|patch| patch.change == Change::Write) {
            joined.add(self, patch::place(offset, range).start, &bytes[range.clone()])?;
        }
        Ok(Some(Applied::of(&patches)))
    }

    /// The first range at or after `from` that may hold data, up to `end`; a device may hold it anywhere.
    pub(crate) fn next_data(&self, from: u64, end: u64) -> Result<Option<Range<u64>>> {
        if from >= end {
            return Ok(None);
        }
        if self.device {
            return Ok(Some(from..end));
        }
        let start = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some(from..end)),
            Err(error) => return Err(self.failed_at(error.into(), "find data", from, 0)),
        };
        if start >= end {
            return Ok(None);
        }
        let hole = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(start))
            .map_err(|error| self.failed_at(error.into(), "find a hole", start, 0))?;
        Ok(Some(start..hole.min(end)))
    }

    /// Makes everything durable and checks the size.
    ///
    /// # Errors
    /// Those of the file system; an fsync that failed is never tried again.
    pub(crate) fn finish(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| failed(error, &self.path, "sync"))?;
        let bytes = self.file.metadata().map_err(|error| failed(error, &self.path, "measure"))?.len();
        if !self.device && bytes != self.size_bytes {
            let text = format!(
                "{} has {bytes} bytes at the end, {} were restored",
                self.path.display(),
                self.size_bytes
            );
            return Err(
                Error::new(Kind::Conflict, text).hint("somebody else changed it meanwhile: restore again")
            );
        }
        if self.undo == Undo::Remove {
            let folder = folder_of(&self.path);
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|error| failed(error, folder, "sync"))?;
        }
        Ok(())
    }

    /// Lets the system begin to write `range` to the storage, so that little is left for [`FileVolume::finish`] to wait
    /// for: a restore is as fast as the slower of processor and disk, and not as both together.
    pub(crate) fn begin_writeback(&self, range: Range<u64>) {
        let length = NonZeroU64::new(range.end.saturating_sub(range.start));
        // Of pages that are not written yet, this advice only begins the writing. Where it is refused, the end waits.
        let _ = rustix::fs::fadvise(&self.file, range.start, length, rustix::fs::Advice::DontNeed);
    }

    /// Forgets what the system cached of it, so that reading it again asks the storage.
    pub(crate) fn drop_cache(&self) {
        // Advice: where it is refused, the check still reads every byte.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// After a failure: removes what would look like a restored disk. Says what is left.
    pub(crate) fn undo(&self) -> Option<String> {
        let undone = match self.undo {
            Undo::Remove => std::fs::remove_file(&self.path),
            Undo::Empty => self.file.set_len(0),
            Undo::Leave => return Some(format!("{} is partly overwritten", self.path.display())),
        };
        undone
            .err()
            .map(|error| format!("{} is incomplete and could not be removed: {error}", self.path.display()))
    }

    fn failed_at(&self, error: io::Error, what: &str, offset: u64, bytes: usize) -> Error {
        failed(error, &self.path, what).with("offset", offset).with("length", bytes)
    }
}

/// An open file once more, for direct writes; `None` where the file system has none.
fn open_directly(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses the path of a new file that could not be created.
pub(super) fn must_have_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(Kind::Invalid, format!("{} is not a folder", folder.display()))),
        Err(error) => Err(failed(error, folder, "look for")),
    }
}

/// Refuses everything but a block device.
pub(super) fn must_be_device(path: &Path) -> Result<()> {
    match found(path)? {
        Found::Device => Ok(()),
        Found::Nothing | Found::File { .. } => {
            Err(Error::new(Kind::Invalid, format!("{} is not a block device", path.display()))
                .hint(format!("write raw:{} for an image file", path.display())))
        }
    }
}

fn found(path: &Path) -> Result<Found> {
    let metadata: Metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(failed(error, path, "look at")),
    };
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(Found::File { bytes: metadata.len() })
    } else if kind.is_block_device() {
        Ok(Found::Device)
    } else {
        Err(Error::new(Kind::Invalid, format!("{} is neither a file nor a block device", path.display()))
            .hint("name an image file or a block device"))
    }
}

fn check_file(path: &Path, bytes: u64, size_bytes: u64, rewrite: bool) -> Result<()> {
    if !rewrite {
        return Err(super::holds_data(path.display(), Some(bytes)));
    }
    if bytes < size_bytes {
        return Err(too_small(path, bytes, size_bytes));
    }
    if bytes > size_bytes {
        let text = format!("{} has {bytes} bytes, the disk has {size_bytes}", path.display());
        return Err(Error::new(Kind::Invalid, text)
            .hint("a file must have the disk's size: name another, or truncate it first")
            .with("volume_bytes", bytes)
            .with("disk_bytes", size_bytes));
    }
    Ok(())
}

fn too_small(path: &Path, bytes: u64, size_bytes: u64) -> Error {
    super::too_small(path.display(), bytes, size_bytes)
}

fn in_use(path: &Path) -> Error {
    Error::new(Kind::Conflict, format!("{} is in use by another process", path.display()))
        .hint("stop the machine or unmount the device that uses it, or name another volume")
        .with("volume", path.display().to_string())
}

pub(super) fn failed(error: io::Error, path: &Path, what: &str) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Kind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        io::ErrorKind::AlreadyExists => Kind::Conflict,
        _ => Kind::Unavailable,
    };
    let full = error.kind() == io::ErrorKind::StorageFull;
    let error = Error::caused(kind, error).about(format_args!("cannot {what} {}", path.display()));
    let error = error.with("volume", path.display().to_string());
    if full { error.hint("free some space there, or name a volume elsewhere") } else { error }
}
