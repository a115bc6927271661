//! Which of the two dialects a document is written in.
//!
//! What only the proposal has makes a document the proposal's; else what only libvirt has makes it libvirt's; a document
//! with neither is the proposal's, in which what is left open is decided by settings and not by file names of libvirt's
//! making. `backup` and `backupmode` of a disk are libvirt's inventions, but are taken in both, so they tell nothing.
//!
//! Invariant: a document that has words of both is refused, and the message names one of each.

use super::error::{Read, XmlFault};
use super::tree::Element;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The proposal's, with what Aquifer adds.
    Proposal,
    /// What libvirt shipped.
    Libvirt,
}

const PROPOSAL_ELEMENTS: [&str; 9] =
    ["uuid", "description", "parent", "creationTime", "name", "state", "method", "target", "domain"];
const LIBVIRT_ELEMENTS: [&str; 3] = ["incremental", "server", "privateData"];
const PROPOSAL_DISK_ATTRIBUTES: [&str; 3] = ["size", "stored", "digest"];
const LIBVIRT_DISK_ATTRIBUTES: [&str; 6] =
    ["type", "incremental", "exportname", "exportbitmap", "state", "index"];
const LIBVIRT_DISK_ELEMENTS: [&str; 2] = ["scratch", "driver"];

/// Tells the dialect of a root element.
pub(crate) fn of(root: &Element<'_>) -> Read<Dialect> {
    match (proposal(root), libvirt(root)) {
        (Some(because), Some((what, at))) => Err(XmlFault::Mixed { what, because }.at(at)),
        (None, Some(_)) => Ok(Dialect::Libvirt),
        (_, None) => Ok(Dialect::Proposal),
    }
}

fn disks<'r, 'a>(root: &'r Element<'a>) -> impl Iterator<Item = &'r Element<'a>> {
    let lists = root.children.iter().filter(|child| child.name == "disks");
    lists.flat_map(|list| list.children.iter().filter(|child| child.name == "disk"))
}

/// What makes the document the proposal's.
fn proposal(root: &Element<'_>) -> Option<String> {
    let own = PROPOSAL_ELEMENTS.iter().find(|name| root.first(name).is_some());
    own.map(|name| format!("<{name}>")).or_else(|| {
        disks(root).find_map(|disk| {
            let attribute = PROPOSAL_DISK_ATTRIBUTES.iter().find(|name| disk.has(name));
            let typed = disk.first("target").is_some_and(|target| target.has("type"));
            match attribute {
                Some(name) => Some(format!("the attribute {name} of a <disk>")),
                None if typed => Some("the attribute type of a <target>".to_owned()),
                None if disk.first("parent").is_some() => Some("the <parent> of a <disk>".to_owned()),
                None => None,
            }
        })
    })
}

/// What makes the document libvirt's, and where it is.
fn libvirt(root: &Element<'_>) -> Option<(String, usize)> {
    if let Some(mode) = root.attributes.iter().find(|attribute| attribute.name == "mode") {
        return Some(("the attribute mode".to_owned(), mode.at));
    }
    let own = root.children.iter().find(|child| LIBVIRT_ELEMENTS.contains(&child.name));
    own.map(|child| (format!("<{}>", child.name), child.at())).or_else(|| {
        disks(root).find_map(|disk| {
            let attribute = disk.attributes.iter().find(|one| LIBVIRT_DISK_ATTRIBUTES.contains(&one.name));
            let child = disk.children.iter().find(|one| LIBVIRT_DISK_ELEMENTS.contains(&one.name));
            match (attribute, child, disk.first("target").filter(|target| untyped(target))) {
                (Some(one), ..) => Some((format!("the attribute {} of a <disk>", one.name), one.at)),
                (None, Some(one), _) => Some((format!("<{}>", one.name), one.at())),
                (None, None, Some(target)) => Some(("a <target> without a type".to_owned(), target.at())),
                (None, None, None) => None,
            }
        })
    })
}

/// A target in libvirt's form.
fn untyped(target: &Element<'_>) -> bool {
    !target.has("type") && (target.has("file") || target.has("dev"))
}
