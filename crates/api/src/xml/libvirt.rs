//! libvirt's dialect of `<domainbackup>`, as it shipped with `virDomainBackupBegin`.
//!
//! What libvirt ignores is refused here: an `exportname` in a push, anything but the name at `backup='no'`. What only its
//! own status files hold (`<privateData>`) is refused as well; `state` and `index`, which its output has, are taken.
//!
//! Invariant: what is written is read back as the same value, except for characters that XML cannot carry at all.

use std::io::{self, Write};

use quick_xml::Writer;

use super::backup::{BackupMode, disk_name, read_disks};
use super::element::{absolute, decimal, wrong};
use super::error::{Read, XmlFault};
use super::image::{Image, ImagePlace};
use super::tree::Element;
use super::writing::{self, text, yes_no};

/// A backup in libvirt's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibvirtBackup {
    /// Who moves the data.
    pub mode: Mode,
    /// The checkpoint from which changes count, for every disk that does not say otherwise.
    pub incremental: Option<String>,
    /// The disks; `None` for all of the domain's.
    pub disks: Option<Vec<LibvirtDisk>>,
}

/// Who moves the data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// The hypervisor, into files or devices.
    #[default]
    Push,
    /// A client, from exports of this server.
    Pull(Option<Server>),
}

/// Where a pull is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether it speaks TLS; libvirt's configuration decides if it is not said.
    pub tls: Option<bool>,
}

/// The endpoint of a [`Server`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Host name or address, and port.
    Tcp(String, Option<u16>),
    /// Absolute path of a unix socket.
    Unix(String),
}

/// One disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibvirtDisk {
    /// The disk's name, such as `vda`.
    pub name: String,
    /// `backup='no'`: not in the backup. Then nothing else of the disk is written.
    pub excluded: bool,
    /// Whether it is read whole.
    pub mode: Option<BackupMode>,
    /// The checkpoint from which changes of this disk count.
    pub incremental: Option<String>,
    /// In a pull: the export's name; the disk's if it is not said.
    pub export_name: Option<String>,
    /// In a pull: the name of the bitmap of changes.
    pub export_bitmap: Option<String>,
    /// In libvirt's output: where the disk's job is.
    pub state: Option<DiskState>,
    /// In libvirt's output: the number of the disk's node.
    pub index: Option<u32>,
    /// In a push the target, in a pull the scratch image.
    pub image: Image,
}

/// Where a disk's job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// Under way.
    Running,
    /// Over.
    Complete,
    /// Over, with an error.
    Failed,
    /// Being ended.
    Cancelling,
    /// Ended.
    Cancelled,
}

const STATES: [(&str, DiskState); 5] = [
    ("running", DiskState::Running),
    ("complete", DiskState::Complete),
    ("failed", DiskState::Failed),
    ("cancelling", DiskState::Cancelling),
    ("cancelled", DiskState::Cancelled),
];

impl LibvirtBackup {
    pub(crate) fn read(mut root: Element<'_>) -> Read<LibvirtBackup> {
        let pull = root.parsed("mode", "push or pull", |text| match text {
            "push" => Some(false),
            "pull" => Some(true),
            _ => None,
        })?;
        let pull = pull == Some(true);
        let mode =
            if pull { Mode::Pull(root.child("server")?.map(Server::read).transpose()?) } else { Mode::Push };
        let backup = LibvirtBackup {
            mode,
            incremental: root.child("incremental")?.map(Element::into_text).transpose()?,
            disks: read_disks(&mut root, |disk| LibvirtDisk::read(disk, pull), |disk| &disk.name)?,
        };
        if let (false, Some(server)) = (pull, root.first("server")) {
            let why = "the mode is push; write mode='pull'";
            return Err(
                XmlFault::Misplaced { what: "<server>".to_owned(), call: "a push", why }.at(server.at())
            );
        }
        if let Some(private) = root.first("privateData") {
            let what = "<privateData>".to_owned();
            let why = "it is of libvirt's own status files; leave it out";
            return Err(XmlFault::Unsupported { what, why }.at(private.at()));
        }
        root.done()?;
        Ok(backup)
    }

    /// Writes the document, as [`DomainBackup::write`](super::DomainBackup::write) does.
    ///
    /// # Errors
    /// Whatever `out` reports.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mode = match self.mode {
            Mode::Push => "push",
            Mode::Pull(_) => "pull",
        };
        writing::document(out, &[("mode", Some(mode))], |writer| {
            self.incremental.as_ref().map_or(Ok(()), |name| text(writer, "incremental", name))?;
            if let Mode::Pull(Some(server)) = &self.mode {
                server.write(writer)?;
            }
            let inner = if mode == "push" { "target" } else { "scratch" };
            writing::disks(writer, self.disks.as_deref(), |disk, writer| disk.write(writer, inner))
        })
    }
}

