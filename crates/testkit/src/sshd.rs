//! An ssh server of the test's own on the loopback interface, and a client that knows it and nothing else.
//!
//! Not the machine's server: keys, ports and known hosts are made for the test and end with its folder.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::{Daemon, wait_for};
use crate::tools::{self, run, tool};

/// The name under which the client's configuration knows the server.
const HOST: &str = "hv1";

/// A running ssh server.
#[derive(Debug)]
pub struct Sshd {
    _process: Daemon,
    folder: PathBuf,
}

impl Sshd {
    /// Starts a server with new keys; everything lies in `folder`.
    pub fn start(folder: &Path) -> Result<Sshd> {
        let at = |name: &str| folder.join(name).display().to_string();
        for key in ["host", "user"] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]))?;
        }
        let port = tools::free_port()?;
        fs::copy(folder.join("user.pub"), folder.join("authorized"))?;
        let server = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nAllowStreamLocalForwarding yes\n",
            at("host"),
            at("authorized")
        );
        fs::write(folder.join("sshd_config"), server)?;
        let key = fs::read_to_string(folder.join("host.pub"))?;
        fs::write(folder.join("known"), format!("[127.0.0.1]:{port} {key}"))?;
        let client = format!(
            "Host {HOST}\nHostName 127.0.0.1\nPort {port}\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\n",
            at("user"),
            at("known")
        );
        fs::write(folder.join("ssh_config"), client)?;
        // sshd run by root wants the folder that its service makes.
        let _ = fs::create_dir("/run/sshd");
        let mut command = Command::new(tool("sshd")?);
        command.args(["-D", "-e", "-f", &at("sshd_config")]);
        let mut process = Daemon::spawn(&command, &folder.join("sshd.log"), Duration::from_secs(600))?;
        wait_for("sshd to listen", Duration::from_secs(60), || {
            process.ensure_running()?;
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        Ok(Sshd { _process: process, folder: folder.to_owned() })
    }

    /// The client's configuration file.
    pub fn client_config(&self) -> PathBuf {
        self.folder.join("ssh_config")
    }

    /// The address of a monitor's socket behind this server.
    pub fn monitor(&self, socket: &Path) -> String {
        format!("ssh://{HOST}{}", socket.display())
    }

    /// Lets the client know no host any more.
    pub fn forget_host(&self) -> Result<()> {
        Ok(fs::write(self.folder.join("known"), "")?)
    }

    /// A folder with an `ssh` that reads the client's configuration, for the front of a `PATH`.
    pub fn client_folder(&self) -> Result<PathBuf> {
        let folder = self.folder.join("bin");
        fs::create_dir_all(&folder)?;
        let program = folder.join("ssh");
        let script = format!(
            "#!/bin/sh\nexec {} -F {} \"$@\"\n",
            tool("ssh")?.display(),
            self.client_config().display()
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }
}
