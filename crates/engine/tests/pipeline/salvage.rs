//! Restores from a repository that is damaged: another copy where there is one, and what is whole where there is none.

use std::collections::BTreeMap;
use std::fs;

use aquifer_engine::{Kind, MissingRange, RestoreRequest, RestoredDisk, VolumeSpec, backup};

use crate::rig::{CHUNK, Rig, assert_same, image, noise, request, restoring};

const MIB: u64 = 1 << 20;

/// The packs of each session, those of data alone.
fn data_packs_by_session(rig: &Rig) -> Vec<Vec<std::path::PathBuf>> {
    let mut sessions: BTreeMap<String, Vec<std::path::PathBuf>> = BTreeMap::new();
    for pack in rig.packs() {
        let bytes = fs::metadata(&pack).unwrap().len();
        if bytes > CHUNK {
            let session = pack.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            sessions.entry(session).or_default().push(pack);
        }
    }
    sessions.into_values().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_pack_is_gone_is_read_from_another_host_s_copy() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 2 * MIB, &[(0, noise(9, 2 << 20))]);
    let other = rig.other_host("second-state").await;
    let slow = || rig.nbdkit(&source, &["--readonly", "--filter=delay", "rdelay=200ms"]);
    let (first, second) = (slow(), slow());
    let mut of_the_other = request(&[("vda", &second)]);
    of_the_other.domain = "web02".into();
    // Neither knows yet what the other one stores.
    let (one, two) =
        tokio::join!(backup(&rig.job, request(&[("vda", &first)])), backup(&other, of_the_other));
    let (one, two) = (one.unwrap(), two.unwrap());
    let sessions = data_packs_by_session(&rig);
    assert_eq!(sessions.len(), 2, "both stored the chunks: {sessions:?}");
    // A session has as many packs as threads found something to do.
    let remove = |packs: &[std::path::PathBuf]| packs.iter().for_each(|pack| fs::remove_file(pack).unwrap());
    remove(&sessions[0]);
    for uuid in [one.uuid, two.uuid] {
        assert_same(&source, &rig.restore_to(uuid, &uuid.to_string()).await);
    }
    remove(&sessions[1]);
    let volume = VolumeSpec::Raw(rig.path("neither"));
    let error = rig.try_restore(restoring(one.uuid, volume)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

fn bytes(offset: u64, length: u64) -> std::ops::Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
}

async fn salvaged(rig: &Rig, request: RestoreRequest) -> RestoredDisk {
    let outcome = rig.try_restore(RestoreRequest { salvage: true, ..request }).await.unwrap();
    let disk = outcome.disks.into_iter().next().unwrap();
    let sum = disk.written_bytes + disk.skipped_bytes + disk.zero_bytes + disk.missing_bytes;
    assert_eq!(sum, disk.size_bytes, "{disk:?}");
    disk
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salvage_writes_what_is_whole_names_the_rest_and_leaves_the_volume_there_alone() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 6 * MIB, &[(0, noise(10, 4 << 20))]);
    let outcome = rig.backup_image(&source).await;
    let sound = salvaged(&rig, restoring(outcome.uuid, VolumeSpec::Raw(rig.path("sound")))).await;
    assert_eq!((sound.missing_bytes, sound.missing), (0, vec![]));
    let lost = data_packs_by_session(&rig)[0][1].clone();
    fs::remove_file(lost).unwrap();
    let target = rig.path("target");
    fs::write(&target, vec![0xee; 6 << 20]).unwrap();
    let request = restoring(outcome.uuid, VolumeSpec::Raw(target.clone()));
    let disk = salvaged(&rig, RestoreRequest { rewrite_existing: true, ..request }).await;
    let sum: u64 = disk.missing.iter().map(|range| range.length).sum();
    assert!(sum == disk.missing_bytes && (2 * CHUNK..4 * MIB).contains(&sum), "{disk:?}");
    assert!(disk.missing.is_sorted_by(|one, next| one.offset + one.length < next.offset), "{disk:?}");
    let mut expected = fs::read(&source).unwrap();
    for MissingRange { offset, length } in &disk.missing {
        expected[bytes(*offset, *length)].fill(0xee);
    }
    assert!(fs::read(&target).unwrap() == expected, "{disk:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salvage_into_an_export_loses_the_chunk_with_the_flipped_bit_and_nothing_else() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 4 * MIB, &[(0, noise(11, 4 << 20))]);
    let outcome = rig.backup_image(&source).await;
    crate::faults::flip_a_bit(&rig);
    let target = rig.path("target");
    image(&target, 4 * MIB, &[]);
    let server = rig.nbdkit(&target, &[]);
    let volume = VolumeSpec::Nbd(server.uri("").parse().unwrap());
    let disk = salvaged(&rig, restoring(outcome.uuid, volume)).await;
    let [MissingRange { offset, length: CHUNK }] = disk.missing[..] else { panic!("{disk:?}") };
    let mut expected = fs::read(&source).unwrap();
    expected[bytes(offset, CHUNK)].fill(0);
    assert!(fs::read(&target).unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_tree_is_missing_as_a_whole_and_a_dry_run_says_so_before() {
    let mut rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, 3 * MIB, &[(0, noise(12, 1 << 20))]);
    let outcome = rig.backup_image(&source).await;
    rig.reopen().await;
    // The record is read again and again, and kept.
    let record = rig.job.repository.record(outcome.uuid).await.unwrap();
    let root = rig.job.repository.locate(&[record.disks[0].root.unwrap()]).unwrap()[0].unwrap();
    let meta = rig.packs().into_iter().find(|pack| pack.ends_with(root.pack.to_string())).unwrap();
    let mut bytes = fs::read(&meta).unwrap();
    bytes[root.row.offset as usize + 20] ^= 1;
    fs::remove_file(&meta).unwrap();
    fs::write(&meta, bytes).unwrap();
    rig.job.repository = rig.other_host("third-state").await.repository;
    for dry_run in [true, false] {
        let request = restoring(outcome.uuid, VolumeSpec::Raw(rig.path("target")));
        let disk = salvaged(&rig, RestoreRequest { dry_run, ..request }).await;
        assert_eq!(disk.missing, [MissingRange { offset: 0, length: 3 * MIB }]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salvage_is_not_compared_with_the_backup() {
    let rig = Rig::new().await;
    let source = rig.path("source");
    image(&source, MIB, &[]);
    let outcome = rig.backup_image(&source).await;
    let request = restoring(outcome.uuid, VolumeSpec::Raw(rig.path("target")));
    let error = rig.try_restore(RestoreRequest { salvage: true, verify: true, ..request }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
}
