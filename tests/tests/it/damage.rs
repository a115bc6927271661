//! Damage: a flipped byte in any object, or a missing object, never becomes wrong bytes on a volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Aquifer, Ended, TempDir, tempdir};

use crate::Outcome;
use crate::bad_input::replace;
use crate::rig::{sample, text};

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Flipped,
    Missing,
}

/// The exit codes of a restore after damage to an object in this folder: 0 where another object says the same or where
/// the restore does not need it, 8 (corrupt) for what only this object held.
fn codes(folder: &str, damage: Damage) -> &'static [i32] {
    match (folder, damage) {
        // Without it there is no repository.
        ("format", Damage::Missing) => &[4],
        ("format" | "keys" | "log", _) => &[8],
        // The packs' own tables say the same; the mark only tells which store this is.
        ("index" | "probe", _) => &[0],
        // The restore reads parts of them.
        ("packs", _) => &[0, 8],
        (other, _) => panic!("an object of a new kind: {other}"),
    }
}

/// The disk as it was at its first backup.
const FIRST: &str = "first.raw";

struct Damaged {
    folder: TempDir,
    aquifer: Aquifer,
    source: PathBuf,
}

impl Damaged {
    /// A repository of two backups of the same disk, changed in between.
    fn new() -> Result<Damaged> {
        let folder = tempdir()?;
        let source = folder.path().join("source.raw");
        sample(&source, 3_000_000)?;
        let aquifer = Aquifer::with_repository(folder.path())?;
        let image = format!("disk={}", text(&source));
        aquifer.backup(&["vm", "--image", &image])?;
        fs::copy(&source, folder.path().join(FIRST))?;
        let mut content = fs::read(&source)?;
        content[2_000_000..2_300_000].fill(0x5a);
        fs::write(&source, &content)?;
        aquifer.backup(&["vm", "--image", &image])?;
        Ok(Damaged { folder, aquifer, source })
    }

    /// Every object of the repository but the heartbeats, which only advise.
    fn objects(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        collect(&self.aquifer.repository(), &mut found)?;
        found.retain(|path| !path.starts_with(self.aquifer.repository().join("hb")));
        ensure!(found.len() > 8, "hardly any objects: {found:?}");
        Ok(found)
    }

    /// The first part of the object's key.
    fn folder_of(&self, object: &Path) -> Result<String> {
        let key = object.strip_prefix(self.aquifer.repository())?;
        Ok(key.iter().next().context("an object has a key")?.to_string_lossy().into_owned())
    }

    /// Restores the newest backup on a host that knows nothing yet: without a cache to hide the damage.
    fn restore(&self, target: &Path) -> Result<Ended> {
        fs::remove_dir_all(self.aquifer.state_dir())?;
        fs::create_dir(self.aquifer.state_dir())?;
        if target.exists() {
            fs::remove_file(target)?;
        }
        self.aquifer.run(&["restore", "latest:vm", "--disk", &format!("disk=raw:{}", text(target))])
    }

    /// Either the restore is right to the byte, or it says that it is not, and ends with one of `codes`.
    fn ensure_honest(&self, codes: &[i32]) -> Outcome {
        let target = self.folder.path().join("target.raw");
        let ended = self.restore(&target)?;
        ensure!(codes.contains(&ended.code), "exit code {}, not {codes:?}: {}", ended.code, ended.messages);
        if ended.code == 0 {
            let (restored, source) = (fs::read(&target)?, fs::read(&self.source)?);
            ensure!(
                restored.get(..source.len()) == Some(&source[..]),
                "wrong bytes were restored without a word"
            );
        } else {
            ended.event("error")?;
        }
        Ok(())
    }
}

#[test]
#[ignore = "slow group damage"]
fn a_flipped_byte_in_any_object_is_found_or_harmless() -> Outcome {
    let damaged = Damaged::new()?;
    for object in damaged.objects()? {
        let bytes = fs::read(&object)?;
        let last = bytes.len() - 1;
        for at in [0, last / 3, last / 2, last] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            replace(&object, &flipped)?;
            let codes = codes(&damaged.folder_of(&object)?, Damage::Flipped);
            damaged
                .ensure_honest(codes)
                .with_context(|| format!("byte {at} of {} flipped", object.display()))?;
        }
        let verify = {
            let mut flipped = bytes.clone();
            flipped[last / 2] ^= 0x10;
            replace(&object, &flipped)?;
            damaged.aquifer.run(&["verify", "--level", "restore"])?
        };
        let is_pack = object.starts_with(damaged.aquifer.repository().join("packs"));
        ensure!(!is_pack || verify.code == 8, "verify overlooks {}: {}", object.display(), verify.output);
        replace(&object, &bytes)?;
    }
    damaged.ensure_honest(&[0])
}

