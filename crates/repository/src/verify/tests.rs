//! Verification against repositories that are damaged in one way each.

use std::collections::BTreeSet;

use aquifer_format::log::BlobPlace;
use aquifer_format::{ChunkId, Node, PackKind};
use aquifer_store::{GetRange, ObjectStore};

use super::*;
use crate::nodes::Nodes;
use crate::rig::{Backup, Rig, noise, run};
use crate::trees::TreeBuilder;
use crate::whole::WholePack;
use crate::writer::{ChunkWriter, PlainChunk};

const CHUNK: u32 = 1024;
const CHUNK_BYTES: u64 = 1024;
const BACKUP: Uuid = Uuid::from_u128(1);

fn request(level: VerifyLevel) -> VerifyRequest {
    VerifyRequest { level, backups: vec![BACKUP], sample_percent: 100 }
}

fn disk(name: &str, tree: TreeSpec, base: Option<TreeSpec>) -> Disk {
    Disk { backup: BACKUP, domain: "guest".to_owned(), name: name.to_owned(), tree, base }
}

async fn verify(rig: &Rig, disks: Vec<Disk>, level: VerifyLevel) -> VerifyReport {
    rig.forget_meta();
    let mut run = Run::new(rig.parts.clone(), Ages::default(), vec![BACKUP], &request(level));
    for disk in disks {
        run.walk_disk(disk).await.unwrap();
    }
    run.check_sizes().await.unwrap();
    run.read_packs(&|_| ()).await.unwrap();
    run.report().await.unwrap()
}

async fn verify_one(rig: &Rig, backup: &Backup, level: VerifyLevel) -> VerifyReport {
    verify(rig, vec![disk("vda", backup.tree, None)], level).await
}

/// A repository with one backup of a disk of a hundred chunks, the last of them short.
async fn one_backup() -> (Rig, Backup) {
    let rig = Rig::new(CHUNK);
    let backup = rig.backup(&noise(1, 100 * 1024 - 7), TreeSpec::default(), None).await.unwrap();
    (rig, backup)
}

fn pack_of(rig: &Rig, kind: PackKind) -> PackSummary {
    rig.parts.index.packs().unwrap().into_iter().find(|pack| pack.kind == kind).unwrap()
}

#[test]
fn a_sound_backup_is_clean_at_every_level() {
    run(async {
        let (rig, backup) = one_backup().await;
        for level in [VerifyLevel::Structure, VerifyLevel::Packs, VerifyLevel::Chunks] {
            let report = verify_one(&rig, &backup, level).await;
            assert!(report.is_clean(), "{report:?}");
            assert_eq!((report.nodes, report.chunks, report.packs), (1, 100, 3));
            let read = if level == VerifyLevel::Structure { 0 } else { 3 };
            assert_eq!(report.packs_read, read);
            assert_eq!(report.blobs_opened, if level == VerifyLevel::Chunks { 101 } else { 0 });
        }
    });
}

#[test]
fn a_missing_pack_is_found_without_reading_and_takes_its_chunks_along() {
    run(async {
        let (rig, backup) = one_backup().await;
        let lost = pack_of(&rig, PackKind::Data).pack;
        rig.store.delete(&layout::pack(&lost)).await.unwrap();
        let report = verify_one(&rig, &backup, VerifyLevel::Structure).await;
        assert_eq!(report.damage.len(), 1);
        assert_eq!(report.damage[0].object, DamagedObject::Pack(lost));
        assert!(report.damage[0].what.contains("missing"), "{report:?}");
        let [touched] = &report.touched[..] else { panic!("{report:?}") };
        assert_eq!((touched.disk.as_str(), touched.domain.as_str()), ("vda", "guest"));
        assert_eq!(touched.ranges.len(), 1);
        let (offset, bytes) = touched.ranges[0];
        assert!(offset == 0 && bytes > 50 * CHUNK_BYTES && bytes < 99 * CHUNK_BYTES, "{touched:?}");
    });
}

