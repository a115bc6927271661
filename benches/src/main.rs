//! The side-by-side comparison: Aquifer, its floors and its peers on the same bytes, in turn.
//!
//! Not a test: nothing here asserts a time. Every round times each work once, ours next to its floor, so that a machine
//! whose speed drifts slows both. Peers take part in the first rounds.
//!
//! usage: `compare run DATA PEERS FLOOR_ROUNDS PEER_ROUNDS ROWS` times, and keeps its rows in the file ROWS;
//! `compare report ROWS PAGE PICTURE` puts tables into the Markdown file PAGE between its two marks, and the picture beside
//! it; `compare scale FIGURES PAGE PICTURE` does so with what `scale.sh` wrote. `compare pack FRAMES IMAGE…` and `compare unpack FRAMES` are the floor of a verification. The program `aquifer` is
//! taken from the folder this one lies in.

mod bench;
mod days;
mod floor;
mod job;
mod measure;
mod ours;
mod peers;
mod plot;
mod report;
mod rows;
mod scale;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use bench::Bench;
use job::{Job, Row};
use report::Figures;

/// Between two such lines of the page stands what the last run told.
const MARKS: [&str; 2] = ["<!-- figures of `make bench` -->", "<!-- end of the figures -->"];
const SCALE_MARKS: [&str; 2] =
    ["<!-- figures of `make bench-scale` -->", "<!-- end of the figures of scale -->"];

const USAGE: &str = "usage: compare run DATA PEERS FLOOR_ROUNDS PEER_ROUNDS ROWS | compare report ROWS PAGE PICTURE | \
     compare pack FRAMES IMAGE… | compare unpack FRAMES | compare scale FIGURES PAGE PICTURE";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run", data, peers, floor_rounds, peer_rounds, rows] => {
            let bench = Bench::new(Path::new(data), Path::new(peers))?;
            measure_all(&bench, floor_rounds.parse()?, peer_rounds.parse()?, Path::new(rows))
        }
        ["report", rows, page, picture] => write_report(Path::new(rows), Path::new(page), Path::new(picture)),
        ["scale", figures, page, picture] => {
            let (svg, table) = scale::draw(&fs::read_to_string(figures)?)?;
            fs::write(picture, svg)?;
            put_between(Path::new(page), SCALE_MARKS, &table)
        }
        ["pack", frames, ref images @ ..] => floor::pack(images, Path::new(frames)),
        ["unpack", frames] => floor::unpack(Path::new(frames)),
        _ => bail!(USAGE),
    }
}

fn measure_all(bench: &Bench, floor_rounds: u32, peer_rounds: u32, file: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for round in 1..=floor_rounds.max(peer_rounds) {
        if round <= floor_rounds {
            rows.extend(measure_series(bench, round, &ours::series(bench, round))?);
        }
        if round == 1 {
            for level in ours::LEVELS {
                rows.extend(measure_series(bench, round, &ours::level_series(bench, level))?);
            }
        }
        if round <= peer_rounds {
            for series in peers::series(bench, round) {
                // A peer that fails is told and has no figures of this round; the others go on.
                match measure_series(bench, round, &series) {
                    Ok(figures) => rows.extend(figures),
                    Err(error) => eprintln!("compare: {error:#}"),
                }
            }
        }
        fs::write(file, rows::write(&rows))?;
    }
    Ok(())
}

fn measure_series(bench: &Bench, round: u32, series: &[Job]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for job in series {
        let row = job.run(round, bench.folder())?;
        eprintln!(
            "round {round}: {:<28} {:<22} {:6.2} s wall {:6.2} s cpu {:6.0} MiB peak {:6} MiB stored",
            row.tool,
            row.op.name(),
            row.cost.wall_seconds,
            row.cost.cpu_seconds,
            row.cost.peak_mib,
            row.stored_mib,
        );
        rows.push(row);
    }
    Ok(rows)
}

fn write_report(rows: &Path, page: &Path, picture: &Path) -> Result<()> {
    let figures = Figures::of(rows::read(&fs::read_to_string(rows)?)?);
    fs::write(picture, plot::svg(&figures))?;
    put_between(page, MARKS, &report::tables(&figures))
}

/// Puts `text` between the two lines `marks` of a page.
fn put_between(page: &Path, marks: [&str; 2], text: &str) -> Result<()> {
    let old = fs::read_to_string(page)?;
    let [first, last] = marks;
    let (before, rest) =
        old.split_once(first).with_context(|| format!("{} lacks the line {first}", page.display()))?;
    let (_, after) =
        rest.split_once(last).with_context(|| format!("{} lacks the line {last}", page.display()))?;
    fs::write(page, format!("{before}{first}\n\n{text}\n{last}{after}"))?;
    Ok(())
}
