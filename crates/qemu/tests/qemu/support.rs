//! A QEMU to test against, without a guest or with a boot sector as one; and the scripted monitor and agent.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aquifer_qemu::{
    DiskChoice, GuardCommand, Method, Monitor, MonitorAddress, MonitorOptions, NbdListen, Quiesce, Scope,
    SessionRequest, commands,
};
use qapi::Command as _;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const REPOSITORY: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const OTHER_REPOSITORY: &str = "fedcba9876543210fedcba9876543210";
pub(crate) const BACKUP: &str = "0190163d-8694-739b-aea5-966c26f8ad90";
/// Long enough for a busy machine, short enough to fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A program of QEMU's, from `QEMU_PREFIX` or the machine.
pub(crate) fn tool(name: &str) -> PathBuf {
    match std::env::var("QEMU_PREFIX") {
        Ok(prefix) => Path::new(&prefix).join("usr/bin").join(name),
        Err(_) => PathBuf::from(name),
    }
}

/// Runs a program to its end; panics with its output, or with the package that has it.
pub(crate) async fn run(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, output)
        .await
        .unwrap_or_else(|_| panic!("{} {arguments:?} did not end", program.display()))
        .unwrap_or_else(|error| {
            panic!("{}: {error}; apt-get install {}", program.display(), package(program))
        });
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} {arguments:?}: {errors}", program.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn package(program: &Path) -> &'static str {
    match program.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "qemu-img" | "qemu-nbd" | "qemu-io" => "qemu-utils",
        "qemu-system-x86_64" => "qemu-system-x86",
        "qemu-storage-daemon" => "qemu-system-common",
        "nbdcopy" | "nbdinfo" => "libnbd-bin",
        "openssl" => "openssl",
        "sshd" | "ssh-keygen" => "openssh-server openssh-client",
        _ => "the package that has it",
    }
}

/// One disk of a test machine.
pub(crate) struct Image {
    pub(crate) node: String,
    pub(crate) format: &'static str,
    pub(crate) bytes: u64,
    /// What QEMU does when the guest's write fails.
    pub(crate) werror: &'static str,
    /// Whether the writing boot sector is on it.
    pub(crate) boot: bool,
}

/// Real mode: fill 32 KiB blocks of the first disk from sector 128 to 16 MiB by INT 13h, AH=43h, each beginning with
/// the number of the round; and again.
const BOOT_SECTOR: [u8; 72] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, // segments
    0xff, 0x06, 0x00, 0x80, // first round
    0xbc, 0x00, 0x7c, // stack
    0xbe, 0x38, 0x7c, 0xb8, 0x00, 0x43, 0xb2, 0x80, 0xcd, 0x13, // write the block
    0x66, 0x83, 0x06, 0x40, 0x7c, 0x40, // next block: 64 sectors on
    0x66, 0x81, 0x3e, 0x40, 0x7c, 0x00, 0x80, 0x00, 0x00, 0x72, 0xe5, // until sector 32768
    0x66, 0xc7, 0x06, 0x40, 0x7c, 0x80, 0x00, 0x00, 0x00, // back to sector 128
    0xff, 0x06, 0x00, 0x80, 0xeb, 0xd6, 0x90, // next round
    0x10, 0x00, 0x40, 0x00, 0x00, 0x80, 0x00, 0x00, // disk address packet: 64 sectors from 0000:8000
    0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // to sector 128
];

pub(crate) fn qcow2(node: &str, mib: u64) -> Image {
    Image { format: "qcow2", ..raw(node, mib) }
}

pub(crate) fn raw(node: &str, mib: u64) -> Image {
    Image { node: node.to_owned(), format: "raw", bytes: mib * MIB, werror: "enospc", boot: false }
}

/// A machine with two monitors: `qmp.sock` for Aquifer, `test.sock` for the test.
pub(crate) struct Machine {
    pub(crate) folder: TempDir,
    pub(crate) child: Child,
    pub(crate) test: Monitor,
}

/// What QEMU and the folders hold, to compare before and after.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inventory {
    pub(crate) nodes: Vec<String>,
    pub(crate) jobs: Vec<String>,
    pub(crate) exports: Vec<String>,
    pub(crate) files: Vec<String>,
}

impl Machine {
    /// Disks on virtio-blk, processor stopped, no guest.
    pub(crate) async fn start(images: &[Image]) -> Self {
        Self::start_with(images, &["-S"]).await
    }

