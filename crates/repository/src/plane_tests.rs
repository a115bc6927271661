//! The data plane of a session: deduplication, packs, uploads, failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_format::{BlobKind, PackName, SessionId};
use aquifer_store::{BoxFuture, Bytes, Created, GetRange, Key, Memory, ObjectStore, Page};

use crate::plane::{PUBLISH_MS, PUBLISH_PACKS};
use crate::rig::{Rig, cause, noise, run};
use crate::settings::Compression;
use crate::trees::TreeSpec;
use crate::writer::{ChunkWriter, PlainChunk, Stored};
use crate::{Error, layout};

const CHUNK: u32 = 4096;

fn chunk(bytes: &[u8]) -> PlainChunk<'_> {
    PlainChunk { bytes, parent: None }
}

#[test]
fn zeros_are_not_stored_and_repetitions_are_stored_once() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = noise(1, 10 * CHUNK as usize);
        disk[4096..8192].fill(0);
        disk.copy_within(0..4096, 12288);
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        assert_eq!(backup.count(|stored| *stored == Stored::Zero), 1);
        assert_eq!(backup.count(|stored| matches!(stored, Stored::Known(_))), 1);
        assert_eq!(backup.new_chunks(), 8);
        assert_eq!(rig.read(backup.tree).await.unwrap(), disk);
    });
}

#[test]
fn a_second_session_and_another_disk_find_what_is_published() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 100 * CHUNK as usize);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let session = rig.session();
        let again = session.backup(&disk, first.tree, None).await.unwrap();
        assert_eq!(again.count(|stored| matches!(stored, Stored::Kept(_))), 100);
        let other = session.backup(&disk[40 * 4096..], TreeSpec::default(), None).await.unwrap();
        assert_eq!(other.count(|stored| matches!(stored, Stored::Known(_))), 60);
        session.commit().await.unwrap();
        let packs = rig.packs().await;
        assert_eq!(
            session.plane.dependencies().iter().filter(|pack| packs.contains(pack)).count(),
            packs.len() - 1
        );
        assert_eq!(rig.read(other.tree).await.unwrap(), disk[40 * 4096..]);
    });
}

#[test]
fn threads_that_meet_the_same_new_chunks_store_each_once() {
    run(async {
        let rig = Rig::new(CHUNK);
        let session = rig.session();
        let chunks: Vec<Vec<u8>> = (0..200).map(|seed| noise(seed, 4096)).collect();
        let new = AtomicUsize::new(0);
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut writer = ChunkWriter::new(Arc::clone(&session.plane));
                        let mut out = Vec::new();
                        for batch in chunks.chunks(7) {
                            let batch: Vec<_> = batch.iter().map(|bytes| chunk(bytes)).collect();
                            writer.store(&batch, &mut out).unwrap();
                            let stored =
                                out.iter().filter(|stored| matches!(stored, Stored::New { .. })).count();
                            new.fetch_add(stored, Ordering::Relaxed);
                        }
                        writer.finish().unwrap();
                    });
                }
            });
        });
        session.commit().await.unwrap();
        assert_eq!(new.load(Ordering::Relaxed), 200);
        assert_eq!(session.plane.totals().blobs, 200);
        assert_eq!(session.plane.dedup().claims(), 0);
    });
}

#[test]
fn a_condemned_copy_is_stored_again() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 30 * CHUNK as usize);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let condemned = rig.packs().await;
        rig.quarantine(&condemned);
        let session = rig.session();
        let ids: Vec<_> = first.stored.iter().filter_map(Stored::id).collect();
        assert!(session.plane.live_many(&ids).unwrap().iter().all(|live| !live));
        let again = session.backup(&disk, first.tree, None).await.unwrap();
        assert_eq!(again.new_chunks(), 30);
        assert!(session.plane.live_many(&ids).unwrap().iter().all(|live| *live));
        session.commit().await.unwrap();
        for pack in &condemned {
            rig.store.delete(&layout::pack(pack)).await.unwrap();
        }
        assert_eq!(rig.read(again.tree).await.unwrap(), disk);
    });
}

