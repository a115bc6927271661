//! Nothing that happens to one disk or its bitmap needs a person, and it costs that disk alone: it is read whole once
//! more, the backup says why, and the next one is incremental again.
//!
//! Each story damages what Aquifer relies on for one disk of two or three. The other disks must be read by their
//! bitmaps, and every backup must be exactly one state of the guest's ordered writes.

use std::fs;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Disk, Format, process};
use rustix::process::Signal;
use serde_json::json;

use crate::Outcome;
use crate::rig::{DISK_BYTES, Rig, SECOND, Taken, address, as_strs, ensure_same, text};

const MIXED: [(Format, u64); 2] = [(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)];
/// Two that keep their bitmaps over a restart.
const KEEPING: [(Format, u64); 2] = [(Format::Qcow2, DISK_BYTES); 2];

/// Some more writes, and a backup that must be one state of them.
fn backed_up(rig: &mut Rig, name: &str, further: &[&str]) -> Result<Taken> {
    let more = rig.guest.seq() + 100;
    rig.guest.wait_seq(more, 60 * SECOND)?;
    let taken = rig.backup(further).with_context(|| name.to_owned())?;
    rig.prove(&taken, name)?;
    Ok(taken)
}

/// The next backup reads every disk by its bitmap, and leaves nothing behind.
fn ensure_healed(rig: &mut Rig, name: &str) -> Outcome {
    backed_up(rig, name, &[])?.ensure_all_by_bitmap().with_context(|| name.to_owned())?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group self_healing"]
fn a_bitmap_that_is_gone_costs_its_disk_alone() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    for node in ["vda", "vdb"] {
        backed_up(&mut rig, &format!("{node}-before"), &[])?;
        let name = rig.checkpoints(node)?.pop().context("no bitmap")?;
        rig.guest.qmp().execute("block-dirty-bitmap-remove", json!({"node": node, "name": name}))?;
        let taken = backed_up(&mut rig, &format!("{node}-gone"), &[])?;
        for name in ["vda", "vdb"] {
            let (mode, word) = if name == node { ("rescan", "no bitmap") } else { ("bitmap", "") };
            taken.ensure_mode(name, mode, word)?;
        }
        ensure_healed(&mut rig, &format!("{node}-healed"))?;
    }
    Ok(())
}

#[test]
#[ignore = "slow group self_healing"]
fn a_bitmap_of_another_granularity_costs_its_disk_alone() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    backed_up(&mut rig, "before", &[])?;
    // Somebody made it anew, coarser than a chunk; what it does not mark may have changed.
    let name = rig.checkpoints("vdb")?.pop().context("no bitmap")?;
    rig.guest.qmp().execute("block-dirty-bitmap-remove", json!({"node": "vdb", "name": name}))?;
    let coarse = json!({"node": "vdb", "name": name, "granularity": 8 << 20});
    rig.guest.qmp().execute("block-dirty-bitmap-add", coarse)?;
    let taken = backed_up(&mut rig, "coarse", &[])?;
    taken.ensure_mode("vda", "bitmap", "")?;
    taken.ensure_mode("vdb", "rescan", "granularity")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_bitmap_that_was_switched_off_costs_its_disk_alone() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    backed_up(&mut rig, "before", &[])?;
    let name = rig.checkpoints("vdb")?.pop().context("no bitmap")?;
    // What the guest writes from here on it does not mark.
    rig.guest.qmp().execute("block-dirty-bitmap-disable", json!({"node": "vdb", "name": name}))?;
    let taken = backed_up(&mut rig, "off", &[])?;
    taken.ensure_mode("vda", "bitmap", "")?;
    taken.ensure_mode("vdb", "rescan", "")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_that_became_smaller_is_read_whole_once() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    for disk in ["vda", "vdb"] {
        rig.guest.resize(disk, DISK_BYTES + (6 << 20))?;
    }
    backed_up(&mut rig, "large", &[])?;
    rig.guest.resize("vdb", DISK_BYTES + (1 << 20) + 512)?;
    let taken = backed_up(&mut rig, "smaller", &[])?;
    taken.ensure_mode("vda", "bitmap", "")?;
    taken.ensure_mode("vdb", "rescan", "smaller")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_that_shrank_and_grew_again_between_two_backups_is_still_right() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    rig.guest.add(Disk::create(rig.folder.path(), "vdc", Format::Raw, 8 << 20)?)?;
    rig.guest.overwrite("vdc", 7 << 20, 1 << 20, 0x5a)?;
    backed_up(&mut rig, "before", &[])?;
    // Its size is what it was, and its end is zero now, without a write.
    rig.guest.resize("vdc", 6 << 20)?;
    rig.guest.resize("vdc", 8 << 20)?;
    let taken = backed_up(&mut rig, "after", &[])?;
    let images = rig.aquifer.restore(&taken.uuid, &["vdc"], "shrunk-and-grown")?;
    let restored = fs::read(&images[0])?;
    ensure!(restored == vec![0; 8 << 20], "the end of the disk came back from before it shrank");
    Ok(())
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_renamed_in_the_configuration_is_read_whole_once() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    let configuration = rig.folder.path().join("aquifer.toml");
    let (monitor, scratch) = (rig.monitor(), rig.scratch());
    let names = |renamed: &str| {
        format!(
            "[domains.vm]\nqmp = \"{monitor}\"\nscratch = \"{scratch}\"\n[domains.vm.disks]\n{renamed} = \"vdb\"\n"
        )
    };
    fs::write(&configuration, names("data"))?;
    let arguments = ["backup", "vm"].map(str::to_owned);
    rig.take(&arguments)?;
    let mut taken = rig.take(&arguments)?;
    taken.ensure_all_by_bitmap()?;

    fs::write(&configuration, names("database"))?;
    for (round, mode) in ["whole", "bitmap"].into_iter().enumerate() {
        let more = rig.guest.seq() + 100;
        rig.guest.wait_seq(more, 60 * SECOND)?;
        taken = rig.take(&arguments)?;
        taken.names[1] = "database".to_owned();
        taken.ensure_mode("vda", "bitmap", "")?;
        match mode {
            "whole" => ensure_whole(&taken, "database")?,
            _ => taken.ensure_all_by_bitmap()?,
        }
        rig.prove(&taken, &format!("renamed-{round}"))?;
        rig.ensure_clean()?;
    }
    Ok(())
}

