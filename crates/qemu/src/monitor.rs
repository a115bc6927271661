//! A QMP session that survives what a monitor may say: `qapi` speaks the commands, a line filter stands before it.
//!
//! `qapi` ends its session on one unknown event, on an unknown value in a known one, and when the future of a
//! command is dropped. So each line is looked at first: events go to our own tolerant [`Event`], replies are
//! passed on through a pipe, and every command runs in a task of its own. It is not a keeper of state: whoever
//! needs certainty asks QEMU again.
//!
//! Invariant: no line longer than [`LINE_BYTES_MAX`] is held, no wait is without a deadline, and after the
//! connection has ended every pending and later command fails with the reason.

use std::fmt;
use std::io;
use std::sync::Arc;

use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::QmpCommand;
use qapi::{Command, ErrorClass, ExecuteError};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader, simplex};
use tokio::sync::{OnceCell, broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::{Duration, timeout};

use crate::address::{MonitorAddress, MonitorOptions};
use crate::commands::QuerySchema;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::schema::Capabilities;
use crate::transport::{self, Reader, Writer, millis};

/// Longest line that a monitor may send, in bytes; the schema of QEMU 10 is 236 kB.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Events that may wait for a slow listener; one that falls behind is told, and asks QEMU for its state.
const EVENTS_QUEUED_MAX: usize = 1024;
/// Bytes that may wait between the filter and `qapi`.
const PIPE_BYTES: usize = 64 << 10;

/// One QMP event, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Such as `JOB_STATUS_CHANGE`.
    pub name: String,
    /// Its data; empty where it has none (`STOP`).
    pub data: Map<String, Value>,
    /// QEMU's wall clock, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Event {
    /// A text of the event's data.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.data.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Why a monitor's connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// QEMU ended, or closed the socket.
    EndOfFile,
    /// The connection broke.
    Broken(String),
    /// A line longer than [`LINE_BYTES_MAX`].
    LineTooLong,
    /// A line that is no JSON object of QMP; its beginning.
    Garbage(String),
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfFile => f.write_str("end of file (QEMU has ended, or a guest reset under -no-reboot)"),
            Self::Broken(error) => f.write_str(error),
            Self::LineTooLong => write!(f, "a line of more than {LINE_BYTES_MAX} bytes"),
            Self::Garbage(line) => write!(f, "it sent {line:?}, which is not QMP"),
        }
    }
}

/// A monitor, connected and ready for commands. Clones share the connection; the last one closes it.
#[derive(Clone)]
pub struct Monitor {
    inner: Arc<Inner>,
}

