//! Many hosts and one bucket: writers, collectors, a pruner and a restorer at once, each a process of its own with a state
//! folder of its own, and nothing in common but the bucket and the password.
//!
//! What each backup must hold is known from what its writer backed up, never from the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{AccessKey, Aquifer, S3Server, TempDir, tempdir};

use crate::Outcome;
use crate::rig::{ensure_same, sample, text};

const WRITERS: u64 = 4;
const COLLECTORS: u64 = 2;
/// Backups of each writer.
const ROUNDS: u64 = 6;
const IMAGE_BYTES: usize = 6 << 20;
const BLOCK: usize = 64 << 10;
/// From which all changes of all images follow.
const SEED: u64 = 0x5eed_0000_0001;

/// The bucket, and what every committed backup must hold.
struct Fleet {
    folder: TempDir,
    url: String,
    _server: S3Server,
    /// A copy of the image as it was backed up, by the backup's uuid.
    expected: Mutex<BTreeMap<String, PathBuf>>,
    /// True once the writers are done, or anybody has failed.
    over: AtomicBool,
    restored: AtomicU64,
    collected: AtomicU64,
    pruned: AtomicU64,
}

impl Fleet {
    fn new() -> Result<Fleet> {
        let folder = tempdir()?;
        let server = S3Server::start(folder.path())?;
        server.make_bucket("fleet")?;
        let credentials = AccessKey::any().file_in(folder.path())?;
        let url = format!(
            "s3://fleet/main?endpoint=http://{}&credentials-file={}",
            server.address(),
            text(&credentials)
        );
        sample(&folder.path().join("common.raw"), IMAGE_BYTES)?;
        Ok(Fleet {
            folder,
            url,
            _server: server,
            expected: Mutex::default(),
            over: AtomicBool::new(false),
            restored: AtomicU64::new(0),
            collected: AtomicU64::new(0),
            pruned: AtomicU64::new(0),
        })
    }

