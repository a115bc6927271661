//! Sessions with filters on a real QEMU: one instant, what changed since the last, and a device that is back on its disk.
//!
//! Whether a version of QEMU shows the right bytes while its guest writes zeroes is another test's matter (the doctor's).

use aquifer_qemu::{CheckpointPlan, Domain, Ending, Error, ErrorKind, ExportSession, Method, SessionRequest};
use serde_json::json;

use crate::support::{MIB, Machine, eventually, pull, qcow2, raw};

const GRANULARITY: u64 = 64 << 10;

async fn machine() -> Machine {
    let machine = Machine::start_with(&[qcow2("n0", 8), raw("n1", 8)], &[]).await;
    machine.write("n0", 1, 0, 8 * MIB).await;
    machine.write("n1", 1, 0, 8 * MIB).await;
    machine
}

fn request(machine: &Machine) -> SessionRequest {
    SessionRequest { method: Method::Filter, ..machine.request() }
}

#[tokio::test]
async fn disks_are_shown_as_they_were_and_the_devices_are_back_on_them_after_it() {
    let machine = machine().await;
    let before = machine.inventory().await;
    let mut session = ExportSession::open(request(&machine)).await.unwrap();
    assert_eq!(machine.status().await, "running");
    assert!(session.instant_ms().is_some());
    for node in ["n0", "n1"] {
        machine.write(node, 2, MIB, 2 * MIB).await;
    }
    for export in session.exports() {
        let image = pull(&export.uri, machine.folder.path()).await;
        assert!(image.iter().all(|&byte| byte == 1), "{}", export.uri);
    }
    session.check().await.unwrap();
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await, before);
    assert!(machine.bitmaps().await.is_empty());
    let mut classic = ExportSession::open(machine.request()).await.unwrap();
    let image = pull(&classic.exports()[0].uri, machine.folder.path()).await;
    assert_eq!([image[0], image[MIB as usize]], [1, 2], "what was written meanwhile is on the disk");
    classic.check().await.unwrap();
    classic.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn the_second_session_tells_what_changed_since_the_first() {
    let machine = machine().await;
    for (backup, base) in
        [("0190163d-8694-739b-aea5-000000000001", false), ("0190163d-8694-739b-aea5-000000000002", true)]
    {
        let request = SessionRequest { backup: backup.to_owned(), ..request(&machine) };
        let domain = Domain::connect(request).await.unwrap();
        let plans = domain.disks().map(|(_, checkpoints)| CheckpointPlan {
            mark_granularity_bytes: Some(GRANULARITY),
            base: checkpoints.first().cloned(),
            changes: base,
            ..CheckpointPlan::default()
        });
        let plans = plans.collect();
        let session = domain.open(plans).await.unwrap();
        machine.write("n1", 3, 6 * MIB, MIB).await;
        if let Some(context) = &session.exports()[1].changes {
            let map = crate::checkpoints::changes(&session.exports()[1].uri, context).await;
            assert_eq!(map, [(4, 1), (6, 1)]);
        }
        assert_eq!(session.exports()[1].changes.is_some(), base);
        session.close(Ending::Committed).await.unwrap();
        machine.write("n1", 4, 4 * MIB, MIB).await;
    }
    assert_eq!(machine.bitmaps().await.len(), 2, "one checkpoint a disk");
}

#[tokio::test]
async fn a_guest_that_was_paused_stays_paused() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let session = ExportSession::open(request(&machine)).await.unwrap();
    assert_eq!(machine.status().await, "prelaunch");
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.status().await, "prelaunch");
}

#[tokio::test]
async fn a_disk_without_a_device_is_refused_with_the_way_out() {
    let machine = Machine::start_daemon(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let error = ExportSession::open(request(&machine)).await.unwrap_err();
    assert!(matches!(&error, Error::NoDevice { disk } if disk == "n0"), "{error}");
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("classic"));
    assert_eq!(machine.inventory().await, before);
}

/// Its QEMU can make no file as long as what the guest overwrites.
#[tokio::test]
async fn a_full_scratch_breaks_the_snapshot_and_never_the_guest() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let session = ExportSession::open(request(&machine)).await.unwrap();
    let uri = session.exports()[0].uri.clone();
    eventually("the snapshot breaks", || async {
        let output = tokio::process::Command::new("nbdcopy").args([&uri, "null:"]).output().await.unwrap();
        assert_eq!(machine.status().await, "running");
        !output.status.success()
    })
    .await;
    machine.writes_on().await;
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await, before);
    machine.writes_on().await;
}

#[tokio::test]
async fn nobody_takes_a_filter_out_under_its_snapshot() {
    let machine = machine().await;
    let mut session = ExportSession::open(request(&machine)).await.unwrap();
    let device = "/machine/peripheral/virtio-n0/virtio-backend";
    let property = json!({"path": device, "property": "drive", "value": "n0"});
    let refused = machine.try_qmp("qom-set", property).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    session.check().await.unwrap();
    session.close(Ending::Failed).await.unwrap();
}
