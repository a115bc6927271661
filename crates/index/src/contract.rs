//! The contract of [`ChunkIndex`], tried on every implementation, and the law that the one on disk behaves like the
//! model in memory.

use std::collections::HashSet;

use aquifer_format::codec::Codec;
use aquifer_format::id::{ChunkId, EntryHash, EpochId, PackName, RepositoryId, SessionId};
use aquifer_format::pack::{BlobKind, PackHeader, PackKind, TableRow};
use aquifer_format::segment::SegmentPack;
use proptest::prelude::*;

use crate::{ChunkIndex, Error, MemoryIndex, Position, RocksIndex, RocksReader};

const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

fn chunk(number: u16) -> ChunkId {
    let mut id = [0x5a; 32];
    id[..2].copy_from_slice(&number.to_be_bytes());
    ChunkId(id)
}

fn name(number: u32) -> PackName {
    PackName { session: SessionId([9; 16]), number }
}

fn pack(number: u32, chunks: &[u16]) -> SegmentPack {
    let kind = if number.is_multiple_of(2) { PackKind::Data } else { PackKind::Meta };
    let header = PackHeader {
        kind,
        sealed: true,
        generation: 1,
        epoch: EpochId([3; 8]),
        repository: REPOSITORY,
        name: name(number + 1000),
        salt: [u8::try_from(number % 251).unwrap(); 32],
    };
    let row = |(ordinal, id): (usize, &u16)| TableRow {
        id: chunk(*id),
        offset: number * 1000 + u32::try_from(ordinal).unwrap(),
        stored_bytes: 100 + u32::from(*id),
        plain_bytes: 131_072,
        codec: if id.is_multiple_of(3) { Codec::Raw } else { Codec::Zstd },
        kind: if id.is_multiple_of(5) { BlobKind::Tree } else { BlobKind::Data },
        ordinal: u16::try_from(ordinal).unwrap(),
    };
    SegmentPack {
        name: name(number + 1000),
        stored_as: name(number),
        bytes: u64::from(number) + 4096,
        kind,
        header,
        hash: [u8::try_from(number % 256).unwrap(); 32],
        rows: chunks.iter().enumerate().map(row).collect(),
    }
}

fn position(seq: u64) -> Position {
    Position { repository: REPOSITORY, seq, hash: EntryHash([4; 32]) }
}

struct OnDisk {
    folder: tempfile::TempDir,
    index: RocksIndex,
}

impl OnDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(&folder.path().join("index"), REPOSITORY).unwrap();
        Self { folder, index }
    }

    /// Closes and opens it again, as the next process does.
    fn reopened(self) -> Self {
        let Self { folder, index } = self;
        drop(index);
        let index = RocksIndex::open(&folder.path().join("index"), REPOSITORY).unwrap();
        Self { folder, index }
    }
}

