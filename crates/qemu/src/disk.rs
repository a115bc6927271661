//! The disks of a domain: which there are, what they are called, and which of them a request means.
//!
//! A disk is keyed by the node that the guest's device reads from, never by its place in a list: the order of
//! QEMU's nodes says nothing. Invariant: every chosen disk has one name, one node, and appears once.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::commands::{Drive, Node, QueryBlock, QueryNodes};
use crate::error::{Error, Result};
use crate::identity::BlockSizes;
use crate::monitor::Monitor;
use crate::names::FAMILY;

/// One disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The configured name; else a non-empty `device`, the bare qdev id, or the node name.
    pub name: String,
    /// Node that the guest's device reads from; empty in an empty drive.
    pub node: String,
    /// Full path of the device in QEMU's object tree.
    pub qdev: Option<String>,
    /// Name given by `-drive`.
    pub device: Option<String>,
    /// Image file, as QEMU prints it.
    pub file: Option<String>,
    /// Size that the guest sees, in bytes.
    pub size_bytes: u64,
    /// Driver of the node, such as `qcow2`.
    pub format: String,
    /// Why it is left out unless it is asked for.
    pub skip: Option<SkipReason>,
    /// Whether a dirty bitmap can live on the node, and in its image.
    pub bitmaps: BitmapSupport,
    /// The block sizes that the guest sees, where its device tells them; asked for chosen disks only.
    pub blocks: Option<BlockSizes>,
}

/// What kind of dirty bitmap a node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BitmapSupport {
    /// One that is kept in the image: qcow2 of version 3.
    Persistent,
    /// One that ends with QEMU.
    Volatile,
    /// None: nothing can be written to it.
    No,
}

impl BitmapSupport {
    fn of(node: &Node) -> Self {
        let compat = || node.image.as_ref()?.format_specific.as_ref()?.data["compat"].as_str();
        match node.drv.as_deref() {
            _ if node.ro => Self::No,
            Some("qcow2") if compat() != Some("0.10") => Self::Persistent,
            _ => Self::Volatile,
        }
    }
}

/// Why a drive is left out of a backup of all disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// No medium.
    Empty,
    /// A medium that can be changed, such as a CD-ROM.
    Removable,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty drive",
            Self::Removable => "removable medium",
        })
    }
}

/// A name of ours for a disk of QEMU's (`[domains.X.disks]` of the configuration).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskName {
    /// Our name.
    pub name: String,
    /// Qdev id (bare or with its path), device, node name or file.
    pub selector: String,
}

/// Which disks a request means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChoice {
    /// Configured names; disks without one keep QEMU's.
    pub names: Vec<DiskName>,
    /// Only these, by name or selector; empty means all.
    pub only: Vec<String>,
}

/// The outcome of a choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// To back up.
    pub disks: Vec<Disk>,
    /// Left out, each with its reason.
    pub skipped: Vec<Disk>,
}

impl Disk {
    fn matches(&self, selector: &str) -> bool {
        let bare = self.qdev.as_deref().map(bare_qdev);
        [Some(self.name.as_str()), self.qdev.as_deref(), bare, self.device.as_deref(), self.file.as_deref()]
            .into_iter()
            .flatten()
            .chain((!self.node.is_empty()).then_some(self.node.as_str()))
            .any(|known| known == selector)
    }

    fn described(&self) -> String {
        let file = self.file.as_deref().map(|file| format!(" {file}")).unwrap_or_default();
        let skip = self.skip.map(|reason| format!(", {reason}")).unwrap_or_default();
        format!("{} ({}{file}{skip})", self.name, if self.node.is_empty() { "no medium" } else { &self.node })
    }
}

/// The disks of the domain behind a monitor (`query-block`; in qemu-storage-daemon, which has no devices, its nodes).
///
/// # Errors
/// Those of [`Monitor::execute`].
pub async fn list(monitor: &Monitor) -> Result<Vec<Disk>> {
    let nodes = monitor.execute(QueryNodes(json!({"flat": true}))).await?;
    // The storage daemon has `query-block` too, and always answers it with nothing.
    if monitor.capabilities().await?.has_command("query-status") {
        let drives = monitor.execute(QueryBlock(json!({}))).await?;
        return Ok(drives.into_iter().map(|drive| of_drive(drive, &nodes)).collect());
    }
    Ok(nodes.iter().filter_map(|node| of_node(node, &nodes)).collect())
}

