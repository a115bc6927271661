//! What is to become of each listed pack: kept, a candidate for condemnation, or rewritten first (docs/FORMAT.md, G3).
//!
//! A pure function of the listing, the state, the index's summaries and the marks.
//!
//! Invariant: a pack is touched only if its session has ended in the state, which was read after the listing.

use std::collections::{BTreeMap, HashMap};

use aquifer_format::pack::{BLOB_TAG_BYTES, FOOTER_BYTES, PACK_HEADER_BYTES, ROW_BYTES};
use aquifer_format::{PackKind, PackName, State};
use aquifer_index::PackSummary;

use super::condemn::Candidate;
use super::marks::Marks;
use super::report::{CollectReport, PackFate};
use crate::Settings;
use crate::settings::Weakness;

/// A pack to be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sparse {
    pub(super) pack: PackName,
    pub(super) bytes: u64,
    /// Bytes of the blobs that are needed.
    pub(super) needed_bytes: u64,
    /// Bytes of all its blobs: what is left without header, table and footer.
    blob_bytes: u64,
    kind: PackKind,
}

/// What a pack of `rows` blobs takes beside them.
fn overhead_bytes(rows: u32) -> u64 {
    let fixed = PACK_HEADER_BYTES + BLOB_TAG_BYTES + FOOTER_BYTES;
    fixed as u64 + u64::from(rows) * ROW_BYTES as u64
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Packs that nobody needs.
    pub(super) candidates: BTreeMap<PackName, Candidate>,
    /// Packs to rewrite, the most gain for the least work first.
    pub(super) rewrite: Vec<Sparse>,
    /// Packs that the log knows to be gone and that are there again, or still.
    pub(super) again: Vec<PackName>,
}

impl Plan {
    /// Decides about every pack in `listed`.
    pub(super) fn of(
        listed: &BTreeMap<PackName, u64>,
        state: &State,
        summaries: &HashMap<PackName, PackSummary>,
        marks: &Marks,
        settings: &Settings,
        report: &mut CollectReport,
    ) -> Plan {
        let mut plan = Plan::default();
        for (&pack, &bytes) in listed {
            report.packs.add(bytes);
            if state.reaped().contains(&pack) {
                plan.again.push(pack);
            } else if state.condemned().contains_key(&pack) {
                // Its turn comes later.
            } else if state.has_ended(&pack.session) || settings.lacks(Weakness::OwnersIgnored) {
                plan.decide(pack, bytes, state, summaries.get(&pack), marks, report);
            } else if state.sessions().contains_key(&pack.session) {
                report.in_progress.add(bytes);
            } else {
                let why = "its session is not in the log yet".to_owned();
                report.decide(pack, bytes, PackFate::Kept, why);
            }
        }
        plan.choose_rewrites(settings);
        plan
    }

    fn decide(
        &mut self,
        pack: PackName,
        bytes: u64,
        state: &State,
        summary: Option<&PackSummary>,
        marks: &Marks,
        report: &mut CollectReport,
    ) {
        let Some(found) = marks.of(&pack) else {
            let (fate, why) = match summary {
                Some(_) => (PackFate::Unused, "no backup needs anything in it"),
                None => (PackFate::Orphan, "a session that died stored it and never published it"),
            };
            report.decide(pack, bytes, fate, why.to_owned());
            self.candidates.insert(pack, Candidate::new(bytes));
            return;
        };
        report.needed.objects += found.blobs;
        report.needed.bytes += found.bytes;
        // Damage is for repair, which never deletes.
        let damaged = state.quarantined_packs().contains(&pack)
            || state.quarantined_blobs().iter().any(|place| place.pack == pack);
        if let Some(summary) = summary.filter(|_| !damaged) {
            let blob_bytes = bytes.saturating_sub(overhead_bytes(summary.rows));
            let (needed_bytes, kind) = (found.bytes, summary.kind);
            self.rewrite.push(Sparse { pack, bytes, needed_bytes, blob_bytes, kind });
        }
    }

    /// Of all packs with something needed in them keeps those that are worth rewriting: more than half garbage, or so
    /// small that together they make a pack of decent size.
    fn choose_rewrites(&mut self, settings: &Settings) {
        let all = std::mem::take(&mut self.rewrite);
        let (mut chosen, dense): (Vec<Sparse>, Vec<Sparse>) =
            all.into_iter().partition(|pack| pack.needed_bytes.saturating_mul(2) < pack.blob_bytes);
        for (kind, target) in
            [(PackKind::Data, settings.pack_bytes), (PackKind::Meta, settings.meta_pack_bytes)]
        {
            let small_bytes = target as u64 / 4;
            let small = dense.iter().filter(|pack| pack.kind == kind && pack.bytes < small_bytes);
            let small: Vec<Sparse> = small.copied().collect();
            let sparse_bytes: u64 =
                chosen.iter().filter(|pack| pack.kind == kind).map(|pack| pack.needed_bytes).sum();
            let together = small.iter().map(|pack| pack.needed_bytes).sum::<u64>() + sparse_bytes;
            // Else they would be as small again, and be rewritten by every run.
            if together >= small_bytes {
                chosen.extend(small);
            }
        }
        // The share that is needed is the cost of each byte freed; in thousandths it is exact enough.
        chosen.sort_by_key(|pack| (pack.needed_bytes.saturating_mul(1000) / pack.bytes.max(1), pack.pack));
        self.rewrite = chosen;
    }

    /// Cuts the rewriting down to `max_bytes` of needed blobs.
    pub(super) fn limit(&mut self, max_bytes: Option<u64>) {
        let Some(max_bytes) = max_bytes else { return };
        let mut sum = 0_u64;
        self.rewrite.retain(|pack| {
            let fits = sum.saturating_add(pack.needed_bytes) <= max_bytes;
            sum += if fits { pack.needed_bytes } else { 0 };
            fits
        });
    }
}