/// What every index does; it must be empty.
fn keeps_the_contract(index: &dyn ChunkIndex) {
    assert_eq!(index.position().unwrap(), None);
    assert_eq!(index.packs().unwrap(), []);
    assert_eq!(index.get_many(&[chunk(1)]).unwrap(), [vec![]]);
    assert_eq!(index.contains_many(&[], &|_| true).unwrap(), []);

    index.insert_packs(&[pack(0, &[1, 2, 3]), pack(1, &[3, 4])]).unwrap();
    index.insert_packs(&[pack(2, &[3]), pack(0, &[1, 2, 3])]).unwrap();
    let names: Vec<_> = index.packs().unwrap().iter().map(|pack| (pack.pack.number, pack.rows)).collect();
    assert_eq!(names, [(0, 3), (1, 2), (2, 1)]);

    let found = index.get_many(&[chunk(3), chunk(9), chunk(1)]).unwrap();
    let packs = |at: usize| found[at].iter().map(|location| location.pack.number).collect::<Vec<_>>();
    assert_eq!((packs(0), packs(1), packs(2)), (vec![0, 1, 2], vec![], vec![0]));
    let second = pack(1, &[3, 4]);
    assert_eq!((found[0][1].row, found[0][1].header), (second.rows[0], second.header));

    let live = |pack: &PackName| pack.number != 0;
    let ids = [chunk(1), chunk(3), chunk(3), chunk(8), chunk(4)];
    let expected = [None, Some(name(1)), Some(name(1)), None, Some(name(1))];
    assert_eq!(index.contains_many(&ids, &live).unwrap(), expected);

    index.remove_packs(&[name(1), name(77)]).unwrap();
    assert_eq!(index.contains_many(&ids, &live).unwrap(), [None, Some(name(2)), Some(name(2)), None, None]);
    index.insert_packs(&[pack(1, &[4])]).unwrap();
    assert_eq!(index.contains_many(&[chunk(3), chunk(4)], &live).unwrap(), [Some(name(2)), Some(name(1))]);
    assert_eq!(index.stats().unwrap().packs, 3);

    index.set_position(&position(5)).unwrap();
    index.flush().unwrap();
    assert_eq!(index.position().unwrap(), Some(position(5)));

    index.reset().unwrap();
    assert_eq!((index.position().unwrap(), index.packs().unwrap()), (None, vec![]));
    assert_eq!(index.get_many(&[chunk(1)]).unwrap(), [vec![]]);
    index.insert_packs(&[pack(0, &[1])]).unwrap();
    assert_eq!(index.get_many(&[chunk(1)]).unwrap()[0].len(), 1);
}

#[test]
fn the_index_in_memory_keeps_the_contract() {
    keeps_the_contract(&MemoryIndex::new());
}

#[test]
fn the_index_on_disk_keeps_the_contract() {
    keeps_the_contract(&OnDisk::new().index);
}

#[test]
fn what_was_flushed_is_there_after_the_next_start() {
    let disk = OnDisk::new();
    disk.index.insert_packs(&[pack(0, &[1, 2]), pack(1, &[2])]).unwrap();
    disk.index.remove_packs(&[name(0)]).unwrap();
    disk.index.set_position(&position(9)).unwrap();
    disk.index.flush().unwrap();
    let disk = disk.reopened();
    assert_eq!(disk.index.position().unwrap(), Some(position(9)));
    assert_eq!(disk.index.contains_many(&[chunk(1), chunk(2)], &|_| true).unwrap(), [None, Some(name(1))]);
    // The number of the removed pack is not given out again.
    disk.index.insert_packs(&[pack(2, &[5])]).unwrap();
    assert_eq!(disk.index.contains_many(&[chunk(1), chunk(5)], &|_| true).unwrap(), [None, Some(name(2))]);
}

#[test]
fn a_second_writer_is_told_who_holds_the_index() {
    let disk = OnDisk::new();
    let error = RocksIndex::open(&disk.folder.path().join("index"), REPOSITORY).unwrap_err();
    let holder = format!("process {}", std::process::id());
    assert!(matches!(&error, Error::Locked { holder: named, .. } if *named == holder), "{error}");
    let again = disk.reopened();
    again.index.insert_packs(&[pack(0, &[1])]).unwrap();
}

#[test]
fn a_reader_sees_what_was_flushed_and_leaves_the_writer_alone() {
    let disk = OnDisk::new();
    let (path, own) = (disk.folder.path().join("index"), disk.folder.path().join("reader"));
    disk.index.insert_packs(&[pack(0, &[1])]).unwrap();
    disk.index.set_position(&position(1)).unwrap();
    disk.index.flush().unwrap();
    let reader = RocksReader::open(&path, &own, REPOSITORY).unwrap();
    disk.index.insert_packs(&[pack(1, &[2])]).unwrap();
    disk.index.flush().unwrap();
    assert_eq!(reader.contains_many(&[chunk(1), chunk(2)], &|_| true).unwrap(), [Some(name(0)), None]);
    assert_eq!(reader.position().unwrap(), Some(position(1)));
    assert!(matches!(reader.insert_packs(&[]), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.remove_packs(&[]), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.set_position(&position(2)), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.flush(), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.reset(), Err(Error::ReadOnly { .. })));
    drop(reader);
    assert!(!own.exists(), "the reader's folder goes with it");
}