#[test]
#[ignore = "slow group damage"]
fn a_missing_object_is_found_or_harmless() -> Outcome {
    let damaged = Damaged::new()?;
    for object in damaged.objects()? {
        let bytes = fs::read(&object)?;
        fs::remove_file(&object)?;
        let codes = codes(&damaged.folder_of(&object)?, Damage::Missing);
        damaged.ensure_honest(codes).with_context(|| format!("{} missing", object.display()))?;
        let is_pack = object.starts_with(damaged.aquifer.repository().join("packs"));
        if is_pack {
            let verify = damaged.aquifer.run(&["verify", "--level", "packs"])?;
            verify.with_code(8).with_context(|| format!("{} missing", object.display()))?;
        }
        fs::write(&object, &bytes)?;
    }
    damaged.ensure_honest(&[0])
}

#[test]
#[ignore = "slow group damage"]
fn a_lost_index_of_this_host_and_lost_segments_are_rebuilt() -> Outcome {
    let damaged = Damaged::new()?;
    fs::remove_dir_all(damaged.aquifer.repository().join("index"))?;
    fs::remove_dir_all(damaged.aquifer.state_dir())?;
    fs::create_dir(damaged.aquifer.state_dir())?;
    damaged.aquifer.run(&["repository", "rebuild-index", "--from-packs"])?.ok()?;
    let images = damaged.aquifer.restore("latest:vm", &["disk"], "rebuilt")?;
    ensure!(fs::read(&images[0])?.starts_with(&fs::read(&damaged.source)?), "wrong bytes after a rebuild");
    Ok(())
}

/// The flipped byte lies in data, in a leaf of the tree, in its root, or in a record: whatever is restored is right, and
/// what is not is told to the byte.
#[test]
#[ignore = "slow group damage"]
fn what_is_left_of_a_damaged_backup_is_salvaged_and_the_rest_is_named() -> Outcome {
    let folder = tempdir()?;
    let source = folder.path().join("source.raw");
    sample(&source, 1_000_000)?;
    let some = fs::read(&source)?;
    let mut content = vec![0; 100 << 20];
    for at in [0, 40 << 20, 70 << 20] {
        content[at..at + some.len()].copy_from_slice(&some);
        content[at + 17] ^= u8::try_from(at >> 20)?;
    }
    fs::write(&source, &content)?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    aquifer.backup(&["vm", "--image", &format!("disk={}", text(&source))])?;
    let damaged = Damaged { folder, aquifer, source };
    let (mut leaves, mut chunks, mut whole) = (0, 0, 0);
    for object in damaged.objects()? {
        if damaged.folder_of(&object)? != "packs" {
            continue;
        }
        let bytes = fs::read(&object)?;
        // A small pack has records and nodes.
        let step = if bytes.len() < 10_000 { 40 } else { bytes.len() / 7 };
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            replace(&object, &flipped)?;
            match damaged.salvage(&content).with_context(|| format!("byte {at} of {}", object.display()))? {
                Some(0) => {}
                Some(lost) if lost >= 100 << 20 => whole += 1,
                Some(lost) if lost >= 30 << 20 => leaves += 1,
                Some(_) => chunks += 1,
                None => {}
            }
        }
        replace(&object, &bytes)?;
    }
    ensure!(leaves > 0 && chunks > 0 && whole > 0, "{leaves} leaves, {chunks} chunks, {whole} roots");
    Ok(())
}

#[test]
#[ignore = "slow group damage"]
fn a_damaged_pack_is_marked_and_the_next_backup_stores_anew_what_nobody_else_has() -> Outcome {
    let damaged = Damaged::new()?;
    let pack = damaged.largest_pack()?;
    let mut bytes = fs::read(&pack)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(&pack, &bytes)?;
    let rehearsed = damaged.aquifer.run(&["repair", "--dry-run"])?.with_code(8)?.document()?;
    ensure!(rehearsed["quarantined_packs"] == 1 && rehearsed["healed"]["objects"] == 0, "{rehearsed}");
    let repaired = damaged.aquifer.run(&["repair"])?.with_code(8)?.document()?;
    ensure!(repaired["quarantined_packs"] == 1, "{repaired}");
    let whole = repaired["healed"]["objects"].as_u64().context("no count")?;
    ensure!(whole > 5, "the other chunks of the pack are stored anew: {repaired}");
    let touched = repaired["left"]["touched"].as_array().context("no list")?;
    ensure!(!touched.is_empty(), "{repaired}");
    let again = damaged.aquifer.run(&["repair"])?.with_code(8)?.document()?;
    ensure!(again["quarantined_packs"] == 0 && again["healed"]["objects"] == 0, "{again}");
    // A disk still has the chunk, and nothing counts on the copy that is damaged. Which chunk it is depends on the order in
    // which processor threads filled the pack, so both states of the disk are backed up.
    for image in [&damaged.folder.path().join(FIRST), &damaged.source] {
        damaged.aquifer.backup(&["vm", "--image", &format!("disk={}", text(image))])?;
    }
    damaged.aquifer.run(&["verify", "--level", "restore"])?.ok()?;
    damaged.aquifer.run(&["collect", "--grace", "0s"])?.ok()?;
    damaged.aquifer.run(&["collect", "--grace", "0s"])?.ok()?;
    ensure!(!pack.exists(), "the damaged pack stays although nobody needs it");
    damaged.aquifer.run(&["verify", "--level", "restore"])?.ok()?;
    damaged.ensure_honest(&[0])
}

