//! The timed self-test: an image made for it is served by qemu-nbd, backed up into an encrypted repository,
//! verified by a restore, and compared byte for byte.
//!
//! Everything happens in one folder that is removed at the end, whatever the end is.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use aquifer_qemu::{ImageExport, ImageRequest};
use aquifer_repository::format::keys::KdfParams;
use aquifer_repository::store::Local;
use aquifer_repository::{FENCE_AFTER, InitOptions, Repository, Secret, Settings, Stores};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::folder::Folder;
use super::{DoctorRequest, Finding, cross_check};
use crate::backup::backup;
use crate::error::{Error, Kind, Result};
use crate::progress::EventSink;
use crate::request::{BackupRequest, RestoreRequest, Source, VolumeSpec};
use crate::restore::restore;
use crate::settings::{JobContext, JobSettings};

/// Size of the image: odd, so that the last chunk is short.
const IMAGE_BYTES: u64 = (64 << 20) + 512;

/// Runs all steps; a step that fails ends the test.
pub(super) async fn run(request: &DoctorRequest) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder = Folder::new(request);
    let ended = steps(request, folder.path(), &mut findings).await;
    if let Err(error) = ended {
        findings.push(Finding::of("self-test", folder.path().display().to_string(), Err(error)));
    }
    findings
}

async fn steps(request: &DoctorRequest, folder: &Path, findings: &mut Vec<Finding>) -> Result<()> {
    let (image, copy) = (folder.join("image.raw"), folder.join("copy.raw"));
    std::fs::create_dir_all(folder)
        .and_then(|()| write_image(&image))
        .map_err(|error| failed(error, folder))?;
    findings.push(Finding::of("self-test", "nbd", serve_and_compare(&image, folder).await));
    let context = context(request, folder).await?;
    let uuid = crate::clock::new_uuid(&*request.world);
    let seconds = back_up(&context, &image, uuid).await?;
    findings.push(Finding::good("self-test", "backup", rate(seconds)));
    let restored = restore(
        &context,
        RestoreRequest {
            backup: uuid,
            disks: vec![("image".into(), VolumeSpec::Raw(copy.clone()))],
            rewrite_existing: false,
            verify: true,
            dry_run: false,
            salvage: false,
        },
    )
    .await?;
    findings.push(Finding::good("self-test", "restore", rate(restored.seconds)));
    let equal = equal_files(&image, &copy).map_err(|error| failed(error, folder))?;
    if !equal {
        let text = "the restored image is not the one that was backed up";
        return Err(
            Error::new(Kind::Corrupt, text).hint("do not trust backups of this machine: test its memory")
        );
    }
    findings.push(Finding::good("self-test", "compare", format!("{IMAGE_BYTES} bytes are equal")));
    Ok(())
}

async fn context(request: &DoctorRequest, folder: &Path) -> Result<JobContext> {
    let mut secret = vec![0; 32];
    request.world.random(&mut secret);
    let store = Local::create(folder.join("repository"));
    let store = store.map_err(|error| Error::from(aquifer_repository::Error::from(error)))?;
    let repository = Repository::init(InitOptions {
        stores: Stores { packs: Arc::new(store), log: None },
        world: Arc::clone(&request.world),
        state_dir: None,
        secret: Some(Secret::new(secret)),
        recovery: None,
        kdf: KdfParams::default(),
        chunk_bytes: 128 << 10,
        settings: Settings::default(),
    })
    .await?;
    Ok(JobContext {
        repository,
        world: Arc::clone(&request.world),
        settings: JobSettings::default(),
        events: EventSink::none(),
        cancel: CancellationToken::new(),
    })
}

async fn serve_and_compare(image: &Path, folder: &Path) -> Result<String> {
    let request = ImageRequest {
        path: image.to_owned(),
        format: Some("raw".into()),
        sockets: folder.to_owned(),
        writable: false,
    };
    let export = ImageExport::open(&request).await?;
    let compared = async { cross_check(&export.uri().parse()?).await };
    let compared = compared.await;
    export.close().await?;
    compared
}

async fn back_up(context: &JobContext, image: &Path, uuid: Uuid) -> Result<f64> {
    let request = BackupRequest {
        domain: "self-test".into(),
        source: Source::Images(vec![("image".into(), image.to_owned())]),
        uuid: Some(uuid),
        description: String::new(),
        labels: std::collections::BTreeMap::new(),
        full: false,
        full_disks: Vec::new(),
        parent: None,
        namespace: None,
        definition: None,
        recheck_ppm: None,
        fence_after: FENCE_AFTER,
    };
    Ok(backup(context, request).await?.seconds)
}

fn rate(seconds: f64) -> String {
    let megabytes = f64::from(u32::try_from(IMAGE_BYTES >> 20).unwrap_or(u32::MAX));
    format!("{IMAGE_BYTES} bytes in {seconds:.2} s, {:.0} MiB/s", megabytes / seconds.max(0.001))
}

/// An image of which a quarter each is text-like, incompressible, repeated, and a hole.
fn write_image(path: &Path) -> std::io::Result<()> {
    const BLOCK: usize = 4096;
    let file = File::create(path)?;
    file.set_len(IMAGE_BYTES)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let blocks = IMAGE_BYTES / 4096 * 3 / 4;
    for number in 0..blocks {
        let mut block = Vec::with_capacity(BLOCK);
        while block.len() < BLOCK {
            // xorshift: cheap, and the same on every machine.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match number * 4 / (blocks + 1) {
                0 => block.extend_from_slice(format!("{:04x} of {number}\n", state % 999).as_bytes()),
                1 => block.extend_from_slice(&state.to_le_bytes()),
                _ => block.extend_from_slice(&(number % 32).to_le_bytes()),
            }
        }
        out.write_all(&block[..BLOCK])?;
    }
    out.flush()
}

fn equal_files(first: &Path, second: &Path) -> std::io::Result<bool> {
    let (mut first, mut second) = (File::open(first)?, File::open(second)?);
    let length = first.metadata()?.len();
    if second.metadata()?.len() != length {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut left = length;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ours.len());
        first.read_exact(&mut ours[..piece])?;
        second.read_exact(&mut theirs[..piece])?;
        if ours[..piece] != theirs[..piece] {
            return Ok(false);
        }
        left -= u64::try_from(piece).unwrap_or(left);
    }
    Ok(true)
}

fn failed(error: std::io::Error, folder: &Path) -> Error {
    Error::caused(Kind::Unavailable, error)
        .about(folder.display())
        .hint("the self-test needs a folder with some 200 MiB of free space")
}