/// The disk was read whole: as a new one, or again with the reason.
fn ensure_whole(taken: &Taken, name: &str) -> Outcome {
    let disk = taken.disk(name)?;
    let again = disk["mode"] == "rescan" && disk["reason"].as_str().is_some_and(|reason| !reason.is_empty());
    ensure!(again || disk["mode"] == "full", "{disk}");
    Ok(())
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_with_another_id_is_read_whole_once() -> Outcome {
    let mut rig = Rig::start(&KEEPING)?;
    backed_up(&mut rig, "before", &[])?;
    rig.guest.restart_with(|disks| {
        disks[1].name = "vdz".to_owned();
        Ok(())
    })?;
    let taken = backed_up(&mut rig, "renamed", &[])?;
    taken.ensure_mode("vda", "bitmap", "")?;
    ensure_whole(&taken, "vdz")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn two_disks_that_swapped_their_names_are_read_whole_and_a_third_is_not() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES); 3])?;
    backed_up(&mut rig, "before", &[])?;
    rig.guest.restart_with(|disks| {
        disks[0].name = "vdb".to_owned();
        disks[1].name = "vda".to_owned();
        Ok(())
    })?;
    let taken = backed_up(&mut rig, "swapped", &[])?;
    taken.ensure_mode("vda", "rescan", "another disk")?;
    taken.ensure_mode("vdb", "rescan", "another disk")?;
    taken.ensure_mode("vdc", "bitmap", "")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_restored_to_another_image_is_read_whole_once() -> Outcome {
    let mut rig = Rig::start(&KEEPING)?;
    backed_up(&mut rig, "before", &[])?;
    let folder = rig.folder.path().to_owned();
    rig.guest.restart_with(|disks| {
        // The same content in a new file: no bitmap came along.
        let image = folder.join("moved.raw");
        disks[1].export_raw(&image)?;
        disks[1].path = image;
        disks[1].format = Format::Raw;
        Ok(())
    })?;
    let taken = backed_up(&mut rig, "replaced", &[])?;
    taken.ensure_mode("vda", "bitmap", "")?;
    taken.ensure_mode("vdb", "rescan", "no bitmap")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_bitmap_of_somebody_else_is_left_alone_and_marks_on() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    for node in ["vda", "vdb"] {
        let bitmap = json!({"node": node, "name": "theirs", "granularity": 65536});
        rig.guest.qmp().execute("block-dirty-bitmap-add", bitmap)?;
    }
    backed_up(&mut rig, "first", &[])?;
    let taken = backed_up(&mut rig, "second", &[])?;
    taken.ensure_all_by_bitmap()?;
    for node in ["vda", "vdb"] {
        let bitmaps = rig.guest.qmp().bitmaps(node)?;
        let theirs = bitmaps.iter().find(|bitmap| bitmap["name"] == "theirs").context("theirs is gone")?;
        let marks = theirs["count"].as_u64() > Some(1 << 20);
        ensure!(marks && theirs["recording"] == true && theirs["busy"] == false, "{theirs}");
    }
    Ok(())
}

