//! From a URI to an open connection: dial, greeting, TLS, options, each within its deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::options::ClientOptions;
use super::stream::Stream;
use super::tls::TlsSetup;
use crate::error::{Error, Stage};
use crate::proto::consts::OPT_EXPORT_NAME;
use crate::proto::handshake::{Goal, Handshake, HandshakeError, ListedExport, Negotiated, Progress};
use crate::proto::option::{self, Refusal};
use crate::uri::{Transport, Uri};

/// Bytes read at once during the handshake.
const READ_BYTES: usize = 4096;
/// How long a polite end may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Makes connections to one export, the first as well as every later one.
#[derive(Debug)]
pub(crate) struct Dialer {
    uri: Uri,
    peer: String,
    options: ClientOptions,
    tls: Option<TlsSetup>,
}

/// What a handshake led to.
enum End {
    Open(Box<Negotiated>),
    Listed(Vec<ListedExport>),
}

/// What the exchange with the server waits for, until when.
#[derive(Clone, Copy)]
struct Wait {
    stage: Stage,
    after: Duration,
    until: Instant,
}

impl Wait {
    fn new(stage: Stage, after: Duration) -> Self {
        Self { stage, after, until: Instant::now() + after }
    }
}

impl Dialer {
    /// Reads the certificates, when the URI wants TLS. Does not dial yet.
    pub(crate) async fn new(uri: &Uri, options: &ClientOptions) -> Result<Self, Error> {
        let peer = uri.peer();
        let tls = match uri.tls {
            false => None,
            true => match TlsSetup::load(uri).await {
                Ok(setup) => Some(setup),
                Err(problem) => return Err(Error::TlsSetup { peer, problem }),
            },
        };
        Ok(Self { uri: uri.clone(), peer, options: options.clone(), tls })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Opens the export on a new connection.
    pub(crate) async fn open(&self) -> Result<(Stream, Negotiated), Error> {
        let contexts = self.options.contexts.clone();
        let goal = Goal::Open { export: self.uri.export.clone(), contexts };
        match Box::pin(self.negotiate(goal)).await? {
            (stream, End::Open(negotiated)) => Ok((stream, *negotiated)),
            (_, End::Listed(_)) => Err(self.closed(Stage::Handshake, None)),
        }
    }

    /// Lists the exports and leaves.
    pub(crate) async fn list(&self) -> Result<Vec<ListedExport>, Error> {
        let (mut stream, end) = Box::pin(self.negotiate(Goal::List)).await?;
        self.leave(&mut stream).await;
        match end {
            End::Listed(exports) => Ok(exports),
            End::Open(_) => Err(self.closed(Stage::Handshake, None)),
        }
    }

    /// Ends a handshake that opens nothing.
    async fn leave(&self, stream: &mut Stream) {
        let mut out = Vec::new();
        Handshake::abort(&mut out);
        // Whether the server hears it does not matter.
        let _ = timeout(GOODBYE, async {
            stream.write_all(&out).await?;
            stream.shutdown().await
        })
        .await;
    }

    async fn dial(&self) -> Result<Stream, Error> {
        let after = self.options.greeting_deadline;
        let dialing = async {
            match &self.uri.transport {
                Transport::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
                Transport::Tcp(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(stream))
                }
            }
        };
        match timeout(after, dialing).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(Error::Connect { peer: self.peer.clone(), source: Arc::new(source) }),
            Err(_) => Err(self.late(Wait::new(Stage::Dial, after))),
        }
    }

    async fn negotiate(&self, goal: Goal) -> Result<(Stream, End), Error> {
        let mut stream = self.dial().await?;
        let mut handshake = Handshake::new(goal, self.uri.tls);
        let mut wait = Wait::new(Stage::Greeting, self.options.greeting_deadline);
        let mut input: Vec<u8> = Vec::new();
        let mut output = Vec::new();
        loop {
            self.receive(&mut stream, &mut input, wait, &handshake).await?;
            let (used, progress) = match handshake.feed(&input, &mut output) {
                Ok(fed) => fed,
                Err(error) => {
                    if matches!(error, HandshakeError::Refused { .. }) {
                        self.leave(&mut stream).await;
                    }
                    return Err(self.handshake_error(error));
                }
            };
            input.drain(..used);
            if wait.stage == Stage::Greeting && handshake.greeted() {
                wait = Wait::new(Stage::Handshake, self.options.handshake_deadline);
            }
            self.send(&mut stream, &mut output, wait).await?;
            match progress {
                Progress::More => {}
                Progress::StartTls => {
                    stream = self.secure(stream, wait).await?;
                    handshake.secured(&mut output);
                    self.send(&mut stream, &mut output, wait).await?;
                }
                Progress::Open(negotiated) => return Ok((stream, End::Open(negotiated))),
                Progress::Listed(exports) => return Ok((stream, End::Listed(exports))),
            }
        }
    }

    /// Reads once; `input` stays within the longest message, because whole messages leave it at once.
    async fn receive(
        &self,
        stream: &mut Stream,
        input: &mut Vec<u8>,
        wait: Wait,
        handshake: &Handshake,
    ) -> Result<(), Error> {
        let mut buffer = [0; READ_BYTES];
        let received = match timeout_at(wait.until, stream.read(&mut buffer)).await {
            Ok(received) => received,
            Err(_) => return Err(self.late(wait)),
        };
        match received {
            Ok(0) => Err(self.ended(stream, wait.stage, handshake)),
            Ok(bytes) => {
                input.extend_from_slice(&buffer[..bytes]);
                Ok(())
            }
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                Err(Error::Tls { peer: self.peer.clone(), source: Arc::new(source) })
            }
            Err(source) => match self.ended(stream, wait.stage, handshake) {
                Error::Closed { stage, .. } => Err(self.closed(stage, Some(source))),
                ended => Err(ended),
            },
        }
    }

    /// What it means that the server closed the connection here.
    fn ended(&self, stream: &Stream, stage: Stage, handshake: &Handshake) -> Error {
        let peer = self.peer.clone();
        if handshake.pending_option() == Some(OPT_EXPORT_NAME) {
            let (export, option) = (self.uri.export.clone(), option::name(OPT_EXPORT_NAME));
            return Error::Refused { peer, export, option, refusal: Refusal::Hangup, message: String::new() };
        }
        match stream {
            Stream::Tls(_) => Error::TlsDropped { peer },
            Stream::Unix(_) | Stream::Tcp(_) => self.closed(stage, None),
        }
    }

    async fn send(&self, stream: &mut Stream, output: &mut Vec<u8>, wait: Wait) -> Result<(), Error> {
        if output.is_empty() {
            return Ok(());
        }
        let sending = async {
            stream.write_all(output).await?;
            stream.flush().await
        };
        match timeout_at(wait.until, sending).await {
            Ok(Ok(())) => {
                output.clear();
                Ok(())
            }
            Ok(Err(source)) => Err(self.closed(wait.stage, Some(source))),
            Err(_) => Err(self.late(wait)),
        }
    }

    async fn secure(&self, stream: Stream, wait: Wait) -> Result<Stream, Error> {
        let Some(setup) = &self.tls else { return Err(self.closed(Stage::Tls, None)) };
        match timeout_at(wait.until, setup.connector.connect(setup.name.clone(), stream)).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(source)) => Err(Error::Tls { peer: self.peer.clone(), source: Arc::new(source) }),
            Err(_) => Err(self.late(Wait { stage: Stage::Tls, ..wait })),
        }
    }

    fn handshake_error(&self, error: HandshakeError) -> Error {
        let peer = self.peer.clone();
        let export = self.uri.export.clone();
        match error {
            HandshakeError::Violation(violation) => Error::Violation { peer, export, violation },
            HandshakeError::TlsRequired { message } => Error::TlsRequired { peer, message },
            HandshakeError::TlsRefused { refusal, message } => Error::TlsRefused { peer, refusal, message },
            HandshakeError::Refused { option, refusal, message } => {
                Error::Refused { peer, export, option: option::name(option), refusal, message }
            }
        }
    }

    fn late(&self, wait: Wait) -> Error {
        Error::Deadline { peer: self.peer.clone(), stage: wait.stage, after: wait.after }
    }

    fn closed(&self, stage: Stage, source: Option<io::Error>) -> Error {
        Error::Closed { peer: self.peer.clone(), stage, source: source.map(Arc::new) }
    }
}