struct Inner {
    address: String,
    version: String,
    package: String,
    service: Arc<QapiService<QmpStreamTokio<Writer>>>,
    events: broadcast::Sender<Event>,
    closed: watch::Receiver<Option<Closed>>,
    command_deadline: Duration,
    capabilities: OnceCell<Capabilities>,
    host: Arc<Host>,
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Both halves of the socket close at once, so that the next client finds the monitor free.
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: GreetingTriple,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct GreetingTriple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl Monitor {
    /// Connects and negotiates (QMP: greeting, `qmp_capabilities`).
    ///
    /// # Errors
    /// [`Error::NoSuchSocket`], [`Error::NotListening`], [`Error::MonitorTaken`], [`Error::MonitorMute`],
    /// [`Error::NotAMonitor`], or what TLS and ssh say.
    pub async fn connect(address: &MonitorAddress, options: &MonitorOptions) -> Result<Self> {
        let host = Arc::new(Host::of(address, options).await?);
        Self::connect_on(address, options, host).await
    }

    pub(crate) async fn connect_on(
        address: &MonitorAddress,
        options: &MonitorOptions,
        host: Arc<Host>,
    ) -> Result<Self> {
        let (reader, writer) = transport::connect(address, options, &host).await?;
        let address = address.to_string();
        let mut reader = BufReader::new(reader);
        let greeting = greet(&mut reader, &address, options.greeting_deadline).await?;
        let GreetingVersion { qemu: greeting, package } = greeting;
        let version = format!("{}.{}.{}", greeting.major, greeting.minor, greeting.micro);

        let (events, _) = broadcast::channel(EVENTS_QUEUED_MAX);
        let (closing, closed) = watch::channel(None);
        let (replies, mut pipe) = simplex(PIPE_BYTES);
        // qapi wants a greeting of its own schema; it gets one without the parts that may surprise it.
        let canonical = json!({"QMP": {"version": {"qemu": {"major": greeting.major, "minor": greeting.minor,
            "micro": greeting.micro}, "package": ""}, "capabilities": []}});
        let fed = write_line(&mut pipe, canonical.to_string().as_bytes()).await;
        debug_assert!(fed.is_ok(), "the pipe is empty and larger than a greeting");
        let negotiation = QmpStreamTokio::open_split(replies, writer)
            .await
            .map_err(|source| Error::Connect { address: address.clone(), source })?;
        let filter = tokio::spawn(filter(reader, pipe, events.clone(), closing)).abort_handle();
        let negotiated =
            timeout(options.command_deadline.min(NEGOTIATION_MAX), negotiation.negotiate()).await;
        let stream = match negotiated {
            Ok(Ok(stream)) => stream,
            outcome => {
                filter.abort();
                return Err(match outcome {
                    Ok(Err(_)) => closed_error(&address, &closed),
                    _ => Error::MonitorMute {
                        address,
                        version,
                        deadline_ms: millis(options.command_deadline.min(NEGOTIATION_MAX)),
                    },
                });
            }
        };
        let (service, pump) = stream.spawn_tokio();
        Ok(Self {
            inner: Arc::new(Inner {
                address,
                version,
                package,
                service: Arc::new(service),
                events,
                closed,
                command_deadline: options.command_deadline,
                capabilities: OnceCell::new(),
                host,
                tasks: [filter, pump.abort_handle()],
            }),
        })
    }

    /// Runs one command of [`crate::commands`].
    ///
    /// # Errors
    /// [`Error::Refused`] with QEMU's words, [`Error::Deadline`], [`Error::MonitorClosed`],
    /// [`Error::UnexpectedReply`].
    pub async fn execute<C>(&self, command: C) -> Result<C::Ok>
    where
        C: QmpCommand + 'static,
        C::Ok: Send,
    {
        let name = <C as Command>::NAME;
        let service = Arc::clone(&self.inner.service);
        // A task of its own: dropping the future of a command would end the whole session.
        let task = tokio::spawn(async move { service.execute(command).await });
        let deadline = self.inner.command_deadline;
        let outcome = timeout(deadline, task).await.map_err(|_| Error::Deadline {
            address: self.inner.address.clone(),
            command: name,
            deadline_ms: millis(deadline),
        })?;
        match outcome {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(ExecuteError::Qapi(error))) => {
                Err(Error::Refused { command: name, description: error.desc })
            }
            Ok(Err(ExecuteError::Io(error))) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Error::UnexpectedReply { command: name, detail: error.to_string() })
            }
            Ok(Err(ExecuteError::Io(_))) | Err(_) => {
                Err(closed_error(&self.inner.address, &self.inner.closed))
            }
        }
    }

    /// Listens to the events from now on. A listener that lags is told so by the channel.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Waits until the connection has ended and says why.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.inner.closed.clone();
        // The sender lives in the filter, which always says why before it ends.
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(Closed::EndOfFile),
            Err(_) => Closed::EndOfFile,
        }
    }

    /// What this QEMU can do; asked once a connection.
    ///
    /// # Errors
    /// Those of [`Monitor::execute`].
    pub async fn capabilities(&self) -> Result<&Capabilities> {
        let ask = || async { Ok(Capabilities::from_schema(&self.execute(QuerySchema(json!({}))).await?)) };
        self.inner.capabilities.get_or_try_init(ask).await
    }

    /// QEMU's version, `major.minor.micro`: for messages, never for decisions.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }

    /// QEMU's version and the package it comes from: what tells one build from another.
    #[must_use]
    pub fn build(&self) -> String {
        format!("{} {}", self.inner.version, self.inner.package).trim_end().to_owned()
    }

    /// Where it was reached.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.inner.host
    }
}

/// Longest wait for the answer to `qmp_capabilities`: a monitor that works answers at once.
const NEGOTIATION_MAX: Duration = Duration::from_secs(10);

