//! Reading an object or a part of it, and its size.
//!
//! A server's lengths and ranges are foreign numbers: they are held against what was asked for before anything is
//! allocated, and the body is held against them after.
//!
//! Invariant: bytes are returned only when exactly as many came as the range and the object's size call for.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use super::connect::Bounded;
use super::failure::{Attempt, Class, Failure};
use super::{ANSWER_BYTES_MAX, S3, within};
use crate::memory::{check_size, resolve};
use crate::object::OBJECT_BYTES_MAX;
use crate::{GetRange, Key, Result};

/// What an attempt to read came to, if it did not fail.
enum Answer {
    /// The bytes.
    Bytes(Bytes),
    /// The object is too short or too large for the range: an error that needs its size.
    Size(u64),
}

impl S3 {
    /// Reads `range` of an object.
    pub(super) async fn read(&self, key: &Key, range: GetRange) -> Result<Bytes> {
        let Some((header, most)) = header(range) else {
            // HTTP has no empty range, and one beyond all limits needs no request.
            let (_, bytes) = resolve(self, key, range, self.size(key).await?)?;
            debug_assert_eq!(bytes, 0, "a range without a header is empty or refused");
            return Ok(Bytes::new());
        };
        let mut retry = self.retry("read", key.as_str());
        loop {
            match self.fetch(key, range, header.clone(), most).await {
                Ok(Answer::Bytes(bytes)) => return Ok(bytes),
                Ok(Answer::Size(object_bytes)) => {
                    check_size(self, key, object_bytes)?;
                    resolve(self, key, range, object_bytes)?;
                    retry.after(Failure::new(Class::Network, "a refusal of a range that fits")).await?;
                }
                Err(failure) if failure.class == Class::Range => {
                    resolve(self, key, range, self.size(key).await?)?;
                    retry.after(Failure { class: Class::Network, ..failure }).await?;
                }
                Err(failure) => retry.after(failure).await?,
            }
        }
    }

    /// The size of an object in bytes.
    pub(super) async fn size(&self, key: &Key) -> Result<u64> {
        self.look_at(key).await.map(|(bytes, _)| bytes)
    }

    /// What the server knows of an object, with its size in bytes.
    pub(super) async fn look_at(&self, key: &Key) -> Result<(u64, HeadObjectOutput)> {
        let mut retry = self.retry("look at", key.as_str());
        loop {
            let request = self
                .client
                .head_object()
                .bucket(&self.settings.bucket)
                .key(self.name(key.as_str()))
                .customize()
                .interceptor(Bounded(ANSWER_BYTES_MAX));
            let failure = match self.attempt(0, request.send()).await {
                Ok(head) => match head.content_length().and_then(|length| u64::try_from(length).ok()) {
                    Some(length) => return Ok((length, head)),
                    None => Failure::new(Class::Network, "an answer without a length"),
                },
                Err(failure) => failure,
            };
            retry.after(failure).await?;
        }
    }

    async fn fetch(&self, key: &Key, range: GetRange, header: Option<String>, most: u64) -> Attempt<Answer> {
        let request = self
            .client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(self.name(key.as_str()))
            .set_range(header)
            .customize()
            .interceptor(Bounded(usize::try_from(OBJECT_BYTES_MAX).unwrap_or(usize::MAX)));
        let answer = self.attempt(0, request.send()).await?;
        let length = length(&answer)?;
        let Some(part) = part(&answer)? else {
            // The whole object, asked for or not.
            let (offset, bytes) = match resolve(self, key, range, length) {
                Ok(found) if length <= OBJECT_BYTES_MAX => found,
                _ => return Ok(Answer::Size(length)),
            };
            let body = self.body(answer.body, length).await?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
            return Ok(Answer::Bytes(body.slice(start..end)));
        };
        let Ok((offset, bytes)) = resolve(self, key, range, part.total) else {
            return Ok(Answer::Size(part.total));
        };
        if (part.offset, length) != (offset, bytes) || length > most {
            let told = format!("{length} bytes from {} instead of {bytes} from {offset}", part.offset);
            return Err(Failure::new(Class::Network, told));
        }
        self.body(answer.body, length).await.map(Answer::Bytes)
    }

