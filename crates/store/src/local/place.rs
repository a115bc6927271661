//! Putting one file in its place: write, sync, link, sync the folder. Nothing here knows of keys.
//!
//! Invariant: the final name only ever refers to a whole and synced file, and [`write`] answers only after the
//! folder's entry is synced too.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::direct;
use crate::Created;

/// Names of unfinished files begin so; a crash on a file system without unnamed files can leave one behind.
const UNFINISHED: &str = ".unfinished-";

const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const FOLDER_MODE: u32 = 0o750;

/// What to do when the name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    IfAbsent,
    Replace,
}

/// A failed write: of a sync, after which nothing more may be trusted, or of anything else.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Sync(io::Error),
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

type Outcome<T> = Result<T, Failure>;

/// A file without its final name: nameless, or under a temporary name that goes when this is dropped.
struct Unfinished {
    file: File,
    name: Option<PathBuf>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Only tidiness: a file that stays is outside the grammar and is reported by listings.
            let _ = std::fs::remove_file(name);
        }
    }
}

/// Stores `bytes` at `path`.
pub(super) fn write(path: &Path, bytes: &[u8], how: How) -> Outcome<Created> {
    let folder = path.parent().ok_or(Errno::INVAL)?;
    make_folder(folder)?;
    let mut unfinished = Unfinished::in_folder(folder)?;
    direct::write_all(&unfinished.file, bytes)?;
    unfinished.file.sync_all().map_err(Failure::Sync)?;
    let created = match unfinished.link(path) {
        Ok(()) => Created::Won,
        Err(Errno::EXIST) if unfinished.is_at(path) => Created::Won,
        Err(Errno::EXIST) if how == How::Replace => {
            unfinished.replace(folder, path)?;
            Created::Won
        }
        Err(Errno::EXIST) => Created::Exists,
        Err(errno) => return Err(errno.into()),
    };
    if created == Created::Won {
        sync_folder(folder)?;
    }
    Ok(created)
}

/// Removes a file and syncs the folder.
pub(super) fn remove(path: &Path) -> Outcome<()> {
    std::fs::remove_file(path)?;
    sync_folder(path.parent().ok_or(Errno::INVAL)?)
}

/// Makes a folder and its missing parents, each entry synced.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    make_folder(parent)?;
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        other => other?,
    }
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    File::open(parent)?.sync_all()
}

fn sync_folder(folder: &Path) -> Outcome<()> {
    File::open(folder)?.sync_all().map_err(Failure::Sync)
}

impl Unfinished {
    fn in_folder(folder: &Path) -> Outcome<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, FILE_MODE) {
            Ok(fd) => Ok(Self { file: fd.into(), name: None }),
            // What kernels and file systems without unnamed files answer (NFS, overlays, old kernels).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Self::named(folder),
            Err(errno) => Err(errno.into()),
        }
    }

    fn named(folder: &Path) -> Outcome<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let (fd, name) = with_fresh_name(folder, |name| rustix::fs::open(name, flags, FILE_MODE))?;
        Ok(Self { file: fd.into(), name: Some(name) })
    }

    /// Gives the file a name that must not exist.
    fn link(&self, path: &Path) -> Result<(), Errno> {
        match &self.name {
            Some(name) => rustix::fs::linkat(CWD, name, CWD, path, AtFlags::empty()),
            None => {
                let unnamed = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
                rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)
            }
        }
    }

    /// Whether `path` is this very file: a server whose answer to a link was lost says "exists" to the repeated call.
    fn is_at(&self, path: &Path) -> bool {
        let (Ok(ours), Ok(there)) = (self.file.metadata(), std::fs::symlink_metadata(path)) else {
            return false;
        };
        (ours.dev(), ours.ino()) == (there.dev(), there.ino())
    }

    /// Takes over a name that exists.
    fn replace(&mut self, folder: &Path, path: &Path) -> Outcome<()> {
        if self.name.is_none() {
            let ((), name) = with_fresh_name(folder, |name| self.link(name))?;
            self.name = Some(name);
        }
        if let Some(name) = &self.name {
            rustix::fs::rename(name, path)?;
        }
        self.name = None;
        Ok(())
    }
}

/// Calls `make` with names that this process never used, until one is free.
fn with_fresh_name<T>(
    folder: &Path,
    mut make: impl FnMut(&Path) -> Result<T, Errno>,
) -> Outcome<(T, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = folder.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        match make(&name) {
            Ok(made) => return Ok((made, name)),
            // Left by a crashed process with our number, or made by another host on a shared file system.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path of file systems without unnamed files, which tests cannot mount.
    fn write_named(path: &Path, bytes: &[u8], how: How) -> Outcome<Created> {
        let folder = path.parent().unwrap();
        let mut unfinished = Unfinished::named(folder)?;
        direct::write_all(&unfinished.file, bytes)?;
        match unfinished.link(path) {
            Ok(()) => Ok(Created::Won),
            Err(Errno::EXIST) if how == How::Replace => {
                unfinished.replace(folder, path)?;
                Ok(Created::Won)
            }
            Err(Errno::EXIST) => Ok(Created::Exists),
            Err(errno) => Err(errno.into()),
        }
    }

    #[test]
    fn named_files_are_linked_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        assert_eq!(write_named(&path, b"first", How::IfAbsent).unwrap(), Created::Won);
        assert_eq!(write_named(&path, b"second", How::IfAbsent).unwrap(), Created::Exists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(write_named(&path, b"third", How::Replace).unwrap(), Created::Won);
        assert_eq!(std::fs::read(&path).unwrap(), b"third");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_left_by_a_crash_is_stepped_over() {
        let folder = tempfile::tempdir().unwrap();
        let (file, name) = with_fresh_name(folder.path(), |name| {
            std::fs::write(name, b"").unwrap();
            match std::fs::read_dir(folder.path()).unwrap().count() {
                1 => Err(Errno::EXIST),
                _ => Ok(()),
            }
        })
        .unwrap();
        assert_eq!(file, ());
        assert!(name.exists());
    }

    #[test]
    fn a_file_knows_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (folder.path().join("ours"), folder.path().join("other"));
        let unfinished = Unfinished::in_folder(folder.path()).unwrap();
        unfinished.link(&ours).unwrap();
        std::fs::write(&other, b"").unwrap();
        assert!(unfinished.is_at(&ours) && !unfinished.is_at(&other));
        assert_eq!(unfinished.link(&ours), Err(Errno::EXIST));
    }
}
