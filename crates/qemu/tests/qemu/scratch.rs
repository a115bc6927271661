//! A scratch that is too small, under a guest that writes without rest: the guest goes on, whoever is killed.

use aquifer_qemu::{Ending, Error, ExportSession, Lost, MonitorOptions, cleanup};
use tokio::time::timeout;

use crate::crash::Client;
use crate::support::{MIB, Machine, PATIENCE, eventually, qcow2};

#[tokio::test]
async fn a_write_threshold_ends_the_session_before_the_guest_stops() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.scratch_max_bytes = Some(8 * MIB);
    let mut session = ExportSession::open(request).await.unwrap();
    assert!(session.warnings()[0].contains("8388608 of "), "{:?}", session.warnings());
    let mut events = machine.test.events();
    let lost = timeout(PATIENCE, session.failed()).await.unwrap();
    assert!(matches!(lost, Lost::ScratchFull { .. }), "{lost}");
    // Nobody has called close yet: the watch itself ended the session.
    eventually("the session is ended", || async { machine.inventory().await == before }).await;
    machine.writes_on().await;
    while let Ok(event) = events.try_recv() {
        assert_ne!(event.name, "STOP");
    }
    assert!(matches!(session.check().await, Err(Error::InstantLost(Lost::ScratchFull { .. }))));
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_guest_that_stopped_for_our_scratch_goes_on() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let mut events = machine.test.events();
    let session = ExportSession::open(machine.request()).await.unwrap();
    timeout(PATIENCE, session.failed()).await.unwrap();
    eventually("the session is ended", || async { machine.inventory().await == before }).await;
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        names.push(event.name);
    }
    assert!(names.iter().any(|name| name == "STOP"), "the guest was to stop: {names:?}");
    eventually("the guest runs", || async { machine.status().await == "running" }).await;
    machine.writes_on().await;
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn with_aquifer_and_its_guard_killed_the_next_cleanup_lets_the_guest_go_on() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let mut client = Client::start(&machine, &machine.monitor(), false);
    client.kill().await;
    eventually("the guest stops", || async { machine.status().await == "io-error" }).await;
    let report = cleanup(&machine.monitor(), &MonitorOptions::default(), &machine.scope()).await.unwrap();
    assert!(report.continued, "{report:?}");
    assert_eq!(machine.inventory().await, before);
    machine.writes_on().await;
}

#[tokio::test]
async fn with_aquifer_killed_the_guard_ends_the_session_and_the_guest_goes_on() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let mut client = Client::start(&machine, &machine.monitor(), true);
    client.kill().await;
    eventually("the guard ends the session", || async { machine.inventory().await == before }).await;
    eventually("the guest runs", || async { machine.status().await == "running" }).await;
    machine.writes_on().await;
}

#[tokio::test]
async fn a_stop_that_is_not_ours_is_not_continued() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let status = machine.status().await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    let report = session.close(Ending::Failed).await.unwrap();
    assert!(!report.continued);
    assert_eq!(machine.status().await, status);
}

#[tokio::test]
async fn a_cap_too_small_for_any_backup_is_refused_with_the_figures() {
    let machine = Machine::start(&[qcow2("n0", 64)]).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.scratch_max_bytes = Some(MIB);
    let error = ExportSession::open(request).await.unwrap_err().to_string();
    assert!(error.contains("1048576 bytes") && error.contains("--scratch-max"), "{error}");
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn the_space_of_a_scratch_is_taken_before_the_instant() {
    use std::os::unix::fs::MetadataExt;
    let machine = Machine::start(&[qcow2("n0", 64)]).await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    assert!(session.warnings().is_empty(), "{:?}", session.warnings());
    let scratch = std::fs::metadata(machine.path("scratch/aquifer-01234567-web01+virtio-n0.qcow2")).unwrap();
    assert!(
        scratch.blocks() * 512 >= 64 * MIB && scratch.len() < 2 * MIB,
        "{} {}",
        scratch.blocks(),
        scratch.len()
    );
    session.close(Ending::Failed).await.unwrap();
}
