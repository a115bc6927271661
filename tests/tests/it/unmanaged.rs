//! Backups that somebody else reads: the exports of one instant, what changed since the last one, and every way in which
//! such a backup ends.
//!
//! The readers are the field's own: `nbdcopy`, `qemu-img`, `nbdinfo`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use aquifer_testkit::{check_grown, process, tools};
use rustix::process::Signal;
use serde_json::Value;

use crate::Outcome;
use crate::rig::{Rig, SECOND, ensure_same, text};

/// Asks for both disks.
const BOTH: &str = "<domainbackup><disks>
  <disk name='vda'><target type='nbd'/></disk>
  <disk name='vdb'><target type='nbd'/></disk>
</disks></domainbackup>";

/// A rig whose domain is configured, with a managed backup in its repository.
fn start() -> Result<Rig> {
    let mut rig = Rig::start_raw()?;
    let config = format!("[domains.vm]\nqmp = \"{}\"\nscratch = \"{}\"\n", rig.monitor(), rig.scratch());
    fs::write(rig.folder.path().join("aquifer.toml"), config)?;
    fs::write(rig.folder.path().join("both.xml"), BOTH)?;
    rig.backup(&[])?;
    Ok(rig)
}

/// Starts an unmanaged backup of both disks.
fn serve(rig: &Rig, further: &[&str]) -> Result<Value> {
    let xml = text(&rig.folder.path().join("both.xml"));
    let arguments = [&["start-unmanaged", "vm", "--xml", &xml], further].concat();
    let served = rig.aquifer.run(&arguments)?.ok()?.document()?;
    ensure!(
        served["state"] == "exposed" && served["exports"].as_array().is_some_and(|all| all.len() == 2),
        "{served}"
    );
    Ok(served)
}

fn uuid(served: &Value) -> Result<&str> {
    served["uuid"].as_str().context("no uuid")
}

fn finish(rig: &Rig, served: &Value, further: &[&str]) -> Result<String> {
    let arguments = [&["finish", uuid(served)?], further].concat();
    let finished = rig.aquifer.run(&arguments)?.ok()?.document()?;
    Ok(finished["state"].as_str().unwrap_or_default().to_owned())
}

/// A member of each export.
fn each<'v>(served: &'v Value, member: &str) -> Result<Vec<&'v str>> {
    let exports = served["exports"].as_array().context("no exports")?;
    exports
        .iter()
        .map(|export| export[member].as_str().with_context(|| format!("no {member}: {export}")))
        .collect()
}

/// Reads each export whole with nbdcopy.
fn copy(rig: &Rig, served: &Value, name: &str) -> Result<Vec<PathBuf>> {
    let copy_of = |(number, uri): (usize, &str)| {
        let image = rig.folder.path().join(format!("{name}-{number}.raw"));
        tools::run(Command::new(tools::tool("nbdcopy")?).arg(uri).arg(&image))?;
        Ok(image)
    };
    each(served, "uri")?.into_iter().enumerate().map(copy_of).collect()
}

/// The ranges that a bitmap context marks as changed.
fn changes(uri: &str, context: &str) -> Result<Vec<(usize, usize)>> {
    let mut nbdinfo = Command::new(tools::tool("nbdinfo")?);
    nbdinfo.args(["--json", &format!("--map={context}"), uri]);
    let map: Vec<Value> = serde_json::from_str(&tools::run(&mut nbdinfo)?)?;
    let number = |extent: &Value, key: &str| usize::try_from(extent[key].as_u64().unwrap_or_default());
    let dirty = map.iter().filter(|extent| extent["type"].as_u64().is_some_and(|flags| flags & 1 != 0));
    dirty.map(|extent| Ok((number(extent, "offset")?, number(extent, "length")?))).collect()
}

/// The backup's line in the list.
fn listed(rig: &Rig, served: &Value) -> Result<Option<Value>> {
    let uuid = uuid(served)?;
    Ok(rig.aquifer.list()?.into_iter().find(|backup| backup["uuid"] == uuid))
}

/// The process that stays with the backup, by the journal of jobs.
fn keeper(rig: &Rig, served: &Value) -> Result<u32> {
    let file = format!("{}.json", uuid(served)?);
    for entry in fs::read_dir(rig.aquifer.state_dir())? {
        if let Ok(job) = fs::read(entry?.path().join("jobs").join(&file)) {
            let job: Value = serde_json::from_slice(&job)?;
            return Ok(u32::try_from(job["process"].as_u64().context("the job has no process")?)?);
        }
    }
    anyhow::bail!("no journal has {file}")
}

