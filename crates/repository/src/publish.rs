//! Publishing: stored packs are written into segments, the segments are named in the log, the index takes them in.
//!
//! Invariant: packs leave the waiting list only after their `Publish` is durable, so an interrupted publish is made up
//! for by the next one; a segment's number is used once.

use std::sync::Arc;

use aquifer_format::id::SegmentName;
use aquifer_format::log::Body;
use aquifer_format::segment::{SegmentPack, encode_segment};
use aquifer_store::Bytes;

use crate::repository::blocking;
use crate::world::random;
use crate::writing::Writing;
use crate::{Error, Result, layout};

/// Encoded bytes of packs after which a segment is full.
pub(crate) const SEGMENT_BYTES: usize = 16 << 20;

/// What a session has stored and not yet published.
#[derive(Default)]
pub(crate) struct Publisher {
    /// In the order in which the store acknowledged them.
    waiting: Vec<SegmentPack>,
    /// How many of them the segments below describe.
    covered: usize,
    /// Stored segments that the log does not name yet.
    segments: Vec<SegmentName>,
    next: u32,
}

impl Writing {
    /// Publishes everything that is stored.
    pub(crate) async fn publish(&self) -> Result<()> {
        let mut publisher = self.publisher.lock().await;
        let bodies = self.publication(&mut publisher).await?;
        if bodies.is_empty() {
            return Ok(());
        }
        self.repository.log.append(|state| self.check_open(state).map(|()| bodies.clone())).await?;
        self.settle(&mut publisher).await
    }

    /// Stores segments for what waits, and returns the body that names them, if there is anything to name.
    pub(crate) async fn publication(&self, publisher: &mut Publisher) -> Result<Vec<Body>> {
        publisher.waiting.extend(self.plane.take_stored());
        while let Some(group) = publisher.next_group() {
            let count = group.len();
            let name = self.store_segment(publisher, group).await?;
            publisher.covered += count;
            publisher.segments.push(name);
        }
        let (session, segments) = (self.id(), publisher.segments.clone());
        Ok(if segments.is_empty() { Vec::new() } else { vec![Body::Publish { session, segments }] })
    }

    /// Stores one segment, under a name that no entry of the log has yet.
    pub(crate) async fn store_segment(
        &self,
        publisher: &mut Publisher,
        packs: Vec<SegmentPack>,
    ) -> Result<SegmentName> {
        let name = SegmentName { session: self.id(), number: publisher.next };
        // Used up even if the store fails: the put may arrive later, and no name is ever written twice.
        publisher.next = publisher.next.checked_add(1).ok_or(Error::SessionFull { session: self.id() })?;
        let parts = self.repository.parts();
        let (ring, salt) = (parts.ring.clone(), random(parts.world.as_ref()));
        let object = blocking(move || Ok(encode_segment(&ring, name, salt, &packs)?)).await?;
        parts.packs.put(&layout::segment(&name), Bytes::from(object)).await?;
        Ok(name)
    }

    /// The `Publish` is durable: the index takes the packs in, and the session lets go of them.
    pub(crate) async fn settle(&self, publisher: &mut Publisher) -> Result<()> {
        publisher.covered = 0;
        let packs = Arc::new(std::mem::take(&mut publisher.waiting));
        let segments = std::mem::take(&mut publisher.segments);
        self.repository.follower.add_own(&segments, Arc::clone(&packs)).await?;
        self.plane.published(&packs);
        Ok(())
    }
}

impl Publisher {
    /// The next packs for one segment.
    fn next_group(&self) -> Option<Vec<SegmentPack>> {
        let mut bytes = 0;
        let rest = self.waiting.get(self.covered..)?;
        let fits = rest.iter().take_while(|pack| {
            let first = bytes == 0;
            bytes += pack.encoded_bytes();
            first || bytes <= SEGMENT_BYTES
        });
        let count = fits.count();
        (count > 0).then(|| rest[..count].to_vec())
    }
}
