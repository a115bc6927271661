//! The disk image of a domain that does not run, served by `qemu-nbd` with image locking: read-only, or to be filled.
//!
//! The format is decided once, by the caller or by `qemu-img info`, and said; `qemu-nbd` is always told it and
//! never guesses, because a guest can write a qcow2 header into its raw disk and so name any file of this machine
//! as its backing file. Invariant: an image that a running QEMU writes to is refused, and `qemu-nbd` does not
//! outlive this process: it ends with its last client, and the first client is ours.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Result};
use crate::names::{percent_encoded, socket_path};

/// How long `qemu-nbd` may take to open the image and listen.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks whether it listens.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long it may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Clients at once: ours, and as many as an NBD client may ever open.
const CLIENTS_MAX: u32 = 64;
/// Longest report of `qemu-img` or error text of `qemu-nbd` that is read, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// Which image to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// File or block device.
    pub path: PathBuf,
    /// Format, such as `raw` or `qcow2`; without it `qemu-img info` tells.
    pub format: Option<String>,
    /// Folder for the socket.
    pub sockets: PathBuf,
    /// Whether clients may write.
    pub writable: bool,
}

/// Makes a new qcow2 image that reads as zero; its size is rounded up to whole sectors of 512 bytes, as the format wants.
///
/// # Errors
/// [`Error::Image`] when there is something already or the file cannot be written, [`Error::ToolMissing`].
pub async fn create_qcow2(path: &Path, size_bytes: u64) -> Result<()> {
    let fault = |detail: String| Error::Image { path: path.to_owned(), detail };
    // QEMU takes what stands before a colon for a protocol, unless a slash is before it.
    let absolute = std::path::absolute(path).map_err(|error| fault(error.to_string()))?;
    // `qemu-img` overwrites what it finds.
    std::fs::File::create_new(&absolute).map_err(|error| fault(error.to_string()))?;
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "--"])
        .arg(&absolute)
        .arg(size_bytes.next_multiple_of(512).to_string())
        .stdin(Stdio::null())
        .output()
        .await;
    let failed = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => fault(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => missing(error, "qemu-img", path),
    };
    // It is ours and empty; if it cannot be removed, the first failure still says more.
    let _ = std::fs::remove_file(&absolute);
    Err(failed)
}

/// A served image.
#[derive(Debug)]
pub struct ImageExport {
    child: Child,
    keeper: Option<UnixStream>,
    socket: PathBuf,
    size_bytes: u64,
    format: String,
    warnings: Vec<String>,
}

impl ImageExport {
    /// Starts `qemu-nbd` on the image.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::ImageInUse`] for the image of a running domain, [`Error::Image`] for an
    /// ambiguous format, [`Error::ToolMissing`].
    pub async fn open(request: &ImageRequest) -> Result<Self> {
        let path = std::path::absolute(&request.path)
            .map_err(|error| Error::Image { path: request.path.clone(), detail: error.to_string() })?;
        let socket = socket_for(&request.sockets, &path)?;
        if UnixStream::connect(&socket).await.is_ok() {
            let detail = "another Aquifer serves it now".to_owned();
            return Err(Error::ImageInUse { path, detail });
        }
        let mut warnings = Vec::new();
        let format = match &request.format {
            Some(format) => format.clone(),
            None => {
                let format = detect(&path).await?;
                warnings.push(format!("format of {}: {format}, as detected by qemu-img", path.display()));
                format
            }
        };
        let mut child = spawn(&path, &format, &socket, request.writable)?;
        match settle(&mut child, &socket).await {
            Ok((keeper, size_bytes)) => {
                Ok(Self { child, keeper: Some(keeper), socket, size_bytes, format, warnings })
            }
            Err(error) => {
                // It may have ended by itself, which was the error.
                let _ = child.start_kill();
                let detail = complaint(&mut child).await;
                // The socket of a killed server is nobody's.
                let _ = std::fs::remove_file(&socket);
                // QEMU's tools give no code for it; the word only chooses the better message.
                if detail.contains("lock") {
                    return Err(Error::ImageInUse { path, detail });
                }
                let detail = if detail.is_empty() { error.to_string() } else { detail };
                Err(Error::Image { path, detail })
            }
        }
    }

    /// NBD URI of the image.
    #[must_use]
    pub fn uri(&self) -> String {
        let keep =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/');
        format!("nbd+unix:///?socket={}", percent_encoded(&self.socket.to_string_lossy(), keep))
    }

