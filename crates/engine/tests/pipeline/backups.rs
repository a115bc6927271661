//! What a backup reads, keeps, and tells.

use std::fs::File;
use std::os::unix::fs::FileExt;

use aquifer_engine::{BackupRequest, DiskMode, Kind, Level, Source, VolumeSpec, backup};

use crate::rig::{CHUNK, Rig, assert_same, image, noise, request, restoring};

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_every_odd_size_come_back_byte_for_byte() {
    let rig = Rig::new().await;
    for bytes in [1, 511, 512, 4097, CHUNK - 1, CHUNK, CHUNK + 1, (33 << 20) + 13] {
        let source = rig.path(&format!("source-{bytes}"));
        image(&source, bytes, &[(0, noise(bytes, usize::try_from(bytes).unwrap()))]);
        let outcome = rig.backup_image(&source).await;
        let disk = &outcome.disks[0];
        assert_eq!(disk.size_bytes, bytes);
        let covered = disk.zero_bytes + disk.kept_bytes + disk.deduplicated_bytes + disk.new_bytes;
        assert_eq!(covered, bytes, "{disk:?}");
        let copy = rig.restore_to(outcome.uuid, &format!("copy-{bytes}")).await;
        assert_same(&source, &copy);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_is_backed_up_and_restored() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 0, &[]);
    let outcome = rig.backup_image(&source).await;
    assert_eq!(outcome.disks[0].size_bytes, 0);
    let copy = rig.restore_to(outcome.uuid, "copy").await;
    assert_eq!(std::fs::metadata(copy).unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_disk_is_kept_whole_and_one_changed_chunk_is_all_that_is_new() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 70 << 20, &[(0, noise(1, 40 << 20)), (60 << 20, noise(2, 1 << 20))]);
    let first = rig.backup_image(&source).await;
    assert_eq!((first.level, first.disks[0].mode), (Level::Full, DiskMode::Full));
    assert_eq!(first.disks[0].new_bytes, 41 << 20);
    assert_eq!(first.disks[0].zero_bytes, 29 << 20);

    let second = rig.backup_image(&source).await;
    assert_eq!((second.level, second.disks[0].mode), (Level::Incremental, DiskMode::Rescan));
    assert_eq!(second.parent, Some(first.uuid));
    assert!(second.disks[0].reason.is_some());
    assert_eq!((second.disks[0].kept_bytes, second.disks[0].new_bytes), (41 << 20, 0));
    assert_eq!(second.disks[0].tree_nodes_written, 0);

    File::options().write(true).open(&source).unwrap().write_all_at(b"changed", 5 << 20).unwrap();
    let third = rig.backup_image(&source).await;
    assert_eq!(third.disks[0].new_bytes, CHUNK);
    assert_eq!(third.disks[0].kept_bytes, (41 << 20) - CHUNK);
    assert_same(&source, &rig.restore_to(third.uuid, "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_chunks_of_two_disks_are_stored_once_and_read_at_once() {
    let rig = Rig::new().await;
    let (one, two) = (rig.path("one"), rig.path("two"));
    let shared = noise(3, 8 << 20);
    image(&one, 16 << 20, &[(0, shared.clone()), (8 << 20, noise(4, 8 << 20))]);
    image(&two, 12 << 20, &[(2 << 20, shared)]);
    let (first, second) = (rig.nbdkit(&one, &["--readonly"]), rig.nbdkit(&two, &["--readonly"]));
    let outcome = rig.backup(&[("vda", &first), ("vdb", &second)]).await;
    let names: Vec<&str> = outcome.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["vda", "vdb"]);
    let new: u64 = outcome.disks.iter().map(|disk| disk.new_bytes).sum();
    let known: u64 = outcome.disks.iter().map(|disk| disk.deduplicated_bytes).sum();
    assert_eq!((new, known), (16 << 20, 8 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_disk_of_ten_tebibytes_costs_its_data_only() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    let bytes = 10 << 40;
    let islands: Vec<(u64, Vec<u8>)> =
        (0..40).map(|at| (at * (bytes / 40) + 7 * at, noise(at, 300_000))).collect();
    image(&source, bytes, &islands);
    let server = rig.qemu_nbd(&source, &["--read-only"]);
    let outcome = rig.backup(&[("vda", &server)]).await;
    assert!(outcome.memory_peak_bytes < 400 << 20, "{} bytes", outcome.memory_peak_bytes);
    assert!(outcome.disks[0].read_bytes < 64 << 20, "{} bytes", outcome.disks[0].read_bytes);
    drop(server);
    let copy = rig.restore_to(outcome.uuid, "copy").await;
    let restored = File::open(&copy).unwrap();
    assert_eq!(restored.metadata().unwrap().len(), bytes);
    for (offset, content) in islands {
        let mut found = vec![0; content.len()];
        restored.read_exact_at(&mut found, offset).unwrap();
        assert!(found == content, "island at {offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_extents_and_one_without_structured_replies_are_read_whole() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 3 << 20, &[(1 << 20, noise(5, 1 << 20))]);
    for more in [["--readonly", "--filter=noextents"], ["--readonly", "--no-sr"]] {
        let server = rig.nbdkit(&source, &more);
        let outcome = rig.backup(&[("vda", &server)]).await;
        assert_eq!(outcome.disks[0].read_bytes, 3 << 20);
        assert_eq!(outcome.disks[0].zero_bytes, 2 << 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backup_compares_with_nothing_but_stores_nothing_twice() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 2 << 20, &[(0, noise(6, 2 << 20))]);
    rig.backup_image(&source).await;
    let server = rig.nbdkit(&source, &["--readonly"]);
    let outcome =
        backup(&rig.job, BackupRequest { full: true, ..request(&[("vda", &server)]) }).await.unwrap();
    assert_eq!((outcome.level, outcome.parent), (Level::Full, None));
    assert_eq!((outcome.disks[0].deduplicated_bytes, outcome.disks[0].new_bytes), (2 << 20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_that_is_taken_is_a_conflict() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[]);
    let server = rig.nbdkit(&source, &["--readonly"]);
    let uuid = Some(rig.backup(&[("vda", &server)]).await.uuid);
    let again = backup(&rig.job, BackupRequest { uuid, ..request(&[("vda", &server)]) }).await;
    assert_eq!(again.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_given_twice_or_without_a_name_is_refused_before_anything_is_read() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 1 << 20, &[]);
    let server = rig.nbdkit(&source, &["--readonly"]);
    for disks in [vec![("vda", &server), ("vda", &server)], vec![("", &server)], vec![]] {
        let error = rig.try_backup(&disks).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.hint_text().is_some());
    }
    assert!(rig.job.repository.backups().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_image_is_read_through_qemu_nbd() {
    let rig = Rig::new().await;
    let source = rig.path("source.raw");
    image(&source, 5 << 20, &[(1 << 20, noise(9, 1 << 20))]);
    let images =
        BackupRequest { source: Source::Images(vec![("vda".into(), source.clone())]), ..request(&[]) };
    let outcome = backup(&rig.job, images).await.unwrap();
    let copy = rig.path("copy.raw");
    rig.try_restore(restoring(outcome.uuid, VolumeSpec::Raw(copy.clone()))).await.unwrap();
    assert_same(&source, &copy);
}
