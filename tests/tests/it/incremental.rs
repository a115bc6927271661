//! For ever incremental: what a machine lives through, only what changed is read, and each backup is whole by itself.
//!
//! The guest writes all the time, and after whatever happened every backup must still be exactly one state of its
//! ordered writes. How each disk was read is the product's own word; that nothing changed was missed is the checker's.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::pattern::{BLOCK, Pattern};
use aquifer_testkit::{Aquifer, Disk, Format, GuestOptions, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::Outcome;
use crate::rig::{DISK_BYTES, Rig, SECOND, Taken, as_strs, ensure_same, text};

/// Bytes of a chunk, as the repository cuts the disks.
const CHUNK_BYTES: u64 = 128 << 10;

/// A machine with a qcow2 disk `vda` and a raw one `vdb`, and all its backups so far.
struct Life {
    rig: Rig,
    taken: Vec<Taken>,
    /// The disk plugged in later, and what it held at each backup.
    added: Option<String>,
    held: Vec<Option<PathBuf>>,
}

impl Life {
    fn start() -> Result<Life> {
        let disks = [(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)];
        let options =
            GuestOptions { flushes: true, life: Duration::from_secs(900), ..GuestOptions::default() };
        Ok(Life { rig: Rig::start_with(&disks, &options)?, taken: Vec::new(), added: None, held: Vec::new() })
    }

    /// Backs up after some more writes; each disk must be read in its mode, for a reason with its word in it.
    fn backup(&mut self, what: &str, modes: &[(&str, &str, &str)]) -> Outcome {
        let number = self.taken.len();
        let more = self.rig.guest.seq() + 100;
        self.rig.guest.wait_seq(more, 60 * SECOND)?;
        let taken = self.rig.backup(&[]).with_context(|| format!("backup {number}, {what}"))?;
        let held = self.added.as_ref().map(|name| self.copy_of(name, number)).transpose()?;
        for (name, mode, word) in modes {
            taken.ensure_mode(name, mode, word).with_context(|| format!("backup {number}, {what}"))?;
        }
        let parent = self.taken.last().map_or(Value::Null, |parent| json!(parent.uuid));
        ensure!(taken.done["parent"] == parent, "the parent is not {parent}: {}", taken.done);
        self.rig.ensure_clean().with_context(|| format!("backup {number}, {what}"))?;
        for (name, ..) in modes {
            let kept = self.rig.checkpoints(name)?;
            ensure!(kept.len() == 1 && kept[0].contains(&taken.uuid), "{name} keeps {kept:?} after {what}");
        }
        self.taken.push(taken);
        self.held.push(held);
        self.prove(number, "first").with_context(|| format!("backup {number}, {what}"))
    }

    fn all_by_bitmap(&mut self, what: &str) -> Outcome {
        let names: Vec<String> = self.rig.guest.disks().iter().map(|disk| disk.name.clone()).collect();
        self.backup(what, &names.iter().map(|name| (name.as_str(), "bitmap", "")).collect::<Vec<_>>())
    }

    /// The raw disk `name`, which only the test writes to, as it is now.
    fn copy_of(&self, name: &str, number: usize) -> Result<PathBuf> {
        let disk = self.rig.guest.disks().iter().find(|disk| disk.name == name).context("it is gone")?;
        let copy = self.rig.folder.path().join(format!("held-{number}"));
        fs::copy(&disk.path, &copy)?;
        Ok(copy)
    }

    fn prove(&self, number: usize, name: &str) -> Outcome {
        let taken = &self.taken[number];
        let name = format!("{number}-{name}");
        let mut images = self.rig.prove(taken, &name)?;
        if let (Some(disk), Some(held)) = (&self.added, &self.held[number]) {
            let restored = self.rig.aquifer.restore(&taken.uuid, &[disk], &name)?;
            ensure_same(&restored[0], held)?;
            images.extend(restored);
        }
        images.iter().try_for_each(|image| Ok(fs::remove_file(image)?))
    }
}

#[test]
#[ignore = "slow group incremental"]
fn a_machine_s_whole_life_stays_incremental_and_every_backup_is_one_state() -> Outcome {
    let mut life = Life::start()?;
    life.backup("the first", &[("vda", "full", ""), ("vdb", "full", "")])?;
    for _ in 0..4 {
        life.all_by_bitmap("while the guest writes")?;
    }

    life.rig.guest.restart()?;
    let raw_lost_its_bitmap = [("vda", "bitmap", ""), ("vdb", "rescan", "no bitmap")];
    life.backup("after a clean restart", &raw_lost_its_bitmap)?;
    life.all_by_bitmap("after a clean restart, again")?;

    // QEMU writes a bitmap into the image when it ends in order: killed before that, it was never there. One that a
    // QEMU had loaded is there, and marked as in use.
    life.rig.guest.kill_and_restart()?;
    life.backup(
        "after a SIGKILL of the QEMU that made the bitmap",
        &[("vda", "rescan", "bitmap"), ("vdb", "rescan", "no bitmap")],
    )?;
    life.all_by_bitmap("after that SIGKILL, again")?;
    life.rig.guest.restart()?;
    life.rig.guest.kill_and_restart()?;
    life.backup(
        "after a SIGKILL of the QEMU that loaded the bitmap",
        &[("vda", "rescan", "inconsistent"), ("vdb", "rescan", "no bitmap")],
    )?;
    life.all_by_bitmap("after that SIGKILL, again")?;

    for (name, bytes) in [("vda", DISK_BYTES + (1 << 20)), ("vdb", DISK_BYTES + (5 << 20) + 512)] {
        life.rig.guest.resize(name, bytes)?;
        life.all_by_bitmap("after a disk grew")?;
        ensure!(life.taken.last().is_some_and(|taken| taken.done.to_string().contains(&bytes.to_string())));
    }

    let added = Disk::create(life.rig.folder.path(), "vdc", Format::Raw, 8 << 20)?;
    crate::rig::sample(&added.path, 8 << 20)?;
    life.rig.guest.add(added)?;
    life.added = Some("vdc".to_owned());
    life.backup(
        "after a disk was plugged in",
        &[("vda", "bitmap", ""), ("vdb", "bitmap", ""), ("vdc", "full", "")],
    )?;
    life.all_by_bitmap("with the disk plugged in")?;
    life.rig.guest.overwrite("vdc", 3 << 20, 70_000, 0x5a)?;
    life.all_by_bitmap("after a write to the disk plugged in")?;
    // What is written to the new part of a grown disk is dirty, what is not is zero, and both are read.
    life.rig.guest.overwrite("vdc", (8 << 20) - 512, 512, 0x5b)?;
    life.rig.guest.resize("vdc", (9 << 20) + 512)?;
    life.rig.guest.overwrite("vdc", (9 << 20) - 512, 1024, 0x5c)?;
    life.all_by_bitmap("after the disk plugged in grew and was written to")?;

    life.rig.guest.restart()?;
    life.backup(
        "after a restart with three disks",
        &[("vda", "bitmap", ""), ("vdb", "rescan", "no bitmap"), ("vdc", "rescan", "no bitmap")],
    )?;
    while life.taken.len() < 21 {
        life.all_by_bitmap("at the end")?;
    }
    for number in 0..life.taken.len() {
        life.prove(number, "last")?;
    }
    life.rig.aquifer.run(&["verify", "--level", "restore"])?.ok().map(drop)
}

#[test]
#[ignore = "slow group incremental"]
fn two_repositories_take_turns_and_each_stays_incremental_by_its_own_bitmaps() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])?;
    let mut second = Aquifer::with_repository(&rig.folder.path().join("second"))?;
    let mut parents = [Value::Null, Value::Null];
    for round in 0..4 {
        for parent in &mut parents {
            let more = rig.guest.seq() + 100;
            rig.guest.wait_seq(more, 60 * SECOND)?;
            let taken = rig.backup(&[])?;
            ensure!(taken.done["parent"] == *parent, "the parent is not {parent}: {}", taken.done);
            if round > 0 {
                taken.ensure_all_by_bitmap()?;
            }
            rig.ensure_clean()?;
            *parent = json!(taken.uuid);
            rig.prove(&taken, &format!("{round}"))?;
            std::mem::swap(&mut rig.aquifer, &mut second);
        }
    }
    for node in ["vda", "vdb"] {
        let kept = rig.checkpoints(node)?;
        ensure!(kept.len() == 2, "{node} has not one bitmap of each repository: {kept:?}");
    }
    Ok(())
}

