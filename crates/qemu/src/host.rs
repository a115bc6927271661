//! The machine that QEMU runs on, as far as Aquifer can reach its files: this one, one behind ssh, or none.
//!
//! Only the few verbs that scratch files and sockets need. Not a remote file system: every verb is one fixed
//! system call or one fixed shell command.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::address::{MonitorAddress, MonitorOptions};
use crate::error::{Error, Result};
use crate::ssh::{Ssh, text};

/// All unix sockets of a machine.
const SOCKET_TABLE: &str = "/proc/net/unix";
/// Unit of `st_blocks`, in bytes, whatever the file system's own block size (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

pub(crate) enum Host {
    Local,
    Ssh(Box<Ssh>),
    /// A TLS monitor gives no way to the files beside it.
    Unreachable,
}

impl Host {
    pub(crate) async fn of(address: &MonitorAddress, options: &MonitorOptions) -> Result<Self> {
        Ok(match address {
            MonitorAddress::Unix(_) | MonitorAddress::Tcp { .. } => Self::Local,
            MonitorAddress::Tls { .. } => Self::Unreachable,
            MonitorAddress::Ssh { destination, .. } => {
                Self::Ssh(Box::new(Ssh::connect(destination, options).await?))
            }
        })
    }

    /// The local path by which the socket `path` of that machine is reached; `address` is for the message.
    pub(crate) async fn reach_socket(&self, path: &Path, address: &str) -> Result<PathBuf> {
        match self {
            Self::Local => Ok(path.to_owned()),
            Self::Ssh(ssh) if ssh.is_socket(path).await? => ssh.forward(path).await,
            Self::Ssh(_) | Self::Unreachable => Err(Error::NoSuchSocket { address: address.to_owned() }),
        }
    }

    /// How many connections a server holds that listens on the socket `path`, by the kernel's table (proc(5),
    /// `/proc/net/unix`). None where it cannot be seen: no way to that machine, or another network namespace.
    pub(crate) async fn connections(&self, path: &Path) -> Result<usize> {
        let table = match self {
            Self::Local => {
                blocking(Path::new(SOCKET_TABLE), "reading it", || std::fs::read(SOCKET_TABLE)).await?
            }
            Self::Ssh(ssh) => {
                ssh.shell("reading the table of sockets", "cat /proc/net/unix", &[]).await?.into_bytes()
            }
            Self::Unreachable => Vec::new(),
        };
        Ok(connections_of(&String::from_utf8_lossy(&table), &text(path)))
    }

    /// Makes an empty qcow2 image of `size_bytes`, replacing a file of the same name, that QEMU's user can open: it
    /// gets the folder's owner.
    ///
    /// By `qemu-img`, and not by QEMU's own `blockdev-create`: while that runs in QEMU 7.2, a
    /// `query-named-block-nodes` of anybody ends QEMU by an assertion, and the guest with it.
    pub(crate) async fn create_image(&self, path: &Path, size_bytes: u64) -> Result<()> {
        match self {
            Self::Local => {
                let owned = path.to_owned();
                blocking(path, "making the file", move || create_local(&owned)).await?;
                format_local(path, size_bytes).await
            }
            Self::Ssh(ssh) => {
                let script = "umask 077 && rm -f -- \"$1\" && set -C && : > \"$1\" && \
                              { [ \"$(id -u)\" != 0 ] || chown --reference=\"$(dirname -- \"$1\")\" -- \"$1\"; } && \
                              qemu-img create -q -f qcow2 -- \"$1\" \"$2\"";
                let arguments = [text(path), size_bytes.to_string()];
                ssh.shell("making a scratch file", script, &arguments.each_ref().map(String::as_str))
                    .await
                    .map(drop)
            }
            Self::Unreachable => Ok(()),
        }
    }

