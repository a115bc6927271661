//! Why a definition, or what is to be put into it, is refused.
//!
//! A fault that is about a place in the definition travels as a byte offset and leaves as line and column.

use std::fmt;

use crate::xml::{Element, Fault, XmlFault, located};

/// A definition that is not rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainError {
    /// Line and column in the definition, each from 1; `None` if the fault is in what was to be put there.
    pub place: Option<(usize, usize)>,
    /// What is wrong.
    pub fault: DomainFault,
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "line {line}, column {column}: {}", self.fault),
            None => self.fault.fmt(f),
        }
    }
}

impl std::error::Error for DomainError {}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainFault {
    /// The definition is no well-formed `<domain>` with what every domain has.
    #[error(transparent)]
    Xml(XmlFault),
    /// The name is one that no domain can have.
    #[error(
        "{0:?} is no name for a domain: it must not be empty, and have no slash and no control characters"
    )]
    Name(String),
    /// The path is none.
    #[error("{0:?} is no path for a disk: it must be absolute and have no control characters")]
    Path(String),
    /// The path is used already.
    #[error(
        "{0} is used already, by the first domain or by another disk; every disk needs a place of its own"
    )]
    TakenPath(String),
    /// A disk was given twice.
    #[error("disk `{0}` was given two sources")]
    DiskTwice(String),
    /// A disk was given that the domain does not have.
    #[error("the domain has no disk `{disk}`; it has {}", if .disks.is_empty() { "none".to_owned() } else { .disks.join(", ") })]
    NoDisk {
        /// The disk.
        disk: String,
        /// Those that there are.
        disks: Vec<String>,
    },
    /// A disk was not given a source.
    #[error("disk `{0}` needs a new source: two domains must not write the same one")]
    NoSource(String),
    /// The firmware's variables were not given a file.
    #[error("the firmware variables {0} need a new file: two domains must not write the same one")]
    Nvram(String),
    /// A part that two domains must not share, and that this function does not replace.
    #[error("{what} cannot be taken over: {why}")]
    Shared {
        /// The part.
        what: String,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// Something of the first domain's is at a place that this function does not know.
    #[error("{what} ({value}) is here as well, where nothing replaces it; change or remove it by hand")]
    LeftOver {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The source of random bytes repeats itself.
    #[error("the source of random bytes gave {0} times an address that is taken")]
    Random(usize),
}

impl From<DomainFault> for DomainError {
    fn from(fault: DomainFault) -> Self {
        DomainError { place: None, fault }
    }
}

/// A fault, and where in the definition it is.
#[derive(Debug)]
pub(super) struct Refuse {
    at: Option<usize>,
    fault: DomainFault,
}

/// A result inside of the module.
pub(super) type Step<T> = Result<T, Refuse>;

impl Refuse {
    /// At an element.
    pub(super) fn at(element: &Element<'_>, fault: DomainFault) -> Refuse {
        Refuse { at: Some(element.at()), fault }
    }

    /// At a byte.
    pub(super) fn byte(at: usize, fault: DomainFault) -> Refuse {
        Refuse { at: Some(at), fault }
    }

    pub(super) fn located(self, text: &str) -> DomainError {
        // Only the place of the error is wanted; its own fault is never shown.
        let place = self.at.map(|at| located(text, XmlFault::Doctype.at(at)));
        DomainError { place: place.map(|place| (place.line, place.column)), fault: self.fault }
    }
}

impl From<Fault> for Refuse {
    fn from(fault: Fault) -> Self {
        Refuse { at: Some(fault.at), fault: DomainFault::Xml(*fault.what) }
    }
}

impl From<DomainFault> for Refuse {
    fn from(fault: DomainFault) -> Self {
        Refuse { at: None, fault }
    }
}