#[test]
#[ignore = "slow group incremental"]
fn what_did_not_change_is_neither_read_nor_written() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])?;
    rig.guest.pause()?;
    let first = rig.backup_paused()?;
    let second = rig.backup_paused()?;
    second.ensure_all_by_bitmap()?;
    for name in ["vda", "vdb"] {
        let (before, disk) = (first.disk(name)?, second.disk(name)?);
        let nothing = ["read_bytes", "new_bytes", "stored_bytes", "tree_nodes_written"];
        ensure!(nothing.iter().all(|figure| disk[figure] == 0), "something was done: {disk}");
        ensure!(disk["kept_bytes"].as_u64() > Some(1 << 20), "nothing was kept: {disk}");
        ensure!(before["read_bytes"].as_u64() > Some(1 << 20), "nothing was there: {before}");
    }
    rig.prove(&second, "unchanged").map(drop)
}

#[test]
#[ignore = "slow group incremental"]
fn what_is_read_is_no_more_than_the_chunks_that_changed() -> Outcome {
    let disks = [(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)];
    let mut rig =
        Rig::start_with(&disks, &GuestOptions { writes_per_second: 60, ..GuestOptions::default() })?;
    rig.guest.pause()?;
    let first = rig.backup_paused()?;
    let (_, before) = rig.moment(&rig.aquifer, &first, "before")?;
    rig.guest.resume()?;
    rig.guest.wait_seq(before.last + 30, 60 * SECOND)?;
    rig.guest.pause()?;
    let second = rig.backup_paused()?;
    let (_, after) = rig.moment(&rig.aquifer, &second, "after")?;

    second.ensure_all_by_bitmap()?;
    let changed = changed_bytes(rig.guest.history(), before.write + 1..=after.last)?;
    for (name, changed) in ["vda", "vdb"].into_iter().zip(changed) {
        let disk = second.disk(name)?;
        let read = disk["read_bytes"].as_u64().context("no read_bytes")?;
        ensure!(
            read > 0 && read <= changed,
            "{read} bytes were read, {changed} lie in changed chunks: {disk}"
        );
        let written = disk["tree_nodes_written"].as_u64().context("no tree_nodes_written")?;
        ensure!(
            (1..=1 + changed / CHUNK_BYTES * 2).contains(&written),
            "{written} nodes were written: {disk}"
        );
    }
    Ok(())
}

