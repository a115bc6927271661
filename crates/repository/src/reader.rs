//! Chunks out: where each one lies, which ranges to fetch, and how a fetched blob becomes plain bytes.
//!
//! Three steps that a restore pipelines: [`Repository::locate`] asks the index in batches, [`plan_fetches`]
//! turns locations into few large ranges of few packs, [`ChunkOpener::open`] decrypts, decompresses and
//! re-hashes on a CPU thread. Nothing here knows disks or volumes.
//!
//! Invariant (P3): bytes are returned only if their keyed hash is the id that was asked for, wherever they
//! were read from; so a wrong index, a swapped object or a flipped bit is an error that names the pack.

use std::collections::VecDeque;

use aquifer_format::{BlobKind, ChunkId, Decompressor, KeyRing, PackName, PackReader};
use aquifer_index::Location;
use aquifer_store::GetRange;
use bytes::{Bytes, BytesMut};

use crate::parts::Parts;
use crate::repository::Repository;
use crate::{Error, Result, layout};

/// Packs whose derived keys a [`ChunkOpener`] keeps.
const READERS_KEPT: usize = 8;

/// Bytes that the blob of `location` takes in its pack: frame, ciphertext and tag.
pub fn blob_bytes(location: &Location) -> u32 {
    // A row that exceeds the limits of a pack comes from a damaged index, and its fetch will fail.
    u32::try_from(location.row.blob_bytes()).unwrap_or(u32::MAX)
}

/// The blob of `location` in its whole pack.
pub(crate) fn blob_of<'a>(pack: &'a [u8], location: &Location) -> Result<&'a [u8]> {
    let (start, length) = (location.row.offset as usize, blob_bytes(location) as usize);
    start.checked_add(length).and_then(|end| pack.get(start..end)).ok_or(Error::PackShort {
        pack: location.pack,
        offset: u64::from(location.row.offset),
        wanted: location.row.blob_bytes(),
        got: pack.len() as u64,
    })
}

impl Repository {
    /// Where each of `ids` lies, in order: a live copy where there is one, else a copy in a condemned or
    /// quarantined pack, which may still open; `None` where no copy is known. Asks the index once; blocks on it.
    ///
    /// # Errors
    /// Those of the chunk index.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        self.parts().locate(ids)
    }

    /// Reads one data chunk from whichever copy still opens, one after the other: slower than locating and fetching many
    /// at once, for those where that has failed.
    ///
    /// # Errors
    /// [`Error::Missing`] when no copy is known; otherwise the error of the last copy tried.
    pub async fn read_chunk(&self, id: &ChunkId) -> Result<Vec<u8>> {
        self.parts().read_blob(BlobKind::Data, id).await
    }

    /// Reads `bytes` bytes at `offset` of a pack.
    ///
    /// # Errors
    /// [`Error::PackLost`] when the object is missing or shorter than that, and for every failure of the store.
    pub async fn fetch(&self, pack: &PackName, offset: u64, bytes: u64) -> Result<BytesMut> {
        self.parts().fetch(pack, offset, bytes).await
    }

    /// The most bytes that one [`Repository::fetch`] of many neighbours should ask for.
    pub fn range_bytes(&self) -> u32 {
        self.parts().packs.range_bytes()
    }

    /// An opener for one CPU thread.
    ///
    /// # Errors
    /// When zstd has no memory for a context.
    pub fn chunk_opener(&self) -> Result<ChunkOpener> {
        ChunkOpener::new(&self.parts().ring)
    }
}

impl Parts {
    /// See [`Repository::fetch`].
    pub(crate) async fn fetch(&self, pack: &PackName, offset: u64, bytes: u64) -> Result<BytesMut> {
        let key = layout::pack(pack);
        let body = self
            .packs
            .get(&key, GetRange::From { offset, bytes })
            .await
            .map_err(|source| Error::PackLost { pack: *pack, source: Box::new(source) })?;
        if body.len() as u64 != bytes {
            return Err(Error::PackShort { pack: *pack, offset, wanted: bytes, got: body.len() as u64 });
        }
        Ok(into_mut(body))
    }

