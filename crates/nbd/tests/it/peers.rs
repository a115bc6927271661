//! Starting and stopping servers for one test.
//!
//! A server dies with its [`Peer`]. Nothing sleeps for luck: a server is ready when its socket accepts a connection.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aquifer_nbd::{Client, ClientOptions, Uri};
use tempfile::TempDir;

const READY: Duration = Duration::from_secs(20);

/// A server process and the folder of its files.
pub(crate) struct Peer {
    child: Child,
    address: Address,
}

#[derive(Clone)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

impl Peer {
    /// Starts a program and waits until its socket accepts.
    pub(crate) fn start(command: &mut Command, address: Address) -> Self {
        let program = command.get_program().to_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child =
            child.unwrap_or_else(|error| panic!("{}: {error}; {}", shown(&program), package(&program)));
        let mut peer = Self { child, address };
        let until = Instant::now() + READY;
        while !peer.accepts() {
            if let Some(status) = peer.child.try_wait().expect("state of the server") {
                let mut words = String::new();
                let stderr = peer.child.stderr.as_mut().expect("stderr is piped");
                std::io::Read::read_to_string(stderr, &mut words).expect("stderr");
                panic!("{} ended with {status}: {words}", shown(&program));
            }
            assert!(Instant::now() < until, "{} does not listen after {READY:?}", shown(&program));
            std::thread::sleep(Duration::from_millis(10));
        }
        peer
    }

    fn accepts(&self) -> bool {
        match &self.address {
            Address::Unix(path) => UnixStream::connect(path).is_ok(),
            Address::Tcp(port) => std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        }
    }

    /// Kills the server at once.
    pub(crate) fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        // The process may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn shown(program: &OsStr) -> String {
    program.to_string_lossy().into_owned()
}

fn package(program: &OsStr) -> String {
    let package = match program.to_str() {
        Some("qemu-nbd" | "qemu-img" | "qemu-io") => "qemu-utils",
        Some("qemu-storage-daemon") => "qemu-system-common",
        Some("nbdkit") => "nbdkit",
        Some("nbd-server") => "nbd-server",
        Some("nbdcopy" | "nbdinfo") => "libnbd-bin",
        Some("certtool") => "gnutls-bin",
        _ => "that provides it",
    };
    format!("install the Debian package {package}")
}

/// Runs a tool to its end and gives its output.
pub(crate) fn tool<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; {}", package(OsStr::new(program))));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("output is text")
}

/// A folder that vanishes with the test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// A TCP port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("free port").port()
}

/// Bytes without pattern for compressors, the same for the same seed.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = vec![0; bytes];
    for byte in &mut out {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[3];
    }
    out
}

/// An image file with data at both ends and a hole in the middle; gives its content.
pub(crate) fn sparse_image(path: &Path, bytes: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let third = bytes / 3 / 65536 * 65536;
    let mut content = noise(bytes, 7);
    content[third..2 * third].fill(0);
    let file = fs::File::create(path).expect("image");
    file.set_len(bytes as u64).expect("length");
    file.write_all_at(&content[..third], 0).expect("front");
    file.write_all_at(&content[2 * third..], 2 * third as u64).expect("back");
    content
}

/// The qemu-nbd to test against: `QEMU_NBD`, or the installed one.
pub(crate) fn qemu_nbd_program() -> OsString {
    std::env::var_os("QEMU_NBD").unwrap_or_else(|| "qemu-nbd".into())
}

/// `qemu-nbd` with these further arguments on a socket in the folder.
pub(crate) fn qemu_nbd<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> (Peer, Uri) {
    let socket = folder.join("qemu.sock");
    let mut command = Command::new(qemu_nbd_program());
    command.args(["--persistent", "--shared=16", "--socket"]).arg(&socket).args(args);
    let peer = Peer::start(&mut command, Address::Unix(socket.clone()));
    (peer, unix_uri(&socket, ""))
}

/// `nbdkit` with these further arguments on a socket in the folder.
pub(crate) fn nbdkit<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> (Peer, Uri) {
    let socket = folder.join("nbdkit.sock");
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&socket).args(args);
    let peer = Peer::start(&mut command, Address::Unix(socket.clone()));
    (peer, unix_uri(&socket, ""))
}

/// The URI of an export on a unix socket.
pub(crate) fn unix_uri(socket: &Path, export: &str) -> Uri {
    format!("nbd+unix:///{export}?socket={}", socket.display()).parse().expect("URI")
}

/// Options for tests: everything that waits, waits briefly, and a busy machine is no long line.
pub(crate) fn quick() -> ClientOptions {
    ClientOptions {
        connections_max: 4,
        greeting_deadline: Duration::from_secs(5),
        handshake_deadline: Duration::from_secs(5),
        request_deadline: Duration::from_secs(10),
        reconnect_attempts: 4,
        reconnect_backoff: Duration::from_millis(20),
        ..ClientOptions::default()
    }
}

/// Connects with [`quick`] options.
pub(crate) async fn connect(uri: &Uri) -> Client {
    Client::connect(uri, &quick()).await.expect("connect")
}

/// Reads a whole export in pieces, several at once, zeros where the holes are.
pub(crate) async fn read_all(client: &Client, piece: usize) -> Result<Vec<u8>, aquifer_nbd::Error> {
    let size = usize::try_from(client.info().size_bytes).expect("small export");
    let mut tasks = tokio::task::JoinSet::new();
    for offset in (0..size).step_by(piece) {
        let client = client.clone();
        tasks.spawn(async move {
            // Other content than zeros, so that bytes nobody wrote are found out.
            let mut read = client.read(offset as u64, vec![0xee; piece.min(size - offset)]).await?;
            read.zero_holes();
            Ok((offset, read.buffer))
        });
    }
    let mut all = vec![0; size];
    while let Some(done) = tasks.join_next().await {
        let (offset, bytes): (usize, Vec<u8>) = done.expect("task")?;
        all[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(all)
}

/// All extents of a context.
pub(crate) async fn extents(client: &Client, context: &str) -> Vec<aquifer_nbd::Extent> {
    let mut stream = client.extents(context, 0..client.info().size_bytes).expect("context");
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(extent) = stream.next().await.expect("extent") {
        assert_eq!(extent.offset, at, "extents leave no gap");
        at += extent.bytes;
        all.push(extent);
    }
    assert_eq!(at, client.info().size_bytes, "extents cover the export");
    all
}