impl Server {
    fn read(mut element: Element<'_>) -> Read<Server> {
        let at = element.at();
        let tls = element.yes_no("tls")?;
        let transport = element.string("transport").unwrap_or_else(|| "tcp".to_owned());
        let endpoint = match transport.as_str() {
            "tcp" => {
                let name = element.required("name", "the attribute name: a host")?.value;
                Endpoint::Tcp(
                    name,
                    element.parsed("port", "a port from 1 to 65535", |text| {
                        decimal::<u16>(text).filter(|port| *port != 0)
                    })?,
                )
            }
            "unix" => {
                let socket = element.parsed("socket", "an absolute path", absolute)?;
                Endpoint::Unix(socket.ok_or_else(|| element.missing("the attribute socket"))?)
            }
            "fd" => {
                let (what, why) =
                    ("transport='fd'".to_owned(), "descriptors do not reach another host; write tcp or unix");
                return Err(XmlFault::Unsupported { what, why }.at(at));
            }
            other => {
                return Err(wrong(at, "attribute transport of <server>".to_owned(), other, "tcp or unix"));
            }
        };
        element.done()?;
        Ok(Server { endpoint, tls })
    }

    fn write<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        let tls = self.tls.map(yes_no);
        match &self.endpoint {
            Endpoint::Tcp(name, port) => {
                let port = port.map(|port| port.to_string());
                let attributes = [
                    ("transport", Some("tcp")),
                    ("tls", tls),
                    ("name", Some(name)),
                    ("port", port.as_deref()),
                ];
                writing::empty(writer, "server", &attributes)
            }
            Endpoint::Unix(socket) => {
                let attributes =
                    [("transport", Some("unix")), ("tls", tls), ("socket", Some(socket.as_str()))];
                writing::empty(writer, "server", &attributes)
            }
        }
    }
}

impl LibvirtDisk {
    fn read(mut element: Element<'_>, pull: bool) -> Read<LibvirtDisk> {
        let mut disk = LibvirtDisk { name: disk_name(&mut element)?, ..LibvirtDisk::default() };
        disk.excluded = element.yes_no("backup")? == Some(false);
        if !disk.excluded {
            disk.mode = BackupMode::read(&mut element)?;
            disk.incremental = element.string("incremental");
            if pull {
                disk.export_name = element.string("exportname");
                disk.export_bitmap = element.string("exportbitmap");
            }
            disk.state = element.parsed("state", "a state of libvirt's", |text| {
                STATES.iter().find(|(word, _)| *word == text).map(|(_, state)| *state)
            })?;
            disk.index = element.number("index", "a number")?;
            disk.image = Image::read(&mut element, pull)?;
            if let (Some(BackupMode::Full), Some(name)) = (disk.mode, &disk.incremental) {
                let place = "attribute incremental of a disk with backupmode='full'".to_owned();
                return Err(wrong(
                    element.at(),
                    place,
                    name,
                    "none: a full backup counts from no checkpoint",
                ));
            }
        }
        element.done()?;
        Ok(disk)
    }

    fn write<W: Write>(&self, writer: &mut Writer<W>, inner: &str) -> io::Result<()> {
        if self.excluded {
            return writing::empty(writer, "disk", &[("name", Some(&self.name)), ("backup", Some("no"))]);
        }
        let index = self.index.map(|index| index.to_string());
        let state = self.state.and_then(|state| STATES.iter().find(|(_, known)| *known == state));
        let (kind, attribute, source) = match &self.image.place {
            ImagePlace::File(source) => ("file", "file", source.as_ref()),
            ImagePlace::Block(source) => ("block", "dev", Some(source)),
        };
        let attributes = [
            ("name", Some(self.name.as_str())),
            ("backup", Some("yes")),
            ("state", state.map(|(word, _)| *word)),
            ("type", Some(kind)),
            ("backupmode", self.mode.map(BackupMode::as_str)),
            ("incremental", self.incremental.as_deref()),
            ("exportname", self.export_name.as_deref()),
            ("exportbitmap", self.export_bitmap.as_deref()),
            ("index", index.as_deref()),
        ];
        let element = writing::with(writer.create_element("disk"), &attributes);
        if self.image.format.is_none() && source.is_none() {
            return element.write_empty().map(drop);
        }
        element
            .write_inner_content(|writer| {
                self.image.format.map_or(Ok(()), |format| format.write(writer))?;
                source.map_or(Ok(()), |source| source.write(writer, inner, attribute))
            })
            .map(drop)
    }
}
