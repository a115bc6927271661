//! The objects outside of the packs: `format`, key slots, log, checkpoints, segments; and the listing of packs.
//!
//! Every object is held against its own hash, log and checkpoints are opened, and the log's chain of hashes is
//! followed through every slot that is there. Copies beside the packs are checked like the originals.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_format::log::{PublishedSegment, State};
use aquifer_format::{
    EntryHash, KeyRing, PackName, SessionId, decode_checkpoint, decode_segment, entry_hash, open_entry, scrub,
};
use aquifer_store::{GetRange, Key, ObjectStore};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::findings::Findings;
use super::report::{DamagedObject, FOREIGN_MAX, VerifyLevel};
use super::walk::is_damage;
use crate::parts::Parts;
use crate::{Error, Result, layout};

/// Objects fetched at one time.
const IN_FLIGHT: usize = 16;

/// What a listing showed.
#[derive(Default)]
pub(super) struct Listing {
    /// Sizes of the packs that are there, in bytes.
    pub(super) packs: BTreeMap<PackName, u64>,
    /// Keys of the small objects, in order.
    small: Vec<Key>,
    /// Names that are no keys of a repository; the first of them.
    pub(super) foreign: Vec<String>,
}

/// Lists everything in `store`.
///
/// # Errors
/// Those of the store.
pub(super) async fn list(store: &dyn ObjectStore) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut after = None;
    loop {
        let page = store.list("", after.as_ref()).await?;
        for entry in &page.entries {
            match pack_of(&entry.key) {
                Some(pack) => drop(listing.packs.insert(pack, entry.bytes)),
                None => listing.small.push(entry.key.clone()),
            }
        }
        let room = FOREIGN_MAX.saturating_sub(listing.foreign.len());
        listing.foreign.extend(page.foreign.into_iter().take(room));
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more {
            return Ok(listing);
        }
    }
}

/// The pack that a key names.
fn pack_of(key: &Key) -> Option<PackName> {
    let (session, number) = key.as_str().strip_prefix(layout::PACKS)?.split_once('/')?;
    let session: SessionId = session.parse().ok()?;
    Some(PackName { session, number: u32::from_str_radix(number, 16).ok()? })
}

/// What an object is, by its key.
enum Small {
    Log(u64),
    Checkpoint(u64),
    /// Only its own hash can be checked here.
    Other,
    /// Changes under us, or proves nothing.
    Skip,
}

impl Small {
    fn of(key: &Key) -> Self {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        match key.as_str().split_once('/') {
            Some(("log", seq)) => number(seq).map_or(Small::Other, Small::Log),
            Some(("ckpt", seq)) => number(seq).map_or(Small::Other, Small::Checkpoint),
            Some(("keys", _)) | None => Small::Other,
            Some(_) => Small::Skip,
        }
    }
}

/// What the log is held against, and what opens it.
pub(super) struct Known<'a> {
    pub(super) ring: &'a KeyRing,
    pub(super) state: &'a State,
}

/// Checks the small objects of one store, and returns how many. Without keys their own hashes are all there is, and a gap
/// in the log.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn check(
    known: Option<&Known<'_>>,
    store: &Arc<dyn ObjectStore>,
    listing: &Listing,
    findings: &mut Findings,
) -> Result<u64> {
    let mut entries: BTreeMap<u64, Option<(EntryHash, EntryHash)>> = BTreeMap::new();
    let (mut keys, mut running, mut checked) = (listing.small.iter(), JoinSet::new(), 0);
    loop {
        while running.len() < IN_FLIGHT
            && let Some(key) = keys.next()
        {
            if !matches!(Small::of(key), Small::Skip) {
                running.spawn(get(Arc::clone(store), key.clone()));
            }
        }
        let Some(done) = running.join_next().await else { break };
        let (key, body) = done.map_err(|_| Error::Closed)?;
        checked += 1;
        let outcome = body.and_then(|body| open(known.map(|known| known.ring), &key, &body));
        if let Small::Log(seq) = Small::of(&key) {
            entries.insert(seq, outcome.as_ref().ok().copied().flatten());
        }
        match outcome {
            Ok(_) => {}
            Err(error) if is_damage(&error) => note(findings, &**store, key.as_str(), error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let format = layout::format();
    if listing.small.binary_search(&format).is_err() {
        note(
            findings,
            &**store,
            format.as_str(),
            "it is missing: without it nobody can open the repository".to_owned(),
        );
    }
    if let (Some(first), Some(last)) = (entries.keys().next(), entries.keys().next_back()) {
        let (floor, last, tip) = match known {
            Some(Known { state, .. }) => (state.floor(), state.seq(), Some(state.tip())),
            None => (*first, *last, None),
        };
        for (seq, broken) in chain(&entries, floor, last, tip) {
            let key = layout::log(seq);
            // A copy beside the packs follows its original by a moment.
            if broken == Broken::Missing && store.head(&key).await.is_ok() {
                continue;
            }
            note(findings, &**store, key.as_str(), broken.to_string());
        }
    }
    Ok(checked)
}

fn note(findings: &mut Findings, store: &dyn ObjectStore, key: &str, what: String) {
    findings.note(DamagedObject::Object(key.to_owned()), format!("in {}: {what}", store.describe()));
}

async fn get(store: Arc<dyn ObjectStore>, key: Key) -> (Key, Result<Bytes>) {
    let body = store.get(&key, GetRange::Whole).await.map_err(Error::from);
    (key, body)
}

/// Opens one object; for a log entry gives the hash of the entry before it, and its own.
fn open(ring: Option<&KeyRing>, key: &Key, body: &Bytes) -> Result<Option<(EntryHash, EntryHash)>> {
    let named = |source| Error::Object { key: key.to_string(), source };
    scrub(body).map_err(named)?;
    let Some(ring) = ring else { return Ok(None) };
    match Small::of(key) {
        Small::Log(seq) => {
            let entry = open_entry(ring, seq, body).map_err(named)?;
            Ok(Some((entry.prev, entry_hash(body))))
        }
        Small::Checkpoint(seq) => decode_checkpoint(ring, seq, body).map_err(named).map(|_| None),
        Small::Other | Small::Skip => Ok(None),
    }
}

/// How a slot breaks the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Missing,
    Order,
    Tip,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Broken::Missing => "it is missing",
            Broken::Order => "it does not follow the entry before it; one of the two was replaced",
            Broken::Tip => "it is another entry than the one that this host saw there",
        })
    }
}