fn of_drive(drive: Drive, nodes: &[Node]) -> Disk {
    let device = Some(drive.device).filter(|device| !device.is_empty());
    let inserted = drive.inserted;
    let node = inserted.as_ref().and_then(|node| node.node_name.clone()).unwrap_or_default();
    let known = nodes.iter().find(|candidate| candidate.node_name.as_deref() == Some(&node));
    let size = |node: &Node| node.image.as_ref().and_then(|image| image.virtual_size);
    let name = device
        .clone()
        .or_else(|| drive.qdev.as_deref().map(|qdev| bare_qdev(qdev).to_owned()))
        .unwrap_or_else(|| node.clone());
    let skip = match (&inserted, drive.removable) {
        (None, _) => Some(SkipReason::Empty),
        (Some(_), true) => Some(SkipReason::Removable),
        (Some(_), false) => None,
    };
    let bitmaps = known.or(inserted.as_ref()).map_or(BitmapSupport::No, BitmapSupport::of);
    Disk {
        name,
        node,
        bitmaps,
        blocks: None,
        qdev: drive.qdev.filter(|qdev| !qdev.is_empty()),
        device,
        size_bytes: known.and_then(size).or_else(|| inserted.as_ref().and_then(size)).unwrap_or(0),
        format: inserted.as_ref().and_then(|node| node.drv.clone()).unwrap_or_default(),
        file: inserted.and_then(|node| node.file),
        skip,
    }
}

/// A node by itself, as qemu-storage-daemon has them. Ours, those that QEMU named, and the bare file under another
/// node are no disks.
fn of_node(node: &Node, all: &[Node]) -> Option<Disk> {
    let name = node.node_name.clone()?;
    let bare = |node: &Node| matches!(node.drv.as_deref(), Some("file" | "host_device"));
    let used = || all.iter().any(|other| !bare(other) && other.file.is_some() && other.file == node.file);
    if name.starts_with('#') || name.starts_with(FAMILY) || (bare(node) && used()) {
        return None;
    }
    Some(Disk {
        name: name.clone(),
        node: name,
        qdev: None,
        device: None,
        file: node.file.clone(),
        size_bytes: node.image.as_ref().and_then(|image| image.virtual_size)?,
        format: node.drv.clone().unwrap_or_default(),
        skip: None,
        bitmaps: BitmapSupport::of(node),
        blocks: None,
    })
}

/// The qdev id without the path that QEMU puts around it.
fn bare_qdev(qdev: &str) -> &str {
    let bare = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    bare.strip_suffix("/virtio-backend").unwrap_or(bare)
}

/// Applies a choice to what there is: gives our names, leaves out empty and removable drives.
///
/// # Errors
/// Unknown and ambiguous selectors, names or disks given twice, an empty drive asked for by name, no disk at all;
/// each lists what there is.
pub fn select(mut all: Vec<Disk>, choice: &DiskChoice) -> Result<Selection> {
    rename(&mut all, &choice.names)?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = all.iter().find(|disk| !seen.insert(disk.name.as_str())) {
        return Err(Error::DiskNameTwice { name: twice.name.clone() });
    }
    let existing: Vec<String> = all.iter().map(Disk::described).collect();
    let selection = if choice.only.is_empty() {
        let (disks, skipped) = all.into_iter().partition(|disk| disk.skip.is_none());
        Selection { disks, skipped }
    } else {
        Selection { disks: pick(&all, &choice.only)?, skipped: Vec::new() }
    };
    if selection.disks.is_empty() {
        return Err(Error::NoDisks { existing });
    }
    Ok(selection)
}

fn rename(all: &mut [Disk], names: &[DiskName]) -> Result<()> {
    let mut given: Vec<(usize, &DiskName)> = Vec::with_capacity(names.len());
    for wanted in names {
        let index = find(all, &wanted.selector)?;
        if given.iter().any(|(_, other)| other.name == wanted.name) {
            return Err(Error::DiskNameTwice { name: wanted.name.clone() });
        }
        if let Some((_, other)) = given.iter().find(|(taken, _)| *taken == index) {
            return Err(Error::DiskTwice {
                first: other.name.clone(),
                second: wanted.name.clone(),
                node: all[index].node.clone(),
            });
        }
        given.push((index, wanted));
    }
    // Only now, so that no selector is matched against a name that was just given.
    for (index, wanted) in given {
        all[index].name.clone_from(&wanted.name);
    }
    Ok(())
}

fn pick(all: &[Disk], only: &[String]) -> Result<Vec<Disk>> {
    let mut picked: Vec<(&String, usize)> = Vec::with_capacity(only.len());
    for wanted in only {
        // A disk's name goes before another disk's file or node of the same text.
        let index = match all.iter().position(|disk| disk.name == *wanted) {
            Some(index) => index,
            None => find(all, wanted)?,
        };
        if all[index].skip == Some(SkipReason::Empty) {
            return Err(Error::EmptyDrive { name: wanted.clone() });
        }
        if let Some((first, _)) = picked.iter().find(|(_, taken)| *taken == index) {
            return Err(if *first == wanted {
                Error::DiskNameTwice { name: wanted.clone() }
            } else {
                let node = all[index].node.clone();
                Error::DiskTwice { first: (*first).clone(), second: wanted.clone(), node }
            });
        }
        picked.push((wanted, index));
    }
    Ok(picked.into_iter().map(|(_, index)| all[index].clone()).collect())
}

