//! Another machine through the user's own ssh: forwarded unix sockets and a handful of shell commands.
//!
//! Keys, jump hosts and known hosts are ssh's business (`~/.ssh/config`); host keys are checked strictly.
//! Invariant: no path or name is ever pasted into a shell text; they travel as positional arguments.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use openssh::{ControlPersist, ForwardType, KnownHosts, Session, SessionBuilder};
use tempfile::TempDir;

use crate::address::MonitorOptions;
use crate::error::{Error, Result};

/// How long the ssh master outlives a killed Aquifer once nothing uses it, in seconds.
const IDLE_SECONDS: NonZeroUsize = NonZeroUsize::new(30).expect("thirty is not zero");

pub(crate) struct Ssh {
    destination: String,
    session: Session,
    /// Holds ssh's control socket and the local ends of forwarded sockets.
    folder: TempDir,
    forwards: AtomicU32,
}

impl Ssh {
    pub(crate) async fn connect(destination: &str, options: &MonitorOptions) -> Result<Self> {
        let fault = |what| move |source| Error::Ssh { destination: destination.to_owned(), what, source };
        // /tmp and not the runtime folder: socket paths are short, and it exists on every machine.
        let folder = tempfile::Builder::new().prefix("aquifer-ssh-").tempdir_in("/tmp").map_err(|error| {
            fault("making a folder for its sockets in /tmp")(openssh::Error::Master(error))
        })?;
        let mut builder = SessionBuilder::default();
        builder
            .known_hosts_check(KnownHosts::Strict)
            .connect_timeout(options.greeting_deadline.max(Duration::from_secs(10)))
            .server_alive_interval(Duration::from_secs(15))
            .control_persist(ControlPersist::IdleFor(IDLE_SECONDS))
            .control_directory(folder.path());
        if let Some(config) = &options.ssh_config {
            builder.config_file(config);
        }
        let session = builder.connect(destination).await.map_err(fault("connecting"))?;
        Ok(Self { destination: destination.to_owned(), session, folder, forwards: AtomicU32::new(0) })
    }

    /// Whether this session goes to `destination`.
    pub(crate) fn is_to(&self, destination: &str) -> bool {
        self.destination == destination
    }

    /// Makes `remote` reachable as a socket on this machine and gives its path. That the remote end exists and
    /// listens shows only when somebody connects.
    pub(crate) async fn forward(&self, remote: &Path) -> Result<PathBuf> {
        let number = self.forwards.fetch_add(1, Ordering::Relaxed);
        let local = self.folder.path().join(format!("{number}.sock"));
        self.session
            .request_port_forward(ForwardType::Local, local.as_path(), remote)
            .await
            .map_err(|source| self.fault("forwarding a socket", source))?;
        Ok(local)
    }

    /// Whether `path` is a socket there.
    pub(crate) async fn is_socket(&self, path: &Path) -> Result<bool> {
        Ok(self.output("test -S \"$1\"", &[&text(path)]).await?.status.success())
    }

    /// Runs a fixed shell text with positional arguments; gives its standard output.
    pub(crate) async fn shell(&self, what: &'static str, script: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(script, arguments).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Remote { destination: self.destination.clone(), what, detail })
    }

    async fn output(&self, script: &str, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = self.session.command("sh");
        command.args(["-c", script, "sh"]).args(arguments);
        command.output().await.map_err(|source| self.fault("running a command", source))
    }

    fn fault(&self, what: &'static str, source: openssh::Error) -> Error {
        Error::Ssh { destination: self.destination.clone(), what, source }
    }
}

/// A path as text; paths of ours are UTF-8 because addresses and names are.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
