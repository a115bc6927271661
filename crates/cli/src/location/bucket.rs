//! `s3://BUCKET/PREFIX?…`: a bucket, and in the query how to reach it.
//!
//! Everything about one store is in its URL, so that the packs' and the log's may be in different places. Secrets are
//! never in it: they come from the AWS chain or from a file that it names.
//!
//! Invariant: what is not understood is refused; a misspelt setting is never passed over.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use aquifer_engine::repository::store::{LockMode, ObjectLock, S3Settings};
use aquifer_engine::{Error, Kind};

use super::percent_decode;
use crate::args::values::Span;

/// What the query may say, for messages.
const SETTINGS: &str = "endpoint, region, path-style, profile, credentials-file, ca-file, storage-class, \
                        object-lock, requests-per-second";

/// Kinds of objects that may have a storage class of their own: what is large, and not read at every start.
const CLASSED: [&str; 3] = ["index", "packs", "par"];

/// Storage classes from which nothing can be read without asking for it hours before.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// How long a lock may last; a hundred years is what Amazon takes at most.
const LOCK_PERIODS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(36_500 * 86_400);

/// Reads what follows `s3://` in `text`.
pub(super) fn read(text: &str, rest: &str) -> Result<S3Settings, Error> {
    let wrong = |what: &str| {
        Error::new(Kind::Invalid, format!("{text}: {what}"))
            .hint("write s3://BUCKET/PREFIX, and settings as ?endpoint=https://HOST&region=REGION")
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if !is_bucket(bucket) {
        return Err(wrong("a bucket's name has 3 to 63 letters, digits, dots and hyphens"));
    }
    let prefix = prefix.trim_end_matches('/');
    if !is_prefix(prefix) {
        return Err(wrong(
            "a prefix is made of words of letters, digits and -_. with single slashes between",
        ));
    }
    let mut settings = S3Settings::new(bucket, prefix);
    let mut path_style = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value).and_then(|bytes| String::from_utf8(bytes).ok());
        let value = value.filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| wrong(&format!("the setting {name} has no readable value")))?;
        match name {
            "endpoint" => settings.endpoint = Some(endpoint(value).map_err(|what| wrong(&what))?),
            "region" => settings.region = Some(value),
            "path-style" => path_style = Some(flag(&value).map_err(|what| wrong(&what))?),
            "profile" => settings.profile = Some(value),
            "credentials-file" => settings.credentials_file = Some(PathBuf::from(value)),
            "ca-file" => settings.ca_file = Some(PathBuf::from(value)),
            "storage-class" => {
                settings.storage_classes.push(storage_class(&value).map_err(|what| wrong(&what))?);
            }
            "object-lock" => {
                settings.object_lock = Some(object_lock(&value).map_err(|what| wrong(&what))?);
            }
            "requests-per-second" => {
                settings.requests_per_second = Some(rate(&value).map_err(|what| wrong(&what))?);
            }
            _ => return Err(wrong(&format!("unknown setting `{name}`; known are {SETTINGS}"))),
        }
    }
    // Servers of one's own seldom have a host name for each bucket.
    settings.path_style = path_style.unwrap_or(settings.endpoint.is_some());
    Ok(settings)
}

fn is_bucket(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    (3..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with(['.', '-'])
        && !name.ends_with(['.', '-'])
}

fn is_prefix(prefix: &str) -> bool {
    let word = |word: &str| {
        !matches!(word, "" | "." | "..")
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    prefix.is_empty() || prefix.split('/').all(word)
}

fn endpoint(value: String) -> Result<String, String> {
    let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let host = host.map(|host| host.trim_end_matches('/'));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['/', '@', '?', '#']) => {
            Ok(value.trim_end_matches('/').to_owned())
        }
        _ => Err(format!("endpoint={value} is not https://HOST[:PORT] or http://HOST[:PORT]")),
    }
}

fn flag(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("path-style={value} is neither true nor false"))
}

fn rate(value: &str) -> Result<u32, String> {
    let rate = value.parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| format!("requests-per-second={value} is not a whole number above 0"))
}

/// `KIND:CLASS`
fn storage_class(value: &str) -> Result<(String, String), String> {
    let (kind, class) = value.split_once(':').unwrap_or((value, ""));
    if !CLASSED.contains(&kind) || class.is_empty() {
        return Err(format!(
            "storage-class={value} is not KIND:CLASS with one of the kinds {}",
            CLASSED.join(", ")
        ));
    }
    if ARCHIVES.contains(&class) {
        return Err(format!(
            "objects of the class {class} cannot be read when a backup or a restore needs them"
        ));
    }
    Ok((kind.to_owned(), class.to_owned()))
}