fn closed_error(address: &str, closed: &watch::Receiver<Option<Closed>>) -> Error {
    let reason = closed.borrow().clone().unwrap_or(Closed::EndOfFile);
    Error::MonitorClosed { address: address.to_owned(), closed: reason }
}

async fn greet(reader: &mut BufReader<Reader>, address: &str, deadline: Duration) -> Result<GreetingVersion> {
    let mut line = Vec::new();
    let read = timeout(deadline, read_line(reader, &mut line))
        .await
        .map_err(|_| Error::MonitorTaken { address: address.to_owned(), deadline_ms: millis(deadline) })?;
    if let Err(closed) = read {
        return Err(Error::MonitorClosed { address: address.to_owned(), closed });
    }
    let greeting: Greeting = serde_json::from_slice(&line)
        .map_err(|_| Error::NotAMonitor { address: address.to_owned(), line: excerpt(&line) })?;
    Ok(greeting.qmp.version)
}

/// Reads lines until the connection ends; events to `events`, replies to `pipe`, the reason to `closing`.
async fn filter(
    mut reader: BufReader<Reader>,
    mut pipe: impl AsyncWrite + Unpin,
    events: broadcast::Sender<Event>,
    closing: watch::Sender<Option<Closed>>,
) {
    let mut line = Vec::new();
    let reason = loop {
        if let Err(reason) = read_line(&mut reader, &mut line).await {
            break reason;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match sort(&line) {
            Sorted::Event(event) => {
                // Nobody listens: fine.
                let _ = events.send(event);
            }
            Sorted::Reply(reply) => {
                if write_line(&mut pipe, &reply).await.is_err() {
                    break Closed::Garbage("an answer that nobody asked for".to_owned());
                }
            }
            Sorted::Ignored => tracing::debug!(line = excerpt(&line), "monitor line ignored"),
            Sorted::Garbage => break Closed::Garbage(excerpt(&line)),
        }
    };
    tracing::debug!(%reason, "monitor closed");
    // The reason stands before the pipe closes, so that every command that fails by it can tell.
    closing.send_replace(Some(reason));
    // Dropping a half of a simplex pipe does not end it.
    let _ = pipe.shutdown().await;
}

enum Sorted {
    Event(Event),
    Reply(Vec<u8>),
    Ignored,
    Garbage,
}

fn sort(line: &[u8]) -> Sorted {
    let Ok(Value::Object(mut message)) = serde_json::from_slice(line) else { return Sorted::Garbage };
    if let Some(name) = message.get("event").and_then(Value::as_str) {
        let name = name.to_owned();
        let part = |key: &str| message.get("timestamp").and_then(|stamp| stamp[key].as_u64()).unwrap_or(0);
        let at_ms = part("seconds").saturating_mul(1000).saturating_add(part("microseconds") / 1000);
        let data = match message.remove("data") {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        return Sorted::Event(Event { name, data, at_ms });
    }
    if let Some(error) = message.get("error") {
        let class = serde_json::from_value(error["class"].clone()).unwrap_or(ErrorClass::GenericError);
        let description = error["desc"].as_str().unwrap_or("no description");
        let reply = json!({"error": {"class": class, "desc": description}});
        return Sorted::Reply(reply.to_string().into_bytes());
    }
    if message.contains_key("return") { Sorted::Reply(line.to_vec()) } else { Sorted::Ignored }
}

/// One line without its end, in at most [`LINE_BYTES_MAX`] bytes.
async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> std::result::Result<(), Closed> {
    line.clear();
    loop {
        let available = reader.fill_buf().await.map_err(|error| match error.kind() {
            // TLS peers that close without saying so.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Closed::EndOfFile,
            _ => Closed::Broken(error.to_string()),
        })?;
        if available.is_empty() {
            return Err(Closed::EndOfFile);
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(available.len());
        if line.len() + taken > LINE_BYTES_MAX {
            return Err(Closed::LineTooLong);
        }
        line.extend_from_slice(&available[..taken]);
        reader.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            return Ok(());
        }
    }
}

async fn write_line(pipe: &mut (impl AsyncWrite + Unpin), line: &[u8]) -> io::Result<()> {
    pipe.write_all(line).await?;
    pipe.write_all(b"\n").await
}

/// The beginning of a foreign line, fit for a message.
fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(80)]).escape_debug().to_string()
}
