//! When each pack was last read and found whole, as this host remembers it: what makes a sample roll over all of them.
//!
//! A file of the state folder: eight bytes of magic, then for each pack 36 bytes in the order of names: session, number
//! (u32), and the two times in milliseconds since 1970 UTC (u64; 0 for never), all little-endian.
//!
//! Invariant: it decides only what is read first. Losing it, or a clock that is wrong, costs an order, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_format::{PackName, SessionId};

use super::report::VerifyLevel;
use crate::state_dir::StateDir;
use crate::world::{World, random};

const MAGIC: &[u8; 8] = b"AQFAGES1";
const ENTRY_BYTES: usize = 36;

/// Packs after which the file is written anew, so that a run that is stopped has not been for nothing.
const SAVE_EVERY: u32 = 1000;

/// When a pack was last whole, in milliseconds since 1970 UTC; 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Read {
    bytes_ms: u64,
    chunks_ms: u64,
}

impl Read {
    /// At `level` or deeper.
    fn at(self, level: VerifyLevel) -> u64 {
        if level == VerifyLevel::Chunks { self.chunks_ms } else { self.bytes_ms.max(self.chunks_ms) }
    }

    fn newest(self, other: Self) -> Self {
        Read { bytes_ms: self.bytes_ms.max(other.bytes_ms), chunks_ms: self.chunks_ms.max(other.chunks_ms) }
    }
}

/// What this host remembers.
#[derive(Default)]
pub(super) struct Ages {
    local: Option<StateDir>,
    read: BTreeMap<PackName, Read>,
    unsaved: u32,
}

impl Ages {
    /// Reads the file; without a state folder everything is unknown, and stays so.
    pub(super) fn load(local: Option<&StateDir>) -> Self {
        let read = local.map(entries).unwrap_or_default();
        Ages { local: local.cloned(), read, unsaved: 0 }
    }

    /// Those of `packs`, with their bytes, that shall be read: all, or `percent` of their bytes, least recently read first.
    pub(super) fn choose<P>(
        &self,
        packs: Vec<P>,
        of: impl Fn(&P) -> (PackName, u64),
        level: VerifyLevel,
        percent: u8,
        world: &dyn World,
    ) -> Vec<P> {
        if percent >= 100 {
            return packs;
        }
        let total: u64 = packs.iter().map(|pack| of(pack).1).sum();
        let mut wanted = u128::from(total) * u128::from(percent);
        let mut aged: Vec<_> = packs
            .into_iter()
            .map(|pack| (self.at(&of(&pack).0, level), u64::from_le_bytes(random(world)), pack))
            .collect();
        aged.sort_by_key(|(age, dice, _)| (*age, *dice));
        let fits = |(_, _, pack): &(u64, u64, P)| {
            let more = wanted > 0;
            wanted = wanted.saturating_sub(u128::from(of(pack).1) * 100);
            more
        };
        aged.into_iter().take_while(fits).map(|(_, _, pack)| pack).collect()
    }

    fn at(&self, pack: &PackName, level: VerifyLevel) -> u64 {
        self.read.get(pack).copied().unwrap_or_default().at(level)
    }

    /// A pack was read to `level` and is whole.
    pub(super) fn note(&mut self, pack: PackName, level: VerifyLevel, now_ms: u64) {
        let read = self.read.entry(pack).or_default();
        let now_ms = now_ms.max(1);
        match level {
            VerifyLevel::Structure => {}
            VerifyLevel::Packs => read.bytes_ms = now_ms,
            VerifyLevel::Chunks => read.chunks_ms = now_ms,
        }
        self.unsaved += 1;
        if self.unsaved >= SAVE_EVERY {
            self.save();
        }
    }

    /// How many of `packs` were never read to `level`, and when the least recently read of the others was.
    pub(super) fn oldest(
        &self,
        packs: impl Iterator<Item = PackName>,
        level: VerifyLevel,
    ) -> (u64, Option<u64>) {
        let (mut never, mut oldest) = (0, None);
        for pack in packs {
            match self.at(&pack, level) {
                0 => never += 1,
                at => oldest = Some(oldest.map_or(at, |before: u64| before.min(at))),
            }
        }
        (never, oldest)
    }

    /// Forgets packs that are gone.
    pub(super) fn keep(&mut self, packs: &BTreeSet<PackName>) {
        self.read.retain(|pack, _| packs.contains(pack));
        self.save();
    }

