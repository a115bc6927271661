//! What has to be known to reach a bucket, and how patient to be with it.
//!
//! Not here: reading these from a URL (the command line does), and credentials, which the AWS chain finds.

use std::path::PathBuf;
use std::time::Duration;

use super::lock::ObjectLock;

/// Where a bucket is and how to talk to its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// The bucket, which must exist.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
    /// `http://HOST:PORT` or `https://…`; `None` for Amazon's own.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; `None` for the one of the environment or profile, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is named in the path of a request and not in its host name.
    pub path_style: bool,
    /// The profile of the AWS configuration files, or of `credentials_file`; `None` for the default one.
    pub profile: Option<String>,
    /// A file in the form of `~/.aws/credentials` that alone gives the access key; `None` for the AWS chain.
    pub credentials_file: Option<PathBuf>,
    /// PEM file with the certificates of own authorities, which are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Storage class by first word of the key (`packs`, `index`); the bucket's default for all others.
    pub storage_classes: Vec<(String, String)>,
    /// What the bucket shall keep from being deleted, and for how long; `None` to leave that to the bucket.
    pub object_lock: Option<ObjectLock>,
    /// Most requests per second over all operations of this store; `None` for no cap.
    pub requests_per_second: Option<u32>,
    /// How long to go on after failures.
    pub patience: Patience,
}

impl S3Settings {
    /// The settings of a bucket at Amazon's own endpoint.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            endpoint: None,
            region: None,
            path_style: false,
            profile: None,
            credentials_file: None,
            ca_file: None,
            storage_classes: Vec::new(),
            object_lock: None,
            requests_per_second: None,
            patience: Patience::default(),
        }
    }

    /// How messages name the store.
    pub(super) fn describe(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let place = format!("s3://{}{slash}{}", self.bucket, self.prefix);
        match &self.endpoint {
            Some(endpoint) => format!("{place} at {endpoint}"),
            None => place,
        }
    }
}

/// How often and how long an operation is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Most attempts of one operation, the first included.
    pub attempts: u32,
    /// The first wait after a network failure. It doubles with each attempt; other failures wait a multiple of it.
    pub backoff: Duration,
    /// How long the server may take to answer, beside the time that the bytes need.
    pub answer: Duration,
    /// The slowest line, in bytes per second, on which a transfer is not given up.
    pub slowest_bytes: u64,
}

impl Default for Patience {
    /// Eight attempts, which a server that throttles stretches to more than a minute.
    fn default() -> Self {
        Self {
            attempts: 8,
            backoff: Duration::from_millis(100),
            answer: Duration::from_secs(60),
            slowest_bytes: 32 << 10,
        }
    }
}

impl Patience {
    /// How long one attempt that moves so many bytes may take.
    pub(super) fn attempt(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_secs(bytes / self.slowest_bytes.max(1))
    }
}
