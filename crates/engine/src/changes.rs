//! What the source says about a disk's bytes, in order: of a disk that is read whole, or of what changed since a base.
//!
//! A whole disk is described by its allocation alone. For an increment the dirty bitmap comes first, and only what it
//! marks is asked for its allocation, many questions at once: so the questions, like the reads, are as many as the
//! changes and not as many as the disk is long. Not here: what follows from an answer ([`crate::plan`]).
//!
//! Invariant: the regions cover the disk exactly once and in order; none is `Clean` or `Drawn` that the bitmap marks or
//! that lies beyond the end of the base.

use std::collections::VecDeque;
use std::ops::Range;

use aquifer_nbd::{Client, ExtentStream, STATE_DIRTY, STATE_ZERO};
use tokio::task::JoinHandle;

use crate::draw::Draw;
use crate::error::{Error, Kind, Result};
use crate::plan::{Grid, Status};

/// The context of the extents; without it everything is read.
pub(crate) const ALLOCATION: &str = "base:allocation";
/// Questions about the allocation of dirty runs in flight.
const AHEAD: usize = 16;
/// Longest run that one question is about, which bounds its answer.
const RUN_BYTES: u64 = 64 << 20;

/// A run of bytes with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) status: Status,
}

/// What is known of the changes on a disk since its base.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    /// The metadata context of the dirty bitmap.
    pub(crate) context: String,
    /// The base's size: what lies beyond is new.
    pub(crate) base_bytes: u64,
    /// Which unchanged chunks are read all the same.
    pub(crate) draw: Draw,
}

/// The regions of one disk.
pub(crate) enum Regions {
    /// Of a source that tells no allocation.
    Unknown(Option<Region>),
    /// Of the whole disk.
    Whole(ExtentStream),
    /// Of an increment.
    Changed(Box<Changed>),
}

impl Regions {
    /// # Errors
    /// Those of the NBD client, also when the source does not tell the changes that were asked for.
    pub(crate) fn of(client: &Client, grid: Grid, changes: Option<Changes>) -> Result<Self> {
        let size_bytes = grid.size_bytes();
        if let Some(changes) = changes {
            return Ok(Regions::Changed(Box::new(Changed::new(client.clone(), grid, changes)?)));
        }
        if tells_allocation(client) {
            return Ok(Regions::Whole(client.extents(ALLOCATION, 0..size_bytes)?));
        }
        let whole = Region { offset: 0, bytes: size_bytes, status: Status::Data };
        Ok(Regions::Unknown(Some(whole).filter(|whole| whole.bytes > 0)))
    }

    /// The next region; `None` at the end of the disk.
    ///
    /// # Errors
    /// Those of the NBD client.
    pub(crate) async fn next(&mut self) -> Result<Option<Region>> {
        match self {
            Regions::Unknown(whole) => Ok(whole.take()),
            Regions::Whole(extents) => Ok(extents.next().await?.map(|extent| allocated(&extent))),
            Regions::Changed(changed) => changed.next().await,
        }
    }
}

fn tells_allocation(client: &Client) -> bool {
    client.info().contexts.iter().any(|context| context == ALLOCATION)
}

fn allocated(extent: &aquifer_nbd::Extent) -> Region {
    let status = if extent.flags & STATE_ZERO != 0 { Status::Zero } else { Status::Data };
    Region { offset: extent.offset, bytes: extent.bytes, status }
}

/// A run whose regions are known, or asked for.
enum Run {
    Clean(Range<u64>),
    Dirty(JoinHandle<Result<Vec<Region>>>),
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Run::Dirty(question) = self {
            question.abort();
        }
    }
}

/// The regions of an increment.
pub(crate) struct Changed {
    client: Client,
    grid: Grid,
    base_bytes: u64,
    draw: Draw,
    dirty: Option<ExtentStream>,
    /// A part of the bitmap's answer that is not yet a run.
    rest: Option<(Range<u64>, bool)>,
    ahead: VecDeque<Run>,
    ready: VecDeque<Region>,
}

impl Changed {
    fn new(client: Client, grid: Grid, changes: Changes) -> Result<Self> {
        let Changes { context, base_bytes, draw } = changes;
        let dirty = Some(client.extents(&context, 0..grid.size_bytes())?);
        let (ahead, ready) = (VecDeque::new(), VecDeque::new());
        Ok(Changed { client, grid, base_bytes, draw, dirty, rest: None, ahead, ready })
    }

    async fn next(&mut self) -> Result<Option<Region>> {
        loop {
            if let Some(region) = self.ready.pop_front() {
                return Ok(Some(region));
            }
            self.look_ahead().await?;
            match self.ahead.pop_front() {
                None => return Ok(None),
                Some(Run::Clean(ref range)) => {
                    let (draw, grid) = (&mut self.draw, self.grid);
                    self.ready.extend(draw.over(grid, range.clone()));
                }
                Some(Run::Dirty(ref mut question)) => {
                    let answer = question.await.map_err(|error| Error::caused(Kind::Internal, error))??;
                    self.ready = answer.into();
                }
            }
        }
    }

    /// Keeps questions in flight, as long as the bitmap names something to ask about.
    async fn look_ahead(&mut self) -> Result<()> {
        while self.ahead.len() < AHEAD {
            let Some((range, dirty)) = self.next_run().await? else { return Ok(()) };
            self.ahead.push_back(if dirty { Run::Dirty(self.ask(range)) } else { Run::Clean(range) });
        }
        Ok(())
    }

    /// The next part of the bitmap: cut at the base's end, and at [`RUN_BYTES`] where it is dirty.
    async fn next_run(&mut self) -> Result<Option<(Range<u64>, bool)>> {
        let (range, dirty) = match self.rest.take() {
            Some(rest) => rest,
            None => match &mut self.dirty {
                None => return Ok(None),
                Some(extents) => match extents.next().await? {
                    None => {
                        self.dirty = None;
                        return Ok(None);
                    }
                    Some(extent) => {
                        (extent.offset..extent.offset + extent.bytes, extent.flags & STATE_DIRTY != 0)
                    }
                },
            },
        };
        let dirty = dirty || range.start >= self.base_bytes;
        let end = match dirty {
            true => range.end.min(range.start.saturating_add(RUN_BYTES)),
            false => range.end.min(self.base_bytes),
        };
        if end < range.end {
            self.rest = Some((end..range.end, dirty));
        }
        Ok(Some((range.start..end, dirty)))
    }

    fn ask(&self, range: Range<u64>) -> JoinHandle<Result<Vec<Region>>> {
        let client = self.client.clone();
        tokio::spawn(async move {
            if !tells_allocation(&client) {
                let (offset, bytes) = (range.start, range.end - range.start);
                return Ok(vec![Region { offset, bytes, status: Status::Data }]);
            }
            let mut extents = client.extents(ALLOCATION, range)?;
            let mut regions = Vec::new();
            while let Some(extent) = extents.next().await? {
                regions.push(allocated(&extent));
            }
            Ok(regions)
        })
    }
}
