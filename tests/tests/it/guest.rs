//! The rig itself: what the checker says of a live guest's disks must be true, and it must be able to say no.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_testkit::{Disk, Flaw, Format, Guest, GuestOptions, check, check_grown, process, tempdir};

use crate::Outcome;

const DISK_BYTES: u64 = 64 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// Copies each disk as raw bytes, whoever writes to it at the time.
fn copy(disks: &[Disk], folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let copy_of = |disk: &Disk| {
        let target = folder.join(format!("{}-{name}.raw", disk.name));
        match disk.format {
            Format::Raw => fs::copy(&disk.path, &target).map(drop)?,
            Format::Qcow2 => disk.export_raw(&target)?,
        }
        Ok(target)
    };
    disks.iter().map(copy_of).collect()
}

#[test]
#[ignore = "slow group guest"]
fn disks_copied_while_the_guest_is_paused_are_one_moment() -> Outcome {
    let folder = tempdir()?;
    let disks = ["vda", "vdb"].map(|name| Disk::create(folder.path(), name, Format::Raw, DISK_BYTES));
    let disks = disks.into_iter().collect::<Result<Vec<_>>>()?;
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    guest.wait_seq(300, 60 * SECOND)?;

    let earliest = guest.seq();
    guest.pause()?;
    let images = copy(&disks, folder.path(), "paused")?;
    guest.resume()?;
    let latest = guest.next_seq()?;

    let moment = check(&images, earliest..=latest)?;
    assert!(moment.data_blocks > 1000, "the guest has hardly written: {moment:?}");
    Ok(())
}

#[test]
#[ignore = "slow group guest"]
fn disks_copied_one_after_the_other_while_the_guest_writes_are_torn() -> Outcome {
    let folder = tempdir()?;
    let disks = ["vda", "vdb"].map(|name| Disk::create(folder.path(), name, Format::Raw, DISK_BYTES));
    let disks = disks.into_iter().collect::<Result<Vec<_>>>()?;
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    guest.wait_seq(300, 60 * SECOND)?;

    let mut images = copy(&disks[..1], folder.path(), "torn")?;
    let newest = guest.seq();
    guest.wait_seq(newest + 20, 60 * SECOND)?;
    images.extend(copy(&disks[1..], folder.path(), "torn")?);

    let verdict = check(&images, 0..=u64::MAX);
    assert!(matches!(verdict, Err(Flaw::Torn { .. })), "a torn copy passed: {verdict:?}");
    Ok(())
}

#[test]
#[ignore = "slow group guest"]
fn a_guest_goes_on_with_its_history_after_a_restart() -> Outcome {
    let folder = tempdir()?;
    let disks = [Disk::create(folder.path(), "vda", Format::Qcow2, DISK_BYTES)?];
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    guest.wait_seq(100, 60 * SECOND)?;
    guest.quit()?;
    let first = check(&copy(&disks, folder.path(), "first")?, 100..=u64::MAX)?;

    let options = GuestOptions { first_write: first.last + 1, ..GuestOptions::default() };
    let mut guest = Guest::start(folder.path(), &disks, &options)?;
    guest.wait_seq(first.last + 100, 60 * SECOND)?;
    guest.quit()?;
    let second = check(&copy(&disks, folder.path(), "second")?, first.last + 100..=u64::MAX)?;
    assert!(second.write > first.write);
    Ok(())
}

#[test]
#[ignore = "slow group guest"]
fn a_killed_guest_and_an_ended_one_leave_no_process() -> Outcome {
    let folder = tempdir()?;
    let disks = [Disk::create(folder.path(), "vda", Format::Raw, DISK_BYTES)?];
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    let qemu = guest.process().pid()?;
    guest.process().kill()?;
    ensure!(!process::is_alive(qemu), "QEMU survived its kill");

    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    let qemu = guest.process().pid()?;
    drop(guest);
    ensure!(!process::is_alive(qemu), "QEMU survived the guest");
    Ok(())
}

#[test]
#[ignore = "slow group guest"]
fn a_guest_with_a_file_system_has_an_agent_that_freezes_it() -> Outcome {
    let folder = tempdir()?;
    let disks = [Disk::create(folder.path(), "vda", Format::Raw, DISK_BYTES)?];
    let file_system = Some(Disk::create_ext4(folder.path(), "files", DISK_BYTES)?);
    let mut guest =
        Guest::start(folder.path(), &disks, &GuestOptions { file_system, ..GuestOptions::default() })?;
    process::wait_for("a file", 60 * SECOND, || Ok((guest.files_written() > 0).then_some(())))?;

    let mut agent = UnixStream::connect(guest.agent())?;
    agent.write_all(b"{\"execute\": \"guest-fsfreeze-freeze\"}\n")?;
    let mut answer = [0; 64];
    let length = agent.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    ensure!(answer.contains("\"return\": 1"), "the agent did not freeze one file system: {answer}");

    let frozen_at = guest.files_written();
    guest.next_seq()?;
    let written = guest.seq() + 100;
    guest.wait_seq(written, 60 * SECOND)?;
    // One more may have been written before the freeze and reported after it.
    ensure!(guest.files_written() <= frozen_at + 1, "files were written while frozen");
    agent.write_all(b"{\"execute\": \"guest-fsfreeze-thaw\"}\n")?;
    process::wait_for("more files", 60 * SECOND, || Ok((guest.files_written() > frozen_at + 1).then_some(())))
}

