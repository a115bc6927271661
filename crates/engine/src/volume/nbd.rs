//! A volume that is a writable NBD export.

use std::ops::Range;

use aquifer_nbd::{Client, ClientOptions, Uri};

use super::Applied;
use crate::changes::ALLOCATION;
use crate::error::{Error, Result};
use crate::patch::{self, Change, Patch};
use crate::settings::{JobSettings, REQUEST_BYTES, REQUESTS_PER_CONNECTION};

/// An open export.
#[derive(Debug, Clone)]
pub(crate) struct NbdVolume {
    pub(crate) client: Client,
    /// What errors call it.
    name: String,
}

impl NbdVolume {
    /// Connects for writing a disk of `size_bytes`; errors call it `name`. An export may be larger than the disk.
    ///
    /// # Errors
    /// `Invalid` if it is smaller; those of the client, a read-only export included.
    pub(crate) async fn open(
        uri: &Uri,
        name: String,
        size_bytes: u64,
        settings: &JobSettings,
    ) -> Result<Self> {
        let (connections, connections_max) = settings.connections();
        let options = ClientOptions {
            connections,
            connections_max,
            depth: REQUESTS_PER_CONNECTION,
            request_bytes: REQUEST_BYTES,
            in_flight_bytes: settings.transit_bytes(REQUEST_BYTES),
            contexts: vec![ALLOCATION.to_owned()],
            writable: true,
            ..ClientOptions::default()
        };
        let client = Client::connect(uri, &options).await?;
        let bytes = client.info().size_bytes;
        if bytes < size_bytes {
            return Err(super::too_small(name, bytes, size_bytes));
        }
        Ok(NbdVolume { client, name })
    }

    /// Writes `bytes` at `offset`; gives the buffer back.
    async fn write(&self, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.client.write(offset, bytes).await.map_err(|error| self.failed(error))
    }

    /// Reads `buffer.len()` bytes at `offset`.
    pub(crate) async fn read(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let mut read = self.client.read(offset, buffer).await.map_err(|error| self.failed(error))?;
        read.zero_holes();
        Ok(read.buffer)
    }

    /// Makes the export hold the chunk `bytes` at `offset`, writing no more than needed. `blank`: it reads as
    /// zero there. Gives the buffer back.
    pub(crate) async fn put(&self, blank: bool, offset: u64, bytes: Vec<u8>) -> Result<(Applied, Vec<u8>)> {
        let patches = if blank {
            patch::onto_zeros(&bytes)
        } else {
            patch::onto_old(&bytes, &self.read(offset, vec![0; bytes.len()]).await?)
        };
        let applied = Applied::of(&patches);
        if let [Patch { change: Change::Write, .. }] = patches[..] {
            return Ok((applied, self.write(offset, bytes).await?));
        }
        for Patch { change, range } in patches {
            let at = patch::place(offset, &range);
            match change {
                Change::Same | Change::Hole => {}
                Change::Write => drop(self.write(at.start, bytes[range].to_vec()).await?),
                Change::Clear => self.clear(at).await?,
            }
        }
        Ok((applied, bytes))
    }

    /// Makes `range` read as zero.
    pub(crate) async fn clear(&self, range: Range<u64>) -> Result<()> {
        let cleared = self.client.write_zeroes(range.start, range.end - range.start, true).await;
        cleared.map_err(|error| self.failed(error))
    }

    /// True if the export tells which of its ranges read as zero.
    pub(crate) fn has_extents(&self) -> bool {
        self.client.info().contexts.iter().any(|context| context == ALLOCATION)
    }

    /// Makes everything durable.
    pub(crate) async fn finish(&self) -> Result<()> {
        match self.client.flush().await {
            // Such a server has nothing to flush: what it answered is where it stays.
            Ok(()) | Err(aquifer_nbd::Error::NotOffered { .. }) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// After a failure: says what is left.
    pub(crate) fn undo(&self) -> String {
        format!("{} is partly overwritten", self.name)
    }

    pub(crate) fn failed(&self, error: aquifer_nbd::Error) -> Error {
        Error::from(error).with("volume", self.name.clone())
    }
}
