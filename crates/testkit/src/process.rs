//! Processes that never outlive the test: ended when their value is dropped, and by `timeout` after a hard limit.
//!
//! The limit holds even when the test itself is killed: `timeout` runs outside of it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at that nothing announces.
const POLL_EVERY: Duration = Duration::from_millis(10);
/// From the start of a server to its first connection, on a machine that is busy with other tests.
const LISTENING_WITHIN: Duration = Duration::from_secs(60);

/// A process in the background, with everything it prints in one file.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    name: String,
    messages: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output in `messages`; `limit` is the longest it may live, in whole seconds.
    pub fn spawn(command: &Command, messages: &Path, limit: Duration) -> Result<Daemon> {
        Daemon::spawn_with_output(command, None, messages, limit)
    }

    /// As [`Daemon::spawn`], with standard output in a file of its own and only standard error in `messages`.
    pub(crate) fn spawn_with_output(
        command: &Command,
        output: Option<File>,
        messages: &Path,
        limit: Duration,
    ) -> Result<Daemon> {
        let name =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let errors = File::create(messages).with_context(|| format!("{}", messages.display()))?;
        let output = output.map_or_else(|| errors.try_clone(), Ok)?;
        let mut limited = Command::new("timeout");
        limited.arg("--kill-after=5").arg(limit.as_secs().to_string());
        limited.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        limited.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = limited.spawn().with_context(|| format!("cannot start {name} under timeout"))?;
        Ok(Daemon { child, name, messages: messages.to_owned() })
    }

    /// What the process has printed so far.
    pub fn messages(&self) -> String {
        fs::read(&self.messages).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The id of the process itself, not of the `timeout` around it.
    pub fn pid(&self) -> Result<u32> {
        let found = children(self.child.id());
        found.first().copied().with_context(|| format!("{} has ended: {}", self.name, self.messages()))
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Fails with the messages of the process if it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "{} has ended ({}): {}", self.name, status(ended), self.messages());
        Ok(())
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} still runs after {within:?}: {}",
                self.name,
                self.messages()
            );
            thread::sleep(POLL_EVERY);
        }
    }

    /// Asks the process to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        send(self.pid()?, Signal::TERM)?;
        self.wait(Duration::from_secs(20))
    }

    /// Ends the process at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        send(self.pid()?, Signal::KILL)?;
        self.wait(Duration::from_secs(20)).map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            // It may end by itself in between: then there is nothing left to do.
            let _ = send(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("no process has the id {pid}"))?;
    kill_process(id, signal).with_context(|| format!("signal to process {pid}"))
}

/// The direct children of a process, none if it is gone.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Whether a process is there and is more than a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// Looks at `condition` until it gives a value; after `within`, fails and says what was waited for.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {within:?} in vain for {what}");
        }
        thread::sleep(POLL_EVERY);
    }
}

/// Connects to a unix socket as soon as a server listens there; fails as soon as that server has ended.
pub(crate) fn connect_to(server: &mut Daemon, socket: &Path) -> Result<UnixStream> {
    wait_for(&format!("a server at {}", socket.display()), LISTENING_WITHIN, || {
        server.ensure_running()?;
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    })
}

fn status(ended: Option<ExitStatus>) -> String {
    ended.map(|status| status.to_string()).unwrap_or_default()
}
