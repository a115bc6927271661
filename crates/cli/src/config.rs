//! The configuration file: TOML, every key known, nothing secret inside.
//!
//! A password is never a value here, only the name of a file or of a systemd credential. What a key means
//! together with the command line is settled in [`crate::context`].
//!
//! Invariant: a file with an unknown key, or with a value out of its range, is refused as a whole, with its line.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use aquifer_engine::repository::{Compression, KeepRules};
use aquifer_engine::{Error, Kind, Result};
use serde::{Deserialize, Deserializer};

use crate::args::jobs::QuiesceMode;
use crate::args::values::Size;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) repositories: BTreeMap<String, RepositoryConfig>,
    pub(crate) defaults: Defaults,
    pub(crate) domains: BTreeMap<String, DomainConfig>,
}

/// `[repositories.NAME]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RepositoryConfig {
    pub(crate) url: String,
    pub(crate) log_url: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) password_credential: Option<String>,
}

/// `[defaults]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Defaults {
    /// Name of the repository that is meant when none is given.
    pub(crate) repository: Option<String>,
    /// Budget of one job in bytes.
    #[serde(deserialize_with = "memory")]
    pub(crate) memory: Size,
    /// NBD connections of one disk, where the server offers several; by the line's latency if nothing is said.
    #[serde(deserialize_with = "connections")]
    pub(crate) connections: Option<NonZeroU16>,
    #[serde(deserialize_with = "zstd_level")]
    pub(crate) zstd_level: ZstdLevel,
    /// Whether each chunk is decoded again before it is stored.
    pub(crate) self_check: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            repository: None,
            memory: Size(192 << 20),
            connections: None,
            zstd_level: ZstdLevel::Level(1),
            self_check: true,
        }
    }
}

/// How hard to compress: a number, or the word `auto`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum ZstdLevel {
    Level(i32),
    Name(String),
}

impl ZstdLevel {
    pub(crate) fn compression(&self) -> Compression {
        match self {
            ZstdLevel::Level(level) => Compression::Level(*level),
            ZstdLevel::Name(_) => Compression::Auto,
        }
    }
}

/// `[domains.NAME]`
#[derive(Debug, Clone, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DomainConfig {
    pub(crate) qmp: String,
    pub(crate) agent: Option<String>,
    pub(crate) scratch: Option<PathBuf>,
    pub(crate) scratch_max: Option<Size>,
    pub(crate) nbd_listen: Option<String>,
    pub(crate) tls_certificates: Option<PathBuf>,
    pub(crate) tls_creds: Option<String>,
    pub(crate) quiesce: Option<QuiesceMode>,
    pub(crate) retention: Option<Retention>,
    /// Our name of a disk, and how QEMU names it; a disk without one keeps QEMU's.
    #[serde(default)]
    pub(crate) disks: BTreeMap<String, String>,
}

/// `retention = { daily = 7, weekly = 5 }`: what `prune` keeps of the domain.
#[derive(Debug, Clone, Copy, Default, Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) last: u32,
    pub(crate) hourly: u32,
    pub(crate) daily: u32,
    pub(crate) weekly: u32,
    pub(crate) monthly: u32,
    pub(crate) yearly: u32,
}

impl From<Retention> for KeepRules {
    fn from(retention: Retention) -> Self {
        let Retention { last, hourly, daily, weekly, monthly, yearly } = retention;
        KeepRules { last, hourly, daily, weekly, monthly, yearly }
    }
}

impl Config {
    /// Reads the configuration: the file that was named, else the default one, else nothing at all.
    ///
    /// # Errors
    /// `NotFound` when the named file is missing, `Denied` when it cannot be read, `Invalid` when it is wrong.
    pub(crate) fn load(named: Option<&Path>, default: &Path) -> Result<Self> {
        let path = named.unwrap_or(default);
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, path),
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(Config::default()),
            Err(error) => Err(unreadable(path, error)),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            // Only the parser's own words: the line itself may hold a secret that does not belong there.
            let place = error.span().and_then(|span| text.get(..span.start)).map_or(String::new(), |before| {
                format!(", line {}", before.matches('\n').count() + 1)
            });
            Error::new(Kind::Invalid, format!("configuration {}{place}: {}", path.display(), error.message()))
                .hint("the example config/aquifer.toml shows every key; passwords belong into files of their own")
        })
    }

    /// The names of the configured repositories, for messages.
    pub(crate) fn repository_names(&self) -> String {
        let names: Vec<&str> = self.repositories.keys().map(String::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::PermissionDenied => Kind::Denied,
        ErrorKind::InvalidData => Kind::Invalid,
        _ => Kind::Unavailable,
    };
    Error::caused(kind, error)
        .about(format_args!("configuration {}", path.display()))
        .hint("name another file with --config FILE")
}

