//! A domain's definition as libvirt writes it, kept byte for byte.
//!
//! Not here: what is in it. Making a second domain from one is `crate::domain`.
//!
//! Invariant: a [`Definition`] is one well-formed `<domain>` element within
//! [`DEFINITION_LIMITS`](super::DEFINITION_LIMITS), so that it can stand inside of another document.

use super::error::{Read, XmlError, XmlFault, located};
use super::tree::{self, DEFINITION_LIMITS, Element};

/// One `<domain>` element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition(String);

impl Definition {
    /// Takes the `<domain>` element out of a document. What is around it (a declaration, comments) is left out; of the
    /// element itself every byte is kept.
    ///
    /// # Errors
    /// [`XmlError`] if the document is not well-formed, too large, or not a `<domain>`.
    pub fn parse(document: &str) -> Result<Definition, XmlError> {
        Self::read(document).map_err(|fault| located(document, fault))
    }

    fn read(document: &str) -> Read<Definition> {
        let root = tree::read(document, DEFINITION_LIMITS)?;
        expect_root(&root, "domain")?;
        Ok(Definition(document[root.outer].to_owned()))
    }

    /// The element that was found inside of a document. It is read again by itself: its own limits are narrower.
    pub(super) fn inside(document: &str, element: &Element<'_>) -> Read<Definition> {
        let at = element.outer.start;
        Self::read(&document[element.outer.clone()]).map_err(|mut fault| {
            fault.at += at;
            fault
        })
    }

    /// The element, from `<domain` to `</domain>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Refuses another root.
pub(crate) fn expect_root(root: &Element<'_>, expected: &'static str) -> Read<()> {
    if root.name == expected {
        return Ok(());
    }
    let found = super::attributes::short(root.name);
    Err(XmlFault::Root { found, expected }.at(root.at()))
}
