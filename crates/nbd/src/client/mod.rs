//! The async client: connections to one export, and reads, writes and extents over them.
//!
//! [`Client`] is a handle on a pool of connections. One operation travels on one connection, cut into requests that the
//! server accepts; operations of many tasks spread over all connections. Retries of reads live here and nowhere else:
//! a lost connection is dialed again, a range that errors is tried again in smaller pieces.
//!
//! Invariant: memory for operations is the callers' buffers, and at most `in_flight_bytes` of them are on the wire.

mod connect;
mod connection;
mod extents;
mod options;
mod pool;
mod read;
mod stream;
mod tls;
mod work;
mod write;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Command, Error};
use crate::proto::handshake::ListedExport;
use crate::uri::Uri;

pub use extents::ExtentStream;
pub use options::{ClientOptions, ExportInfo};
pub use read::Read;

use connect::Dialer;
use pool::Pool;

/// An open export. Clones share its connections; the last one to go closes them politely.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

impl Client {
    /// Dials the server, negotiates, and opens as many connections as options and server allow. Must run inside a tokio
    /// runtime, as must everything else here.
    ///
    /// # Errors
    /// Whatever keeps the first connection from opening the export; [`Error::ReadOnly`] when `options.writable` is set
    /// and the export is not. Further connections that fail are left out with a warning.
    pub async fn connect(uri: &Uri, options: &ClientOptions) -> Result<Self, Error> {
        Ok(Self { pool: Pool::connect(uri, options).await? })
    }

    /// What the server told about the export.
    pub fn info(&self) -> &ExportInfo {
        self.pool.info()
    }

    /// Reads `buffer.len()` bytes from `offset` straight into the buffer. Holes are not written to: [`Read`] lists them.
    ///
    /// One read uses one connection; run several at once to use them all. A range that errors is tried again in smaller
    /// pieces, a lost connection is dialed again.
    ///
    /// # Errors
    /// [`Error::Failed`] with the smallest range that still errors, [`Error::OutOfRange`], [`Error::Violation`],
    /// [`Error::Lost`], [`Error::Changed`].
    pub async fn read(&self, offset: u64, buffer: Vec<u8>) -> Result<Read, Error> {
        read::read(&self.pool, offset, buffer).await
    }

    /// The extents of `range` in a metadata context, exactly covering it, in order.
    ///
    /// # Errors
    /// [`Error::NoContext`] when the context was not asked for in [`ClientOptions::contexts`] or not granted;
    /// [`Error::OutOfRange`].
    pub fn extents(&self, context: &str, range: Range<u64>) -> Result<ExtentStream, Error> {
        ExtentStream::start(&self.pool, context, range)
    }

    /// Writes the buffer at `offset` and gives it back. Durable only after [`Client::flush`].
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::OutOfRange`], [`Error::Unaligned`], [`Error::Failed`], [`Error::Violation`];
    /// [`Error::Lost`] at the first lost connection, because writes answered before it may be gone.
    pub async fn write(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
        write::write(&self.pool, offset, buffer).await
    }

    /// Makes `bytes` bytes from `offset` read as zeros. With `keep_hole` the server may punch a hole; without, it
    /// allocates. A server without the command gets zeros written.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_zeroes(&self, offset: u64, bytes: u64, keep_hole: bool) -> Result<(), Error> {
        write::write_zeroes(&self.pool, offset, bytes, keep_hole).await
    }

    /// Tells the server that `bytes` bytes from `offset` are not needed. They may read as anything afterwards.
    ///
    /// # Errors
    /// As [`Client::write`]; [`Error::NotOffered`] when the server does not know the command.
    pub async fn trim(&self, offset: u64, bytes: u64) -> Result<(), Error> {
        write::trim(&self.pool, offset, bytes).await
    }

    /// Makes every write that was answered before durable.
    ///
    /// # Errors
    /// As [`Client::write`]; [`Error::NotOffered`] when the server does not know the command.
    pub async fn flush(&self) -> Result<(), Error> {
        write::flush(&self.pool).await
    }

    /// Closes all connections politely, after the requests in flight. Later operations, also of clones, fail with
    /// [`Error::Disconnected`].
    pub async fn disconnect(&self) {
        self.pool.disconnect().await;
    }

    /// The bounds of an operation, checked against the export.
    fn check_range(pool: &Pool, command: Command, offset: u64, bytes: u64) -> Result<Range<u64>, Error> {
        let size_bytes = pool.info().size_bytes;
        match offset.checked_add(bytes) {
            Some(end) if end <= size_bytes => Ok(offset..end),
            _ => {
                let export = pool.info().name.clone();
                Err(Error::OutOfRange { export, command, offset, bytes, size_bytes })
            }
        }
    }
}

/// The exports of a server, as it lists them. The URI's export name does not matter.
///
/// # Errors
/// Whatever keeps a connection from being made, and [`Error::Refused`] when the server does not give lists.
pub async fn list(uri: &Uri, options: &ClientOptions) -> Result<Vec<ListedExport>, Error> {
    Dialer::new(uri, options).await?.list().await
}