    /// Reserves the first `bytes` of the file without changing its size, as far as it goes; gives the bytes that
    /// the file then holds. A file system that cannot reserve reserves nothing.
    pub(crate) async fn reserve(&self, path: &Path, bytes: u64) -> Result<u64> {
        match self {
            Self::Local => {
                let owned = path.to_owned();
                blocking(path, "reserving space", move || reserve_local(&owned, bytes)).await
            }
            Self::Ssh(ssh) => {
                let script = "fallocate -n -l \"$2\" -- \"$1\" 2>/dev/null; stat -c %b -- \"$1\"";
                let blocks =
                    ssh.shell("reserving scratch space", script, &[&text(path), &bytes.to_string()]).await?;
                Ok(blocks.trim().parse::<u64>().unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES))
            }
            Self::Unreachable => Ok(0),
        }
    }

    /// Free space of a folder in bytes, for an ordinary user; `None` where it cannot be asked.
    pub(crate) async fn free_bytes(&self, folder: &Path) -> Result<Option<u64>> {
        match self {
            Self::Local => {
                let owned = folder.to_owned();
                let free = blocking(folder, "asking for its free space", move || {
                    let found = rustix::fs::statvfs(&owned)?;
                    Ok(found.f_bavail.saturating_mul(found.f_frsize))
                });
                free.await.map(Some)
            }
            Self::Ssh(ssh) => {
                let script = "stat -f -c '%a %S' -- \"$1\"";
                let reply = ssh.shell("asking for free space", script, &[&text(folder)]).await?;
                let numbers: Vec<u64> =
                    reply.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                Ok((numbers.len() == 2).then(|| numbers[0].saturating_mul(numbers[1])))
            }
            Self::Unreachable => Ok(None),
        }
    }

    /// Removes a file; whether there was one.
    pub(crate) async fn remove_file(&self, path: &Path) -> Result<bool> {
        match self {
            Self::Local => {
                let owned = path.to_owned();
                blocking(path, "removing the file", move || match std::fs::remove_file(&owned) {
                    Ok(()) => Ok(true),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    Err(error) => Err(error),
                })
                .await
            }
            Self::Ssh(ssh) => {
                let script = "[ -e \"$1\" ] || exit 0; rm -- \"$1\" && echo removed";
                let reply = ssh.shell("removing a file", script, &[&text(path)]).await?;
                Ok(reply.contains("removed"))
            }
            Self::Unreachable => Ok(false),
        }
    }

    /// Names of the files in a folder that begin with `prefix`; none when the folder does not exist.
    pub(crate) async fn list(&self, folder: &Path, prefix: &str) -> Result<Vec<String>> {
        match self {
            Self::Local => {
                let (owned, prefix) = (folder.to_owned(), prefix.to_owned());
                blocking(folder, "listing it", move || list_local(&owned, &prefix)).await
            }
            Self::Ssh(ssh) => {
                let script = "[ -d \"$1\" ] || exit 0; cd -- \"$1\" && ls -1";
                let reply = ssh.shell("listing the scratch folder", script, &[&text(folder)]).await?;
                Ok(reply.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
            }
            Self::Unreachable => Ok(Vec::new()),
        }
    }
}

/// Lines of the table whose socket was accepted from `path` and is connected: columns `Flags` 0, `St` 03.
fn connections_of(table: &str, path: &str) -> usize {
    let connected = |line: &&str| {
        let (mut columns, mut rest) = ([""; 7], *line);
        for column in &mut columns {
            (*column, rest) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
        }
        columns[3] == "00000000" && columns[5] == "03" && !path.is_empty() && rest == path
    };
    table.lines().filter(connected).count()
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let outcome =
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    outcome.map_err(|source| Error::Scratch { path: path.to_owned(), what, source })
}

fn create_local(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let folder = std::fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    let mine = file.metadata()?;
    if rustix::process::geteuid().is_root() && (folder.uid(), folder.gid()) != (mine.uid(), mine.gid()) {
        std::os::unix::fs::fchown(&file, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}

async fn format_local(path: &Path, size_bytes: u64) -> Result<()> {
    let fault = |source| match source {
        error if io::Error::kind(&error) == io::ErrorKind::NotFound => {
            Error::ToolMissing { program: "qemu-img", package: "qemu-utils" }
        }
        source => Error::Scratch { path: path.to_owned(), what: "formatting it with qemu-img", source },
    };
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "--"]).arg(path).arg(size_bytes.to_string());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(fault)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Scratch {
        path: path.to_owned(),
        what: "formatting it with qemu-img",
        source: io::Error::other(said),
    })
}

fn reserve_local(path: &Path, bytes: u64) -> io::Result<u64> {
    let file = OpenOptions::new().write(true).open(path)?;
    if bytes > 0 {
        // What it could not get shows in the blocks it has; the caller warns with both figures.
        let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes);
    }
    allocated(&file)
}

fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(STAT_BLOCK_BYTES))
}

fn list_local(folder: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is not UTF-8 is not one of ours.
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_accepted_connections_of_that_very_socket_are_counted() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000c20fe78d: 00000003 00000000 00000000 0001 03 63125 /tmp/a b/n\n\
            00000000922a5118: 00000003 00000000 00000000 0001 03 63128 /tmp/a b/n\n\
            00000000f88fe854: 00000002 00000000 00010000 0001 01 63121 /tmp/a b/n\n\
            0000000039d31938: 00000003 00000000 00000000 0001 02     0 /tmp/a b/n\n\
            0000000054fe9a6a: 00000003 00000000 00000000 0001 03   777 /tmp/a b/n2\n\
            000000000cdaff90: 00000003 00000000 00000000 0001 03  7418\n";
        assert_eq!(connections_of(table, "/tmp/a b/n"), 2);
        assert_eq!(connections_of(table, "/tmp/a b/n2"), 1);
        assert_eq!(connections_of(table, ""), 0);
        assert_eq!(connections_of("garbage\n\n  \n", "/x"), 0);
    }

    #[tokio::test]
    async fn the_kernel_counts_what_a_listener_has_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("listener");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert_eq!(Host::Local.connections(&path).await.unwrap(), 0);
        let client = tokio::net::UnixStream::connect(&path).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        assert_eq!(Host::Local.connections(&path).await.unwrap(), 1);
        drop((client, accepted));
        assert_eq!(Host::Local.connections(&path).await.unwrap(), 0);
    }
}
