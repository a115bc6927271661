//! Disk trees against a model: whole disks in memory, edited at random, backed up, read back.

use std::collections::BTreeSet;

use aquifer_format::Node;
use proptest::prelude::*;

use crate::Error;
use crate::rig::{Rig, noise, run};
use crate::trees::{LEAF_CHUNKS, TreeBuilder, TreeReader, TreeSpec};

/// Small enough that a megabyte has a tree of three levels.
const CHUNK: u32 = 16;
const LEAF: usize = CHUNK as usize * 256;

/// What happens to a disk between two backups.
#[derive(Debug, Clone)]
enum Edit {
    Write { at: usize, length: usize, seed: u64 },
    Zero { at: usize, length: usize },
    Resize { size: usize },
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 0_usize..2_000_000;
    prop_oneof![
        4 => (at.clone(), 1_usize..9_000, 0_u64..20).prop_map(|(at, length, seed)| Edit::Write { at, length, seed }),
        2 => (at.clone(), 1_usize..300_000).prop_map(|(at, length)| Edit::Zero { at, length }),
        1 => at.prop_map(|size| Edit::Resize { size }),
    ]
}

/// Applies an edit and notes the chunks it may have changed, as a dirty bitmap would.
fn apply(disk: &mut Vec<u8>, edit: &Edit, dirty: &mut BTreeSet<u64>) {
    let mut mark = |from: usize, to: usize| {
        if from < to {
            dirty.extend((from as u64 / u64::from(CHUNK))..(to as u64).div_ceil(u64::from(CHUNK)));
        }
    };
    match *edit {
        Edit::Write { at, length, seed } => {
            let end = disk.len().min(at + length);
            if at < end {
                disk[at..end].copy_from_slice(&noise(seed, end - at));
                mark(at, end);
            }
        }
        Edit::Zero { at, length } => {
            let end = disk.len().min(at + length);
            if at < end {
                disk[at..end].fill(0);
                mark(at, end);
            }
        }
        Edit::Resize { size } => {
            // A grown disk keeps its bitmap with the grown part dirty.
            mark(disk.len(), size);
            disk.resize(size, 0);
            let chunks = (size as u64).div_ceil(u64::from(CHUNK));
            dirty.retain(|chunk| *chunk < chunks);
        }
    }
}

/// Nodes on the paths from the root to the leaves of `chunks` in a disk of `size` bytes.
fn path_nodes(chunks: &BTreeSet<u64>, size: usize) -> u64 {
    let mut level: BTreeSet<u64> = chunks.iter().map(|chunk| chunk / LEAF_CHUNKS).collect();
    let mut nodes = level.len() as u64;
    let mut width = size.div_ceil(LEAF);
    while width > 1 {
        level = level.iter().map(|number| number / 256).collect();
        nodes += level.len() as u64;
        width = width.div_ceil(256);
    }
    nodes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_backup_of_a_changing_disk_reads_back_as_it_was(
        size in 0_usize..2_000_000,
        rounds in prop::collection::vec(prop::collection::vec(edit(), 0..6), 1..5),
    ) {
        run(async {
            let rig = Rig::new(CHUNK);
            let mut disk = vec![0; size];
            disk.iter_mut().step_by(70_001).for_each(|byte| *byte = 7);
            let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
            let mut backups = vec![(first.tree, disk.clone())];
            for edits in &rounds {
                let (base, before) = backups.last().map(|(tree, disk)| (*tree, disk.len())).unwrap();
                let mut dirty = BTreeSet::new();
                edits.iter().for_each(|edit| apply(&mut disk, edit, &mut dirty));
                let backup = rig.backup(&disk, base, Some(&dirty)).await.unwrap();
                if disk.len() == before {
                    let bound = path_nodes(&dirty, disk.len());
                    prop_assert!(backup.built.nodes_written <= bound, "{:?} over {bound}", backup.built);
                    prop_assert!(backup.built.nodes_read <= bound, "{:?} over {bound}", backup.built);
                }
                backups.push((backup.tree, disk.clone()));
            }
            for (tree, disk) in &backups {
                prop_assert!(rig.read(*tree).await.unwrap() == *disk, "{tree:?}");
            }
            // A tree does not depend on how it came about.
            let whole = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
            prop_assert_eq!(whole.tree, backups.last().unwrap().0);
            prop_assert_eq!(whole.built.nodes_written, 0);
            Ok(())
        })?;
    }
}

