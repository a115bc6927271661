//! Sessions on a real QEMU: one instant for all disks, what is refused, and that nothing is left.

use std::time::Duration;

use aquifer_qemu::{
    DiskName, Ending, Error, ErrorKind, ExportSession, Lost, MonitorOptions, Scope, SkipReason, cleanup,
};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::{MIB, Machine, OTHER_REPOSITORY, PATIENCE, eventually, guard, pull, qcow2, raw};

fn filled(bytes: &[u8], pattern: u8) -> bool {
    bytes.iter().all(|&byte| byte == pattern)
}

#[tokio::test]
async fn several_disks_show_one_instant_while_they_are_overwritten() {
    let machine = Machine::start(&[qcow2("n0", 8), raw("n1", 8), qcow2("n2", 8)]).await;
    let before = machine.inventory().await;
    for (node, pattern) in [("n0", 1), ("n1", 2), ("n2", 3)] {
        machine.write(node, pattern, MIB, 4 * MIB).await;
    }
    let mut session = ExportSession::open(machine.request()).await.unwrap();
    assert_eq!(session.exports().len(), 3);
    assert!(session.instant_ms().unwrap() > 1_600_000_000_000, "{:?}", session.instant_ms());
    for node in ["n0", "n1", "n2"] {
        machine.write(node, 0xEE, 2 * MIB, 4 * MIB).await;
    }
    for (export, pattern) in session.exports().to_vec().iter().zip([1, 2, 3]) {
        let image = pull(&export.uri, machine.folder.path()).await;
        assert_eq!(image.len() as u64, export.disk.size_bytes);
        let mib = |from: u64, to: u64| &image[(from * MIB) as usize..(to * MIB) as usize];
        assert!(filled(mib(0, 1), 0) && filled(mib(1, 5), pattern) && filled(mib(5, 8), 0), "{}", export.uri);
    }
    session.check().await.unwrap();
    let report = session.close(Ending::Failed).await.unwrap();
    assert!(report.foreign.is_empty() && !report.continued, "{report:?}");
    assert_eq!(machine.inventory().await, before);
    assert!(!machine.has_server("n0").await);
}

#[tokio::test]
async fn a_session_can_be_opened_again_and_again() {
    let machine = Machine::start(&[qcow2("n0", 2)]).await;
    let before = machine.inventory().await;
    for round in 0..5 {
        machine.write("n0", round, 0, MIB).await;
        let session = ExportSession::open(machine.request()).await.unwrap();
        assert!(session.warnings().is_empty(), "{:?}", session.warnings());
        let image = pull(&session.exports()[0].uri, machine.folder.path()).await;
        assert!(filled(&image[..MIB as usize], round));
        session.close(Ending::Failed).await.unwrap();
    }
    assert_eq!(machine.inventory().await, before);
}

/// QEMU 7.2 would wait for such a client in `nbd-server-stop`, without ever reading from it, its guest and its monitors
/// standing still.
#[tokio::test]
async fn a_client_in_the_middle_of_its_handshake_is_waited_for_and_the_guest_goes_on() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    let export = server_socket(&session.exports()[0].uri);
    let mut undecided = UnixStream::connect(export).await.unwrap();
    undecided.read_exact(&mut [0; 18]).await.unwrap();
    let closing = tokio::spawn(session.close(Ending::Failed));
    eventually("the session's work is ended", || async {
        let now = machine.inventory().await;
        now.nodes == before.nodes && now.jobs == before.jobs
    })
    .await;
    // Its work is done and the guest free; only the server stays until QEMU's patience with the client ends.
    machine.writes_on().await;
    assert!(!closing.is_finished());
    timeout(PATIENCE, closing).await.unwrap().unwrap().unwrap();
    assert_eq!(undecided.read(&mut [0; 1]).await.unwrap(), 0, "QEMU hung up on it first");
    assert_eq!(machine.inventory().await, before);
    machine.writes_on().await;
}

