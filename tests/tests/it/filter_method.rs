//! `backup --method filter`: allowed where the doctor's test of this very QEMU passed, and right then; refused elsewhere.
//!
//! Which of the two a machine shows depends on its QEMU: 7.2 fails the doctor's test, 10.0 passes it.

use std::env;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Ended, Format, tools};
use serde_json::Value;

use crate::Outcome;
use crate::rig::{DISK_BYTES, Rig, as_strs};

/// Runs Aquifer with the tested QEMU's programs in front of its path.
fn run(rig: &Rig, arguments: &[&str]) -> Result<Ended> {
    let tested = tools::tool("qemu-storage-daemon")?;
    let folder = tested.parent().context("a program lies in a folder")?;
    let own = env::var_os("PATH").unwrap_or_default();
    let mut command = rig.aquifer.command(arguments);
    command.env("PATH", env::join_paths([folder.to_owned()].into_iter().chain(env::split_paths(&own)))?);
    rig.aquifer.start_command(&command)?.wait()
}

fn rig() -> Result<Rig> {
    Rig::start(&[(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)])
}

/// What the doctor says of the filter, and whether it is good.
fn verdict(rig: &Rig) -> Result<(Value, bool)> {
    let findings = run(rig, &["doctor"])?.ok()?.document()?;
    let found = findings.as_array().into_iter().flatten().find(|finding| finding["check"] == "filter");
    let finding = found.context("the doctor says nothing of the filter")?.clone();
    let good = finding["health"] == "good";
    ensure!(good || finding["health"] == "warning", "no verdict: {finding}");
    Ok((finding, good))
}

#[test]
#[ignore = "slow group filter_method"]
fn a_filter_is_used_where_the_doctor_passed_it_and_refused_with_the_figures_elsewhere() -> Outcome {
    let mut rig = rig()?;
    let (finding, good) = verdict(&rig)?;
    let arguments = rig.backup_arguments(&["--method", "filter"]);
    if !good {
        run(&rig, &as_strs(&arguments))?.refused(9, "unsupported", &["wrong data", "--method classic"])?;
        ensure!(finding["text"].as_str().is_some_and(|text| text.contains("wrong blocks")), "{finding}");
        return rig.ensure_clean();
    }
    for (name, mode) in [("first", "full"), ("second", "bitmap"), ("third", "bitmap")] {
        let earliest = rig.guest.seq();
        let done = run(&rig, &as_strs(&arguments))?.ok()?.event("done")?;
        let latest = rig.guest.next_seq()?;
        let taken = rig.taken(done, earliest..=latest);
        rig.prove(&taken, name)?;
        for disk in ["vda", "vdb"] {
            taken.ensure_mode(disk, mode, "")?;
        }
    }
    rig.wait_clean_but_for_bitmaps()
}

#[test]
#[ignore = "slow group filter_method"]
fn a_qemu_that_no_doctor_has_seen_is_refused_and_the_guest_is_as_it_was() -> Outcome {
    let mut rig = rig()?;
    let arguments = rig.backup_arguments(&["--method", "filter"]);
    run(&rig, &as_strs(&arguments))?.refused(9, "unsupported", &["aquifer doctor"])?;
    rig.ensure_clean()
}
