//! A store in a directory, on any file system that can link and sync: ext4, xfs, btrfs, NFS.
//!
//! A key is the path below the root. An object is written under no name (or a temporary one beside its place), synced,
//! and then linked to its name, so that it appears whole; the link fails when the name is taken, which makes `create`
//! atomic. The folder is synced before the answer. Leftovers of a crash have names outside the grammar.
//!
//! It is not safe against someone else's edits inside the directory; the format's own checks notice those.
//!
//! Invariant: no name from a listing becomes a path unless it passed [`crate::Key::parse`].

mod direct;
mod place;
mod spare;
mod walk;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use crate::memory::{check_size, resolve};
use crate::object::BoxFuture;
use crate::{Created, Error, GetRange, Key, ObjectStore, Page, Result};
use spare::Spare;

/// An object store in a directory. Clones share it.
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
    spare: Arc<Spare>,
}

impl Local {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// [`Error::Directory`] when there is none or it cannot be looked into.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let root = path.into();
        match std::fs::read_dir(&root) {
            Ok(_) => Ok(Self { root, spare: Arc::default() }),
            Err(source) => Err(Error::Directory { path: root, source }),
        }
    }

    /// Opens a directory, and makes it and its parents where they are missing.
    ///
    /// # Errors
    /// [`Error::Directory`] when that fails.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let root = path.into();
        match place::make_folder(&root) {
            Ok(()) => Self::open(root),
            Err(source) => Err(Error::Directory { path: root, source }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn path_of(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn error(&self, operation: &'static str, key: &str, source: io::Error) -> Error {
        let (store, key) = (self.describe(), key.to_owned());
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::NOTDIR) => Error::NotFound { store, key },
            Some(Errno::NOSPC | Errno::DQUOT) => Error::NoSpace { store, key },
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                Error::Denied { store, operation, key, source }
            }
            _ => Error::Io { store, operation, key, source },
        }
    }

    /// Runs blocking work on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: String,
        work: impl FnOnce(&Self, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        let name = key.clone();
        match tokio::task::spawn_blocking(move || work(&this, &name)).await {
            Ok(result) => result,
            Err(stopped) => {
                let (store, reason) = (self.describe(), stopped.to_string());
                Err(Error::Unavailable { store, operation, key, reason })
            }
        }
    }

    fn write(&self, key: &Key, bytes: &[u8], how: place::How) -> Result<Created> {
        let path = self.path_of(key);
        place::write(&path, bytes, how).map_err(|failure| match failure {
            place::Failure::Io(source) => match self.error("write", key.as_str(), source) {
                // A folder that vanished under the write is a failure of the medium, not a missing object.
                Error::NotFound { store, key } => {
                    Error::Io { store, operation: "write", key, source: Errno::NOENT.into() }
                }
                other => other,
            },
            place::Failure::Sync(source) => {
                Error::Sync { store: self.describe(), key: key.to_string(), source }
            }
        })
    }

    fn read(&self, key: &Key, range: GetRange) -> Result<Bytes> {
        let failed = |source| self.error("read", key.as_str(), source);
        let mut file = File::open(self.path_of(key)).map_err(failed)?;
        let object_bytes = file.metadata().map_err(failed)?.len();
        let (offset, bytes) = resolve(self, key, range, object_bytes)?;
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        }
        // Reading into spare capacity: no byte is zeroed first or copied after.
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut read_into = |body: &mut Vec<u8>| {
            file.by_ref().take(bytes).read_to_end(body).map_err(failed)?;
            if body.len() == length {
                return Ok(());
            }
            let end = offset + bytes;
            let object_bytes = offset + u64::try_from(body.len()).unwrap_or(u64::MAX);
            let (store, key) = (self.describe(), key.to_string());
            Err(Error::Range { store, key, offset, end, object_bytes })
        };
        // Parts are decrypted in place, which a buffer that must be given back does not allow.
        if range == GetRange::Whole {
            let mut whole = self.spare.take(length);
            read_into(&mut whole.buffer)?;
            return Ok(whole.into());
        }
        let mut body = Vec::with_capacity(length);
        read_into(&mut body)?;
        Ok(Bytes::from(body))
    }
}

impl ObjectStore for Local {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        let object = key.clone();
        Box::pin(self.blocking("put", key.to_string(), move |this, _| {
            check_size(this, &object, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
            this.write(&object, &bytes, place::How::Replace).map(|_| ())
        }))
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
        let object = key.clone();
        Box::pin(self.blocking("create", key.to_string(), move |this, _| {
            check_size(this, &object, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
            this.write(&object, &bytes, place::How::IfAbsent)
        }))
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
        let object = key.clone();
        Box::pin(self.blocking("read", key.to_string(), move |this, _| this.read(&object, range)))
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
        let path = self.path_of(key);
        Box::pin(self.blocking("look at", key.to_string(), move |this, name| {
            let found = std::fs::metadata(path).map_err(|source| this.error("look at", name, source))?;
            Ok(found.len())
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
        let after = after.map(|key| key.as_str().to_owned());
        Box::pin(self.blocking("list", prefix.to_owned(), move |this, prefix| {
            walk::page(&this.root, prefix, after.as_deref()).map_err(|(name, source)| {
                match this.error("list", &name, source) {
                    Error::NotFound { store, key } => {
                        Error::Io { store, operation: "list", key, source: Errno::NOENT.into() }
                    }
                    other => other,
                }
            })
        }))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        let path = self.path_of(key);
        Box::pin(self.blocking("delete", key.to_string(), move |this, name| match place::remove(&path) {
            Ok(()) => Ok(()),
            Err(place::Failure::Io(source)) => match this.error("delete", name, source) {
                Error::NotFound { .. } => Ok(()),
                other => Err(other),
            },
            Err(place::Failure::Sync(source)) => {
                Err(Error::Sync { store: this.describe(), key: name.to_owned(), source })
            }
        }))
    }

    fn describe(&self) -> String {
        format!("the directory {}", self.root.display())
    }
}

#[cfg(test)]
mod tests;
