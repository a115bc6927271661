//! From damaged objects to the bytes of disks that they take along.
//!
//! A second walk over the trees, made only when something is damaged: it needs no data, and names exact byte
//! ranges per backup and disk, as far as trees can be read.

use std::collections::BTreeSet;

use aquifer_format::{ChunkId, Node};

use super::Disk;
use super::findings::Findings;
use super::report::{RANGES_MAX, Touched};
use super::walk::{Step, Walk};
use crate::Result;
use crate::dedup::IdSet;
use crate::parts::{Parts, is_live};
use crate::repository::blocking;
use crate::trees::{LEAF_CHUNKS, Shape};

/// Ranges of one disk, in ascending order.
#[derive(Default)]
struct Ranges {
    ranges: Vec<(u64, u64)>,
    more: u64,
}

impl Ranges {
    /// Adds `bytes` bytes at `offset`; joins them with a range that ends there.
    fn add(&mut self, offset: u64, bytes: u64) {
        let count = self.ranges.len();
        match self.ranges.last_mut() {
            Some((start, length)) if *start + *length == offset && self.more == 0 => *length += bytes,
            _ if count < RANGES_MAX => self.ranges.push((offset, bytes)),
            _ => self.more += 1,
        }
    }
}

/// What of `disks` cannot be restored.
///
/// # Errors
/// When a store does not answer.
pub(super) async fn touched(parts: &Parts, disks: &[Disk], findings: &Findings) -> Result<Vec<Touched>> {
    let mut all = Vec::new();
    for disk in disks {
        let mut walk = Walk::new(parts, disk.tree, None).await?;
        let mut ranges = Ranges::default();
        // Every node counts here, wherever else it occurs.
        while let Some(step) = walk.next(&mut IdSet::default()).await? {
            match step {
                Step::Node(_) => {}
                Step::Lost { level, number, .. } => {
                    let (offset, bytes) = span(&walk.shape(), level, number);
                    ranges.add(offset, bytes);
                }
                Step::Leaf { number, node, .. } => {
                    for chunk in bad_chunks(parts, &node, findings).await? {
                        let chunk = number * LEAF_CHUNKS + chunk;
                        let shape = walk.shape();
                        ranges.add(chunk * shape.chunk_bytes, shape.chunk_len(chunk));
                    }
                }
            }
        }
        if !ranges.ranges.is_empty() {
            all.push(Touched {
                backup: disk.backup,
                domain: disk.domain.clone(),
                disk: disk.name.clone(),
                ranges: ranges.ranges,
                more_ranges: ranges.more,
            });
        }
    }
    Ok(all)
}

/// The bytes below a node.
fn span(shape: &Shape, level: u8, number: u64) -> (u64, u64) {
    let chunks = LEAF_CHUNKS.saturating_pow(u32::from(level) + 1);
    let offset = number.saturating_mul(chunks).saturating_mul(shape.chunk_bytes).min(shape.size_bytes);
    let end = offset.saturating_add(chunks.saturating_mul(shape.chunk_bytes)).min(shape.size_bytes);
    (offset, end - offset)
}

/// The slots of a leaf whose chunks cannot be restored.
async fn bad_chunks(parts: &Parts, node: &Node, findings: &Findings) -> Result<BTreeSet<u64>> {
    let mut bad: BTreeSet<u64> = BTreeSet::new();
    let (slots, ids): (Vec<u8>, Vec<ChunkId>) = node.iter().unzip();
    if !findings.bad_packs.is_empty() {
        let (parts, ids, packs) = (parts.clone(), ids.clone(), findings.bad_packs.clone());
        let lost = blocking(move || -> Result<Vec<bool>> {
            let state = parts.state.get();
            let copies = parts.index.get_many(&ids)?;
            Ok(copies
                .iter()
                .map(|copies| !copies.iter().any(|copy| is_live(&state, copy) && !packs.contains(&copy.pack)))
                .collect())
        });
        let lost = lost.await?;
        bad.extend(slots.iter().zip(lost).filter(|(_, lost)| *lost).map(|(slot, _)| u64::from(*slot)));
    }
    let known = slots.iter().zip(&ids).filter(|(_, id)| findings.bad_blobs.contains(*id));
    bad.extend(known.map(|(slot, _)| u64::from(*slot)));
    Ok(bad)
}
