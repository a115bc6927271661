//! A document as a tree of elements with their places, read under bounds that are known before.
//!
//! The library splits the text into tags; this module decides what is well-formed, what is refused whatever the
//! document means, and keeps where each thing was.
//!
//! Invariant: no document costs more than its [`Limits`] say; the depth is bounded, so that walking and dropping a tree
//! cannot exhaust the stack.

use std::ops::Range;

use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};

use super::attributes::{self, Attribute, is_name, short};
use super::error::{Fault, Read, XmlFault};

/// What a document may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes.
    pub bytes: usize,
    /// Most elements one inside of the other.
    pub depth: usize,
    /// Most elements and attributes together.
    pub nodes: usize,
}

/// The limits of a `<domainbackup>`.
pub const LIMITS: Limits = Limits { bytes: 4 << 20, depth: 64, nodes: 1 << 16 };
/// The limits of a domain's definition: so far below the others that one always fits into a `<domainbackup>`.
pub const DEFINITION_LIMITS: Limits = Limits { bytes: 1 << 20, depth: 60, nodes: 1 << 15 };

/// One element with all that is in it.
#[derive(Debug)]
pub(crate) struct Element<'a> {
    pub(crate) name: &'a str,
    pub(crate) attributes: Vec<Attribute<'a>>,
    pub(crate) children: Vec<Element<'a>>,
    /// All text directly inside, put together.
    pub(crate) text: String,
    /// From `<` of the start tag to behind `>` of the end tag.
    pub(crate) outer: Range<usize>,
    /// Between the two tags; `None` for `<name/>`.
    pub(crate) inner: Option<Range<usize>>,
    /// What was asked for by name so far, for the message about what was not.
    pub(crate) asked: Vec<&'static str>,
}

/// True for what XML 1.0 can carry (section 2.2, production `Char`).
pub(crate) fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// The byte order mark.
const MARK: char = '\u{feff}';

fn outside(at: usize) -> Fault {
    XmlFault::Malformed("there is text outside of the root".to_owned()).at(at)
}

/// Reads a document.
pub(crate) fn read(document: &str, limits: Limits) -> Read<Element<'_>> {
    if document.len() > limits.bytes {
        return Err(XmlFault::TooLarge { bytes: document.len(), most: limits.bytes }.at(0));
    }
    if let Some((at, bad)) = document.char_indices().find(|(_, c)| !is_char(*c)) {
        return Err(XmlFault::Character(bad).at(at));
    }
    // A byte order mark is no part of the document, but of the places in it. The library would drop a second one without
    // counting it, and all places after it would be wrong.
    let start = if document.starts_with(MARK) { MARK.len_utf8() } else { 0 };
    if document[start..].starts_with(MARK) {
        return Err(outside(start));
    }
    let mut reader = Reader::from_str(&document[start..]);
    reader.config_mut().check_comments = true;
    let mut builder = Builder { document, limits, open: Vec::new(), root: None, nodes: 0 };
    let mut at = start;
    loop {
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => {
                let place = usize::try_from(reader.error_position()).map_or(at, |place| start + place);
                return Err(XmlFault::Malformed(short(&error.to_string())).at(place));
            }
        };
        let end = usize::try_from(reader.buffer_position()).map_or(at, |place| start + place);
        if matches!(event, Event::Eof) {
            return builder.finish(end);
        }
        builder.take(event, at == start, at..end)?;
        at = end;
    }
}

