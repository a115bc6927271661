//! Jobs as other processes see them: what the journal tells of one that runs, that is ended from outside, that was killed.

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Running, process};
use serde_json::Value;

use crate::Outcome;
use crate::rig::{Rig, SECOND, as_strs, text};

const UUID: &str = "01a218fe-752b-7a7c-879f-8d7b0fadfb6b";

/// A backup that takes its time, and whose instant exists.
fn slow_backup(rig: &mut Rig) -> Result<Running> {
    let arguments = rig.backup_arguments(&["--read-limit", "2MiB", "--uuid", UUID]);
    let running = rig.aquifer.start(&as_strs(&arguments))?;
    rig.wait_exports(2)?;
    Ok(running)
}

fn parameters(rig: &Rig) -> Result<Value> {
    rig.aquifer.run(&["params", UUID])?.ok()?.document()
}

/// Waits until the job is said to be in this state.
fn wait_state(rig: &Rig, state: &str) -> Result<Value> {
    process::wait_for(&format!("the job to be {state}"), 60 * SECOND, || {
        let told = parameters(rig)?;
        Ok((told["state"] == state).then_some(told))
    })
}

#[test]
#[ignore = "slow group jobs"]
fn a_running_backup_is_seen_and_waited_for_by_other_processes() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let mut running = slow_backup(&mut rig)?;
    let told = wait_state(&rig, "running")?;
    ensure!(told["domain"] == "vm" && told["disk_total"] == 2 * crate::rig::DISK_BYTES, "{told}");
    ensure!(
        told["disk_remaining"].as_u64().is_some_and(|left| left > 0) && told["success"].is_null(),
        "{told}"
    );
    let xml = rig.folder.path().join("served.xml");
    std::fs::write(
        &xml,
        "<domainbackup><disks><disk name='vda'><target type='nbd'/></disk></disks></domainbackup>",
    )?;
    let (xml, monitor) = (text(&xml), rig.monitor());
    let second = rig.aquifer.run(&["start-unmanaged", "vm", "--xml", &xml, "--qmp", &monitor])?;
    second.refused(5, "conflict", &["vm", UUID])?;
    rig.aquifer.run(&["finish", UUID])?.refused(5, "conflict", &["still copies"])?;
    let finished = rig.aquifer.run(&["finish", UUID, "--wait"])?.ok()?.document()?;
    ensure!(finished["state"] == "completed", "{finished}");
    ensure!(!running.process().is_running() || running.process().wait(10 * SECOND)?.success(), "it failed");
    let told = parameters(&rig)?;
    ensure!(told["success"] == true && told["disk_remaining"] == 0 && told["disk.1.name"] == "vdb", "{told}");
    rig.aquifer.run(&["finish", UUID, "--wait"])?.refused(4, "not_found", &[UUID])?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group jobs"]
fn a_running_backup_is_cancelled_by_another_process() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let running = slow_backup(&mut rig)?;
    wait_state(&rig, "running")?;
    let ended = rig.aquifer.run(&["finish", UUID, "--cancel"])?.ok()?.document()?;
    ensure!(ended["state"] == "cancelled", "{ended}");
    running.wait()?.refused(10, "cancelled", &[])?;
    ensure!(parameters(&rig)?["success"] == false, "a cancelled job succeeded");
    ensure!(rig.aquifer.list()?.is_empty(), "what was cancelled is listed");
    rig.wait_clean_but_for_bitmaps()
}

#[test]
#[ignore = "slow group jobs"]
fn a_killed_backup_is_told_as_interrupted_and_not_as_running() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let mut running = slow_backup(&mut rig)?;
    wait_state(&rig, "running")?;
    running.process().kill()?;
    let told = wait_state(&rig, "interrupted")?;
    ensure!(told["success"] == false && told["errmsg"].is_string(), "{told}");
    rig.wait_clean_but_for_bitmaps()?;
    let next = rig.backup(&[])?;
    rig.prove(&next, "next").context("the backup after it").map(drop)
}
