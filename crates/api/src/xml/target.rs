//! Where the data of a disk goes: the proposal leaves the inside of `<target>` open, and this is ours. It follows the
//! words that libvirt uses for the source of a disk.
//!
//! Not here: libvirt's own `<target>` of a backup, which has no type (`libvirt.rs`).

use std::io::{self, Write};

use quick_xml::Writer;

use super::element::{absolute, wrong};
use super::error::{Read, XmlFault};
use super::tree::Element;
use super::writing::{empty, with};

/// Where the data of a disk goes, or is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into a repository of Aquifer: `<target type="chunkstore" store="…" namespace="…"/>`.
    ChunkStore {
        /// The repository, by its configured name, else by its URL.
        store: String,
        /// A part of the repository; `None` for the whole.
        namespace: Option<String>,
    },
    /// Into an image file: `<target type="file"><source file="…"/><driver type="…"/></target>`.
    File {
        /// Its absolute path.
        path: String,
        /// Its format; raw if it is not said.
        format: Option<ImageFormat>,
    },
    /// Into a block device: `<target type="block"><source dev="…"/><driver type="…"/></target>`.
    Block {
        /// Its absolute path.
        path: String,
        /// Its format; raw if it is not said.
        format: Option<ImageFormat>,
    },
    /// Into a volume of a storage pool: `<target type="volume"><source pool="…" volume="…"/></target>`.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name.
        volume: String,
    },
    /// Over NBD: `<target type="nbd"><source uri="…" context="…"/></target>`. In the request for an unmanaged backup the
    /// source can be left out; Aquifer then picks the endpoint, and the description names it.
    Nbd(Option<NbdSource>),
}

/// An export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdSource {
    /// Its URI: `nbd://`, `nbds://`, `nbd+unix://` or `nbds+unix://`.
    pub uri: String,
    /// The metadata context that tells which blocks changed, such as `qemu:dirty-bitmap:NAME`.
    pub context: Option<String>,
}

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl ImageFormat {
    /// The word in XML.
    pub fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

const KINDS: &str = "chunkstore, file, block, volume or nbd";

impl Target {
    pub(crate) fn read(mut element: Element<'_>) -> Read<Target> {
        let kind = element.required("type", "the attribute type: chunkstore, file, block, volume or nbd")?;
        let target = match kind.value.as_str() {
            "chunkstore" => {
                let store = element.required("store", "the attribute store")?.value;
                Target::ChunkStore { store, namespace: element.string("namespace") }
            }
            "file" => {
                let path = path(&mut element, "file", "<source file='…'/>")?;
                Target::File { path, format: ImageFormat::driver(&mut element)? }
            }
            "block" => {
                let path = path(&mut element, "dev", "<source dev='…'/>")?;
                Target::Block { path, format: ImageFormat::driver(&mut element)? }
            }
            "volume" => {
                let what = "<source pool='…' volume='…'/>";
                let mut source = element.child("source")?.ok_or_else(|| element.missing(what))?;
                let pool = source.required("pool", "the attribute pool")?.value;
                let volume = source.required("volume", "the attribute volume")?.value;
                source.done()?;
                Target::Volume { pool, volume }
            }
            "nbd" => Target::Nbd(element.child("source")?.map(NbdSource::read).transpose()?),
            other => return Err(wrong(kind.at, "attribute type of <target>".to_owned(), other, KINDS)),
        };
        element.done()?;
        Ok(target)
    }

    pub(crate) fn write<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        match self {
            Target::ChunkStore { store, namespace } => {
                let attributes = [("store", Some(store.as_str())), ("namespace", namespace.as_deref())];
                with(writer.create_element("target").with_attribute(("type", "chunkstore")), &attributes)
                    .write_empty()
                    .map(drop)
            }
            Target::File { path, format } => image(writer, "file", "file", path, *format),
            Target::Block { path, format } => image(writer, "block", "dev", path, *format),
            Target::Volume { pool, volume } => around(writer, "volume", |inner| {
                empty(inner, "source", &[("pool", Some(pool)), ("volume", Some(volume))])
            }),
            Target::Nbd(None) => empty(writer, "target", &[("type", Some("nbd"))]),
            Target::Nbd(Some(source)) => around(writer, "nbd", |inner| {
                empty(inner, "source", &[("uri", Some(&source.uri)), ("context", source.context.as_deref())])
            }),
        }
    }
}

/// The absolute path in the source of a file or a device.
fn path(element: &mut Element<'_>, name: &'static str, what: &'static str) -> Read<String> {
    let mut source = element.child("source")?.ok_or_else(|| element.missing(what))?;
    let path = source.parsed(name, "an absolute path", absolute)?.ok_or_else(|| source.missing(what))?;
    source.done()?;
    Ok(path)
}

impl NbdSource {
    fn read(mut element: Element<'_>) -> Read<NbdSource> {
        let expected = "an nbd://, nbds://, nbd+unix:// or nbds+unix:// URI without blanks";
        let uri = element.parsed("uri", expected, |text| is_nbd(text).then(|| text.to_owned()))?;
        let uri = uri.ok_or_else(|| element.missing("the attribute uri"))?;
        let context = element.string("context");
        element.done()?;
        Ok(NbdSource { uri, context })
    }
}

fn is_nbd(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    matches!(scheme, Some("nbd" | "nbds" | "nbd+unix" | "nbds+unix"))
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

impl ImageFormat {
    /// Takes `<driver type='…'/>` out.
    pub(crate) fn driver(element: &mut Element<'_>) -> Read<Option<ImageFormat>> {
        let Some(mut driver) = element.child("driver")? else { return Ok(None) };
        let kind = driver.required("type", "the attribute type")?;
        let format = match kind.value.as_str() {
            "raw" => ImageFormat::Raw,
            "qcow2" => ImageFormat::Qcow2,
            other => {
                let what = format!("the image format {:?}", super::attributes::short(other));
                return Err(XmlFault::Unsupported { what, why: "write raw or qcow2" }.at(kind.at));
            }
        };
        driver.done()?;
        Ok(Some(format))
    }

    /// Writes `<driver type="…"/>`.
    pub(crate) fn write<W: Write>(self, writer: &mut Writer<W>) -> io::Result<()> {
        empty(writer, "driver", &[("type", Some(self.as_str()))])
    }
}

fn around<W: Write>(
    writer: &mut Writer<W>,
    kind: &str,
    inner: impl FnOnce(&mut Writer<W>) -> io::Result<()>,
) -> io::Result<()> {
    writer.create_element("target").with_attribute(("type", kind)).write_inner_content(inner).map(drop)
}

fn image<W: Write>(
    writer: &mut Writer<W>,
    kind: &str,
    attribute: &str,
    path: &str,
    format: Option<ImageFormat>,
) -> io::Result<()> {
    around(writer, kind, |inner| {
        empty(inner, "source", &[(attribute, Some(path))])?;
        format.map_or(Ok(()), |format| format.write(inner))
    })
}
