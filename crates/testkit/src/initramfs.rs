//! What the guest boots: Debian's cloud kernel and an initramfs with its modules, our one program, and the guest agent.
//!
//! Kernel and agent come from `make deps`, which unpacks Debian's packages into the cache folder; they are never
//! installed. The guest program is compiled here, once for each change of it, and lies in the same folder. The archive is cpio's
//! "newc" format, which is what the kernel unpacks into its first root.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tools;

const INIT: &str = include_str!("../guest/init.rs");
const PATTERN: &str = include_str!("pattern.rs");

/// In the order in which they need each other.
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
];

/// The two files that QEMU needs to boot the guest.
pub(crate) struct Boot {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Boot {
    /// Finds both files, and builds the second one first if it is not there yet.
    pub(crate) fn prepare() -> Result<Boot> {
        let parts = tools::cache_dir()?.join("guest");
        let kernel = parts.join("vmlinuz");
        if !kernel.exists() {
            bail!("the test guest has no kernel: {} is missing (`make deps` fetches it)", kernel.display());
        }
        let release = fs::read_to_string(parts.join("release")).context("the test guest's kernel release")?;
        let mut hasher = DefaultHasher::new();
        (INIT, PATTERN, release, MODULES).hash(&mut hasher);
        let initramfs = parts.join(format!("initramfs-{:016x}", hasher.finish()));

        // Tests run side by side, in threads and in processes: one builds, the others wait for it.
        let lock = File::create(parts.join("lock"))?;
        lock.lock()?;
        if !initramfs.exists() {
            let scratch = tempfile::tempdir_in(&parts)?;
            let init = compile(scratch.path())?;
            let unfinished = scratch.path().join("initramfs");
            fs::write(&unfinished, archive(&init, &parts)?)?;
            fs::rename(&unfinished, &initramfs)?;
        }
        Ok(Boot { kernel, initramfs })
    }
}

/// Compiles the guest program into a static executable and returns its bytes.
fn compile(scratch: &Path) -> Result<Vec<u8>> {
    for (folder, name, source) in [("guest", "init.rs", INIT), ("src", "pattern.rs", PATTERN)] {
        fs::create_dir_all(scratch.join(folder))?;
        fs::write(scratch.join(folder).join(name), source)?;
    }
    let program = scratch.join("init");
    let mut rustc = Command::new(tools::rustc());
    rustc.args(["--edition", "2024", "-O", "-D", "warnings"]);
    rustc.args(["-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"]).arg(&program);
    tools::run(rustc.arg(scratch.join("guest/init.rs"))).context("compiling the guest program")?;
    Ok(fs::read(program)?)
}

/// Packs the program, and what `make deps` has placed in the folder `parts`.
fn archive(init: &[u8], parts: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "mnt", "modules"] {
        archive.folder(folder)?;
    }
    archive.file("init", 0o755, init)?;
    for (order, name) in MODULES.iter().enumerate() {
        // One that is missing is part of the kernel itself: the boot shows it if not.
        for end in ["ko", "ko.xz", "ko.zst"] {
            let path = parts.join(format!("modules/{name}.{end}"));
            if path.exists() {
                archive.file(&format!("modules/{order:02}-{name}.{end}"), 0o644, &fs::read(path)?)?;
            }
        }
    }
    archive.tree(&parts.join("agent"), "")?;
    archive.finish()
}

/// A cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(name, 0o100_000 | mode, content)
    }

    /// Everything under a folder, as executable files; `name` is where it goes.
    fn tree(&mut self, folder: &Path, name: &str) -> Result<()> {
        let entries =
            fs::read_dir(folder).with_context(|| format!("{} (`make deps` makes it)", folder.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let name = format!("{name}{}", path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() {
                self.folder(&name)?;
                self.tree(&path, &format!("{name}/"))?;
            } else {
                self.file(&name, 0o755, &fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let links = 1;
        let content_bytes = u32::try_from(content.len()).context("a file of the initramfs is too large")?;
        let name_bytes = u32::try_from(name.len() + 1)?;
        let header = [self.entries, mode, 0, 0, links, 0, content_bytes, 0, 0, 0, 0, name_bytes, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.folder("a").unwrap();
        archive.file("a/b", 0o644, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes.windows(6).filter(|window| window == b"070701").count(), 3);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
