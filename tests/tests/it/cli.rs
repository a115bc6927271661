//! The command line's promises: exit codes, JSON, secrets that stay out of arguments, two processes at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use aquifer_testkit::{Aquifer, Server, process, tempdir};

use crate::Outcome;
use crate::rig::{SECOND, ensure_same, sample, text};

#[test]
fn a_wrong_command_line_is_exit_code_2() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::new(folder.path())?;
    for arguments in [&["frobnicate"][..], &["backup"], &["list", "--frobnicate"]] {
        aquifer.run(arguments)?.with_code(2)?;
    }
    for arguments in [&["--help"][..], &["backup", "--help"], &["--version"]] {
        aquifer.run(arguments)?.ok()?;
    }
    Ok(())
}

#[test]
fn a_plain_repository_is_made_only_when_asked_for() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::new(folder.path())?;
    let mut command = aquifer.command(&["repository", "init"]);
    command.env("AQUIFER_PASSWORD_FILE", "");
    let ended = aquifer.start_command(&command)?.wait()?;
    ensure!(ended.code != 0, "a repository without a password was made without --no-encryption");
    ensure!(!aquifer.repository().join("format").exists(), "a refused init left a repository");

    let mut command = aquifer.command(&["repository", "init", "--no-encryption"]);
    command.env_remove("AQUIFER_PASSWORD_FILE");
    aquifer.start_command(&command)?.wait()?.ok()?;
    let mut command = aquifer.command(&["repository", "info"]);
    command.env_remove("AQUIFER_PASSWORD_FILE");
    let info = aquifer.start_command(&command)?.wait()?.ok()?.document()?;
    ensure!(info["encrypted"] == false, "{info}");
    Ok(())
}

#[test]
fn a_password_can_be_added_and_the_old_one_retired() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let slots = aquifer.run(&["repository", "keys", "list"])?.ok()?.document()?;
    let first = slots[0]["slot"].as_str().context("no slot in the list")?.to_owned();

    let second = folder.path().join("second.password");
    fs::write(&second, "another one\n")?;
    aquifer.run(&["repository", "keys", "add", "--new-password-file", &text(&second)])?.ok()?;
    aquifer.run(&["list", "--password-file", &text(&second)])?.ok()?;
    aquifer.run(&["list"])?.ok()?;

    aquifer.run(&["repository", "keys", "retire", &first, "--password-file", &text(&second)])?.ok()?;
    aquifer.run(&["list"])?.refused(6, "denied", &["password"])?;
    aquifer.run(&["list", "--password-file", &text(&second)])?.ok()?;
    Ok(())
}

#[test]
fn two_backups_into_one_repository_at_once_both_work_or_one_says_why_not() -> Outcome {
    let folder = tempdir()?;
    let image = folder.path().join("source.raw");
    sample(&image, 8_000_000)?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let server = Server::nbdkit(folder.path(), &["--readonly", "file", &text(&image)])?;
    let source = format!("disk={}", server.uri(""));
    let slow = aquifer.start(&["backup", "one", "--nbd", &source, "--read-limit", "2MiB"])?;
    let quick = aquifer.run(&["backup", "two", "--nbd", &source])?;
    if quick.code != 0 {
        quick.refused(5, "conflict", &[])?;
    }
    slow.wait()?.ok()?;
    let images = aquifer.restore("latest:one", &["disk"], "one")?;
    ensure_same(&image, &images[0])
}

#[test]
fn a_restore_works_while_a_backup_runs() -> Outcome {
    let folder = tempdir()?;
    let image = folder.path().join("source.raw");
    sample(&image, 8_000_000)?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let server = Server::nbdkit(folder.path(), &["--readonly", "file", &text(&image)])?;
    let source = format!("disk={}", server.uri(""));
    aquifer.backup(&["vm", "--nbd", &source])?;
    let mut slow = aquifer.start(&["backup", "other", "--nbd", &source, "--read-limit", "1MiB"])?;
    process::wait_for("the backup to have begun", 30 * SECOND, || {
        slow.process().ensure_running()?;
        Ok(fs::read_dir(aquifer.repository().join("hb")).is_ok_and(|hb| hb.count() > 0).then_some(()))
    })?;
    let images = aquifer.restore("latest:vm", &["disk"], "meanwhile")?;
    ensure_same(&image, &images[0])?;
    slow.process().ensure_running()?;
    slow.wait()?.ok().map(drop)
}

#[test]
fn a_repository_is_nobody_elses_to_read() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let mode = fs::metadata(aquifer.repository())?.permissions().mode() & 0o007;
    ensure!(mode == 0, "the repository's folder is open to others: {mode:03o}");
    Ok(())
}

#[test]
fn the_description_of_a_backup_is_well_formed_xml() -> Outcome {
    let folder = tempdir()?;
    let image = folder.path().join("source.raw");
    sample(&image, 1_000_000)?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let done =
        aquifer.backup(&["vm", "--image", &format!("a&b={}", text(&image)), "--description", "<1>"])?;
    let uuid = done["uuid"].as_str().unwrap_or_default();
    let xml = aquifer.run(&["dumpxml", uuid])?.ok()?.output.clone();
    ensure!(xml.contains(uuid) && xml.contains("a&amp;b") && xml.contains("&lt;1&gt;"), "{xml}");
    let file = folder.path().join("backup.xml");
    fs::write(&file, xml)?;
    let mut lint = std::process::Command::new(aquifer_testkit::tools::tool("xmllint")?);
    aquifer_testkit::tools::run(lint.arg("--noout").arg(&file)).map(drop)
}
