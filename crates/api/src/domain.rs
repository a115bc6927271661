//! Making the definition of a second domain out of the first one's: a new name, a new uuid, new MAC addresses, new disks.
//!
//! libvirt's `<domain>` has hundreds of elements, and new ones every release. So nothing is parsed into a value and
//! printed again: the few places that must change are found in the text and replaced there, and every other byte stays.
//!
//! Not here: what libvirt thinks of the result. It validates it when the domain is defined.
//!
//! Invariants: of what tells the first domain from others (uuid, MAC addresses, paths of disks) nothing is left outside of
//! `<metadata>`; a definition with a part that two domains must not share, and that is not replaced, is refused by name.

mod disk;
mod edits;
mod error;
mod shared;

use std::collections::BTreeSet;

use uuid::{Builder, Uuid};

use crate::xml::{
    DEFINITION_LIMITS, Definition, Element, ImageFormat, Read, XmlError, XmlFault, expect_root, is_char,
    located, read_tree,
};
use edits::Edits;
pub use error::{DomainError, DomainFault};
use error::{Refuse, Step};

/// What the second domain gets in place of the first one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDomain {
    /// Its name.
    pub name: String,
    /// Its id.
    pub uuid: Uuid,
    /// Its disks: one for each disk of the first domain, in any order. CD and floppy drives keep their media.
    pub disks: Vec<NewDisk>,
    /// The file of its firmware's variables, needed if the first domain has one. libvirt makes it from its template.
    pub nvram: Option<String>,
}

/// The new source of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// The disk: its `<target dev>`, such as `vda`.
    pub target: String,
    /// Where its data is now.
    pub source: NewSource,
    /// The format it is in.
    pub format: ImageFormat,
}

/// Where the data of a [`NewDisk`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewSource {
    /// An image file, by its absolute path.
    File(String),
    /// A block device, by its absolute path.
    Block(String),
}

impl NewSource {
    fn path(&self) -> &str {
        match self {
            NewSource::File(path) | NewSource::Block(path) => path,
        }
    }
}

/// The definition of a second domain.
///
/// `random` fills a buffer with random bytes: 16 if the domain has a `<genid>`, then 3 for each MAC address.
///
/// # Errors
/// [`DomainError`], with the place in `definition` where there is one.
pub fn rewrite(
    definition: &str,
    new: &NewDomain,
    random: &mut dyn FnMut(&mut [u8]),
) -> Result<String, DomainError> {
    check_values(new)?;
    let edits = collect(definition, new, random).map_err(|refuse| refuse.located(definition))?;
    Ok(edits.apply(definition))
}

/// Refuses values that no domain can have.
fn check_values(new: &NewDomain) -> Result<(), DomainFault> {
    let plain = |text: &str| text.chars().all(|c| is_char(c) && !c.is_control());
    if new.name.trim().is_empty() || new.name.contains('/') || !plain(&new.name) {
        return Err(DomainFault::Name(new.name.clone()));
    }
    let paths = new.disks.iter().map(|disk| disk.source.path()).chain(new.nvram.as_deref());
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    for path in paths {
        if !path.starts_with('/') || !plain(path) {
            return Err(DomainFault::Path(path.to_owned()));
        }
        if !seen.insert(path) {
            return Err(DomainFault::TakenPath(path.to_owned()));
        }
    }
    match new.disks.iter().find(|disk| !names.insert(&disk.target)) {
        Some(disk) => Err(DomainFault::DiskTwice(disk.target.clone())),
        None => Ok(()),
    }
}

/// Every replacement that makes the second domain out of the first.
fn collect(text: &str, new: &NewDomain, random: &mut dyn FnMut(&mut [u8])) -> Step<Edits> {
    let root = read_tree(text, DEFINITION_LIMITS)?;
    expect_root(&root, "domain")?;
    shared::refuse(&root)?;
    let mut edits = Edits::default();
    let name = one(&root, "name")?.ok_or_else(|| root.missing("a <name>"))?;
    edits.inner(name, &new.name)?;
    let uuid = new.uuid.to_string();
    match one(&root, "uuid")? {
        Some(old) => {
            edits.inner(old, &uuid)?;
            edits.old_identity(&old.text, "the uuid of the first domain");
        }
        None => edits.insert(name.outer.end, format!("<uuid>{uuid}</uuid>")),
    }
    generation(&root, random, &mut edits)?;
    for sysinfo in children(&root, "sysinfo") {
        for entry in children(sysinfo, "system").flat_map(|system| children(system, "entry")) {
            if attribute(entry, "name") == Some("uuid") {
                // libvirt insists that the two are the same.
                edits.inner(entry, &uuid)?;
            }
        }
    }
    nvram(&root, new, &mut edits)?;
    for devices in children(&root, "devices") {
        disk::replace_all(devices, new, &mut edits)?;
        for interface in children(devices, "interface") {
            if let Some(mac) = one(interface, "mac")? {
                let old = attribute(mac, "address").ok_or_else(|| mac.missing("the attribute address"))?;
                edits.old_identity(old, "a MAC address of the first domain");
                let fresh = edits.fresh_mac(random)?;
                edits.value(mac, "address", &fresh)?;
            }
        }
    }
    edits.nothing_left(&root, new)?;
    Ok(edits)
}

