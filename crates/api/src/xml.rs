//! Writing the `<domainbackup>` description of one backup.
//!
//! Only the writer is here: nothing reads these documents yet. The element order is the one of the proposal's
//! own example (uuid, creationTime, description, parent, disks). The proposal's example closes `<parent>` with
//! a second `<parent>`, which no parser accepts; it is closed properly here.
//!
//! Invariant: every value goes through the escaping of the XML writer, after [`representable`].

use std::borrow::Cow;
use std::io::{self, Write};

use quick_xml::Writer;
use quick_xml::events::BytesText;
use uuid::Uuid;

/// The description of one finished backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainBackup {
    /// The backup's own id.
    pub uuid: Uuid,
    /// When the backup's instant was taken, in whole seconds since 1970-01-01T00:00:00Z.
    pub creation_time: i64,
    /// Free text of the person who asked for the backup; `None` leaves the element out.
    pub description: Option<String>,
    /// The backup that this one was read against; `None` when no disk had an earlier one.
    pub parent: Option<Uuid>,
    /// The disks, in the order of the backup.
    pub disks: Vec<BackupDisk>,
}

/// One disk of a [`DomainBackup`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupDisk {
    /// The disk's name in the backup, such as `vda`.
    pub name: String,
    /// Where the disk's data is.
    pub target: Target,
}

/// Where the data of a disk was put: the proposal leaves the inside of `<target>` open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// In a repository of Aquifer: `<target type="chunkstore" store="…"/>`.
    ChunkStore {
        /// The repository, by its configured name, else by its URL.
        store: String,
    },
}

impl DomainBackup {
    /// Writes the document, indented by two spaces, with a line feed at its end.
    ///
    /// Characters that XML 1.0 cannot carry in any form (most control characters, U+FFFE, U+FFFF; section 2.2,
    /// production `Char`) are written as U+FFFD.
    ///
    /// # Errors
    /// Whatever `out` reports.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut writer = Writer::new_with_indent(out, b' ', 2);
        writer.create_element("domainbackup").write_inner_content(|inner| self.write_inner(inner))?;
        writer.into_inner().write_all(b"\n")
    }

    fn write_inner<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        text(writer, "uuid", &self.uuid.to_string())?;
        text(writer, "creationTime", &self.creation_time.to_string())?;
        if let Some(description) = &self.description {
            text(writer, "description", description)?;
        }
        if let Some(parent) = self.parent {
            writer
                .create_element("parent")
                .write_inner_content(|inner| text(inner, "uuid", &parent.to_string()))?;
        }
        let disks = writer.create_element("disks");
        if self.disks.is_empty() {
            disks.write_empty()?;
        } else {
            disks.write_inner_content(|inner| self.disks.iter().try_for_each(|disk| disk.write(inner)))?;
        }
        Ok(())
    }
}

impl BackupDisk {
    fn write<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        writer
            .create_element("disk")
            .with_attribute(("name", representable(&self.name).as_ref()))
            .write_inner_content(|inner| self.target.write(inner))?;
        Ok(())
    }
}

impl Target {
    fn write<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        match self {
            Target::ChunkStore { store } => writer
                .create_element("target")
                .with_attribute(("type", "chunkstore"))
                .with_attribute(("store", representable(store).as_ref()))
                .write_empty()?,
        };
        Ok(())
    }
}

fn text<W: Write>(writer: &mut Writer<W>, element: &str, value: &str) -> io::Result<()> {
    writer.create_element(element).write_text_content(BytesText::new(&representable(value)))?;
    Ok(())
}