fn find(all: &[Disk], selector: &str) -> Result<usize> {
    let matching: Vec<usize> =
        all.iter().enumerate().filter(|(_, disk)| disk.matches(selector)).map(|(index, _)| index).collect();
    match matching[..] {
        [index] => Ok(index),
        [] => Err(Error::NoSuchDisk {
            name: selector.to_owned(),
            existing: all.iter().map(Disk::described).collect(),
        }),
        _ => Err(Error::AmbiguousDisk {
            selector: selector.to_owned(),
            matching: matching.iter().map(|&index| all[index].described()).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, node: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            node: node.to_owned(),
            qdev: Some(format!("/machine/peripheral/{name}/virtio-backend")),
            device: None,
            file: Some(format!("/img/{node}.qcow2")),
            size_bytes: 1 << 20,
            format: "qcow2".to_owned(),
            skip: None,
            bitmaps: BitmapSupport::Persistent,
            blocks: None,
        }
    }

    fn two() -> Vec<Disk> {
        let mut cdrom = disk("cd0", "cd-node");
        cdrom.skip = Some(SkipReason::Removable);
        vec![disk("virtio-disk0", "n0"), disk("virtio-disk1", "n1"), cdrom]
    }

    fn named(pairs: &[(&str, &str)]) -> DiskChoice {
        let name =
            |&(name, selector): &(&str, &str)| DiskName { name: name.into(), selector: selector.into() };
        DiskChoice { names: pairs.iter().map(name).collect(), only: Vec::new() }
    }

    fn only(names: &[&str]) -> DiskChoice {
        DiskChoice { names: Vec::new(), only: names.iter().map(|&name| name.to_owned()).collect() }
    }

    #[test]
    fn all_disks_leaves_out_removable_media_and_reports_them() {
        let selection = select(two(), &DiskChoice::default()).unwrap();
        assert_eq!(selection.disks.len(), 2);
        assert_eq!(selection.skipped[0].name, "cd0");
    }

    #[test]
    fn a_disk_is_named_by_bare_id_path_node_or_file() {
        for selector in
            ["virtio-disk1", "/machine/peripheral/virtio-disk1/virtio-backend", "n1", "/img/n1.qcow2"]
        {
            let selection = select(two(), &named(&[("vdb", selector)])).unwrap();
            assert_eq!(selection.disks[1].name, "vdb", "by {selector}");
        }
    }

    #[test]
    fn an_unknown_disk_lists_what_there_is() {
        let error = select(two(), &only(&["vdz"])).unwrap_err().to_string();
        assert!(error.contains("vdz") && error.contains("virtio-disk0 (n0 /img/n0.qcow2)"), "{error}");
    }

    #[test]
    fn a_name_given_twice_and_a_disk_given_twice_are_told_apart() {
        assert!(matches!(select(two(), &only(&["n0", "n0"])), Err(Error::DiskNameTwice { .. })));
        assert!(matches!(select(two(), &only(&["n0", "virtio-disk0"])), Err(Error::DiskTwice { .. })));
        assert!(matches!(
            select(two(), &named(&[("a", "n0"), ("a", "n1")])),
            Err(Error::DiskNameTwice { .. })
        ));
        assert!(matches!(select(two(), &named(&[("a", "n0"), ("b", "n0")])), Err(Error::DiskTwice { .. })));
    }

    #[test]
    fn a_new_name_that_another_disk_has_already_is_refused() {
        let error = select(two(), &named(&[("virtio-disk1", "n0")])).unwrap_err();
        assert!(matches!(error, Error::DiskNameTwice { .. }), "{error}");
    }

    #[test]
    fn names_can_be_swapped() {
        let choice = named(&[("virtio-disk0", "n1"), ("virtio-disk1", "n0")]);
        let selection = select(two(), &choice).unwrap();
        assert_eq!(
            (selection.disks[0].name.as_str(), selection.disks[0].node.as_str()),
            ("virtio-disk1", "n0")
        );
    }

    #[test]
    fn a_file_that_two_disks_share_is_ambiguous() {
        let mut disks = two();
        disks[1].file = Some("/img/n0.qcow2".to_owned());
        let error = select(disks, &only(&["/img/n0.qcow2"])).unwrap_err();
        assert!(matches!(error, Error::AmbiguousDisk { .. }), "{error}");
    }

    #[test]
    fn an_empty_drive_is_skipped_and_refused_by_name() {
        let mut disks = two();
        disks[0].skip = Some(SkipReason::Empty);
        disks[0].node = String::new();
        assert_eq!(select(disks.clone(), &DiskChoice::default()).unwrap().skipped.len(), 2);
        assert!(matches!(select(disks, &only(&["virtio-disk0"])), Err(Error::EmptyDrive { .. })));
    }

    #[test]
    fn a_domain_without_disks_says_so() {
        assert!(matches!(select(Vec::new(), &DiskChoice::default()), Err(Error::NoDisks { .. })));
    }
}
