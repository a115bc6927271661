//! A server for tests that can break the protocol at any point. It speaks well until its script says otherwise.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use aquifer_nbd::{ClientOptions, Uri};
use tempfile::TempDir;

use crate::peers::{folder, quick, unix_uri};

pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const CONTEXT_ID: u32 = 42;
const STRUCTURED: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED: u32 = 11;
const GO: u32 = 7;
pub(crate) const ACK: u32 = 1;
pub(crate) const INFO: u32 = 3;
pub(crate) const UNSUPPORTED: u32 = 1 << 31 | 1;

/// What the server offers in its handshake.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) structured: bool,
    pub(crate) extended: bool,
}

pub(crate) const READ_ONLY: u16 = 3;
pub(crate) const WRITABLE: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6;
pub(crate) const MULTI_CONN: u16 = 1 << 8;

pub(crate) const PLAIN: Offer = Offer { size: SIZE, flags: READ_ONLY, structured: true, extended: false };

/// One connection as the script sees it. I/O errors are the client's right: it hangs up on breaches.
pub(crate) struct Conn {
    stream: UnixStream,
    extended: bool,
}

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

/// The server: a thread that runs the script for each connection in turn, with the connection's number.
pub(crate) struct Hostile {
    _folder: TempDir,
    pub(crate) uri: Uri,
}

type Script = dyn Fn(&mut Conn, usize) -> std::io::Result<()> + Send + Sync;

impl Hostile {
    pub(crate) fn start(
        script: impl Fn(&mut Conn, usize) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let folder = folder();
        let socket = folder.path().join("hostile.sock");
        let listener = UnixListener::bind(&socket).expect("socket");
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let script = Arc::clone(&script);
                std::thread::spawn(move || {
                    // Longer than any test; a script never outlives the test run by much.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                    let mut conn = Conn { stream, extended: false };
                    let _ = script(&mut conn, number);
                });
            }
        });
        Self { uri: unix_uri(&socket, "disk"), _folder: folder }
    }

    /// A server that greets and negotiates as `offer` says, and then answers each request with what `reply` makes of it.
    pub(crate) fn replying(
        offer: Offer,
        reply: impl Fn(&mut Conn, Request) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |conn, _| {
            conn.negotiate(offer)?;
            loop {
                let request = conn.request()?;
                reply(conn, request)?;
            }
        })
    }
}

/// Options with deadlines short enough to wait for.
pub(crate) fn hasty() -> ClientOptions {
    ClientOptions {
        greeting_deadline: Duration::from_secs(1),
        handshake_deadline: Duration::from_secs(1),
        request_deadline: Duration::from_secs(1),
        reconnect_attempts: 2,
        ..quick()
    }
}

impl Conn {
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn take_vec(&mut self, bytes: usize) -> std::io::Result<Vec<u8>> {
        let mut all = vec![0; bytes];
        self.stream.read_exact(&mut all)?;
        Ok(all)
    }

    /// Waits for the client to hang up.
    pub(crate) fn until_closed(&mut self) -> std::io::Result<()> {
        let mut bytes = [0; 4096];
        while self.stream.read(&mut bytes)? > 0 {}
        Ok(())
    }