    /// Reads a whole pack, of whatever length it is.
    pub(crate) async fn fetch_whole(&self, pack: &PackName) -> Result<Bytes> {
        self.packs
            .get(&layout::pack(pack), GetRange::Whole)
            .await
            .map_err(|source| Error::PackLost { pack: *pack, source: Box::new(source) })
    }
}

/// The bytes for writing in place; a copy only when someone else holds them too.
pub(crate) fn into_mut(body: Bytes) -> BytesMut {
    body.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
}

/// One range of one pack to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The pack.
    pub pack: PackName,
    /// Where the range starts in it, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub bytes: u32,
    /// What lies in it, in order of offset. Two items may share a blob.
    pub items: Vec<FetchItem>,
}

/// One wanted blob inside a [`Fetch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchItem {
    /// Which of the wanted locations this is.
    pub wanted: usize,
    /// Where its blob starts inside the fetched range, in bytes; [`blob_bytes`] long.
    pub at: u32,
}

/// Joins the blobs at `wanted` into ranges: a gap of at most `max_gap` unwanted bytes is fetched along, and a
/// range grows to at most `max_bytes` (a single larger blob gets a range of its own). Ranges come in the order
/// of their earliest wanted blob, so that a restore advances through the disk.
pub fn plan_fetches(wanted: &[Location], max_gap: u32, max_bytes: u32) -> Vec<Fetch> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_unstable_by_key(|&at| (wanted[at].pack, wanted[at].row.offset, at));
    let mut fetches: Vec<Fetch> = Vec::new();
    for at in order {
        let (pack, offset) = (wanted[at].pack, wanted[at].row.offset);
        let end = offset.saturating_add(blob_bytes(&wanted[at]));
        if let Some(last) = fetches.last_mut()
            && last.pack == pack
            && offset <= (last.offset + last.bytes).saturating_add(max_gap)
            && (end <= last.offset + last.bytes || end - last.offset <= max_bytes)
        {
            last.bytes = last.bytes.max(end - last.offset);
            last.items.push(FetchItem { wanted: at, at: offset - last.offset });
        } else {
            let items = vec![FetchItem { wanted: at, at: 0 }];
            fetches.push(Fetch { pack, offset, bytes: end - offset, items });
        }
    }
    fetches.sort_by_key(|fetch| fetch.items.iter().map(|item| item.wanted).min());
    fetches
}

/// Opens sealed blobs for one CPU thread; keeps its zstd context and the keys of recent packs.
pub struct ChunkOpener {
    ring: KeyRing,
    decompressor: Decompressor,
    readers: VecDeque<(PackName, PackReader)>,
}

impl ChunkOpener {
    /// An opener with the keys of `ring`.
    pub(crate) fn new(ring: &KeyRing) -> Result<Self> {
        Ok(ChunkOpener { ring: ring.clone(), decompressor: Decompressor::new()?, readers: VecDeque::new() })
    }

