//! Freezing the guest's file systems around the instant: clean when it works, thawed whatever happens.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use aquifer_testkit::{
    Aquifer, Disk, Format, Guest, GuestOptions, Hold, Proxy, Side, TempDir, process, tempdir, tools,
};
use rustix::process::Signal;

use crate::Outcome;
use crate::rig::{DISK_BYTES, SECOND, address, text};

/// A guest with a mounted file system, and a user who backs it up.
struct Files {
    folder: TempDir,
    guest: Guest,
    aquifer: Aquifer,
}

impl Files {
    fn start() -> Result<Files> {
        let folder = tempdir()?;
        let disks = [Disk::create(folder.path(), "vda", Format::Raw, DISK_BYTES)?];
        let file_system = Some(Disk::create_ext4(folder.path(), "files", DISK_BYTES)?);
        let options = GuestOptions { file_system, monitors: 2, ..GuestOptions::default() };
        let guest = Guest::start(folder.path(), &disks, &options)?;
        let aquifer = Aquifer::with_repository(folder.path())?;
        let mut files = Files { folder, guest, aquifer };
        files.ensure_thawed()?;
        Ok(files)
    }

    fn arguments<'a>(&self, monitor: &'a str, agent: &'a str, quiesce: &'a str) -> Vec<String> {
        let scratch = text(self.folder.path());
        ["backup", "vm", "--qmp", monitor, "--scratch", &scratch, "--agent", agent, "--quiesce", quiesce]
            .map(str::to_owned)
            .to_vec()
    }

    fn backup(&self, agent: &Path, quiesce: &str) -> Result<aquifer_testkit::Ended> {
        let (monitor, agent) = (address(&self.guest.monitor(0)), address(agent));
        self.aquifer.run(&crate::rig::as_strs(&self.arguments(&monitor, &agent, quiesce)))
    }

    /// Whether the newest backup's file system was frozen: then its journal has nothing to replay.
    fn restored_is_clean(&self, name: &str) -> Result<bool> {
        let images = self.aquifer.restore("latest:vm", &["files"], name)?;
        let features = tools::run(Command::new(tools::tool("dumpe2fs")?).arg("-h").arg(&images[0]))?;
        let clean = !features.contains("needs_recovery");
        if clean {
            tools::run(Command::new(tools::tool("e2fsck")?).arg("-fn").arg(&images[0]))?;
        }
        Ok(clean)
    }

    /// Proves that the guest can write files.
    fn ensure_thawed(&mut self) -> Outcome {
        // The first one may have been written before and reported after.
        let enough = self.guest.files_written() + 2;
        process::wait_for("the guest to write files", 60 * SECOND, || {
            self.guest.process().ensure_running()?;
            Ok((self.guest.files_written() >= enough).then_some(()))
        })
    }
}

#[test]
#[ignore = "slow group quiesce"]
fn a_frozen_file_system_comes_back_clean_and_an_unfrozen_one_with_a_journal() -> Outcome {
    let mut files = Files::start()?;
    let agent = files.guest.agent();
    let done = files.backup(&agent, "require")?.ok()?.event("done")?;
    ensure!(done["freeze_ms"].as_u64() > Some(0), "{done}");
    files.ensure_thawed()?;
    ensure!(files.restored_is_clean("frozen")?, "the file system was not frozen at the instant");

    let done = files.backup(&agent, "off")?.ok()?.event("done")?;
    ensure!(done["freeze_ms"].as_u64().unwrap_or(0) == 0, "{done}");
    ensure!(!files.restored_is_clean("unfrozen")?, "the check cannot tell a frozen file system from another");
    Ok(())
}

#[test]
#[ignore = "slow group quiesce"]
fn an_agent_that_is_not_there_fails_a_backup_that_requires_it_and_only_warns_one_that_tries() -> Outcome {
    let mut files = Files::start()?;
    let absent = files.folder.path().join("absent.sock");
    files.backup(&absent, "require")?.refused(4, "not_found", &["agent", "absent.sock"])?;
    ensure!(
        files.guest.leftovers()?.is_empty() && files.aquifer.list()?.is_empty(),
        "the failed backup left something"
    );

    let tried = files.backup(&absent, "try")?;
    tried.ok()?.event("done")?;
    ensure!(tried.messages.contains("absent.sock"), "no warning: {}", tried.messages);
    files.ensure_thawed()
}

#[test]
#[ignore = "slow group quiesce"]
fn a_backup_killed_while_the_guest_is_frozen_does_not_leave_it_so() -> Outcome {
    let mut files = Files::start()?;
    let proxy = Proxy::start(&files.folder.path().join("proxy.qmp"), &files.guest.monitor(1))?;
    let (monitor, agent) = (address(proxy.socket()), address(&files.guest.agent()));
    let arguments = files.arguments(&monitor, &agent, "require");
    proxy.arm(None);
    files.aquifer.run(&crate::rig::as_strs(&arguments))?.ok()?;
    let commands = proxy.commands();
    let transaction = commands.iter().position(|name| name == "transaction");
    let hold = transaction.map(|command| Hold { command, side: Side::Before });
    ensure!(hold.is_some(), "no transaction: {commands:?}");

    proxy.arm(hold);
    let mut running = files.aquifer.start(&crate::rig::as_strs(&arguments))?;
    proxy.wait_held(30 * SECOND)?;
    let frozen_at = files.guest.files_written();
    files.guest.next_seq()?;
    ensure!(files.guest.files_written() <= frozen_at + 1, "the guest is not frozen at the transaction");
    process::send(running.process().pid()?, Signal::KILL)?;
    proxy.release();
    files.ensure_thawed()?;
    process::wait_for("QEMU and the scratch folder to be as they were", 20 * SECOND, || {
        let files = fs::read_dir(files.folder.path())?.flatten();
        let scratch =
            files.filter(|entry| entry.file_name().to_string_lossy().starts_with("aquifer-")).count();
        Ok((scratch == 0).then_some(()))
    })?;
    let left = files.guest.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
