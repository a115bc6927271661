//! The product as its users have it: the binary `aquifer`, with a repository, a password file and a state folder of
//! its own for each test.
//!
//! The binary is the one that was built with the test: it lies beside the test's own executable, or where
//! `AQUIFER_BIN` says. Nothing is built here.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::Daemon;

/// Hard limit of one command.
const COMMAND_WITHIN: Duration = Duration::from_secs(240);

/// One user's set-up: where the repository lies, and what opens it.
#[derive(Debug)]
pub struct Aquifer {
    binary: PathBuf,
    folder: PathBuf,
    /// Where the repository is, as `--repository` takes it.
    place: OsString,
    runs: AtomicU32,
}

impl Aquifer {
    /// A set-up in `folder`: an empty configuration, a password file, a state folder. The repository, `folder/repository`,
    /// is not there yet.
    pub fn new(folder: &Path) -> Result<Aquifer> {
        let set_up = Aquifer {
            binary: aquifer_binary()?,
            folder: folder.to_owned(),
            place: folder.join("repository").into(),
            runs: AtomicU32::new(0),
        };
        fs::create_dir_all(folder.join("state"))?;
        fs::write(folder.join("aquifer.toml"), "")?;
        write_password(&folder.join("password"))?;
        Ok(set_up)
    }

    /// As [`Aquifer::new`], with the repository made.
    pub fn with_repository(folder: &Path) -> Result<Aquifer> {
        let set_up = Aquifer::new(folder)?;
        set_up.run(&["repository", "init"])?.ok()?;
        Ok(set_up)
    }

    /// The same set-up with its repository at another place, such as a bucket.
    pub fn at(self, place: impl Into<OsString>) -> Aquifer {
        Aquifer { place: place.into(), ..self }
    }

    /// The repository's folder, unless it was placed elsewhere.
    pub fn repository(&self) -> PathBuf {
        self.folder.join("repository")
    }

    /// The file with the repository's password.
    pub fn password_file(&self) -> PathBuf {
        self.folder.join("password")
    }

    /// The folder of caches and journals.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The command, with this set-up in its environment and `--json` in front.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("AQUIFER_PASSWORD_FILE", self.password_file());
        command.env("AQUIFER_STATE_DIR", self.state_dir());
        command.arg("--config").arg(self.folder.join("aquifer.toml"));
        // What the test says itself counts.
        if !arguments.contains(&"--repository") {
            command.arg("--repository").arg(&self.place);
        }
        command.arg("--json").args(arguments);
        command
    }

    /// Runs the command to its end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Result<Ended> {
        self.start(arguments)?.wait()
    }

    /// Starts the command in the background.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        self.start_command(&self.command(arguments))
    }

    /// Starts a changed [`Aquifer::command`] in the background.
    pub fn start_command(&self, command: &Command) -> Result<Running> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let output = self.folder.join(format!("{number}.out"));
        let messages = self.folder.join(format!("{number}.err"));
        let process =
            Daemon::spawn_with_output(command, Some(File::create(&output)?), &messages, COMMAND_WITHIN)?;
        Ok(Running { process, output, command: format!("{command:?}") })
    }

    /// Backs up with these arguments, which must succeed, and returns the `done` event.
    pub fn backup(&self, arguments: &[&str]) -> Result<Value> {
        self.run(&[&["backup"], arguments].concat())?.ok()?.event("done")
    }

    /// Restores each disk of a backup to a new raw file `folder/DISK.NAME`, and returns the files.
    pub fn restore(&self, backup: &str, disks: &[&str], name: &str) -> Result<Vec<PathBuf>> {
        let files: Vec<PathBuf> =
            disks.iter().map(|disk| self.folder.join(format!("{disk}.{name}"))).collect();
        let mut arguments = vec!["restore".to_owned(), backup.to_owned()];
        for (disk, file) in disks.iter().zip(&files) {
            arguments.extend(["--disk".to_owned(), format!("{disk}=raw:{}", file.display())]);
        }
        self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?.ok()?.event("done")?;
        Ok(files)
    }

    /// The backups that the repository lists, newest first.
    pub fn list(&self) -> Result<Vec<Value>> {
        match self.run(&["list"])?.ok()?.document()? {
            Value::Array(backups) => Ok(backups),
            other => anyhow::bail!("`list` printed no array: {other}"),
        }
    }
}

/// A command in the background. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    process: Daemon,
    output: PathBuf,
    command: String,
}

impl Running {
    /// The process, to signal it or to look for its children.
    pub fn process(&mut self) -> &mut Daemon {
        &mut self.process
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Result<Ended> {
        let status = self.process.wait(COMMAND_WITHIN + Duration::from_secs(10))?;
        let output = fs::read(&self.output)?;
        Ok(Ended {
            // `timeout` itself says 124 when the command outlived its limit.
            code: status.code().context("the command was killed")?,
            output: String::from_utf8(output).context("standard output is not UTF-8")?,
            messages: self.process.messages(),
            command: self.command,
        })
    }
}

/// What became of a command.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: i32,
    /// What stood on standard output.
    pub output: String,
    /// What stood on standard error.
    pub messages: String,
    command: String,
}

impl Ended {
    /// Fails, with everything that was printed, unless the command succeeded.
    pub fn ok(&self) -> Result<&Ended> {
        self.with_code(0)
    }

    /// Fails, with everything that was printed, unless the command ended with `code`.
    pub fn with_code(&self, code: i32) -> Result<&Ended> {
        let Ended { code: found, output, messages, command } = self;
        ensure!(*found == code, "exit code {found} instead of {code}: {command}\n{output}\n{messages}");
        Ok(self)
    }

    /// Fails unless the command ended with `code` and an `error` event whose kind is `kind` and whose message, hint or
    /// context contains each of `words`; standard error must have the message, too.
    pub fn refused(&self, code: i32, kind: &str, words: &[&str]) -> Result<&Ended> {
        let error = self.with_code(code)?.event("error")?;
        ensure!(error["kind"] == kind, "the kind is not {kind}: {error}");
        let text = error.to_string().to_lowercase();
        for word in words {
            ensure!(text.contains(&word.to_lowercase()), "{word:?} is not in the error: {error}");
        }
        let message = error["message"].as_str().unwrap_or_default();
        ensure!(
            !message.is_empty() && self.messages.contains(message),
            "standard error lacks: {message}\n{}",
            self.messages
        );
        Ok(self)
    }

    /// Standard output as one JSON document.
    pub fn document(&self) -> Result<Value> {
        serde_json::from_str(&self.output).with_context(|| format!("no JSON document: {}", self.output))
    }

    /// The last JSON line, which must be this event.
    pub fn event(&self, name: &str) -> Result<Value> {
        let last = self.output.lines().last().unwrap_or_default();
        let event: Value =
            serde_json::from_str(last).with_context(|| format!("no JSON line: {}", self.output))?;
        ensure!(event["event"] == name, "the last event is not {name}: {event}");
        Ok(event)
    }
}

/// Writes a password file that nobody else can read.
pub fn write_password(path: &Path) -> Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(b"correct horse battery staple\n")?)
}

/// The binary: the one of `AQUIFER_BIN`, else the one built into the folder of this executable, or the folder above it
/// for a test.
pub fn aquifer_binary() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let beside =
        own.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).map(|folder| folder.join("aquifer"));
    let binary = env::var_os("AQUIFER_BIN")
        .map(PathBuf::from)
        .or(beside)
        .context("the executable lies in no folder")?;
    ensure!(binary.exists(), "{} is not built: `make build` does it", binary.display());
    Ok(binary)
}
