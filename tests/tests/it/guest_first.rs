//! The guest comes first: whatever a backup waits for, the guest's writes do not wait with it.
//!
//! The guest reports how long each of its writes took, by its own clock, which stands still while QEMU stops it;
//! therefore its stops are counted, too. The figures go to standard error: they are for people, and a machine that is
//! busy with other tests is no place for a limit on them. `AQUIFER_STALL_SECONDS` makes the stalls longer.

use std::env;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Aquifer, Format, Freezer, GuestOptions, Latency, Running, process};
use rustix::process::Signal;

use crate::Outcome;
use crate::rig::{Rig, SECOND, as_strs};

/// Bytes of each disk for a second of a stall: enough for the guest to meet, all the time, what is not saved yet.
const DISK_BYTES_PER_SECOND: u64 = 8 << 20;
const WRITES_PER_SECOND: u64 = 100;
/// Bytes of one write of the guest, about.
const WRITE_BYTES: u64 = 32 << 10;

/// How long each stall is, as the guest is to see it.
fn stall() -> Result<Duration> {
    let seconds = env::var("AQUIFER_STALL_SECONDS").map_or(Ok(10), |text| text.parse());
    Ok(Duration::from_secs(seconds.context("AQUIFER_STALL_SECONDS is no number")?))
}

/// A guest that reports its latencies, with a backup of it.
fn start() -> Result<Rig> {
    let options = GuestOptions {
        writes_per_second: WRITES_PER_SECOND,
        flushes: true,
        latencies: true,
        life: 10 * stall()? + Duration::from_secs(300),
        ..GuestOptions::default()
    };
    let bytes = stall()?.as_secs().max(1) * DISK_BYTES_PER_SECOND;
    let mut rig = Rig::start_with(&[(Format::Qcow2, bytes), (Format::Raw, bytes)], &options)?;
    // Blocks that a write meets for the second time are another matter than those that it is the first to fill.
    let more = rig.guest.seq() + 1000;
    rig.guest.wait_seq(more, 120 * SECOND)?;
    Ok(rig)
}

/// Lets the guest write for as long as a stall is, and tells how it fared. It must not have been stopped, and must
/// have written all the time.
fn observe(rig: &mut Rig, what: &str) -> Result<Latency> {
    let length = stall()?;
    let stops = rig.guest.stops()?;
    let first = rig.guest.seq() + 1;
    let started = Instant::now();
    let mut newest = first;
    let mut longest_silence = Duration::ZERO;
    while started.elapsed() < length {
        // A guest that waits as long as the backup does would be silent for the rest of the stall.
        let asked = Instant::now();
        newest = rig.guest.wait_seq(newest + WRITES_PER_SECOND / 10, length + 30 * SECOND)?;
        longest_silence = longest_silence.max(asked.elapsed());
    }
    let elapsed = started.elapsed();
    ensure!(rig.guest.stops()? == stops, "{what}: QEMU stopped the guest");
    ensure!(rig.guest.status()? == "running", "{what}: the guest does not run");
    let writes = first..=newest;
    let latency = rig.guest.latency(writes.clone())?;
    let rate = count(&writes) as f64 / elapsed.as_secs_f64();
    let mut report = io::stderr();
    writeln!(
        report,
        "{what}, {:.1} s: {rate:.0} writes a second, silent for {:.2} s at most; {latency}",
        elapsed.as_secs_f64(),
        longest_silence.as_secs_f64()
    )?;
    ensure!(longest_silence < length / 2, "{what}: the guest wrote nothing for {longest_silence:?}");
    let write = Duration::from_micros(latency.write_us(100));
    ensure!(write < length / 2, "{what}: a write took {write:?}");
    Ok(latency)
}

fn count(writes: &RangeInclusive<u64>) -> u64 {
    writes.end() - writes.start() + 1
}

/// Starts a backup that reads for as long as a stall is, and waits until it serves the disks.
fn start_backup(rig: &mut Rig) -> Result<(Running, u64)> {
    let earliest = rig.guest.seq();
    let limit = format!("--read-limit={}", earliest * WRITE_BYTES / stall()?.as_secs().max(1));
    let arguments = rig.backup_arguments(&[&limit]);
    let running = rig.aquifer.start(&as_strs(&arguments))?;
    rig.wait_exports(2)?;
    Ok((running, earliest))
}

#[test]
#[ignore = "slow group guest_first"]
fn a_guest_writes_on_while_the_store_of_its_backup_is_stalled() -> Outcome {
    if let Some(missing) = Freezer::missing() {
        ensure!(env::var_os("CI").is_none(), "a stalled store cannot be shown: {missing}");
        writeln!(io::stderr(), "NOT SHOWN: a stalled store; {missing}")?;
        return Ok(());
    }
    let mut rig = start()?;
    // A repository of its own on a file system that can be frozen.
    let folder = rig.folder.path().join("stalling");
    std::fs::create_dir(&folder)?;
    let mut freezer = Freezer::mount(&folder, 2 << 30)?;
    std::fs::create_dir(freezer.folder().join("repository"))?;
    symlink(freezer.folder().join("repository"), folder.join("repository"))?;
    rig.aquifer = Aquifer::with_repository(&folder)?;

    observe(&mut rig, "no backup")?;
    let (mut running, earliest) = start_backup(&mut rig)?;
    let latest = rig.guest.next_seq()?;
    freezer.freeze()?;
    observe(&mut rig, "backup with a stalled store")?;
    ensure!(
        running.process().is_running(),
        "the backup ended under the stall: {}",
        running.process().messages()
    );
    ensure!(rig.guest.qmp().query("query-block-exports")?.len() == 2, "the backup gave up under the stall");
    freezer.thaw()?;
    observe(&mut rig, "backup that goes on")?;
    let done = running.wait()?.ok()?.event("done")?;
    let taken = rig.taken(done, earliest..=latest);
    rig.prove(&taken, "stalled")?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group guest_first"]
fn a_guest_writes_on_while_aquifer_hangs() -> Outcome {
    let mut rig = start()?;
    observe(&mut rig, "no backup")?;
    let (mut running, earliest) = start_backup(&mut rig)?;
    let latest = rig.guest.next_seq()?;
    let aquifer = running.process().pid()?;
    process::send(aquifer, Signal::STOP)?;
    observe(&mut rig, "backup by a stopped Aquifer")?;
    process::send(aquifer, Signal::CONT)?;
    observe(&mut rig, "backup that goes on")?;
    let done = running.wait()?.ok()?.event("done")?;
    let taken = rig.taken(done, earliest..=latest);
    rig.prove(&taken, "hung")?;
    rig.ensure_clean()
}