/// For each disk, the bytes of all chunks that these writes touch.
fn changed_bytes(history: &[u64], writes: RangeInclusive<u64>) -> Result<Vec<u64>> {
    let pattern = Pattern::new(history).context("no history")?;
    let mut chunks = vec![BTreeSet::new(); history.len()];
    for write in writes.map(|seq| pattern.write(seq)) {
        let blocks = CHUNK_BYTES / BLOCK as u64;
        chunks[write.disk].extend(write.block / blocks..=(write.block + write.blocks - 1) / blocks);
    }
    Ok(chunks.iter().map(|chunks| chunks.len() as u64 * CHUNK_BYTES).collect())
}

/// A backup that reads slowly, so that something can happen to it.
const SLOWLY: [&str; 2] = ["--read-limit", "256KiB"];

#[test]
#[ignore = "slow group incremental"]
fn a_cancelled_backup_gives_back_what_it_knew_and_the_next_is_incremental() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])?;
    let kept = rig.backup(&[])?;
    for (round, signal) in [Signal::INT, Signal::TERM, Signal::INT].into_iter().enumerate() {
        let more = rig.guest.seq() + 200;
        rig.guest.wait_seq(more, 60 * SECOND)?;
        let arguments = rig.backup_arguments(&SLOWLY);
        let mut running = rig.aquifer.start(&as_strs(&arguments))?;
        rig.wait_exports(2)?;
        // What is written while the backup runs only its own bitmap knows.
        let more = rig.guest.seq() + 200;
        rig.guest.wait_seq(more, 60 * SECOND)?;
        process::send(running.process().pid()?, signal)?;
        running.wait()?.refused(10, "cancelled", &[])?;
        rig.ensure_clean()?;
        ensure!(rig.aquifer.list()?.len() == 1 + round, "a cancelled backup is listed");
        let next = rig.backup(&[])?;
        next.ensure_all_by_bitmap()?;
        rig.prove(&next, &format!("{round}"))?;
    }
    rig.prove(&kept, "kept").map(drop)
}

