//! Killed at every step: whatever Aquifer was about to tell QEMU, the guest goes on, what is ours goes away, and no
//! older backup suffers.
//!
//! Each trial holds one command of the session on its way, before QEMU sees it or after QEMU has answered, and kills
//! Aquifer there, with SIGKILL.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Format, Hold, Proxy, Side, process};
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
    fn start(format: Format) -> Result<Trials> {
        let mut rig = Rig::start(&[(format, DISK_BYTES); 2])?;
        let kept = rig.backup(&[])?;
        let proxy = Proxy::start(&rig.folder.path().join("proxy.qmp"), &rig.guest.monitor(1))?;
        proxy.arm(None);
        let arguments = arguments(&rig, &proxy);
        rig.aquifer.run(&as_strs(&arguments))?.ok()?;
        let commands = proxy.commands();
        ensure!(
            commands.iter().any(|name| name == "transaction"),
            "no session went through the proxy: {commands:?}"
        );
        Ok(Trials { rig, proxy, kept, commands })
    }

    /// Every hold, or every `step`-th one from `first` on.
    fn holds(&self, first: usize, step: usize) -> Vec<Hold> {
        let all = (0..self.commands.len())
            .flat_map(|command| [Side::Before, Side::After].map(|side| Hold { command, side }));
        all.skip(first).step_by(step).collect()
    }

    /// Kills a backup at `hold`. False when it ended without getting there.
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
fn the_guard_of_a_killed_backup_cleans_up_at_once() -> Outcome {
    let mut trials = Trials::start(Format::Raw)?;
    for hold in trials.holds(0, 1) {
        let step = format!("{hold:?} of {:?}", trials.commands[hold.command]);
        trials.kill_at(hold, Victims::Aquifer).with_context(|| step.clone())?;
        trials.rig.wait_clean().with_context(|| step)?;
    }
    trials.ensure_unharmed("guard")
}

#[test]
#[ignore = "slow group kill9"]
fn the_next_backup_cleans_up_after_backup_and_guard_were_killed() -> Outcome {
    let mut trials = Trials::start(Format::Qcow2)?;
    for hold in trials.holds(0, 2) {
        let step = format!("{hold:?} of {:?}", trials.commands[hold.command]);
        trials.kill_at(hold, Victims::Both).with_context(|| step.clone())?;
        let next = arguments(&trials.rig, &trials.proxy);
        trials.rig.aquifer.run(&as_strs(&next))?.ok().with_context(|| step.clone())?;
        trials.rig.ensure_clean().with_context(|| step)?;
    }
    trials.ensure_unharmed("next")
}

#[test]
#[ignore = "slow group kill9"]
fn domain_cleanup_cleans_up_after_backup_and_guard_were_killed() -> Outcome {
    let mut trials = Trials::start(Format::Raw)?;
    for hold in trials.holds(1, 2) {
        let step = format!("{hold:?} of {:?}", trials.commands[hold.command]);
        trials.kill_at(hold, Victims::Both).with_context(|| step.clone())?;
        let (monitor, scratch) = (address(trials.proxy.socket()), trials.rig.scratch());
        let cleanup = ["domain", "cleanup", "vm", "--qmp", &monitor, "--scratch", &scratch];
        trials.rig.aquifer.run(&cleanup)?.ok().with_context(|| step.clone())?;
        trials.rig.ensure_clean().with_context(|| step)?;
    }
    trials.ensure_unharmed("cleanup")
}

#[test]
#[ignore = "slow group kill9"]
fn a_backup_killed_while_it_reads_is_never_listed_and_what_it_stored_is_used_again() -> Outcome {
    let mut rig = Rig::start(&[(Format::Raw, 64 << 20); 2])?;
    let kept = rig.backup(&["--disk", "vda"])?;
    for kills in 1..=3 {
        let arguments = rig.backup_arguments(&["--read-limit", "8MiB"]);
        let mut running = rig.aquifer.start(&as_strs(&arguments))?;
        process::wait_for("the backup's exports", 60 * SECOND, || {
            Ok((rig.guest.qmp().query("query-block-exports")?.len() == 2).then_some(()))
        })?;
        // Any moment of the reading is a good one to die.
        let moment = rig.guest.seq() + 50 * kills;
        rig.guest.wait_seq(moment, Duration::from_secs(60))?;
        running.process().kill()?;
        rig.wait_clean()?;
        ensure!(rig.aquifer.list()?.len() == 1, "a killed backup is listed");
    }
    let taken = rig.backup(&[])?;
    rig.prove(&taken, "after")?;
    rig.aquifer.restore(&kept.uuid, &["vda"], "kept")?;
    rig.aquifer.run(&["verify", "--level", "restore"])?.ok().map(drop)
}