#[tokio::test]
async fn a_server_whose_clients_never_choose_is_left_running_and_the_guest_goes_on() {
    let machine = Machine::start_writing().await;
    machine.writes_on().await;
    let before = machine.inventory().await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    let socket = server_socket(&session.exports()[0].uri).to_owned();
    // Each is dropped by QEMU after 10 s, and has a successor by then.
    let undecided = tokio::spawn(async move {
        let mut clients = std::collections::VecDeque::new();
        let mut interval = tokio::time::interval(Duration::from_secs(4));
        loop {
            interval.tick().await;
            clients.push_back(UnixStream::connect(&socket).await);
            clients.truncate(8);
        }
    });
    let error = timeout(PATIENCE, session.close(Ending::Failed)).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::ServerBusy { deadline_ms: 20_000 }), "{error}");
    machine.writes_on().await;
    undecided.abort();
    // The clients are gone with their task: the next clean-up finds the server, and ends it.
    let report = cleanup(&machine.monitor(), &MonitorOptions::default(), &machine.scope()).await.unwrap();
    assert!(report.removed.iter().any(|removed| removed == "NBD server"), "{report:?}");
    assert_eq!(machine.inventory().await, before);
    machine.writes_on().await;
}

/// The socket of a URI `nbd+unix:///…?socket=PATH`.
fn server_socket(uri: &str) -> &str {
    uri.split_once("socket=").unwrap().1
}

