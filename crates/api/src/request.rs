//! What each call makes of a document: which dialect and which elements it takes, and the request it reads out of them,
//! the same from both dialects.
//!
//! Invariant: an element that a call would not obey is refused, and never passed over.

use uuid::Uuid;

use crate::xml::{
    BackupDisk, BackupMode, Dialect, DomainBackup, Element, Image, ImageFormat, ImagePlace, LibvirtBackup,
    LibvirtDisk, Method, Mode, Read, Server, Target, XmlError, XmlFault, with_root,
};

/// Which call a backup is asked for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// `create_backup`: Aquifer moves the data. libvirt's word is push.
    Managed,
    /// `start_unmanaged`: somebody else reads the exports. libvirt's word is pull.
    Unmanaged,
}

/// A backup to make, managed or unmanaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupRequest {
    /// The backup's id; a new one is made if it is not given.
    pub uuid: Option<Uuid>,
    /// Free text.
    pub description: Option<String>,
    /// What to read it against.
    pub parent: Parent,
    /// How to keep the instant; the implementation's choice if it is not said.
    pub method: Option<Method>,
    /// Where disks go that do not say it themselves.
    pub target: Option<Target>,
    /// Where to serve an unmanaged backup.
    pub server: Option<Server>,
    /// How disks are read that do not say it themselves; the flags decide if it is not said here either. libvirt's
    /// dialect always says it: without a checkpoint, whole.
    pub mode: Option<BackupMode>,
    /// The disks; `None` for all of the domain's. A disk that a list leaves out stays out, in both dialects.
    pub disks: Option<Vec<DiskRequest>>,
}

/// What a backup, or a disk of it, is to be read against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Parent {
    /// The newest completed backup of each disk.
    #[default]
    Newest,
    /// This backup.
    Backup(Uuid),
    /// The backup that belongs to the checkpoint of this name.
    Checkpoint(String),
}

/// One disk of a [`BackupRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskRequest {
    /// Its name.
    pub name: String,
    /// True if it is not to be backed up.
    pub excluded: bool,
    /// Whole, or what changed, if not as the others.
    pub mode: Option<BackupMode>,
    /// What to read it against, if not what the whole backup is.
    pub parent: Option<Parent>,
    /// Where it goes, if it is not where the others go.
    pub target: Option<Target>,
    /// The image that keeps what the guest overwrites meanwhile.
    pub scratch: Option<Image>,
    /// The name of its export.
    pub export_name: Option<String>,
    /// The name of its bitmap of changes.
    pub export_bitmap: Option<String>,
}

/// Disks to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The backup.
    pub backup: Uuid,
    /// The new domain's name, with NEW_DOMAIN; one is made if it is not given.
    pub name: Option<String>,
    /// Where disks go that do not say it themselves.
    pub target: Option<Target>,
    /// Which disks, and where each goes; `None` for all of the backup's. A disk without a target goes where it came from, and so does one
    /// whose target is a chunkstore: that says where the backup is.
    pub disks: Option<Vec<(String, Option<Target>)>>,
}

const BACKUP_WHY: &str = "it describes a backup that there is already; leave it out";

impl BackupRequest {
    /// Reads the document of `create_backup` or `start_unmanaged`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub fn parse(text: &str, start: Start) -> Result<BackupRequest, XmlError> {
        let call = match start {
            Start::Managed => "a managed backup",
            Start::Unmanaged => "an unmanaged backup",
        };
        with_root(text, |root, dialect| {
            refuse(&root, &["creationTime", "state", "domain"], call, BACKUP_WHY)?;
            refuse(&root, &["name"], call, "only a restore makes a new domain; leave it out")?;
            each_disk(&root, |disk| {
                refuse_attributes(disk, &["size", "stored", "digest", "state", "index"], call, BACKUP_WHY)?;
                match dialect {
                    Dialect::Proposal => refuse(disk, &["parent"], call, BACKUP_WHY),
                    Dialect::Libvirt => checkpoint_is_named(&root, disk),
                }
            })?;
            something_is_left(&root)?;
            fits(&root, dialect, start, call)?;
            Ok(match dialect {
                Dialect::Proposal => from_proposal(DomainBackup::read(root, text)?),
                Dialect::Libvirt => from_libvirt(LibvirtBackup::read(root)?),
            })
        })
    }
}

