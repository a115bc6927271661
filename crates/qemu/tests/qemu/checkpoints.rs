//! Checkpoints on a real QEMU: what changed since the base is what the export says, and however a session ends, no
//! change is ever lost from view.

use aquifer_qemu::{Checkpoint, CheckpointPlan, Domain, Ending, ExportSession, commands};
use serde_json::{Value, json};

use crate::support::{MIB, Machine, eventually, pull, qcow2, raw, run, tool};

const GRANULARITY: u64 = 128 << 10;
const FIRST: &str = "0190163d-8694-739b-aea5-000000000001";
const SECOND: &str = "0190163d-8694-739b-aea5-000000000002";
const THIRD: &str = "0190163d-8694-739b-aea5-000000000003";

/// Bitmaps that are not ours stay what they were in every one of these.
async fn machine() -> Machine {
    let machine = Machine::start(&[qcow2("n0", 8), raw("n1", 8)]).await;
    machine.qmp("block-dirty-bitmap-add", json!({"node": "n0", "name": "libvirt-1"})).await;
    machine
}

async fn domain(machine: &Machine, backup: &str) -> Domain {
    let mut request = machine.request();
    request.backup = backup.to_owned();
    Domain::connect(request).await.unwrap()
}

/// Plans as they are when each disk's only checkpoint is the base.
fn onward(domain: &Domain) -> Vec<CheckpointPlan> {
    let plan = |checkpoints: &[Checkpoint]| CheckpointPlan {
        mark_granularity_bytes: Some(GRANULARITY),
        base: checkpoints.first().cloned(),
        changes: !checkpoints.is_empty(),
        ..CheckpointPlan::default()
    };
    domain.disks().map(|(_, checkpoints)| plan(checkpoints)).collect()
}

async fn session(machine: &Machine, backup: &str) -> ExportSession {
    let domain = domain(machine, backup).await;
    let plans = onward(&domain);
    domain.open(plans).await.unwrap()
}

/// Name's end, whether it records, and dirty MiB, of each bitmap of a node but libvirt's.
async fn marks(machine: &Machine, node: &str) -> Vec<(String, bool, u64)> {
    let nodes = machine.test.execute(commands::QueryNodes(json!({"flat": true}))).await.unwrap();
    let node = nodes.into_iter().find(|found| found.node_name.as_deref() == Some(node)).unwrap();
    let ours = node.dirty_bitmaps.into_iter().filter(|bitmap| bitmap.name.as_deref() != Some("libvirt-1"));
    let mut marks: Vec<_> = ours
        .map(|bitmap| (bitmap.name.unwrap()[72..].to_owned(), bitmap.recording, bitmap.count / MIB))
        .collect();
    marks.sort();
    marks
}

/// The dirty ranges of an export in MiB, as libnbd reads them.
pub(crate) async fn changes(uri: &str, context: &str) -> Vec<(u64, u64)> {
    let map = run(tool("nbdinfo"), &["--json", &format!("--map={context}"), uri]).await;
    let extents: Vec<Value> = serde_json::from_str(&map).unwrap();
    let dirty = extents.iter().filter(|extent| extent["type"] == 1);
    dirty
        .map(|extent| (extent["offset"].as_u64().unwrap() / MIB, extent["length"].as_u64().unwrap() / MIB))
        .collect()
}

#[tokio::test]
async fn the_second_session_tells_exactly_what_changed_between_the_two_instants() {
    let machine = machine().await;
    machine.write("n0", 1, 0, 8 * MIB).await;
    machine.write("n1", 1, 0, 8 * MIB).await;
    let first = session(&machine, FIRST).await;
    assert!(first.exports().iter().all(|export| export.changes.is_none()));
    // After the first instant, and before its end: the second must tell.
    machine.write("n0", 2, MIB, MIB).await;
    first.close(Ending::Committed).await.unwrap();
    machine.write("n1", 2, 5 * MIB, 2 * MIB).await;

    let second = session(&machine, SECOND).await;
    // After the second instant: it must not.
    machine.write("n0", 3, 3 * MIB, MIB).await;
    let exports = second.exports();
    let context = exports[0].changes.clone().unwrap();
    assert_eq!(context, "qemu:dirty-bitmap:delta");
    assert_eq!(changes(&exports[0].uri, &context).await, [(1, 1)]);
    assert_eq!(changes(&exports[1].uri, &context).await, [(5, 2)]);
    let image = pull(&exports[0].uri, machine.folder.path()).await;
    assert_eq!([image[0], image[MIB as usize], image[3 * MIB as usize]], [1, 2, 1]);
    second.close(Ending::Committed).await.unwrap();
    assert_eq!(marks(&machine, "n0").await, [("2-n0".to_owned(), true, 1)].map(virtio));
    assert_eq!(marks(&machine, "n1").await, [("2-n1".to_owned(), true, 0)].map(virtio));
    let nodes = machine.test.execute(commands::QueryNodes(json!({"flat": true}))).await.unwrap();
    let foreign = nodes.iter().flat_map(|node| &node.dirty_bitmaps);
    assert!(foreign.into_iter().any(|bitmap| bitmap.name.as_deref() == Some("libvirt-1")));
}

