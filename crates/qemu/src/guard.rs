//! The guard: a small process beside every session that ends it when Aquifer is killed.
//!
//! SIGKILL and the out-of-memory killer give no warning, and a session without its master fills its scratch until
//! QEMU stops the guest. So a child waits on a pipe. It reads its plan (one line of JSON) and answers `ready`; a
//! line `done` sends it home; the end of the pipe without it means that the parent died, and the guard connects to
//! the freed monitor and runs the ordinary clean-up.
//!
//! It leads a session of its own and ignores the signals that a terminal or a service manager sends to everybody.
//! Invariant: it does nothing to a QEMU while its parent lives.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, stdin, stdout};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::address::{MonitorAddress, MonitorOptions};
use crate::cleanup::{CleanupReport, Occasion, Scope, connect_and_sweep};
use crate::error::{Error, Result};

/// How long the guard may take to say that it is ready, and to go home.
const PROCESS_DEADLINE: Duration = Duration::from_secs(10);
/// How long the guard tries to reach a monitor that its dead parent has just freed.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(60);
/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Longest plan, in bytes.
const PLAN_BYTES_MAX: u64 = 64 << 10;
const READY: &[u8] = b"ready\n";
const DONE: &[u8] = b"done\n";

/// The program that runs [`run`]: `aquifer guard`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardCommand {
    /// Path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What the guard must know to end a session.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) monitor: MonitorAddress,
    pub(crate) options: MonitorOptions,
    pub(crate) scope: Scope,
    /// Its session, by [`crate::names::session_of`].
    pub(crate) session: String,
}

/// The parent's side. Dropping it without [`Guard::dismiss`] makes the guard act.
#[derive(Debug)]
pub(crate) struct Guard {
    program: String,
    child: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Starts the guard, and returns once it holds the plan and is deaf to signals.
    pub(crate) async fn start(command: &GuardCommand, plan: &Plan) -> Result<Self> {
        let program = command.program.display().to_string();
        let fault = |what| {
            let program = program.clone();
            move |source| Error::Guard { program, what, source }
        };
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(fault("cannot be started"))?;
        let (Some(pipe), Some(answer)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(fault("has no pipes")(std::io::ErrorKind::BrokenPipe.into()));
        };
        let mut guard = Self { program: program.clone(), child, pipe };
        let mut text = serde_json::to_vec(plan).map_err(|error| Error::GuardProtocol(error.to_string()))?;
        text.push(b'\n');
        guard.pipe.write_all(&text).await.map_err(fault("took no plan"))?;
        let mut line = Vec::new();
        let mut answer = BufReader::new(answer.take(PLAN_BYTES_MAX));
        let read = timeout(PROCESS_DEADLINE, answer.read_until(b'\n', &mut line)).await;
        match read {
            Ok(Ok(_)) if line == READY => Ok(guard),
            Ok(Ok(_)) => Err(fault("did not say that it is ready")(std::io::ErrorKind::InvalidData.into())),
            Ok(Err(error)) => Err(fault("gave no answer")(error)),
            Err(_) => Err(fault("gave no answer in time")(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// Sends the guard home: the session has ended.
    pub(crate) async fn dismiss(mut self) -> Result<()> {
        let program = self.program.clone();
        let fault = |what| move |source| Error::Guard { program, what, source };
        if let Err(error) = self.pipe.write_all(DONE).await {
            return Err(fault("died during the session")(error));
        }
        drop(self.pipe);
        match timeout(PROCESS_DEADLINE, self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(fault("cannot be waited for")(error)),
            Err(_) => Err(fault("did not go home")(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

/// The guard's whole life, on standard input and output. Returns when it was dismissed or has cleaned up.
///
/// # Errors
/// A plan that cannot be read; or the clean-up's last error after a minute of attempts.
pub async fn run() -> Result<()> {
    // A group leader cannot lead a session, and has no terminal to fear either.
    let _ = rustix::process::setsid();
    let _deaf = deaf_to([SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])?;
    let mut input = BufReader::new(stdin()).take(PLAN_BYTES_MAX);
    let mut line = Vec::new();
    let protocol = |error: std::io::Error| Error::GuardProtocol(error.to_string());
    input.read_until(b'\n', &mut line).await.map_err(protocol)?;
    let plan: Plan =
        serde_json::from_slice(&line).map_err(|error| Error::GuardProtocol(error.to_string()))?;
    let mut output = stdout();
    output.write_all(READY).await.map_err(protocol)?;
    output.flush().await.map_err(protocol)?;
    line.clear();
    input.set_limit(PLAN_BYTES_MAX);
    // An error of the pipe is its end.
    let _ = input.read_until(b'\n', &mut line).await;
    if line == DONE {
        return Ok(());
    }
    let report = end(&plan).await?;
    tracing::warn!(domain = plan.scope.domain, removed = ?report.removed, continued = report.continued,
        "Aquifer was killed; its session was ended");
    Ok(())
}

async fn end(plan: &Plan) -> Result<CleanupReport> {
    let end = Instant::now() + CLEANUP_DEADLINE;
    loop {
        let occasion = Occasion::CutOff { session: &plan.session };
        match connect_and_sweep(&plan.monitor, &plan.options, &plan.scope, occasion).await {
            Ok(report) => return Ok(report),
            Err(error) if Instant::now() >= end => return Err(error),
            // The dead parent's connection may not be closed yet, or QEMU be busy.
            Err(error) => tracing::debug!(%error, "clean-up will be tried again"),
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// Takes over signals without ever acting on them.
fn deaf_to<const N: usize>(kinds: [SignalKind; N]) -> Result<Vec<Signal>> {
    kinds
        .into_iter()
        .map(|kind| signal(kind).map_err(|error| Error::GuardProtocol(error.to_string())))
        .collect()
}