    /// Ends the connection.
    pub(crate) fn hang_up(&mut self) -> std::io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Both)
    }

    /// Waits for the client to hang up and leaves what it sends unread.
    pub(crate) fn until_closed_slowly(&mut self) -> std::io::Result<()> {
        while self.stream.take_error()?.is_none() {
            std::thread::sleep(Duration::from_millis(50));
            self.send(&[])?;
        }
        Ok(())
    }

    /// The next request, when one comes in time.
    pub(crate) fn request_within(&mut self, time: Duration) -> Option<Request> {
        self.stream.set_read_timeout(Some(time)).ok()?;
        let request = self.request().ok();
        self.stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        request
    }

    pub(crate) fn greet(&mut self, flags: u16) -> std::io::Result<()> {
        self.send(b"NBDMAGICIHAVEOPT")?;
        self.send(&flags.to_be_bytes())?;
        self.take::<4>().map(drop)
    }

    /// The next option and its content.
    pub(crate) fn option(&mut self) -> std::io::Result<(u32, Vec<u8>)> {
        let head = self.take::<16>()?;
        assert_eq!(&head[..8], b"IHAVEOPT");
        let bytes = u32::from_be_bytes(head[12..].try_into().expect("four bytes"));
        let content = self.take_vec(bytes as usize)?;
        Ok((u32::from_be_bytes(head[8..12].try_into().expect("four bytes")), content))
    }

    pub(crate) fn option_reply(&mut self, option: u32, kind: u32, content: &[u8]) -> std::io::Result<()> {
        let mut reply = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        reply.extend(option.to_be_bytes());
        reply.extend(kind.to_be_bytes());
        reply.extend((content.len() as u32).to_be_bytes());
        reply.extend(content);
        self.send(&reply)
    }

    pub(crate) fn info_export(&mut self, size: u64, flags: u16) -> std::io::Result<()> {
        let mut info = vec![0, 0];
        info.extend(size.to_be_bytes());
        info.extend(flags.to_be_bytes());
        self.option_reply(GO, INFO, &info)
    }

    /// The whole handshake, well-behaved.
    pub(crate) fn negotiate(&mut self, offer: Offer) -> std::io::Result<()> {
        self.greet(3)?;
        loop {
            let (option, _) = self.option()?;
            match option {
                EXTENDED if offer.extended => {
                    self.extended = true;
                    self.option_reply(option, ACK, &[])?;
                }
                STRUCTURED if offer.structured => self.option_reply(option, ACK, &[])?,
                SET_META_CONTEXT => {
                    let mut context = CONTEXT_ID.to_be_bytes().to_vec();
                    context.extend(b"base:allocation");
                    self.option_reply(option, 4, &context)?;
                    self.option_reply(option, ACK, &[])?;
                }
                GO => {
                    self.info_export(offer.size, offer.flags)?;
                    return self.option_reply(option, ACK, &[]);
                }
                _ => self.option_reply(option, UNSUPPORTED, b"no")?,
            }
        }
    }

    /// The next request; a write's data is left to the script.
    pub(crate) fn request(&mut self) -> std::io::Result<Request> {
        let head = if self.extended { self.take::<32>()?.to_vec() } else { self.take::<28>()?.to_vec() };
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let command = (word(4) & 0xffff) as u16;
        let bytes = word(head.len() - 4);
        Ok(Request { command, cookie: long(8), offset: long(16), bytes })
    }

    pub(crate) fn simple(&mut self, errno: u32, cookie: u64) -> std::io::Result<()> {
        let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
        reply.extend(errno.to_be_bytes());
        reply.extend(cookie.to_be_bytes());
        self.send(&reply)
    }

    /// The head of a structured chunk.
    pub(crate) fn head(&mut self, done: bool, kind: u16, cookie: u64, bytes: u32) -> std::io::Result<()> {
        let mut head = 0x668e_33efu32.to_be_bytes().to_vec();
        head.extend(u16::from(done).to_be_bytes());
        head.extend(kind.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(bytes.to_be_bytes());
        self.send(&head)
    }

    /// The head of an extended chunk.
    pub(crate) fn wide_head(
        &mut self,
        kind: u16,
        cookie: u64,
        offset: u64,
        bytes: u64,
    ) -> std::io::Result<()> {
        let mut head = 0x6e8a_278cu32.to_be_bytes().to_vec();
        head.extend(1u16.to_be_bytes());
        head.extend(kind.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(bytes.to_be_bytes());
        self.send(&head)
    }

    pub(crate) fn chunk(&mut self, done: bool, kind: u16, cookie: u64, body: &[u8]) -> std::io::Result<()> {
        self.head(done, kind, cookie, body.len() as u32)?;
        self.send(body)
    }

    /// A chunk of data.
    pub(crate) fn data(&mut self, done: bool, cookie: u64, offset: u64, bytes: usize) -> std::io::Result<()> {
        let mut body = offset.to_be_bytes().to_vec();
        body.extend(content(offset, bytes));
        self.chunk(done, 1, cookie, &body)
    }

    pub(crate) fn hole(&mut self, done: bool, cookie: u64, offset: u64, bytes: u32) -> std::io::Result<()> {
        let mut body = offset.to_be_bytes().to_vec();
        body.extend(bytes.to_be_bytes());
        self.chunk(done, 2, cookie, &body)
    }

    pub(crate) fn error(
        &mut self,
        done: bool,
        cookie: u64,
        errno: u32,
        message: &str,
    ) -> std::io::Result<()> {
        let mut body = errno.to_be_bytes().to_vec();
        body.extend((message.len() as u16).to_be_bytes());
        body.extend(message.as_bytes());
        self.chunk(done, 1 << 15 | 1, cookie, &body)
    }

    pub(crate) fn extents(
        &mut self,
        cookie: u64,
        context: u32,
        extents: &[(u32, u32)],
    ) -> std::io::Result<()> {
        let mut body = context.to_be_bytes().to_vec();
        for (bytes, flags) in extents {
            body.extend(bytes.to_be_bytes());
            body.extend(flags.to_be_bytes());
        }
        self.chunk(true, 5, cookie, &body)
    }

    /// The right answer to a read.
    pub(crate) fn answer(&mut self, request: Request) -> std::io::Result<()> {
        self.data(true, request.cookie, request.offset, request.bytes as usize)
    }
}

/// What the hostile server's disk holds.
pub(crate) fn content(offset: u64, bytes: usize) -> Vec<u8> {
    (offset..).take(bytes).map(|at| (at / 512 % 251) as u8 + 1).collect()
}