#[test]
fn a_dependency_that_was_condemned_is_copied_into_the_session() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 30 * CHUNK as usize);
        rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let session = rig.session();
        let again = session.backup(&disk, TreeSpec::default(), None).await.unwrap();
        assert_eq!(again.new_chunks(), 0);
        let condemned = session.plane.dependencies();
        rig.quarantine(&condemned);
        for pack in &condemned {
            session.plane.store_again(pack).await.unwrap();
        }
        session.commit().await.unwrap();
        for pack in &condemned {
            rig.store.delete(&layout::pack(pack)).await.unwrap();
        }
        rig.forget_meta();
        assert_eq!(rig.read(again.tree).await.unwrap(), disk);
        let error = session.plane.store_again(&condemned[0]).await.unwrap_err();
        assert!(matches!(error, Error::PackLost { pack, .. } if pack == condemned[0]), "{error}");
    });
}

#[test]
fn a_publish_is_due_after_many_packs_or_some_minutes() {
    run(async {
        let mut rig = Rig::new(CHUNK);
        rig.parts.settings.pack_bytes = 4096;
        let session = rig.session();
        let disk = noise(1, PUBLISH_PACKS * 3 * CHUNK as usize);
        session.backup(&disk, TreeSpec::default(), None).await.unwrap();
        session.plane.flush().await.unwrap();
        assert!(session.publisher.published.load(Ordering::Relaxed) >= 2);
        session.commit().await.unwrap();
        assert!(!session.plane.publish_due());
        session.backup(&noise(2, 4096), TreeSpec::default(), None).await.unwrap();
        session.plane.flush().await.unwrap();
        assert!(!session.plane.publish_due());
        rig.world.now_ms.fetch_add(PUBLISH_MS, Ordering::Relaxed);
        assert!(session.plane.publish_due());
        assert_eq!(session.plane.take_stored().len(), 2);
        assert!(!session.plane.publish_due());
    });
}

/// Words in no order, which a stronger level of zstd makes smaller.
fn prose(seed: u64, bytes: usize) -> Vec<u8> {
    let dice = noise(seed, bytes);
    dice.iter()
        .flat_map(|die| format!("word{} ", u32::from(*die) * 7919 % 97).into_bytes())
        .take(bytes)
        .collect()
}

#[test]
fn a_thread_that_waits_for_its_chunks_compresses_them_more_with_auto() {
    let stored = |compression| {
        let mut rig = Rig::new(64 << 10);
        rig.parts.settings.pack_bytes = 64 << 10;
        rig.parts.settings.compression = compression;
        let session = rig.session();
        let mut writer = ChunkWriter::new(Arc::clone(&session.plane));
        let (mut out, mut total) = (Vec::new(), 0);
        for number in 0..32 {
            // The chunk before was done long ago.
            rig.world.now_ms.fetch_add(1000, Ordering::Relaxed);
            writer.store(&[chunk(&prose(number, 64 << 10))], &mut out).unwrap();
            let Stored::New { stored_bytes, .. } = out[0] else { panic!("{out:?}") };
            total += stored_bytes;
        }
        writer.finish().unwrap();
        total
    };
    run(async {
        let (level1, level12) = (stored(Compression::Level(1)), stored(Compression::Level(12)));
        let auto = stored(Compression::Auto);
        assert!(level12 < auto && auto < level1, "{level12} < {auto} < {level1}");
    });
}

#[test]
fn what_is_in_flight_is_known_before_and_after_it_is_published() {
    run(async {
        let rig = Rig::new(CHUNK);
        let session = rig.session();
        let disk = noise(1, 5 * CHUNK as usize);
        session.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let again = session.backup(&disk, TreeSpec::default(), None).await.unwrap();
        assert_eq!(again.new_chunks(), 0);
        assert_eq!(session.plane.dedup().claims(), 6);
        session.commit().await.unwrap();
        assert_eq!(session.plane.dedup().claims(), 0);
        let again = session.backup(&disk, TreeSpec::default(), None).await.unwrap();
        assert_eq!(again.new_chunks(), 0);
    });
}