    /// A host of its own.
    fn host(&self, name: &str) -> Result<Aquifer> {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder)?;
        Ok(Aquifer::new(&folder)?.at(&self.url))
    }

    fn expect(&self, uuid: &str) -> Option<PathBuf> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).get(uuid).cloned()
    }

    /// Runs one part; a failure ends the others, too.
    fn part(&self, part: impl FnOnce() -> Outcome) -> Outcome {
        let outcome = part();
        if outcome.is_err() {
            self.over.store(true, Ordering::SeqCst);
        }
        outcome
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Changes its image a little, backs it up, and remembers what it was.
    fn write(&self, number: u64) -> Outcome {
        let name = format!("writer{number}");
        let host = self.host(&name)?;
        let image = self.folder.path().join(&name).join("disk.raw");
        let mut content = fs::read(self.folder.path().join("common.raw"))?;
        for round in 0..ROUNDS {
            if self.is_over() {
                return Ok(());
            }
            let mut state = SEED ^ number << 32 ^ round;
            for _ in 0..8 {
                let block = usize::try_from(next(&mut state))? % (IMAGE_BYTES / BLOCK);
                content[block * BLOCK..(block + 1) * BLOCK].fill_with(|| next(&mut state).to_be_bytes()[0]);
            }
            fs::write(&image, &content)?;
            let kept = self.folder.path().join(&name).join(format!("{round}.kept"));
            fs::copy(&image, &kept)?;
            let done = host.backup(&[&name, "--image", &format!("root={}", text(&image))])?;
            let uuid = done["uuid"].as_str().context("no uuid")?.to_owned();
            self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(uuid, kept);
        }
        Ok(())
    }

    fn collect(&self, number: u64) -> Outcome {
        let host = self.host(&format!("collector{number}"))?;
        while !self.is_over() {
            let collected = host.run(&["collect", "--grace", "0s"])?.ok()?.document()?;
            ensure!(collected["missing"] == 0, "{collected}");
            self.collected.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn prune(&self) -> Outcome {
        let host = self.host("pruner")?;
        while !self.is_over() {
            let pruned = host.run(&["prune", "--keep-last", "2", "--forget-delay", "0s", "--force"])?;
            if pruned.code == 4 {
                // Nothing is backed up yet.
                continue;
            }
            let domains = pruned.ok()?.document()?["domains"].clone();
            let dropped = domains.as_array().into_iter().flatten();
            let dropped: usize = dropped.map(|one| one["dropped"].as_array().map_or(0, Vec::len)).sum();
            self.pruned.fetch_add(u64::try_from(dropped)?, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Restores one backup after the other; one that is pruned meanwhile is not found, and nothing else is an excuse.
    fn restore(&self) -> Outcome {
        let host = self.host("restorer")?;
        let mut state = SEED;
        while !self.is_over() {
            let listed = host.list()?;
            if listed.is_empty() {
                continue;
            }
            let chosen = usize::try_from(next(&mut state))? % listed.len();
            let uuid = listed[chosen]["uuid"].as_str().context("no uuid")?;
            // Listed before its writer was told.
            let Some(kept) = self.expect(uuid) else { continue };
            let target = self.folder.path().join("restorer").join("restored.raw");
            let volume = format!("root=raw:{}", text(&target));
            let ended = host.run(&["restore", uuid, "--disk", &volume, "--rewrite-existing"])?;
            if ended.code != 4 {
                ended.ok()?;
                ensure_same(&kept, &target).with_context(|| format!("backup {uuid}"))?;
                self.restored.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// What must hold when all is quiet: every writer's newest backups are there, everything that is listed restores, and a
    /// host that has nothing but bucket and password finds no damage.
    fn settle(&self) -> Outcome {
        let host = self.host("stranger")?;
        for _ in 0..2 {
            host.run(&["collect", "--grace", "0s"])?.ok()?;
        }
        let verified = host.run(&["verify", "--level", "restore"])?.ok()?.document()?;
        ensure!(verified["clean"] == true, "{verified}");
        let listed = host.list()?;
        for number in 0..WRITERS {
            let name = format!("writer{number}");
            let own = listed.iter().filter(|backup| backup["domain"] == name.as_str()).count();
            ensure!(own >= 2, "{name} has {own} backups left");
        }
        for backup in &listed {
            let uuid = backup["uuid"].as_str().context("no uuid")?;
            let kept = self.expect(uuid).with_context(|| format!("nobody made {uuid}"))?;
            let images = host.restore(uuid, &["root"], &format!("last-{uuid}"))?;
            ensure_same(&kept, &images[0]).with_context(|| format!("backup {uuid}"))?;
        }
        let info = host.run(&["repository", "info"])?.ok()?.document()?;
        ensure!(info["open_sessions"] == 0, "{info}");
        Ok(())
    }
}

/// The next number of a sequence that looks random (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn joined(thread: thread::ScopedJoinHandle<'_, Outcome>) -> Outcome {
    thread.join().map_err(|_| anyhow::anyhow!("a part panicked"))?
}

#[test]
#[ignore = "slow group multi_host"]
fn many_hosts_write_collect_prune_and_restore_at_once_and_nothing_is_lost() -> Outcome {
    let fleet = Fleet::new()?;
    fleet.host("first")?.run(&["repository", "init"])?.ok()?;
    thread::scope(|scope| -> Outcome {
        let fleet = &fleet;
        let mut others = vec![
            scope.spawn(move || fleet.part(|| fleet.prune())),
            scope.spawn(move || fleet.part(|| fleet.restore())),
        ];
        others
            .extend((0..COLLECTORS).map(|number| scope.spawn(move || fleet.part(|| fleet.collect(number)))));
        let writers: Vec<_> =
            (0..WRITERS).map(|number| scope.spawn(move || fleet.part(|| fleet.write(number)))).collect();
        let written: Result<Vec<()>> = writers.into_iter().map(joined).collect();
        fleet.over.store(true, Ordering::SeqCst);
        let rest: Result<Vec<()>> = others.into_iter().map(joined).collect();
        written.and(rest).map(drop)
    })?;
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let (restored, collected, pruned) =
        (count(&fleet.restored), count(&fleet.collected), count(&fleet.pruned));
    println!(
        "seed {SEED:#x}: {restored} restores, {collected} collections, {pruned} backups pruned meanwhile"
    );
    ensure!(restored > 0 && collected > 1 && pruned > 0, "nothing happened at once");
    fleet.settle()
}
