//! Killed at every step: whatever Aquifer was about to tell QEMU, the guest goes on, what is ours goes away, no older
//! backup suffers, and the next one still reads only what changed.
//!
//! Each trial holds one command of the session on its way, before QEMU sees it or after QEMU has answered, and kills
//! Aquifer there, with SIGKILL. The session is one of an incremental backup, of a qcow2 and a raw disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Format, GuestOptions, Hold, Proxy, Side, process};
use rustix::process::Signal;

use crate::Outcome;
use crate::rig::{Rig, SECOND, Taken, address, as_strs};

const DISK_BYTES: u64 = 16 << 20;

/// Who is killed beside Aquifer itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victims {
    /// Aquifer alone: its guard cleans up at once.
    Aquifer,
    /// The guard first, and Aquifer: the next run cleans up.
    Both,
}

struct Trials {
    rig: Rig,
    proxy: Proxy,
    kept: Taken,
    /// The commands of an undisturbed session.
    commands: Vec<String>,
}

impl Trials {
    fn start() -> Result<Trials> {
        let options = GuestOptions { monitors: 2, life: Duration::from_secs(900), ..GuestOptions::default() };
        let mut rig = Rig::start_with(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)], &options)?;
        let kept = rig.backup(&[])?;
        let proxy = Proxy::start(&rig.folder.path().join("proxy.qmp"), &rig.guest.monitor(1))?;
        proxy.arm(None);
        let arguments = arguments(&rig, &proxy);
        rig.take(&arguments)?.ensure_all_by_bitmap()?;
        let commands = proxy.commands();
        ensure!(
            commands.iter().any(|name| name == "transaction"),
            "no session went through the proxy: {commands:?}"
        );
        Ok(Trials { rig, proxy, kept, commands })
    }

    /// Both sides of every transaction, and of the other commands before the first and after the last one of each
    /// name, or the other way round.
    fn holds(&self, turned: bool) -> Vec<Hold> {
        let sides = if turned { [Side::After, Side::Before] } else { [Side::Before, Side::After] };
        let is_end = |command: usize, side| {
            let name = &self.commands[command];
            let others =
                if side == sides[0] { &self.commands[..command] } else { &self.commands[command + 1..] };
            !others.contains(name) || name == "transaction"
        };
        let all = (0..self.commands.len())
            .flat_map(|command| [Side::Before, Side::After].map(|side| Hold { command, side }));
        all.filter(|hold| is_end(hold.command, hold.side)).collect()
    }

    /// The next backup has every disk read by its bitmap, leaves everything clean, and is one state of the guest.
    fn ensure_next_is_incremental(&mut self, name: &str) -> Result<Taken> {
        self.proxy.arm(None);
        let arguments = arguments(&self.rig, &self.proxy);
        let taken = self.rig.take(&arguments)?;
        taken.ensure_all_by_bitmap()?;
        self.rig.ensure_clean()?;
        for image in self.rig.prove(&taken, name)? {
            std::fs::remove_file(image)?;
        }
        Ok(taken)
    }

    /// Kills a backup at `hold`.
    fn kill_at(&mut self, hold: Hold, victims: Victims) -> Result<()> {
        self.proxy.arm(Some(hold));
        let arguments = arguments(&self.rig, &self.proxy);
        let mut running = self.rig.aquifer.start(&as_strs(&arguments))?;
        let held = self.proxy.wait_held(30 * SECOND).with_context(|| running.process().messages());
        let aquifer = running.process().pid().context("the backup ended before it could be killed")?;
        let guards = process::children(aquifer);
        if victims == Victims::Both {
            guards.iter().try_for_each(|&guard| process::send(guard, Signal::KILL))?;
        }
        process::send(aquifer, Signal::KILL)?;
        self.proxy.release();
        held?;
        process::wait_for("the killed processes to be gone", 10 * SECOND, || {
            let dead = guards
                .iter()
                .chain([&aquifer])
                .all(|&id| victims == Victims::Aquifer || !process::is_alive(id));
            Ok((dead && !process::is_alive(aquifer)).then_some(()))
        })
    }

    /// Everything is as it was, a new backup works, and the one from before restores.
    fn ensure_unharmed(&mut self, name: &str) -> Outcome {
        self.proxy.arm(None);
        let taken = self.rig.backup(&[])?;
        self.rig.ensure_clean()?;
        self.rig.prove(&taken, &format!("{name}-new"))?;
        self.rig.prove(&self.kept, &format!("{name}-kept")).map(drop)
    }
}

fn arguments(rig: &Rig, proxy: &Proxy) -> Vec<String> {
    let (monitor, scratch) = (address(proxy.socket()), rig.scratch());
    ["backup", "vm", "--qmp", &monitor, "--scratch", &scratch].map(str::to_owned).to_vec()
}

#[test]
#[ignore = "slow group kill9"]
fn the_guard_of_a_killed_backup_cleans_up_at_once_and_the_next_is_incremental() -> Outcome {
    let mut trials = Trials::start()?;
    for (number, hold) in trials.holds(false).into_iter().enumerate() {
        let step = format!("{hold:?} of {:?}", trials.commands[hold.command]);
        trials.kill_at(hold, Victims::Aquifer).with_context(|| step.clone())?;
        trials.rig.wait_clean_but_for_bitmaps().with_context(|| step.clone())?;
        trials.ensure_next_is_incremental(&format!("guard-{number}")).with_context(|| step)?;
    }
    trials.ensure_unharmed("guard")
}