/// The moment that the paused guest's disks are, which lies behind `earliest`.
fn ensure_one_moment(guest: &mut Guest, folder: &Path, earliest: u64, name: &str) -> Outcome {
    let disks = guest.disks()[..guest.history().len()].to_owned();
    let history = guest.history().to_owned();
    // QEMU keeps its images locked while it runs.
    guest.restart_with(|_| {
        check_grown(&copy(&disks, folder, name)?, &history, earliest..=u64::MAX).map(drop).map_err(Into::into)
    })
}

#[test]
#[ignore = "slow group guest"]
fn a_guest_goes_on_with_its_history_after_each_sigkill_of_qemu() -> Outcome {
    let folder = tempdir()?;
    let disks = [
        Disk::create(folder.path(), "vda", Format::Qcow2, DISK_BYTES)?,
        Disk::create(folder.path(), "vdb", Format::Raw, DISK_BYTES)?,
    ];
    let options = GuestOptions { writes_per_second: 0, flushes: true, ..GuestOptions::default() };
    let mut guest = Guest::start(folder.path(), &disks, &options)?;
    for number in 0..3 {
        let newest = guest.seq();
        let killed_at = guest.wait_seq(newest + 500, 60 * SECOND)?;
        guest.kill_and_restart()?;
        let newest = guest.seq();
        ensure!(newest > killed_at, "the history went back from {killed_at} to {newest}");
        ensure_one_moment(&mut guest, folder.path(), newest, &format!("killed-{number}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "slow group guest"]
fn a_guest_goes_on_while_its_disks_grow_shrink_and_swap_their_names() -> Outcome {
    let folder = tempdir()?;
    let disks = [
        Disk::create(folder.path(), "vda", Format::Qcow2, DISK_BYTES)?,
        Disk::create(folder.path(), "vdb", Format::Raw, DISK_BYTES)?,
    ];
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    for name in ["vda", "vdb"] {
        guest.resize(name, DISK_BYTES + (3 << 20))?;
    }
    let newest = guest.next_seq()?;
    ensure_one_moment(&mut guest, folder.path(), newest, "grown")?;
    guest.resize("vdb", DISK_BYTES + (1 << 20))?;
    ensure!(guest.resize("vdb", DISK_BYTES - 512).is_err(), "the history was cut off");
    guest.restart_with(|disks| {
        let (one, other) = disks.split_at_mut(1);
        std::mem::swap(&mut one[0].name, &mut other[0].name);
        Ok(())
    })?;
    ensure!(
        guest.disks()[0].name == "vdb" && guest.disks()[0].format == Format::Qcow2,
        "{:?}",
        guest.disks()
    );
    let newest = guest.next_seq()?;
    ensure_one_moment(&mut guest, folder.path(), newest, "swapped")
}

#[test]
#[ignore = "slow group guest"]
fn a_disk_plugged_in_while_the_guest_runs_takes_bytes_as_the_guest_would_write_them() -> Outcome {
    let folder = tempdir()?;
    let disks = [Disk::create(folder.path(), "vda", Format::Raw, DISK_BYTES)?];
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    guest.add(Disk::create(folder.path(), "vdb", Format::Raw, 8 << 20)?)?;
    guest.overwrite("vdb", 5000, 70_000, 0x5a)?;
    guest.resize("vdb", 9 << 20)?;
    guest.overwrite("vdb", (9 << 20) - 512, 512, 0xa5)?;
    let mut expected = vec![0; 9 << 20];
    expected[5000..75_000].fill(0x5a);
    expected[(9 << 20) - 512..].fill(0xa5);
    ensure!(fs::read(&guest.disks()[1].path)? == expected, "other bytes are on the disk");
    ensure!(guest.overwrite("vda", 0, 512, 1).is_err(), "the history was overwritten");
    // It is still there after a restart, and the history goes on.
    guest.restart()?;
    guest.overwrite("vdb", 0, 512, 1)?;
    guest.quit().map(drop)
}

#[test]
#[ignore = "slow group guest"]
fn a_guest_tells_how_long_each_write_took_and_a_stop_is_counted() -> Outcome {
    let folder = tempdir()?;
    let disks = [Disk::create(folder.path(), "vda", Format::Raw, DISK_BYTES)?];
    let options = GuestOptions { flushes: true, latencies: true, ..GuestOptions::default() };
    let mut guest = Guest::start(folder.path(), &disks, &options)?;
    let end = guest.wait_seq(300, 60 * SECOND)?;
    let latency = guest.latency(1..=end)?;
    ensure!(latency.writes() as u64 == end && latency.write_us(50) > 0, "{latency}");
    ensure!(latency.write_us(50) <= latency.write_us(99) && latency.flush_us(100) > 0, "{latency}");

    ensure!(guest.stops()? == 0, "the guest was stopped by nobody");
    guest.pause()?;
    guest.resume()?;
    ensure!(guest.stops()? == 1, "the stop was not counted");
    Ok(())
}