#[test]
fn leaves_are_found_backwards_as_they_are_forwards() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = vec![0; 3 << 20];
        // Neighbours, a gap of a leaf, a gap of more than a node of level one, and the very end.
        for leaf in [0, 1, 3, 255, 256, 600, 767] {
            disk[leaf * LEAF + 40] = 1;
        }
        let tree = rig.backup(&disk, TreeSpec::default(), None).await.unwrap().tree;
        let mut reader = TreeReader::over(&rig.parts, tree);
        let (mut backwards, mut end) = (Vec::new(), u64::MAX);
        while let Some((leaf, node)) = reader.last_leaf(end).await.unwrap() {
            assert!(!node.is_empty());
            backwards.push(leaf);
            end = leaf;
        }
        assert_eq!(backwards, [767, 600, 256, 255, 3, 1, 0]);
        assert!(TreeReader::over(&rig.parts, TreeSpec::default()).last_leaf(9).await.unwrap().is_none());
    });
}

#[test]
fn an_unchanged_disk_reads_and_writes_no_node() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 3 << 20);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let again = rig.backup(&disk, first.tree, Some(&BTreeSet::new())).await.unwrap();
        assert_eq!(again.tree, first.tree);
        assert_eq!((again.built.nodes_read, again.built.nodes_written), (0, 0));
    });
}

#[test]
fn one_changed_chunk_touches_one_path() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = noise(1, 3 << 20);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        disk[2_000_000] ^= 1;
        let dirty = BTreeSet::from([2_000_000 / u64::from(CHUNK)]);
        let second = rig.backup(&disk, first.tree, Some(&dirty)).await.unwrap();
        assert_eq!((second.built.nodes_read, second.built.nodes_written), (3, 3));
        assert_eq!(second.new_chunks(), 1);
    });
}

#[test]
fn a_grown_disk_keeps_its_tree_below_new_levels() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = noise(1, 2_000);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        disk.resize(3 << 20, 0);
        let second = rig.backup(&disk, first.tree, Some(&BTreeSet::new())).await.unwrap();
        assert_eq!(rig.read(second.tree).await.unwrap(), disk);
        // Two new levels; the old leaf changes only where its last, short chunk became a whole one.
        assert!(second.built.nodes_written <= 3, "{:?}", second.built);
        assert_eq!(rig.read(first.tree).await.unwrap(), disk[..2_000]);
    });
}

#[test]
fn a_shrunk_disk_names_nothing_beyond_its_end() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = noise(1, 3 << 20);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        for size in [(3 << 20) - 5, (2 << 20) + 3, 1 << 20, LEAF, 40, 16, 0] {
            disk.truncate(size);
            let second = rig.backup(&disk, first.tree, Some(&BTreeSet::new())).await.unwrap();
            assert_eq!(rig.read(second.tree).await.unwrap(), disk, "{size}");
        }
    });
}

#[test]
fn cleared_leaves_are_zeros_at_a_bounded_cost() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = noise(1, 6 << 20);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let leaves = (disk.len() / LEAF) as u64;
        for range in [0..1, 3..1_000, 256..512, 300..301, 0..leaves, 5..leaves, leaves - 1..leaves, 7..7] {
            let session = rig.session();
            let mut builder = TreeBuilder::over(&session.plane, first.tree, disk.len() as u64);
            builder.clear(range.clone()).await.unwrap();
            let built = builder.finish().await.unwrap();
            session.commit().await.unwrap();
            assert!(built.nodes_read <= 5 && built.nodes_written <= 5, "{range:?}: {built:?}");
            let saved = disk.clone();
            let at = |leaf| usize::try_from(leaf).unwrap() * LEAF;
            disk[at(range.start)..at(range.end)].fill(0);
            let tree = TreeSpec { root: built.root, size_bytes: disk.len() as u64 };
            assert!(rig.read(tree).await.unwrap() == disk, "{range:?}");
            disk = saved;
        }
    });
}

#[test]
fn leaves_are_set_in_order_and_inside_the_disk() {
    run(async {
        let rig = Rig::new(CHUNK);
        let session = rig.session();
        let mut builder = TreeBuilder::over(&session.plane, TreeSpec::default(), 5 * LEAF as u64);
        builder.set_leaf(2, Node::new(0)).await.unwrap();
        for leaf in [0, 2, 5] {
            let error = builder.set_leaf(leaf, Node::new(0)).await.unwrap_err();
            assert!(matches!(error, Error::TreeOrder { .. }), "{leaf}: {error}");
        }
        assert!(matches!(builder.clear(4..6).await.unwrap_err(), Error::TreeOrder { .. }));
        let error = builder.set_leaf(3, Node::new(1)).await.unwrap_err();
        assert!(matches!(error, Error::TreeLeaf { leaf: 3, level: 1, .. }), "{error}");
    });
}