/// `value` without the characters that XML 1.0 forbids even as references.
fn representable(value: &str) -> Cow<'_, str> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    if value.chars().all(allowed) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.chars().map(|c| if allowed(c) { c } else { char::REPLACEMENT_CHARACTER }).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quick_xml::Reader;
    use quick_xml::events::Event;

    use super::*;

    fn uuid(text: &str) -> Uuid {
        text.parse().unwrap()
    }

    fn nightly() -> DomainBackup {
        let disk = |name: &str| BackupDisk {
            name: name.to_owned(),
            target: Target::ChunkStore { store: "main".to_owned() },
        };
        DomainBackup {
            uuid: uuid("54c70d40-26bb-48cd-9639-b3a1e9adf650"),
            creation_time: 1_270_477_159,
            description: Some("nightly".to_owned()),
            parent: Some(uuid("d2ee2566-bef2-408f-ac7a-eb8004186074")),
            disks: vec![disk("vda"), disk("vdb")],
        }
    }

    fn written(backup: &DomainBackup) -> String {
        let mut out = Vec::new();
        backup.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Every element with text, as `path=text`, and every attribute, as `path@name=value`, read back by the
    /// parser; the parser also checks that each end tag matches its start tag.
    fn read_back(xml: &str) -> Vec<String> {
        let mut reader = Reader::from_str(xml);
        let (mut path, mut found, mut text) = (Vec::new(), Vec::new(), String::new());
        let attributes =
            |path: &[String], tag: &quick_xml::events::BytesStart<'_>, found: &mut Vec<String>| {
                for attribute in tag.attributes() {
                    let attribute = attribute.unwrap();
                    let value = attribute.normalized_value(quick_xml::XmlVersion::Explicit1_0).unwrap();
                    found.push(format!("{}@{}={value}", path.join("/"), attribute.key.as_ref()));
                }
            };
        loop {
            match reader.read_event().unwrap() {
                Event::Start(tag) => {
                    path.push(tag.name().as_ref().to_owned());
                    attributes(&path, &tag, &mut found);
                    text.clear();
                }
                Event::Empty(tag) => {
                    path.push(tag.name().as_ref().to_owned());
                    attributes(&path, &tag, &mut found);
                    path.pop();
                }
                Event::Text(part) => text.push_str(&part),
                Event::GeneralRef(reference) => {
                    text.push_str(&quick_xml::escape::unescape(&format!("&{};", &*reference)).unwrap())
                }
                Event::End(_) => {
                    if matches!(
                        path.last().map(String::as_str),
                        Some("uuid" | "creationTime" | "description")
                    ) {
                        found.push(format!("{}={text}", path.join("/")));
                    }
                    path.pop();
                    text.clear();
                }
                Event::Eof => return found,
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    #[test]
    fn a_whole_description_has_the_shape_of_the_proposal() {
        let expected = "\
<domainbackup>
  <uuid>54c70d40-26bb-48cd-9639-b3a1e9adf650</uuid>
  <creationTime>1270477159</creationTime>
  <description>nightly</description>
  <parent>
    <uuid>d2ee2566-bef2-408f-ac7a-eb8004186074</uuid>
  </parent>
  <disks>
    <disk name=\"vda\">
      <target type=\"chunkstore\" store=\"main\"/>
    </disk>
    <disk name=\"vdb\">
      <target type=\"chunkstore\" store=\"main\"/>
    </disk>
  </disks>
</domainbackup>
";
        assert_eq!(written(&nightly()), expected);
    }

    #[test]
    fn what_a_backup_lacks_is_left_out() {
        let bare = DomainBackup { description: None, parent: None, disks: Vec::new(), ..nightly() };
        let expected = "\
<domainbackup>
  <uuid>54c70d40-26bb-48cd-9639-b3a1e9adf650</uuid>
  <creationTime>1270477159</creationTime>
  <disks/>
</domainbackup>
";
        assert_eq!(written(&bare), expected);
    }

    #[test]
    fn a_character_that_xml_cannot_carry_becomes_the_replacement_character() {
        let odd = DomainBackup { description: Some("a\u{0}b\u{1b}c\u{ffff}".to_owned()), ..nightly() };
        let description = "domainbackup/description=a\u{fffd}b\u{fffd}c\u{fffd}".to_owned();
        assert!(read_back(&written(&odd)).contains(&description));
    }

    #[test]
    fn an_error_of_the_output_is_reported() {
        let mut short = [0_u8; 40];
        assert_eq!(nightly().write(&mut short[..]).unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    /// Text as people and attackers write it: markup, quotes, line ends and any other character of XML.
    fn any_text() -> impl Strategy<Value = String> {
        let pieces = prop_oneof![
            Just("</description>".to_owned()),
            Just("]]>".to_owned()),
            Just("&amp;".to_owned()),
            Just("\r\n\t \"'<>&".to_owned()),
            "\\PC{0,8}",
        ];
        proptest::collection::vec(pieces, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn every_value_is_read_back_exactly(
            id in any::<u128>(),
            parent in proptest::option::of(any::<u128>()),
            creation_time in any::<i64>(),
            description in proptest::option::of(any_text()),
            disks in proptest::collection::vec((any_text(), any_text()), 0..4),
        ) {
            let backup = DomainBackup {
                uuid: Uuid::from_u128(id),
                creation_time,
                description: description.clone(),
                parent: parent.map(Uuid::from_u128),
                disks: disks
                    .iter()
                    .map(|(name, store)| BackupDisk {
                        name: name.clone(),
                        target: Target::ChunkStore { store: store.clone() },
                    })
                    .collect(),
            };
            let mut expected = vec![
                format!("domainbackup/uuid={}", backup.uuid),
                format!("domainbackup/creationTime={creation_time}"),
            ];
            expected.extend(description.map(|text| format!("domainbackup/description={text}")));
            expected.extend(backup.parent.map(|parent| format!("domainbackup/parent/uuid={parent}")));
            for (name, store) in &disks {
                expected.push(format!("domainbackup/disks/disk@name={name}"));
                expected.push("domainbackup/disks/disk/target@type=chunkstore".to_owned());
                expected.push(format!("domainbackup/disks/disk/target@store={store}"));
            }
            prop_assert_eq!(read_back(&written(&backup)), expected);
        }
    }
}
