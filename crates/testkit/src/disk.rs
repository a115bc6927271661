//! The disks of a test guest: image files, raw or qcow2.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::tools;

/// The format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk, nothing else.
    Raw,
    /// QEMU's own format.
    Qcow2,
}

impl Format {
    /// The name that QEMU's programs use.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// One disk of a guest. Its name is also the id of its device and, in QEMU, of its block node.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The name, by which a backup can select it.
    pub name: String,
    /// The image file.
    pub path: PathBuf,
    /// The file's format.
    pub format: Format,
    /// Size that the guest sees, in bytes.
    pub bytes: u64,
}

impl Disk {
    /// A new empty image `folder/name.format`.
    pub fn create(folder: &Path, name: &str, format: Format, bytes: u64) -> Result<Disk> {
        let path = folder.join(format!("{name}.{}", format.name()));
        match format {
            Format::Raw => File::create(&path)?.set_len(bytes)?,
            Format::Qcow2 => {
                let mut create = Command::new(tools::tool("qemu-img")?);
                create.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(bytes.to_string());
                tools::run(&mut create)?;
            }
        }
        Ok(Disk { name: name.to_owned(), path, format, bytes })
    }

    /// A new raw image with an empty ext4 file system.
    pub fn create_ext4(folder: &Path, name: &str, bytes: u64) -> Result<Disk> {
        let disk = Disk::create(folder, name, Format::Raw, bytes)?;
        tools::run(Command::new(tools::tool("mkfs.ext4")?).args(["-q", "-F"]).arg(&disk.path))?;
        Ok(disk)
    }

    /// Writes the disk's content as raw bytes to `target`, with nobody else using the image.
    pub fn export_raw(&self, target: &Path) -> Result<()> {
        let mut convert = Command::new(tools::tool("qemu-img")?);
        convert.args(["convert", "-f", self.format.name(), "-O", "raw"]).arg(&self.path).arg(target);
        tools::run(&mut convert).with_context(|| format!("disk {}", self.name)).map(drop)
    }

    /// The names of the disk's two block nodes: the file, and the format over it.
    pub fn nodes(&self) -> [String; 2] {
        [format!("{}-file", self.name), self.name.clone()]
    }

    /// The two `-blockdev` documents of the disk.
    pub(crate) fn blockdevs(&self) -> [Value; 2] {
        let [file, node] = self.nodes();
        [
            json!({"driver": "file", "node-name": file, "filename": self.path, "discard": "unmap"}),
            json!({"driver": self.format.name(), "node-name": node, "file": file, "discard": "unmap"}),
        ]
    }
}
