//! What can be wrong with a document, with line and column.
//!
//! Inside of the module a fault carries a byte offset; [`located`] turns it into a place that a person can find.

use std::fmt;

/// A document that is not taken, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XmlError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1: of the tag or attribute that is wrong.
    pub column: usize,
    /// What is wrong.
    pub fault: XmlFault,
}

impl fmt::Display for XmlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.fault)
    }
}

impl std::error::Error for XmlError {}

impl XmlError {
    /// True if the document says what it means well enough, but this version does not do it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.fault, XmlFault::Unsupported { .. })
    }
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlFault {
    /// Too large.
    #[error("the document has {bytes} bytes; at most {most} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// Deeper than this limit.
    #[error("elements are nested more than {0} deep")]
    TooDeep(usize),
    /// More elements and attributes than this limit.
    #[error("the document has more than {0} elements and attributes")]
    TooMany(usize),
    /// Not UTF-8, or declared as something else.
    #[error("the document is not in UTF-8")]
    NotUtf8,
    /// A character that XML cannot carry.
    #[error("the character U+{:04X} is not allowed in XML", *.0 as u32)]
    Character(char),
    /// A document type declaration.
    #[error("a DOCTYPE is refused: documents here need no entities and no other files")]
    Doctype,
    /// A processing instruction.
    #[error("a processing instruction (`<?…?>`) is refused")]
    Instruction,
    /// `&name;` with a name that is not one of XML's five.
    #[error("`&{0};` is not known: only amp, lt, gt, quot, apos and character numbers are")]
    Entity(String),
    /// Not well-formed.
    #[error("this is not well-formed XML: {0}")]
    Malformed(String),
    /// The proposal's own mistake.
    #[error(
        "<parent> inside of <parent>: the example in the proposal closes <parent> with a second <parent>, which is \
         not XML; write <parent><uuid>…</uuid></parent>"
    )]
    UnclosedParent,
    /// Another document.
    #[error("the document is a <{found}>, not a <{expected}>")]
    Root {
        /// The root element.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// An element that has no meaning at its place. libvirt ignores such elements.
    #[error("<{name}> has no meaning inside of <{parent}>; known here: {known}")]
    Element {
        /// The element.
        name: String,
        /// What it is in.
        parent: String,
        /// What would be understood.
        known: String,
    },
    /// An attribute that has no meaning at its element. libvirt ignores such attributes.
    #[error("attribute {name} has no meaning at <{element}>; known here: {known}")]
    Attribute {
        /// The attribute.
        name: String,
        /// Its element.
        element: String,
        /// What would be understood.
        known: String,
    },
    /// Text between elements.
    #[error("text has no meaning directly inside of <{0}>")]
    Text(String),
    /// An element that may be there once.
    #[error("<{0}> is there twice")]
    Twice(String),
    /// Something that must be there.
    #[error("<{element}> lacks {what}")]
    Missing {
        /// The element.
        element: String,
        /// What it lacks.
        what: &'static str,
    },
    /// A value that is not one of those expected.
    #[error("{place} is {value:?}; expected {expected}")]
    Value {
        /// Element or attribute.
        place: String,
        /// What it holds, cut to its first 100 characters.
        value: String,
        /// What it can hold.
        expected: &'static str,
    },
    /// The same disk twice.
    #[error("disk `{0}` is named twice")]
    DuplicateDisk(String),
    /// Words of libvirt's dialect in a document of the proposal's.
    #[error(
        "{what} is of libvirt's dialect, but the document is of the proposal's because of {because}; use one"
    )]
    Mixed {
        /// What is of libvirt's.
        what: String,
        /// What made the document the proposal's.
        because: String,
    },
    /// Understood, but this call does not take it.
    #[error("{what} is not for {call}: {why}")]
    Misplaced {
        /// Element or attribute.
        what: String,
        /// The call.
        call: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// Understood, and not done by this version.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// Element or attribute.
        what: String,
        /// Why, and what to do instead.
        why: &'static str,
    },
}

/// A fault and the byte where it was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    pub(crate) what: Box<XmlFault>,
}

/// A result inside of the module.
pub(crate) type Read<T> = Result<T, Fault>;

impl XmlFault {
    /// The fault at that byte.
    pub(crate) fn at(self, at: usize) -> Fault {
        Fault { at, what: Box::new(self) }
    }
}

/// The place of a fault in the text that it is about.
pub(crate) fn located(text: &str, fault: Fault) -> XmlError {
    let before = text.get(..fault.at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    XmlError { line, column: before[line_start..].chars().count() + 1, fault: *fault.what }
}
