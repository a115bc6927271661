//! What fails, how it says so, and what it leaves alone.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_engine::{
    Event, EventSink, JobContext, Kind, RestoreRequest, VerifyDepth, VerifyJob, VolumeSpec, backup, verify,
};
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, assert_same, image, noise, request, restoring};

#[tokio::test(flavor = "multi_thread")]
async fn a_read_error_fails_by_offset_and_length_and_leaves_older_backups_whole() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 8 << 20, &[(0, noise(1, 8 << 20))]);
    let older = rig.backup_image(&source).await;
    let flag = rig.path("fail-now");
    File::create(&flag).unwrap();
    let trigger = format!("error-pread-file={}", flag.display());
    let server = rig.nbdkit(
        &source,
        &["--readonly", "--filter=error", "error-pread=EIO", "error-pread-rate=100%", &trigger],
    );
    let error = rig.try_backup(&[("vda", &server)]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(error.context()["disk"], "vda");
    assert!(error.context().contains_key("offset") && error.context().contains_key("length"), "{error:?}");
    assert!(error.message().contains("vda"), "{error}");
    assert_eq!(rig.job.repository.backups().len(), 1);
    assert_same(&source, &rig.restore_to(older.uuid, "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_ends_soon_is_not_listed_and_the_next_one_works() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 64 << 20, &[(0, noise(2, 64 << 20))]);
    let slow = rig.nbdkit(&source, &["--readonly", "--filter=rate", "rate=128M"]);
    let cancel = CancellationToken::new();
    let events = {
        let cancel = cancel.clone();
        EventSink::new(move |event| {
            if let Event::Progress { .. } = event {
                cancel.cancel();
            }
        })
    };
    let job = JobContext { cancel, events, ..rig.job.clone() };
    let ended = tokio::time::timeout(Duration::from_secs(20), backup(&job, request(&[("vda", &slow)]))).await;
    assert_eq!(ended.unwrap().unwrap_err().kind(), Kind::Cancelled);
    assert!(rig.job.repository.backups().is_empty());
    let outcome = rig.backup_image(&source).await;
    assert_same(&source, &rig.restore_to(outcome.uuid, "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_fails_the_backup() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 64 << 20, &[(0, noise(3, 64 << 20))]);
    let mut server = rig.nbdkit(&source, &["--readonly", "--filter=rate", "rate=128M"]);
    let begun = Arc::new(AtomicBool::new(false));
    let events = {
        let begun = Arc::clone(&begun);
        EventSink::new(move |event| {
            if let Event::Progress { .. } = event {
                begun.store(true, Ordering::Relaxed);
            }
        })
    };
    let job = JobContext { events, ..rig.job.clone() };
    let asked = request(&[("vda", &server)]);
    let running = tokio::spawn(async move { backup(&job, asked).await });
    while !begun.load(Ordering::Relaxed) && !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.process().kill().unwrap();
    let error = tokio::time::timeout(Duration::from_secs(60), running).await.unwrap().unwrap().unwrap_err();
    assert_ne!(error.kind(), Kind::Internal, "{error}");
    assert!(rig.job.repository.backups().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_such_socket_is_named() {
    let rig = Rig::new().await;
    let mut asked = request(&[]);
    let uri = "nbd+unix:///x?socket=/nowhere/at/all.sock".parse().unwrap();
    asked.source = aquifer_engine::Source::Nbd(vec![("vda".into(), uri)]);
    let error = backup(&rig.job, asked).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert!(error.message().contains("/nowhere/at/all.sock"), "{error}");
}

/// Flips one bit in the middle of the largest pack.
pub(crate) fn flip_a_bit(rig: &Rig) {
    let pack = rig.packs().into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = fs::metadata(&pack).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "a file of this test's own")]
    permissions.set_readonly(false);
    fs::set_permissions(&pack, permissions).unwrap();
    fs::write(&pack, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_fails_the_restore_leaves_no_file_and_is_found_by_verify() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 4 << 20, &[(0, noise(4, 4 << 20))]);
    let outcome = rig.backup_image(&source).await;
    flip_a_bit(&rig);
    let copy = rig.path("copy");
    let error = rig.try_restore(restoring(outcome.uuid, VolumeSpec::Raw(copy.clone()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.message().contains("pack"), "{error}");
    assert!(!copy.exists());
    for depth in [VerifyDepth::Packs, VerifyDepth::Chunks, VerifyDepth::Restore] {
        let found =
            verify(&rig.job, VerifyJob { depth, backups: vec![], sample_percent: 100 }).await.unwrap();
        assert!(!found.clean, "{depth:?}");
        assert_eq!(found.unreadable.len(), usize::from(depth == VerifyDepth::Restore));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_backup_verifies_at_every_depth() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 4 << 20, &[(0, noise(5, 3 << 20))]);
    rig.backup_image(&source).await;
    for depth in [VerifyDepth::Structure, VerifyDepth::Packs, VerifyDepth::Chunks, VerifyDepth::Restore] {
        let found =
            verify(&rig.job, VerifyJob { depth, backups: vec![], sample_percent: 100 }).await.unwrap();
        assert!(found.clean, "{depth:?}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_pack_fails_the_restore_by_its_name() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[(0, noise(6, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let pack = rig.packs().into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    fs::remove_file(&pack).unwrap();
    let error =
        rig.try_restore(restoring(outcome.uuid, VolumeSpec::Raw(rig.path("copy")))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.message().contains("pack"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_keeps_nothing_is_caught_by_its_verification() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[(0, noise(7, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let sink = aquifer_testkit::Server::nbdkit(rig.folder.path(), &["null", "size=1M"]).unwrap();
    let volume = VolumeSpec::Nbd(sink.uri("").parse().unwrap());
    let request = RestoreRequest { verify: true, ..restoring(outcome.uuid, volume) };
    let error = rig.try_restore(request).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.message().contains("differs"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_fails_to_write_fails_the_restore_by_offset() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 4 << 20, &[(0, noise(8, 4 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let target = rig.path("target");
    image(&target, 4 << 20, &[]);
    let server = rig.nbdkit(&target, &["--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"]);
    let volume = VolumeSpec::Nbd(server.uri("").parse().unwrap());
    let error = rig.try_restore(restoring(outcome.uuid, volume)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.context().contains_key("offset"), "{error:?}");
}
