//! What a failed request means: the SDK's errors and the server's codes, sorted into classes.
//!
//! Servers agree on few codes, so the HTTP status decides where a code is unknown. Not here: what is done about it.
//!
//! Invariant: `Missing` is said only when the server answered 404 and did not blame the bucket.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use tokio_rustls::rustls;

use super::retry::Task;
use crate::Error;

/// From which difference of the clocks on a refusal is blamed on them. Servers allow 15 minutes, some 5.
const SKEW_MIN: Duration = Duration::from_secs(240);

/// The longest message of a server that is repeated, in characters.
const MESSAGE_MAX: usize = 300;

/// What a failure means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Too many requests: come back later.
    Throttled,
    /// The server failed.
    Server,
    /// No answer, half of one, or one that cannot be read.
    Network,
    /// Another write of the same key was under way.
    Conflict,
    /// No such object.
    Missing,
    /// No such bucket.
    NoBucket,
    /// The condition of a create does not hold: the name is taken.
    Taken,
    /// The object ends before the range.
    Range,
    /// Rights or credentials are lacking.
    Denied,
    /// The clocks differ too much for a signature.
    Skewed,
    /// A quota or a disk is full.
    NoSpace,
    /// The request is wrong for this server, and will be the next time.
    Rejected,
}

/// How one attempt ended.
pub(super) type Attempt<T> = std::result::Result<T, Failure>;

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: Class,
    pub(super) told: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told)
    }
}

impl Failure {
    pub(super) fn new(class: Class, told: impl Into<String>) -> Self {
        Self { class, told: told.into() }
    }

    /// A failure of the connection, told by an error and its causes.
    pub(super) fn network(error: &dyn StdError) -> Self {
        Self::new(Class::Network, chain(error))
    }

    /// An attempt that took too long.
    pub(super) fn timeout(limit: Duration) -> Self {
        Self::new(Class::Network, format!("no end within {} s", limit.as_secs_f64().round()))
    }

    /// The failure of a request that does not ask for an object: a 404 to it speaks of something else.
    pub(super) fn of_no_object(self) -> Self {
        match self.class {
            Class::Missing => Self { class: Class::Rejected, ..self },
            _ => self,
        }
    }

    /// Whether the request may have taken effect, or may still.
    pub(super) fn may_have_landed(&self) -> bool {
        matches!(self.class, Class::Throttled | Class::Server | Class::Network)
    }

    /// Sorts an error of the SDK; `now` is this host's clock.
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>, now: SystemTime) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let (raw, meta) = (answer.raw(), answer.err());
                let headers = raw.headers();
                let refusal = Refusal {
                    status: raw.status().as_u16(),
                    code: meta.code(),
                    message: meta.message(),
                    ahead: headers.get("date").and_then(|date| ahead(now, date)),
                    region: headers.get("x-amz-bucket-region"),
                };
                refusal.sort()
            }
            // An answer of a server in trouble is often no XML; its status still counts.
            SdkError::ResponseError(answer) if answer.raw().status().as_u16() >= 400 => {
                let status = answer.raw().status().as_u16();
                Refusal { status, code: None, message: None, ahead: None, region: None }.sort()
            }
            SdkError::ConstructionFailure(_) => Self::new(Class::Rejected, chain(error)),
            _ => Self::connection(error),
        }
    }

    fn connection(error: &(dyn StdError + 'static)) -> Self {
        let told = chain(error);
        if causes(error).any(|cause| cause.is::<CredentialsError>()) {
            return Self::new(Class::Denied, format!("no usable credentials: {told}"));
        }
        if causes(error).any(is_bad_certificate) {
            let hint = "the server's certificate is not trusted: name its authority with ca-file=FILE";
            return Self::new(Class::Rejected, format!("{hint} ({told})"));
        }
        Self::new(Class::Network, told)
    }

    /// The operation's error.
    pub(super) fn into_error(self, task: &Task) -> Error {
        let Task { store, operation, key } = task.clone();
        let reason = self.told;
        match self.class {
            Class::Missing => Error::NotFound { store, key },
            Class::NoBucket => Error::NoBucket { store },
            Class::NoSpace => Error::NoSpace { store, key },
            Class::Denied => {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
                Error::Denied { store, operation, key, source }
            }
            Class::Skewed => Error::Clock { store, operation, key, reason },
            Class::Throttled | Class::Server | Class::Network | Class::Conflict => {
                Error::Unavailable { store, operation, key, reason }
            }
            Class::Taken | Class::Range | Class::Rejected => {
                Error::Rejected { store, operation, key, reason }
            }
        }
    }
}

/// What a server answered instead of success.
#[derive(Debug)]
struct Refusal<'a> {
    status: u16,
    code: Option<&'a str>,
    message: Option<&'a str>,
    /// By how many seconds this host's clock is ahead of the server's.
    ahead: Option<i64>,
    /// The region that the bucket is in.
    region: Option<&'a str>,
}

