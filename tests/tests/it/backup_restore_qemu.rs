//! The main job: a running guest is backed up over QMP and NBD at one instant, and restored byte for byte.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Disk, Format, Server, check, process};
use rustix::process::Signal;
use serde_json::json;

use crate::Outcome;
use crate::rig::{DISK_BYTES, Rig, SECOND, as_strs, ensure_same, text};

fn backed_up_and_restored_at_one_instant(disks: &[(Format, u64)]) -> Outcome {
    let mut rig = Rig::start(disks)?;
    let taken = rig.backup(&["--description", "nightly", "--label", "tier=gold"])?;
    rig.ensure_clean()?;

    ensure!(taken.done["level"] == "full" && taken.done["domain"] == "vm", "{}", taken.done);
    for (disk, told) in rig.disks.iter().zip(taken.done["disks"].as_array().into_iter().flatten()) {
        ensure!(told["name"] == disk.name.as_str() && told["size_bytes"] == disk.bytes, "{told}");
        ensure!(told["mode"] == "full" && told["new_bytes"].as_u64() > Some(0), "{told}");
    }
    let listed = rig.aquifer.list()?;
    ensure!(listed.len() == 1 && listed[0]["uuid"] == taken.uuid.as_str(), "{listed:?}");
    ensure!(listed[0]["description"] == "nightly" && listed[0]["labels"]["tier"] == "gold", "{listed:?}");

    let images = rig.prove(&taken, "restored")?;
    for (image, disk) in images.iter().zip(&rig.disks) {
        ensure!(image.metadata()?.len() == disk.bytes, "{} has another size", image.display());
        // Most of each disk was never written: the restored file must not hold those zeroes.
        let held = image.metadata()?.blocks() * 512;
        ensure!(held < disk.bytes * 3 / 4, "{} holds {held} bytes: its holes were filled", image.display());
    }
    Ok(())
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn two_raw_disks_of_a_writing_guest_come_back_as_one_instant() -> Outcome {
    backed_up_and_restored_at_one_instant(&[(Format::Raw, DISK_BYTES); 2])
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn two_qcow2_disks_of_a_writing_guest_come_back_as_one_instant() -> Outcome {
    backed_up_and_restored_at_one_instant(&[(Format::Qcow2, DISK_BYTES); 2])
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn disks_of_different_kinds_and_uneven_sizes_come_back_as_one_instant() -> Outcome {
    let uneven = DISK_BYTES + 5 * 4096 + 512;
    backed_up_and_restored_at_one_instant(&[
        (Format::Raw, uneven),
        (Format::Qcow2, DISK_BYTES),
        (Format::Raw, uneven),
    ])
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn a_slow_backup_still_shows_the_instant_of_its_start() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let before = rig.guest.seq();
    let arguments = rig.backup_arguments(&["--read-limit", "6MiB"]);
    let running = rig.aquifer.start(&as_strs(&arguments))?;
    process::wait_for("the backup's exports", 60 * SECOND, || {
        Ok((rig.guest.qmp().query("query-block-exports")?.len() == 2).then_some(()))
    })?;
    let begun = rig.guest.next_seq()?;
    let done = running.wait()?.ok()?.event("done")?;
    let ended = rig.guest.seq();
    ensure!(
        ended > begun + 100,
        "the guest wrote too little meanwhile to prove anything: {begun} to {ended}"
    );

    let images = rig.aquifer.restore(done["uuid"].as_str().unwrap_or_default(), &["vda", "vdb"], "slow")?;
    check(&images, before..=begun)?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn each_of_several_backups_keeps_its_own_instant() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let first = rig.backup(&[])?;
    let second = rig.backup(&[])?;
    let third = rig.backup(&[])?;
    ensure!(third.done["parent"] == second.uuid.as_str(), "{}", third.done);
    second.ensure_all_by_bitmap()?;
    third.ensure_all_by_bitmap()?;

    let uuids: Vec<_> = rig.aquifer.list()?.iter().map(|backup| backup["uuid"].clone()).collect();
    ensure!(uuids == [&third, &second, &first].map(|taken| json!(taken.uuid)), "{uuids:?}");
    for (taken, name) in [(&first, "1"), (&second, "2"), (&third, "3")] {
        rig.prove(taken, name)?;
    }
    for level in ["structure", "packs", "chunks", "restore"] {
        rig.aquifer.run(&["verify", "--level", level])?.ok()?;
    }
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn what_did_not_change_is_not_stored_again() -> Outcome {
    let mut rig = Rig::start_raw()?;
    rig.guest.pause()?;
    let arguments = rig.backup_arguments(&[]);
    rig.aquifer.run(&as_strs(&arguments))?.ok()?;
    let again = rig.aquifer.run(&as_strs(&arguments))?.ok()?.event("done")?;
    for disk in again["disks"].as_array().into_iter().flatten() {
        ensure!(disk["new_bytes"] == 0 && disk["kept_bytes"].as_u64() > Some(1 << 20), "{disk}");
    }
    Ok(())
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn one_disk_alone_is_backed_up_and_restored() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let taken = rig.backup(&["--disk", "vdb"])?;
    let names: Vec<_> =
        taken.done["disks"].as_array().into_iter().flatten().map(|disk| disk["name"].clone()).collect();
    ensure!(names == [json!("vdb")], "{names:?}");
    rig.ensure_clean()?;

    // Alone it is no point of the pair's history: a backup of a paused guest can be compared with the disk itself.
    rig.guest.pause()?;
    let arguments = rig.backup_arguments(&["--disk", "vdb"]);
    rig.aquifer.run(&as_strs(&arguments))?.ok()?;
    let images = rig.aquifer.restore("latest:vm", &["vdb"], "alone")?;
    ensure_same(&images[0], &rig.disks[1].path)?;
    ensure!(rig.guest.status()? == "paused", "the backup changed the guest's state");
    Ok(())
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn a_restore_reaches_files_and_exports_and_rewrites_only_what_differs() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let taken = rig.backup(&[])?;
    let images = rig.prove(&taken, "new")?;

    let (file, exported) = (rig.folder.path().join("rewritten.raw"), rig.folder.path().join("exported.raw"));
    fs::copy(&images[0], &file)?;
    // Two blocks of data beside each other get other data.
    let content = fs::read(&file)?;
    let blocks: Vec<_> = content.chunks(4096).collect();
    let damaged = blocks.windows(2).position(|two| two[0][0] != 0 && two[1][0] != 0);
    let damaged = damaged.context("no two blocks of data beside each other")? as u64 * 4096;
    overwrite(&file, damaged, &[0xa5; 8192])?;
    Disk::create(rig.folder.path(), "exported", Format::Raw, DISK_BYTES)?;
    let server = Server::storage_daemon(rig.folder.path(), &exported)?;
    let (to_file, to_export) = (format!("vda=raw:{}", text(&file)), format!("vdb={}", server.uri("disk")));
    let arguments =
        ["restore", &taken.uuid, "--disk", &to_file, "--disk", &to_export, "--rewrite-existing", "--verify"];
    let done = rig.aquifer.run(&arguments)?.ok()?.event("done")?;
    drop(server);
    ensure_same(&images[0], &file)?;
    ensure_same(&images[1], &exported)?;
    let rewritten = done["disks"][0]["written_bytes"].as_u64().unwrap_or(u64::MAX);
    ensure!((8192..=1 << 20).contains(&rewritten), "{rewritten} bytes were written to mend 8192: {done}");
    Ok(())
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn a_dry_run_of_a_restore_writes_nothing() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let taken = rig.backup(&[])?;
    let file = rig.folder.path().join("dry.raw");
    let disk = format!("vda=raw:{}", text(&file));
    rig.aquifer.run(&["restore", &taken.uuid, "--disk", &disk, "--dry-run"])?.ok()?;
    ensure!(!file.exists(), "the dry run made {}", file.display());
    Ok(())
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn an_interrupted_backup_leaves_everything_clean() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let kept = rig.backup(&[])?;
    for signal in [Signal::INT, Signal::TERM] {
        let arguments = rig.backup_arguments(&["--read-limit", "1MiB"]);
        let mut running = rig.aquifer.start(&as_strs(&arguments))?;
        process::wait_for("the backup's exports", 60 * SECOND, || {
            Ok((rig.guest.qmp().query("query-block-exports")?.len() == 2).then_some(()))
        })?;
        process::send(running.process().pid()?, signal)?;
        running.wait()?.refused(10, "cancelled", &[])?;
        rig.ensure_clean()?;
        ensure!(rig.aquifer.list()?.len() == 1, "a cancelled backup is listed");
    }
    rig.prove(&kept, "kept").map(drop)
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn a_scratch_that_fills_ends_the_backup_and_not_the_guest() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let kept = rig.backup(&[])?;
    let arguments = rig.backup_arguments(&["--read-limit", "1MiB", "--scratch-max", "4MiB"]);
    rig.aquifer.run(&as_strs(&arguments))?.refused(7, "unavailable", &["scratch"])?;
    rig.ensure_clean()?;
    let stopped = rig.guest.serial().contains("FAIL");
    ensure!(!stopped, "the guest saw an error: {}", rig.guest.serial());
    rig.prove(&kept, "kept").map(drop)
}

#[test]
#[ignore = "slow group backup_restore_qemu"]
fn what_somebody_else_keeps_in_qemu_is_left_alone() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let bitmap = json!({"node": "vda", "name": "theirs"});
    rig.guest.qmp().execute("block-dirty-bitmap-add", bitmap.clone())?;
    let socket = rig.folder.path().join("theirs.sock");
    let server = json!({"addr": {"type": "unix", "data": {"path": socket}}});
    let export = json!({"type": "nbd", "id": "theirs", "node-name": "vdb", "name": "theirs"});
    rig.guest.qmp().execute("nbd-server-start", server)?;
    rig.guest.qmp().execute("block-export-add", export)?;

    let arguments = rig.backup_arguments(&[]);
    rig.aquifer.run(&as_strs(&arguments))?.refused(5, "conflict", &["theirs"])?;
    let theirs = ["\"theirs\"", "vda/\"theirs\""];
    let left = rig.leftovers()?;
    ensure!(
        left.len() == 2 && theirs.iter().all(|name| left.iter().any(|left| left.contains(name))),
        "{left:?}"
    );

    rig.guest.qmp().execute("nbd-server-stop", json!({}))?;
    let taken = rig.backup(&[])?;
    rig.prove(&taken, "beside")?;
    let left = rig.leftovers()?;
    ensure!(left == ["bitmap: vda/\"theirs\""], "{left:?}");
    Ok(())
}

fn overwrite(file: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let file = fs::File::options().write(true).open(file)?;
    Ok(std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset)?)
}
