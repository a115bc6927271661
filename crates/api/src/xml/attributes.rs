//! The attributes of one tag, with the place of each value.
//!
//! The XML library hands out a tag as one piece. It is taken apart here because its own iterator gives no places, looks
//! for repeated names in quadratic time, and lets `<` and missing blanks pass.
//!
//! Invariant: what is accepted is well-formed, and an attribute's `value_at` is the span between its quotes.

use std::borrow::Cow;
use std::ops::Range;

use quick_xml::XmlVersion;
use quick_xml::escape::EscapeError;
use quick_xml::events::attributes::Attribute as Raw;
use quick_xml::name::QName;

use super::error::{Read, XmlFault};

/// Most attributes of one element: above what any document has, below what makes comparing all of them slow.
const ATTRIBUTES_MAX: usize = 64;

/// One attribute.
#[derive(Debug, Clone)]
pub(crate) struct Attribute<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: String,
    /// Where the name begins.
    pub(crate) at: usize,
    /// The bytes between the quotes.
    pub(crate) value_at: Range<usize>,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// True for what XML allows as a name, with every letter beyond ASCII taken for one.
pub(crate) fn is_name(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':' || !c.is_ascii();
    let rest = |c: char| first(c) || c.is_ascii_digit() || c == '-' || c == '.';
    text.starts_with(first) && text.chars().all(rest)
}

fn malformed<T>(at: usize, what: impl Into<String>) -> Read<T> {
    Err(XmlFault::Malformed(what.into()).at(at))
}

/// Takes the part of a tag behind its name apart; `start..end` is that part, without `/` and `>`.
pub(crate) fn read(document: &str, start: usize, end: usize) -> Read<Vec<Attribute<'_>>> {
    let bytes = document.as_bytes();
    let skip = |mut at: usize, test: fn(u8) -> bool| {
        while at < end && test(bytes[at]) {
            at += 1;
        }
        at
    };
    let mut found: Vec<Attribute<'_>> = Vec::new();
    let mut at = start;
    loop {
        let name_at = skip(at, is_space);
        if name_at == end {
            return Ok(found);
        }
        if name_at == at {
            return malformed(at, "a blank is missing before an attribute");
        }
        let name_end = skip(name_at, |byte| byte != b'=' && !is_space(byte));
        let name = &document[name_at..name_end];
        if !is_name(name) {
            return malformed(name_at, format!("{:?} is no name of an attribute", short(name)));
        }
        let equals = skip(name_end, is_space);
        if equals == end || bytes[equals] != b'=' {
            return malformed(name_at, format!("attribute {} has no value", short(name)));
        }
        let quote = skip(equals + 1, is_space);
        if quote == end || !matches!(bytes[quote], b'"' | b'\'') {
            return malformed(name_at, format!("the value of attribute {} has no quotes", short(name)));
        }
        let length = document[quote + 1..end].find(char::from(bytes[quote]));
        let Some(length) = length else {
            return malformed(name_at, format!("the value of attribute {} has no end", short(name)));
        };
        let value_at = quote + 1..quote + 1 + length;
        at = value_at.end + 1;
        if found.iter().any(|other| other.name == name) {
            return malformed(name_at, format!("attribute {} is there twice", short(name)));
        }
        if found.len() == ATTRIBUTES_MAX {
            return malformed(name_at, format!("an element has more than {ATTRIBUTES_MAX} attributes"));
        }
        found.push(Attribute { name, value: value(document, &value_at, name)?, at: name_at, value_at });
    }
}

/// The value with its references resolved and its white space normalised as XML 1.0 says.
fn value(document: &str, span: &Range<usize>, name: &str) -> Read<String> {
    let raw = &document[span.clone()];
    if raw.contains('<') {
        return malformed(span.start, format!("`<` in the value of attribute {}", short(name)));
    }
    let attribute = Raw { key: QName(name), value: Cow::Borrowed(raw) };
    match attribute.normalized_value(XmlVersion::Explicit1_0) {
        Ok(value) => match value.chars().find(|c| !super::is_char(*c)) {
            Some(bad) => Err(XmlFault::Character(bad).at(span.start)),
            None => Ok(value.into_owned()),
        },
        Err(quick_xml::Error::Escape(EscapeError::UnrecognizedEntity(_, entity))) => {
            Err(XmlFault::Entity(short(&entity)).at(span.start))
        }
        Err(error) => malformed(span.start, short(&error.to_string())),
    }
}

/// The first 100 characters, so that a message stays one that a person reads.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
