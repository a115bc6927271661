//! The index follows the log, on disk and in memory, and can always be made anew.

use std::path::Path;
use std::sync::Mutex;

use aquifer_store::{Bytes, GetRange, Memory, ObjectStore};

use super::{Host, backup, begin, listed, restore, uuid};
use crate::rig::{noise, run};
use crate::{Access, Error, RebuildFrom, RebuildProgress, Repository};

fn disk() -> Vec<u8> {
    noise(3, 1 << 20)
}

/// A repository with two backups, and the state folder of the host that made them.
async fn two_backups(store: &Memory, folder: &Path) -> Host {
    let host = Host::new(1, store).with_state(folder);
    let repository = host.init().await.unwrap();
    backup(&repository, begin(1, "web"), &disk()).await.unwrap();
    backup(&repository, begin(2, "db"), &noise(4, 500_000)).await.unwrap();
    host
}

async fn both_restore(repository: &Repository) {
    assert_eq!(listed(repository), [uuid(1), uuid(2)]);
    assert_eq!(restore(repository, 1).await.unwrap(), disk());
    assert_eq!(restore(repository, 2).await.unwrap(), noise(4, 500_000));
}

/// What is in the index, in an order of its own.
fn content(repository: &Repository) -> Vec<String> {
    let mut packs: Vec<_> =
        repository.parts.index.packs().unwrap().iter().map(|pack| format!("{pack:?}")).collect();
    packs.sort();
    packs
}

#[test]
fn bucket_and_password_are_enough_to_restore() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        two_backups(&store, folder.path()).await;
        both_restore(&Host::new(2, &store).open(Access::Read).await.unwrap()).await;
        let elsewhere = tempfile::tempdir().unwrap();
        let host = Host::new(3, &store).with_state(elsewhere.path());
        both_restore(&host.open(Access::Read).await.unwrap()).await;
        both_restore(&host.open(Access::Write).await.unwrap()).await;
    });
}

#[test]
fn only_one_process_writes_the_index_and_readers_do_not_wait() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        let writer = host.open(Access::Write).await.unwrap();
        let second = Host { world: super::Seeded::new(77), ..host.clone() };
        let error = second.open(Access::Write).await.unwrap_err();
        assert!(matches!(&error, Error::IndexBusy { holder, .. } if holder.contains("process")), "{error}");
        let reader = second.open(Access::Read).await.unwrap();
        both_restore(&reader).await;
        // What is published while the reader is open it sees after a refresh.
        backup(&writer, begin(3, "mail"), &noise(9, 300_000)).await.unwrap();
        reader.refresh().await.unwrap();
        assert_eq!(restore(&reader, 3).await.unwrap(), noise(9, 300_000));
        drop((writer, reader));
        second.open(Access::Write).await.unwrap();
    });
}

#[test]
fn a_writer_that_waited_for_another_goes_on_from_its_index() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        let writer = host.open(Access::Write).await.unwrap();
        let second = Host { world: super::Seeded::new(77), ..host.clone() };
        let working = async {
            backup(&writer, begin(3, "mail"), &noise(9, 300_000)).await.unwrap();
            // An index that is made anew would have it again.
            let forgotten = writer.parts.index.packs().unwrap()[0].pack;
            writer.parts.index.remove_packs(&[forgotten]).unwrap();
            let left = content(&writer);
            drop(writer);
            left
        };
        let (opened, left) = tokio::join!(second.open(Access::Write), working);
        assert_eq!(content(&opened.unwrap()), left);
    });
}

#[test]
fn the_index_catches_up_with_other_hosts() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        let other = Host::new(5, &store).open(Access::Write).await.unwrap();
        backup(&other, begin(3, "mail"), &noise(9, 300_000)).await.unwrap();
        let again = host.open(Access::Write).await.unwrap();
        assert_eq!(content(&again), content(&other));
        let done = backup(&again, begin(4, "mail2"), &noise(9, 300_000)).await.unwrap();
        assert!(done.pack_bytes < 100_000, "the other host's chunks were found: {done:?}");
    });
}

