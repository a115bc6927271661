//! NBD URIs: where an export is, and whether the way there is encrypted.
//!
//! Understands `nbd`, `nbds`, `nbd+unix` and `nbds+unix` with the parameters `socket`, `tls-certificates` and
//! `tls-hostname`, as the NBD project's `uri.md` defines them. Parsing touches neither files nor the network.
//!
//! Invariant: printing a [`Uri`] and parsing the text again gives the same value; a parameter that is not understood is
//! an error, because a mistyped `tls-…` must never be ignored.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;

/// The TCP port that IANA gave to NBD.
const DEFAULT_PORT: u16 = 10_809;
/// The longest export name in bytes (NBD protocol, "Conventions").
const EXPORT_NAME_BYTES_MAX: usize = 4096;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A host name or address (an IPv6 address without brackets) and a TCP port.
    Tcp(String, u16),
}

/// One export of one NBD server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Where the server listens.
    pub transport: Transport,
    /// True for `nbds` and `nbds+unix`: TLS or no connection at all. False never upgrades.
    pub tls: bool,
    /// Name of the export; the empty name means the server's default export.
    pub export: String,
    /// Folder with `ca-cert.pem` and, when the server asks who we are, `client-cert.pem` and `client-key.pem`.
    pub tls_certificates: Option<PathBuf>,
    /// Name to look for in the server's certificate instead of the host's name.
    pub tls_hostname: Option<String>,
}

/// What is wrong with the text of a URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriProblem {
    /// The scheme is none of the four.
    #[error("the scheme must be nbd, nbds, nbd+unix or nbds+unix")]
    Scheme,
    /// A TCP URI without a host.
    #[error("a host is missing (nbd://HOST[:PORT]/EXPORT)")]
    NoHost,
    /// The port is not a number from 1 to 65535.
    #[error("port {0:?} is not a number from 1 to 65535")]
    Port(String),
    /// A user name in the authority, which belongs to TLS-PSK and is not supported.
    #[error(
        "a user name in the URI means TLS with a pre-shared key, which is not supported: use certificates"
    )]
    User,
    /// A unix URI without `socket=`.
    #[error("a unix URI needs ?socket=PATH")]
    NoSocket,
    /// A unix URI that names a host.
    #[error("a unix URI has no host: write {0}:///EXPORT?socket=PATH")]
    HostOnUnix(&'static str),
    /// `socket=` in a TCP URI.
    #[error("socket= belongs to nbd+unix or nbds+unix")]
    SocketOnTcp,
    /// A TLS parameter in a URI without TLS.
    #[error("{0}= is of no use without TLS: write nbds:// or nbds+unix://")]
    TlsParameterWithoutTls(&'static str),
    /// A parameter nobody knows.
    #[error("parameter {0:?} is not known (socket, tls-certificates, tls-hostname)")]
    UnknownParameter(String),
    /// A parameter given twice.
    #[error("parameter {0:?} is given twice")]
    RepeatedParameter(String),
    /// A parameter without a value.
    #[error("parameter {0:?} is empty")]
    EmptyParameter(String),
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("a % must be followed by two hexadecimal digits")]
    Percent,
    /// Decoded text that is not UTF-8, or that holds a NUL.
    #[error("the {0} is not UTF-8 text without NUL")]
    Text(&'static str),
    /// An export name longer than the protocol allows.
    #[error("the export name has {0} bytes, at most {EXPORT_NAME_BYTES_MAX} are possible")]
    LongExport(usize),
    /// A `#fragment`.
    #[error("a fragment (#) has no meaning here; write %23 for the sign itself")]
    Fragment,
}

impl Uri {
    /// The server, without the export: how messages name the peer.
    pub fn peer(&self) -> String {
        match &self.transport {
            Transport::Unix(path) => format!("unix:{}", path.display()),
            Transport::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            Transport::Tcp(host, port) => format!("{host}:{port}"),
        }
    }

    fn parse(text: &str) -> Result<Self, UriProblem> {
        if text.contains('#') {
            return Err(UriProblem::Fragment);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UriProblem::Scheme)?;
        let (tls, unix) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(UriProblem::Scheme),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = place.split_once('/').unwrap_or((place, ""));
        let export = decode(export, "export name")?;
        if export.len() > EXPORT_NAME_BYTES_MAX {
            return Err(UriProblem::LongExport(export.len()));
        }
        let parameters = Parameters::parse(query)?;
        parameters.check_tls(tls)?;
        let transport = if unix {
            if !authority.is_empty() {
                return Err(UriProblem::HostOnUnix(if tls { "nbds+unix" } else { "nbd+unix" }));
            }
            Transport::Unix(PathBuf::from(parameters.socket.ok_or(UriProblem::NoSocket)?))
        } else {
            if parameters.socket.is_some() {
                return Err(UriProblem::SocketOnTcp);
            }
            parse_authority(authority)?
        };
        Ok(Self {
            transport,
            tls,
            export,
            tls_certificates: parameters.tls_certificates.map(PathBuf::from),
            tls_hostname: parameters.tls_hostname,
        })
    }
}

#[derive(Default)]
struct Parameters {
    socket: Option<String>,
    tls_certificates: Option<String>,
    tls_hostname: Option<String>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, UriProblem> {
        let mut found = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key, "parameter")?;
            let value = decode(value, "parameter")?;
            let place = match key.as_str() {
                "socket" => &mut found.socket,
                "tls-certificates" => &mut found.tls_certificates,
                "tls-hostname" => &mut found.tls_hostname,
                _ => return Err(UriProblem::UnknownParameter(key)),
            };
            if value.is_empty() {
                return Err(UriProblem::EmptyParameter(key));
            }
            if place.replace(value).is_some() {
                return Err(UriProblem::RepeatedParameter(key));
            }
        }
        Ok(found)
    }

    fn check_tls(&self, tls: bool) -> Result<(), UriProblem> {
        if !tls && self.tls_certificates.is_some() {
            return Err(UriProblem::TlsParameterWithoutTls("tls-certificates"));
        }
        if !tls && self.tls_hostname.is_some() {
            return Err(UriProblem::TlsParameterWithoutTls("tls-hostname"));
        }
        Ok(())
    }
}