#[test]
#[ignore = "slow group self_healing"]
fn a_bitmap_of_a_backup_of_another_domain_is_not_trusted() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    backed_up(&mut rig, "before", &[])?;
    let (monitor, scratch) = (rig.monitor(), rig.scratch());
    let other = ["backup", "other", "--qmp", &monitor, "--scratch", &scratch, "--disk", "vda"];
    rig.aquifer.run(&other)?.ok()?;
    let taken = backed_up(&mut rig, "after", &[])?;
    taken.ensure_mode("vda", "rescan", "another domain")?;
    taken.ensure_mode("vdb", "bitmap", "")?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_left_out_of_a_backup_is_incremental_against_the_one_before() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    backed_up(&mut rig, "before", &[])?;
    let more = rig.guest.seq() + 100;
    rig.guest.wait_seq(more, 60 * SECOND)?;
    rig.backup(&["--disk", "vdb"])?.ensure_all_by_bitmap()?;
    ensure_healed(&mut rig, "both")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_full_backup_that_was_asked_for_is_full_and_the_next_goes_on_from_it() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    backed_up(&mut rig, "before", &[])?;
    let full = backed_up(&mut rig, "full", &["--full"])?;
    for name in ["vda", "vdb"] {
        full.ensure_mode(name, "full", "asked for")?;
    }
    let next = backed_up(&mut rig, "next", &[])?;
    next.ensure_all_by_bitmap()?;
    ensure!(next.done["parent"] == full.uuid.as_str(), "{}", next.done);
    Ok(())
}

#[test]
#[ignore = "slow group self_healing"]
fn a_repository_that_lost_its_state_folder_stays_incremental() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    backed_up(&mut rig, "before", &[])?;
    fs::remove_dir_all(rig.aquifer.state_dir()).with_context(|| text(&rig.aquifer.state_dir()))?;
    fs::create_dir(rig.aquifer.state_dir())?;
    ensure_healed(&mut rig, "after")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_disk_changed_behind_its_bitmap_is_found_by_a_recheck_and_read_whole_in_the_same_backup() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    let disk = Disk::create(rig.folder.path(), "vdc", Format::Raw, 16 << 20)?;
    rig.guest.add(disk.clone())?;
    rig.guest.overwrite("vdc", 0, 16 << 20, 7)?;
    backed_up(&mut rig, "before", &[])?;
    // Not through QEMU, so that no bitmap takes note of it.
    fs::OpenOptions::new().write(true).open(&disk.path)?.write_all_at(&[9; 4096], 5 << 20)?;
    let taken = backed_up(&mut rig, "rechecked", &["--recheck", "100%"])?;
    taken.ensure_mode("vdc", "rescan", "bitmap wrong: the chunk at byte 5242880")?;
    taken.ensure_mode("vda", "bitmap", "")?;
    ensure!(taken.done["warnings"].to_string().contains("bitmap wrong"), "nobody was told: {}", taken.done);
    let restored = rig.aquifer.restore(&taken.uuid, &["vdc"], "changed")?;
    ensure_same(&restored[0], &disk.path)?;
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_session_of_another_host_is_a_conflict_until_it_is_fenced_and_never_commits_after_it() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    let slow = rig.backup_arguments(&["--read-limit", "1MiB"]);
    let mut stuck = rig.aquifer.start(&as_strs(&slow))?;
    rig.wait_exports(2)?;
    let pid = stuck.process().pid()?;
    process::send(pid, Signal::STOP)?;
    // Another host: a state folder of its own, and the guest's second monitor.
    let (monitor, scratch) = (address(&rig.guest.monitor(1)), rig.scratch());
    let other = |further: &[&str]| {
        let arguments = ["backup", "vm", "--qmp", &monitor, "--scratch", &scratch];
        let mut command = rig.aquifer.command(&[&arguments, further].concat());
        command.env("AQUIFER_STATE_DIR", rig.folder.path().join("other-host"));
        rig.aquifer.start_command(&command)?.wait()
    };
    other(&[])?.refused(5, "conflict", &["heartbeat", "--fence-after"])?;
    let earliest = rig.guest.seq();
    let done = other(&["--fence-after", "0s"])?.ok()?.event("done")?;
    process::send(pid, Signal::CONT)?;
    ensure!(stuck.wait()?.code != 0, "a fenced backup reported success");
    let latest = rig.guest.next_seq()?;
    let taken = rig.taken(done, earliest..=latest);
    rig.prove(&taken, "fenced")?;
    let listed = rig.aquifer.list()?;
    ensure!(listed.len() == 1 && listed[0]["uuid"] == taken.uuid.as_str(), "{listed:?}");
    ensure_healed(&mut rig, "healed")
}

#[test]
#[ignore = "slow group self_healing"]
fn a_base_that_was_deleted_is_not_trusted_and_every_other_backup_is_whole() -> Outcome {
    let mut rig = Rig::start(&MIXED)?;
    let first = backed_up(&mut rig, "first", &[])?;
    let base = backed_up(&mut rig, "base", &[])?;
    base.ensure_all_by_bitmap()?;
    rig.aquifer.run(&["delete", &base.uuid])?.ok()?;
    let taken = backed_up(&mut rig, "after", &[])?;
    for name in ["vda", "vdb"] {
        taken.ensure_mode(name, "rescan", "deleted")?;
    }
    rig.aquifer.run(&["undelete", &base.uuid])?.ok()?;
    rig.prove(&first, "first-again")?;
    rig.prove(&base, "base-again")?;
    ensure_healed(&mut rig, "healed")
}