#[test]
#[ignore = "slow group incremental"]
fn a_backup_whose_export_is_taken_away_fails_and_the_next_is_incremental() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])?;
    rig.backup(&[])?;
    for disk in 0..2 {
        let more = rig.guest.seq() + 200;
        rig.guest.wait_seq(more, 60 * SECOND)?;
        let arguments = rig.backup_arguments(&SLOWLY);
        let running = rig.aquifer.start(&as_strs(&arguments))?;
        rig.wait_exports(2)?;
        let more = rig.guest.seq() + 100;
        rig.guest.wait_seq(more, 60 * SECOND)?;
        let exports = rig.guest.qmp().query("query-block-exports")?;
        let taken_away = json!({"id": exports[disk]["id"], "mode": "hard"});
        rig.guest.qmp().execute("block-export-del", taken_away)?;
        running.wait()?.refused(7, "unavailable", &[])?;
        rig.ensure_clean()?;
        let next = rig.backup(&[])?;
        next.ensure_all_by_bitmap()?;
        rig.prove(&next, &format!("{disk}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "slow group incremental"]
fn a_backup_that_cannot_begin_changes_nothing_and_the_next_is_incremental() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])?;
    rig.backup(&[])?;
    // Somebody's job holds one disk: QEMU refuses the transaction for all of them.
    let target = Disk::create(rig.folder.path(), "mirror", Format::Raw, DISK_BYTES)?;
    let node = json!({"driver": "file", "node-name": "mirror", "filename": text(&target.path)});
    rig.guest.qmp().execute("blockdev-add", node)?;
    let mirror = json!({"job-id": "theirs", "device": "vdb", "target": "mirror", "sync": "full"});
    rig.guest.qmp().execute("blockdev-mirror", mirror)?;
    let before = rig.checkpoints("vda")?;
    let arguments = rig.backup_arguments(&[]);
    let refused = rig.aquifer.run(&as_strs(&arguments))?;
    ensure!([5, 7].contains(&refused.code), "{refused:?}");
    ensure!(rig.checkpoints("vda")? == before, "the failed transaction changed the bitmaps of vda");
    ensure!(rig.aquifer.list()?.len() == 1, "a backup that never began is listed");

    rig.guest.qmp().execute("job-cancel", json!({"id": "theirs"}))?;
    process::wait_for("the end of their job", 30 * SECOND, || {
        Ok(rig.guest.qmp().query("query-jobs")?.is_empty().then_some(()))
    })?;
    rig.guest.qmp().execute("blockdev-del", json!({"node-name": "mirror"}))?;
    rig.ensure_clean()?;
    let next = rig.backup(&[])?;
    next.ensure_all_by_bitmap()?;
    rig.prove(&next, "next").map(drop)
}

#[test]
#[ignore = "slow group incremental"]
fn list_shows_level_parent_and_what_was_read_and_stored() -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])?;
    let taken = (0..3).map(|_| rig.backup(&[])).collect::<Result<Vec<_>>>()?;
    let listed = rig.aquifer.list()?;
    ensure!(listed.len() == taken.len(), "{listed:?}");
    for (number, (taken, listed)) in taken.iter().zip(listed.iter().rev()).enumerate() {
        let done = &taken.done;
        for same in ["uuid", "parent", "domain", "level"] {
            ensure!(listed[same] == done[same], "{same}: {listed}, and the backup said {done}");
        }
        ensure!(listed["level"] == if number == 0 { "full" } else { "incremental" }, "{listed}");
        ensure!(listed["parent"].is_null() == (number == 0), "{listed}");
        for figure in ["read_bytes", "new_bytes", "stored_bytes"] {
            let disks = done["disks"].as_array().into_iter().flatten();
            let of_all: u64 = disks.filter_map(|disk| disk[figure].as_u64()).sum();
            ensure!(of_all > 0 && listed[figure] == of_all, "{figure} is not {of_all}: {listed}");
        }
        let mode = if number == 0 { "full" } else { "bitmap" };
        ensure!(listed["disks"][0]["mode"] == mode && listed["disks"][1]["mode"] == mode, "{listed}");
    }
    Ok(())
}
