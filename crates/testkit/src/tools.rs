//! Where the programs are that the tests run, and which Debian package brings a missing one.
//!
//! `AQUIFER_QEMU_PREFIX=/folder` takes QEMU's programs from `/folder/usr/bin`: newer .debs unpacked there are tried
//! beside the installed version without being installed.

use std::env;
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Debian's package of each program that is not named like it.
const PACKAGES: [(&str, &str); 14] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-storage-daemon", "qemu-system-common or qemu-utils"),
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("virsh", "libvirt-clients"),
    ("virt-qemu-run", "libvirt-daemon-driver-qemu"),
    ("xmllint", "libxml2-utils"),
    ("sshd", "openssh-server"),
    ("mkfs.ext4", "e2fsprogs"),
    ("dumpe2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("systemd-analyze", "systemd"),
];

/// The program `name`, from the QEMU prefix if it is QEMU's and one is set, else from `PATH` or the folders of `sbin`.
/// A missing one is an error that names the Debian package.
pub fn tool(name: &str) -> Result<PathBuf> {
    if let Some(prefix) = qemu_prefix().filter(|_| name.starts_with("qemu-")) {
        let path = prefix.join("usr/bin").join(name);
        ensure!(path.exists(), "{} is missing: AQUIFER_QEMU_PREFIX has no {name}", path.display());
        return Ok(path);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    for folder in folders {
        let file = folder.join(name);
        if file.is_file() {
            return Ok(file);
        }
    }
    let package = PACKAGES.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package);
    bail!("the program {name} is missing: Debian's package {package} has it (`make deps` installs it)")
}

/// The folder that `AQUIFER_QEMU_PREFIX` names.
pub(crate) fn qemu_prefix() -> Option<PathBuf> {
    env::var_os("AQUIFER_QEMU_PREFIX").filter(|prefix| !prefix.is_empty()).map(PathBuf::from)
}

/// QEMU's version as it tells it itself, for a report: `7.2.22 (Debian …)`.
pub fn qemu_version() -> Result<String> {
    let text = run(Command::new(tool("qemu-system-x86_64")?).arg("--version"))?;
    let line = text.lines().next().unwrap_or_default();
    Ok(line.trim_start_matches("QEMU emulator version ").to_owned())
}

/// A TCP port on the loopback interface that nobody listens on at this moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The folder of what is kept between runs: kernel, guest program, data sets.
pub fn cache_dir() -> Result<PathBuf> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.context("HOME is not set: there is no place for the test guest's kernel")?;
    Ok(Path::new(&home).join(".cache/aquifer"))
}

/// Runs a short command to its end and returns what it printed; a failure tells the command and its messages.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{messages}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `rustc`, as cargo would find it.
pub(crate) fn rustc() -> OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}