/// A clone is another generation of the machine; guests renew their secrets when they see it.
fn generation(root: &Element<'_>, random: &mut dyn FnMut(&mut [u8]), edits: &mut Edits) -> Step<()> {
    let Some(genid) = one(root, "genid")?.filter(|genid| !genid.text.trim_ascii().is_empty()) else {
        return Ok(());
    };
    let mut bytes = [0; 16];
    random(&mut bytes);
    edits.old_identity(&genid.text, "the generation of the first domain");
    edits.inner(genid, &Builder::from_random_bytes(bytes).into_uuid().to_string())
}

/// Two domains must not write the same firmware variables.
fn nvram(root: &Element<'_>, new: &NewDomain, edits: &mut Edits) -> Step<()> {
    for nvram in children(root, "os").flat_map(|os| children(os, "nvram")) {
        let source = one(nvram, "source")?;
        let old = match source {
            Some(source) => attribute(source, "file").ok_or_else(|| source.missing("the attribute file"))?,
            None => nvram.text.trim_ascii(),
        };
        if old.is_empty() {
            continue;
        }
        let path = new.nvram.as_deref().ok_or(Refuse::at(nvram, DomainFault::Nvram(old.to_owned())))?;
        edits.old_identity(old, "the firmware variables of the first domain");
        match source {
            Some(source) => edits.value(source, "file", path)?,
            None => edits.inner(nvram, path)?,
        }
    }
    Ok(())
}

fn children<'r, 'a>(element: &'r Element<'a>, name: &'r str) -> impl Iterator<Item = &'r Element<'a>> {
    element.children.iter().filter(move |child| child.name == name)
}

/// The child of that name, which may be there once.
fn one<'r, 'a>(element: &'r Element<'a>, name: &'r str) -> Read<Option<&'r Element<'a>>> {
    let mut all = children(element, name);
    let first = all.next();
    match all.next() {
        Some(second) => Err(XmlFault::Twice(name.to_owned()).at(second.at())),
        None => Ok(first),
    }
}

fn attribute<'r>(element: &'r Element<'_>, name: &str) -> Option<&'r str> {
    element
        .attributes
        .iter()
        .find(|attribute| attribute.name == name)
        .map(|attribute| attribute.value.as_str())
}

impl Definition {
    /// The domain's name.
    ///
    /// # Errors
    /// [`XmlError`] if it has none.
    pub fn name(&self) -> Result<String, XmlError> {
        self.look(|root| {
            let name = one(root, "name")?.ok_or_else(|| root.missing("a <name>"))?;
            Ok(name.text.trim_ascii().to_owned())
        })
    }

    /// The domain's id, if it has one.
    ///
    /// # Errors
    /// [`XmlError`] if there is an element for it that holds none.
    pub fn uuid(&self) -> Result<Option<Uuid>, XmlError> {
        self.look(|root| {
            let Some(element) = one(root, "uuid")? else { return Ok(None) };
            let uuid = element.text.trim_ascii().parse();
            uuid.map(Some).map_err(|_| element.missing("a uuid"))
        })
    }

    /// The file or device that a disk reads from (its `<source file>` or `<source dev>`) and its format, raw if none is
    /// said; `None` for any other source or format.
    ///
    /// # Errors
    /// [`XmlError`] if a disk has no name.
    pub fn source(&self, name: &str) -> Result<Option<(NewSource, ImageFormat)>, XmlError> {
        self.look(|root| {
            let disks = children(root, "devices").flat_map(|devices| children(devices, "disk"));
            for disk in disks.filter(|disk| disk::has_data(disk)) {
                if disk::name(disk)? == name {
                    let source = one(disk, "source")?;
                    let path = |key| source.and_then(|source| attribute(source, key)).map(str::to_owned);
                    let place =
                        path("file").map(NewSource::File).or_else(|| path("dev").map(NewSource::Block));
                    let format = match one(disk, "driver")?.and_then(|driver| attribute(driver, "type")) {
                        None | Some("raw") => Some(ImageFormat::Raw),
                        Some("qcow2") => Some(ImageFormat::Qcow2),
                        Some(_) => None,
                    };
                    return Ok(place.zip(format));
                }
            }
            Ok(None)
        })
    }

    /// The same without the passwords of displays (`<graphics passwd>`), which libvirt shows to those only who may see
    /// them (its flag SECURE). Every other byte stays.
    ///
    /// # Errors
    /// None for one that was parsed; the signature says that it is read again.
    pub fn without_passwords(&self) -> Result<Definition, XmlError> {
        let edits = self.look(|root| {
            let mut edits = Edits::default();
            let devices = children(root, "devices");
            for graphics in devices.flat_map(|devices| children(devices, "graphics")) {
                for password in graphics.attributes.iter().filter(|attribute| attribute.name == "passwd") {
                    // With the quote behind the value.
                    edits.replace(password.at..password.value_at.end + 1, String::new());
                }
            }
            Ok(edits)
        })?;
        Definition::parse(&edits.apply(self.as_str()))
    }

    fn look<T>(&self, look: impl FnOnce(&Element<'_>) -> Read<T>) -> Result<T, XmlError> {
        let inner = || look(&read_tree(self.as_str(), DEFINITION_LIMITS)?);
        inner().map_err(|fault| located(self.as_str(), fault))
    }

    /// The names of the disks that [`rewrite`] wants a new source for, in the order of the definition.
    ///
    /// # Errors
    /// [`XmlError`] if a disk has no name.
    pub fn disks(&self) -> Result<Vec<String>, XmlError> {
        self.look(|root| {
            let disks = children(root, "devices").flat_map(|devices| children(devices, "disk"));
            disks
                .filter(|disk| disk::has_data(disk))
                .map(|disk| disk::name(disk).map(str::to_owned))
                .collect()
        })
    }
}
