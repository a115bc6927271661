//! Reading packs whole: their own hash (V1), and every blob down to its id (V2), on all cores.
//!
//! Each task fetches one pack and checks it on a thread for blocking work, so memory is bounded by one pack a
//! task. Which packs, and what their damage means for disks, is decided elsewhere.

use aquifer_format::log::BlobPlace;
use aquifer_format::{ChunkId, Decompressor, check_hash};
use aquifer_index::PackSummary;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::findings::Findings;
use super::report::{DamagedObject, VerifyLevel};
use super::walk::is_damage;
use crate::parts::Parts;
use crate::repository::blocking;
use crate::whole::WholePack;
use crate::{Error, Result};

/// What reading one pack showed.
#[derive(Default)]
struct PackCheck {
    bytes: u64,
    blobs: u64,
    /// Nothing of the pack can be counted on, and why.
    lost: Option<String>,
    /// The object is not what was written, but its blobs were told apart one by one.
    scarred: Option<String>,
    bad: Vec<(ChunkId, String)>,
    /// Those of them that do not open.
    sick: Vec<ChunkId>,
}

/// What was read in all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PacksRead {
    pub(super) packs: u64,
    pub(super) bytes: u64,
    pub(super) blobs: u64,
}

/// Checks `packs` to `level`; `tell` gets each when it is done, and whether it is whole.
///
/// # Errors
/// When a store does not answer; a missing pack is a finding.
pub(super) async fn check(
    parts: &Parts,
    packs: Vec<PackSummary>,
    level: VerifyLevel,
    findings: &mut Findings,
    mut tell: impl FnMut(&PackSummary, bool),
) -> Result<PacksRead> {
    // One more than there are cores, so that the next pack is fetched while all of them work.
    let tasks = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    let (mut packs, mut running, mut read) = (packs.into_iter(), JoinSet::new(), PacksRead::default());
    loop {
        while running.len() < tasks
            && let Some(pack) = packs.next()
        {
            running.spawn(check_one(parts.clone(), pack, level));
        }
        let Some(done) = running.join_next().await else { return Ok(read) };
        let (pack, check) = done.map_err(|_| Error::Closed)??;
        read.packs += 1;
        read.bytes += check.bytes;
        read.blobs += check.blobs;
        tell(&pack, check.is_whole());
        check.into_findings(&pack, findings);
    }
}

impl PackCheck {
    fn is_whole(&self) -> bool {
        self.lost.is_none() && self.scarred.is_none() && self.bad.is_empty()
    }

    fn into_findings(self, pack: &PackSummary, findings: &mut Findings) {
        if let Some(what) = self.lost {
            findings.pack(pack.pack, what);
        }
        if let Some(what) = self.scarred {
            findings.scarred_packs.insert(pack.pack);
            findings.note(DamagedObject::Pack(pack.pack), what);
        }
        findings.sick_blobs.extend(self.sick.into_iter().map(|id| BlobPlace { pack: pack.pack, id }));
        for (id, what) in self.bad {
            findings.chunk(id, what);
        }
    }
}

async fn check_one(parts: Parts, pack: PackSummary, level: VerifyLevel) -> Result<(PackSummary, PackCheck)> {
    let body = match parts.fetch_whole(&pack.pack).await {
        Ok(body) => body,
        Err(error) if is_damage(&error) => {
            return Ok((pack, PackCheck { lost: Some(error.to_string()), ..PackCheck::default() }));
        }
        Err(error) => return Err(error),
    };
    let check = blocking(move || check_bytes(&parts, &pack, &body, level)).await?;
    Ok((pack, check))
}

fn check_bytes(parts: &Parts, pack: &PackSummary, body: &Bytes, level: VerifyLevel) -> Result<PackCheck> {
    let mut check = PackCheck { bytes: body.len() as u64, ..PackCheck::default() };
    if level < VerifyLevel::Chunks {
        check.lost = not_as_published(pack, body);
        return Ok(check);
    }
    match WholePack::open(&parts.ring, &pack.pack, body) {
        Ok(whole) => {
            let header = whole.header().encode();
            let opened = open_all(parts, pack, whole, &mut check)?;
            // Blobs lie back to back from the header to the table: where all their tags held, theirs and the table's have
            // covered every byte between the header and the footer, and hashing them once more would find nothing.
            let covered = opened
                && body.starts_with(&header)
                && body.len() as u64 == pack.bytes
                && body.ends_with(&pack.hash);
            if !covered {
                check.scarred = not_as_published(pack, body);
            }
        }
        Err(error) => check.lost = Some(error.to_string()),
    }
    Ok(check)
}

/// What is wrong with the bytes of a pack by their own hash and the published one.
fn not_as_published(pack: &PackSummary, body: &Bytes) -> Option<String> {
    match check_hash(body) {
        Ok(hash) if hash == pack.hash && body.len() as u64 == pack.bytes => None,
        Ok(_) => {
            Some(format!("pack {}: another pack than the one that was published under this name", pack.pack))
        }
        Err(source) => Some(format!("pack {}: {source}", pack.pack)),
    }
}

/// Opens every blob, and holds the index's rows against the pack's own: a restore reads by the index. True if all of them
/// opened.
fn open_all(
    parts: &Parts,
    pack: &PackSummary,
    mut whole: WholePack<'_>,
    check: &mut PackCheck,
) -> Result<bool> {
    let rows = whole.rows().to_vec();
    let ids: Vec<ChunkId> = rows.iter().map(|row| row.id).collect();
    let header = *whole.header();
    let mut decompressor = Decompressor::new()?;
    let state = parts.state.get();
    let mut all = true;
    for (row, copies) in rows.iter().zip(parts.index.get_many(&ids)?) {
        check.blobs += 1;
        if state.is_quarantined(&pack.pack, &row.id) {
            // Known, and nothing counts on it.
            all = false;
            continue;
        }
        if let Err(source) = whole.blob(&mut decompressor, row) {
            check.bad.push((row.id, format!("pack {}: {source}", pack.pack)));
            check.sick.push(row.id);
            all = false;
            continue;
        }
        let indexed = copies.iter().find(|copy| copy.pack == pack.pack);
        if indexed.is_none_or(|copy| copy.row != *row || copy.header != header) {
            check.bad.push((
                row.id,
                format!("pack {}: the index does not say where it lies; rebuild the index", pack.pack),
            ));
        }
    }
    Ok(all)
}