#[test]
#[ignore = "slow group damage"]
fn what_a_copy_of_the_repository_still_has_is_fetched_from_it() -> Outcome {
    let damaged = Damaged::new()?;
    let copy = damaged.folder.path().join("copy");
    let copied = Command::new("cp").arg("-r").arg(damaged.aquifer.repository()).arg(&copy).status()?;
    ensure!(copied.success(), "cp failed");
    // All data and all trees.
    for object in damaged.objects()? {
        if damaged.folder_of(&object)? == "packs" {
            fs::remove_file(object)?;
        }
    }
    damaged.aquifer.run(&["repair"])?.with_code(8)?;
    let repaired = damaged.aquifer.run(&["repair", "--from", &text(&copy)])?.ok()?.document()?;
    ensure!(repaired["fetched"]["objects"].as_u64() > Some(20), "{repaired}");
    fs::remove_dir_all(&copy)?;
    damaged.aquifer.run(&["verify", "--level", "restore"])?.ok()?;
    damaged.ensure_honest(&[0])
}

#[test]
#[ignore = "slow group damage"]
fn a_host_without_the_password_finds_a_flipped_byte_in_every_kind_of_object() -> Outcome {
    let damaged = Damaged::new()?;
    let verify = |more: &[&str]| -> Result<Ended> {
        let arguments = [&["verify", "--keyless", "--level", "packs"], more].concat();
        let mut command = damaged.aquifer.command(&arguments);
        command.env_remove("AQUIFER_PASSWORD_FILE");
        damaged.aquifer.start_command(&command)?.wait()
    };
    let first = verify(&["--sample", "30%"])?.ok()?.document()?;
    let (packs, read) = (&first["report"]["packs"], &first["report"]["packs_read"]);
    ensure!(read.as_u64() > Some(0) && read.as_u64() < packs.as_u64(), "{first}");
    let rest = verify(&["--sample", "99%"])?.ok()?.document()?;
    ensure!(rest["report"]["never_read"] == 0, "{rest}");
    for object in damaged.objects()? {
        if damaged.folder_of(&object)? == "probe" {
            continue;
        }
        let bytes = fs::read(&object)?;
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 0x10;
        replace(&object, &flipped)?;
        let found = verify(&[])?;
        ensure!(found.code == 8, "{} is overlooked: {}", object.display(), found.output);
        replace(&object, &bytes)?;
    }
    verify(&[])?.ok()?;
    let deeper = damaged.aquifer.run(&["verify", "--keyless", "--level", "chunks"])?;
    deeper.refused(3, "invalid", &["--level packs"])?;
    Ok(())
}

impl Damaged {
    fn largest_pack(&self) -> Result<PathBuf> {
        let mut packs = Vec::new();
        collect(&self.aquifer.repository().join("packs"), &mut packs)?;
        packs.sort_by_key(|pack| fs::metadata(pack).map_or(0, |about| about.len()));
        packs.pop().context("no packs")
    }

    /// Salvages the backup, proves what was restored, and returns how many bytes were missing; `None` if the backup
    /// itself is not readable.
    fn salvage(&self, content: &[u8]) -> Result<Option<u64>> {
        let target = self.folder.path().join("salvaged.raw");
        if target.exists() {
            fs::remove_file(&target)?;
        }
        fs::remove_dir_all(self.aquifer.state_dir())?;
        fs::create_dir(self.aquifer.state_dir())?;
        let volume = format!("disk=raw:{}", text(&target));
        let ended = self.aquifer.run(&["restore", "latest:vm", "--disk", &volume, "--salvage"])?;
        let Ok(done) = ended.event("done") else {
            ensure!(ended.code == 8, "exit code {}: {}", ended.code, ended.messages);
            return Ok(None);
        };
        let disk = &done["disks"][0];
        let missing = disk["missing_bytes"].as_u64().context("no missing_bytes")?;
        ensure!(ended.code == if missing == 0 { 0 } else { 8 }, "exit code {} with {done}", ended.code);
        let mut expected = content.to_vec();
        for range in disk["missing"].as_array().context("no ranges")? {
            let (offset, length) = (range["offset"].as_u64(), range["length"].as_u64());
            let start = usize::try_from(offset.context("no offset")?)?;
            expected[start..start + usize::try_from(length.context("no length")?)?].fill(0);
        }
        ensure!(fs::read(&target)? == expected, "wrong bytes: {done}");
        Ok(Some(missing))
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, found)? } else { found.push(path) }
    }
    found.sort();
    Ok(())
}