    /// Size of the disk, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Format that was given or detected.
    #[must_use]
    pub fn format(&self) -> &str {
        &self.format
    }

    /// What the person should know.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Ends `qemu-nbd`, which frees the image.
    ///
    /// # Errors
    /// [`Error::Image`] when it cannot be ended.
    pub async fn close(mut self) -> Result<()> {
        drop(self.keeper.take());
        let fault = |detail: String| Error::Image { path: self.socket.clone(), detail };
        // With its last client gone it ends by itself; a client that is left does not keep it.
        if timeout(END_DEADLINE, self.child.wait()).await.is_err() {
            self.child.kill().await.map_err(|error| fault(error.to_string()))?;
        }
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault(error.to_string())),
            _ => Ok(()),
        }
    }
}

fn socket_for(folder: &Path, image: &Path) -> Result<PathBuf> {
    let stem =
        format!("aquifer-image-{}", percent_encoded(&image.to_string_lossy(), |b| b.is_ascii_alphanumeric()));
    socket_path(folder, &stem, ".nbd")
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    backing_filename: Option<String>,
}

/// Asks `qemu-img`. A format other than raw in a file that calls itself raw is refused: the guest may have written it.
async fn detect(path: &Path) -> Result<String> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| missing(error, "qemu-img", path))?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Error::NoSuchImage { path: path.to_owned() }
            }
            _ if detail.contains("lock") => Error::ImageInUse { path: path.to_owned(), detail },
            _ => Error::Image { path: path.to_owned(), detail },
        });
    }
    let info: Info = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::Image { path: path.to_owned(), detail: format!("qemu-img info: {error}") })?;
    let named_raw = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("raw"));
    if info.format != "raw" && (named_raw || is_device(path)) {
        let backing =
            info.backing_filename.map(|file| format!(" with backing file {file}")).unwrap_or_default();
        let detail = format!(
            "it begins like {}{backing} and is named like a raw disk, whose guest can write anything there; \
             give the format",
            info.format
        );
        return Err(Error::Image { path: path.to_owned(), detail });
    }
    Ok(info.format)
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

fn spawn(path: &Path, format: &str, socket: &Path, writable: bool) -> Result<Child> {
    let driver = if is_device(path) { "host_device" } else { "file" };
    // The JSON form has no special characters in file names.
    let node = json!({"driver": format, "file": {"driver": driver, "filename": path, "locking": "on"}});
    // A stale socket of a killed run; nobody answered on it.
    let _ = std::fs::remove_file(socket);
    Command::new("qemu-nbd")
        .arg(if writable { "--discard=unmap" } else { "--read-only" })
        .args(["--aio=threads", &format!("--shared={CLIENTS_MAX}")])
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("json:{node}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| missing(error, "qemu-nbd", path))
}

fn missing(error: io::Error, program: &'static str, path: &Path) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::ToolMissing { program, package: "qemu-utils" };
    }
    Error::Image { path: path.to_owned(), detail: format!("{program}: {error}") }
}

/// Waits until it listens, and becomes its first client.
async fn settle(child: &mut Child, socket: &Path) -> io::Result<(UnixStream, u64)> {
    let end = Instant::now() + START_DEADLINE;
    loop {
        if let Ok(stream) = UnixStream::connect(socket).await {
            return timeout(START_DEADLINE, greet(stream)).await?;
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("qemu-nbd ended with {status}")));
        }
        if Instant::now() >= end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// The shortest handshake of the NBD protocol (newstyle, `NBD_OPT_EXPORT_NAME` with the empty name): the connection
/// stays open and unused, and gives the size.
async fn greet(mut stream: UnixStream) -> io::Result<(UnixStream, u64)> {
    let mut greeting = [0_u8; 18];
    stream.read_exact(&mut greeting).await?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD server"));
    }
    // NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES, then option 1 with a name of no bytes.
    stream.write_all(&3_u32.to_be_bytes()).await?;
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").await?;
    let size_bytes = stream.read_u64().await?;
    stream.read_u16().await?;
    Ok((stream, size_bytes))
}

async fn complaint(child: &mut Child) -> String {
    let Some(errors) = child.stderr.take() else { return String::new() };
    let mut text = String::new();
    // Half a text is better than none.
    let _ = timeout(END_DEADLINE, errors.take(OUTPUT_BYTES_MAX).read_to_string(&mut text)).await;
    text.trim().to_owned()
}
