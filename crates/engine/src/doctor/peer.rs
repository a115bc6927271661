//! A second pair of eyes: ranges of an export read by the crate `nbd`, whose client shares no code with ours.
//!
//! That client speaks the oldest form of the protocol that servers still know, over unix sockets and plain
//! TCP; an export behind TLS is out of its reach.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use aquifer_nbd::{Client, Transport, Uri};

use crate::error::{Error, Kind, Result};

/// Ranges compared, evenly spread over the export.
const SAMPLES: u64 = 64;

/// Bytes of a range.
const SAMPLE_BYTES: u64 = 64 << 10;

/// How long the peer may take for one read.
const DEADLINE: Duration = Duration::from_secs(20);

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Compares samples; says how many.
pub(super) async fn compare(client: &Client, uri: &Uri) -> Result<String> {
    let size_bytes = client.info().size_bytes;
    let ranges: Vec<(u64, u64)> = samples(size_bytes).collect();
    let (target, asked) = (uri.clone(), ranges.clone());
    let theirs = tokio::task::spawn_blocking(move || read_all(&target, size_bytes, &asked)).await;
    let theirs = theirs.map_err(|error| Error::caused(Kind::Internal, error))??;
    for ((offset, bytes), theirs) in ranges.iter().zip(&theirs) {
        let buffer = vec![0; usize::try_from(*bytes).unwrap_or(0)];
        let mut ours = client.read(*offset, buffer).await?;
        ours.zero_holes();
        if ours.buffer != *theirs {
            let text = format!("{uri}: two NBD clients read different bytes in {bytes} bytes at {offset}");
            return Err(Error::new(Kind::Corrupt, text)
                .hint("if nobody writes to this export, report it: a backup of it would not be right"));
        }
    }
    Ok(format!("{size_bytes} bytes; two independent clients agree on {} samples", ranges.len()))
}

/// Offsets and lengths, the first and the last byte of the export included.
fn samples(size_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let bytes = SAMPLE_BYTES.min(size_bytes);
    let count = if bytes == 0 { 0 } else { SAMPLES.min(size_bytes.div_ceil(bytes)) };
    let last = size_bytes - bytes;
    (0..count).map(move |at| {
        let offset = u128::from(last) * u128::from(at) / u128::from((count - 1).max(1));
        (u64::try_from(offset).unwrap_or(last), bytes)
    })
}

fn read_all(uri: &Uri, size_bytes: u64, ranges: &[(u64, u64)]) -> Result<Vec<Vec<u8>>> {
    let failed = |error| Error::caused(Kind::Unavailable, error).about("the independent NBD client");
    let mut stream = dial(uri)?;
    let export = nbd::client::handshake(&mut stream, uri.export.as_bytes()).map_err(failed)?;
    if export.size != size_bytes {
        let text =
            format!("{uri}: two NBD clients see different sizes, {size_bytes} and {} bytes", export.size);
        return Err(Error::new(Kind::Corrupt, text));
    }
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let read = ranges.iter().map(|(offset, bytes)| {
        let mut buffer = vec![0; usize::try_from(*bytes).unwrap_or(0)];
        client.seek(SeekFrom::Start(*offset)).map_err(failed)?;
        client.read_exact(&mut buffer).map_err(failed)?;
        Ok(buffer)
    });
    read.collect()
}

fn dial(uri: &Uri) -> Result<Box<dyn Stream>> {
    let failed = |error| Error::caused(Kind::Unavailable, error).about(uri.peer());
    if uri.tls {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{uri}: the independent NBD client speaks no TLS"),
        )
        .hint("check the export through a unix socket on its host"));
    }
    match &uri.transport {
        Transport::Unix(path) => {
            let stream = UnixStream::connect(path).map_err(failed)?;
            stream.set_read_timeout(Some(DEADLINE)).map_err(failed)?;
            Ok(Box::new(stream))
        }
        Transport::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).map_err(failed)?;
            stream.set_read_timeout(Some(DEADLINE)).map_err(failed)?;
            Ok(Box::new(stream))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_reach_from_the_first_byte_to_the_last() {
        for size_bytes in [1, SAMPLE_BYTES, SAMPLE_BYTES + 1, 10 << 40] {
            let all: Vec<(u64, u64)> = samples(size_bytes).collect();
            assert_eq!(all[0].0, 0);
            let last = all[all.len() - 1];
            assert_eq!(last.0 + last.1, size_bytes);
        }
        assert_eq!(samples(0).count(), 0);
    }
}