#[test]
fn a_deleted_or_damaged_index_is_made_anew() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        let index = host.open(Access::Read).await.unwrap().local.as_ref().unwrap().index();
        std::fs::remove_dir_all(&index).unwrap();
        both_restore(&host.open(Access::Write).await.unwrap()).await;
        std::fs::write(index.join("CURRENT"), b"nonsense\n").unwrap();
        both_restore(&host.open(Access::Read).await.unwrap()).await;
        both_restore(&host.open(Access::Write).await.unwrap()).await;
    });
}

#[test]
fn an_index_of_another_history_is_made_anew() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        let repository = host.open(Access::Write).await.unwrap();
        let wrong = aquifer_index::Position {
            repository: repository.config().repository,
            seq: 3,
            hash: aquifer_format::EntryHash([9; 32]),
        };
        let before = content(&repository);
        repository.parts.index.set_position(&wrong).unwrap();
        repository.refresh().await.unwrap();
        assert_eq!(content(&repository), before);
        both_restore(&repository).await;
    });
}

#[test]
fn the_index_is_rebuilt_from_segments_or_from_packs_alone() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        let repository = host.open(Access::Write).await.unwrap();
        let before = content(&repository);
        for from in [RebuildFrom::Segments, RebuildFrom::Packs] {
            let heard = Mutex::new(Vec::new());
            let report = |progress: RebuildProgress| heard.lock().unwrap().push(progress);
            repository.rebuild_index(from, &report).await.unwrap();
            assert_eq!(content(&repository), before, "{from:?}");
            assert!(
                heard.lock().unwrap().last().is_some_and(|last| last.done == last.total && last.done > 0)
            );
            both_restore(&repository).await;
        }
    });
}

#[test]
fn a_lost_or_damaged_segment_is_made_up_for_from_the_packs() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        two_backups(&store, folder.path()).await;
        let segments = store.list("index/", None).await.unwrap().entries;
        assert_eq!(segments.len(), 2);
        store.delete(&segments[0].key).await.unwrap();
        both_restore(&Host::new(2, &store).open(Access::Read).await.unwrap()).await;
        let mut bytes = store.get(&segments[1].key, GetRange::Whole).await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.put(&segments[1].key, Bytes::from(bytes)).await.unwrap();
        both_restore(&Host::new(3, &store).open(Access::Read).await.unwrap()).await;
    });
}

#[test]
fn a_pack_with_a_torn_tail_is_salvaged() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let host = two_backups(&store, folder.path()).await;
        for pack in store.list("packs/", None).await.unwrap().entries {
            let body = store.get(&pack.key, GetRange::Whole).await.unwrap();
            store.put(&pack.key, body.slice(..body.len() - 20)).await.unwrap();
        }
        let repository = host.open(Access::Write).await.unwrap();
        repository.rebuild_index(RebuildFrom::Packs, &|_| {}).await.unwrap();
        both_restore(&repository).await;
    });
}

#[test]
fn statistics_and_information_agree_with_what_was_done() {
    run(async {
        let (store, folder) = (Memory::new(), tempfile::tempdir().unwrap());
        let repository = two_backups(&store, folder.path()).await.open(Access::Read).await.unwrap();
        let stats = repository.stats().unwrap();
        assert_eq!((stats.backups, stats.domains, stats.forgotten, stats.sessions), (2, 2, 0, 0));
        assert_eq!(stats.logical_bytes, (1 << 20) + 500_000);
        let stored: u64 =
            store.list("packs/", None).await.unwrap().entries.iter().map(|entry| entry.bytes).sum();
        assert_eq!(stats.pack_bytes, stored);
        assert!(stats.meta_bytes > 0 && stats.meta_bytes < stats.pack_bytes, "{stats:?}");
        assert_eq!(stats.chunks, 16 + 8 + 2 + 2, "chunks of both disks, their leaves, two records");
        let info = repository.info();
        assert_eq!((info.seq, info.backups, info.sessions, info.writers), (stats.log_entries, 2, 0, 1));
        assert_eq!(info.epochs.len(), 1);
    });
}
