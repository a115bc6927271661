//! One timed command, with what must be prepared before its clock and looked at after it.
//!
//! Not a judge and no figure's place. Invariant: a job leaves behind what the next one of its series needs (the repository
//! of a full backup is what the next day's backup and the restore work on).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::measure::{self, Cost, tree_bytes};

/// What is done, the same words for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    /// The first day into an empty repository, or as much as a floor does of that.
    Full,
    /// The first day, with the check of what was just compressed switched off.
    FullUnchecked,
    /// The second day, all of it read.
    NextDay,
    /// The second day again, all of it read.
    Unchanged,
    /// The second day into a new raw file.
    Restore,
    /// The second day over the third, in place: a quiet day is taken back.
    Rewrite,
    /// The same, with a disk that is not in the page cache.
    RewriteCold,
    /// Every stored chunk is opened.
    Verify,
    /// The third day, for the size of the repository.
    ThirdDay,
}

impl Op {
    /// In the order of a series.
    pub(crate) const ALL: [Self; 9] = [
        Self::Full,
        Self::FullUnchecked,
        Self::NextDay,
        Self::Unchanged,
        Self::Restore,
        Self::Rewrite,
        Self::RewriteCold,
        Self::Verify,
        Self::ThirdDay,
    ];

    /// Whether it reads the whole repository, or nearly so.
    fn reads_what_is_stored(self) -> bool {
        matches!(self, Self::Restore | Self::Rewrite | Self::RewriteCold | Self::Verify)
    }

    /// Its name in files and tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::FullUnchecked => "full, self-check off",
            Self::NextDay => "next day",
            Self::Unchanged => "unchanged",
            Self::Restore => "restore",
            Self::Rewrite => "restore in place",
            Self::RewriteCold => "restore in place, cold",
            Self::Verify => "verify chunks",
            Self::ThirdDay => "third day",
        }
    }
}

/// One command to be timed.
#[derive(Debug)]
pub(crate) struct Job {
    /// Whose.
    pub(crate) tool: String,
    /// What.
    pub(crate) op: Op,
    /// Shell lines before the clock.
    pub(crate) before: Vec<String>,
    /// What is read: it is in the page cache when the clock starts.
    pub(crate) source: PathBuf,
    /// The shell line.
    pub(crate) command: String,
    /// Where what it stores lies; its size is told.
    pub(crate) stored: Option<PathBuf>,
    /// Two files that must be the same after it.
    pub(crate) same: Option<(PathBuf, PathBuf)>,
}

/// What came of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Which round of the run, from 1.
    pub(crate) round: u32,
    /// Whose.
    pub(crate) tool: String,
    /// What.
    pub(crate) op: Op,
    /// What it cost.
    pub(crate) cost: Cost,
    /// MiB in its repository after it; 0 for what has none.
    pub(crate) stored_mib: u64,
}

impl Job {
    /// Prepares, warms, times, and looks at what came out.
    pub(crate) fn run(&self, round: u32, folder: &Path) -> Result<Row> {
        let about = || format!("{}: {}", self.tool, self.op.name());
        for line in &self.before {
            measure::run("sh", &["-c", line]).with_context(about)?;
        }
        measure::warm(&self.source)?;
        if let Some(stored) = self.stored.as_ref().filter(|_| self.op.reads_what_is_stored()) {
            // Some leave what they wrote in the page cache, and some do not.
            let line = format!("find {} -type f -exec cat {{}} + > /dev/null", stored.display());
            measure::run("sh", &["-c", &line]).with_context(about)?;
        }
        let cost = measure::time(&self.command, folder, &folder.join("log")).with_context(about)?;
        if let Some((one, other)) = &self.same {
            measure::run("cmp", &[&one.to_string_lossy(), &other.to_string_lossy()]).with_context(about)?;
            fs::remove_file(other)?;
        }
        let stored_mib = match &self.stored {
            Some(path) if path.is_dir() => tree_bytes(path)? >> 20,
            Some(path) => fs::metadata(path)?.len() >> 20,
            None => 0,
        };
        Ok(Row { round, tool: self.tool.clone(), op: self.op, cost, stored_mib })
    }
}
