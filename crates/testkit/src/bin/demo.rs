//! `make demo`: a live guest is backed up and restored with the real commands, and the result is proved.
//!
//! It prints each command as a user would type it, with what the command prints, and ends with a summary. Everything
//! lies in one temporary folder, which goes with it. It fails, with a message and exit code 1, when any step fails.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{
    Disk, Format, Guest, GuestOptions, aquifer_binary, check, tempdir, tools, write_password,
};

const DISK_BYTES: u64 = 256 << 20;
const WRITES_BEFORE: u64 = 1000;

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let folder = tempdir()?;
    let at = folder.path();
    say(&format!("a guest with two disks (QEMU {})", tools::qemu_version()?));
    let disks = [
        Disk::create(at, "vda", Format::Qcow2, DISK_BYTES)?,
        Disk::create(at, "vdb", Format::Raw, DISK_BYTES)?,
    ];
    let options =
        GuestOptions { writes_per_second: 0, life: Duration::from_secs(900), ..GuestOptions::default() };
    let booting = Instant::now();
    let mut guest = Guest::start(at, &disks, &options)?;
    println!(
        "first write after {:.1} s; vda is qcow2, vdb is raw, 256 MiB each",
        booting.elapsed().as_secs_f64()
    );
    guest.wait_seq(WRITES_BEFORE, Duration::from_secs(120))?;

    say("an encrypted repository");
    write_password(&at.join("password"))?;
    let shell = Shell { folder: at, binary: aquifer_binary()? };
    println!("$ cd {}", at.display());
    println!("$ export AQUIFER_PASSWORD_FILE=$PWD/password AQUIFER_STATE_DIR=$PWD/state");
    shell.run("repository init -r repository")?;

    say("a backup of both disks at one instant, while the guest writes");
    let earliest = guest.seq();
    let backing_up = Instant::now();
    shell.run("backup web01 -r repository --qmp unix:$PWD/0.qmp --scratch $PWD --description 'the demo'")?;
    let backup_took = backing_up.elapsed();
    let latest = guest.next_seq()?;
    let left = guest.leftovers()?;
    ensure!(left.is_empty() && guest.status()? == "running", "the backup left something in QEMU: {left:?}");

    say("what the repository holds");
    shell.run("list -r repository")?;

    say("both disks restored and read back, the whole repository verified");
    let restoring = Instant::now();
    shell.run(
        "restore latest:web01 -r repository --disk vda=raw:restored-vda.raw --disk vdb=raw:restored-vdb.raw --verify",
    )?;
    let restore_took = restoring.elapsed();
    shell.run("verify -r repository --level chunks")?;

    say("the proof");
    let images = ["vda", "vdb"].map(|name| at.join(format!("restored-{name}.raw")));
    let moment = check(&images, earliest..=latest)?;
    let newest = guest.next_seq()?;
    guest.quit()?;
    let blocks = moment.blocks;
    println!(
        "Both restored disks together, compared block by block ({blocks} blocks of 4 KiB, {} with data),",
        moment.data_blocks
    );
    println!("are the state after exactly one write of the guest: number {}.", moment.write);
    println!(
        "The backup ran between the writes {earliest} and {latest}; the guest never stopped, and got to {newest}."
    );

    say("summary");
    let repository = held_bytes(&at.join("repository"))?;
    println!(
        "backup {:.1} s, restore with read-back {:.1} s",
        backup_took.as_secs_f64(),
        restore_took.as_secs_f64()
    );
    println!("guest data {} MiB, repository {} MiB", (moment.data_blocks * 4096) >> 20, repository >> 20);
    println!("nothing is left in QEMU; everything the demo made is removed");
    Ok(())
}

/// A user's shell in the demo's folder.
struct Shell<'a> {
    folder: &'a Path,
    binary: PathBuf,
}

impl Shell<'_> {
    /// Prints one `aquifer` command and runs it as the user's shell would.
    fn run(&self, arguments: &str) -> Result<()> {
        println!("$ aquifer {arguments}");
        let mut shell = Command::new("timeout");
        // `aquifer` is the binary that was just built, wherever it lies.
        shell
            .args(["--kill-after=5", "600", "sh", "-c"])
            .arg(format!("exec \"$0\" {arguments}"))
            .arg(&self.binary);
        shell.env("AQUIFER_PASSWORD_FILE", self.folder.join("password"));
        shell.env("AQUIFER_STATE_DIR", self.folder.join("state"));
        let status = shell.current_dir(self.folder).status().context("cannot start a shell")?;
        ensure!(status.success(), "`aquifer {arguments}` failed: {status}");
        Ok(())
    }
}

fn say(what: &str) {
    println!("\n== {what}");
}

/// The bytes that the files under a folder occupy.
fn held_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { held_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
