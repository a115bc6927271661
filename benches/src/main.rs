//! The side-by-side comparison: Aquifer, its floors and its peers on the same bytes, in turn.
//!
//! Not a test: nothing here asserts a time. Every round times each work once, ours next to its floor, so
//! that a machine whose speed drifts slows both; the ratio is taken inside a round, and its median is quoted.
//!
//! usage: `compare DATA_DIR [ROUNDS]`, where DATA_DIR holds `disk.raw` (see `dataset.sh`); the program
//! `aquifer` is taken from the folder this one lies in.

mod measure;
mod works;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use measure::{Cost, median};
use works::{Bench, Work};

/// What the figures must stay below: our work, its floor, the target ratio.
const TARGETS: &[(Work, Work, f64)] = &[
    (Work::Full, Work::ZstdFloor, 1.4),
    (Work::FullUnchecked, Work::ZstdFloor, 1.15),
    (Work::Unchanged, Work::NbdcopyFloor, 1.3),
    (Work::Restore, Work::CpFloor, 1.6),
    (Work::Restore, Work::ResticRestore, 1.0),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let data = PathBuf::from(arguments.next().context("usage: compare DATA_DIR [ROUNDS]")?);
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let bench = Bench::new(&data)?;
    let mut costs: BTreeMap<Work, Vec<Cost>> = BTreeMap::new();
    for round in 1..=rounds {
        for work in Work::IN_ORDER {
            let cost = bench.time(*work).with_context(|| format!("{work:?}"))?;
            eprintln!(
                "round {round}: {:<44} {:6.2} s wall {:6.2} s cpu {:6.0} MiB",
                work.title(),
                cost.wall_seconds,
                cost.cpu_seconds,
                cost.peak_mib
            );
            costs.entry(*work).or_default().push(cost);
        }
    }
    print!("{}", table(&bench, &costs, rounds)?);
    Ok(())
}

/// The report in Markdown: one row a work, then one row a target.
fn table(bench: &Bench, costs: &BTreeMap<Work, Vec<Cost>>, rounds: usize) -> Result<String> {
    let mut text = format!("{}\n\nMedians of {rounds} rounds.\n\n", bench.describe()?);
    text += "| work | wall s | cpu s | peak MiB |\n|---|---|---|---|\n";
    for (work, runs) in costs {
        let middle = |pick: fn(&Cost) -> f64| median(&runs.iter().map(pick).collect::<Vec<_>>());
        writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.0} |",
            work.title(),
            middle(|cost| cost.wall_seconds),
            middle(|cost| cost.cpu_seconds),
            middle(|cost| cost.peak_mib)
        )?;
    }
    text += "\n| ours against | median ratio | lowest | highest | target |\n|---|---|---|---|---|\n";
    for (ours, floor, target) in TARGETS {
        let mut ratios: Vec<f64> =
            costs[ours].iter().zip(&costs[floor]).map(|(a, b)| a.wall_seconds / b.wall_seconds).collect();
        ratios.sort_by(f64::total_cmp);
        writeln!(
            text,
            "| {} / {} | {:.2} | {:.2} | {:.2} | ≤ {target} |",
            ours.title(),
            floor.title(),
            median(&ratios),
            ratios[0],
            ratios[ratios.len() - 1]
        )?;
    }
    Ok(text)
}
