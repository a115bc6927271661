//! The guest agent: freeze the guest's file systems around one instant, and thaw them whatever happens.
//!
//! The agent's protocol has no ids: a stale answer of an earlier client is skipped by `guest-sync-delimited`.
//! Invariant: from the moment a freeze is sent, a task of its own owns the thaw. It thaws when told, when the
//! session is dropped, and when the watchdog's time is over, whichever comes first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::address::{MonitorAddress, MonitorOptions};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::transport::{self, Reader, Writer, millis};

/// Longest answer that is read, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long a frozen guest may stay so: applications in it stand still.
const FROZEN_MAX: Duration = Duration::from_secs(10);
/// How long the agent may take to freeze: it writes out what is dirty first.
const FREEZE_DEADLINE: Duration = Duration::from_secs(30);
/// How long the agent may take for anything else.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How often a thaw is tried, each time on a fresh connection.
const THAW_ATTEMPTS: u32 = 5;
/// Byte that makes the agent forget half a request, and that precedes a delimited answer.
const DELIMITER: u8 = 0xFF;

/// A guest agent, and the connection to it.
pub(crate) struct Agent {
    address: MonitorAddress,
    options: MonitorOptions,
    host: Arc<Host>,
    stream: Option<Stream>,
}

struct Stream {
    reader: BufReader<Reader>,
    writer: Writer,
}

impl Agent {
    /// Connects; over ssh with the monitor's own connection when the agent's socket is on the same machine.
    pub(crate) async fn connect_beside(
        address: &MonitorAddress,
        options: &MonitorOptions,
        monitor_host: &Arc<Host>,
    ) -> Result<Self> {
        let host = match (&**monitor_host, address) {
            (Host::Ssh(ssh), MonitorAddress::Ssh { destination, .. }) if ssh.is_to(destination) => {
                Arc::clone(monitor_host)
            }
            _ => Arc::new(Host::of(address, options).await?),
        };
        let mut agent = Self { address: address.clone(), options: options.clone(), host, stream: None };
        agent.connect_afresh().await?;
        Ok(agent)
    }

    /// Whether the guest's file systems are frozen (`guest-fsfreeze-status`).
    pub(crate) async fn is_frozen(&mut self) -> Result<bool> {
        Ok(self.ask("guest-fsfreeze-status", ANSWER_DEADLINE).await? == "frozen")
    }

    /// Thaws, on fresh connections as long as that fails.
    pub(crate) async fn thaw(&mut self) -> Result<()> {
        let mut outcome = self.ask("guest-fsfreeze-thaw", ANSWER_DEADLINE).await;
        for _ in 1..THAW_ATTEMPTS {
            match &outcome {
                Ok(_) => break,
                Err(error) => tracing::warn!(%error, "thaw failed, trying again"),
            }
            outcome = match self.connect_afresh().await {
                Ok(()) => self.ask("guest-fsfreeze-thaw", ANSWER_DEADLINE).await,
                Err(error) => Err(error),
            };
        }
        outcome.map(drop)
    }

    /// The agent serves one client at a time, so the old connection goes before the new one comes.
    async fn connect_afresh(&mut self) -> Result<()> {
        self.stream = None;
        let (reader, writer) = transport::connect(&self.address, &self.options, &self.host).await.map_err(
            |error| match error {
                Error::NoSuchSocket { address } => Error::NoSuchAgent { address },
                error => error,
            },
        )?;
        self.stream = Some(Stream { reader: BufReader::new(reader), writer });
        self.synchronise().await
    }

    /// Sends the delimiter and a number, and reads until that number comes back.
    async fn synchronise(&mut self) -> Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        // Another than any other process used a moment ago on the same socket.
        let id = (u64::from(std::process::id()) << 32) | u64::from(NUMBER.fetch_add(1, Ordering::Relaxed));
        let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        self.within("guest-sync-delimited", ANSWER_DEADLINE, async |stream| {
            stream.writer.write_all(&[DELIMITER]).await?;
            stream.send(&request).await?;
            while stream.receive().await?["return"] != id {}
            Ok(())
        })
        .await
    }

    async fn ask(&mut self, command: &'static str, deadline: Duration) -> Result<Value> {
        let request = json!({"execute": command});
        let exchange = async |stream: &mut Stream| {
            stream.send(&request).await?;
            stream.receive().await
        };
        let mut answer = self.within(command, deadline, exchange).await?;
        match answer.get("error") {
            Some(error) => Err(Error::AgentRefused {
                address: self.address.to_string(),
                command,
                description: error["desc"].as_str().unwrap_or("no description").to_owned(),
            }),
            None => Ok(answer["return"].take()),
        }
    }

    /// An exchange that fails or is dropped half way takes its connection along: its answer may still come, and
    /// must not be taken for the next one's.
    async fn within<T>(
        &mut self,
        command: &'static str,
        deadline: Duration,
        exchange: impl AsyncFnOnce(&mut Stream) -> io::Result<T>,
    ) -> Result<T> {
        let address = self.address.to_string();
        let Some(mut stream) = self.stream.take() else {
            return Err(Error::AgentBroken { address, source: io::ErrorKind::NotConnected.into() });
        };
        match timeout(deadline, exchange(&mut stream)).await {
            Err(_) => Err(Error::AgentSilent { address, command, deadline_ms: millis(deadline) }),
            Ok(Err(source)) => Err(Error::AgentBroken { address, source }),
            Ok(Ok(answer)) => {
                self.stream = Some(stream);
                Ok(answer)
            }
        }
    }
}