impl Refusal<'_> {
    fn sort(&self) -> Failure {
        let class = self.class();
        let mut told = self.status.to_string();
        if let Some(code) = self.code {
            told = format!("{told} {}", shorten(code));
        }
        if let Some(message) = self.message.filter(|message| !message.is_empty()) {
            told = format!("{told}: {}", shorten(message));
        }
        match (class, self.ahead, self.region) {
            (Class::Skewed, Some(ahead), _) => told = format!("{} ({told})", clocks(ahead)),
            (Class::Rejected, _, Some(region)) => told = format!("{told} (the bucket is in region {region})"),
            _ => {}
        }
        Failure::new(class, told)
    }

    fn class(&self) -> Class {
        let far = self.ahead.is_some_and(|ahead| ahead.unsigned_abs() >= SKEW_MIN.as_secs());
        if let Some(class) = self.code.and_then(class_of_code) {
            return if class == Class::Denied && far { Class::Skewed } else { class };
        }
        match self.status {
            401 | 403 if far => Class::Skewed,
            401 | 403 => Class::Denied,
            404 => Class::Missing,
            408 => Class::Network,
            409 => Class::Conflict,
            412 => Class::Taken,
            416 => Class::Range,
            429 => Class::Throttled,
            501 => Class::Rejected,
            503 => Class::Throttled,
            507 => Class::NoSpace,
            500..=599 => Class::Server,
            _ => Class::Rejected,
        }
    }
}

/// Codes whose meaning their status does not tell.
fn class_of_code(code: &str) -> Option<Class> {
    Some(match code {
        "NoSuchBucket" => Class::NoBucket,
        "RequestTimeTooSkewed" => Class::Skewed,
        "SlowDown" | "Throttling" | "ThrottlingException" | "TooManyRequests" | "RequestLimitExceeded" => {
            Class::Throttled
        }
        "InternalError" | "ServiceUnavailable" => Class::Server,
        "RequestTimeout" | "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" => Class::Network,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "AuthorizationHeaderMalformed" => Class::Denied,
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => Class::NoSpace,
        _ => return None,
    })
}

/// By how many seconds `now` is ahead of the time in a Date header.
fn ahead(now: SystemTime, date: &str) -> Option<i64> {
    let theirs = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?.secs();
    DateTime::from(now).secs().checked_sub(theirs)
}

fn clocks(ahead: i64) -> String {
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    format!("this host's clock is {} s {side} the server's: set it right, best by NTP", ahead.unsigned_abs())
}

/// A server's words, without line ends and not too many.
fn shorten(text: &str) -> String {
    text.chars().take(MESSAGE_MAX).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The error with its causes, each said once.
fn chain(error: &dyn StdError) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}

/// I/O errors hide what they wrap from [`StdError::source`], sometimes twice.
fn is_bad_certificate(cause: &(dyn StdError + 'static)) -> bool {
    match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => is_bad_certificate(inner),
        None => matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: Option<&'static str>) -> Refusal<'static> {
        Refusal { status, code, message: Some("words"), ahead: Some(1), region: None }
    }

    #[test]
    fn a_code_decides_and_else_the_status() {
        for (status, code, class) in [
            (404, Some("NoSuchKey"), Class::Missing),
            (404, None, Class::Missing),
            (404, Some("NoSuchBucket"), Class::NoBucket),
            (412, Some("PreconditionFailed"), Class::Taken),
            (409, Some("ConditionalRequestConflict"), Class::Conflict),
            (416, Some("InvalidRange"), Class::Range),
            (503, Some("SlowDown"), Class::Throttled),
            (503, Some("ServiceUnavailable"), Class::Server),
            (503, None, Class::Throttled),
            (429, None, Class::Throttled),
            (500, Some("InternalError"), Class::Server),
            (502, None, Class::Server),
            (400, Some("RequestTimeout"), Class::Network),
            (400, Some("BadDigest"), Class::Network),
            (400, Some("ExpiredToken"), Class::Denied),
            (403, Some("InvalidAccessKeyId"), Class::Denied),
            (403, None, Class::Denied),
            (507, None, Class::NoSpace),
            (501, Some("NotImplemented"), Class::Rejected),
            (301, Some("PermanentRedirect"), Class::Rejected),
            (400, Some("InvalidStorageClass"), Class::Rejected),
        ] {
            assert_eq!(refusal(status, code).sort().class, class, "{status} {code:?}");
        }
    }

    #[test]
    fn a_refusal_under_clocks_far_apart_is_blamed_on_them_with_the_figure() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let date = "Sun, 09 Sep 2001 02:46:40 GMT";
        assert_eq!(ahead(now, date), Some(-3600));
        let late = Refusal { ahead: ahead(now, date), ..refusal(403, Some("SignatureDoesNotMatch")) }.sort();
        assert_eq!(late.class, Class::Skewed);
        assert!(late.to_string().contains("3600 s behind the server's"), "{late}");
        let named = Refusal { ahead: None, ..refusal(403, Some("RequestTimeTooSkewed")) }.sort();
        assert_eq!(named.class, Class::Skewed);
        let missing = Refusal { ahead: Some(9999), ..refusal(404, Some("NoSuchKey")) }.sort();
        assert_eq!(missing.class, Class::Missing);
    }

    #[test]
    fn a_wrong_region_is_named() {
        let elsewhere = Refusal { region: Some("eu-west-1"), ..refusal(301, Some("PermanentRedirect")) };
        assert!(elsewhere.sort().to_string().ends_with("(the bucket is in region eu-west-1)"));
    }

    #[test]
    fn an_endless_message_is_cut_and_has_one_line() {
        let long = "a\nb".repeat(10_000);
        let told = Refusal { message: Some(&long), ..refusal(400, None) }.sort().to_string();
        assert!(told.len() < 320 && !told.contains('\n'), "{}", told.len());
    }
}