    /// Opens the blob at `location`: `blob` holds its frame, ciphertext and tag as fetched and is decrypted in
    /// place; `out` gets the plain bytes and must have exactly their length.
    ///
    /// # Errors
    /// [`Error::Damaged`] names pack and chunk when frame, tag, length or keyed id is not what it must be;
    /// `out` then holds nothing to be used.
    pub fn open(&mut self, location: &Location, blob: &mut [u8], out: &mut [u8]) -> Result<()> {
        let damaged = |source| {
            let (pack, chunk, source) = (location.pack, location.row.id, Box::new(source));
            Error::Damaged { pack, chunk, source }
        };
        let at = match self.readers.iter().position(|(pack, _)| *pack == location.pack) {
            Some(at) => at,
            None => {
                let reader = PackReader::new(&self.ring, &location.header).map_err(damaged)?;
                self.readers.truncate(READERS_KEPT - 1);
                self.readers.push_front((location.pack, reader));
                0
            }
        };
        let (_, reader) = &self.readers[at];
        reader.open(&mut self.decompressor, &location.row, blob, out).map_err(damaged)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aquifer_format::{BlobKind, Codec, EpochId, PackHeader, PackKind, RepositoryId, SessionId, TableRow};
    use proptest::prelude::*;

    use super::*;

    fn location(pack: u32, offset: u32, stored_bytes: u32) -> Location {
        let name = PackName { session: SessionId([1; 16]), number: pack };
        let header = PackHeader {
            kind: PackKind::Data,
            sealed: true,
            generation: 1,
            epoch: EpochId([2; 8]),
            repository: RepositoryId([3; 16]),
            name,
            salt: [4; 32],
        };
        let id = ChunkId([offset.to_le_bytes()[0]; 32]);
        let row = TableRow {
            id,
            offset,
            stored_bytes,
            plain_bytes: stored_bytes,
            codec: Codec::Zstd,
            kind: BlobKind::Data,
            ordinal: 0,
        };
        Location { row, pack: name, header }
    }

    /// Blobs back to back in a few packs, and any choice of them, in any order, some twice.
    fn wanted() -> impl Strategy<Value = Vec<Location>> {
        let pack = prop::collection::vec(1_u32..5_000, 1..40);
        let packs = prop::collection::vec(pack, 1..4).prop_map(|packs| {
            let mut all = Vec::new();
            for (number, sizes) in (0_u32..).zip(&packs) {
                let mut offset = 112;
                for size in sizes {
                    let place = location(number, offset, *size);
                    offset += blob_bytes(&place);
                    all.push(place);
                }
            }
            all
        });
        packs.prop_flat_map(|all| prop::collection::vec(prop::sample::select(all), 0..80))
    }

    proptest! {
        #[test]
        fn every_wanted_blob_lies_in_exactly_one_fetch(
            wanted in wanted(), max_gap in 0_u32..3_000, max_bytes in 1_u32..20_000,
        ) {
            let fetches = plan_fetches(&wanted, max_gap, max_bytes);
            let mut seen = BTreeSet::new();
            for fetch in &fetches {
                for item in &fetch.items {
                    let place = &wanted[item.wanted];
                    prop_assert_eq!(place.pack, fetch.pack);
                    prop_assert_eq!(fetch.offset + item.at, place.row.offset);
                    prop_assert!(item.at + blob_bytes(place) <= fetch.bytes);
                    prop_assert!(seen.insert(item.wanted));
                }
            }
            prop_assert_eq!(seen.len(), wanted.len());
        }

        #[test]
        fn a_fetch_is_bounded_and_wastes_no_more_than_the_gaps(
            wanted in wanted(), max_gap in 0_u32..3_000, max_bytes in 1_u32..20_000,
        ) {
            for fetch in plan_fetches(&wanted, max_gap, max_bytes) {
                let one = fetch.items.iter().all(|item| item.at == 0);
                prop_assert!(one || fetch.bytes <= max_bytes, "{fetch:?}");
                let mut end = 0;
                for item in &fetch.items {
                    prop_assert!(item.at <= end + max_gap);
                    end = end.max(item.at + blob_bytes(&wanted[item.wanted]));
                }
                prop_assert_eq!(end, fetch.bytes);
            }
        }

        #[test]
        fn fetches_come_in_the_order_of_their_first_blob(wanted in wanted()) {
            let first = |fetch: &Fetch| fetch.items.iter().map(|item| item.wanted).min();
            let fetches = plan_fetches(&wanted, 0, 10_000);
            prop_assert!(fetches.is_sorted_by_key(first));
        }
    }

    #[test]
    fn neighbours_become_one_request_and_a_far_blob_another() {
        let wanted =
            [location(0, 112, 52), location(0, 212, 52), location(0, 10_000, 52), location(1, 112, 52)];
        let fetches = plan_fetches(&wanted, 1_000, 100_000);
        let ranges: Vec<_> =
            fetches.iter().map(|fetch| (fetch.pack.number, fetch.offset, fetch.bytes)).collect();
        assert_eq!(ranges, [(0, 112, 200), (0, 10_000, 100), (1, 112, 100)]);
    }
}