/// What libvirt does all day. QEMU 7.2 does not survive it while it formats an image itself.
#[tokio::test]
async fn a_management_tool_that_asks_for_the_nodes_without_rest_does_no_harm() {
    let machine = Machine::start(&[qcow2("n0", 2), raw("n1", 2)]).await;
    let before = machine.inventory().await;
    let asking = machine.test.clone();
    let tool = tokio::spawn(async move {
        loop {
            asking.execute(aquifer_qemu::commands::QueryNodes(json!({"flat": true}))).await.unwrap();
        }
    });
    for _ in 0..20 {
        let mut session = ExportSession::open(machine.request()).await.unwrap();
        session.check().await.unwrap();
        session.close(Ending::Failed).await.unwrap();
    }
    assert!(!tool.is_finished());
    tool.abort();
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_storage_daemon_without_devices_serves_its_nodes() {
    let machine = Machine::start_daemon(&[qcow2("n0", 2)]).await;
    let mut session = ExportSession::open(machine.request()).await.unwrap();
    assert_eq!(session.exports().len(), 1);
    assert_eq!(pull(&session.exports()[0].uri, machine.folder.path()).await.len() as u64, 2 * MIB);
    session.check().await.unwrap();
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn a_disk_of_no_bytes_and_one_of_an_odd_size_are_served_whole() {
    let odd = crate::support::Image { bytes: 3 * MIB + 512, ..raw("n1", 0) };
    let machine = Machine::start(&[raw("n0", 0), odd]).await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    let sizes: Vec<u64> = session.exports().iter().map(|export| export.disk.size_bytes).collect();
    assert_eq!(sizes, [0, 3 * MIB + 512]);
    assert_eq!(pull(&session.exports()[1].uri, machine.folder.path()).await.len() as u64, sizes[1]);
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn a_name_with_spaces_and_slashes_travels_through_the_uri() {
    let machine = Machine::start(&[raw("n0", 1)]).await;
    let mut request = machine.request();
    let name = "daten/große platte?#%".to_owned();
    request.disks.names = vec![DiskName { name: name.clone(), selector: "virtio-n0".to_owned() }];
    let session = ExportSession::open(request).await.unwrap();
    let export = &session.exports()[0];
    assert_eq!(export.export_name, format!("{}/{name}", crate::support::BACKUP));
    assert_eq!(pull(&export.uri, machine.folder.path()).await.len() as u64, MIB);
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn empty_and_removable_drives_are_left_out_and_reported() {
    let extra = ["-S", "-device", "ide-cd,id=cd0"];
    let machine = Machine::start_with(&[raw("n0", 1)], &extra).await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    assert_eq!(session.exports().len(), 1);
    let skipped: Vec<_> = session.skipped().iter().map(|disk| (disk.name.as_str(), disk.skip)).collect();
    assert_eq!(skipped, [("cd0", Some(SkipReason::Empty))]);
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn disks_given_by_drive_are_named_by_their_device_and_a_medium_can_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hd", "cd"] {
        std::fs::write(folder.path().join(name), vec![name.as_bytes()[0]; 2 * MIB as usize]).unwrap();
    }
    let drive = |name: &str, more: &str| {
        format!("if=none,id={name},format=raw,file={}{more}", folder.path().join(name).display())
    };
    let (hd, cd) = (drive("hd", ""), drive("cd", ",media=cdrom"));
    let extra = [
        "-S",
        "-drive",
        &hd,
        "-device",
        "virtio-blk-pci,drive=hd",
        "-drive",
        &cd,
        "-device",
        "ide-cd,drive=cd",
    ];
    let machine = Machine::start_with(&[], &extra).await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    let image = pull(&session.exports()[0].uri, machine.folder.path()).await;
    assert!(session.exports()[0].disk.name == "hd" && filled(&image, b'h'));
    assert_eq!(session.skipped()[0].skip, Some(SkipReason::Removable));
    session.close(Ending::Failed).await.unwrap();
    let mut request = machine.request();
    request.disks.only = vec!["cd".to_owned()];
    let session = ExportSession::open(request).await.unwrap();
    assert!(filled(&pull(&session.exports()[0].uri, machine.folder.path()).await, b'c'));
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn an_unknown_disk_lists_those_of_the_domain_and_leaves_nothing() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.disks.only = vec!["vdz".to_owned()];
    let error = ExportSession::open(request).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("virtio-n0 (n0 "), "{error}");
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_foreign_nbd_server_is_refused_and_lives_on() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let foreign = machine.path("foreign.sock");
    let address = json!({"type": "unix", "data": {"path": foreign}});
    machine.qmp("nbd-server-start", json!({"addr": address})).await;
    let error = ExportSession::open(machine.request()).await.unwrap_err();
    assert!(matches!(error, Error::ForeignServer { .. }) && error.kind() == ErrorKind::Conflict, "{error}");
    assert_eq!(machine.inventory().await, before);
    assert!(machine.has_server("n0").await);

    machine
        .qmp("block-export-add", json!({"type": "nbd", "id": "theirs", "node-name": "n0", "name": "n0"}))
        .await;
    let error = ExportSession::open(machine.request()).await.unwrap_err();
    assert!(error.to_string().contains("theirs"), "{error}");
    let report = cleanup(&machine.monitor(), &MonitorOptions::default(), &machine.scope()).await.unwrap();
    assert_eq!(report.foreign, ["nbd export theirs"]);
    assert_eq!(machine.inventory().await.exports, ["theirs"]);
}

#[tokio::test]
async fn a_foreign_job_is_refused_by_name_and_goes_on() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    machine.qmp("blockdev-add", json!({"driver": "null-co", "node-name": "t", "size": MIB})).await;
    let job = json!({"job-id": "their-job", "device": "n0", "target": "t", "sync": "none"});
    machine.qmp("blockdev-backup", job).await;
    let before = machine.inventory().await;
    let error = ExportSession::open(machine.request()).await.unwrap_err();
    assert!(matches!(&error, Error::ForeignJob { id, .. } if id == "their-job"), "{error}");
    assert_eq!(machine.inventory().await, before);
    assert_eq!(before.jobs, ["their-job"]);
}

#[tokio::test]
async fn another_repositorys_session_is_a_conflict_and_its_cleanup_leaves_ours() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let node = json!({"driver": "null-co", "node-name": "aqf-fedcba98-d0", "size": MIB});
    machine.qmp("blockdev-add", node).await;
    let error = ExportSession::open(machine.request()).await.unwrap_err();
    assert!(
        matches!(&error, Error::OtherRepository { repository, .. } if repository == "fedcba98"),
        "{error}"
    );
    let ours = cleanup(&machine.monitor(), &MonitorOptions::default(), &machine.scope()).await.unwrap();
    assert!(
        ours.removed.is_empty() && ours.foreign == ["node aqf-fedcba98-d0 of another repository"],
        "{ours:?}"
    );
    let theirs = Scope { repository: OTHER_REPOSITORY.to_owned(), ..machine.scope() };
    let report = cleanup(&machine.monitor(), &MonitorOptions::default(), &theirs).await.unwrap();
    assert_eq!(report.removed, ["node aqf-fedcba98-d0"]);
}

#[tokio::test]
async fn foreign_bitmaps_and_files_survive_a_session() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    machine.qmp("block-dirty-bitmap-add", json!({"node": "n0", "name": "theirs", "persistent": true})).await;
    std::fs::write(machine.path("scratch/aquifer-01234567-web011+x.qcow2"), "another domain's").unwrap();
    std::fs::write(machine.path("scratch/notes.txt"), "a person's").unwrap();
    ExportSession::open(machine.request()).await.unwrap().close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await.files.len(), 2);
    machine
        .try_qmp("block-dirty-bitmap-add", json!({"node": "n0", "name": "theirs"}))
        .await
        .expect_err("the bitmap must still be there");
}

