//! What one host remembers of a repository between runs: its identity as a writer, the newest log entry it saw, a copy
//! of the state after it, the index, the journals of its sessions, and what it saw of other hosts' heartbeats.
//!
//! Losing the folder costs time and the memory for P7 (rollback), never data. Nothing in it is secret except the
//! writer's seed, which signs log entries; the state's copy is sealed like a checkpoint.
//!
//! Invariant: a file is replaced whole, so a crash leaves the old or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_format::id::{EntryHash, RepositoryId, SessionId};
use aquifer_format::keys::{KeyRing, Signer};
use aquifer_format::log::{State, decode_checkpoint, encode_checkpoint};
use serde::{Deserialize, Serialize};

use crate::world::{World, random};
use crate::{Error, Result};

/// Largest copy of the state that is read back: a checkpoint's limit.
const STATE_BYTES_MAX: u64 = 256 << 20;

/// The newest entry that this host saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) seq: u64,
    pub(crate) hash: EntryHash,
}

/// The folder of one repository below the state folder of the host.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Opens and makes `base/<repository id>`.
    pub(crate) fn open(base: &Path, repository: RepositoryId) -> Result<Self> {
        let root = base.join(repository.to_string());
        let this = Self { root };
        for folder in [this.sessions(), this.observations()] {
            fs::create_dir_all(&folder).map_err(|source| this.failed(&folder, source))?;
        }
        Ok(this)
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the index lies.
    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// A folder for one reader of the index.
    pub(crate) fn reader(&self, name: &str) -> PathBuf {
        self.root.join("readers").join(name)
    }

    /// Where the journals of sessions lie.
    pub(crate) fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// Where the notes lie about what was seen of other hosts' sessions.
    pub(crate) fn observations(&self) -> PathBuf {
        self.root.join("observations")
    }

    /// The file about one such session.
    pub(crate) fn observation(&self, session: &SessionId) -> PathBuf {
        self.observations().join(session.to_string())
    }

    /// The file that remembers when packs were last verified.
    pub(crate) fn ages(&self) -> PathBuf {
        self.root.join("verified")
    }

    /// The file that remembers the newest entry seen.
    pub(crate) fn seen_path(&self) -> PathBuf {
        self.root.join("seen.json")
    }

    /// The newest entry that this host saw; `None` on the first run.
    ///
    /// # Errors
    /// [`Error::StateDir`] when the file is there and cannot be used: then rollback could not be noticed.
    pub(crate) fn seen(&self) -> Result<Option<Seen>> {
        let path = self.seen_path();
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(&path, source)),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(seen) => Ok(Some(seen)),
                Err(error) => Err(self.failed(&path, error.into())),
            },
        }
    }

    /// Remembers the newest entry seen.
    pub(crate) fn set_seen(&self, seen: Seen) -> Result<()> {
        let json = serde_json::to_vec(&seen).map_err(|error| self.failed(&self.seen_path(), error.into()))?;
        self.replace(&self.seen_path(), &json)
    }

    /// The copy of the state, if there is one that opens.
    pub(crate) fn state(&self, ring: &KeyRing) -> Option<State> {
        let path = self.state_path();
        let size = fs::metadata(&path).ok()?.len();
        let bytes = if size <= STATE_BYTES_MAX { fs::read(&path).ok()? } else { return None };
        let (seq, sealed) = bytes.split_first_chunk::<8>()?;
        match decode_checkpoint(ring, u64::from_le_bytes(*seq), sealed) {
            Ok(state) => Some(state),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the copy of the log's state cannot be used; reading the log instead");
                None
            }
        }
    }

    /// Keeps a copy of the state, so that the next run starts from it.
    pub(crate) fn set_state(&self, ring: &KeyRing, world: &dyn World, state: &State) -> Result<()> {
        let sealed = encode_checkpoint(ring, random(world), state)?;
        self.replace(&self.state_path(), &[&state.seq().to_le_bytes()[..], &sealed].concat())
    }

    /// This host's signer; made on the first run.
    ///
    /// # Errors
    /// [`Error::StateDir`]; a damaged file is an error, so that an identity is not replaced by accident.
    pub(crate) fn signer(&self, world: &dyn World) -> Result<Signer> {
        let path = self.root.join("identity");
        match fs::read(&path) {
            Ok(bytes) => {
                let seed = <[u8; 32]>::try_from(bytes.as_slice());
                let seed = seed.map_err(|_| self.failed(&path, io::ErrorKind::InvalidData.into()))?;
                Ok(Signer::from_seed(seed)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let seed = random(world);
                let signer = Signer::from_seed(seed)?;
                self.replace(&path, &seed)?;
                Ok(signer)
            }
            Err(source) => Err(self.failed(&path, source)),
        }
    }

    fn state_path(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Replaces a file whole; only its owner may read it.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        // No two writers of one temporary file, of this process or of others.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("new-{}-{number}", std::process::id()));
        let write = || -> io::Result<()> {
            let options = File::options().write(true).create(true).truncate(true).mode(0o600).clone();
            let mut file = options.open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|source| self.failed(path, source))
    }

    pub(crate) fn failed(&self, path: &Path, source: io::Error) -> Error {
        Error::StateDir { path: path.to_owned(), source }
    }
}
