//! A file system that can be frozen: every write to it stalls until it is thawed, as with a store that hangs.
//!
//! It is an ext4 in a file, on a loop device, so it takes root. A shell of its own mounts and freezes it at our word,
//! and thaws and unmounts it when we are gone, however we went: a process that writes to a frozen file system cannot
//! be killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::tools;

/// Obeys one word a line, answers each with `ok` or with what went wrong, and tidies up at the end of its input.
const SHELL: &str = r#"
exec 2>&1
PATH="$PATH:/usr/sbin:/sbin"
mount -o loop "$1" "$2" && echo ok || exit 1
while read -r word; do
    case "$word" in
        freeze) fsfreeze --freeze "$2" && echo ok ;;
        thaw) fsfreeze --unfreeze "$2" && echo ok ;;
    esac
done
fsfreeze --unfreeze "$2" 2>/dev/null
umount "$2" || umount --lazy "$2"
"#;

/// A mounted file system of its own. Dropping it thaws and unmounts it.
#[derive(Debug)]
pub struct Freezer {
    shell: Child,
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
}

impl Freezer {
    /// Why this machine cannot have one; `None` when it can.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("freezing a file system takes root".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices".to_owned());
        }
        ["mkfs.ext4", "fsfreeze", "mount", "umount"]
            .into_iter()
            .find_map(|name| tools::tool(name).err().map(|error| error.to_string()))
    }

    /// Makes a file system of `bytes` bytes and mounts it at `folder/frozen`.
    pub fn mount(folder: &Path, bytes: u64) -> Result<Freezer> {
        let (image, mounted) = (folder.join("frozen.ext4"), folder.join("frozen"));
        File::create(&image)?.set_len(bytes)?;
        tools::run(Command::new(tools::tool("mkfs.ext4")?).args(["-q", "-F"]).arg(&image))?;
        fs::create_dir(&mounted)?;
        let mut shell = Command::new("sh");
        shell.args(["-c", SHELL, "sh"]).arg(&image).arg(&mounted);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let words = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().context("the shell has no output")?);
        let mut freezer = Freezer { shell, words, answers, folder: mounted };
        freezer.answer()?;
        Ok(freezer)
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stalls every write from now on.
    pub fn freeze(&mut self) -> Result<()> {
        self.obey("freeze")
    }

    /// Lets the stalled writes go on.
    pub fn thaw(&mut self) -> Result<()> {
        self.obey("thaw")
    }

    fn obey(&mut self, word: &str) -> Result<()> {
        writeln!(self.words.as_mut().context("the shell has ended")?, "{word}")?;
        self.answer().with_context(|| word.to_owned())
    }

    fn answer(&mut self) -> Result<()> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer.trim() == "ok", "{}: {}", self.folder.display(), answer.trim());
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.words = None;
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_write_to_a_frozen_file_system_waits_for_the_thaw() {
        if let Some(why) = Freezer::missing() {
            let _ = writeln!(std::io::stderr(), "not tried: {why}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut freezer = Freezer::mount(folder.path(), 16 << 20).unwrap();
        let file = freezer.folder().join("file");
        freezer.freeze().unwrap();
        let (sender, written) = mpsc::channel();
        thread::spawn(move || sender.send(fs::write(&file, "text").is_ok()));
        assert!(written.recv_timeout(Duration::from_millis(300)).is_err(), "the write did not wait");
        freezer.thaw().unwrap();
        assert!(written.recv_timeout(Duration::from_secs(10)).unwrap());
        let mounted = freezer.folder().to_owned();
        drop(freezer);
        assert!(!mounted.join("file").exists(), "it is still mounted");
    }
}
