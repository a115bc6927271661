//! QEMU's NBD server: where it listens, whether it is ours, and how it is stopped without stopping the guest.
//!
//! Not an NBD client: of the protocol it speaks a greeting and a goodbye. QEMU has one server at most and no query
//! for it, so a connection is the only question that can be asked.
//!
//! Invariant: `nbd-server-stop` is sent only when no client is between its greeting and its export. QEMU 7.2 waits
//! for such a client without ever reading from it: its main loop stands still for ever, and the guest with it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use crate::address::{MonitorAddress, bracketed};
use crate::cleanup::Scope;
use crate::commands::{NbdServerStart, NbdServerStop};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::monitor::Monitor;
use crate::transport::millis;

/// How long a server may take to greet, and to hang up after a goodbye.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// How long stopping waits for clients to leave: QEMU hangs up after 10 s on one that does not choose an export.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(20);
/// Between two attempts to say goodbye.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// `NBDMAGIC`, `IHAVEOPT` and the handshake flags (NBD protocol, "Newstyle negotiation").
const GREETING_BYTES: usize = 18;
/// Client flags, then `NBD_OPT_ABORT` without data (NBD protocol, "Option types").
const GOODBYE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x02\0\0\0\0";
/// Most that is read after the goodbye: its acknowledgement has 20 bytes.
const LAST_WORDS_BYTES_MAX: u64 = 4096;

/// Where our NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NbdListen {
    /// A socket in the scratch folder, at a path fixed by repository and domain; through ssh it is forwarded.
    Unix,
    /// TCP with mutual TLS, by objects that exist in QEMU.
    Tls {
        /// Address to listen on, such as `0.0.0.0`.
        host: String,
        /// TCP port.
        port: u16,
        /// Id of a `tls-creds-x509` object (`endpoint=server`, `verify-peer=yes`).
        creds: String,
        /// Id of an `authz-list` object; without it every certificate of the authority may read.
        authz: Option<String>,
    },
}

/// How a server takes a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nobody listens, or somebody who hangs up at once.
    Nobody,
    /// Somebody accepts and does not greet, or does not let go: a server that is full.
    Silent,
    /// It greeted, and hung up when it was told goodbye. Whoever connected before and is gone, it has noticed.
    Parted,
}

/// `nbd-server-start` at the scope's address. QEMU refuses when it has a server already: somebody else's, because
/// one of ours was swept away before.
pub(crate) async fn start(monitor: &Monitor, scope: &Scope, max_connections: u32) -> Result<()> {
    let mut arguments = json!({"max-connections": max_connections});
    let address = match &scope.nbd {
        NbdListen::Unix => {
            let path = scope.names()?.socket(&scope.scratch)?;
            json!({"type": "unix", "data": {"path": path}})
        }
        NbdListen::Tls { host, port, creds, authz } => {
            arguments["tls-creds"] = Value::from(creds.as_str());
            if let Some(authz) = authz {
                arguments["tls-authz"] = Value::from(authz.as_str());
            }
            json!({"type": "inet", "data": {"host": host, "port": port.to_string()}})
        }
    };
    arguments["addr"] = address;
    monitor.execute(NbdServerStart(arguments)).await.map(drop)
}