impl Stream {
    async fn send(&mut self, request: &Value) -> io::Result<()> {
        self.writer.write_all(format!("{request}\n").as_bytes()).await?;
        self.writer.flush().await
    }

    /// One answer; the delimiter before it is dropped, and a line that is no JSON is an empty answer.
    async fn receive(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        let bytes = (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if bytes == 0 || line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = line.iter().rposition(|&byte| byte == DELIMITER).map_or(0, |at| at + 1);
        Ok(serde_json::from_slice(&line[start..]).unwrap_or(Value::Null))
    }
}

/// A frozen guest, on its way to be thawed.
pub(crate) struct Frozen {
    /// Dropping it thaws as well.
    release: oneshot::Sender<()>,
    task: JoinHandle<Result<Thawed>>,
}

/// How a freeze ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thawed {
    /// From the agent's answer to the freeze until its answer to the thaw, in milliseconds.
    pub(crate) frozen_ms: u64,
    /// Whether the watchdog did it.
    pub(crate) by_watchdog: bool,
}

impl Frozen {
    /// Freezes the guest. The thaw is certain from here on, even if this future is dropped half way.
    pub(crate) async fn begin(
        address: &MonitorAddress,
        options: &MonitorOptions,
        monitor_host: &Arc<Host>,
    ) -> Result<Self> {
        let mut agent = Agent::connect_beside(address, options, monitor_host).await?;
        if agent.is_frozen().await? {
            return Err(Error::AlreadyFrozen { address: address.to_string() });
        }
        let (release, released) = oneshot::channel();
        let (started, start) = oneshot::channel();
        let task = tokio::spawn(hold(agent, started, released));
        match start.await {
            Ok(Ok(())) => Ok(Self { release, task }),
            Ok(Err(error)) => Err(error),
            // The task sends before anything in it can end.
            Err(_) => Err(Error::AgentBroken {
                address: address.to_string(),
                source: io::ErrorKind::BrokenPipe.into(),
            }),
        }
    }

    /// Thaws, unless the watchdog did, and tells for how long the guest stood.
    pub(crate) async fn thaw(self) -> Result<Thawed> {
        // A watchdog that was quicker has closed the channel; its answer is the task's.
        let _ = self.release.send(());
        self.task.await.unwrap_or_else(|error| {
            Err(Error::AgentBroken { address: "task".to_owned(), source: io::Error::other(error) })
        })
    }
}

/// Owns the guest from freeze to thaw.
async fn hold(
    mut agent: Agent,
    started: oneshot::Sender<Result<()>>,
    mut released: oneshot::Receiver<()>,
) -> Result<Thawed> {
    let frozen = tokio::select! {
        frozen = agent.ask("guest-fsfreeze-freeze", FREEZE_DEADLINE) => Some(frozen),
        // The session was dropped while the agent still writes out.
        _ = &mut released => None,
    };
    let since = Instant::now();
    let thawed = |by_watchdog| Thawed { frozen_ms: millis(since.elapsed()), by_watchdog };
    let Some(Ok(_)) = frozen else {
        // It may have frozen a part, or do it yet.
        let outcome = agent.thaw().await;
        if let Some(Err(error)) = frozen {
            // A receiver that is gone wanted nothing but the thaw.
            let _ = started.send(Err(error));
        }
        return outcome.map(|()| thawed(false));
    };
    let _ = started.send(Ok(()));
    let by_watchdog = timeout(FROZEN_MAX, released).await.is_err();
    agent.thaw().await?;
    Ok(thawed(by_watchdog))
}
