//! One page of a listing of the bucket.
//!
//! Names come from the bucket and are foreign: each passes the grammar or is only reported. They are asked for
//! URL-encoded, because XML cannot carry every name that S3 allows.
//!
//! Invariants: memory is bounded by one answer of the server and one page; a page is empty only at the end, so that
//! the caller can always go on after its last key.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::operation::list_objects_v2::builders::ListObjectsV2FluentBuilder;
use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;

use super::connect::Bounded;
use super::failure::{Attempt, Class, Failure};
use super::{ANSWER_BYTES_MAX, Patience, S3};
use crate::object::{LIST_PAGE_ENTRIES, Listed};
use crate::{Key, Page, Result};

/// Most names of one answer; [`LIST_PAGE_ENTRIES`] as the protocol writes it.
const PAGE_NAMES: i32 = 1000;

/// Most names outside the grammar that a page reports.
const FOREIGN_MAX: usize = 1000;

/// Most answers of the server that one page is made of: many of them may hold nothing of ours.
const ANSWERS_MAX: usize = 10_000;

/// The longest foreign name that is repeated, in characters.
const FOREIGN_NAME_MAX: usize = 128;

impl S3 {
    /// Asks for one name: the request that tells whether bucket, credentials and clock are right.
    pub(super) async fn first_name(&self, patience: Patience) -> Result<()> {
        let mut retry = self.retry_with("list", "its objects", patience);
        while let Err(failure) = self.names(self.listing("").max_keys(1)).await {
            retry.after(failure).await?;
        }
        Ok(())
    }

    /// The objects whose names begin with `prefix`, after `after`.
    pub(super) async fn page(&self, prefix: &str, after: Option<&Key>) -> Result<Page> {
        let mut retry = self.retry("list", prefix);
        let start = after.map(|key| self.name(key.as_str()));
        let mut reading = Reading { last: start.clone(), ..Reading::default() };
        loop {
            let request = match &reading.token {
                Some(token) => self.listing(prefix).continuation_token(token),
                None => self.listing(prefix).set_start_after(reading.last.clone()),
            };
            let answer = self.names(request).await;
            let Err(failure) = answer.and_then(|answer| reading.take(&self.name(""), &answer)) else {
                if !reading.page.entries.is_empty() || !reading.page.more {
                    return Ok(reading.page);
                }
                continue;
            };
            reading = Reading { last: start.clone(), ..Reading::default() };
            retry.after(failure).await?;
        }
    }

    fn listing(&self, prefix: &str) -> ListObjectsV2FluentBuilder {
        self.client
            .list_objects_v2()
            .bucket(&self.settings.bucket)
            .prefix(self.name(prefix))
            .max_keys(PAGE_NAMES)
            .encoding_type(EncodingType::Url)
    }

    async fn names(&self, request: ListObjectsV2FluentBuilder) -> Attempt<ListObjectsV2Output> {
        let request = request.customize().interceptor(Bounded(ANSWER_BYTES_MAX));
        self.attempt(0, request.send()).await.map_err(Failure::of_no_object)
    }
}

/// A page in the making.
#[derive(Debug, Default)]
struct Reading {
    page: Page,
    /// The last name seen, ours or not, with the prefix of the store.
    last: Option<String>,
    /// Where the server goes on.
    token: Option<String>,
    answers: usize,
}

impl Reading {
    /// Adds an answer of the server, whose names all begin with `root`.
    fn take(&mut self, root: &str, answer: &ListObjectsV2Output) -> Attempt<()> {
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        self.page.more = answer.is_truncated() == Some(true);
        self.token = answer.next_continuation_token().map(str::to_owned);
        self.answers += 1;
        for object in answer.contents() {
            let raw = object.key().unwrap_or_default();
            let full = if encoded { decode(raw) } else { raw.to_owned() };
            if self.last.as_ref().is_some_and(|last| *last >= full) {
                return Err(wrong("a listing that is not in the order of names"));
            }
            let name =
                full.strip_prefix(root).ok_or_else(|| wrong("a listing of other names than asked for"))?;
            self.add(name, object.size())?;
            self.last = Some(full);
        }
        let stuck = answer.contents().is_empty() && self.token.is_none();
        if self.page.more && (stuck || self.answers >= ANSWERS_MAX) {
            return Err(wrong("a listing that does not end"));
        }
        Ok(())
    }

    fn add(&mut self, name: &str, size: Option<i64>) -> Attempt<()> {
        let Ok(key) = Key::parse(name) else {
            if self.page.foreign.len() < FOREIGN_MAX {
                self.page.foreign.push(name.chars().take(FOREIGN_NAME_MAX).collect());
            }
            return Ok(());
        };
        if self.page.entries.len() >= LIST_PAGE_ENTRIES {
            return Err(wrong("more names than asked for"));
        }
        let bytes = size.and_then(|size| u64::try_from(size).ok());
        let bytes = bytes.ok_or_else(|| wrong("a listing without sizes"))?;
        self.page.entries.push(Listed { key, bytes });
        Ok(())
    }
}

fn wrong(what: &str) -> Failure {
    Failure::new(Class::Network, what)
}

/// A name as `encoding-type=url` writes it: a blank is a plus.
fn decode(name: &str) -> String {
    percent_decode_str(&name.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_asked_for_one_page() {
        assert_eq!(usize::try_from(PAGE_NAMES), Ok(LIST_PAGE_ENTRIES));
    }

    #[test]
    fn encoded_names_are_read_as_they_are() {
        assert_eq!(decode("a%20b+c%2Bd/e"), "a b c+d/e");
        assert_eq!(decode("%01%ff%"), "\u{1}\u{fffd}%");
    }
}