impl BackupRequest {
    /// Whether everything goes into repositories of Aquifer: then nobody else reads, however it is started.
    pub fn is_for_stores(&self) -> bool {
        let store = |target: &Option<Target>| matches!(target, Some(Target::ChunkStore { .. }));
        let wanted = || self.disks.iter().flatten().filter(|disk| !disk.excluded);
        match (&self.disks, &self.target) {
            (None, target) => store(target),
            (Some(_), target) => {
                wanted().all(|disk| store(&disk.target) || disk.target.is_none() && store(target))
            }
        }
    }
}

/// Refuses a pull that is to be managed, and a push that is not.
fn fits(root: &Element<'_>, dialect: Dialect, start: Start, call: &'static str) -> Read<()> {
    let mode = root.attributes.iter().find(|one| one.name == "mode");
    let (what, why, at) = match (start, dialect, mode.filter(|mode| mode.value == "pull")) {
        (Start::Managed, _, Some(mode)) => {
            ("mode='pull'", "a pull is read by somebody else: start it as an unmanaged backup", mode.at)
        }
        (Start::Unmanaged, Dialect::Libvirt, None) => {
            let why = "nobody would read the exports: write mode='pull', or start it as a managed backup";
            ("mode='push'", why, root.at())
        }
        _ => return Ok(()),
    };
    Err(XmlFault::Misplaced { what: what.to_owned(), call, why }.at(at))
}

fn from_proposal(backup: DomainBackup) -> BackupRequest {
    let disk = |disk: BackupDisk| DiskRequest {
        name: disk.name,
        excluded: disk.excluded,
        mode: disk.mode,
        target: disk.target,
        ..DiskRequest::default()
    };
    BackupRequest {
        uuid: backup.uuid,
        description: backup.description,
        parent: backup.parent.map_or(Parent::Newest, Parent::Backup),
        method: backup.method,
        target: backup.target,
        disks: listed(backup.disks, disk),
        ..BackupRequest::default()
    }
}

fn from_libvirt(backup: LibvirtBackup) -> BackupRequest {
    let (pull, server) = match backup.mode {
        Mode::Push => (false, None),
        Mode::Pull(server) => (true, server),
    };
    let mode = if backup.incremental.is_some() { BackupMode::Incremental } else { BackupMode::Full };
    BackupRequest {
        parent: backup.incremental.map_or(Parent::Newest, Parent::Checkpoint),
        server,
        mode: Some(mode),
        disks: listed(backup.disks, |disk| from_libvirt_disk(disk, pull)),
        ..BackupRequest::default()
    }
}

/// A list with something in it; an empty one means all, as in libvirt.
fn listed<D, R>(disks: Option<Vec<D>>, request: impl Fn(D) -> R) -> Option<Vec<R>> {
    disks.filter(|disks| !disks.is_empty()).map(|disks| disks.into_iter().map(request).collect())
}

fn from_libvirt_disk(disk: LibvirtDisk, pull: bool) -> DiskRequest {
    let target = match (pull, &disk.image.place) {
        (true, _) | (false, ImagePlace::File(None)) => None,
        // libvirt writes qcow2 where the document does not say.
        (false, ImagePlace::File(Some(source))) => Some(Target::File {
            path: source.path.clone(),
            format: disk.image.format.or(Some(ImageFormat::Qcow2)),
        }),
        (false, ImagePlace::Block(source)) => Some(Target::Block {
            path: source.path.clone(),
            format: disk.image.format.or(Some(ImageFormat::Qcow2)),
        }),
    };
    DiskRequest {
        name: disk.name,
        excluded: disk.excluded,
        mode: disk.mode.or(disk.incremental.as_ref().map(|_| BackupMode::Incremental)),
        parent: disk.incremental.map(Parent::Checkpoint),
        target,
        scratch: (pull && !disk.excluded).then_some(disk.image),
        export_name: disk.export_name,
        export_bitmap: disk.export_bitmap,
    }
}

