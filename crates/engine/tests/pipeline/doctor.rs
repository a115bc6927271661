//! The doctor on a machine where everything works, and on one where something does not.

use std::sync::Arc;

use aquifer_engine::clock::System;
use aquifer_engine::repository::store::Memory;
use aquifer_engine::{DoctorRequest, FilterVerdicts, Health, Kind, doctor};
use aquifer_testkit::tempdir;

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_machine_has_only_good_findings_and_nothing_is_left_but_the_verdict_on_its_qemu() {
    let work = tempdir().unwrap();
    let request = DoctorRequest {
        world: Arc::new(System::new()),
        stores: vec![("main".into(), Arc::new(Memory::new()))],
        monitors: vec![],
        exports: vec![],
        scratch: vec![work.path().to_owned()],
        work: work.path().to_owned(),
    };
    let findings = doctor(&request).await;
    let (filter, others): (Vec<_>, Vec<_>) = findings.iter().partition(|finding| finding.check == "filter");
    let bad: Vec<_> = others.iter().filter(|finding| finding.health != Health::Good).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let steps: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.check == "self-test")
        .map(|finding| finding.object.as_str())
        .collect();
    assert_eq!(steps, ["nbd", "backup", "restore", "compare"]);
    // Whether a filter can be used depends on the machine's QEMU; the verdict on it counts for later backups.
    let verdicts = FilterVerdicts::load(work.path()).unwrap();
    let build = filter[0].object.strip_prefix("QEMU ").unwrap();
    assert!(filter[0].text.contains("wrong blocks in 805306368 bytes"), "{filter:?}");
    assert_eq!(verdicts.require(build).is_ok(), filter[0].health == Health::Good);
    assert_eq!(verdicts.require("another").unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_work_is_named_and_does_not_stop_the_rest() {
    let work = tempdir().unwrap();
    std::fs::write(work.path().join("aquifer-01234567-web01+vda.qcow2"), b"").unwrap();
    let request = DoctorRequest {
        world: Arc::new(System::new()),
        stores: vec![],
        monitors: vec![("web01".into(), "unix:/nowhere/qmp".parse().unwrap(), Default::default())],
        exports: vec![("disk".into(), "nbd+unix:///?socket=/nowhere/nbd".parse().unwrap())],
        scratch: vec![work.path().to_owned()],
        work: work.path().to_owned(),
    };
    let findings = doctor(&request).await;
    let health = |check: &str| findings.iter().find(|finding| finding.check == check).unwrap();
    assert_eq!(health("monitor").health, Health::Bad);
    assert_eq!(health("export").health, Health::Bad);
    assert_eq!(health("scratch").health, Health::Warning);
    assert!(health("scratch").text.contains("web01+vda"));
    assert!(findings.iter().any(|finding| finding.check == "self-test" && finding.object == "compare"));
}
