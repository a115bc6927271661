//! Where a repository's stores are: what `-r`, `--log` and `url = …` say, turned into places.
//!
//! Not here: opening them.

mod bucket;

use std::path::PathBuf;
use std::str::FromStr;

use aquifer_engine::repository::store::S3Settings;
use aquifer_engine::{Error, Kind};

/// One store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    /// A directory.
    Directory(PathBuf),
    /// A bucket, or what lies under a prefix in one.
    Bucket(Box<S3Settings>),
}

impl FromStr for StoreUrl {
    type Err = Error;

    /// Reads a path, a `file://` URL or an `s3://` URL.
    ///
    /// # Errors
    /// `Invalid` when it is none of these.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::new(Kind::Invalid, "the repository's URL is empty").hint("give a path"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(StoreUrl::Directory(PathBuf::from(text)));
        };
        match scheme {
            "file" => file_path(text, rest),
            "s3" => bucket::read(text, rest).map(|settings| StoreUrl::Bucket(Box::new(settings))),
            _ => Err(Error::new(Kind::Invalid, format!("{text}: unknown kind of store `{scheme}://`"))
                .hint("give a path, file:///PATH or s3://BUCKET/PREFIX")),
        }
    }
}

/// The path of `file://…` (RFC 8089): an absolute path, its `%XX` decoded, the host empty or `localhost`.
fn file_path(text: &str, rest: &str) -> Result<StoreUrl, Error> {
    let wrong = |what: &str| Error::new(Kind::Invalid, format!("{text}: {what}")).hint("write file:///PATH");
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(wrong("a file URL needs an absolute path and no host"));
    }
    let decoded = percent_decode(path).ok_or_else(|| wrong("broken %XX in the path"))?;
    let path = String::from_utf8(decoded).map_err(|_| wrong("the path is not UTF-8"))?;
    Ok(StoreUrl::Directory(PathBuf::from(path)))
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
            digit(bytes.next()?)? * 16 + digit(bytes.next()?)?
        } else {
            byte
        };
        if byte == 0 {
            return None;
        }
        decoded.push(byte);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &str) -> StoreUrl {
        StoreUrl::Directory(PathBuf::from(path))
    }

    #[test]
    fn a_path_and_a_file_url_name_the_same_directory() {
        assert_eq!("/srv/a b".parse::<StoreUrl>().unwrap(), directory("/srv/a b"));
        assert_eq!("file:///srv/a%20b".parse::<StoreUrl>().unwrap(), directory("/srv/a b"));
        assert_eq!("file://localhost/srv".parse::<StoreUrl>().unwrap(), directory("/srv"));
        assert_eq!("relative/path".parse::<StoreUrl>().unwrap(), directory("relative/path"));
    }

    #[test]
    fn a_file_url_with_a_host_or_a_broken_escape_is_refused() {
        for wrong in ["file://server/share", "file:///a%2", "file:///a%zz", "file:///a%00b", "file:///%ff"] {
            let error = wrong.parse::<StoreUrl>().unwrap_err();
            assert_eq!(
                (error.kind(), error.hint_text()),
                (Kind::Invalid, Some("write file:///PATH")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_bucket_is_a_store_and_a_strange_scheme_is_invalid() {
        let expected = StoreUrl::Bucket(Box::new(S3Settings::new("offsite", "aquifer")));
        assert_eq!("s3://offsite/aquifer".parse::<StoreUrl>().unwrap(), expected);
        assert_eq!("ftp://host/x".parse::<StoreUrl>().unwrap_err().kind(), Kind::Invalid);
        assert_eq!("".parse::<StoreUrl>().unwrap_err().kind(), Kind::Invalid);
    }
}
