//! The proposal's dialect: one `<domainbackup>`, as a value, read and written.
//!
//! The order of the elements is that of the proposal's own example (uuid, creationTime, description, parent, disks);
//! what the proposal does not have comes between and behind. On reading, any order will do.
//!
//! Invariant: what is written is read back as the same value, except for characters that XML cannot carry at all.

use std::io::{self, Write};

use quick_xml::Writer;
use quick_xml::events::{BytesText, Event};
use uuid::Uuid;

use super::definition::Definition;
use super::element::{UUID, decimal, uuid};
use super::error::{Read, XmlFault};
use super::target::Target;
use super::tree::Element;
use super::writing::{self, text};
use crate::state::JobState;

/// The description of one backup, or the request for one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainBackup {
    /// The backup's own id.
    pub uuid: Option<Uuid>,
    /// In a restore: the name of the new domain.
    pub name: Option<String>,
    /// When the backup's instant was taken, in whole seconds since 1970-01-01T00:00:00Z.
    pub creation_time: Option<i64>,
    /// Free text of the person who asked for the backup.
    pub description: Option<String>,
    /// Where its job is.
    pub state: Option<JobState>,
    /// How the instant is kept while it is read.
    pub method: Option<Method>,
    /// The backup that this one was, or is to be, read against.
    pub parent: Option<Uuid>,
    /// Where disks go that do not say it themselves.
    pub target: Option<Target>,
    /// The disks, in order; `None` for all of the domain's.
    pub disks: Option<Vec<BackupDisk>>,
    /// The domain's definition at the instant.
    pub definition: Option<Definition>,
}

/// One disk of a [`DomainBackup`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupDisk {
    /// The disk's name in the backup, such as `vda`.
    pub name: String,
    /// `backup='no'`: not in the backup. Then nothing else of the disk is written.
    pub excluded: bool,
    /// How the disk was, or is to be, read.
    pub mode: Option<BackupMode>,
    /// Size in bytes.
    pub size_bytes: Option<u64>,
    /// Bytes that the backup added to the store for this disk.
    pub stored_bytes: Option<u64>,
    /// The root of the disk's hash tree.
    pub digest: Option<[u8; 32]>,
    /// The backup that this disk was read against.
    pub parent: Option<Uuid>,
    /// Where the disk's data is, or is to go.
    pub target: Option<Target>,
}

/// Whether a disk is read whole, or against an earlier backup. libvirt's word for both is `backupmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMode {
    /// Whole.
    Full,
    /// What changed.
    Incremental,
}

/// How QEMU keeps the instant while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `blockdev-backup` into an overlay that is exported.
    Classic,
    /// The copy-before-write filter.
    Filter,
}

impl BackupMode {
    /// The word in XML.
    pub fn as_str(self) -> &'static str {
        match self {
            BackupMode::Full => "full",
            BackupMode::Incremental => "incremental",
        }
    }

    /// Takes the attribute out.
    pub(crate) fn read(disk: &mut Element<'_>) -> Read<Option<BackupMode>> {
        disk.parsed("backupmode", "full or incremental", |text| match text {
            "full" => Some(BackupMode::Full),
            "incremental" => Some(BackupMode::Incremental),
            _ => None,
        })
    }
}

impl Method {
    /// The word in XML.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Classic => "classic",
            Method::Filter => "filter",
        }
    }
}

impl DomainBackup {
    pub(crate) fn read(mut root: Element<'_>, document: &str) -> Read<DomainBackup> {
        let backup = DomainBackup {
            uuid: root.text_child("uuid", UUID, uuid)?,
            name: root.text_child("name", "a name", |text| (!text.is_empty()).then(|| text.to_owned()))?,
            creation_time: root.text_child("creationTime", "seconds since 1970", decimal)?,
            description: root.child("description")?.map(Element::into_text).transpose()?,
            state: root.text_child("state", "a state of a job", |text| text.parse().ok())?,
            method: root.text_child("method", "classic or filter", |text| match text {
                "classic" => Some(Method::Classic),
                "filter" => Some(Method::Filter),
                _ => None,
            })?,
            parent: root.parent()?,
            target: root.child("target")?.map(Target::read).transpose()?,
            disks: read_disks(&mut root, BackupDisk::read, |disk| &disk.name)?,
            definition: match root.child("domain")? {
                Some(domain) => Some(Definition::inside(document, &domain)?),
                None => None,
            },
        };
        root.done()?;
        Ok(backup)
    }