    pub(crate) async fn start_with(images: &[Image], extra: &[&str]) -> Self {
        Self::start_as(images, extra, Command::new(tool("qemu-system-x86_64"))).await
    }

    /// A machine whose guest is a boot sector that overwrites its raw disk `n0` of 16 MiB again and again, and whose
    /// QEMU cannot make a file longer than that: so a scratch, which holds the same and its tables, fills.
    pub(crate) async fn start_writing() -> Self {
        let mut command = Command::new("sh");
        // dash and bash count file sizes in different units when the shell is called sh: 512 bytes by POSIX.
        command
            .args(["-c", "trap '' XFSZ; ulimit -f 32768; exec \"$@\"", "sh"])
            .arg(tool("qemu-system-x86_64"));
        let images = [Image { werror: "stop", boot: true, ..raw("n0", 16) }];
        Self::start_as(&images, &[], command).await
    }

    async fn start_as(images: &[Image], extra: &[&str], command: Command) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), images, extra, command).await
    }

    async fn start_in(folder: TempDir, images: &[Image], extra: &[&str], mut command: Command) -> Self {
        for socket in ["qmp.sock", "test.sock"] {
            // What a QEMU that was killed left here.
            let _ = std::fs::remove_file(folder.path().join(socket));
        }
        if let Ok(prefix) = std::env::var("QEMU_PREFIX") {
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(Path::new(&prefix).join(data));
            }
        }
        command.args("-accel tcg -machine pc -m 32 -display none -nodefaults".split(' '));
        for image in images {
            image.create(folder.path()).await;
            for node in image.nodes(folder.path()) {
                command.arg("-blockdev").arg(node.to_string());
            }
            let (node, werror) = (&image.node, image.werror);
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={node},id=virtio-{node},werror={werror}"));
        }
        for name in ["qmp", "test"] {
            let path = folder.path().join(format!("{name}.sock"));
            command
                .arg("-chardev")
                .arg(format!("socket,id={name},path={},server=on,wait=off", path.display()));
            command.arg("-mon").arg(format!("chardev={name},mode=control"));
        }
        Self::finish(folder, command.args(extra)).await
    }

    /// The same disks in qemu-storage-daemon, which has no devices.
    pub(crate) async fn start_daemon(images: &[Image]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(tool("qemu-storage-daemon"));
        for image in images {
            image.create(folder.path()).await;
            for node in image.nodes(folder.path()) {
                command.arg("--blockdev").arg(node.to_string());
            }
        }
        for name in ["qmp", "test"] {
            let path = folder.path().join(format!("{name}.sock"));
            command
                .arg("--chardev")
                .arg(format!("socket,id={name},path={},server=on,wait=off", path.display()));
            command.arg("--monitor").arg(format!("chardev={name}"));
        }
        Self::finish(folder, &mut command).await
    }

    async fn finish(folder: TempDir, command: &mut Command) -> Self {
        std::fs::create_dir_all(folder.path().join("scratch")).unwrap();
        let log = std::fs::File::create(folder.path().join("qemu.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn();
        let mut child =
            child.unwrap_or_else(|error| panic!("QEMU: {error}; apt-get install qemu-system-x86"));
        let address = MonitorAddress::Unix(folder.path().join("test.sock"));
        let end = Instant::now() + PATIENCE;
        let test = loop {
            match Monitor::connect(&address, &MonitorOptions::default()).await {
                Ok(monitor) => break monitor,
                Err(error) => {
                    let ended = child.try_wait().unwrap();
                    let log = || std::fs::read_to_string(folder.path().join("qemu.log")).unwrap();
                    assert!(ended.is_none() && Instant::now() < end, "no QEMU: {error}: {}", log());
                }
            }
            sleep(Duration::from_millis(10)).await;
        };
        Self { folder, child, test }
    }

    /// Ends QEMU, by its own `quit` or by a `kill`, and starts it again with the disks `n0` (qcow2) and `n1` (raw).
    pub(crate) async fn restart(mut self, how: &str) -> Self {
        match how {
            "quit" => drop(self.try_qmp("quit", json!({})).await),
            _ => self.child.start_kill().unwrap(),
        }
        timeout(PATIENCE, self.child.wait()).await.expect("QEMU ends").unwrap();
        let images = [qcow2("n0", 8), raw("n1", 8)];
        Self::start_in(self.folder, &images, &["-S"], Command::new(tool("qemu-system-x86_64"))).await
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn monitor(&self) -> MonitorAddress {
        MonitorAddress::Unix(self.path("qmp.sock"))
    }

    pub(crate) fn scope(&self) -> Scope {
        Scope {
            repository: REPOSITORY.to_owned(),
            domain: "web01".to_owned(),
            scratch: self.path("scratch"),
            nbd: NbdListen::Unix,
            agent: None,
        }
    }

    pub(crate) fn request(&self) -> SessionRequest {
        SessionRequest {
            monitor: self.monitor(),
            options: MonitorOptions::default(),
            scope: self.scope(),
            backup: BACKUP.to_owned(),
            disks: DiskChoice::default(),
            scratch_max_bytes: None,
            max_connections: 8,
            quiesce: Quiesce::Off,
            method: Method::Classic,
            guard: None,
        }
    }

    /// A command that Aquifer itself never sends.
    pub(crate) async fn qmp(&self, name: &'static str, arguments: Value) -> Value {
        self.try_qmp(name, arguments).await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) async fn try_qmp(&self, name: &'static str, arguments: Value) -> aquifer_qemu::Result<Value> {
        macro_rules! send {
            ($($known:literal => $type:ident),*) => {
                match name { $($known => self.test.execute($type(arguments)).await,)* _ => panic!("add {name}") }
            };
        }
        send! {
            "human-monitor-command" => HumanMonitor, "blockdev-backup" => BlockdevBackup,
            "blockdev-add" => BlockdevAdd, "nbd-server-start" => NbdServerStart, "job-cancel" => JobCancel,
            "job-dismiss" => JobDismiss, "block-export-add" => ExportAdd, "block-export-del" => ExportDel,
            "block-dirty-bitmap-add" => BitmapAdd, "cont" => Cont, "quit" => Quit, "system_powerdown" => PowerDown,
            "blockdev-remove-medium" => RemoveMedium, "qom-set" => QomSet
        }
    }

    /// Writes a pattern as the guest's device would, so that it passes what a backup put above the node.
    pub(crate) async fn write(&self, node: &str, pattern: u8, offset: u64, bytes: u64) {
        let line = format!(
            "qemu-io -d /machine/peripheral/virtio-{node}/virtio-backend \"write -P {pattern} {offset} {bytes}\""
        );
        let said = self.qmp("human-monitor-command", json!({"command-line": line})).await;
        assert!(!said.as_str().unwrap_or_default().to_lowercase().contains("error"), "{line}: {said}");
    }

    pub(crate) async fn inventory(&self) -> Inventory {
        let nodes = self.test.execute(commands::QueryNodes(json!({"flat": true}))).await;
        let log = || std::fs::read_to_string(self.path("qemu.log")).unwrap();
        let nodes = nodes.unwrap_or_else(|error| panic!("{error}: {}", log()));
        let jobs = self.test.execute(commands::QueryJobs(json!({}))).await.unwrap();
        let exports = self.test.execute(commands::QueryExports(json!({}))).await.unwrap();
        let files = std::fs::read_dir(self.path("scratch")).unwrap();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        Inventory {
            nodes: sorted(nodes.into_iter().filter_map(|node| node.node_name).collect()),
            jobs: sorted(jobs.into_iter().map(|job| job.id).collect()),
            exports: sorted(exports.into_iter().map(|export| export.id).collect()),
            files: sorted(files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()),
        }
    }

    /// Every bitmap of every node, by name.
    pub(crate) async fn bitmaps(&self) -> Vec<String> {
        let nodes = self.test.execute(commands::QueryNodes(json!({"flat": true}))).await.unwrap();
        nodes.into_iter().flat_map(|node| node.dirty_bitmaps).filter_map(|bitmap| bitmap.name).collect()
    }

    pub(crate) async fn status(&self) -> String {
        self.test.execute(commands::QueryStatus(json!({}))).await.unwrap().status
    }

    /// How far the writing guest is: every block that it writes adds one.
    pub(crate) fn progress(&self) -> u64 {
        use std::os::unix::fs::FileExt;
        let disk = std::fs::File::open(self.path("n0.raw")).unwrap();
        let round = |block: u64| {
            let mut round = [0; 2];
            disk.read_exact_at(&mut round, block * (32 << 10)).unwrap();
            u64::from(u16::from_le_bytes(round))
        };
        (2..512).map(round).sum()
    }

    /// Waits until the writing guest writes, and on from now.
    pub(crate) async fn writes_on(&self) {
        let now = self.progress();
        eventually("the guest writes on", || async { self.progress() > now }).await;
    }

    /// Whether an NBD server runs: only then an export can be added.
    pub(crate) async fn has_server(&self, node: &str) -> bool {
        let export = json!({"type": "nbd", "id": "probe", "node-name": node, "name": "probe"});
        if self.try_qmp("block-export-add", export).await.is_err() {
            return false;
        }
        self.qmp("block-export-del", json!({"id": "probe", "mode": "hard"})).await;
        true
    }
}

impl Image {
    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.{}", self.node, self.format))
    }

    async fn create(&self, folder: &Path) {
        let path = self.path(folder);
        if path.exists() {
            return;
        }
        let path = path.display().to_string();
        run(tool("qemu-img"), &["create", "-q", "-f", self.format, &path, &self.bytes.to_string()]).await;
        if self.boot {
            // Data everywhere, because holes cost a scratch nothing; and no round yet.
            let mut disk = vec![0xaa; self.bytes as usize];
            disk.chunks_mut(32 << 10).for_each(|block| block[..2].fill(0));
            disk[..BOOT_SECTOR.len()].copy_from_slice(&BOOT_SECTOR);
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            std::fs::write(&path, disk).unwrap();
        }
    }

    fn nodes(&self, folder: &Path) -> [Value; 2] {
        let file = format!("{}-file", self.node);
        [
            json!({"driver": "file", "node-name": file, "filename": self.path(folder), "discard": "unmap"}),
            json!({"driver": self.format, "node-name": self.node, "file": file, "discard": "unmap"}),
        ]
    }
}

macro_rules! test_commands {
    ($($type:ident = $name:literal;)*) => {$(
        #[derive(Debug, Serialize)]
        #[serde(transparent)]
        struct $type(Value);
        impl qapi::Command for $type {
            type Ok = Value;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }
        impl qapi::qmp::QmpCommand for $type {}
    )*};
}

test_commands! {
    HumanMonitor = "human-monitor-command";
    BlockdevBackup = "blockdev-backup";
    BlockdevAdd = "blockdev-add";
    NbdServerStart = "nbd-server-start";
    JobCancel = "job-cancel";
    JobDismiss = "job-dismiss";
    ExportAdd = "block-export-add";
    ExportDel = "block-export-del";
    BitmapAdd = "block-dirty-bitmap-add";
    Cont = "cont";
    Quit = "quit";
    PowerDown = "system_powerdown";
    RemoveMedium = "blockdev-remove-medium";
    QomSet = "qom-set";
}

/// Name of a command type, so that the scripts of [`scripted`] and the code cannot drift apart.
pub(crate) const SCHEMA: &str = commands::QuerySchema::NAME;

/// Pulls an export whole, with libnbd's copier.
pub(crate) async fn pull(uri: &str, folder: &Path) -> Vec<u8> {
    let out = folder.join("pulled.raw");
    // The last pull's file.
    let _ = std::fs::remove_file(&out);
    run("nbdcopy", &[uri, &out.display().to_string()]).await;
    std::fs::read(out).unwrap()
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "still not so after {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// One of the example programs of this crate, built by `cargo test` beside this one.
pub(crate) fn example(name: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let program = deps.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    program
}

pub(crate) fn guard() -> GuardCommand {
    GuardCommand { program: example("guard"), args: Vec::new() }
}

/// Serves one connection after the other on `path` with `script`.
pub(crate) fn serve<F, S>(path: &Path, script: S)
where
    S: Fn(BufReader<UnixStream>) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            script(BufReader::new(stream)).await;
        }
    });
}

pub(crate) const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":12,"minor":1,"micro":0},"package":"x"},"capabilities":["oob","telepathy"]}}"#;

/// Sends a line.
pub(crate) async fn say(stream: &mut BufReader<UnixStream>, line: &str) {
    // A client that has given up is part of some tests.
    let _ = stream.get_mut().write_all(format!("{line}\n").as_bytes()).await;
}

/// Reads the next request; `None` at the end.
pub(crate) async fn hear(stream: &mut BufReader<UnixStream>) -> Option<Value> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.ok()?;
    let start = line.iter().rposition(|&byte| byte == 0xFF).map_or(0, |at| at + 1);
    serde_json::from_slice(&line[start..]).ok()
}
