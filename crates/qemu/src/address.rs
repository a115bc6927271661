//! Where a monitor or a guest agent listens: the text form, and nothing that connects.
//!
//! Invariant: a parsed [`MonitorAddress`] prints back to a text that parses to the same value, and a plain TCP
//! address is always on the loopback interface, because QMP without TLS is a root shell of the guest's host.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The address of a QMP monitor or of a guest agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MonitorAddress {
    /// `unix:PATH`: a socket on this machine.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`: plain TCP, loopback only.
    Tcp {
        /// `localhost` or a loopback address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `tls:HOST:PORT`: TCP with mutual x509 TLS.
    Tls {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `ssh://[user@]host[:port]/path`: a unix socket on another machine, forwarded by the user's own ssh.
    Ssh {
        /// `ssh://[user@]host[:port]`, as `ssh` takes it.
        destination: String,
        /// Path of the socket on that machine.
        path: PathBuf,
    },
}

/// How a monitor is reached and how long Aquifer waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorOptions {
    /// Folder with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`; needed for `tls:` and for a TLS NBD server.
    pub tls_certificates: Option<PathBuf>,
    /// Name that the server's certificate must carry, if it is not the host of the address.
    pub tls_hostname: Option<String>,
    /// Configuration file for `ssh`; without it the user's own.
    pub ssh_config: Option<PathBuf>,
    /// How long to wait for the greeting: a monitor that serves somebody else accepts and stays silent.
    pub greeting_deadline: Duration,
    /// How long to wait for the answer to one command.
    pub command_deadline: Duration,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        Self {
            tls_certificates: None,
            tls_hostname: None,
            ssh_config: None,
            greeting_deadline: Duration::from_secs(5),
            command_deadline: Duration::from_secs(30),
        }
    }
}

impl MonitorAddress {
    /// The host part, where there is one: what an NBD client on this machine dials too.
    pub(crate) fn host(&self) -> Option<&str> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp { host, .. } | Self::Tls { host, .. } => Some(host),
            Self::Ssh { destination, .. } => {
                let rest = destination.strip_prefix("ssh://").unwrap_or(destination);
                let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                Some(rest.rsplit_once(':').map_or(rest, |(host, _)| host))
            }
        }
    }
}

impl FromStr for MonitorAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reason| Error::Address { text: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(refuse("the path is empty"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            let (host, port) = host_port(rest).ok_or_else(|| refuse("expected tcp:HOST:PORT"))?;
            if !is_loopback(&host) {
                return Err(refuse(
                    "plain TCP is for the loopback interface only; use tls: or ssh:// to another host",
                ));
            }
            return Ok(Self::Tcp { host, port });
        }
        if let Some(rest) = text.strip_prefix("tls:") {
            let (host, port) = host_port(rest).ok_or_else(|| refuse("expected tls:HOST:PORT"))?;
            return Ok(Self::Tls { host, port });
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (host, path) =
                rest.split_once('/').ok_or_else(|| refuse("expected ssh://[user@]host[:port]/path"))?;
            if host.is_empty() || host.starts_with('-') || path.is_empty() {
                return Err(refuse("expected ssh://[user@]host[:port]/path"));
            }
            return Ok(Self::Ssh { destination: format!("ssh://{host}"), path: Path::new("/").join(path) });
        }
        Err(refuse("expected unix:PATH, tcp:HOST:PORT, tls:HOST:PORT or ssh://[user@]host[:port]/path"))
    }
}

impl fmt::Display for MonitorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } => write!(f, "tcp:{}:{port}", bracketed(host)),
            Self::Tls { host, port } => write!(f, "tls:{}:{port}", bracketed(host)),
            Self::Ssh { destination, path } => write!(f, "{destination}{}", path.display()),
        }
    }
}

impl TryFrom<String> for MonitorAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<MonitorAddress> for String {
    fn from(address: MonitorAddress) -> Self {
        address.to_string()
    }
}

/// An IPv6 address in brackets, anything else as it is.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return None;
    }
    Some((host.to_owned(), port.parse().ok()?))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_prints_back_to_itself() {
        for text in [
            "unix:/run/vm.qmp",
            "tcp:localhost:4444",
            "tcp:[::1]:4444",
            "tls:hv1.example.net:4445",
            "ssh://root@hv1:2222/run/qemu/web01.qmp",
        ] {
            let address: MonitorAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn plain_tcp_to_another_host_is_refused_with_the_way_out() {
        let error = "tcp:192.0.2.1:4444".parse::<MonitorAddress>().unwrap_err();
        assert!(error.to_string().contains("use tls: or ssh://"), "{error}");
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in
            ["", "unix:", "tcp:localhost", "tls::1", "ssh://host", "ssh:///x", "ssh://-oX/x", "/run/vm"]
        {
            assert!(text.parse::<MonitorAddress>().is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn the_host_of_an_ssh_address_is_without_user_and_port() {
        let address: MonitorAddress = "ssh://root@hv1:2222/run/x".parse().unwrap();
        assert_eq!(address.host(), Some("hv1"));
    }
}