/// Kills these and waits until they are gone.
fn kill(doomed: &[u32]) -> Result<()> {
    doomed.iter().try_for_each(|&process| process::send(process, Signal::KILL))?;
    process::wait_for("the killed processes to be gone", 10 * SECOND, || {
        Ok(doomed.iter().all(|&process| !process::is_alive(process)).then_some(()))
    })
}

#[test]
#[ignore = "slow group unmanaged"]
fn others_read_one_instant_and_then_only_what_changed_since() -> Outcome {
    let mut rig = start()?;
    let earliest = rig.guest.seq();
    let first = serve(&rig, &[])?;
    let window = earliest..=rig.guest.next_seq()?;
    let images = copy(&rig, &first, "first")?;
    check_grown(&images, rig.guest.history(), window).context("what nbdcopy read")?;
    let converted = rig.folder.path().join("converted.raw");
    let mut qemu_img = Command::new(tools::tool("qemu-img")?);
    qemu_img.args(["convert", "-f", "raw", "-O", "raw", each(&first, "uri")?[0]]).arg(&converted);
    tools::run(&mut qemu_img)?;
    ensure_same(&converted, &images[0])?;
    ensure!(finish(&rig, &first, &[])? == "completed", "the first is not completed");
    rig.ensure_clean_but_for_external(1)?;
    let entry = listed(&rig, &first)?.context("the external backup is not listed")?;
    ensure!(entry["external"] == true, "{entry}");

    rig.backup(&[])?.ensure_all_by_bitmap().context("the managed chain goes on")?;
    let more = rig.guest.seq() + 100;
    rig.guest.wait_seq(more, 60 * SECOND)?;

    let second = serve(&rig, &[])?;
    let whole = copy(&rig, &second, "second")?;
    let contexts = each(&second, "bitmap_context")?;
    for (number, uri) in each(&second, "uri")?.into_iter().enumerate() {
        let (mut old, new) = (fs::read(&images[number])?, fs::read(&whole[number])?);
        ensure!(old != new, "the guest has not written to disk {number}");
        let ranges = changes(uri, contexts[number])?;
        let bytes: usize = ranges.iter().map(|(_, length)| length).sum();
        ensure!((1..old.len()).contains(&bytes), "{bytes} bytes of disk {number} are told as changed");
        for (offset, length) in ranges {
            old[offset..offset + length].copy_from_slice(&new[offset..offset + length]);
        }
        ensure!(old == new, "disk {number} changed where its bitmap does not say so");
    }
    ensure!(finish(&rig, &second, &["--check"])? == "completed", "the second is not completed");
    rig.ensure_clean_but_for_external(1)?;
    let last = rig.backup(&[])?;
    last.ensure_all_by_bitmap()?;
    rig.prove(&last, "last").map(drop)
}