#[test]
fn a_pack_of_another_size_is_found_without_reading() {
    run(async {
        let (rig, backup) = one_backup().await;
        let pack = pack_of(&rig, PackKind::Data).pack;
        let key = layout::pack(&pack);
        let whole = rig.store.get(&key, GetRange::Whole).await.unwrap();
        rig.store.put(&key, whole.slice(..whole.len() - 1)).await.unwrap();
        let report = verify_one(&rig, &backup, VerifyLevel::Structure).await;
        assert_eq!(report.damage[0].object, DamagedObject::Pack(pack));
        assert!(report.damage[0].what.contains(&whole.len().to_string()), "{report:?}");
    });
}

#[test]
fn a_flipped_bit_is_a_damaged_pack_for_the_hash_and_one_chunk_for_a_full_look() {
    run(async {
        let (rig, backup) = one_backup().await;
        let id = backup.stored[42].id().unwrap();
        let place = rig.parts.locate(&[id]).unwrap()[0].unwrap();
        rig.flip(&place.pack, place.row.offset as usize + 100).await;
        assert!(verify_one(&rig, &backup, VerifyLevel::Structure).await.is_clean());

        let report = verify_one(&rig, &backup, VerifyLevel::Packs).await;
        assert_eq!(report.damage.len(), 1);
        assert_eq!(report.damage[0].object, DamagedObject::Pack(place.pack));
        assert!(report.touched[0].ranges[0].1 > 50 * CHUNK_BYTES);

        let report = verify_one(&rig, &backup, VerifyLevel::Chunks).await;
        assert!(report.damage.iter().any(|damage| damage.object == DamagedObject::Chunk(id)), "{report:?}");
        assert_eq!(report.touched[0].ranges, [(42 * CHUNK_BYTES, CHUNK_BYTES)]);
    });
}

#[test]
fn no_flipped_bit_of_any_pack_escapes_the_hash() {
    run(async {
        let rig = Rig::new(256);
        let backup = rig.backup(&noise(1, 700), TreeSpec::default(), None).await.unwrap();
        for pack in rig.parts.index.packs().unwrap() {
            for at in 0..usize::try_from(pack.bytes).unwrap() {
                rig.flip(&pack.pack, at).await;
                let report = verify_one(&rig, &backup, VerifyLevel::Chunks).await;
                assert!(!report.is_clean(), "byte {at} of {}", pack.pack);
                rig.flip(&pack.pack, at).await;
            }
        }
        assert!(verify_one(&rig, &backup, VerifyLevel::Chunks).await.is_clean());
    });
}

#[test]
fn a_damaged_node_takes_everything_below_it_along() {
    run(async {
        let rig = Rig::new(16);
        let backup = rig.backup(&noise(1, 3 << 20), TreeSpec::default(), None).await.unwrap();
        let root = Nodes::new(rig.parts.clone()).get(&backup.tree.root.unwrap(), 2).await.unwrap();
        let inner = root.get(1).unwrap();
        let place = rig.parts.locate(&[inner]).unwrap()[0].unwrap();
        rig.flip(&place.pack, place.row.offset as usize + 50).await;
        let report = verify_one(&rig, &backup, VerifyLevel::Structure).await;
        assert_eq!(report.damage.len(), 1, "{report:?}");
        assert_eq!(report.damage[0].object, DamagedObject::Node(inner));
        assert_eq!(report.touched[0].ranges, [(1 << 20, 1 << 20)]);
    });
}

#[test]
fn a_quarantined_chunk_without_another_copy_is_damage() {
    run(async {
        let (rig, backup) = one_backup().await;
        let id = backup.stored[99].id().unwrap();
        let pack = rig.parts.locate(&[id]).unwrap()[0].unwrap().pack;
        rig.damage(&[], vec![BlobPlace { pack, id }]);
        let report = verify_one(&rig, &backup, VerifyLevel::Structure).await;
        assert_eq!(report.damage[0].object, DamagedObject::Chunk(id));
        assert!(report.damage[0].what.contains("quarantined"), "{report:?}");
        assert_eq!(report.touched[0].ranges, [(99 * CHUNK_BYTES, CHUNK_BYTES - 7)]);
    });
}

