//! Increments of a running domain: they cost what changed, grow with the disk, and are checked against the base.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use aquifer_engine::{BackupOutcome, BackupRequest, DiskMode, DiskOutcome, Source, VolumeSpec, backup};
use aquifer_testkit::{Disk, Format, Guest, GuestOptions};
use serde_json::json;

use crate::domains::domain;
use crate::rig::{CHUNK, Rig, assert_same, restoring};

const MIB: u64 = 1 << 20;

/// A guest that was stopped after its first writes: from then on the test alone writes to its disk, through its QEMU.
struct Still {
    rig: Rig,
    guest: Guest,
}

impl Still {
    async fn new(format: Format, bytes: u64) -> Still {
        let rig = Rig::new().await;
        let disk = Disk::create(rig.folder.path(), "vda", format, bytes).unwrap();
        let options = GuestOptions { writes_per_second: 1, ..GuestOptions::default() };
        let mut guest = Guest::start(rig.folder.path(), &[disk], &options).unwrap();
        guest.pause().unwrap();
        Still { rig, guest }
    }

    fn write(&mut self, pattern: u8, offset: u64, bytes: u64) {
        let line = format!(
            "qemu-io -d /machine/peripheral/vda/virtio-backend \"write -P {pattern} {offset} {bytes}\""
        );
        let said = self.guest.qmp().execute("human-monitor-command", json!({"command-line": line})).unwrap();
        assert!(!said.as_str().unwrap_or_default().contains("rror"), "{line}: {said}");
    }

    /// What a reader of the image finds, outside of any QEMU: the raw disk itself.
    fn image(&self) -> PathBuf {
        self.guest.disks()[0].path.clone()
    }

    fn request(&self) -> BackupRequest {
        let mut request = domain(&self.guest.monitor(0), self.rig.folder.path());
        if let Source::Qmp(qmp) = &mut request.source {
            // Not the whole of a huge disk.
            qmp.scratch_max_bytes = Some(64 * MIB);
        }
        BackupRequest { recheck_ppm: Some(0), ..request }
    }

    async fn backup(&self) -> (BackupOutcome, DiskOutcome) {
        self.backup_as(self.request()).await
    }

    async fn backup_as(&self, request: BackupRequest) -> (BackupOutcome, DiskOutcome) {
        let outcome = backup(&self.rig.job, request).await.unwrap();
        let disk = outcome.disks[0].clone();
        let covered = disk.zero_bytes + disk.kept_bytes + disk.deduplicated_bytes + disk.new_bytes;
        assert_eq!(covered, disk.size_bytes, "{disk:?}");
        (outcome, disk)
    }