#[test]
#[ignore = "slow group unmanaged"]
fn a_served_backup_is_told_of_everywhere_and_keeps_others_out() -> Outcome {
    let mut rig = start()?;
    let served = serve(&rig, &[])?;
    let uuid = uuid(&served)?;
    let uris = each(&served, "uri")?;
    let parameters = rig.aquifer.run(&["params", uuid])?.ok()?.document()?;
    ensure!(parameters["state"] == "exposed" && parameters["disk.0.name"] == "vda", "{parameters}");
    let xml = rig.aquifer.run(&["dumpxml", uuid])?.ok()?.output.clone();
    ensure!(uris.iter().all(|uri| xml.contains(&uri.replace('&', "&amp;"))), "not every export is in {xml}");
    let libvirt = rig.aquifer.run(&["dumpxml", "--libvirt", uuid])?.ok()?.output.clone();
    ensure!(libvirt.contains("mode='pull'") || libvirt.contains("mode=\"pull\""), "{libvirt}");
    ensure!(listed(&rig, &served)?.is_none(), "it is listed before it is one");
    let busy = rig.aquifer.run(&["backup", "vm"])?;
    busy.refused(5, "conflict", &["vm", uuid])?;
    ensure!(finish(&rig, &served, &["--cancel"])? == "cancelled", "not cancelled");
    ensure!(finish(&rig, &served, &["--cancel"])? == "cancelled", "cancelling may be repeated");
    rig.aquifer.run(&["finish", uuid])?.refused(4, "not_found", &[uuid])?;
    rig.wait_clean_but_for_bitmaps()?;
    rig.backup(&[])?.ensure_all_by_bitmap()?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group unmanaged"]
fn what_nobody_reads_ends_with_its_lease() -> Outcome {
    let mut rig = start()?;
    let served = serve(&rig, &["--lease", "3s"])?;
    let keeper = keeper(&rig, &served)?;
    process::wait_for("the keeper to end", 60 * SECOND, || Ok((!process::is_alive(keeper)).then_some(())))?;
    rig.wait_clean_but_for_bitmaps()?;
    rig.aquifer.run(&["finish", uuid(&served)?])?.refused(4, "not_found", &[uuid(&served)?])?;
    ensure!(listed(&rig, &served)?.is_none(), "what nobody read is listed");
    rig.backup(&[])?.ensure_all_by_bitmap()?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group unmanaged"]
fn what_is_read_outlives_its_lease() -> Outcome {
    let rig = start()?;
    let served = serve(&rig, &["--lease", "2s"])?;
    let keeper = keeper(&rig, &served)?;
    // A reader that connects and takes its time.
    let socket = each(&served, "uri")?[0].split("socket=").nth(1).context("no socket")?.to_owned();
    let reader = std::os::unix::net::UnixStream::connect(Path::new(&socket))?;
    let end = std::time::Instant::now() + Duration::from_secs(6);
    process::wait_for("three leases to pass", 30 * SECOND, || {
        ensure!(process::is_alive(keeper), "the keeper gave up what is being read");
        Ok((std::time::Instant::now() >= end).then_some(()))
    })?;
    drop(reader);
    process::wait_for("the keeper to end", 60 * SECOND, || Ok((!process::is_alive(keeper)).then_some(())))
}

#[test]
#[ignore = "slow group unmanaged"]
fn the_guard_of_a_killed_keeper_cleans_up_and_finish_says_so() -> Outcome {
    let mut rig = start()?;
    let served = serve(&rig, &[])?;
    kill(&[keeper(&rig, &served)?])?;
    rig.wait_clean_but_for_bitmaps()?;
    let told = rig.aquifer.run(&["finish", uuid(&served)?])?;
    ensure!(told.code != 0, "an instant that is gone is finished");
    ensure!(listed(&rig, &served)?.is_none(), "what is lost is listed");
    rig.backup(&[])?.ensure_all_by_bitmap()?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group unmanaged"]
fn after_keeper_and_guard_are_killed_another_process_finishes_it() -> Outcome {
    let mut rig = start()?;
    let earliest = rig.guest.seq();
    let served = serve(&rig, &[])?;
    let window = earliest..=rig.guest.next_seq()?;
    let keeper = keeper(&rig, &served)?;
    let guards = process::children(keeper);
    ensure!(!guards.is_empty(), "the keeper has no guard");
    kill(&[guards, vec![keeper]].concat())?;
    // QEMU goes on serving; nothing of ours is needed for reading.
    let images = copy(&rig, &served, "orphan")?;
    check_grown(&images, rig.guest.history(), window)?;
    ensure!(finish(&rig, &served, &[])? == "completed", "not taken over");
    ensure!(listed(&rig, &served)?.is_some_and(|backup| backup["external"] == true), "not listed");
    rig.ensure_clean_but_for_external(1)?;
    rig.backup(&[])?.ensure_all_by_bitmap()
}

#[test]
#[ignore = "slow group unmanaged"]
fn the_next_backup_clears_what_killed_keepers_left_when_the_lease_is_over() -> Outcome {
    let mut rig = start()?;
    let served = serve(&rig, &["--lease", "1s"])?;
    let keeper = keeper(&rig, &served)?;
    kill(&[process::children(keeper), vec![keeper]].concat())?;
    let mut backup = rig.aquifer.run(&["backup", "vm"])?;
    let deadline = std::time::Instant::now() + 30 * SECOND;
    while backup.code == 5 && std::time::Instant::now() < deadline {
        // Its lease is not over yet, and it may still be taken over.
        backup = rig.aquifer.run(&["backup", "vm"])?;
    }
    backup.ok()?;
    rig.ensure_clean()?;
    rig.aquifer.run(&["finish", uuid(&served)?])?.refused(4, "not_found", &[])?;
    Ok(())
}

#[test]
#[ignore = "slow group unmanaged"]
fn what_goes_into_a_repository_alone_is_pulled_at_once() -> Outcome {
    let mut rig = start()?;
    let store = text(&rig.aquifer.repository());
    let xml = rig.folder.path().join("pull.xml");
    fs::write(
        &xml,
        format!("<domainbackup><target type='chunkstore' store='{store}' namespace='prod'/></domainbackup>"),
    )?;
    let earliest = rig.guest.seq();
    let pulled = rig.aquifer.run(&["start-unmanaged", "vm", "--xml", &text(&xml)])?.ok()?.event("done")?;
    let window = earliest..=rig.guest.next_seq()?;
    ensure!(pulled["state"] == "completed", "{pulled}");
    let entry = listed(&rig, &pulled)?.context("not listed")?;
    ensure!(entry["external"] == false && entry["disks"][0]["mode"] == "bitmap", "{entry}");
    let images = rig.aquifer.restore(uuid(&pulled)?, &["vda", "vdb"], "pulled")?;
    check_grown(&images, rig.guest.history(), window)?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group unmanaged"]
fn a_document_asks_for_a_managed_backup_and_for_images_of_its_disks() -> Outcome {
    let mut rig = start()?;
    let [raw, qcow2] = ["copy.raw", "copy.qcow2"].map(|name| rig.folder.path().join(name));
    let xml = rig.folder.path().join("push.xml");
    let document = format!(
        "<domainbackup mode='push'><disks>\
         <disk name='vda' type='file'><driver type='raw'/><target file='{}'/></disk>\
         <disk name='vdb' type='file'><driver type='qcow2'/><target file='{}'/></disk></disks></domainbackup>",
        text(&raw),
        text(&qcow2)
    );
    fs::write(&xml, document)?;
    let arguments = ["backup", "vm", "--xml", &text(&xml)].map(str::to_owned);
    let taken = rig.take(&arguments)?;
    ensure!(taken.done["level"] == "full", "libvirt's words for a full backup: {}", taken.done);
    let converted = rig.folder.path().join("copy-vdb.raw");
    let mut qemu_img = Command::new(tools::tool("qemu-img")?);
    tools::run(qemu_img.args(["convert", "-f", "qcow2", "-O", "raw"]).args([&qcow2, &converted]))?;
    check_grown(&[&raw, &converted], &taken.history, taken.window.clone()).context("the images")?;
    rig.prove(&taken, "restored")?;
    rig.aquifer.run(&["backup", "vm", "--xml", &text(&xml)])?.refused(5, "conflict", &["copy.raw"])?;
    ensure!(rig.aquifer.list()?.len() == 2, "what is refused leaves nothing");
    let again = rig.take(&[&arguments[..], &["--reuse-external".to_owned()]].concat())?;
    tools::run(
        Command::new(tools::tool("qemu-img")?)
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .args([&qcow2, &converted]),
    )?;
    check_grown(&[&raw, &converted], &again.history, again.window.clone()).context("the images again")?;

    let parent = format!("<domainbackup><parent><uuid>{}</uuid></parent></domainbackup>", taken.uuid);
    fs::write(&xml, parent)?;
    let strict = [&arguments[..], &["--strict-parent".to_owned()]].concat();
    rig.aquifer.run(&crate::rig::as_strs(&strict))?.refused(5, "conflict", &["vda", &taken.uuid])?;
    let read = rig.take(&arguments)?;
    read.ensure_mode("vda", "rescan", "not from")?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group unmanaged"]
fn what_is_asked_wrongly_is_refused_and_leaves_nothing() -> Outcome {
    let mut rig = start()?;
    let ask = |rig: &Rig, xml: &str| {
        let file = rig.folder.path().join("asked.xml");
        fs::write(&file, xml)?;
        rig.aquifer.run(&["start-unmanaged", "vm", "--xml", &text(&file)])
    };
    ask(&rig, "<domainbackup><disks><disk name='vdz'><target type='nbd'/></disk></disks></domainbackup>")?
        .refused(4, "not_found", &["vdz", "vda"])?;
    ask(&rig, "<domainbackup><disk/></domainbackup>")?.refused(3, "invalid", &["line 1"])?;
    ask(&rig, "<domainbackup><parent>x<disks/></domainbackup>")?.refused(3, "invalid", &["parent"])?;
    rig.aquifer.run(&["finish", "0190163d-8694-739b-aea5-966c26f8ad90"])?.refused(4, "not_found", &[])?;
    rig.ensure_clean()
}