/// The smallest budget with which a job still makes progress: some open packs and buffers of the largest chunk.
const MEMORY_MIN: Size = Size(64 << 20);

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Size, D::Error> {
    let size = Size::deserialize(deserializer)?;
    if size < MEMORY_MIN {
        return Err(serde::de::Error::custom(format!(
            "memory = {size} is too small, a job needs {MEMORY_MIN}"
        )));
    }
    Ok(size)
}

fn connections<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<NonZeroU16>, D::Error> {
    match u16::deserialize(deserializer)? {
        count @ 1..=64 => Ok(NonZeroU16::new(count)),
        count => Err(serde::de::Error::custom(format!("connections = {count} is out of range, 1 to 64 are"))),
    }
}

fn zstd_level<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<ZstdLevel, D::Error> {
    let refused = |level: &dyn std::fmt::Display| {
        serde::de::Error::custom(format!(
            "zstd_level = {level} is out of range: 1 to 19, -1 to -100 for faster, or \"auto\""
        ))
    };
    let level = ZstdLevel::deserialize(deserializer);
    match level.map_err(|_| serde::de::Error::custom("zstd_level is a whole number or \"auto\""))? {
        ZstdLevel::Level(level) if !matches!(level, -100..=-1 | 1..=19) => Err(refused(&level)),
        ZstdLevel::Name(name) if name != "auto" => Err(refused(&format_args!("{name:?}"))),
        level => Ok(level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/etc/aquifer/aquifer.toml"))
    }

    fn refusal(text: &str) -> String {
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        error.message().to_owned()
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.defaults.memory, Size(192 << 20));
        assert_eq!(config.defaults.connections, None);
        assert_eq!(config.defaults.zstd_level, ZstdLevel::Level(1));
        assert!(config.defaults.self_check);
        assert!(config.repositories.is_empty() && config.domains.is_empty());
    }

    #[test]
    fn the_shipped_example_holds_nothing_and_names_every_key() {
        let example = include_str!("../../../config/aquifer.toml");
        assert!(parse(example).unwrap().domains.is_empty());

        // A comment begins with `# `, a key that is commented out with `#`.
        let with_keys: String = example
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .map(|line| format!("{line}\n"))
            .collect();
        let config = parse(&with_keys).unwrap();
        insta::assert_debug_snapshot!(config);
    }

    #[test]
    fn the_example_domains_are_accepted() {
        for example in [
            include_str!("../../../config/domain-plain-qemu.toml"),
            include_str!("../../../config/domain-libvirt.toml"),
            include_str!("../../../config/domain-proxmox.toml"),
        ] {
            assert_eq!(parse(example).unwrap().domains.len(), 1);
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        insta::assert_snapshot!(refusal("[defaults]\nmemory = \"256MiB\"\nthreads = 4\n"));
    }

    #[test]
    fn a_password_in_the_file_is_refused() {
        insta::assert_snapshot!(refusal("[repositories.main]\nurl = \"/srv/main\"\npassword = \"secret\"\n"));
    }

    #[test]
    fn a_level_is_a_number_or_auto() {
        let level = |text: &str| parse(text).unwrap().defaults.zstd_level.compression();
        assert_eq!(level("[defaults]\nzstd_level = -5\n"), Compression::Level(-5));
        assert_eq!(level("[defaults]\nzstd_level = \"auto\"\n"), Compression::Auto);
        let told = refusal("[defaults]\nzstd_level = 1.5\n");
        assert!(told.ends_with("line 2: zstd_level is a whole number or \"auto\""), "{told}");
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        insta::assert_snapshot!(refusal("[defaults]\nzstd_level = 30\n"));
        insta::assert_snapshot!(refusal("[defaults]\nzstd_level = \"most\"\n"));
        insta::assert_snapshot!(refusal("[defaults]\nmemory = \"1MiB\"\n"));
        insta::assert_snapshot!(refusal("[defaults]\nconnections = 0\n"));
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error_and_a_missing_default_is_not() {
        let nowhere = Path::new("/nonexistent/aquifer.toml");
        assert_eq!(Config::load(Some(nowhere), nowhere).unwrap_err().kind(), Kind::NotFound);
        assert!(Config::load(None, nowhere).is_ok());
    }
}
