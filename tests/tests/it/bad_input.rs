//! Bad input and bad days of a backup or a restore: each is refused or fails with its own exit code, names the thing
//! and the way out, and leaves every older backup restorable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::process::Daemon;
use aquifer_testkit::{Aquifer, Disk, Format, Qmp, Server, TempDir, process, tempdir};
use serde_json::json;

use crate::Outcome;
use crate::rig::{Rig, SECOND, address, as_strs, ensure_same, sample, text};

const BYTES: usize = 6_000_128;

/// A user with one good backup of the domain `safe`, taken from `source`.
struct User {
    folder: TempDir,
    aquifer: Aquifer,
    source: PathBuf,
}

impl User {
    fn with_a_backup() -> Result<User> {
        let folder = tempdir()?;
        let source = folder.path().join("source.raw");
        sample(&source, BYTES)?;
        let aquifer = Aquifer::with_repository(folder.path())?;
        let user = User { folder, aquifer, source };
        let server = user.serve(&[])?;
        user.aquifer.backup(&["safe", "--nbd", &format!("disk={}", server.uri(""))])?;
        Ok(user)
    }

    /// Serves the source through nbdkit with these filters.
    fn serve(&self, filters: &[&str]) -> Result<Server> {
        let file = text(&self.source);
        Server::nbdkit(self.folder.path(), &[&["--readonly"], filters, &["file", &file]].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The good backup is the only one, and restores byte for byte.
    fn ensure_safe(&self) -> Outcome {
        let listed = self.aquifer.list()?;
        ensure!(listed.len() == 1 && listed[0]["domain"] == "safe", "{listed:?}");
        let images = self.aquifer.restore("latest:safe", &["disk"], "safe")?;
        ensure_same(&self.source, &images[0])?;
        Ok(fs::remove_file(&images[0])?)
    }
}

#[test]
#[ignore = "slow group bad_input"]
fn a_monitor_that_is_not_there() -> Outcome {
    let user = User::with_a_backup()?;
    let socket = user.path("no.qmp");
    user.aquifer.run(&["backup", "vm", "--qmp", &address(&socket)])?.refused(4, "not_found", &["no.qmp"])?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_monitor_that_somebody_else_has_taken() -> Outcome {
    let rig = Rig::start_raw()?;
    let _theirs = Qmp::connect(&rig.guest.monitor(0))?;
    let arguments = rig.backup_arguments(&[]);
    rig.aquifer.run(&as_strs(&arguments))?.refused(5, "conflict", &["0.qmp", "monitor"]).map(drop)
}

#[test]
#[ignore = "slow group bad_input"]
fn a_wrong_password() -> Outcome {
    let user = User::with_a_backup()?;
    let wrong = user.path("wrong.password");
    fs::write(&wrong, "incorrect donkey battery staple\n")?;
    user.aquifer.run(&["list", "--password-file", &text(&wrong)])?.refused(6, "denied", &["password"])?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_folder_that_is_no_repository() -> Outcome {
    let user = User::with_a_backup()?;
    let empty = user.path("empty");
    fs::create_dir(&empty)?;
    for path in [empty, user.path("absent")] {
        let list = user.aquifer.run(&["list", "--repository", &text(&path)])?;
        list.refused(4, "not_found", &[&text(&path), "init"])?;
    }
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_repository_is_not_made_over_another_one_or_over_files() -> Outcome {
    let user = User::with_a_backup()?;
    user.aquifer.run(&["repository", "init"])?.refused(5, "conflict", &["repository"])?;
    let full = user.path("full");
    fs::create_dir(&full)?;
    fs::write(full.join("diary.txt"), "dear diary")?;
    let init = user.aquifer.run(&["repository", "init", "--repository", &text(&full)])?;
    init.refused(5, "conflict", &["full"])?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_repository_of_a_newer_format() -> Outcome {
    let user = User::with_a_backup()?;
    let format = user.aquifer.repository().join("format");
    let bytes = fs::read(&format)?;
    // The version is the first number behind the magic: docs/FORMAT.md, "format".
    let mut newer = bytes.clone();
    newer[8] += 1;
    replace(&format, &newer)?;
    user.aquifer.run(&["list"])?.refused(9, "unsupported", &["version"])?;
    replace(&format, &bytes)?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn no_space_left_in_the_middle_of_a_backup() -> Outcome {
    let folder = tempdir()?;
    let (small, large) = (folder.path().join("small.raw"), folder.path().join("large.raw"));
    sample(&small, 4 << 20)?;
    sample(&large, 60 << 20)?;
    let aquifer = Aquifer::new(folder.path())?;
    fs::create_dir(aquifer.repository())?;

    // A small file system of its own, which only these processes see.
    let mut holder = Command::new("unshare");
    holder.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    holder
        .arg("mount -t tmpfs -o size=32m small \"$0\" && echo mounted && exec sleep 300")
        .arg(aquifer.repository());
    let holder = Daemon::spawn(&holder, &folder.path().join("holder.log"), 300 * SECOND)?;
    process::wait_for("the small file system", 20 * SECOND, || {
        Ok(holder.messages().contains("mounted").then_some(()))
    })?;
    let inside = |arguments: &[&str]| {
        let command = aquifer.command(arguments);
        let mut entered = Command::new("nsenter");
        entered.args(["--user", "--mount", "--preserve-credentials", "--target", &holder.pid()?.to_string()]);
        entered.arg(command.get_program()).args(command.get_args());
        entered.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        aquifer.start_command(&entered)?.wait()
    };
    let source = |image: &Path| format!("disk={}", text(image));

    inside(&["repository", "init"])?.ok()?;
    inside(&["backup", "small", "--image", &source(&small)])?.ok()?;
    inside(&["backup", "large", "--image", &source(&large)])?.refused(
        7,
        "unavailable",
        &["no space left"],
    )?;
    let listed = inside(&["list"])?.ok()?.document()?;
    ensure!(
        listed.as_array().is_some_and(|list| list.len() == 1 && list[0]["domain"] == "small"),
        "{listed}"
    );
    let restored = folder.path().join("restored.raw");
    inside(&["restore", "latest:small", "--disk", &format!("disk=raw:{}", text(&restored))])?.ok()?;
    ensure_same(&small, &restored)
}

#[test]
#[ignore = "slow group bad_input"]
fn a_target_that_is_too_small() -> Outcome {
    let user = User::with_a_backup()?;
    let small = user.path("small.raw");
    fs::File::create(&small)?.set_len(4096)?;
    let server = Server::storage_daemon(user.folder.path(), &small)?;
    let disk = format!("disk={}", server.uri("disk"));
    let restore = user.aquifer.run(&["restore", "latest:safe", "--disk", &disk])?;
    restore.refused(3, "invalid", &["4096", &BYTES.to_string()])?;
    drop(server);
    ensure!(fs::read(&small)? == [0; 4096], "the target was written to");
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_target_that_exists_and_holds_data() -> Outcome {
    let user = User::with_a_backup()?;
    let target = user.path("precious.raw");
    fs::write(&target, "precious")?;
    let disk = format!("disk=raw:{}", text(&target));
    let restore = user.aquifer.run(&["restore", "latest:safe", "--disk", &disk])?;
    restore.refused(5, "conflict", &["precious.raw", "--rewrite-existing"])?;
    ensure!(fs::read(&target)? == b"precious", "the target was written to");
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_target_in_a_folder_that_is_not_there() -> Outcome {
    let user = User::with_a_backup()?;
    let disk = format!("disk=raw:{}", text(&user.path("absent/disk.raw")));
    user.aquifer.run(&["restore", "latest:safe", "--disk", &disk])?.refused(
        4,
        "not_found",
        &["absent/disk.raw"],
    )?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_target_that_is_the_disk_of_the_running_guest() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let taken = rig.backup(&[])?;
    let own = format!("vda=raw:{}", text(&rig.disks[0].path));
    for further in [&[][..], &["--rewrite-existing"]] {
        let restore = rig.aquifer.run(&[&["restore", &taken.uuid, "--disk", &own], further].concat())?;
        restore.refused(5, "conflict", &["vda.raw"])?;
    }
    rig.ensure_clean()?;
    // Were a byte of it written, the guest's disks would be no point in its history.
    rig.guest.pause()?;
    let images: Vec<_> = rig.disks.iter().map(|disk| &disk.path).collect();
    aquifer_testkit::check(&images, *taken.window.start()..=u64::MAX)?;
    Ok(())
}

#[test]
#[ignore = "slow group bad_input"]
fn a_backup_that_is_not_there() -> Outcome {
    let user = User::with_a_backup()?;
    let disk = format!("disk=raw:{}", text(&user.path("out.raw")));
    let unknown = "01890000-0000-7000-8000-000000000000";
    for (backup, named) in [("latest:nobody", "nobody"), (unknown, unknown)] {
        user.aquifer.run(&["restore", backup, "--disk", &disk])?.refused(4, "not_found", &[named])?;
    }
    ensure!(!user.path("out.raw").exists(), "a target was made for no backup");
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_disk_that_is_unknown_or_given_twice() -> Outcome {
    let user = User::with_a_backup()?;
    let (one, two) = (text(&user.path("one.raw")), text(&user.path("two.raw")));
    let restore = user.aquifer.run(&["restore", "latest:safe", "--disk", &format!("nope=raw:{one}")])?;
    restore.refused(4, "not_found", &["nope", "disk"])?;
    let twice = [format!("disk=raw:{one}"), format!("disk=raw:{two}")];
    let restore = user.aquifer.run(&["restore", "latest:safe", "--disk", &twice[0], "--disk", &twice[1]])?;
    restore.refused(3, "invalid", &["disk", "twice"])?;

    let server = user.serve(&[])?;
    let source = format!("disk={}", server.uri(""));
    let backup = user.aquifer.run(&["backup", "safe", "--nbd", &source, "--nbd", &source])?;
    backup.refused(3, "invalid", &["disk", "twice"])?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn a_disk_that_the_guest_has_not() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let arguments = rig.backup_arguments(&["--disk", "vdx"]);
    rig.aquifer.run(&as_strs(&arguments))?.refused(4, "not_found", &["vdx", "vda", "vdb"])?;
    let arguments = rig.backup_arguments(&["--disk", "vda", "--disk", "vda"]);
    rig.aquifer.run(&as_strs(&arguments))?.refused(3, "invalid", &["vda", "twice"])?;
    rig.ensure_clean()
}

#[test]
#[ignore = "slow group bad_input"]
fn an_empty_disk_is_a_backup_of_nothing() -> Outcome {
    let user = User::with_a_backup()?;
    let server = Server::nbdkit(user.folder.path(), &["--readonly", "null", "size=0"])?;
    user.aquifer.backup(&["empty", "--nbd", &format!("disk={}", server.uri(""))])?;
    let images = user.aquifer.restore("latest:empty", &["disk"], "empty")?;
    ensure!(images[0].metadata()?.len() == 0, "the restored disk is not empty");
    Ok(())
}

#[test]
#[ignore = "slow group bad_input"]
fn an_export_that_fails_to_read_names_the_offset() -> Outcome {
    let user = User::with_a_backup()?;
    let file = text(&user.source);
    let arguments =
        ["--readonly", "--filter=error", "file", &file, "error-pread-rate=100%", "error-pread=EIO"];
    let server = Server::nbdkit(user.folder.path(), &arguments)?;
    let backup = user.aquifer.run(&["backup", "safe", "--nbd", &format!("disk={}", server.uri(""))])?;
    backup.refused(7, "unavailable", &["offset", "disk"])?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn an_export_that_goes_away_in_the_middle() -> Outcome {
    let user = User::with_a_backup()?;
    let mut server = user.serve(&[])?;
    let source = format!("disk={}", server.uri(""));
    let arguments = ["backup", "safe", "--nbd", &source, "--read-limit", "1MiB"];
    let mut running = user.aquifer.start(&arguments)?;
    let nbdkit = server.process().pid()?;
    process::wait_for("the backup to be connected", 30 * SECOND, || {
        running.process().ensure_running()?;
        Ok((open_sockets(nbdkit)? > 1).then_some(()))
    })?;
    server.process().kill()?;
    running.wait()?.refused(7, "unavailable", &["disk"])?;
    user.ensure_safe()
}

#[test]
#[ignore = "slow group bad_input"]
fn qemu_killed_in_the_middle() -> Outcome {
    guest_gone_in_the_middle(|rig| rig.guest.process().kill())
}

#[test]
#[ignore = "slow group bad_input"]
fn the_guest_powered_off_in_the_middle() -> Outcome {
    // The guest's own reset ends QEMU, because it runs with -no-reboot: as with a power-off.
    guest_gone_in_the_middle(|rig| {
        rig.guest.qmp().execute("system_reset", json!({}))?;
        rig.guest.process().wait(30 * SECOND).map(drop)
    })
}

fn guest_gone_in_the_middle(end: impl FnOnce(&mut Rig) -> Result<()>) -> Outcome {
    let mut rig = Rig::start(&[(Format::Qcow2, 64 << 20), (Format::Raw, 64 << 20)])?;
    let kept = rig.backup(&[])?;
    let arguments = rig.backup_arguments(&["--read-limit", "1MiB"]);
    let running = rig.aquifer.start(&as_strs(&arguments))?;
    process::wait_for("the backup's exports", 60 * SECOND, || {
        Ok((rig.guest.qmp().query("query-block-exports")?.len() == 2).then_some(()))
    })?;
    end(&mut rig)?;
    running.wait()?.refused(7, "unavailable", &["vm"])?;
    ensure!(rig.aquifer.list()?.len() == 1, "a backup without its guest is listed");
    rig.prove(&kept, "kept").map(drop)
}

#[test]
#[ignore = "slow group bad_input"]
fn a_restore_into_an_export_that_fails_to_write() -> Outcome {
    let user = User::with_a_backup()?;
    let target = user.path("target.raw");
    Disk::create(user.folder.path(), "target", Format::Raw, BYTES as u64)?;
    let file = text(&target);
    let arguments = ["--filter=error", "file", &file, "error-pwrite-rate=100%", "error-pwrite=EIO"];
    let server = Server::nbdkit(user.folder.path(), &arguments)?;
    let restore =
        user.aquifer.run(&["restore", "latest:safe", "--disk", &format!("disk={}", server.uri(""))])?;
    restore.refused(7, "unavailable", &["offset"])?;
    user.ensure_safe()
}

/// How many sockets a process has open.
fn open_sockets(pid: u32) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("process {pid}"))?;
    let targets = open.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count())
}

/// Replaces an object, which the store keeps read-only.
pub(crate) fn replace(object: &Path, bytes: &[u8]) -> Result<()> {
    fs::remove_file(object)?;
    Ok(fs::write(object, bytes)?)
}