#[test]
fn an_empty_or_too_long_chunk_fails_the_session() {
    for length in [0, CHUNK as usize + 1] {
        run(async {
            let rig = Rig::new(CHUNK);
            let session = rig.session();
            let mut writer = ChunkWriter::new(Arc::clone(&session.plane));
            let error = writer.store(&[chunk(&noise(1, length))], &mut Vec::new()).unwrap_err();
            assert!(
                matches!(cause(&error), Error::ChunkSize { bytes, limit: 4096 } if *bytes == length),
                "{error}"
            );
            assert!(matches!(writer.finish().unwrap_err(), Error::SessionFailed { .. }));
            assert!(session.plane.flush().await.is_err());
        });
    }
}

#[test]
fn a_writer_that_is_dropped_with_chunks_fails_the_session() {
    run(async {
        let rig = Rig::new(CHUNK);
        let session = rig.session();
        let mut writer = ChunkWriter::new(Arc::clone(&session.plane));
        writer.store(&[chunk(&noise(1, 100)), chunk(&noise(2, 100))], &mut Vec::new()).unwrap();
        assert!(matches!(session.plane.flush().await.unwrap_err(), Error::WritersOpen { open: 1 }));
        drop(writer);
        let error = session.plane.flush().await.unwrap_err();
        assert!(matches!(cause(&error), Error::WriterDropped { chunks: 2 }), "{error}");
    });
}

/// A store that refuses every pack from a number on.
#[derive(Debug)]
struct Full {
    inner: Memory,
    room: AtomicUsize,
}

impl ObjectStore for Full {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, aquifer_store::Result<()>> {
        let room = self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(1));
        if room.is_err() {
            let (store, key) = (self.describe(), key.to_string());
            return Box::pin(async { Err(aquifer_store::Error::NoSpace { store, key }) });
        }
        self.inner.put(key, bytes)
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, aquifer_store::Result<Created>> {
        self.inner.create(key, bytes)
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, aquifer_store::Result<Bytes>> {
        self.inner.get(key, range)
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, aquifer_store::Result<u64>> {
        self.inner.head(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a Key>,
    ) -> BoxFuture<'a, aquifer_store::Result<Page>> {
        self.inner.list(prefix, after)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, aquifer_store::Result<()>> {
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        "a full store".to_owned()
    }
}

#[test]
fn a_failed_upload_names_the_pack_stops_the_writers_and_spares_older_backups() {
    run(async {
        let store = Memory::new();
        let full = Arc::new(Full { inner: store.clone(), room: AtomicUsize::new(1_000) });
        let rig = Rig::over(CHUNK, full.clone(), store);
        let old = noise(1, 50 * CHUNK as usize);
        let first = rig.backup(&old, TreeSpec::default(), None).await.unwrap();
        full.room.store(3, Ordering::SeqCst);
        let session = rig.session();
        // More than all buffers hold: a writer that nobody wakes would wait for ever.
        let error = session.backup(&noise(2, 400 * CHUNK as usize), first.tree, None).await.unwrap_err();
        let Error::Upload { pack, source } = cause(&error) else { panic!("{error}") };
        assert_eq!(pack.session, SessionId::new([9; 10], 2));
        assert!(matches!(**source, aquifer_store::Error::NoSpace { .. }));
        assert!(error.to_string().contains(&pack.to_string()), "{error}");
        assert!(matches!(session.plane.flush().await.unwrap_err(), Error::SessionFailed { .. }));
        let meta = session.plane.store_meta(BlobKind::Record, b"{}").await;
        assert!(matches!(meta.unwrap_err(), Error::SessionFailed { .. }));
        assert_eq!(rig.read(first.tree).await.unwrap(), old);
        // What was acknowledged can still be published: the next session goes on from there.
        assert_eq!(session.plane.take_stored().len(), 3);
    });
}

#[test]
fn a_chunk_whose_pack_was_lost_is_stored_by_the_next_session() {
    run(async {
        let store = Memory::new();
        let full = Arc::new(Full { inner: store.clone(), room: AtomicUsize::new(0) });
        let rig = Rig::over(CHUNK, full.clone(), store);
        let disk = noise(1, 20 * CHUNK as usize);
        let session = rig.session();
        session.backup(&disk, TreeSpec::default(), None).await.ok();
        assert!(session.plane.flush().await.is_err());
        full.room.store(1_000, Ordering::SeqCst);
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        assert_eq!(backup.new_chunks(), 20);
        assert_eq!(rig.read(backup.tree).await.unwrap(), disk);
    });
}

#[test]
fn a_missing_pack_is_named() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 30 * CHUNK as usize);
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let lost = rig.parts.locate(&[backup.stored[17].id().unwrap()]).unwrap()[0].unwrap().pack;
        rig.store.delete(&layout::pack(&lost)).await.unwrap();
        let error = rig.read(backup.tree).await.unwrap_err();
        assert!(
            matches!(&error, Error::PackLost { pack, source } if *pack == lost && source.is_not_found()),
            "{error}"
        );
    });
}

