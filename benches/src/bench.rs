//! What all works share: the days, the programs, and a folder to work in.
//!
//! Invariant: everything that is written lies below one folder, which ends with this value.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

use crate::days::Day;
use crate::job::{Job, Op};
use crate::ours::LEVELS;

/// See the module.
pub(crate) struct Bench {
    /// The program `aquifer`, beside this one.
    pub(crate) aquifer: PathBuf,
    /// Where `peers.sh` puts its programs.
    pub(crate) peers: PathBuf,
    /// The days in order.
    pub(crate) days: [Day; 3],
    work: TempDir,
}

impl Bench {
    /// Serves the days of `data`.
    pub(crate) fn new(data: &Path, peers: &Path) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("work-").tempdir_in(data)?;
        fs::write(work.path().join("password"), "correct horse battery staple\n")?;
        fs::write(work.path().join("default.toml"), "")?;
        fs::write(work.path().join("unchecked.toml"), "[defaults]\nself_check = false\n")?;
        for level in LEVELS {
            let config = work.path().join(format!("level{level}.toml"));
            fs::write(config, format!("[defaults]\nzstd_level = {level}\n"))?;
        }
        fs::create_dir(work.path().join("source"))?;
        let day = |name| Day::serve(data, name, work.path());
        let days = [day("day0")?, day("day1")?, day("day2")?];
        let aquifer = std::env::current_exe()?.with_file_name("aquifer");
        Ok(Bench { aquifer, peers: peers.to_owned(), days, work })
    }

    /// The folder of everything that is written.
    pub(crate) fn folder(&self) -> &Path {
        self.work.path()
    }

    /// A path below it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// A job that reads the image of a day, and nothing more.
    pub(crate) fn job(&self, tool: &str, op: Op, day: usize, command: String) -> Job {
        let source = self.days[day].image.clone();
        Job { tool: tool.to_owned(), op, before: Vec::new(), source, command, stored: None, same: None }
    }
}