    /// Writes the file, with what another process has noted meanwhile.
    fn save(&mut self) {
        self.unsaved = 0;
        let Some(local) = &self.local else { return };
        for (pack, read) in entries(local) {
            if let Some(known) = self.read.get_mut(&pack) {
                *known = known.newest(read);
            }
        }
        let mut bytes = MAGIC.to_vec();
        for (pack, read) in &self.read {
            bytes.extend_from_slice(&pack.session.0);
            bytes.extend_from_slice(&pack.number.to_le_bytes());
            bytes.extend_from_slice(&read.bytes_ms.to_le_bytes());
            bytes.extend_from_slice(&read.chunks_ms.to_le_bytes());
        }
        if let Err(error) = local.replace(&local.ages(), &bytes) {
            tracing::warn!(%error, "which packs were verified is not remembered; samples will begin anew");
        }
    }
}

fn entries(local: &StateDir) -> BTreeMap<PackName, Read> {
    let path = local.ages();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "which packs were verified cannot be read");
            return BTreeMap::new();
        }
    };
    decode(&bytes).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "which packs were verified cannot be read: the file is damaged");
        BTreeMap::new()
    })
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<PackName, Read>> {
    let entries = bytes.strip_prefix(MAGIC)?.chunks(ENTRY_BYTES);
    entries
        .map(|entry| {
            let (session, rest) = entry.split_first_chunk::<16>()?;
            let (number, rest) = rest.split_first_chunk::<4>()?;
            let (bytes_ms, rest) = rest.split_first_chunk::<8>()?;
            let chunks_ms: [u8; 8] = rest.try_into().ok()?;
            let pack = PackName { session: SessionId(*session), number: u32::from_le_bytes(*number) };
            let (bytes_ms, chunks_ms) = (u64::from_le_bytes(*bytes_ms), u64::from_le_bytes(chunks_ms));
            Some((pack, Read { bytes_ms, chunks_ms }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use aquifer_format::id::RepositoryId;
    use tempfile::tempdir;

    use super::*;
    use crate::rig::TestWorld;

    fn pack(number: u32) -> PackName {
        PackName { session: SessionId([7; 16]), number }
    }

    #[test]
    fn twenty_samples_of_five_percent_read_every_pack_once_and_the_next_begins_with_the_first_again() {
        let folder = tempdir().unwrap();
        let local = StateDir::open(folder.path(), RepositoryId([1; 16])).unwrap();
        let world = TestWorld::default();
        let all: Vec<PackName> = (0..200).map(pack).collect();
        let mut read = Vec::new();
        for run in 1..=21 {
            let mut ages = Ages::load(Some(&local));
            let of = |name: &PackName| (*name, 32 << 20);
            let chosen = ages.choose(all.clone(), of, VerifyLevel::Packs, 5, &world);
            assert_eq!(chosen.len(), 10);
            for name in &chosen {
                ages.note(*name, VerifyLevel::Packs, run);
            }
            ages.keep(&all.iter().copied().collect());
            let (never, oldest) = ages.oldest(all.iter().copied(), VerifyLevel::Packs);
            assert_eq!(never, 200_u64.saturating_sub(10 * run));
            assert_eq!(oldest, Some(if run > 20 { 2 } else { 1 }));
            read.push(chosen);
        }
        let last: BTreeSet<PackName> = read.pop().unwrap().into_iter().collect();
        assert_eq!(last, read[0].iter().copied().collect());
        let every: BTreeSet<PackName> = read.into_iter().flatten().collect();
        assert_eq!(every.len(), 200);
    }

    #[test]
    fn opening_every_chunk_counts_for_the_bytes_too_and_not_the_reverse() {
        let mut ages = Ages::default();
        ages.note(pack(1), VerifyLevel::Packs, 5);
        ages.note(pack(2), VerifyLevel::Chunks, 6);
        let both = || [pack(1), pack(2)].into_iter();
        assert_eq!(ages.oldest(both(), VerifyLevel::Packs), (0, Some(5)));
        assert_eq!(ages.oldest(both(), VerifyLevel::Chunks), (1, Some(6)));
    }

    #[test]
    fn a_damaged_file_begins_anew_and_a_pack_that_is_gone_is_forgotten() {
        let folder = tempdir().unwrap();
        let local = StateDir::open(folder.path(), RepositoryId([1; 16])).unwrap();
        let mut ages = Ages::load(Some(&local));
        ages.note(pack(1), VerifyLevel::Packs, 5);
        ages.note(pack(2), VerifyLevel::Packs, 5);
        ages.keep(&BTreeSet::from([pack(2)]));
        assert_eq!(
            Ages::load(Some(&local)).oldest([pack(1), pack(2)].into_iter(), VerifyLevel::Packs),
            (1, Some(5))
        );
        let mut bytes = std::fs::read(local.ages()).unwrap();
        bytes.pop();
        std::fs::write(local.ages(), bytes).unwrap();
        assert!(Ages::load(Some(&local)).read.is_empty());
    }
}
