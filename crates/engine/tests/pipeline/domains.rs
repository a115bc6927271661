//! Running domains: two disks at one instant of a guest that keeps writing, and QEMU as it was before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_engine::qemu::{DiskChoice, MonitorAddress, MonitorOptions, NbdListen, Quiesce};
use aquifer_engine::{
    BackupRequest, Event, EventSink, JobContext, Kind, QmpSource, RestoreRequest, Source, VolumeSpec, backup,
};
use aquifer_testkit::{Disk, Format, Guest, GuestOptions, check};

use crate::rig::{Rig, request, restoring};

const DISK_BYTES: u64 = 64 << 20;
const UUID: &str = "54c70d40-26bb-48cd-9639-b3a1e9adf650";

fn guest(rig: &Rig) -> Guest {
    let disks = [("vda", Format::Qcow2), ("vdb", Format::Raw)];
    let disks =
        disks.map(|(name, format)| Disk::create(rig.folder.path(), name, format, DISK_BYTES).unwrap());
    let arguments = vec!["-uuid".to_owned(), UUID.to_owned()];
    Guest::start(rig.folder.path(), &disks, &GuestOptions { arguments, ..GuestOptions::default() }).unwrap()
}

pub(crate) fn domain(monitor: &Path, scratch: &Path) -> BackupRequest {
    let qmp = QmpSource {
        monitor: MonitorAddress::Unix(monitor.to_owned()),
        monitor_options: MonitorOptions::default(),
        disks: DiskChoice { names: vec![], only: vec![] },
        scratch: scratch.to_owned(),
        scratch_max_bytes: None,
        listen: NbdListen::Unix,
        quiesce: Quiesce::Off,
        filter: None,
        agent: None,
        guard: None,
    };
    let definition = Some(b"{\"machine\":\"pc\"}".to_vec());
    BackupRequest { source: Source::Qmp(Box::new(qmp)), definition, ..request(&[]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_disks_of_a_writing_guest_are_one_point_in_its_history() {
    let rig = Rig::new().await;
    let mut guest = guest(&rig);
    let before = guest.seq();
    let outcome = backup(&rig.job, domain(&guest.monitor(0), rig.folder.path())).await.unwrap();
    let after = guest.next_seq().unwrap();
    assert_eq!(guest.leftovers().unwrap(), Vec::<String>::new());
    let names: Vec<String> = outcome.disks.iter().map(|disk| disk.name.clone()).collect();
    assert_eq!(names, ["vda", "vdb"]);
    let copies: Vec<PathBuf> = names.iter().map(|name| rig.path(&format!("copy-{name}"))).collect();
    let disks = names.iter().cloned().zip(copies.iter().cloned().map(VolumeSpec::Raw)).collect();
    let asked =
        RestoreRequest { disks, verify: true, ..restoring(outcome.uuid, VolumeSpec::Raw("/".into())) };
    rig.try_restore(asked).await.unwrap();
    check(&copies, before..=after).unwrap();
    let record = rig.job.repository.record(outcome.uuid).await.unwrap();
    assert_eq!(record.definition.unwrap().bytes, b"{\"machine\":\"pc\"}");
    assert_eq!(record.domain.uuid.unwrap().to_string(), UUID);
    assert!(record.disks.iter().all(|disk| disk.logical_block_bytes == 512), "{:?}", record.disks);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_dies_in_the_middle_fails_the_backup_and_nothing_is_listed() {
    let rig = Rig::new().await;
    let mut guest = guest(&rig);
    let (told, mut begun) = tokio::sync::mpsc::channel(1);
    let events = EventSink::new(move |event| {
        if let Event::Started { .. } = event {
            // Told once is enough.
            let _ = told.try_send(());
        }
    });
    let settings =
        aquifer_engine::JobSettings { read_limit_bytes: Some(1 << 20), ..rig.job.settings.clone() };
    let job = JobContext { events, settings, ..rig.job.clone() };
    let asked = domain(&guest.monitor(0), rig.folder.path());
    let running = tokio::spawn(async move { backup(&job, asked).await });
    begun.recv().await.unwrap();
    guest.process().kill().unwrap();
    let error = tokio::time::timeout(Duration::from_secs(60), running).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(rig.job.repository.backups().is_empty());
}