/// Slots in which the chain is broken: missing ones, and ones that do not follow the one before.
fn chain(
    entries: &BTreeMap<u64, Option<(EntryHash, EntryHash)>>,
    floor: u64,
    last: u64,
    tip: Option<EntryHash>,
) -> Vec<(u64, Broken)> {
    let mut broken = Vec::new();
    let mut before: Option<EntryHash> = None;
    // Below the floor, slots may be missing from the oldest on: truncation removes them in that order.
    let first = entries.keys().next().copied().unwrap_or(floor).min(floor);
    for seq in first..=last {
        let here = entries.get(&seq).copied();
        match here {
            None => broken.push((seq, Broken::Missing)),
            Some(Some((prev, _))) if before.is_some_and(|before| before != prev) => {
                broken.push((seq, Broken::Order));
            }
            Some(_) => {}
        }
        before = here.flatten().map(|(_, own)| own);
    }
    if before.zip(tip).is_some_and(|(own, tip)| own != tip) {
        broken.push((last, Broken::Tip));
    }
    broken
}

/// Checks that every published segment is there, and above [`VerifyLevel::Structure`] that it opens.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn check_segments(
    parts: &Parts,
    listing: &Listing,
    level: VerifyLevel,
    findings: &mut Findings,
) -> Result<u64> {
    let state = parts.state.get();
    for segment in state.segments() {
        let key = layout::segment(&segment.name);
        let outcome = if listing.small.binary_search(&key).is_err() {
            Some(
                "it is missing: without it the index can only be rebuilt from the packs themselves"
                    .to_owned(),
            )
        } else if level > VerifyLevel::Structure {
            open_segment(parts, segment).await?
        } else {
            None
        };
        if let Some(what) = outcome {
            note(findings, &*parts.packs, key.as_str(), what);
        }
    }
    Ok(state.segments().len() as u64)
}

/// Checks the segments that are listed against their own hashes.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn scrub_segments(
    store: &Arc<dyn ObjectStore>,
    listing: &Listing,
    findings: &mut Findings,
) -> Result<u64> {
    let mut checked = 0;
    for key in listing.small.iter().filter(|key| key.as_str().starts_with(layout::SEGMENTS)) {
        let (key, body) = get(Arc::clone(store), key.clone()).await;
        checked += 1;
        match body.and_then(|body| open(None, &key, &body)) {
            Ok(_) => {}
            Err(error) if is_damage(&error) => note(findings, &**store, key.as_str(), error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(checked)
}

async fn open_segment(parts: &Parts, segment: &PublishedSegment) -> Result<Option<String>> {
    let key = layout::segment(&segment.name);
    match get(Arc::clone(&parts.packs), key).await {
        (_, Ok(body)) => {
            Ok(decode_segment(&parts.ring, segment.name, &body).err().map(|error| error.to_string()))
        }
        (_, Err(error)) if is_damage(&error) => Ok(Some(error.to_string())),
        (_, Err(error)) => Err(error),
    }
}
