//! Verification of whole repositories: every kind of object damaged or gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_format::{FOOTER_BYTES, KdfParams, PACK_HEADER_BYTES, Record, decode_footer};
use aquifer_store::{Bytes, GetRange, Key, Memory, ObjectStore};
use uuid::Uuid;

use super::*;
use crate::rig::{TestWorld, noise, record_of, run, store_disk};
use crate::{BeginBackup, FENCE_AFTER, InitOptions, Secret, Settings, Stores};

const CHUNK: u32 = 64 << 10;
const SIZE: usize = 300 * 64 * 1024;

/// A repository in memory.
pub(super) struct Whole {
    pub(super) store: Memory,
    repository: Arc<Repository>,
}

impl Whole {
    pub(super) async fn new() -> Self {
        let store = Memory::new();
        let options = InitOptions {
            stores: Stores { packs: Arc::new(store.clone()), log: None },
            world: Arc::new(TestWorld::default()),
            state_dir: None,
            secret: Some(Secret::new(b"secret".to_vec())),
            recovery: None,
            kdf: KdfParams { memory_kib: 64, passes: 1, lanes: 1 },
            chunk_bytes: CHUNK,
            settings: Settings { pack_bytes: 4 << 20, ..Settings::default() },
        };
        Whole { store, repository: Repository::init(options).await.unwrap() }
    }

    /// Backs one disk up, over its state in `parent`.
    pub(super) async fn backup(
        &self,
        number: u128,
        parent: Option<&Record>,
        disk: &[u8],
        dirty: Option<&BTreeSet<u64>>,
    ) -> Record {
        let (backup, parent_id) = (Uuid::from_u128(number), parent.map(|parent| parent.backup));
        let begin = BeginBackup {
            backup,
            domain: "guest".to_owned(),
            parent: parent_id,
            bases: Vec::new(),
            fence_after: FENCE_AFTER,
        };
        let session = self.repository.begin_backup(begin.clone()).await.unwrap();
        let base = parent.map_or(TreeSpec::default(), |parent| TreeSpec {
            root: parent.disks[0].root,
            size_bytes: parent.disks[0].size_bytes,
        });
        let done = store_disk(&session.plane, disk, base, dirty).await.unwrap();
        let record = record_of(&begin, done.tree);
        session.commit(record.clone()).await.unwrap();
        record
    }

    async fn verify(&self, level: VerifyLevel) -> VerifyReport {
        self.repository.parts().meta_cache.clear();
        let request = VerifyRequest { level, backups: Vec::new(), sample_percent: 100 };
        self.repository.verify(&request, |_| ()).await.unwrap()
    }

    /// Every object that a verification answers for.
    pub(super) async fn keys(&self) -> Vec<Key> {
        let page = self.store.list("", None).await.unwrap();
        let lasting = |key: &Key| !key.as_str().starts_with("hb/") && !key.as_str().starts_with("probe/");
        page.entries.into_iter().map(|entry| entry.key).filter(lasting).collect()
    }

    pub(super) async fn get(&self, key: &Key) -> Bytes {
        self.store.get(key, GetRange::Whole).await.unwrap()
    }
}

/// What a report says of the object at `key`.
fn names(report: &VerifyReport, key: &Key) -> bool {
    let pack = key.as_str().strip_prefix("packs/");
    report.damage.iter().any(|damage| match &damage.object {
        DamagedObject::Object(object) => object == key.as_str(),
        DamagedObject::Pack(name) => Some(name.to_string().as_str()) == pack,
        _ => pack.is_some_and(|pack| damage.what.contains(pack)),
    })
}

#[test]
fn a_whole_repository_is_clean_at_every_level() {
    run(async {
        let whole = Whole::new().await;
        let disk = noise(1, SIZE);
        let first = whole.backup(1, None, &disk, None).await;
        whole.backup(2, Some(&first), &disk, None).await;
        for level in [VerifyLevel::Structure, VerifyLevel::Packs, VerifyLevel::Chunks] {
            let report = whole.verify(level).await;
            assert!(report.is_clean(), "{report:#?}");
            assert_eq!((report.backups.len(), report.chunks), (2, 300));
            assert!(report.objects > 5, "{}", report.objects);
        }
    });
}

#[test]
fn a_flipped_bit_in_any_object_is_found_and_the_object_named() {
    run(async {
        let whole = Whole::new().await;
        whole.backup(1, None, &noise(1, SIZE), None).await;
        let keys = whole.keys().await;
        let kinds: BTreeSet<_> = keys.iter().filter_map(|key| key.as_str().split('/').next()).collect();
        assert!(kinds.is_superset(&BTreeSet::from(["format", "index", "keys", "log", "packs"])), "{kinds:?}");
        for key in &keys {
            let sound = whole.get(key).await;
            for at in [0, sound.len() / 2, sound.len() - 1] {
                let mut bytes = sound.to_vec();
                bytes[at] ^= 1;
                whole.store.put(key, bytes.into()).await.unwrap();
                let report = whole.verify(VerifyLevel::Chunks).await;
                assert!(names(&report, key), "byte {at} of {key}: {report:#?}");
            }
            whole.store.put(key, sound).await.unwrap();
        }
        assert!(whole.verify(VerifyLevel::Chunks).await.is_clean());
    });
}