#[test]
fn a_leaf_that_names_chunks_beyond_the_end_is_refused() {
    run(async {
        let rig = Rig::new(CHUNK);
        let session = rig.session();
        let mut builder = TreeBuilder::over(&session.plane, TreeSpec::default(), 100);
        let mut node = Node::new(0);
        node.set(7, Some(aquifer_format::ChunkId([1; 32])));
        assert!(matches!(builder.set_leaf(0, node).await.unwrap_err(), Error::TreeLeaf { .. }));
    });
}

#[test]
fn a_resized_disk_cannot_keep_its_short_last_chunk() {
    run(async {
        let rig = Rig::new(CHUNK);
        let disk = noise(1, 1_000);
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        for size in [1_005, 999, 5_000_000] {
            let session = rig.session();
            let builder = TreeBuilder::over(&session.plane, first.tree, size);
            assert_eq!(builder.stale_chunks(), [62]);
            assert!(matches!(builder.finish().await.unwrap_err(), Error::TreeStale { chunk: 62 }));
            let mut builder = TreeBuilder::over(&session.plane, first.tree, size);
            let kept = builder.leaf(0).await.unwrap();
            assert!(matches!(builder.set_leaf(0, kept).await.unwrap_err(), Error::TreeStale { chunk: 62 }));
        }
    });
}

#[test]
fn a_walk_over_leaves_skips_zeros_and_ends() {
    run(async {
        let rig = Rig::new(CHUNK);
        let mut disk = vec![0; 4 << 20];
        for leaf in [0, 1, 255, 256, 700, 1_023] {
            disk[leaf * LEAF + 17] = 1;
        }
        let first = rig.backup(&disk, TreeSpec::default(), None).await.unwrap();
        let mut reader = TreeReader::over(&rig.parts, first.tree);
        let (mut from, mut seen) = (0, Vec::new());
        while let Some((leaf, node)) = reader.next_leaf(from).await.unwrap() {
            assert_eq!(node.count(), 1);
            seen.push(leaf);
            from = leaf + 1;
        }
        assert_eq!(seen, [0, 1, 255, 256, 700, 1_023]);
        // Root, three inner nodes, and the leaves, of which five are equal.
        assert!(reader.nodes_read() <= 10, "{}", reader.nodes_read());
        let mut empty = TreeReader::over(&rig.parts, TreeSpec { root: None, size_bytes: 1 << 50 });
        assert!(empty.next_leaf(0).await.unwrap().is_none());
        assert!(empty.leaf(12_345).await.unwrap().is_empty());
    });
}

/// A leaf that names one made-up chunk.
fn one_chunk(leaf: u64) -> Node {
    let mut node = Node::new(0);
    let mut id = [7; 32];
    id[..8].copy_from_slice(&leaf.to_le_bytes());
    node.set(9, Some(aquifer_format::ChunkId(id)));
    node
}

#[test]
fn a_change_of_a_huge_disk_costs_its_paths_and_not_the_disk() {
    run(async {
        let rig = Rig::new(128 << 10);
        let size_bytes = 10 << 40;
        let session = rig.session();
        let mut builder = TreeBuilder::over(&session.plane, TreeSpec::default(), size_bytes);
        for leaf in (0..327_680).step_by(41) {
            builder.set_leaf(leaf, one_chunk(leaf)).await.unwrap();
        }
        let built = builder.finish().await.unwrap();
        session.commit().await.unwrap();
        // 7993 leaves below all 1280 nodes of level 1, five of level 2, and the root.
        assert_eq!((built.nodes_read, built.nodes_written), (0, 7_993 + 1_280 + 5 + 1));
        let session = rig.session();
        let base = TreeSpec { root: built.root, size_bytes };
        let mut builder = TreeBuilder::over(&session.plane, base, size_bytes);
        for leaf in [0, 100_000, 100_001, 327_679] {
            builder.set_leaf(leaf, one_chunk(leaf + 1)).await.unwrap();
        }
        let built = builder.finish().await.unwrap();
        // Four leaves below three nodes of level 1, three of level 2, and the root; leaves are not read.
        assert_eq!((built.nodes_read, built.nodes_written), (3 + 3 + 1, 4 + 3 + 3 + 1));
    });
}