/// The disk behind node `nX` is called `virtio-nX`.
fn virtio((name, recording, dirty): (String, bool, u64)) -> (String, bool, u64) {
    (name.replace("-n", "-virtio-n"), recording, dirty)
}

#[tokio::test]
async fn a_session_that_fails_gives_its_marks_back_to_the_base() {
    let machine = machine().await;
    session(&machine, FIRST).await.close(Ending::Committed).await.unwrap();
    machine.write("n0", 1, 0, MIB).await;
    let second = session(&machine, SECOND).await;
    machine.write("n0", 2, 4 * MIB, MIB).await;
    second.close(Ending::Failed).await.unwrap();
    assert_eq!(marks(&machine, "n0").await, [("1-n0".to_owned(), true, 2)].map(virtio));
    machine.write("n0", 2, 6 * MIB, MIB).await;
    let third = session(&machine, THIRD).await;
    let export = &third.exports()[0];
    assert_eq!(changes(&export.uri, export.changes.as_ref().unwrap()).await, [(0, 1), (4, 1), (6, 1)]);
    third.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn a_session_whose_end_is_unknown_leaves_both_and_the_next_one_adds_them_up() {
    let machine = machine().await;
    session(&machine, FIRST).await.close(Ending::Committed).await.unwrap();
    machine.write("n0", 1, 0, MIB).await;
    let second = session(&machine, SECOND).await;
    machine.write("n0", 2, 4 * MIB, MIB).await;
    second.close(Ending::Unknown).await.unwrap();
    let both = [("1-n0".to_owned(), false, 1), ("2-n0".to_owned(), true, 1)].map(virtio);
    assert_eq!(marks(&machine, "n0").await, both);

    let domain = domain(&machine, THIRD).await;
    let mut plans = onward(&domain);
    for (plan, (_, checkpoints)) in plans.iter_mut().zip(domain.disks()) {
        plan.merge = vec![checkpoints[1].name.clone()];
    }
    let third = domain.open(plans).await.unwrap();
    let export = &third.exports()[0];
    assert_eq!(changes(&export.uri, export.changes.as_ref().unwrap()).await, [(0, 1), (4, 1)]);
    third.close(Ending::Committed).await.unwrap();
    assert_eq!(marks(&machine, "n0").await, [("3-n0".to_owned(), true, 0)].map(virtio));
}

#[tokio::test]
async fn a_transaction_that_fails_changes_no_checkpoint() {
    let machine = machine().await;
    session(&machine, FIRST).await.close(Ending::Committed).await.unwrap();
    machine.write("n1", 1, 0, MIB).await;
    let domain = domain(&machine, SECOND).await;
    let plans = onward(&domain);
    // The name that the new bitmap is to have, on the second disk: the first disk's part is done by then.
    let taken = domain.disks().nth(1).unwrap().1[0].name.replace(FIRST, SECOND);
    machine.qmp("block-dirty-bitmap-add", json!({"node": "n1", "name": taken})).await;
    domain.open(plans).await.unwrap_err();
    assert_eq!(marks(&machine, "n0").await, [("1-n0".to_owned(), true, 0)].map(virtio));
    let n1 = [("1-n1".to_owned(), true, 1), ("2-n1".to_owned(), true, 0)].map(virtio);
    assert_eq!(marks(&machine, "n1").await, n1);
}

#[tokio::test]
async fn checkpoints_in_a_qcow2_outlive_qemu_and_those_on_raw_do_not() {
    let machine = machine().await;
    session(&machine, FIRST).await.close(Ending::Committed).await.unwrap();
    machine.write("n0", 1, 0, MIB).await;
    let machine = machine.restart("quit").await;
    assert_eq!(marks(&machine, "n0").await, [("1-n0".to_owned(), true, 1)].map(virtio));
    assert_eq!(marks(&machine, "n1").await, []);
}

#[tokio::test]
async fn a_checkpoint_that_qemu_lost_track_of_is_told_and_can_be_removed() {
    let machine = machine().await;
    session(&machine, FIRST).await.close(Ending::Committed).await.unwrap();
    // What is stored in the image is stored as in use from the next opening on.
    let machine = machine.restart("quit").await.restart("kill").await;
    let domain = domain(&machine, SECOND).await;
    let lost = domain.disks().next().unwrap().1.to_vec();
    assert!(lost[0].inconsistent && lost[0].backup == FIRST, "{lost:?}");
    let plan = CheckpointPlan {
        mark_granularity_bytes: Some(GRANULARITY),
        remove: vec![lost[0].name.clone()],
        ..CheckpointPlan::default()
    };
    let second = domain.open(vec![plan]).await.unwrap();
    second.close(Ending::Committed).await.unwrap();
    assert_eq!(marks(&machine, "n0").await, [("2-n0".to_owned(), true, 0)].map(virtio));
    eventually("no other bitmap", || async { marks(&machine, "n1").await.is_empty() }).await;
}
