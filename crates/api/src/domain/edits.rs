//! Replacements in a text, and the search for what they forgot.
//!
//! Invariant: replacements do not overlap; what they do not cover is copied byte for byte.

use std::ops::Range;

use quick_xml::escape::escape;

use super::error::{DomainFault, Refuse, Step};
use super::{NewDomain, attribute};
use crate::xml::{Element, short};

/// How often a random address may be one that is taken.
const ATTEMPTS: usize = 16;

/// Replacements, in any order.
#[derive(Debug, Default)]
pub(super) struct Edits {
    replacements: Vec<(Range<usize>, String)>,
    /// What must not be left, and what it is.
    old: Vec<(String, &'static str)>,
    /// MAC addresses given so far.
    fresh: Vec<String>,
}

impl Edits {
    /// Replaces bytes by markup.
    pub(super) fn replace(&mut self, span: Range<usize>, markup: String) {
        self.replacements.push((span, markup));
    }

    /// Inserts markup.
    pub(super) fn insert(&mut self, at: usize, markup: String) {
        self.replace(at..at, markup);
    }

    /// Replaces what is between an element's tags by text.
    pub(super) fn inner(&mut self, element: &Element<'_>, text: &str) -> Step<()> {
        let inner = element.inner.clone().ok_or_else(|| element.missing("its text"))?;
        self.replace(inner, escape(text).into_owned());
        Ok(())
    }

    /// Replaces an attribute's value.
    pub(super) fn value(&mut self, element: &Element<'_>, name: &'static str, value: &str) -> Step<()> {
        let attribute = element.attributes.iter().find(|attribute| attribute.name == name);
        let attribute = attribute.ok_or_else(|| element.missing("an attribute that is to be replaced"))?;
        self.replace(attribute.value_at.clone(), escape(value).into_owned());
        Ok(())
    }

    /// Sets an attribute, whether it is there or not.
    pub(super) fn set(&mut self, element: &Element<'_>, name: &'static str, value: &str) -> Step<()> {
        if attribute(element, name).is_some() {
            return self.value(element, name, value);
        }
        let behind_name = element.at() + 1 + element.name.len();
        self.insert(behind_name, format!(" {name}='{}'", escape(value)));
        Ok(())
    }

    /// Notes a value that belongs to the first domain alone.
    pub(super) fn old_identity(&mut self, value: &str, what: &'static str) {
        self.old.push((value.trim_ascii().to_owned(), what));
    }

    /// An address of the range that QEMU uses, which no interface had or got.
    pub(super) fn fresh_mac(&mut self, random: &mut dyn FnMut(&mut [u8])) -> Step<String> {
        for _ in 0..ATTEMPTS {
            let mut bytes = [0; 3];
            random(&mut bytes);
            let mac = format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2]);
            let taken = self.old.iter().any(|(old, _)| old.eq_ignore_ascii_case(&mac));
            if !taken && !self.fresh.contains(&mac) {
                self.fresh.push(mac.clone());
                return Ok(mac);
            }
        }
        Err(DomainFault::Random(ATTEMPTS).into())
    }

    /// Refuses a definition in which a value of the first domain stands where nothing replaces it, or in which a new
    /// path is in use.
    pub(super) fn nothing_left(&self, root: &Element<'_>, new: &NewDomain) -> Step<()> {
        let taken = new.disks.iter().map(|disk| disk.source.path()).chain(new.nvram.as_deref());
        let taken: Vec<&str> = taken.collect();
        let mut open: Vec<&Element<'_>> = vec![root];
        while let Some(element) = open.pop() {
            let inner = element.inner.clone().unwrap_or(element.outer.end..element.outer.end);
            let texts = std::iter::once((element.text.trim_ascii(), inner));
            let values = element.attributes.iter().map(|one| (one.value.trim_ascii(), one.value_at.clone()));
            for (value, span) in texts.chain(values).filter(|(value, _)| !value.is_empty()) {
                if taken.contains(&value) {
                    return Err(Refuse::byte(span.start, DomainFault::TakenPath(value.to_owned())));
                }
                let old = self.old.iter().find(|(old, _)| old.eq_ignore_ascii_case(value));
                if let Some((_, what)) = old.filter(|_| !self.covers(&span)) {
                    return Err(Refuse::byte(
                        span.start,
                        DomainFault::LeftOver { what, value: short(value) },
                    ));
                }
            }
            // Notes of management tools: libvirt does not look at them, and neither domain runs by them.
            open.extend(element.children.iter().rev().filter(|child| child.name != "metadata"));
        }
        Ok(())
    }

    fn covers(&self, span: &Range<usize>) -> bool {
        self.replacements.iter().any(|(covered, _)| covered.start <= span.start && span.end <= covered.end)
    }

    /// The text with every replacement made.
    pub(super) fn apply(mut self, text: &str) -> String {
        self.replacements.sort_by_key(|(span, _)| (span.start, span.end));
        let (mut out, mut at) = (String::with_capacity(text.len() + 256), 0);
        for (span, markup) in &self.replacements {
            debug_assert!(at <= span.start, "replacements overlap");
            out.push_str(&text[at..span.start]);
            out.push_str(markup);
            at = span.end;
        }
        out.push_str(&text[at..]);
        out
    }
}
