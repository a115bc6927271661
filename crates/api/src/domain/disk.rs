//! The disks of a definition: which of them hold data, and how each gets its new source.
//!
//! Invariant: every disk with data gets a new source, or the definition is refused.

use quick_xml::escape::escape;

use super::edits::Edits;
use super::error::{DomainFault, Refuse, Step};
use super::{NewDisk, NewDomain, NewSource, attribute, children, one};
use crate::xml::{Element, ImageFormat, Read};

/// Types of disks whose source is one that a file or a block device can stand in for.
const REPLACEABLE: [&str; 4] = ["file", "block", "volume", "network"];

/// True if the disk keeps data of the guest's: not for CD and floppy drives.
pub(super) fn has_data(disk: &Element<'_>) -> bool {
    !matches!(attribute(disk, "device"), Some("cdrom" | "floppy"))
}

/// The name of a disk, as the guest's bus has it.
pub(super) fn name<'r>(disk: &'r Element<'_>) -> Read<&'r str> {
    let target = one(disk, "target")?.ok_or_else(|| disk.missing("a <target dev='…'>"))?;
    attribute(target, "dev").ok_or_else(|| target.missing("the attribute dev"))
}

/// Gives every disk its new source.
pub(super) fn replace_all(devices: &Element<'_>, new: &NewDomain, edits: &mut Edits) -> Step<()> {
    let mut names = Vec::new();
    for disk in children(devices, "disk").filter(|disk| has_data(disk)) {
        let name = name(disk)?;
        let wanted = new.disks.iter().find(|wanted| wanted.target == name);
        let wanted = wanted.ok_or_else(|| Refuse::at(disk, DomainFault::NoSource(name.to_owned())))?;
        names.push(name.to_owned());
        replace(disk, name, wanted, edits)?;
    }
    match new.disks.iter().find(|wanted| !names.contains(&wanted.target)) {
        Some(wanted) => Err(DomainFault::NoDisk { disk: wanted.target.clone(), disks: names }.into()),
        None => Ok(()),
    }
}

fn replace(disk: &Element<'_>, name: &str, new: &NewDisk, edits: &mut Edits) -> Step<()> {
    let source = one(disk, "source")?.ok_or_else(|| disk.missing("a <source>"))?;
    refuse_strange(disk, source, name)?;
    let (kind, attribute_name) = match new.source {
        NewSource::File(_) => ("file", "file"),
        NewSource::Block(_) => ("block", "dev"),
    };
    for old in ["file", "dev"].into_iter().filter_map(|name| attribute(source, name)) {
        edits.old_identity(old, "the source of a disk of the first domain");
    }
    edits.set(disk, "type", kind)?;
    let path = escape(new.source.path());
    edits.replace(source.outer.clone(), format!("<source {attribute_name}='{path}'/>"));
    match one(disk, "driver")? {
        Some(driver) => edits.set(driver, "type", new.format.as_str())?,
        // Without one libvirt takes an image for raw.
        None if new.format == ImageFormat::Raw => {}
        None => {
            let driver = format!("<driver name='qemu' type='{}'/>", new.format.as_str());
            edits.insert(source.at(), driver);
        }
    }
    if let Some(chain) = one(disk, "backingStore")?.filter(|chain| !chain.children.is_empty()) {
        // What was restored stands alone.
        edits.replace(chain.outer.clone(), "<backingStore/>".to_owned());
    }
    Ok(())
}

/// Refuses a disk that is more than an image or a device.
fn refuse_strange(disk: &Element<'_>, source: &Element<'_>, name: &str) -> Step<()> {
    let refuse = |what: String, why| Err(Refuse::at(disk, DomainFault::Shared { what, why }));
    let kind = attribute(disk, "type").unwrap_or("file");
    if !REPLACEABLE.contains(&kind) {
        return refuse(format!("disk `{name}` of type {kind}"), "a file or a device cannot stand in for it");
    }
    if attribute(disk, "device") == Some("lun") {
        return refuse(
            format!("disk `{name}`, a LUN"),
            "a restored volume is no SCSI device; make it device='disk'",
        );
    }
    if [disk, source].into_iter().any(|one| children(one, "encryption").next().is_some()) {
        let why = "QEMU would decrypt the restored volume, which is not encrypted; remove <encryption>";
        return refuse(format!("the <encryption> of disk `{name}`"), why);
    }
    if children(disk, "auth").next().is_some() {
        return refuse(format!("the <auth> of disk `{name}`"), "it belongs to the old source; remove it");
    }
    if children(disk, "mirror").next().is_some() {
        return refuse(
            format!("the <mirror> of disk `{name}`"),
            "a copy was under way; take the inactive definition",
        );
    }
    Ok(())
}