/// `nbd-server-stop`, once every visitor from before has left. Whether there was a server to stop.
///
/// # Errors
/// The monitor's; [`Error::ServerBusy`] when the server does not let go of a visitor: it is left running, because
/// stopping it could stop the guest.
pub(crate) async fn stop(monitor: &Monitor, scope: &Scope) -> Result<bool> {
    let end = Instant::now() + FAREWELL_DEADLINE;
    while !is_deserted(monitor, scope).await? {
        if Instant::now() >= end {
            return Err(Error::ServerBusy { deadline_ms: millis(FAREWELL_DEADLINE) });
        }
        sleep(RETRY_INTERVAL).await;
    }
    match monitor.execute(NbdServerStop(json!({}))).await {
        Ok(_) => Ok(true),
        // Gone between the question and now: what was wanted.
        Err(Error::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether no client is left that could be in the middle of its handshake. The visit tells that QEMU has noticed
/// whoever is gone; who is still there, only the kernel knows. Our exports are gone by now, and their clients with
/// them, so that nobody who is counted has anything to read.
async fn is_deserted(monitor: &Monitor, scope: &Scope) -> Result<bool> {
    // Nobody answers: the socket's file is gone, and no client can be on its way in.
    if visit(monitor, scope).await? == Answer::Silent {
        return Ok(false);
    }
    match &scope.nbd {
        NbdListen::Unix => {
            let socket = scope.names()?.socket(&scope.scratch)?;
            Ok(monitor.host().connections(&socket).await? == 0)
        }
        NbdListen::Tls { .. } => Ok(true),
    }
}

/// Connects to where the scope's server listens, and leaves again.
pub(crate) async fn visit(monitor: &Monitor, scope: &Scope) -> Result<Answer> {
    match &scope.nbd {
        NbdListen::Unix => {
            let socket = scope.names()?.socket(&scope.scratch)?;
            Ok(visit_socket(monitor.host(), &socket).await)
        }
        NbdListen::Tls { host, port, .. } => {
            let address = monitor.address().parse::<MonitorAddress>()?;
            let dial = dial_host(host, &address);
            Ok(match timeout(ANSWER_DEADLINE, TcpStream::connect((dial.as_str(), *port))).await {
                Ok(Ok(stream)) => part(stream, ANSWER_DEADLINE).await,
                Ok(Err(_)) | Err(_) => Answer::Nobody,
            })
        }
    }
}

/// The same for a unix socket of that host.
pub(crate) async fn visit_socket(host: &Host, path: &std::path::Path) -> Answer {
    let Ok(local) = host.reach_socket(path, "").await else { return Answer::Nobody };
    match UnixStream::connect(local).await {
        Ok(stream) => part(stream, ANSWER_DEADLINE).await,
        Err(_) => Answer::Nobody,
    }
}

/// Reads the greeting, says goodbye, and waits until the server has hung up: only then it holds nothing of us.
async fn part(mut stream: impl AsyncRead + AsyncWrite + Unpin, deadline: Duration) -> Answer {
    let mut greeting = [0_u8; GREETING_BYTES];
    match timeout(deadline, stream.read_exact(&mut greeting)).await {
        Err(_) => return Answer::Silent,
        Ok(Err(_)) => return Answer::Nobody,
        Ok(Ok(_)) => {}
    }
    // A server that is gone by now needs no goodbye; the read below tells.
    let _ = stream.write_all(GOODBYE).await;
    let mut last_words = Vec::new();
    let mut rest = stream.take(LAST_WORDS_BYTES_MAX);
    match timeout(deadline, rest.read_to_end(&mut last_words)).await {
        Ok(_) => Answer::Parted,
        Err(_) => Answer::Silent,
    }
}

/// The host that reaches a server listening on `listen`, seen from here: the monitor's, where it listens everywhere.
fn dial_host(listen: &str, monitor: &MonitorAddress) -> String {
    match listen {
        "" | "0.0.0.0" | "::" => monitor.host().unwrap_or("localhost").to_owned(),
        _ => listen.to_owned(),
    }
}

/// `host:port` of a TLS server for a URI.
pub(crate) fn dial_authority(listen: &str, port: u16, monitor: &MonitorAddress) -> String {
    format!("{}:{port}", bracketed(&dial_host(listen, monitor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    const SHORT: Duration = Duration::from_millis(20);
    const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

    #[tokio::test]
    async fn a_visitor_says_goodbye_and_waits_until_the_server_has_hung_up() {
        let (visitor, mut server) = duplex(64);
        let visit = tokio::spawn(part(visitor, ANSWER_DEADLINE));
        server.write_all(GREETING).await.unwrap();
        let mut goodbye = [0_u8; 20];
        server.read_exact(&mut goodbye).await.unwrap();
        assert_eq!(&goodbye[..], GOODBYE);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!visit.is_finished(), "the server still holds its visitor");
        drop(server);
        assert_eq!(visit.await.unwrap(), Answer::Parted);
    }

    #[tokio::test]
    async fn a_server_that_is_full_is_silent_and_one_that_keeps_its_visitor_too() {
        let (visitor, _full) = duplex(64);
        assert_eq!(part(visitor, SHORT).await, Answer::Silent);
        let (visitor, mut keeps) = duplex(64);
        keeps.write_all(GREETING).await.unwrap();
        assert_eq!(part(visitor, SHORT).await, Answer::Silent);
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_at_once_is_none() {
        let (visitor, server) = duplex(64);
        drop(server);
        assert_eq!(part(visitor, ANSWER_DEADLINE).await, Answer::Nobody);
    }
}
