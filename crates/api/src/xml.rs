//! `<domainbackup>` documents: the proposal's dialect and libvirt's, told apart by content, read and written.
//!
//! ```text
//! text ─► tree (bounds, well-formedness) ─► dialect ─► backup.rs  ─► DomainBackup   ─► write
//!                                                  └─► libvirt.rs ─► LibvirtBackup  ─► write
//! ```
//!
//! Not here: what a call makes of a document (`request.rs`), and what a domain's definition means (`domain.rs`).
//!
//! Invariants: hostile text costs no more than [`LIMITS`] say; what has no meaning is refused by name, with line and
//! column; what was written is read back as the same value.

mod attributes;
mod backup;
mod definition;
mod dialect;
mod element;
mod error;
mod image;
mod libvirt;
mod target;
mod tree;
mod writing;

pub use backup::{BackupDisk, BackupMode, DomainBackup, Method};
pub use definition::Definition;
pub use error::{XmlError, XmlFault};
pub use image::{Image, ImagePlace, ImageSource, Seclabel};
pub use libvirt::{DiskState, Endpoint, LibvirtBackup, LibvirtDisk, Mode, Server};
pub use target::{ImageFormat, NbdSource, Target};
pub use tree::{DEFINITION_LIMITS, LIMITS, Limits};

pub(crate) use attributes::short;
pub(crate) use definition::expect_root;
pub(crate) use dialect::Dialect;
pub(crate) use error::{Fault, Read, located};
pub(crate) use tree::{Element, is_char, read as read_tree};

/// A `<domainbackup>` in one of the two dialects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// The proposal's.
    Proposal(DomainBackup),
    /// libvirt's.
    Libvirt(LibvirtBackup),
}

impl Document {
    /// Reads a document in either dialect.
    ///
    /// # Errors
    /// [`XmlError`], with line and column.
    pub fn parse(text: &str) -> Result<Document, XmlError> {
        with_root(text, |root, dialect| {
            Ok(match dialect {
                Dialect::Proposal => Document::Proposal(DomainBackup::read(root, text)?),
                Dialect::Libvirt => Document::Libvirt(LibvirtBackup::read(root)?),
            })
        })
    }
}

/// Reads a `<domainbackup>` into whatever the caller makes of its root.
pub(crate) fn with_root<T>(
    text: &str,
    read: impl FnOnce(Element<'_>, Dialect) -> Read<T>,
) -> Result<T, XmlError> {
    let inner = || {
        let root = read_tree(text, LIMITS)?;
        expect_root(&root, "domainbackup")?;
        let dialect = dialect::of(&root)?;
        read(root, dialect)
    };
    inner().map_err(|fault: Fault| located(text, fault))
}