#[test]
fn a_chunk_of_the_wrong_length_for_its_place_is_damage() {
    run(async {
        let rig = Rig::new(CHUNK);
        let session = rig.session();
        let short = noise(5, 100);
        let mut out = Vec::new();
        let mut writer = ChunkWriter::new(Arc::clone(&session.plane));
        writer.store(&[PlainChunk { bytes: &short, parent: None }], &mut out).unwrap();
        tokio::task::block_in_place(|| writer.finish()).unwrap();
        let mut node = Node::new(0);
        node.set(3, out[0].id());
        let mut builder = TreeBuilder::over(&session.plane, TreeSpec::default(), 10 * CHUNK_BYTES);
        builder.set_leaf(0, node).await.unwrap();
        let built = builder.finish().await.unwrap();
        session.commit().await.unwrap();
        let tree = TreeSpec { root: built.root, size_bytes: 10 * CHUNK_BYTES };
        let report = verify(&rig, vec![disk("vda", tree, None)], VerifyLevel::Structure).await;
        assert_eq!(report.damage[0].object, DamagedObject::Chunk(out[0].id().unwrap()));
        assert!(report.damage[0].what.contains("100 bytes"), "{report:?}");
        assert_eq!(report.touched[0].ranges, [(3 * CHUNK_BYTES, CHUNK_BYTES)]);
    });
}

#[test]
fn an_index_that_lies_about_a_chunk_is_found_by_a_full_look() {
    run(async {
        let (rig, backup) = one_backup().await;
        let packs = rig.parts.index.packs().unwrap();
        let id = backup.stored[7].id().unwrap();
        let place = rig.parts.locate(&[id]).unwrap()[0].unwrap();
        let body = rig.store.get(&layout::pack(&place.pack), GetRange::Whole).await.unwrap();
        let whole = WholePack::open(&rig.parts.ring, &place.pack, &body).unwrap();
        let mut rows = whole.rows().to_vec();
        for row in rows.iter_mut().filter(|row| row.id == id) {
            row.offset += 1;
        }
        let summary = packs.iter().find(|pack| pack.pack == place.pack).unwrap();
        let lie = aquifer_format::SegmentPack {
            name: summary.name,
            stored_as: summary.pack,
            bytes: summary.bytes,
            kind: summary.kind,
            header: place.header,
            hash: summary.hash,
            rows,
        };
        rig.parts.index.remove_packs(&[place.pack]).unwrap();
        rig.parts.index.insert_packs(&[lie]).unwrap();
        assert!(verify_one(&rig, &backup, VerifyLevel::Packs).await.is_clean());
        let report = verify_one(&rig, &backup, VerifyLevel::Chunks).await;
        assert_eq!(report.damage[0].object, DamagedObject::Chunk(id));
        assert!(report.damage[0].what.contains("rebuild the index"), "{report:?}");
    });
}

#[test]
fn a_table_that_does_not_open_makes_the_pack_damaged() {
    run(async {
        let (rig, backup) = one_backup().await;
        let pack = pack_of(&rig, PackKind::Data);
        rig.flip(&pack.pack, usize::try_from(pack.bytes).unwrap() - 100).await;
        let report = verify_one(&rig, &backup, VerifyLevel::Chunks).await;
        assert_eq!(report.damage[0].object, DamagedObject::Pack(pack.pack));
    });
}

#[test]
fn after_a_commit_only_what_the_parent_lacks_is_read() {
    run(async {
        let rig = Rig::new(16);
        let mut bytes = noise(1, 3 << 20);
        let first = rig.backup(&bytes, TreeSpec::default(), None).await.unwrap();
        bytes[1_000_000] ^= 1;
        let dirty = BTreeSet::from([1_000_000 / 16]);
        let second = rig.backup(&bytes, first.tree, Some(&dirty)).await.unwrap();
        let report =
            verify(&rig, vec![disk("vda", second.tree, Some(first.tree))], VerifyLevel::Structure).await;
        assert!(report.is_clean(), "{report:?}");
        // Three new nodes, and the three at their places in the parent.
        assert_eq!((report.nodes, report.chunks, report.packs), (6, 1, 2));
        let same =
            verify(&rig, vec![disk("vda", first.tree, Some(first.tree))], VerifyLevel::Structure).await;
        assert_eq!((same.nodes, same.chunks, same.packs), (0, 0, 0));
    });
}