fn parse_authority(authority: &str) -> Result<Transport, UriProblem> {
    if authority.contains('@') {
        return Err(UriProblem::User);
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(UriProblem::NoHost)?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(UriProblem::Port(after.to_owned())),
        }
    } else {
        match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(digits) => match digits.parse() {
            Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => port,
            _ => return Err(UriProblem::Port(digits.to_owned())),
        },
    };
    let host = decode(host, "host")?;
    if host.is_empty() { Err(UriProblem::NoHost) } else { Ok(Transport::Tcp(host, port)) }
}

/// Undoes percent-encoding; `what` names the part in an error.
fn decode(text: &str, what: &'static str) -> Result<String, UriProblem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).ok_or(UriProblem::Percent);
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(u8::try_from(value).map_err(|_| UriProblem::Percent)?);
    }
    if bytes.contains(&0) {
        return Err(UriProblem::Text(what));
    }
    String::from_utf8(bytes).map_err(|_| UriProblem::Text(what))
}

/// Percent-encodes everything but unreserved characters and those in `keep`.
fn encode(text: &str, keep: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || (c.is_ascii() && keep.contains(c)) {
            write!(out, "{c}")?;
        } else {
            write!(out, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text).map_err(|problem| Error::Uri { uri: text.to_owned(), problem })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.tls { "nbds" } else { "nbd" })?;
        match &self.transport {
            Transport::Unix(_) => out.write_str("+unix://")?,
            Transport::Tcp(host, port) => {
                out.write_str("://")?;
                if host.contains(':') {
                    out.write_str("[")?;
                    encode(host, ":", out)?;
                    out.write_str("]")?;
                } else {
                    encode(host, "", out)?;
                }
                if *port != DEFAULT_PORT {
                    write!(out, ":{port}")?;
                }
            }
        }
        out.write_str("/")?;
        encode(&self.export, "/:", out)?;
        let socket = match &self.transport {
            Transport::Unix(path) => Some(path.as_path()),
            Transport::Tcp(..) => None,
        };
        let certificates = self.tls_certificates.as_deref();
        let mut separator = '?';
        for (key, value) in [
            ("socket", socket.map(Path::to_string_lossy)),
            ("tls-certificates", certificates.map(Path::to_string_lossy)),
            ("tls-hostname", self.tls_hostname.as_deref().map(Into::into)),
        ] {
            if let Some(value) = value {
                write!(out, "{separator}{key}=")?;
                encode(&value, "/:", out)?;
                separator = '&';
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn problem(text: &str) -> UriProblem {
        match text.parse::<Uri>() {
            Err(Error::Uri { problem, .. }) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_tcp_uri_has_the_registered_port_by_default() {
        let uri = uri("nbd://example.com/disk");
        assert_eq!(uri.transport, Transport::Tcp("example.com".into(), 10_809));
        assert_eq!((uri.export.as_str(), uri.tls), ("disk", false));
    }

    #[test]
    fn export_names_follow_the_first_slash_and_are_decoded() {
        assert_eq!(uri("nbd://h").export, "");
        assert_eq!(uri("nbd://h/").export, "");
        assert_eq!(uri("nbd://h//disk").export, "/disk");
        assert_eq!(uri("nbd://h/hello%20world").export, "hello world");
    }

    #[test]
    fn an_ipv6_host_stands_in_brackets() {
        assert_eq!(uri("nbds://[::1]:99/x").transport, Transport::Tcp("::1".into(), 99));
        assert_eq!(uri("nbds://[::1]/x").to_string(), "nbds://[::1]/x");
    }

    #[test]
    fn a_unix_uri_takes_its_socket_and_tls_parameters() {
        let uri = uri("nbds+unix:///vda?socket=/run/a%20b.sock&tls-certificates=/etc/pki&tls-hostname=host1");
        assert_eq!(uri.transport, Transport::Unix("/run/a b.sock".into()));
        assert_eq!(uri.tls_certificates.as_deref(), Some(Path::new("/etc/pki")));
        assert_eq!(uri.tls_hostname.as_deref(), Some("host1"));
        assert!(uri.tls);
    }

    #[test]
    fn every_mistake_has_its_own_message() {
        assert_eq!(problem("http://h/x"), UriProblem::Scheme);
        assert_eq!(problem("nbd:h"), UriProblem::Scheme);
        assert_eq!(problem("nbd:///x"), UriProblem::NoHost);
        assert_eq!(problem("nbd://[::1/x"), UriProblem::NoHost);
        assert_eq!(problem("nbd://h:0/x"), UriProblem::Port("0".into()));
        assert_eq!(problem("nbd://h:+1/x"), UriProblem::Port("+1".into()));
        assert_eq!(problem("nbd://[::1]5/x"), UriProblem::Port("5".into()));
        assert_eq!(problem("nbds://me@h/x"), UriProblem::User);
        assert_eq!(problem("nbd+unix:///x"), UriProblem::NoSocket);
        assert_eq!(problem("nbd+unix://h/x?socket=s"), UriProblem::HostOnUnix("nbd+unix"));
        assert_eq!(problem("nbd://h/x?socket=s"), UriProblem::SocketOnTcp);
        assert_eq!(problem("nbd://h/x?tls-hostname=a"), UriProblem::TlsParameterWithoutTls("tls-hostname"));
        assert_eq!(
            problem("nbd://h/x?tls-certificates=a"),
            UriProblem::TlsParameterWithoutTls("tls-certificates")
        );
        assert_eq!(problem("nbds://h/x?tls-hostnam=a"), UriProblem::UnknownParameter("tls-hostnam".into()));
        assert_eq!(problem("nbd+unix:///?socket=a&socket=b"), UriProblem::RepeatedParameter("socket".into()));
        assert_eq!(problem("nbd+unix:///?socket="), UriProblem::EmptyParameter("socket".into()));
        assert_eq!(problem("nbd://h/%4"), UriProblem::Percent);
        assert_eq!(problem("nbd://h/%ff"), UriProblem::Text("export name"));
        assert_eq!(problem("nbd://h/%00"), UriProblem::Text("export name"));
        assert_eq!(problem("nbd://h/a#b"), UriProblem::Fragment);
        assert_eq!(problem(&format!("nbd://h/{}", "x".repeat(4097))), UriProblem::LongExport(4097));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_gives_the_same_uri(
            tls: bool,
            unix: bool,
            host in "[a-z0-9.-]{1,12}|[0-9a-f:]{2,10}:",
            port in 1u16..,
            export in "[^\0]{0,40}",
            path in "/[^\0]{1,40}",
            folder in proptest::option::of("/[^\0]{1,40}"),
            name in proptest::option::of("[^\0]{1,20}"),
        ) {
            let uri = Uri {
                transport: if unix { Transport::Unix(path.into()) } else { Transport::Tcp(host, port) },
                tls,
                export,
                tls_certificates: folder.filter(|_| tls).map(PathBuf::from),
                tls_hostname: name.filter(|_| tls),
            };
            prop_assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            let _ = text.parse::<Uri>();
        }
    }
}