/// `MODE:PERIOD`
fn object_lock(value: &str) -> Result<ObjectLock, String> {
    let (mode, period) = value.split_once(':').unwrap_or((value, ""));
    let mode = match mode {
        "governance" => Some(LockMode::Governance),
        "compliance" => Some(LockMode::Compliance),
        _ => None,
    };
    let period =
        period.parse().ok().map(|Span(period)| period).filter(|period| LOCK_PERIODS.contains(period));
    mode.zip(period).map(|(mode, period)| ObjectLock { mode, period }).ok_or_else(|| {
        format!(
            "object-lock={value} is not MODE:PERIOD with governance or compliance, and a period from 1s to 36500d"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<S3Settings, Error> {
        read(text, text.strip_prefix("s3://").unwrap())
    }

    #[test]
    fn a_bucket_alone_is_amazons_and_whole() {
        assert_eq!(url("s3://offsite").unwrap(), S3Settings::new("offsite", ""));
        assert_eq!(url("s3://offsite/").unwrap(), S3Settings::new("offsite", ""));
        assert_eq!(url("s3://off.site/a/b-c_d/").unwrap(), S3Settings::new("off.site", "a/b-c_d"));
    }

    #[test]
    fn the_query_says_how_to_reach_it() {
        let text = "s3://offsite/main?endpoint=http://[::1]:9000/&region=garage&profile=backup\
                    &credentials-file=/etc/a%20b&ca-file=/etc/ca.pem&requests-per-second=50\
                    &storage-class=packs:STANDARD_IA&storage-class=index:STANDARD&object-lock=compliance:30d";
        let mut expected = S3Settings::new("offsite", "main");
        expected.endpoint = Some("http://[::1]:9000".into());
        expected.region = Some("garage".into());
        expected.profile = Some("backup".into());
        expected.credentials_file = Some("/etc/a b".into());
        expected.ca_file = Some("/etc/ca.pem".into());
        expected.requests_per_second = Some(50);
        expected.storage_classes =
            vec![("packs".into(), "STANDARD_IA".into()), ("index".into(), "STANDARD".into())];
        let period = Duration::from_secs(30 * 86_400);
        expected.object_lock = Some(ObjectLock { mode: LockMode::Compliance, period });
        expected.path_style = true;
        assert_eq!(url(text).unwrap(), expected);
    }

    #[test]
    fn the_bucket_is_in_the_path_at_servers_of_ones_own_unless_told_otherwise() {
        assert!(!url("s3://offsite?region=eu-west-1").unwrap().path_style);
        assert!(url("s3://offsite?path-style=true").unwrap().path_style);
        assert!(!url("s3://offsite?endpoint=https://s3.example.net&path-style=false").unwrap().path_style);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, word) in [
            ("s3://", "3 to 63"),
            ("s3://UPPER/x", "3 to 63"),
            ("s3:///x", "3 to 63"),
            ("s3://offsite/a//b", "single slashes"),
            ("s3://offsite/../b", "single slashes"),
            ("s3://offsite/a b", "single slashes"),
            ("s3://offsite?endpont=https://x", "`endpont`"),
            ("s3://offsite?endpoint=s3.example.net", "https://HOST"),
            ("s3://offsite?endpoint=https://user@host", "https://HOST"),
            ("s3://offsite?endpoint=https://host/path", "https://HOST"),
            ("s3://offsite?region=", "region"),
            ("s3://offsite?region=%zz", "region"),
            ("s3://offsite?path-style=yes", "path-style=yes"),
            ("s3://offsite?requests-per-second=0", "above 0"),
            ("s3://offsite?object-lock=compliance", "MODE:PERIOD"),
            ("s3://offsite?object-lock=strict:30d", "governance or compliance"),
            ("s3://offsite?object-lock=governance:0s", "from 1s"),
            ("s3://offsite?object-lock=governance:36501d", "36500d"),
            ("s3://offsite?storage-class=STANDARD_IA", "KIND:CLASS"),
            ("s3://offsite?storage-class=log:STANDARD_IA", "packs"),
            ("s3://offsite?storage-class=packs:GLACIER", "cannot be read"),
        ] {
            let error = url(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(error.message().contains(word), "{text}: {error}");
        }
    }
}