/// Opening every blob stands in for hashing the pack: it must notice what the hash would.
#[test]
fn a_flipped_bit_anywhere_in_header_table_or_footer_of_a_pack_is_found_by_opening_its_chunks() {
    run(async {
        let whole = Whole::new().await;
        whole.backup(1, None, &noise(1, 5 * CHUNK as usize), None).await;
        for key in whole.keys().await.iter().filter(|key| key.as_str().starts_with("packs/")) {
            let sound = whole.get(key).await;
            let footer = decode_footer(&sound[sound.len() - FOOTER_BYTES..], sound.len() as u64).unwrap();
            let around_the_blobs = (0..PACK_HEADER_BYTES).chain(footer.table_offset as usize..sound.len());
            for at in around_the_blobs {
                let mut bytes = sound.to_vec();
                bytes[at] ^= 1;
                whole.store.put(key, bytes.into()).await.unwrap();
                let report = whole.verify(VerifyLevel::Chunks).await;
                assert!(names(&report, key), "byte {at} of {} of {key}: {report:#?}", sound.len());
            }
            whole.store.put(key, sound).await.unwrap();
        }
        assert!(whole.verify(VerifyLevel::Chunks).await.is_clean());
    });
}

#[test]
fn a_missing_object_is_found_without_reading_data_and_named() {
    run(async {
        let whole = Whole::new().await;
        whole.backup(1, None, &noise(1, SIZE), None).await;
        for key in whole.keys().await {
            // A key slot that is gone is one that was retired, as far as anybody can tell.
            if key.as_str().starts_with("keys/") {
                continue;
            }
            let sound = whole.get(&key).await;
            whole.store.delete(&key).await.unwrap();
            let report = whole.verify(VerifyLevel::Structure).await;
            assert!(names(&report, &key), "{key}: {report:#?}");
            whole.store.put(&key, sound).await.unwrap();
        }
    });
}

#[test]
fn an_entry_that_was_replaced_by_an_older_one_breaks_the_chain() {
    run(async {
        let whole = Whole::new().await;
        whole.backup(1, None, &noise(1, SIZE), None).await;
        let (second, third) = (layout::log(2), layout::log(3));
        let older = whole.get(&second).await;
        whole.store.put(&third, older).await.unwrap();
        let report = whole.verify(VerifyLevel::Structure).await;
        assert!(names(&report, &third), "{report:#?}");
    });
}

#[test]
fn a_lost_pack_is_told_as_byte_ranges_of_the_backups_that_use_it() {
    run(async {
        let whole = Whole::new().await;
        let mut disk = noise(1, SIZE);
        let first = whole.backup(1, None, &disk, None).await;
        disk[7 * 65_536] ^= 1;
        whole.backup(2, Some(&first), &disk, Some(&BTreeSet::from([7]))).await;
        let leaf = crate::TreeReader::new(
            &whole.repository,
            TreeSpec { root: first.disks[0].root, size_bytes: SIZE as u64 },
        )
        .leaf(0)
        .await
        .unwrap();
        let place = whole.repository.locate(&[leaf.get(7).unwrap()]).unwrap()[0].unwrap();
        let key = layout::pack(&place.pack);
        let mut bytes = whole.get(&key).await.to_vec();
        bytes[place.row.offset as usize + 1_000] ^= 1;
        whole.store.put(&key, bytes.into()).await.unwrap();
        let report = whole.verify(VerifyLevel::Chunks).await;
        // The second backup has another chunk there.
        assert_eq!(report.touched.len(), 1, "{report:#?}");
        assert_eq!(report.touched[0].backup, first.backup);
        assert_eq!(report.touched[0].ranges, [(7 * 65_536, 65_536)]);
    });
}

#[test]
fn after_a_commit_the_look_costs_what_changed() {
    run(async {
        let whole = Whole::new().await;
        let mut disk = noise(1, SIZE);
        let first = whole.backup(1, None, &disk, None).await;
        assert!(whole.repository.verify_commit(first.backup).await.unwrap().is_clean());
        disk[200 * 65_536] ^= 1;
        let second = whole.backup(2, Some(&first), &disk, Some(&BTreeSet::from([200]))).await;
        let report = whole.repository.verify_commit(second.backup).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
        assert_eq!((report.chunks, report.packs), (1, 2));
        assert!(report.nodes <= 4, "{report:#?}");
    });
}

#[test]
fn an_unknown_backup_is_an_error_and_not_a_finding() {
    run(async {
        let whole = Whole::new().await;
        let backups = vec![Uuid::from_u128(9)];
        let request = VerifyRequest { level: VerifyLevel::Structure, backups, sample_percent: 100 };
        let error = whole.repository.verify(&request, |_| ()).await.unwrap_err();
        assert!(matches!(error, Error::UnknownBackup { .. }), "{error}");
    });
}