    /// Reads a body of known length.
    async fn body(&self, body: ByteStream, length: u64) -> Attempt<Bytes> {
        within(self.settings.patience.attempt(length), collect(body, length)).await?
    }
}

async fn collect(mut body: ByteStream, length: u64) -> Attempt<Bytes> {
    // The callers refused everything above the limit of an object.
    let expected = usize::try_from(length).unwrap_or(usize::MAX);
    let mut bytes = BytesMut::with_capacity(expected);
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| {
            let told = format!("the body ended after {} of {length} bytes", bytes.len());
            Failure::new(Class::Network, format!("{told}: {}", Failure::network(&error)))
        })?;
        if part.len() > expected - bytes.len() {
            return Err(Failure::new(Class::Network, format!("more than the {length} bytes announced")));
        }
        bytes.extend_from_slice(&part);
    }
    if bytes.len() != expected {
        let told = format!("the body ended after {} of {length} bytes", bytes.len());
        return Err(Failure::new(Class::Network, told));
    }
    Ok(bytes.freeze())
}

/// The Range header of a range, if any, and the most bytes that it can give; `None` for a range that has no header.
fn header(range: GetRange) -> Option<(Option<String>, u64)> {
    match range {
        GetRange::Whole => Some((None, OBJECT_BYTES_MAX)),
        GetRange::From { offset, bytes } if (1..=OBJECT_BYTES_MAX).contains(&bytes) => {
            let last = offset.checked_add(bytes)? - 1;
            Some((Some(format!("bytes={offset}-{last}")), bytes))
        }
        GetRange::Last(bytes) if (1..=OBJECT_BYTES_MAX).contains(&bytes) => {
            Some((Some(format!("bytes=-{bytes}")), bytes))
        }
        _ => None,
    }
}

/// Where a part lies in its object.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    total: u64,
}

fn length(answer: &GetObjectOutput) -> Attempt<u64> {
    let length = answer.content_length().and_then(|length| u64::try_from(length).ok());
    length.ok_or_else(|| Failure::new(Class::Network, "an answer without a length"))
}

/// What Content-Range says; `None` when there is none and the answer is the whole object.
fn part(answer: &GetObjectOutput) -> Attempt<Option<Part>> {
    let Some(text) = answer.content_range() else { return Ok(None) };
    let unreadable = || Failure::new(Class::Network, format!("the Content-Range {text:.64?}"));
    parse_part(text).map(Some).ok_or_else(unreadable)
}

fn parse_part(text: &str) -> Option<Part> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some(Part { offset: first.parse().ok()?, total: total.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_becomes_the_header_that_asks_for_it() {
        let text = |range| header(range).and_then(|(header, _)| header);
        assert_eq!(text(GetRange::From { offset: 5, bytes: 10 }).as_deref(), Some("bytes=5-14"));
        assert_eq!(text(GetRange::Last(7)).as_deref(), Some("bytes=-7"));
        assert_eq!(header(GetRange::Whole), Some((None, OBJECT_BYTES_MAX)));
        for none in [
            GetRange::From { offset: 5, bytes: 0 },
            GetRange::Last(0),
            GetRange::From { offset: u64::MAX, bytes: 2 },
            GetRange::From { offset: 0, bytes: OBJECT_BYTES_MAX + 1 },
        ] {
            assert_eq!(header(none), None, "{none:?}");
        }
    }

    #[test]
    fn only_a_whole_content_range_is_read() {
        assert_eq!(parse_part("bytes 5-14/100"), Some(Part { offset: 5, total: 100 }));
        for wrong in ["", "bytes 5-14", "bytes */100", "bytes 5-14/*", "items 5-14/100", "bytes -1-2/3"] {
            assert_eq!(parse_part(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_body_of_another_length_than_announced_is_a_failure() {
        let body = || ByteStream::from_static(b"12345");
        assert_eq!(collect(body(), 5).await.unwrap().as_ref(), b"12345");
        assert!(collect(body(), 6).await.unwrap_err().to_string().contains("after 5 of 6 bytes"));
        assert!(collect(body(), 4).await.unwrap_err().to_string().contains("more than the 4 bytes"));
    }
}