struct Builder<'a> {
    document: &'a str,
    limits: Limits,
    open: Vec<Element<'a>>,
    root: Option<Element<'a>>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn take(&mut self, event: Event<'_>, first: bool, span: Range<usize>) -> Read<()> {
        match event {
            Event::Start(_) => {
                let element = self.start(&span, 1)?;
                self.open.push(element);
            }
            Event::Empty(_) => {
                let element = self.start(&span, 2)?;
                self.close(element);
            }
            Event::End(_) => {
                if let Some(mut element) = self.open.pop() {
                    element.inner = Some(element.outer.end..span.start);
                    element.outer.end = span.end;
                    self.close(element);
                }
            }
            Event::Text(text) => {
                if text.contains("]]>") {
                    return Err(XmlFault::Malformed("`]]>` in text".to_owned()).at(span.start));
                }
                self.text(&text.xml10_content(), &span)?;
            }
            Event::CData(text) => self.text(&text.xml10_content(), &span)?,
            Event::GeneralRef(reference) => {
                let text = resolve(&reference, &span)?;
                self.text(&text, &span)?;
            }
            Event::Comment(_) | Event::Eof => {}
            Event::Decl(declaration) => {
                let utf8 = match declaration.encoding() {
                    None => true,
                    Some(name) => name.is_ok_and(|name| name.eq_ignore_ascii_case("utf-8")),
                };
                if !utf8 {
                    return Err(XmlFault::NotUtf8.at(span.start));
                }
                if !first || !matches!(declaration.xml_version(), Ok(XmlVersion::Explicit1_0)) {
                    let what = "the XML declaration is not the one of XML 1.0 at the very beginning";
                    return Err(XmlFault::Malformed(what.to_owned()).at(span.start));
                }
            }
            Event::DocType(_) => return Err(XmlFault::Doctype.at(span.start)),
            Event::PI(_) => return Err(XmlFault::Instruction.at(span.start)),
        }
        Ok(())
    }

    /// An element from its start tag, whose last `tail` bytes are `>` or `/>`.
    fn start(&mut self, span: &Range<usize>, tail: usize) -> Read<Element<'a>> {
        let document = self.document;
        let inside = span.start + 1..span.end - tail;
        let tag = &document[inside.clone()];
        let name = &tag[..tag.find([' ', '\t', '\r', '\n']).unwrap_or(tag.len())];
        if !is_name(name) {
            return Err(
                XmlFault::Malformed(format!("{:?} is no name of an element", short(name))).at(span.start)
            );
        }
        match self.open.last() {
            None if self.root.is_some() => {
                return Err(
                    XmlFault::Malformed("there is more than one root element".to_owned()).at(span.start)
                );
            }
            Some(parent) if parent.name == "parent" && name == "parent" => {
                return Err(XmlFault::UnclosedParent.at(span.start));
            }
            _ => {}
        }
        if self.open.len() == self.limits.depth {
            return Err(XmlFault::TooDeep(self.limits.depth).at(span.start));
        }
        let attributes = attributes::read(document, inside.start + name.len(), inside.end)?;
        self.nodes += 1 + attributes.len();
        if self.nodes > self.limits.nodes {
            return Err(XmlFault::TooMany(self.limits.nodes).at(span.start));
        }
        Ok(Element {
            name,
            attributes,
            children: Vec::new(),
            text: String::new(),
            outer: span.clone(),
            inner: None,
            asked: Vec::new(),
        })
    }

    fn close(&mut self, element: Element<'a>) {
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.root = Some(element),
        }
    }

    fn text(&mut self, text: &str, span: &Range<usize>) -> Read<()> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim_ascii().is_empty() => {}
            None => {
                return Err(
                    XmlFault::Malformed("there is text outside of the root".to_owned()).at(span.start)
                );
            }
        }
        Ok(())
    }

    fn finish(self, end: usize) -> Read<Element<'a>> {
        if let Some(element) = self.open.last() {
            let what = format!("<{}> is not closed", short(element.name));
            return Err(XmlFault::Malformed(what).at(element.outer.start));
        }
        self.root.ok_or_else(|| XmlFault::Malformed("there is no element".to_owned()).at(end))
    }
}

/// The text that `&name;` stands for.
fn resolve(reference: &quick_xml::events::BytesRef<'_>, span: &Range<usize>) -> Read<String> {
    if let Some(text) = quick_xml::escape::resolve_xml_entity(reference) {
        return Ok(text.to_owned());
    }
    match reference.resolve_char_ref() {
        Ok(Some(c)) if is_char(c) => Ok(c.to_string()),
        Ok(Some(c)) => Err(XmlFault::Character(c).at(span.start)),
        Ok(None) => Err(XmlFault::Entity(short(reference)).at(span.start)),
        Err(error) => Err(XmlFault::Malformed(short(&error.to_string())).at(span.start)),
    }
}
