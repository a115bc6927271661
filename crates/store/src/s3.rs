//! A store in an S3 bucket, at Amazon or at any server that speaks the protocol.
//!
//! A key is the object's name below the prefix. An object goes up as one request with its checksum in a header, and
//! `create` is a put with `If-None-Match: *`. Whether a server keeps that promise is for [`crate::probe`] to try; here
//! it is believed. docs/S3.md says what the servers that were tried do.
//!
//! Invariant: a `create` that answers `Won` heard the server say so, or found its own bytes under the name after an
//! answer was lost.

mod connect;
mod failure;
mod list;
mod lock;
mod pace;
mod read;
mod retry;
mod settings;

use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::RequestChecksumCalculation as Checksum;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, StorageClass};
use aws_sdk_s3::{Client, Config};
use bytes::Bytes;

use self::connect::Bounded;
use self::failure::{Attempt, Class, Failure};
pub use self::lock::{LockMode, ObjectLock};
use self::pace::Pace;
use self::retry::{Retry, Task};
pub use self::settings::{Patience, S3Settings};
use crate::memory::check_size;
use crate::object::BoxFuture;
use crate::{Created, Error, GetRange, Key, ObjectStore, Page, Result, Retained};

/// The largest answer in bytes to a request that does not read an object. A page of a listing needs most: a thousand
/// names of at most 1,024 bytes, escaped.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Attempts of the first request: a wrong endpoint should not take long to tell.
const FIRST_ATTEMPTS: u32 = 3;

/// An object store in a bucket.
#[derive(Debug)]
pub struct S3 {
    client: Client,
    settings: S3Settings,
    pace: Pace,
}

impl S3 {
    /// Connects to a bucket and asks for one name, so that a wrong address or credential is told here.
    ///
    /// # Errors
    /// [`Error::NoBucket`], [`Error::Denied`], [`Error::Clock`], [`Error::Rejected`], [`Error::Authority`],
    /// [`Error::Unavailable`].
    pub async fn open(settings: S3Settings) -> Result<Self> {
        let client = connect::client(&settings).await?;
        let pace = Pace::new(settings.requests_per_second);
        let patience =
            Patience { attempts: FIRST_ATTEMPTS.min(settings.patience.attempts), ..settings.patience };
        let store = Self { client, settings, pace };
        store.first_name(patience).await?;
        Ok(store)
    }

