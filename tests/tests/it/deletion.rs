//! Deleting backups: none of the others depends on it, nobody who reads one loses it, and it can be undone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Aquifer, Running, Server, TempDir, process, tempdir};

use crate::Outcome;
use crate::rig::{SECOND, ensure_same, sample, text};

/// Bytes of the disk. Its first quarter never changes, the others are other bytes in every backup.
const BYTES: usize = 8 << 20;

/// A domain `files` with backups of a disk that changed in between, and what the disk was each time.
struct Chain {
    folder: TempDir,
    aquifer: Aquifer,
    backups: Vec<(String, PathBuf)>,
}

impl Chain {
    fn new(length: usize) -> Result<Chain> {
        let folder = tempdir()?;
        let aquifer = Aquifer::with_repository(folder.path())?;
        let mut chain = Chain { folder, aquifer, backups: Vec::new() };
        (0..length).try_for_each(|_| chain.extend())?;
        Ok(chain)
    }

    /// One backup more.
    fn extend(&mut self) -> Outcome {
        let number = self.backups.len();
        let image = self.folder.path().join(format!("{number}.raw"));
        sample(&image, BYTES)?;
        let mut disk = fs::read(&image)?;
        let mask = u8::try_from(number + 1)?;
        disk[BYTES / 4..].iter_mut().for_each(|byte| *byte ^= mask);
        fs::write(&image, disk)?;
        let server = Server::nbdkit(self.folder.path(), &["--readonly", "file", &text(&image)])?;
        let done = self.aquifer.backup(&["files", "--nbd", &format!("disk={}", server.uri(""))])?;
        let uuid = done["uuid"].as_str().context("no uuid")?.to_owned();
        self.backups.push((uuid, image));
        Ok(())
    }

    /// Starts a restore of the first backup into a volume of which every write waits, so that it is still running when
    /// something else comes. It is open in the log on return; the volume's server ends with its value.
    fn restore_slowly(&self) -> Result<(Running, PathBuf, Server)> {
        let target = self.folder.path().join("slow.raw");
        fs::File::create(&target)?.set_len(BYTES as u64)?;
        let waiting = ["--filter=delay", "file", &text(&target), "delay-write=3", "delay-zero=3"];
        let server = Server::nbdkit(self.folder.path(), &waiting)?;
        let volume = format!("disk={}", server.uri(""));
        let arguments = ["restore", self.uuid(0), "--disk", &volume, "--rewrite-existing"];
        let restoring = self.aquifer.start(&arguments)?;
        self.wait_session()?;
        Ok((restoring, target, server))
    }

    /// Waits until a session is open.
    fn wait_session(&self) -> Outcome {
        process::wait_for("a session", 60 * SECOND, || {
            let info = self.aquifer.run(&["repository", "info"])?.ok()?.document()?;
            Ok((info["open_sessions"] == 1).then_some(()))
        })
    }

    fn uuid(&self, number: usize) -> &str {
        &self.backups[number].0
    }

    /// Restores a backup and compares it with what the disk was.
    fn prove(&self, number: usize, name: &str) -> Outcome {
        let (uuid, image) = &self.backups[number];
        let restored = self.aquifer.restore(uuid, &["disk"], &format!("{number}-{name}"))?;
        ensure_same(image, &restored[0])
    }

    /// The listed backups, newest first, each with its parent.
    fn listed(&self) -> Result<Vec<(String, Option<String>)>> {
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let listed = self.aquifer.list()?.into_iter();
        Ok(listed
            .map(|backup| (text(&backup["uuid"]).unwrap_or_default(), text(&backup["parent"])))
            .collect())
    }
}

