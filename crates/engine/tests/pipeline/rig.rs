//! A repository in a temporary folder, images with known content, and jobs on them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_engine::clock::System;
use aquifer_engine::repository::format::keys::KdfParams;
use aquifer_engine::repository::store::Local;
use aquifer_engine::repository::{
    Access, FENCE_AFTER, InitOptions, OpenOptions, Repository, Secret, Settings, Stores,
};
use aquifer_engine::{
    BackupOutcome, BackupRequest, EventSink, JobContext, JobSettings, RestoreOutcome, RestoreRequest, Result,
    Source, VolumeSpec, backup, restore,
};
use aquifer_testkit::{Server, TempDir, tempdir};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Chunk size of the repository.
pub(crate) const CHUNK: u64 = 128 << 10;

/// A repository and a folder for everything else.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    pub(crate) job: JobContext,
}

impl Rig {
    pub(crate) async fn new() -> Rig {
        let folder = tempdir().unwrap();
        let world = Arc::new(System::new());
        let repository = Repository::init(InitOptions {
            stores: Stores { packs: Arc::new(Local::create(folder.path().join("repo")).unwrap()), log: None },
            world: Arc::clone(&world) as Arc<_>,
            state_dir: Some(folder.path().join("state")),
            secret: Some(Secret::new(b"correct horse".to_vec())),
            recovery: None,
            kdf: KdfParams { memory_kib: 64, passes: 1, lanes: 1 },
            chunk_bytes: u32::try_from(CHUNK).unwrap(),
            settings: Settings { pack_bytes: 1 << 20, meta_pack_bytes: 1 << 18, ..Settings::default() },
        })
        .await
        .unwrap();
        let job = JobContext {
            repository,
            world,
            settings: JobSettings::default(),
            events: EventSink::none(),
            cancel: CancellationToken::new(),
        };
        Rig { folder, job }
    }

    /// Opens the repository anew, as the next process does: nothing that was read is remembered.
    pub(crate) async fn reopen(&mut self) {
        self.job.repository = self.other_host("other-state").await.repository;
    }

    /// Another host's way to the repository. It has a state folder of its own, because an index has one writer.
    pub(crate) async fn other_host(&self, state: &str) -> JobContext {
        let repository = Repository::open(OpenOptions {
            stores: Stores { packs: Arc::new(Local::open(self.path("repo")).unwrap()), log: None },
            world: Arc::clone(&self.job.world),
            state_dir: Some(self.path(state)),
            secret: Some(Secret::new(b"correct horse".to_vec())),
            access: Access::Write,
            settings: Settings::default(),
        });
        JobContext { repository: repository.await.unwrap(), ..self.job.clone() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Serves an image with nbdkit, which keeps sizes to the byte.
    pub(crate) fn nbdkit(&self, image: &Path, more: &[&str]) -> Server {
        let file = format!("file={}", image.display());
        let mut arguments: Vec<&str> = more.iter().copied().filter(|word| word.starts_with("--")).collect();
        arguments.extend(["file", &file]);
        arguments.extend(more.iter().copied().filter(|word| !word.starts_with("--")));
        Server::nbdkit(self.folder.path(), &arguments).unwrap()
    }

    /// Serves an image with qemu-nbd.
    pub(crate) fn qemu_nbd(&self, image: &Path, more: &[&str]) -> Server {
        let arguments: Vec<&str> = ["--format=raw"].iter().chain(more).copied().collect();
        Server::qemu_nbd(self.folder.path(), image, &arguments).unwrap()
    }

    pub(crate) async fn try_backup(&self, disks: &[(&str, &Server)]) -> Result<BackupOutcome> {
        backup(&self.job, request(disks)).await
    }

    pub(crate) async fn backup(&self, disks: &[(&str, &Server)]) -> BackupOutcome {
        self.try_backup(disks).await.unwrap()
    }

    /// Backs up one image as disk `vda`.
    pub(crate) async fn backup_image(&self, image: &Path) -> BackupOutcome {
        self.backup(&[("vda", &self.nbdkit(image, &["--readonly"]))]).await
    }

    pub(crate) async fn try_restore(&self, request: RestoreRequest) -> Result<RestoreOutcome> {
        restore(&self.job, request).await
    }

    /// Restores disk `vda` into a new raw file and gives its path.
    pub(crate) async fn restore_to(&self, backup: Uuid, name: &str) -> PathBuf {
        let path = self.path(name);
        let request = restoring(backup, VolumeSpec::Raw(path.clone()));
        self.try_restore(RestoreRequest { verify: true, ..request }).await.unwrap();
        path
    }

    /// The pack files of the repository.
    pub(crate) fn packs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("repo/packs")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

pub(crate) fn request(disks: &[(&str, &Server)]) -> BackupRequest {
    let exports = disks.iter().map(|(name, server)| ((*name).to_owned(), server.uri("").parse().unwrap()));
    BackupRequest {
        domain: "web01".into(),
        source: Source::Nbd(exports.collect()),
        uuid: None,
        description: "test".into(),
        labels: BTreeMap::new(),
        full: false,
        full_disks: Vec::new(),
        parent: None,
        namespace: None,
        definition: None,
        recheck_ppm: None,
        fence_after: FENCE_AFTER,
    }
}

pub(crate) fn restoring(backup: Uuid, volume: VolumeSpec) -> RestoreRequest {
    RestoreRequest {
        backup,
        disks: vec![("vda".into(), volume)],
        rewrite_existing: false,
        verify: false,
        dry_run: false,
        salvage: false,
    }
}

/// Bytes that do not repeat and half of which compress.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 16);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
        out.extend_from_slice(b"compress");
    }
    out.truncate(bytes);
    out
}

/// A sparse image of `bytes` bytes with noise at some places.
pub(crate) fn image(path: &Path, bytes: u64, islands: &[(u64, Vec<u8>)]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    for (offset, content) in islands {
        file.write_all_at(content, *offset).unwrap();
    }
}

/// Proves that two files hold the same bytes.
pub(crate) fn assert_same(first: &Path, second: &Path) {
    let (first, second) = (fs::read(first).unwrap(), fs::read(second).unwrap());
    assert_eq!(first.len(), second.len(), "sizes differ");
    let differs = first.iter().zip(&second).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first difference");
}

/// Bytes that a file takes on disk.
pub(crate) fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}