#[test]
fn a_reader_finds_no_index_where_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let opened = RocksReader::open(&folder.path().join("index"), &folder.path().join("own"), REPOSITORY);
    assert!(matches!(opened, Err(Error::Absent { .. })));
}

#[test]
fn an_index_of_another_repository_is_refused_and_can_be_made_anew() {
    let disk = OnDisk::new();
    let OnDisk { folder, index } = disk;
    index.insert_packs(&[pack(0, &[1])]).unwrap();
    index.flush().unwrap();
    drop(index);
    let other = RepositoryId([8; 16]);
    let path = folder.path().join("index");
    let error = RocksIndex::open(&path, other).unwrap_err();
    assert!(
        matches!(error, Error::OtherRepository { expected, found, .. } if expected == other && found == REPOSITORY)
    );
    assert!(error.needs_rebuild());
    let index = RocksIndex::recreate(&path, other).unwrap();
    assert_eq!(index.packs().unwrap(), []);
}

#[test]
fn a_damaged_index_asks_for_a_rebuild() {
    let OnDisk { folder, index } = OnDisk::new();
    let path = folder.path().join("index");
    index.insert_packs(&[pack(0, &[1])]).unwrap();
    index.flush().unwrap();
    drop(index);
    std::fs::write(path.join("CURRENT"), b"MANIFEST-nonsense\n").unwrap();
    let error = RocksIndex::open(&path, REPOSITORY).unwrap_err();
    assert!(error.needs_rebuild(), "{error:?}");
    assert_eq!(RocksIndex::recreate(&path, REPOSITORY).unwrap().packs().unwrap(), []);
}

#[derive(Debug, Clone)]
enum Step {
    Insert(Vec<(u32, Vec<u16>)>),
    Remove(Vec<u32>),
    Move(u64),
    Flush,
    Reset,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let packs = prop::collection::vec((0..12_u32, prop::collection::vec(0..20_u16, 1..8)), 1..4);
    prop_oneof![
        6 => packs.prop_map(Step::Insert),
        3 => prop::collection::vec(0..12_u32, 1..4).prop_map(Step::Remove),
        1 => (1..99_u64).prop_map(Step::Move),
        2 => Just(Step::Flush),
        1 => Just(Step::Reset),
        1 => Just(Step::Reopen),
    ]
}

/// One answer to everything that can be asked.
fn everything(index: &dyn ChunkIndex) -> impl PartialEq + std::fmt::Debug + use<> {
    let ids: Vec<_> = (0..20).map(chunk).collect();
    let odd = |pack: &PackName| !pack.number.is_multiple_of(2);
    (
        index.get_many(&ids).unwrap(),
        index.contains_many(&ids, &odd).unwrap(),
        index.packs().unwrap(),
        index.position().unwrap(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn the_index_on_disk_answers_like_the_model(steps in prop::collection::vec(step(), 1..24)) {
        let (mut disk, model) = (OnDisk::new(), MemoryIndex::new());
        for step in steps {
            for index in [&disk.index as &dyn ChunkIndex, &model] {
                match &step {
                    Step::Insert(packs) => {
                        let packs: Vec<_> = packs.iter().map(|(number, chunks)| pack(*number, chunks)).collect();
                        index.insert_packs(&packs).unwrap();
                    }
                    Step::Remove(packs) => {
                        let packs: HashSet<_> = packs.iter().map(|number| name(*number)).collect();
                        index.remove_packs(&packs.into_iter().collect::<Vec<_>>()).unwrap();
                    }
                    Step::Move(seq) => index.set_position(&position(*seq)).unwrap(),
                    Step::Flush | Step::Reopen => index.flush().unwrap(),
                    Step::Reset => index.reset().unwrap(),
                }
            }
            if matches!(step, Step::Reopen) {
                disk = disk.reopened();
            }
            prop_assert_eq!(everything(&disk.index), everything(&model));
        }
    }
}