fn size_of(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { size_of(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

#[test]
#[ignore = "slow group deletion"]
fn whichever_backup_of_a_chain_is_deleted_all_others_restore_byte_for_byte() -> Outcome {
    for victim in 0..3 {
        let chain = Chain::new(3)?;
        let before = chain.listed()?;
        chain.aquifer.run(&["delete", chain.uuid(victim)])?.ok()?;
        let listed = chain.listed()?;
        ensure!(listed.len() == 2 && listed.iter().all(|(uuid, _)| uuid != chain.uuid(victim)), "{listed:?}");
        let deleted = chain.aquifer.run(&["list", "--deleted"])?.ok()?.document()?;
        ensure!(deleted[0]["uuid"] == chain.uuid(victim) && deleted[0]["state"] == "deleted", "{deleted}");
        for kept in (0..3).filter(|kept| *kept != victim) {
            chain.prove(kept, &format!("without-{victim}"))?;
        }
        chain.aquifer.run(&["undelete", chain.uuid(victim)])?.ok()?;
        ensure!(chain.listed()? == before, "undeleting does not bring back {before:?}");
        chain.prove(victim, "undeleted")?;
    }
    Ok(())
}

#[test]
#[ignore = "slow group deletion"]
fn the_child_of_a_deleted_backup_becomes_its_parents_and_the_next_backup_goes_on() -> Outcome {
    let mut chain = Chain::new(3)?;
    chain.aquifer.run(&["delete", chain.uuid(1)])?.ok()?;
    let listed = chain.listed()?;
    ensure!(listed[0] == (chain.uuid(2).to_owned(), Some(chain.uuid(0).to_owned())), "{listed:?}");
    let xml = chain.aquifer.run(&["dumpxml", chain.uuid(2)])?.ok()?.output.clone();
    ensure!(xml.contains(chain.uuid(0)) && !xml.contains(chain.uuid(1)), "{xml}");
    // The newest goes too: the next backup compares with the oldest.
    chain.aquifer.run(&["delete", chain.uuid(2)])?.ok()?;
    chain.extend()?;
    let listed = chain.listed()?;
    ensure!(listed[0].1.as_deref() == Some(chain.uuid(0)), "{listed:?}");
    chain.prove(3, "next")
}

#[test]
#[ignore = "slow group deletion"]
fn all_or_nothing_is_deleted_and_the_exit_codes_say_why() -> Outcome {
    let chain = Chain::new(3)?;
    let unknown = "00000000-0000-7000-8000-000000000000";
    chain.aquifer.run(&["delete", chain.uuid(0), unknown])?.refused(4, "not_found", &[unknown])?;
    chain.aquifer.run(&["delete"])?.with_code(2)?;
    chain.aquifer.run(&["delete", chain.uuid(0), "--forget-delay", "soon"])?.with_code(2)?;
    ensure!(chain.listed()?.len() == 3, "a refused deletion deleted something");
    let done = chain.aquifer.run(&["delete", chain.uuid(1), "--all-children"])?.ok()?.document()?;
    ensure!(done["deleted"] == serde_json::json!([chain.uuid(1), chain.uuid(2)]), "{done}");
    let done = chain.aquifer.run(&["delete", chain.uuid(0), "--all"])?.ok()?.document()?;
    ensure!(done["deleted"] == serde_json::json!([chain.uuid(0)]), "{done}");
    ensure!(chain.listed()?.is_empty());
    chain.aquifer.run(&["undelete", unknown])?.refused(4, "not_found", &[unknown])?;
    let done =
        chain.aquifer.run(&["undelete", chain.uuid(0), chain.uuid(1), chain.uuid(2)])?.ok()?.document()?;
    ensure!(done["restored"].as_array().map(Vec::len) == Some(3), "{done}");
    (0..3).try_for_each(|number| chain.prove(number, "back"))
}

#[test]
#[ignore = "slow group deletion"]
fn a_backup_is_not_deleted_under_a_restore() -> Outcome {
    let chain = Chain::new(1)?;
    let (restoring, target, _server) = chain.restore_slowly()?;
    let other = chain.uuid(0);
    chain.aquifer.run(&["delete", other])?.refused(5, "conflict", &[other, "restore"])?;
    restoring.wait()?.ok()?;
    ensure_same(&chain.backups[0].1, &target)?;
    chain.aquifer.run(&["delete", other])?.ok()?;
    Ok(())
}

#[test]
#[ignore = "slow group deletion"]
fn the_space_of_deleted_backups_comes_back_and_the_rest_restores_anywhere() -> Outcome {
    for victim in 0..3 {
        let chain = Chain::new(3)?;
        let packs = chain.aquifer.repository().join("packs");
        let (full, deleted) = (size_of(&packs)?, chain.uuid(victim));
        // Not yet: it can still be brought back.
        chain.aquifer.run(&["delete", deleted])?.ok()?;
        chain.aquifer.run(&["collect", "--grace", "0s", "--max-repack", "0"])?.ok()?;
        chain.aquifer.run(&["undelete", deleted])?.ok()?;
        chain.prove(victim, "undeleted")?;
        chain.aquifer.run(&["delete", deleted, "--forget-delay", "0s"])?.ok()?;
        let plan = chain.aquifer.run(&["collect", "--dry-run", "--grace", "0s"])?.ok()?.document()?;
        ensure!(plan["dropped"] == serde_json::json!([deleted]), "{plan}");
        ensure!(size_of(&packs)? == full, "an explanation deleted something");
        let done = chain.aquifer.run(&["collect", "--grace", "0s"])?.ok()?.document()?;
        ensure!(
            done["dropped"] == plan["dropped"] && done["condemned"] == plan["condemned"],
            "{plan}\n{done}"
        );
        let left = size_of(&packs)?;
        ensure!(left + BYTES as u64 / 4 <= full, "{full} bytes became {left}: {done}");
        chain.aquifer.run(&["undelete", deleted])?.refused(4, "not_found", &[deleted])?;
        // Another machine, with the repository and the password alone.
        fs::rename(chain.aquifer.state_dir(), chain.folder.path().join("lost"))?;
        fs::create_dir(chain.aquifer.state_dir())?;
        for kept in (0..3).filter(|kept| *kept != victim) {
            chain.prove(kept, &format!("collected-{victim}"))?;
        }
        let verified = chain.aquifer.run(&["verify", "--level", "chunks"])?.ok()?.document()?;
        ensure!(verified["clean"] == true, "{verified}");
    }
    Ok(())
}

#[test]
#[ignore = "slow group deletion"]
fn a_repository_without_backups_has_no_packs_left() -> Outcome {
    let chain = Chain::new(2)?;
    chain.aquifer.run(&["delete", chain.uuid(0), "--all", "--forget-delay", "0s"])?.ok()?;
    let done = chain.aquifer.run(&["collect", "--grace", "0s"])?.ok()?.document()?;
    ensure!(done["waiting"]["objects"] == 0 && done["kept"]["objects"] == 0, "{done}");
    for folder in ["packs", "hb"] {
        let left = size_of(&chain.aquifer.repository().join(folder))?;
        ensure!(left == 0, "{left} bytes are left in {folder}");
    }
    Ok(())
}

#[test]
#[ignore = "slow group deletion"]
fn a_collection_and_its_victims_restore_do_not_disturb_each_other() -> Outcome {
    let chain = Chain::new(2)?;
    chain.aquifer.run(&["delete", chain.uuid(0), "--forget-delay", "0s"])?.ok()?;
    let (restoring, target, _server) = chain.restore_slowly()?;
    let done = chain.aquifer.run(&["collect", "--grace", "0s"])?.ok()?.document()?;
    ensure!(done["dropped"] == serde_json::json!([]), "dropped under a restore: {done}");
    restoring.wait()?.ok()?;
    ensure_same(&chain.backups[0].1, &target)?;
    let done = chain.aquifer.run(&["collect", "--grace", "0s"])?.ok()?.document()?;
    ensure!(done["dropped"] == serde_json::json!([chain.uuid(0)]), "{done}");
    chain.prove(1, "after")
}

#[test]
#[ignore = "slow group deletion"]
fn a_collection_that_is_killed_anywhere_costs_nothing_but_another_one() -> Outcome {
    let mut chain = Chain::new(4)?;
    chain.aquifer.run(&["delete", chain.uuid(1), chain.uuid(2), "--forget-delay", "0s"])?.ok()?;
    // Killed after each of its decisions, as far as it gets.
    for decisions in 1..=6 {
        let log = chain.aquifer.repository().join("log");
        let before = fs::read_dir(&log)?.count();
        let mut collecting = chain.aquifer.start(&["collect", "--grace", "0s"])?;
        process::wait_for("a decision of the collection", 60 * SECOND, || {
            let reached = fs::read_dir(&log)?.count() >= before + decisions;
            Ok((reached || !collecting.process().is_running()).then_some(()))
        })?;
        // It may have ended by itself: then there was nothing to kill.
        let _ = collecting.process().kill();
        drop(collecting);
        chain.prove(0, &format!("killed-{decisions}"))?;
        chain.prove(3, &format!("killed-{decisions}"))?;
    }
    chain.extend()?;
    chain.aquifer.run(&["collect", "--grace", "0s"])?.ok()?;
    let again = chain.aquifer.run(&["collect", "--grace", "0s"])?.ok()?.document()?;
    let condemned = &again["condemned"]["objects"];
    ensure!(*condemned == 0 && again["waiting"]["objects"] == 0, "something was left: {again}");
    [0, 3, 4].into_iter().try_for_each(|number| chain.prove(number, "last"))
}

#[test]
#[ignore = "slow group deletion"]
fn a_policy_keeps_what_it_says_and_tells_why() -> Outcome {
    let chain = Chain::new(4)?;
    chain.aquifer.run(&["protect", chain.uuid(0)])?.ok()?;
    let listed = chain.aquifer.list()?;
    ensure!(listed[3]["protected"] == true && listed[2]["protected"] == false, "{listed:?}");
    chain.aquifer.run(&["delete", chain.uuid(0)])?.refused(5, "conflict", &[chain.uuid(0), "protected"])?;
    chain.aquifer.run(&["prune", "files"])?.refused(3, "invalid", &["--keep-daily"])?;
    chain.aquifer.run(&["prune", "nobody", "--keep-last", "1"])?.refused(4, "not_found", &["nobody"])?;
    let keep = ["prune", "--keep-last", "1", "--keep-daily", "3"];
    let dry = chain.aquifer.run(&[&keep[..], &["--dry-run"]].concat())?.ok()?.document()?;
    ensure!(chain.listed()?.len() == 4, "a dry run deleted something");
    let done = chain.aquifer.run(&keep)?.ok()?.document()?;
    ensure!(done["domains"] == dry["domains"], "{dry}\n{done}");
    let (kept, dropped) = (&done["domains"][0]["kept"], &done["domains"][0]["dropped"]);
    ensure!(kept[0]["uuid"] == chain.uuid(3) && kept[0]["reasons"][0] == "last 1 of 1", "{kept}");
    ensure!(kept[1]["reasons"] == serde_json::json!(["protected"]), "{kept}");
    ensure!(dropped[0]["uuid"] == chain.uuid(2) && dropped[1]["uuid"] == chain.uuid(1), "{dropped}");
    chain.aquifer.run(&["undelete", chain.uuid(2), chain.uuid(1)])?.ok()?;
    chain.aquifer.run(&["protect", "--off", chain.uuid(0)])?.ok()?;
    chain.aquifer.run(&["prune", "--keep-last", "1"])?.refused(5, "conflict", &["3", "--force"])?;
    chain.aquifer.run(&["prune", "--keep-last", "1", "--force"])?.ok()?;
    ensure!(chain.listed()?.len() == 1);
    chain.prove(3, "kept")
}