    /// Writes the document, indented by two spaces, with a line feed at its end.
    ///
    /// Characters that XML 1.0 cannot carry in any form (most control characters, U+FFFE, U+FFFF; section 2.2,
    /// production `Char`) are written as U+FFFD.
    ///
    /// # Errors
    /// Whatever `out` reports.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        writing::document(out, &[], |writer| self.write_inner(writer))
    }

    fn write_inner<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        let optional = |writer: &mut Writer<W>, element, value: Option<&str>| match value {
            Some(value) => text(writer, element, value),
            None => Ok(()),
        };
        optional(writer, "uuid", self.uuid.map(|uuid| uuid.to_string()).as_deref())?;
        optional(writer, "name", self.name.as_deref())?;
        optional(writer, "creationTime", self.creation_time.map(|time| time.to_string()).as_deref())?;
        optional(writer, "description", self.description.as_deref())?;
        optional(writer, "state", self.state.map(JobState::as_str))?;
        optional(writer, "method", self.method.map(Method::as_str))?;
        self.parent.map_or(Ok(()), |parent| writing::parent(writer, parent))?;
        self.target.as_ref().map_or(Ok(()), |target| target.write(writer))?;
        writing::disks(writer, self.disks.as_deref(), BackupDisk::write)?;
        if let Some(definition) = &self.definition {
            // Markup already, and not to be indented: every byte of it counts.
            let raw = format!("\n  {}\n", definition.as_str());
            writer.write_event(Event::Text(BytesText::from_escaped(raw)))?;
        }
        Ok(())
    }
}

impl BackupDisk {
    fn read(mut element: Element<'_>) -> Read<BackupDisk> {
        let mut disk = BackupDisk { name: disk_name(&mut element)?, ..BackupDisk::default() };
        disk.excluded = element.yes_no("backup")? == Some(false);
        if !disk.excluded {
            disk.mode = BackupMode::read(&mut element)?;
            disk.size_bytes = element.number("size", "bytes")?;
            disk.stored_bytes = element.number("stored", "bytes")?;
            disk.digest = element.parsed("digest", "64 hexadecimal digits in lower case", from_hex)?;
            disk.parent = element.parent()?;
            disk.target = element.child("target")?.map(Target::read).transpose()?;
        }
        element.done()?;
        Ok(disk)
    }

    fn write<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        if self.excluded {
            return writing::empty(writer, "disk", &[("name", Some(&self.name)), ("backup", Some("no"))]);
        }
        let (size, stored) =
            (self.size_bytes.map(|n| n.to_string()), self.stored_bytes.map(|n| n.to_string()));
        let digest = self.digest.map(to_hex);
        let attributes = [
            ("name", Some(self.name.as_str())),
            ("backupmode", self.mode.map(BackupMode::as_str)),
            ("size", size.as_deref()),
            ("stored", stored.as_deref()),
            ("digest", digest.as_deref()),
        ];
        let element = writing::with(writer.create_element("disk"), &attributes);
        if self.parent.is_none() && self.target.is_none() {
            return element.write_empty().map(drop);
        }
        element
            .write_inner_content(|inner| {
                self.parent.map_or(Ok(()), |parent| writing::parent(inner, parent))?;
                self.target.as_ref().map_or(Ok(()), |target| target.write(inner))
            })
            .map(drop)
    }
}

/// The name of a `<disk>`.
pub(crate) fn disk_name(element: &mut Element<'_>) -> Read<String> {
    let name = element.parsed("name", "a disk's name", |text| (!text.is_empty()).then(|| text.to_owned()))?;
    name.ok_or_else(|| element.missing("the attribute name"))
}

/// The disks in `<disks>`, each name once; `None` without the element.
pub(crate) fn read_disks<D>(
    root: &mut Element<'_>,
    read: impl Fn(Element<'_>) -> Read<D>,
    name: impl Fn(&D) -> &String,
) -> Read<Option<Vec<D>>> {
    let Some(mut list) = root.child("disks")? else { return Ok(None) };
    let mut names = std::collections::BTreeSet::new();
    let mut disks = Vec::new();
    for element in list.all("disk") {
        let at = element.at();
        let disk = read(element)?;
        if !names.insert(name(&disk).clone()) {
            return Err(XmlFault::DuplicateDisk(super::attributes::short(name(&disk))).at(at));
        }
        disks.push(disk);
    }
    list.done()?;
    Ok(Some(disks))
}

fn to_hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}
