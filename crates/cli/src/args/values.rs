//! The small values of the command line and of the configuration: sizes, rates, shares, spans of time, `NAME=VALUE`
//! pairs.
//!
//! Invariant: a value that parses is usable as it stands; the messages name what was expected.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

/// A number of bytes: `128KiB`, `1.5GiB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Size(pub(crate) u64);

/// A number of bytes per second: `20MiB` or `20MiB/s`; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate(pub(crate) u64);

/// A share of a whole in percent: `5%`; from 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Percent(pub(crate) u8);

/// A span of time in whole units: `0s`, `90s`, `30m`, `1h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// `NAME=VALUE`; only the first `=` counts, and the name is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// `KEY=VALUE`; only the first `=` counts, the key is not empty, the value may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.parse::<bytesize::ByteSize>().map_err(|_| {
            format!("`{text}` is not a size; write bytes or a unit, such as 4096, 128KiB or 1.5GiB")
        })?;
        Ok(Size(size.as_u64()))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(bytes) = text.strip_suffix("/s").unwrap_or(text).parse().map_err(|_| {
            format!("`{text}` is not a rate; write bytes per second, such as 20MiB or 20MiB/s")
        })?;
        if bytes == 0 {
            return Err("a rate of zero would never end; leave the option out for no limit".to_owned());
        }
        Ok(Rate(bytes))
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%').unwrap_or(text).parse() {
            Ok(share @ 1..=100) => Ok(Percent(share)),
            _ => Err(format!("`{text}` is not a share; write 1% to 100%")),
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a span of time; write a whole number and a unit: 90s, 30m, 1h or 2d");
        let (count, unit_s) = [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60)]
            .into_iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
            .ok_or_else(wrong)?;
        // A sign would be taken for part of the number.
        if !count.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(wrong());
        }
        let seconds = count.parse::<u64>().ok().and_then(|count| count.checked_mul(unit_s));
        Ok(Span(Duration::from_secs(seconds.ok_or_else(wrong)?)))
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Ok(Named { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("`{text}` has to be NAME=VALUE, such as vda=…")),
        }
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Label { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("`{text}` has to be KEY=VALUE, such as class=nightly")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_carry_a_unit() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("128KiB".parse(), Ok(Size(128 << 10)));
        assert_eq!("1.5GiB".parse(), Ok(Size(3 << 29)));
        assert_eq!("20MB".parse(), Ok(Size(20_000_000)));
    }

    #[test]
    fn a_size_without_sense_is_refused_with_an_example() {
        assert_eq!(
            "many".parse::<Size>().unwrap_err(),
            "`many` is not a size; write bytes or a unit, such as 4096, 128KiB or 1.5GiB"
        );
        assert!("-1KiB".parse::<Size>().is_err());
    }

    #[test]
    fn a_rate_may_say_per_second_and_is_never_zero() {
        assert_eq!("20MiB".parse(), Ok(Rate(20 << 20)));
        assert_eq!("20MiB/s".parse(), Ok(Rate(20 << 20)));
        assert!("0".parse::<Rate>().unwrap_err().contains("would never end"));
    }

    #[test]
    fn a_share_is_a_whole_number_from_one_to_a_hundred() {
        assert_eq!("25%".parse(), Ok(Percent(25)));
        assert_eq!("100".parse(), Ok(Percent(100)));
        for wrong in ["0%", "101%", "2.5%", "x"] {
            assert!(wrong.parse::<Percent>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_span_of_time_is_a_whole_number_with_a_unit() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("30m", 1800), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
    }

    #[test]
    fn a_span_of_time_without_sense_is_refused_with_an_example() {
        assert_eq!(
            "60".parse::<Span>().unwrap_err(),
            "`60` is not a span of time; write a whole number and a unit: 90s, 30m, 1h or 2d"
        );
        for wrong in
            ["", "h", "-1h", "+1h", "1.5h", "1 h", "1w", "99999999999999999999s", "9999999999999999999d"]
        {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pair_is_split_at_its_first_equals_sign() {
        let named: Named = "vda=nbd+unix:///?socket=/run/x".parse().unwrap();
        assert_eq!((named.name.as_str(), named.value.as_str()), ("vda", "nbd+unix:///?socket=/run/x"));
        for wrong in ["vda", "=x", "vda="] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_label_may_have_an_empty_value_but_no_empty_key() {
        assert_eq!("class=".parse(), Ok(Label { key: "class".to_owned(), value: String::new() }));
        assert!("=nightly".parse::<Label>().is_err());
    }
}
