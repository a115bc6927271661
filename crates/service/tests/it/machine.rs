//! QEMU with two small disks and a stopped processor: a domain whose disks nobody writes.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use aquifer_engine::QmpSource;
use aquifer_engine::qemu::{DiskChoice, MonitorAddress, MonitorOptions, NbdListen, Quiesce};
use aquifer_testkit::process::{self, Daemon};
use aquifer_testkit::tools::tool;

/// The disks of a machine.
pub(crate) const DISKS: [&str; 2] = ["vda", "vdb"];
const LIFE: Duration = Duration::from_secs(900);

/// A QEMU that ends when the value is dropped.
pub(crate) struct Machine {
    folder: PathBuf,
    _qemu: Daemon,
}

impl Machine {
    /// Starts one in a new folder.
    pub(crate) fn start(folder: PathBuf) -> Result<Machine> {
        fs::create_dir_all(folder.join("scratch"))?;
        let mut qemu = Command::new(tool("qemu-system-x86_64")?);
        if let Some(prefix) = std::env::var_os("AQUIFER_QEMU_PREFIX").filter(|prefix| !prefix.is_empty()) {
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                qemu.arg("-L").arg(Path::new(&prefix).join(data));
            }
        }
        qemu.args("-accel tcg -machine pc -m 16 -display none -nodefaults -no-user-config -S".split(' '));
        for (number, disk) in (0..).zip(DISKS) {
            let image = folder.join(format!("{disk}.raw"));
            let content: Vec<u8> =
                (0..=u8::MAX).flat_map(|block| [block.rotate_left(number); 4096]).collect();
            fs::write(&image, content)?;
            let image = image.display();
            qemu.arg("-blockdev")
                .arg(format!("driver=raw,node-name={disk},file.driver=file,file.filename={image}"));
            qemu.arg("-device").arg(format!("virtio-blk-pci,id={disk},drive={disk}"));
        }
        let socket = folder.join("qmp.sock");
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let qemu = Daemon::spawn(&qemu, &folder.join("qemu.log"), LIFE)?;
        process::wait_for("QEMU's monitor", Duration::from_secs(60), || {
            Ok(UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        Ok(Machine { folder, _qemu: qemu })
    }

    /// How it is reached.
    pub(crate) fn source(&self) -> QmpSource {
        QmpSource {
            monitor: MonitorAddress::Unix(self.folder.join("qmp.sock")),
            monitor_options: MonitorOptions::default(),
            disks: DiskChoice::default(),
            scratch: self.folder.join("scratch"),
            scratch_max_bytes: None,
            listen: NbdListen::Unix,
            quiesce: Quiesce::Off,
            filter: None,
            agent: None,
            guard: None,
        }
    }
}