    /// The name of an object in the bucket.
    fn name(&self, key: &str) -> String {
        match self.settings.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    fn retry(&self, operation: &'static str, key: &str) -> Retry {
        self.retry_with(operation, key, self.settings.patience)
    }

    fn retry_with(&self, operation: &'static str, key: &str, patience: Patience) -> Retry {
        Retry::new(self.task(operation, key), patience)
    }

    fn task(&self, operation: &'static str, key: &str) -> Task {
        Task { store: self.describe(), operation, key: key.to_owned() }
    }

    /// One attempt of a request that moves so many bytes, when its turn has come.
    async fn attempt<T, E>(
        &self,
        bytes: u64,
        request: impl Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Attempt<T>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.pace.turn().await;
        let limit = self.settings.patience.attempt(bytes);
        let answer = within(limit, Box::pin(request)).await?;
        answer.map_err(|error| Failure::of(&error, this_clock()))
    }

    /// One attempt to store an object, on the condition that the name is free or on none.
    async fn send(&self, key: &Key, bytes: Bytes, if_absent: bool) -> Attempt<()> {
        let length = bytes.len() as u64;
        let lock = self.lock_of(key);
        let request = self
            .client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(self.name(key.as_str()))
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .set_if_none_match(if_absent.then(|| "*".to_owned()))
            .set_storage_class(self.storage_class(key))
            .set_object_lock_mode(lock.map(ObjectLock::mode))
            .set_object_lock_retain_until_date(lock.map(ObjectLock::until))
            .body(ByteStream::from(bytes))
            .customize()
            // Without this the algorithm is named and no checksum sent.
            .config_override(Config::builder().request_checksum_calculation(Checksum::WhenSupported))
            .interceptor(Bounded(ANSWER_BYTES_MAX));
        self.attempt(length, request.send()).await.map(drop)
    }

    fn storage_class(&self, key: &Key) -> Option<StorageClass> {
        let kind = key.as_str().split('/').next().unwrap_or_default();
        let chosen = self.settings.storage_classes.iter().find(|(word, _)| word == kind);
        chosen.map(|(_, class)| StorageClass::from(class.as_str()))
    }

    async fn store(&self, key: &Key, bytes: Bytes) -> Result<()> {
        check_size(self, key, bytes.len() as u64)?;
        let mut retry = self.retry("put", key.as_str());
        loop {
            match self.send(key, bytes.clone(), false).await {
                Ok(()) => return Ok(()),
                Err(failure) => retry.after(failure.of_no_object()).await?,
            }
        }
    }

    async fn store_if_absent(&self, key: &Key, bytes: Bytes) -> Result<Created> {
        check_size(self, key, bytes.len() as u64)?;
        let mut retry = self.retry("create", key.as_str());
        // Whether an attempt may have taken effect unheard: only then can the object in the way be ours.
        let mut lost = false;
        loop {
            let failure = match self.send(key, bytes.clone(), true).await {
                Ok(()) => return Ok(Created::Won),
                Err(failure) if failure.class == Class::Taken && !lost => return Ok(Created::Exists),
                Err(failure) => failure,
            };
            if failure.class == Class::Taken {
                if let Some(created) = self.whose(key, &bytes).await? {
                    return Ok(created);
                }
                // Taken and yet not there: someone deleted it in between, or the server is behind itself.
                retry.after(Failure::new(Class::Conflict, "412, but the object is not there")).await?;
                continue;
            }
            lost |= failure.may_have_landed();
            if let Err(error) = retry.after(failure.of_no_object()).await {
                // Even if nothing more can be sent, a look may settle what became of it.
                let settled = if lost { self.whose(key, &bytes).await } else { Ok(None) };
                return settled.ok().flatten().ok_or(error);
            }
        }
    }

    /// Compares the object under the name with ours, whole; `None` when there is none.
    async fn whose(&self, key: &Key, ours: &Bytes) -> Result<Option<Created>> {
        match self.read(key, GetRange::Whole).await {
            Ok(theirs) if theirs == ours => Ok(Some(Created::Won)),
            Ok(_) => Ok(Some(Created::Exists)),
            // Larger than any object of ours.
            Err(Error::TooLarge { .. }) => Ok(Some(Created::Exists)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes one version of an object, or the object as a bucket without versions has it.
    async fn remove(&self, key: &Key, version: Option<String>) -> Result<()> {
        let mut retry = self.retry("delete", key.as_str());
        loop {
            let request = self
                .client
                .delete_object()
                .bucket(&self.settings.bucket)
                .key(self.name(key.as_str()))
                .set_version_id(version.clone())
                .customize()
                .interceptor(Bounded(ANSWER_BYTES_MAX));
            match self.attempt(0, request.send()).await {
                Ok(_) => return Ok(()),
                Err(failure) if failure.class == Class::Missing => return Ok(()),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }
}

/// Gives up waiting after `limit`.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Attempt<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Failure::timeout(limit))
}

fn this_clock() -> SystemTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "it is this host's clock that is compared with the server's"
    )]
    SystemTime::now()
}

impl ObjectStore for S3 {
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.store(key, bytes))
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: Bytes) -> BoxFuture<'a, Result<Created>> {
        Box::pin(self.store_if_absent(key, bytes))
    }

    fn get<'a>(&'a self, key: &'a Key, range: GetRange) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.read(key, range))
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.size(key))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.page(prefix, after))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        match self.lock_of(key) {
            Some(_) => Box::pin(self.remove_versions(key)),
            None => Box::pin(self.remove(key, None)),
        }
    }

    fn retain<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Retained>> {
        Box::pin(self.lock_on(key))
    }

    fn range_bytes(&self) -> u32 {
        // A pack and its last chunk, so that a pack that is needed whole is one request.
        34 << 20
    }

    fn describe(&self) -> String {
        self.settings.describe()
    }
}
