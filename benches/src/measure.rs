//! One timed run of one command: wall seconds, processor seconds, peak memory.
//!
//! Not a judge: it prints what the operating system accounted (GNU time), nothing is asserted.
//! Invariant: the source is in the page cache and nothing dirty is left over before the clock starts,
//! and the destination is on the disk before it stops.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// What one run cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    /// From start until the destination was synced, in seconds.
    pub(crate) wall_seconds: f64,
    /// User and system time of the command itself, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Largest resident set of the command, in MiB.
    pub(crate) peak_mib: f64,
}

/// Reads the whole source, so that it is in the page cache, and writes back what is dirty.
pub(crate) fn warm(source: &Path) -> Result<()> {
    let mut file = fs::File::open(source).with_context(|| source.display().to_string())?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    run("sync", &[])
}

/// Runs `command` (a shell line) under GNU time and syncs `destination` inside the clock.
pub(crate) fn time(command: &str, destination: &Path, log: &Path) -> Result<Cost> {
    let figures = log.with_extension("time");
    let started = Instant::now();
    let status = Command::new("/usr/bin/time")
        .args(["-f", "%U %S %M", "-o"])
        .arg(&figures)
        .args(["sh", "-c", command])
        .stdout(fs::File::create(log)?)
        .stderr(fs::File::create(log.with_extension("err"))?)
        .status()
        .context("GNU time does not start; install the Debian package `time`")?;
    run("sync", &["-f", &destination.to_string_lossy()])?;
    let wall_seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{command}: {status}: {}", fs::read_to_string(log.with_extension("err"))?);
    }
    let text = fs::read_to_string(&figures)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [user, system, peak_kib] = numbers[..] else { bail!("GNU time printed {text:?}") };
    Ok(Cost { wall_seconds, cpu_seconds: user + system, peak_mib: peak_kib / 1024.0 })
}

/// Runs a command outside the clock; its failure is an error with its own words.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Total bytes of the files below `path`.
pub(crate) fn tree_bytes(path: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let about = entry.metadata()?;
        total += if about.is_dir() { tree_bytes(&entry.path())? } else { about.len() };
    }
    Ok(total)
}

/// The middle of the figures; the mean of the two middle ones when their number is even.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
