//! The images of libvirt's dialect: the target of a push, the scratch image of a pull, and their security labels.
//!
//! Invariant: LUKS is refused, and no label is passed over.

use std::io::{self, Write};

use quick_xml::Writer;

use super::element::{absolute, wrong};
use super::error::{Read, XmlFault};
use super::target::ImageFormat;
use super::tree::Element;
use super::writing::{self, text};

/// An image that QEMU writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// File or device.
    pub place: ImagePlace,
    /// Its format; qcow2 if it is not said.
    pub format: Option<ImageFormat>,
}

/// The place of an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlace {
    /// A file; without a source, beside the disk's own under a name of libvirt's making.
    File(Option<ImageSource>),
    /// A device.
    Block(ImageSource),
}

/// Path and security labels of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// Absolute path.
    pub path: String,
    /// Labels. They are kept, and not applied to what is not on this host.
    pub seclabels: Vec<Seclabel>,
}

/// How one security model is to label an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seclabel {
    /// `selinux`, `dac`, …
    pub model: Option<String>,
    /// The label; `None` for `relabel='no'`.
    pub label: Option<String>,
}

impl Default for Image {
    fn default() -> Self {
        Image { place: ImagePlace::File(None), format: None }
    }
}

impl Image {
    pub(super) fn read(disk: &mut Element<'_>, pull: bool) -> Read<Image> {
        let block = disk.parsed("type", "file or block", |text| match text {
            "file" => Some(false),
            "block" => Some(true),
            _ => None,
        })?;
        let at = disk.at();
        let format = ImageFormat::driver(disk)?;
        if pull && format == Some(ImageFormat::Raw) {
            return Err(wrong(at, "the <driver> of a scratch image".to_owned(), "raw", "qcow2"));
        }
        let inner = disk.child(if pull { "scratch" } else { "target" })?;
        let place = if block == Some(true) {
            let what = if pull { "<scratch dev='…'>" } else { "<target dev='…'>" };
            let inner = inner.ok_or_else(|| disk.missing(what))?;
            ImagePlace::Block(ImageSource::read(inner, "dev", "the attribute dev")?)
        } else {
            let source = inner.map(|inner| ImageSource::read(inner, "file", "the attribute file"));
            ImagePlace::File(source.transpose()?)
        };
        Ok(Image { place, format })
    }
}

impl ImageSource {
    fn read(mut element: Element<'_>, attribute: &'static str, what: &'static str) -> Read<ImageSource> {
        let path = element.parsed(attribute, "an absolute path", absolute)?;
        let path = path.ok_or_else(|| element.missing(what))?;
        if let Some(encryption) = element.first("encryption") {
            let (what, why) = ("<encryption>".to_owned(), "images are not written as LUKS; leave it out");
            return Err(XmlFault::Unsupported { what, why }.at(encryption.at()));
        }
        let seclabels = element.all("seclabel").into_iter().map(Seclabel::read).collect::<Read<_>>()?;
        element.done()?;
        Ok(ImageSource { path, seclabels })
    }

    pub(super) fn write<W: Write>(
        &self,
        writer: &mut Writer<W>,
        name: &str,
        attribute: &str,
    ) -> io::Result<()> {
        let element = writing::with(writer.create_element(name), &[(attribute, Some(&self.path))]);
        if self.seclabels.is_empty() {
            return element.write_empty().map(drop);
        }
        element
            .write_inner_content(|writer| self.seclabels.iter().try_for_each(|label| label.write(writer)))
            .map(drop)
    }
}

impl Seclabel {
    fn read(mut element: Element<'_>) -> Read<Seclabel> {
        let model = element.string("model");
        let relabel = element.yes_no("relabel")?;
        let label = element.child("label")?;
        let label = match (relabel, label) {
            (Some(false), None) => None,
            (Some(false), Some(label)) => {
                return Err(wrong(
                    label.at(),
                    "attribute relabel of a <seclabel> with a <label>".to_owned(),
                    "no",
                    "yes",
                ));
            }
            (_, None) => return Err(element.missing("a <label>, or relabel='no'")),
            (_, Some(label)) => Some(label.into_text()?),
        };
        element.done()?;
        Ok(Seclabel { model, label })
    }

    fn write<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        let model = ("model", self.model.as_deref());
        match &self.label {
            None => writing::empty(writer, "seclabel", &[model, ("relabel", Some("no"))]),
            Some(label) => writing::with(writer.create_element("seclabel"), &[model])
                .write_inner_content(|inner| text(inner, "label", label))
                .map(drop),
        }
    }
}
