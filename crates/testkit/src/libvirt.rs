//! libvirt from Debian, without a daemon: its QEMU driver inside of `virsh` and of `virt-qemu-run`, in a folder of the test's.
//!
//! Root's libvirt wants Debian's users and services; another user's wants neither. So root runs it as `nobody`, and what
//! it needs is given to that user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::disk::Disk;
use crate::initramfs::Boot;
use crate::process::Daemon;
use crate::tools;

/// Debian's `nobody` and `nogroup`.
const NOBODY: u32 = 65534;
/// Longest life of a domain.
const LIFE: Duration = Duration::from_secs(120);
/// No daemon beside it, nothing of the host touched.
const CONFIGURATION: &str = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\n\
                             remember_owner = 0\ndynamic_ownership = 0\n";

/// libvirt with all that it keeps in one folder.
#[derive(Debug)]
pub struct Libvirt {
    folder: PathBuf,
    root: bool,
}

impl Libvirt {
    /// One in `folder`, which is made and must be readable by everybody down to it.
    pub fn new(folder: &Path) -> Result<Libvirt> {
        fs::create_dir_all(folder)?;
        let libvirt = Libvirt { folder: folder.to_owned(), root: rustix::process::geteuid().is_root() };
        libvirt.give(folder)?;
        Ok(libvirt)
    }

    /// Lets libvirt's QEMU use a file or a folder.
    pub fn give(&self, path: &Path) -> Result<()> {
        if self.root {
            chown(path, Some(NOBODY), Some(NOBODY)).with_context(|| format!("chown {}", path.display()))?;
        }
        Ok(())
    }

    /// The definition of a domain with these disks that boots the test guest, as a person writes it: libvirt adds the rest.
    pub fn written(&self, name: &str, disks: &[Disk], first_write: u64) -> Result<String> {
        let boot = Boot::prepare()?;
        let mut copies = Vec::new();
        for file in [&boot.kernel, &boot.initramfs] {
            let copy = self.folder.join(file.file_name().context("a file without a name")?);
            fs::copy(file, &copy)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o644))?;
            copies.push(copy.display().to_string());
        }
        let history: Vec<String> = disks.iter().map(|disk| disk.bytes.to_string()).collect();
        let disks: String = disks
            .iter()
            .map(|disk| {
                format!(
                    "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/>\
                     <target dev='{}' bus='virtio'/></disk>\n",
                    disk.format.name(),
                    disk.path.display(),
                    disk.name
                )
            })
            .collect();
        Ok(format!(
            "<domain type='qemu'>\n<name>{name}</name>\n<memory unit='MiB'>128</memory>\n\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 quiet panic=-1 rig.history={} rig.first={first_write} rig.rate=300 rig.files=0 \
             rig.flushes=0 rig.latencies=0</cmdline></os>\n<cpu mode='maximum'/>\n\
             <devices>\n{disks}<interface type='user'><model type='virtio'/></interface>\n\
             <serial type='pty'/>\n</devices>\n</domain>\n",
            copies[0],
            copies[1],
            history.join(",")
        ))
    }

    /// Defines a domain, and returns what libvirt makes of the definition.
    pub fn define(&self, xml: &str) -> Result<String> {
        let root = self.new_root("define")?;
        let file = self.folder.join("defined.xml");
        fs::write(&file, xml)?;
        let mut virsh = self.command("virsh")?;
        virsh.args(["--quiet", "--connect"]).arg(format!("qemu:///embed?root={}", root.display()));
        let name = xml.split_once("<name>").and_then(|(_, rest)| rest.split_once("</name>"));
        let (name, _) = name.context("the definition has no <name>")?;
        virsh.arg(format!("define --validate {}; dumpxml {name}", file.display()));
        let printed = tools::run(&mut virsh)?;
        let start =
            printed.find("<domain").with_context(|| format!("virsh prints no definition: {printed}"))?;
        Ok(printed[start..].trim_end().to_owned() + "\n")
    }

    /// Starts a domain by its definition. It ends with the value.
    pub fn start(&self, definition: &Path) -> Result<Daemon> {
        let root = self.new_root("run")?;
        let mut run = self.command("virt-qemu-run")?;
        run.arg("--root").arg(root).arg(definition);
        Daemon::spawn(&run, &self.folder.join("virt-qemu-run.log"), LIFE)
    }

    fn new_root(&self, name: &str) -> Result<PathBuf> {
        let root = self.folder.join(name);
        ensure!(!root.exists(), "{} was used before", root.display());
        let etc = root.join("etc");
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("qemu.conf"), CONFIGURATION)?;
        [&root, &etc].into_iter().try_for_each(|folder| self.give(folder))?;
        Ok(root)
    }

    fn command(&self, program: &str) -> Result<Command> {
        let program = tools::tool(program)?;
        let mut command = Command::new(if self.root { Path::new("setpriv") } else { &program });
        if self.root {
            command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}"));
            command.arg("--clear-groups").arg(&program);
        }
        command.env("HOME", &self.folder).env("XDG_RUNTIME_DIR", self.folder.join("runtime"));
        Ok(command)
    }
}