#[test]
fn a_resized_disk_is_compared_with_its_parent_at_the_right_places() {
    run(async {
        let rig = Rig::new(16);
        let bytes = noise(1, 3 << 20);
        let small = rig.backup(&bytes[..3_000], TreeSpec::default(), None).await.unwrap();
        let large = rig.backup(&bytes, TreeSpec::default(), None).await.unwrap();
        for (new, base) in [(&large, &small), (&small, &large)] {
            let report =
                verify(&rig, vec![disk("vda", new.tree, Some(base.tree))], VerifyLevel::Structure).await;
            assert!(report.is_clean(), "{report:?}");
        }
        let grown = rig
            .backup(&[&bytes[..3_000], &[0; 1 << 20]].concat(), small.tree, Some(&BTreeSet::new()))
            .await
            .unwrap();
        let report =
            verify(&rig, vec![disk("vda", grown.tree, Some(small.tree))], VerifyLevel::Structure).await;
        assert!(report.is_clean() && report.nodes <= 5, "{report:?}");
    });
}

#[test]
fn damage_in_what_the_parent_lacks_is_found_after_a_commit() {
    run(async {
        let (rig, first) = one_backup().await;
        let mut bytes = noise(1, 100 * 1024 - 7);
        bytes[50 * 1024] ^= 1;
        let second = rig.backup(&bytes, first.tree, Some(&BTreeSet::from([50]))).await.unwrap();
        let id = second.stored.iter().find_map(|stored| match stored {
            crate::Stored::New { id, .. } => Some(*id),
            _ => None,
        });
        let pack = rig.parts.locate(&[id.unwrap()]).unwrap()[0].unwrap().pack;
        rig.store.delete(&layout::pack(&pack)).await.unwrap();
        let report =
            verify(&rig, vec![disk("vda", second.tree, Some(first.tree))], VerifyLevel::Structure).await;
        assert_eq!(report.damage[0].object, DamagedObject::Pack(pack));
    });
}

#[test]
fn trees_that_share_nodes_are_walked_once_and_blamed_each() {
    run(async {
        let (rig, backup) = one_backup().await;
        let disks = || vec![disk("vda", backup.tree, None), disk("vdb", backup.tree, None)];
        let report = verify(&rig, disks(), VerifyLevel::Structure).await;
        assert_eq!((report.packs, report.is_clean()), (3, true));
        let id = backup.stored[42].id().unwrap();
        let place = rig.parts.locate(&[id]).unwrap()[0].unwrap();
        rig.flip(&place.pack, place.row.offset as usize + 100).await;
        let report = verify(&rig, disks(), VerifyLevel::Chunks).await;
        let names: Vec<&str> = report.touched.iter().map(|touched| touched.disk.as_str()).collect();
        assert_eq!(names, ["vda", "vdb"]);
    });
}

#[test]
fn a_record_that_cannot_be_read_is_a_finding_and_a_silent_store_an_error() {
    run(async {
        let (rig, _) = one_backup().await;
        let mut run =
            Run::new(rig.parts.clone(), Ages::default(), vec![BACKUP], &request(VerifyLevel::Structure));
        run.walk(BACKUP, None, Err(Error::Missing { chunk: ChunkId([1; 32]) })).await.unwrap();
        assert!(run.walk(BACKUP, None, Err(Error::Closed)).await.is_err());
        let report = run.report().await.unwrap();
        assert_eq!(report.damage[0].object, DamagedObject::Record(BACKUP));
    });
}

#[test]
fn a_sample_reads_some_of_the_packs() {
    run(async {
        let mut rig = Rig::new(CHUNK);
        rig.parts.settings.pack_bytes = 1024;
        let backup = rig.backup(&noise(1, 200 * 1024), TreeSpec::default(), None).await.unwrap();
        let mut run =
            Run::new(rig.parts.clone(), Ages::default(), vec![BACKUP], &request(VerifyLevel::Packs));
        run.sample_percent = 30;
        run.walk_disk(disk("vda", backup.tree, None)).await.unwrap();
        run.read_packs(&|_| ()).await.unwrap();
        let report = run.report().await.unwrap();
        assert_eq!(report.packs, 201);
        // 201 packs of about the same size, and one that ends the sample.
        assert!((55..=66).contains(&report.packs_read), "{}", report.packs_read);
        assert_eq!(report.never_read, 201 - report.packs_read);
    });
}
