//! Taking an element apart so that nothing in it is passed over.
//!
//! A reader asks for each attribute and child by name, which removes it, and calls [`Element::done`] at the end. What is
//! left then is refused by name. libvirt ignores what it does not know; a backup that silently lacks what a misspelt
//! element asked for is found out when it is needed.
//!
//! Invariant: an element that was `done` held nothing but what was asked for.

use std::str::FromStr;

use uuid::Uuid;

use super::attributes::{Attribute, short};
use super::error::{Fault, Read, XmlFault};
use super::tree::Element;

impl<'a> Element<'a> {
    /// Where the element begins.
    pub(crate) fn at(&self) -> usize {
        self.outer.start
    }

    /// True if the attribute is there. Does not count as asking for it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.attributes.iter().any(|attribute| attribute.name == name)
    }

    /// The first child of that name, left where it is.
    pub(crate) fn first(&self, name: &str) -> Option<&Element<'a>> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Takes an attribute out.
    pub(crate) fn attribute(&mut self, name: &'static str) -> Option<Attribute<'a>> {
        self.asked.push(name);
        let index = self.attributes.iter().position(|attribute| attribute.name == name)?;
        Some(self.attributes.remove(index))
    }

    /// Takes an attribute's value out.
    pub(crate) fn string(&mut self, name: &'static str) -> Option<String> {
        self.attribute(name).map(|attribute| attribute.value)
    }

    /// Takes an attribute out that must be there.
    pub(crate) fn required(&mut self, name: &'static str, what: &'static str) -> Read<Attribute<'a>> {
        self.attribute(name).ok_or_else(|| self.missing(what))
    }

    /// Takes an attribute out and reads its value.
    pub(crate) fn parsed<T>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Read<Option<T>> {
        let Some(attribute) = self.attribute(name) else { return Ok(None) };
        let place = || format!("attribute {name} of <{}>", self.name);
        read(&attribute.value)
            .map(Some)
            .ok_or_else(|| wrong(attribute.at, place(), &attribute.value, expected))
    }

    /// Takes a `yes` or `no` out.
    pub(crate) fn yes_no(&mut self, name: &'static str) -> Read<Option<bool>> {
        self.parsed(name, "yes or no", |text| match text {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        })
    }

    /// Takes a decimal number out, written as this crate writes it.
    pub(crate) fn number<T: FromStr + ToString>(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Read<Option<T>> {
        self.parsed(name, expected, decimal)
    }

    /// Takes a child out that may be there once.
    pub(crate) fn child(&mut self, name: &'static str) -> Read<Option<Element<'a>>> {
        self.asked.push(name);
        let Some(index) = self.children.iter().position(|child| child.name == name) else { return Ok(None) };
        let child = self.children.remove(index);
        match self.first(name) {
            Some(second) => Err(XmlFault::Twice(name.to_owned()).at(second.at())),
            None => Ok(Some(child)),
        }
    }

    /// Takes every child of that name out, in order.
    pub(crate) fn all(&mut self, name: &'static str) -> Vec<Element<'a>> {
        self.asked.push(name);
        let (taken, left) =
            std::mem::take(&mut self.children).into_iter().partition(|child| child.name == name);
        self.children = left;
        taken
    }

    /// Takes a child out that holds text alone, and reads the text without the blanks around it.
    pub(crate) fn text_child<T>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Read<Option<T>> {
        let Some(child) = self.child(name)? else { return Ok(None) };
        let at = child.at();
        let text = child.into_text()?;
        read(text.trim_ascii())
            .map(Some)
            .ok_or_else(|| wrong(at, format!("<{name}>"), text.trim_ascii(), expected))
    }

    /// Takes `<parent><uuid>…</uuid></parent>` out.
    pub(crate) fn parent(&mut self) -> Read<Option<Uuid>> {
        let Some(mut parent) = self.child("parent")? else { return Ok(None) };
        let uuid = parent.text_child("uuid", UUID, uuid)?.ok_or_else(|| parent.missing("a <uuid>"))?;
        parent.done()?;
        Ok(Some(uuid))
    }

    /// The text of an element that holds nothing else.
    pub(crate) fn into_text(mut self) -> Read<String> {
        let text = std::mem::take(&mut self.text);
        self.done()?;
        Ok(text)
    }

    /// Ends the taking apart: refuses what is left.
    pub(crate) fn done(self) -> Read<()> {
        let known = || match self.asked.as_slice() {
            [] => "nothing but text".to_owned(),
            asked => asked.join(", "),
        };
        if let Some(attribute) = self.attributes.first() {
            let (name, element) = (short(attribute.name), short(self.name));
            return Err(XmlFault::Attribute { name, element, known: known() }.at(attribute.at));
        }
        if let Some(child) = self.children.first() {
            let (name, parent) = (short(child.name), short(self.name));
            return Err(XmlFault::Element { name, parent, known: known() }.at(child.at()));
        }
        if !self.text.trim_ascii().is_empty() {
            return Err(XmlFault::Text(short(self.name)).at(self.at()));
        }
        Ok(())
    }

    /// The fault that something is not there.
    pub(crate) fn missing(&self, what: &'static str) -> Fault {
        XmlFault::Missing { element: short(self.name), what }.at(self.at())
    }
}

/// What a uuid looks like.
pub(crate) const UUID: &str = "a uuid as in 54c70d40-26bb-48cd-9639-b3a1e9adf650";

/// Reads a uuid in its usual form alone: no braces, no `urn:`, with its hyphens.
pub(crate) fn uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

/// Reads a decimal number in its one shortest form, so that what is read is written again as it was.
pub(crate) fn decimal<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

/// The fault of a value.
pub(crate) fn wrong(at: usize, place: String, value: &str, expected: &'static str) -> Fault {
    XmlFault::Value { place, value: short(value), expected }.at(at)
}

/// Reads an absolute path.
pub(crate) fn absolute(text: &str) -> Option<String> {
    text.starts_with('/').then(|| text.to_owned())
}
