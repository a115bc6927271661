//! The pieces that both dialects are written with.
//!
//! Invariant: every value goes through the escaping of the XML library, after [`representable`].

use std::borrow::Cow;
use std::io::{self, Write};

use quick_xml::events::BytesText;
use quick_xml::{ElementWriter, Writer};
use uuid::Uuid;

/// Writes a `<domainbackup>` around what `inner` writes, indented by two spaces, with a line feed at its end.
pub(crate) fn document<W: Write>(
    out: W,
    attributes: &[(&str, Option<&str>)],
    inner: impl FnOnce(&mut Writer<W>) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = Writer::new_with_indent(out, b' ', 2);
    with(writer.create_element("domainbackup"), attributes).write_inner_content(inner)?;
    writer.into_inner().write_all(b"\n")
}

/// Writes `<disks>`, if there is a list of them.
pub(crate) fn disks<W: Write, D>(
    writer: &mut Writer<W>,
    disks: Option<&[D]>,
    mut write: impl FnMut(&D, &mut Writer<W>) -> io::Result<()>,
) -> io::Result<()> {
    let Some(disks) = disks else { return Ok(()) };
    let element = writer.create_element("disks");
    if disks.is_empty() {
        element.write_empty()?;
    } else {
        element.write_inner_content(|inner| disks.iter().try_for_each(|disk| write(disk, inner)))?;
    }
    Ok(())
}

/// Adds the attributes that are there.
pub(crate) fn with<'a, W>(
    element: ElementWriter<'a, W>,
    attributes: &[(&str, Option<&str>)],
) -> ElementWriter<'a, W> {
    attributes.iter().fold(element, |element, (name, value)| match value {
        Some(value) => element.with_attribute((*name, representable(value).as_ref())),
        None => element,
    })
}

/// Writes an element that holds attributes alone.
pub(crate) fn empty<W: Write>(
    writer: &mut Writer<W>,
    name: &str,
    attributes: &[(&str, Option<&str>)],
) -> io::Result<()> {
    with(writer.create_element(name), attributes).write_empty().map(drop)
}

/// Writes an element that holds text alone.
pub(crate) fn text<W: Write>(writer: &mut Writer<W>, element: &str, value: &str) -> io::Result<()> {
    writer.create_element(element).write_text_content(BytesText::new(&representable(value)))?;
    Ok(())
}

/// Writes `<parent><uuid>…</uuid></parent>`.
pub(crate) fn parent<W: Write>(writer: &mut Writer<W>, uuid: Uuid) -> io::Result<()> {
    let parent = writer.create_element("parent");
    parent.write_inner_content(|inner| text(inner, "uuid", &uuid.to_string())).map(drop)
}

/// `yes` or `no`.
pub(crate) fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// `value` without the characters that XML 1.0 forbids even as references: U+FFFD stands for them.
fn representable(value: &str) -> Cow<'_, str> {
    if value.chars().all(super::is_char) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(
        value.chars().map(|c| if super::is_char(c) { c } else { char::REPLACEMENT_CHARACTER }).collect(),
    )
}
