//! What two domains must not share and what no rule here replaces: devices of the host, sockets, files with state.
//!
//! The list is of what would damage data or take something away from the first domain. What merely collides when both
//! run (a fixed VNC port) is left to libvirt, which refuses to start the second.

use super::error::{DomainFault, Refuse, Step};
use super::{attribute, children};
use crate::xml::{Element, short};

/// Character devices, which can be bound to a path.
const CHARACTER_DEVICES: [&str; 4] = ["serial", "parallel", "console", "channel"];

/// Refuses the definition of a running domain, and one with such a part.
pub(super) fn refuse(root: &Element<'_>) -> Step<()> {
    if attribute(root, "id").is_some() {
        let why =
            "names and sockets that libvirt made for this run are in it; take `virsh dumpxml --inactive`";
        return shared(root, "the definition of a running domain", why);
    }
    for child in &root.children {
        let local = child.name.rsplit(':').next().unwrap_or_default();
        if matches!(local, "commandline" | "override") {
            let why = "libvirt does not know what such arguments open (disks, sockets); remove it";
            return shared(child, &format!("<{}>", short(child.name)), why);
        }
    }
    for loader in children(root, "os").flat_map(|os| children(os, "loader")) {
        if attribute(loader, "readonly") == Some("no") {
            return shared(loader, "a firmware that is written to", "both would write the same file");
        }
    }
    children(root, "devices").flat_map(|devices| &devices.children).try_for_each(device)
}

fn device(device: &Element<'_>) -> Step<()> {
    match device.name {
        "hostdev" => {
            shared(device, "a device of the host", "it cannot belong to two domains; remove <hostdev>")
        }
        "memory" if matches!(attribute(device, "model"), Some("nvdimm" | "virtio-pmem")) => {
            let why = "what it keeps is in no backup; remove it";
            shared(device, "persistent memory", why)
        }
        "pstore" => shared(device, "<pstore>", "both would write the same file; remove it"),
        "tpm" if children(device, "backend").any(|one| children(one, "source").next().is_some()) => {
            shared(device, "the state of a TPM at a path", "both would write it; remove <source>")
        }
        name if CHARACTER_DEVICES.contains(&name) => {
            let bound = children(device, "source").chain(children(device, "log"));
            match bound.filter_map(|one| attribute(one, "path").or(attribute(one, "file"))).next() {
                Some(path) => {
                    let why =
                        "the second domain would take the path from the first; remove <source> or <log>";
                    shared(device, &format!("a <{name}> at {}", short(path)), why)
                }
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn shared(element: &Element<'_>, what: &str, why: &'static str) -> Step<()> {
    Err(Refuse::at(element, DomainFault::Shared { what: what.to_owned(), why }))
}