impl RestoreRequest {
    /// Reads the document of `restore`: the whole output of `get_xml`, or a part of it.
    ///
    /// # Errors
    /// [`XmlError`].
    pub fn parse(text: &str) -> Result<RestoreRequest, XmlError> {
        with_root(text, |root, dialect| {
            if dialect == Dialect::Libvirt {
                let what = "libvirt's dialect".to_owned();
                let why = "it cannot name a backup; write <domainbackup><uuid>…</uuid></domainbackup>";
                return Err(XmlFault::Misplaced { what, call: "a restore", why }.at(root.at()));
            }
            something_is_left(&root)?;
            let nameless = root.missing("the <uuid> of the backup");
            let backup = DomainBackup::read(root, text)?;
            let named = |disks: Vec<BackupDisk>| disks.into_iter().filter(|disk| !disk.excluded).collect();
            let disks =
                listed(backup.disks.map(named), |disk| (disk.name, disk.target.filter(is_destination)));
            Ok(RestoreRequest {
                backup: backup.uuid.ok_or(nameless)?,
                name: backup.name,
                target: backup.target.filter(is_destination),
                disks,
            })
        })
    }
}

/// False for the target that says where Aquifer keeps the backup, which is where a restore comes from.
fn is_destination(target: &Target) -> bool {
    !matches!(target, Target::ChunkStore { .. })
}

/// Reads the document of `set_default_target`: a `<domainbackup>` with a `<target>`, and nothing else.
///
/// # Errors
/// [`XmlError`].
pub fn parse_default_target(text: &str) -> Result<Target, XmlError> {
    with_root(text, |mut root, _| {
        let target = root.child("target")?.ok_or_else(|| root.missing("a <target>"))?;
        root.done()?;
        Target::read(target)
    })
}

/// libvirt's rule: what is read since a checkpoint names the checkpoint, for itself or for all.
fn checkpoint_is_named(root: &Element<'_>, disk: &Element<'_>) -> Read<()> {
    let incremental =
        disk.attributes.iter().any(|one| one.name == "backupmode" && one.value == "incremental");
    if incremental && !disk.has("incremental") && root.first("incremental").is_none() {
        return Err(disk.missing("a checkpoint: an attribute incremental, or <incremental> in the document"));
    }
    Ok(())
}

/// A list names what is wanted; with one that only names what is not, a call would do nothing.
fn something_is_left(root: &Element<'_>) -> Read<()> {
    let excluded =
        |disk: &&Element<'_>| disk.attributes.iter().any(|one| one.name == "backup" && one.value == "no");
    match root.first("disks") {
        Some(list) if !list.children.is_empty() && list.children.iter().all(|disk| excluded(&disk)) => {
            Err(list.missing("a disk without backup='no': a disk that is not listed is not wanted either; leave <disks> out for all"))
        }
        _ => Ok(()),
    }
}

fn refuse(element: &Element<'_>, names: &[&str], call: &'static str, why: &'static str) -> Read<()> {
    match element.children.iter().find(|child| names.contains(&child.name)) {
        Some(child) => {
            Err(XmlFault::Misplaced { what: format!("<{}>", child.name), call, why }.at(child.at()))
        }
        None => Ok(()),
    }
}

fn refuse_attributes(
    element: &Element<'_>,
    names: &[&str],
    call: &'static str,
    why: &'static str,
) -> Read<()> {
    match element.attributes.iter().find(|one| names.contains(&one.name)) {
        Some(one) => {
            let what = format!("the attribute {} of a <disk>", one.name);
            Err(XmlFault::Misplaced { what, call, why }.at(one.at))
        }
        None => Ok(()),
    }
}

fn each_disk(root: &Element<'_>, check: impl Fn(&Element<'_>) -> Read<()>) -> Read<()> {
    let disks = root.children.iter().filter(|child| child.name == "disks").flat_map(|list| &list.children);
    disks.filter(|child| child.name == "disk").try_for_each(check)
}
