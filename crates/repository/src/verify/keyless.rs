//! Verification without any key: every object of the stores against its own BLAKE3.
//!
//! For a host that watches over a bucket and must not be able to read it. It finds what rots, tears or is swapped; it
//! cannot tell which packs are in use, nor that one of them is missing: only the log knows, and it is sealed.
//!
//! Invariant: nothing is opened; memory is bounded by the listing and one pack a task.

use std::path::Path;
use std::sync::Arc;

use aquifer_format::config::RepositoryConfig;
use aquifer_format::{PackHeader, PackName, check_hash};
use aquifer_store::{GetRange, ObjectStore};
use tokio::task::JoinSet;

use super::ages::Ages;
use super::findings::Findings;
use super::objects;
use super::report::{FOREIGN_MAX, VerifyLevel, VerifyProgress, VerifyReport};
use super::walk::is_damage;
use crate::repository::blocking;
use crate::state_dir::StateDir;
use crate::{Error, Result, Stores, World, layout, open};

/// Verifies what can be verified without a key: at [`VerifyLevel::Structure`] what lies outside of the packs, deeper the
/// packs, or `sample_percent` of their bytes, least recently read first. In the report `packs` are those that are stored,
/// whoever needs them.
///
/// # Errors
/// [`Error::NotARepository`], [`Error::StoresDiffer`], and when a store does not answer.
pub async fn verify_keyless(
    stores: &Stores,
    world: &Arc<dyn World>,
    state_dir: Option<&Path>,
    level: VerifyLevel,
    sample_percent: u8,
    progress: impl Fn(VerifyProgress) + Send + Sync,
) -> Result<VerifyReport> {
    let config = open::read_format(stores).await?;
    let local = state_dir.map(|base| StateDir::open(base, config.repository)).transpose()?;
    let level = level.min(VerifyLevel::Packs);
    let mut findings = Findings::default();
    let (mut small, mut foreign, mut packs) = (0, Vec::new(), None);
    for store in std::iter::once(&stores.packs).chain(&stores.log) {
        let listing = objects::list(&**store).await?;
        small += objects::check(None, store, &listing, &mut findings).await?;
        foreign.extend(listing.foreign.iter().take(FOREIGN_MAX - foreign.len().min(FOREIGN_MAX)).cloned());
        if packs.is_none() {
            if level > VerifyLevel::Structure {
                small += objects::scrub_segments(store, &listing, &mut findings).await?;
            }
            packs = Some(listing.packs);
        }
    }
    let mut packs = packs.unwrap_or_default();
    let mut ages = Ages::load(local.as_ref());
    let (mut packs_read, mut bytes_read) = (0, 0);
    if level > VerifyLevel::Structure {
        let all: Vec<(PackName, u64)> = packs.iter().map(|(pack, bytes)| (*pack, *bytes)).collect();
        let chosen = ages.choose(all, |pack| *pack, level, sample_percent, &**world);
        let bytes_total = chosen.iter().map(|(_, bytes)| bytes).sum();
        let mut read = Reading {
            store: Arc::clone(&stores.packs),
            config: config.clone(),
            chosen,
            running: JoinSet::new(),
        };
        while let Some((pack, bytes, found)) = read.next().await? {
            match found {
                Found::Whole => ages.note(pack, level, world.wall_ms()),
                Found::Damaged(what) => findings.pack(pack, format!("pack {pack}: {what}")),
                Found::Gone => {
                    packs.remove(&pack);
                    continue;
                }
            }
            (packs_read, bytes_read) = (packs_read + 1, bytes_read + bytes);
            let told = VerifyProgress { bytes_done: bytes_read, bytes_total, ..VerifyProgress::default() };
            progress(told);
        }
        ages.keep(&packs.keys().copied().collect());
    }
    let (never_read, oldest_read_ms) = match level {
        VerifyLevel::Structure => (0, None),
        level => ages.oldest(packs.keys().copied(), level),
    };
    Ok(VerifyReport {
        level,
        backups: Vec::new(),
        objects: small,
        nodes: 0,
        chunks: 0,
        packs: packs.len() as u64,
        packs_read,
        bytes_read,
        never_read,
        oldest_read_ms,
        blobs_opened: 0,
        damage: findings.damage,
        more_damage: findings.more_damage,
        foreign,
        touched: Vec::new(),
    })
}

/// A pack, the bytes it was listed with, and what was found.
type Checked = (PackName, u64, Found);

/// What became of reading a pack.
enum Found {
    Whole,
    Damaged(String),
    /// Deleted since it was listed, by a collection: without the log nobody can say more.
    Gone,
}

/// Packs that are read, a few at a time.
struct Reading {
    store: Arc<dyn ObjectStore>,
    config: RepositoryConfig,
    chosen: Vec<(PackName, u64)>,
    running: JoinSet<Result<Checked>>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Checked>> {
        let tasks = std::thread::available_parallelism().map_or(2, usize::from) + 1;
        while self.running.len() < tasks
            && let Some((pack, bytes)) = self.chosen.pop()
        {
            self.running.spawn(check(Arc::clone(&self.store), self.config.clone(), pack, bytes));
        }
        match self.running.join_next().await {
            Some(done) => done.map_err(|_| Error::Closed)?.map(Some),
            None => Ok(None),
        }
    }
}

async fn check(
    store: Arc<dyn ObjectStore>,
    config: RepositoryConfig,
    pack: PackName,
    bytes: u64,
) -> Result<Checked> {
    let body = match store.get(&layout::pack(&pack), GetRange::Whole).await.map_err(Error::from) {
        Ok(body) => body,
        Err(Error::Store(error)) if error.is_not_found() => return Ok((pack, bytes, Found::Gone)),
        Err(error) if is_damage(&error) => return Ok((pack, bytes, Found::Damaged(error.to_string()))),
        Err(error) => return Err(error),
    };
    let found = blocking(move || {
        if let Err(error) = check_hash(&body) {
            return Ok(Found::Damaged(error.to_string()));
        }
        Ok(match PackHeader::decode(&body) {
            Err(error) => Found::Damaged(error.to_string()),
            // A replica keeps the bytes of another repository, under names of its own.
            Ok(header) if header.repository == config.repository && header.name != pack => {
                Found::Damaged(format!("it is pack {}", header.name))
            }
            Ok(_) => Found::Whole,
        })
    });
    Ok((pack, bytes, found.await?))
}