#[test]
fn a_chunk_that_no_pack_holds_is_named() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 30 * CHUNK as usize);
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let id = backup.stored[17].id().unwrap();
        let lost = rig.parts.locate(&[id]).unwrap()[0].unwrap().pack;
        rig.parts.index.remove_packs(&[lost]).unwrap();
        assert!(matches!(rig.read(backup.tree).await.unwrap_err(), Error::Missing { .. }));
        assert_eq!(rig.parts.locate(&[id]).unwrap(), [None]);
    });
}

/// Flips a bit of every byte of every pack, one at a time, and reads the disk back.
#[test]
fn no_flipped_bit_ever_changes_a_disk() {
    run(async {
        let rig = Rig::new(256);
        let disk = [noise(1, 600), vec![5; 700]].concat();
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let mut refused = 0;
        for pack in rig.packs().await {
            let bytes = rig.store.head(&layout::pack(&pack)).await.unwrap();
            for at in 0..usize::try_from(bytes).unwrap() {
                rig.flip(&pack, at).await;
                rig.forget_meta();
                match rig.read(backup.tree).await {
                    Ok(read) => assert!(read == disk, "byte {at} of {pack} changed the disk"),
                    Err(Error::Damaged { pack: named, .. }) => {
                        assert_eq!(named, pack);
                        refused += 1;
                    }
                    Err(error) => panic!("byte {at} of {pack}: {error}"),
                }
                rig.flip(&pack, at).await;
            }
        }
        assert!(refused > 1_000, "{refused}");
    });
}

#[test]
fn a_pack_cut_short_is_named() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 9 * CHUNK as usize);
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        for pack in rig.packs().await {
            let key = layout::pack(&pack);
            let whole = rig.store.get(&key, GetRange::Whole).await.unwrap();
            rig.store.put(&key, whole.slice(..200)).await.unwrap();
            rig.forget_meta();
            match rig.read(backup.tree).await.unwrap_err() {
                Error::PackLost { pack: named, .. } | Error::PackShort { pack: named, .. } => {
                    assert_eq!(named, pack)
                }
                error => panic!("{error}"),
            }
            rig.store.put(&key, whole).await.unwrap();
        }
    });
}

#[test]
fn another_copy_of_a_damaged_node_is_used() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 9 * CHUNK as usize);
        let backup = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let first = rig.packs().await;
        rig.quarantine(&first);
        rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        rig.release();
        let node = rig.parts.copies(&backup.tree.root.unwrap()).unwrap();
        assert_eq!(node.len(), 2);
        rig.flip(&node[0].pack, node[0].row.offset as usize + 60).await;
        rig.forget_meta();
        assert_eq!(rig.read(backup.tree).await.unwrap(), disk);
    });
}

#[test]
fn pack_numbers_of_a_session_are_dense_and_its_own() {
    run(async {
        let rig = Rig::new(CHUNK);
        rig.backup(&noise(1, 100 * CHUNK as usize), TreeSpec::default(), None).await.unwrap();
        let mut packs = rig.packs().await;
        packs.sort();
        let session = SessionId::new([9; 10], 1);
        let dense: Vec<_> = (0..).map(|number| PackName { session, number }).take(packs.len()).collect();
        assert_eq!(packs, dense);
    });
}