#[tokio::test]
async fn a_transaction_that_qemu_refuses_leaves_nothing() {
    let machine = Machine::start(&[qcow2("n0", 1), qcow2("n1", 1)]).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.backup = "not a job id".to_owned();
    let error = ExportSession::open(request).await.unwrap_err();
    assert!(matches!(error, Error::Refused { command: "transaction", .. }), "{error}");
    assert_eq!(machine.inventory().await, before);
    assert!(!machine.has_server("n0").await);
}

#[tokio::test]
async fn a_scratch_folder_that_is_not_there_fails_before_anything_is_made() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.scope.scratch = machine.path("nowhere");
    let error = ExportSession::open(request).await.unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_job_that_is_cancelled_behind_our_back_loses_the_instant() {
    let machine = Machine::start(&[qcow2("n0", 1), qcow2("n1", 1)]).await;
    let before = machine.inventory().await;
    let mut session = ExportSession::open(machine.request()).await.unwrap();
    let failed = session.failed();
    let id = format!("aqf-01234567-{}-1", crate::support::BACKUP);
    machine.qmp("job-cancel", json!({"id": id})).await;
    let lost = timeout(PATIENCE, failed).await.unwrap();
    assert!(matches!(&lost, Lost::JobEnded { job, .. } if *job == id), "{lost}");
    assert!(matches!(session.check().await, Err(Error::InstantLost(_))));
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn an_export_removed_by_somebody_else_loses_the_instant() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    let failed = session.failed();
    let id = format!("aqf-01234567-{}-0", crate::support::BACKUP);
    machine.qmp("block-export-del", json!({"id": id, "mode": "hard"})).await;
    assert!(matches!(timeout(PATIENCE, failed).await.unwrap(), Lost::ExportGone { .. }));
    session.close(Ending::Failed).await.unwrap();
}

#[tokio::test]
async fn qemu_killed_in_the_middle_is_noticed_and_its_scratch_removed() {
    let mut machine = Machine::start(&[qcow2("n0", 1)]).await;
    let mut session = ExportSession::open(machine.request()).await.unwrap();
    let failed = session.failed();
    machine.child.kill().await.unwrap();
    assert!(matches!(timeout(PATIENCE, failed).await.unwrap(), Lost::MonitorClosed(_)));
    assert!(session.check().await.is_err());
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(std::fs::read_dir(machine.path("scratch")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_session_that_is_dropped_is_ended_by_its_guard() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.guard = Some(guard());
    drop(ExportSession::open(request.clone()).await.unwrap());
    eventually("the guard ends the session", || async { machine.inventory().await == before }).await;
    // And one that is closed sends it home.
    let session = ExportSession::open(request).await.unwrap();
    timeout(Duration::from_secs(10), session.close(Ending::Failed)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guard_that_cannot_start_is_an_error_before_anything_is_made() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    for program in ["/nonexistent/guard", "/bin/true"] {
        request.guard = Some(aquifer_qemu::GuardCommand { program: program.into(), args: Vec::new() });
        let error = ExportSession::open(request.clone()).await.unwrap_err();
        assert!(matches!(error, Error::Guard { .. }) && error.to_string().contains(program), "{error}");
    }
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn uuid_and_block_sizes_are_told_as_the_guest_sees_them() {
    let uuid = "54c70d40-26bb-48cd-9639-b3a1e9adf650";
    let sizes = ["-global", "virtio-blk-device.logical_block_size=4096"];
    let extra =
        ["-S", "-uuid", uuid, sizes[0], sizes[1], "-global", "virtio-blk-device.physical_block_size=8192"];
    let machine = Machine::start_with(&[qcow2("n0", 1)], &extra).await;
    let session = ExportSession::open(machine.request()).await.unwrap();
    assert_eq!(session.domain_uuid(), Some(uuid));
    let blocks = session.exports()[0].disk.blocks.unwrap();
    assert_eq!((blocks.logical_bytes, blocks.physical_bytes), (4096, 8192));
    session.close(Ending::Failed).await.unwrap();
    let nameless = Machine::start(&[qcow2("n0", 1)]).await;
    let session = ExportSession::open(nameless.request()).await.unwrap();
    assert_eq!((session.domain_uuid(), session.exports()[0].disk.blocks.unwrap().logical_bytes), (None, 512));
    session.close(Ending::Failed).await.unwrap();
}
