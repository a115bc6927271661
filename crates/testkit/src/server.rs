//! NBD servers to read from and to write to: QEMU's two, and nbdkit with its filters.
//!
//! Each listens on a unix socket in a folder of the test and ends with its [`Server`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::process::{Daemon, connect_to};
use crate::tools::tool;

/// Hard limit of a server's life.
const LIFE: Duration = Duration::from_secs(300);

/// A server that accepts connections.
#[derive(Debug)]
pub struct Server {
    daemon: Daemon,
    socket: PathBuf,
}

impl Server {
    /// `qemu-nbd` over an image; `arguments` come before it, such as `--read-only`.
    pub fn qemu_nbd(folder: &Path, image: &Path, arguments: &[&str]) -> Result<Server> {
        let socket = free_socket(folder, "qemu-nbd");
        let mut command = Command::new(tool("qemu-nbd")?);
        command.args(["--persistent", "--shared=8", "--socket"]).arg(&socket).args(arguments).arg(image);
        Server::start(&command, socket)
    }

    /// `qemu-storage-daemon` over a raw image, as the writable export `disk` with its allocation.
    pub fn storage_daemon(folder: &Path, image: &Path) -> Result<Server> {
        let socket = free_socket(folder, "storage-daemon");
        let address = json!({"addr": {"type": "unix", "path": socket}});
        let file = json!({"driver": "file", "node-name": "file", "filename": image, "discard": "unmap"});
        let node = json!({"driver": "raw", "node-name": "disk", "file": "file", "discard": "unmap"});
        let export =
            json!({"type": "nbd", "id": "export", "node-name": "disk", "name": "disk", "writable": true});
        let mut command = Command::new(tool("qemu-storage-daemon")?);
        command.arg("--blockdev").arg(file.to_string()).arg("--blockdev").arg(node.to_string());
        command.arg("--nbd-server").arg(address.to_string()).arg("--export").arg(export.to_string());
        Server::start(&command, socket)
    }

    /// `nbdkit` with these arguments: filters, plugin, settings.
    pub fn nbdkit(folder: &Path, arguments: &[&str]) -> Result<Server> {
        let socket = free_socket(folder, "nbdkit");
        let mut command = Command::new(tool("nbdkit")?);
        command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&socket).args(arguments);
        Server::start(&command, socket)
    }

    /// The URI of one of its exports; the default export has no name.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    fn start(command: &Command, socket: PathBuf) -> Result<Server> {
        let mut daemon = Daemon::spawn(command, &socket.with_extension("log"), LIFE)?;
        connect_to(&mut daemon, &socket)?;
        Ok(Server { daemon, socket })
    }
}

/// A path for a socket that no server of this folder has.
fn free_socket(folder: &Path, name: &str) -> PathBuf {
    let mut number = 0;
    loop {
        let path = folder.join(format!("{name}-{number}.sock"));
        if !path.with_extension("log").exists() {
            return path;
        }
        number += 1;
    }
}
