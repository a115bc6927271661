//! Byte streams to a monitor or agent over every kind of address; no byte is read or written here.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::address::{MonitorAddress, MonitorOptions};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::tls;

pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Connects to `address`; `host` is where its path lies.
pub(crate) async fn connect(
    address: &MonitorAddress,
    options: &MonitorOptions,
    host: &Host,
) -> Result<(Reader, Writer)> {
    let text = address.to_string();
    match address {
        MonitorAddress::Unix(path) => unix(path, &text).await,
        MonitorAddress::Ssh { path, .. } => {
            let local = host.reach_socket(path, &text).await?;
            unix(&local, &text).await
        }
        MonitorAddress::Tcp { host, port } => {
            Ok(boxed(tcp(host, *port, options.greeting_deadline, &text).await?))
        }
        MonitorAddress::Tls { host, port } => {
            let stream = tcp(host, *port, options.greeting_deadline, &text).await?;
            let handshake = tls::connect(stream, host, options, &text);
            let stream = timeout(options.greeting_deadline, handshake).await.map_err(|_| {
                Error::MonitorTaken { address: text.clone(), deadline_ms: millis(options.greeting_deadline) }
            })??;
            Ok(boxed(stream))
        }
    }
}

async fn unix(path: &Path, address: &str) -> Result<(Reader, Writer)> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(boxed(stream)),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => Error::NoSuchSocket { address: address.to_owned() },
            io::ErrorKind::ConnectionRefused => Error::NotListening { address: address.to_owned() },
            // The listener's queue is full: several clients wait for one monitor already.
            io::ErrorKind::WouldBlock => Error::MonitorTaken { address: address.to_owned(), deadline_ms: 0 },
            _ => Error::Connect { address: address.to_owned(), source: error },
        }),
    }
}

async fn tcp(host: &str, port: u16, deadline: Duration, address: &str) -> Result<TcpStream> {
    let connect = TcpStream::connect((host, port));
    let outcome = timeout(deadline, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match outcome {
        Ok(stream) => {
            // QMP is a conversation of small messages; a refused option costs only latency.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(Error::NotListening { address: address.to_owned() })
        }
        Err(source) => Err(Error::Connect { address: address.to_owned(), source }),
    }
}

fn boxed(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> (Reader, Writer) {
    let (reader, writer) = split(stream);
    (Box::new(reader), Box::new(writer))
}

/// A duration in whole milliseconds, for messages.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
