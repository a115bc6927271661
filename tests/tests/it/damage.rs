//! Damage: a flipped byte in any object, or a missing object, never becomes wrong bytes on a volume.

use std::fs;
use std::path::{Path, PathBuf};

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

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, found)? } else { found.push(path) }
    }
    found.sort();
    Ok(())
}