#[test]
#[ignore = "slow group kill9"]
fn the_next_backup_cleans_up_after_backup_and_guard_were_killed_and_is_incremental() -> Outcome {
    let mut trials = Trials::start()?;
    for (number, hold) in trials.holds(true).into_iter().enumerate() {
        let step = format!("{hold:?} of {:?}", trials.commands[hold.command]);
        trials.kill_at(hold, Victims::Both).with_context(|| step.clone())?;
        trials.ensure_next_is_incremental(&format!("next-{number}")).with_context(|| step)?;
    }
    trials.ensure_unharmed("next")
}

#[test]
#[ignore = "slow group kill9"]
fn domain_cleanup_cleans_up_after_backup_and_guard_were_killed() -> Outcome {
    let mut trials = Trials::start()?;
    for hold in trials.holds(true).into_iter().step_by(2) {
        let step = format!("{hold:?} of {:?}", trials.commands[hold.command]);
        trials.kill_at(hold, Victims::Both).with_context(|| step.clone())?;
        let (monitor, scratch) = (address(trials.proxy.socket()), trials.rig.scratch());
        let cleanup = ["domain", "cleanup", "vm", "--qmp", &monitor, "--scratch", &scratch];
        trials.rig.aquifer.run(&cleanup)?.ok().with_context(|| step.clone())?;
        trials.rig.wait_clean_but_for_bitmaps().with_context(|| step)?;
    }
    trials.ensure_next_is_incremental("cleanup-next")?;
    trials.ensure_unharmed("cleanup")
}

#[test]
#[ignore = "slow group kill9"]
fn killed_between_its_commit_and_the_end_of_the_old_bitmap_a_backup_is_the_parent_of_the_next() -> Outcome {
    let mut trials = Trials::start()?;
    let last = trials.commands.iter().rposition(|name| name == "transaction").context("no transaction")?;
    for (number, victims) in [Victims::Aquifer, Victims::Both].into_iter().enumerate() {
        let before = trials.rig.aquifer.list()?.len();
        trials.kill_at(Hold { command: last, side: Side::Before }, victims)?;
        let listed = trials.rig.aquifer.list()?;
        ensure!(listed.len() == before + 1, "the old bitmap goes before the new backup is there");
        let bitmaps = trials.rig.checkpoints("vda")?;
        ensure!(bitmaps.len() == 2, "the old bitmap and the new one are not both there: {bitmaps:?}");
        let next = trials.ensure_next_is_incremental(&format!("committed-{number}"))?;
        ensure!(next.done["parent"] == listed[0]["uuid"], "{} is not the parent: {}", listed[0], next.done);
    }
    Ok(())
}

#[test]
#[ignore = "slow group kill9"]
fn killed_again_and_again_without_a_backup_between_what_changed_is_still_known() -> Outcome {
    let mut trials = Trials::start()?;
    trials.proxy.arm(None);
    for killed in 1..=3 {
        let slowly = [arguments(&trials.rig, &trials.proxy), vec!["--read-limit=64KiB".to_owned()]].concat();
        let before = trials.rig.checkpoints("vdb")?;
        let mut running = trials.rig.aquifer.start(&as_strs(&slowly))?;
        // The killed one's exports are still there until this one has cleaned up; its own bitmap says that it has.
        process::wait_for("the backup's own bitmap", 60 * SECOND, || {
            let now = trials.rig.checkpoints("vdb")?;
            Ok(now.iter().any(|name| !before.contains(name)).then_some(()))
        })?;
        trials.rig.wait_exports(2)?;
        // What is written now only the bitmap of this backup knows.
        let more = trials.rig.guest.seq() + 200;
        trials.rig.guest.wait_seq(more, 60 * SECOND)?;
        let aquifer = running.process().pid()?;
        let guards = process::children(aquifer);
        guards.iter().chain([&aquifer]).try_for_each(|&process| process::send(process, Signal::KILL))?;
        process::wait_for("the killed processes to be gone", 10 * SECOND, || {
            Ok(guards.iter().chain([&aquifer]).all(|&process| !process::is_alive(process)).then_some(()))
        })?;
        let bitmaps = trials.rig.checkpoints("vdb")?;
        ensure!(bitmaps.len() == 2, "killed {killed} times, vdb has {bitmaps:?}");
    }
    trials.ensure_next_is_incremental("again").map(drop)
}

#[test]
#[ignore = "slow group kill9"]
fn a_backup_killed_while_it_reads_is_never_listed_and_what_it_stored_is_used_again() -> Outcome {
    let mut rig = Rig::start(&[(Format::Raw, 64 << 20); 2])?;
    let kept = rig.backup(&["--disk", "vda"])?;
    for kills in 1..=3 {
        let arguments = rig.backup_arguments(&["--read-limit", "8MiB"]);
        let mut running = rig.aquifer.start(&as_strs(&arguments))?;
        rig.wait_exports(2)?;
        // Any moment of the reading is a good one to die.
        let moment = rig.guest.seq() + 50 * kills;
        rig.guest.wait_seq(moment, Duration::from_secs(60))?;
        running.process().kill()?;
        rig.wait_clean_but_for_bitmaps()?;
        ensure!(rig.aquifer.list()?.len() == 1, "a killed backup is listed");
    }
    let taken = rig.backup(&[])?;
    taken.ensure_mode("vda", "bitmap", "")?;
    taken.ensure_mode("vdb", "full", "")?;
    rig.ensure_clean()?;
    rig.prove(&taken, "after")?;
    rig.aquifer.restore(&kept.uuid, &["vda"], "kept")?;
    rig.aquifer.run(&["verify", "--level", "restore"])?.ok().map(drop)
}