    async fn assert_restores(&self, outcome: &BackupOutcome, name: &str) {
        let copy = self.rig.restore_to(outcome.uuid, name).await;
        assert_same(&copy, &self.image());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_reads_the_marked_chunks_and_nothing_else() {
    let mut still = Still::new(Format::Raw, 256 * MIB).await;
    still.write(1, 0, 64 * MIB);
    let (first, disk) = still.backup().await;
    assert_eq!((disk.mode, disk.reason.as_deref()), (DiskMode::Full, None));

    let (second, disk) = still.backup().await;
    assert_eq!((second.parent, disk.mode), (Some(first.uuid), DiskMode::Bitmap));
    assert_eq!((disk.read_bytes, disk.kept_bytes), (0, 256 * MIB));
    // The last chunk that holds anything is always compared: one chunk, and the path to it.
    assert_eq!((disk.rechecked_bytes, disk.tree_nodes_written, disk.stored_bytes), (CHUNK, 0, 0));
    assert!(disk.tree_nodes_read <= 2, "{disk:?}");

    // One chunk, two chunks by a byte, and a chunk that becomes zero.
    still.write(2, 5 * CHUNK, CHUNK);
    still.write(3, 9 * CHUNK - 512, 1024);
    still.write(0, 20 * CHUNK, CHUNK);
    let (third, disk) = still.backup().await;
    assert_eq!((third.parent, disk.mode), (Some(second.uuid), DiskMode::Bitmap));
    assert!(disk.read_bytes + disk.zero_bytes >= 4 * CHUNK && disk.read_bytes <= 4 * CHUNK, "{disk:?}");
    assert_eq!((disk.new_bytes, disk.kept_bytes), (3 * CHUNK, 256 * MIB - 4 * CHUNK));
    // The path to one leaf: that leaf and the root.
    assert_eq!(disk.tree_nodes_written, 2);
    assert!(disk.tree_nodes_read <= 4, "{disk:?}");
    still.assert_restores(&third, "third").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grown_disk_stays_an_increment_and_what_it_gained_counts_as_changed() {
    // The end of the old disk lies inside of a chunk.
    let mut still = Still::new(Format::Raw, 8 * MIB + 512).await;
    still.write(1, 8 * MIB - 512, 1024);
    still.backup().await;
    let grow = json!({"node-name": "vda", "size": 24 * MIB + 1024});
    still.guest.qmp().execute("block_resize", grow).unwrap();
    still.write(2, 20 * MIB, MIB);
    let (grown, disk) = still.backup().await;
    assert_eq!((disk.mode, disk.size_bytes), (DiskMode::Bitmap, 24 * MIB + 1024));
    assert_eq!(disk.kept_bytes, 8 * MIB);
    still.assert_restores(&grown, "grown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lost_its_end_and_grew_again_is_found_and_read_whole() {
    let mut still = Still::new(Format::Raw, 128 * MIB).await;
    still.write(1, 90 * MIB, 6 * MIB);
    still.backup().await;
    for size in [93 * MIB, 128 * MIB] {
        still.guest.qmp().execute("block_resize", json!({"node-name": "vda", "size": size})).unwrap();
    }
    // What is written since is marked, and hides nothing of what was lost below.
    still.write(2, 94 * MIB, 2 * MIB);
    let (outcome, disk) = still.backup().await;
    assert_eq!(disk.mode, DiskMode::Rescan);
    assert!(disk.reason.as_ref().unwrap().contains("bitmap wrong"), "{disk:?}");
    still.assert_restores(&outcome, "whole").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_changed_behind_the_bitmaps_back_is_found_and_the_disk_read_whole() {
    let mut still = Still::new(Format::Raw, 16 * MIB).await;
    still.write(1, 0, 16 * MIB);
    still.backup().await;
    let file = std::fs::File::options().write(true).open(still.image()).unwrap();
    file.write_all_at(b"behind QEMU's back", 7 * MIB).unwrap();
    // Believed, the bitmap hides it.
    let (_, disk) = still.backup().await;
    assert_eq!((disk.mode, disk.read_bytes), (DiskMode::Bitmap, 0));
    // Checked, it does not.
    let all = BackupRequest { recheck_ppm: Some(1_000_000), ..still.request() };
    let (found, disk) = still.backup_as(all.clone()).await;
    assert_eq!(disk.mode, DiskMode::Rescan);
    assert!(disk.reason.as_ref().unwrap().contains("bitmap wrong: the chunk at byte 7340032"), "{disk:?}");
    still.assert_restores(&found, "found").await;
    let record = still.rig.job.repository.record(found.uuid).await.unwrap();
    assert_eq!(record.disks[0].reason, disk.reason);
    // And the next one is an increment again, whose check finds nothing.
    let (_, disk) = still.backup_as(all).await;
    assert_eq!((disk.mode, disk.rechecked_bytes, disk.kept_bytes), (DiskMode::Bitmap, 16 * MIB, 16 * MIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn scattered_changes_on_a_disk_of_ten_tebibytes_cost_their_paths() {
    const TIB: u64 = 1 << 40;
    let mut still = Still::new(Format::Raw, 10 * TIB).await;
    still.write(1, 0, MIB);
    still.backup().await;
    const WRITES: u64 = 200;
    for number in 0..WRITES {
        still.write(2, number * (10 * TIB / WRITES) / 4096 * 4096, 4096);
    }
    let (outcome, disk) = still.backup().await;
    assert_eq!(disk.mode, DiskMode::Bitmap);
    assert!(disk.read_bytes <= WRITES * 2 * CHUNK, "{disk:?}");
    // 84 million chunks have a tree of four levels, the upper two of which are shared.
    assert!(disk.tree_nodes_written <= 2 * WRITES + 8, "{disk:?}");
    assert!(disk.tree_nodes_read <= 64, "{disk:?}");
    let path = still.rig.path("huge");
    let asked = restoring(outcome.uuid, VolumeSpec::Raw(path.clone()));
    still.rig.try_restore(asked).await.unwrap();
    let (copy, disk) = (std::fs::File::open(&path).unwrap(), std::fs::File::open(still.image()).unwrap());
    for number in 0..WRITES {
        let offset = number * (10 * TIB / WRITES) / 4096 * 4096;
        let (mut restored, mut original) = ([0; 8192], [1; 8192]);
        copy.read_exact_at(&mut restored, offset).unwrap();
        disk.read_exact_at(&mut original, offset).unwrap();
        assert_eq!(restored, original, "at {offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_whose_tree_cannot_be_read_costs_a_whole_read_in_the_same_backup() {
    let mut still = Still::new(Format::Raw, 64 * MIB).await;
    still.write(1, 0, 64 * MIB);
    still.backup().await;
    let tree = still.rig.packs();
    // Its record is in packs of its own, and its tree is that of the first.
    still.backup().await;
    for pack in tree {
        std::fs::remove_file(pack).unwrap();
    }
    still.rig.reopen().await;
    still.write(2, MIB, MIB);
    let (_, disk) = still.backup().await;
    assert_eq!((disk.mode, disk.read_bytes), (DiskMode::Rescan, 64 * MIB));
    assert!(disk.reason.as_ref().unwrap().contains("the earlier backup cannot be read"), "{disk:?}");
}
