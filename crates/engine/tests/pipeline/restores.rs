//! Where a restore may land, and what it writes there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use aquifer_engine::{Kind, RestoreRequest, VolumeSpec};

use aquifer_testkit::tools;

use crate::rig::{CHUNK, Rig, allocated, assert_same, image, noise, restoring};

#[tokio::test(flavor = "multi_thread")]
async fn holes_stay_holes() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    // Holes between chunks, and a large one inside a chunk.
    let islands = [(0, noise(1, 4096)), (80 << 10, noise(2, 4096)), (30 << 20, noise(3, 1 << 20))];
    image(&source, 64 << 20, &islands);
    let outcome = rig.backup_image(&source).await;
    let copy = rig.restore_to(outcome.uuid, "copy").await;
    assert_same(&source, &copy);
    assert!(allocated(&copy) <= allocated(&source) + (64 << 10), "{} bytes", allocated(&copy));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_content_is_refused_and_an_empty_one_taken() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[(0, noise(1, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let copy = rig.path("copy");
    fs::write(&copy, b"precious").unwrap();
    let error = rig.try_restore(restoring(outcome.uuid, VolumeSpec::Raw(copy.clone()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.hint_text().unwrap().contains("--rewrite-existing"));
    assert_eq!(fs::read(&copy).unwrap(), b"precious");
    File::create(&copy).unwrap();
    rig.try_restore(restoring(outcome.uuid, VolumeSpec::Raw(copy.clone()))).await.unwrap();
    assert_same(&source, &copy);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewriting_writes_only_the_blocks_that_differ() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 40 << 20, &[(0, noise(1, 10 << 20)), (35 << 20, noise(2, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let copy = rig.restore_to(outcome.uuid, "copy").await;
    let file = File::options().write(true).open(&copy).unwrap();
    file.write_all_at(b"spoilt", 3 << 20).unwrap();
    file.write_all_at(&noise(3, 4096), 20 << 20).unwrap();
    let request = RestoreRequest {
        rewrite_existing: true,
        verify: true,
        ..restoring(outcome.uuid, VolumeSpec::Raw(copy.clone()))
    };
    let restored = rig.try_restore(request).await.unwrap();
    let disk = &restored.disks[0];
    assert_eq!((disk.written_bytes, disk.skipped_bytes), (4096, (11 << 20) - 4096));
    assert_eq!(disk.zero_bytes, 29 << 20);
    assert_same(&source, &copy);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewriting_reads_no_data_for_what_the_volume_holds_already() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 8 << 20, &[(0, noise(4, 5 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let copy = rig.restore_to(outcome.uuid, "copy").await;
    for pack in rig.packs().into_iter().filter(|pack| fs::metadata(pack).unwrap().len() > CHUNK) {
        fs::remove_file(pack).unwrap();
    }
    let rewrite = || RestoreRequest {
        rewrite_existing: true,
        ..restoring(outcome.uuid, VolumeSpec::Raw(copy.clone()))
    };
    let restored = rig.try_restore(rewrite()).await.unwrap();
    assert_eq!((restored.disks[0].written_bytes, restored.disks[0].skipped_bytes), (0, 5 << 20));
    File::options().write(true).open(&copy).unwrap().write_all_at(b"x", 2 << 20).unwrap();
    let error = rig.try_restore(rewrite()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_size_is_refused_with_both_numbers() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 2 << 20, &[(0, noise(1, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    for bytes in [1 << 20, 3 << 20] {
        let copy = rig.path("copy");
        image(&copy, bytes, &[(0, noise(2, 10))]);
        let volume = VolumeSpec::Raw(copy.clone());
        let request = RestoreRequest { rewrite_existing: true, ..restoring(outcome.uuid, volume) };
        let error = rig.try_restore(request).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(
            error.message().contains("2097152") && error.message().contains(&bytes.to_string()),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_qemu_uses_is_refused() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 2 << 20, &[(0, noise(1, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let _qemu = rig.qemu_nbd(&source, &["--read-only"]);
    let request =
        RestoreRequest { rewrite_existing: true, ..restoring(outcome.uuid, VolumeSpec::Raw(source.clone())) };
    let error = rig.try_restore(request).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    assert!(error.message().contains("in use"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_takes_a_disk_when_it_is_empty_and_is_rewritten_only_where_it_differs() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 20 << 20, &[(0, noise(1, 5 << 20)), (15 << 20, noise(2, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let target = rig.path("target");
    image(&target, 20 << 20, &[]);
    let server = rig.qemu_nbd(&target, &["--discard=unmap"]);
    let volume = || VolumeSpec::Nbd(server.uri("").parse().unwrap());
    let fresh = RestoreRequest { verify: true, ..restoring(outcome.uuid, volume()) };
    let restored = rig.try_restore(fresh).await.unwrap();
    assert_eq!(restored.disks[0].written_bytes, 6 << 20);

    let again = rig.try_restore(restoring(outcome.uuid, volume())).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict, "{again}");

    let rewrite =
        RestoreRequest { rewrite_existing: true, verify: true, ..restoring(outcome.uuid, volume()) };
    let restored = rig.try_restore(rewrite).await.unwrap();
    assert_eq!((restored.disks[0].written_bytes, restored.disks[0].skipped_bytes), (0, 6 << 20));
    drop(server);
    assert_same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_export_takes_the_disk_and_a_smaller_one_is_refused() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 2 << 20, &[(0, noise(1, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    for (bytes, fits) in [(3 << 20, true), (1 << 20, false)] {
        let target = rig.path(&format!("target-{bytes}"));
        image(&target, bytes, &[]);
        let server = rig.qemu_nbd(&target, &[]);
        let volume = VolumeSpec::Nbd(server.uri("").parse().unwrap());
        let ended = rig.try_restore(restoring(outcome.uuid, volume)).await;
        assert_eq!(ended.is_ok(), fits);
        if let Err(error) = ended {
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_and_writes_nothing() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 2 << 20, &[(0, noise(1, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let copy = rig.path("copy");
    let volume = VolumeSpec::Raw(copy.clone());
    let request = RestoreRequest { dry_run: true, ..restoring(outcome.uuid, volume) };
    let told = rig.try_restore(request).await.unwrap();
    assert!(told.dry_run && !copy.exists());
    assert_eq!((told.disks[0].written_bytes, told.disks[0].zero_bytes), (1 << 20, 1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_disks_and_one_volume_for_two_disks_are_refused() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[]);
    let outcome = rig.backup_image(&source).await;
    let volume = VolumeSpec::Raw(rig.path("copy"));
    let mut request = restoring(outcome.uuid, volume.clone());
    request.disks = vec![("vdz".into(), volume.clone())];
    let error = rig.try_restore(request.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hint_text().unwrap().contains("vda"));
    request.disks = vec![("vda".into(), volume.clone()), ("vda".into(), volume)];
    assert_eq!(rig.try_restore(request).await.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_neither_file_nor_device_is_refused() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[]);
    let outcome = rig.backup_image(&source).await;
    for volume in [VolumeSpec::Raw(rig.folder.path().into()), VolumeSpec::Block(source)] {
        let error = rig.try_restore(restoring(outcome.uuid, volume)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
    let missing = VolumeSpec::Raw(rig.path("no/such/folder/copy"));
    assert_eq!(rig.try_restore(restoring(outcome.uuid, missing)).await.unwrap_err().kind(), Kind::NotFound);
}

/// The disk of a qcow2 image, as a raw file beside it.
fn raw_of(qcow2: &std::path::Path) -> std::path::PathBuf {
    let raw = qcow2.with_extension("converted");
    let mut convert = Command::new(tools::tool("qemu-img").unwrap());
    tools::run(convert.args(["convert", "-f", "qcow2", "-O", "raw"]).args([qcow2, &raw])).unwrap();
    let mut check = Command::new(tools::tool("qemu-img").unwrap());
    tools::run(check.args(["check", "-q", "-f", "qcow2"]).arg(qcow2)).unwrap();
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qcow2_image_is_made_is_small_and_is_rewritten_only_where_it_differs() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 64 << 20, &[(0, noise(1, 4096)), (30 << 20, noise(3, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let copy = rig.path("copy.qcow2");
    let request = RestoreRequest { verify: true, ..restoring(outcome.uuid, VolumeSpec::Qcow2(copy.clone())) };
    rig.try_restore(request.clone()).await.unwrap();
    assert_same(&source, &raw_of(&copy));
    assert!(allocated(&copy) < 4 << 20, "{} bytes for one of data", allocated(&copy));

    let refused = rig.try_restore(request.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict);
    assert!(refused.hint_text().unwrap().contains("--rewrite-existing"));
    let again = rig.try_restore(RestoreRequest { rewrite_existing: true, ..request }).await.unwrap();
    assert_eq!(again.disks[0].written_bytes, 0);
    assert_same(&source, &raw_of(&copy));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qcow2_image_of_another_size_is_refused_and_one_that_fails_is_removed() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 4 << 20, &[(0, noise(1, 4 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let other = rig.path("other.qcow2");
    let mut create = Command::new(tools::tool("qemu-img").unwrap());
    tools::run(create.args(["create", "-q", "-f", "qcow2"]).arg(&other).arg("8M")).unwrap();
    let request = restoring(outcome.uuid, VolumeSpec::Qcow2(other));
    let refused = rig.try_restore(RestoreRequest { rewrite_existing: true, ..request }).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context()["disk_bytes"].as_u64()), (Kind::Invalid, Some(4 << 20)));

    for pack in rig.packs() {
        let length = fs::metadata(&pack).unwrap().len();
        File::options().write(true).open(&pack).unwrap().write_all_at(&[0; 64], length / 2).unwrap();
    }
    let failed = rig.path("failed.qcow2");
    let error =
        rig.try_restore(restoring(outcome.uuid, VolumeSpec::Qcow2(failed.clone()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(!failed.exists(), "an image that is incomplete is left");
}
