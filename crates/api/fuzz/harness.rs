//! What must hold for any text: no panic; what is read is written and read again as the same; a fault has a place in the
//! text; a rewritten definition is a definition.
//!
//! Shared by the fuzz targets and the tests that replay their seeds.

use aquifer_api::domain::{self, NewDisk, NewDomain, NewSource};
use aquifer_api::request::{BackupRequest, RestoreRequest, Start, parse_default_target};
use aquifer_api::xml::{Definition, Document, DomainBackup, ImageFormat, XmlError};

fn located(text: &str, error: &XmlError) {
    let line = text.split('\n').nth(error.line - 1).expect("the line is there");
    assert!((1..=line.chars().count() + 1).contains(&error.column), "{error}");
    assert!(error.to_string().len() < 4096, "a message that nobody reads");
}

/// Any text as a `<domainbackup>`.
pub(crate) fn documents(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (BackupRequest::parse(text, Start::Managed), BackupRequest::parse(text, Start::Unmanaged));
    let _ = parse_default_target(text);
    let restore = RestoreRequest::parse(text);
    match Document::parse(text) {
        Err(error) => {
            located(text, &error);
            assert!(restore.is_err(), "a request out of a document that is none");
        }
        Ok(document) => {
            let mut again = Vec::new();
            match &document {
                Document::Proposal(backup) => backup.write(&mut again),
                Document::Libvirt(backup) => backup.write(&mut again),
            }
            .expect("writing into memory");
            let again = String::from_utf8(again).expect("UTF-8");
            assert_eq!(Document::parse(&again).as_ref(), Ok(&document), "{again}");
            let restorable = |backup: &DomainBackup| {
                let disks = backup.disks.as_deref().unwrap_or_default();
                backup.uuid.is_some() && (disks.is_empty() || disks.iter().any(|disk| !disk.excluded))
            };
            assert_eq!(
                restore.is_ok(),
                matches!(&document, Document::Proposal(backup) if restorable(backup))
            );
            assert_eq!(RestoreRequest::parse(&again).ok(), restore.ok());
        }
    }
}

/// Any text as a domain's definition.
pub(crate) fn definitions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let definition = match Definition::parse(text) {
        Ok(definition) => definition,
        Err(error) => return located(text, &error),
    };
    assert_eq!(Definition::parse(definition.as_str()).as_ref(), Ok(&definition));
    let Ok(disks) = definition.disks() else { return };
    let disk = |(number, target)| NewDisk {
        target,
        source: NewSource::File(format!("/new & improved/{number}")),
        format: if number % 2 == 0 { ImageFormat::Raw } else { ImageFormat::Qcow2 },
    };
    let new = NewDomain {
        name: "clone <1>".to_owned(),
        uuid: "c0ffee00-0000-4000-8000-000000000001".parse().expect("a uuid"),
        disks: disks.iter().cloned().enumerate().map(disk).collect(),
        nvram: Some("/new/nvram".to_owned()),
    };
    let mut count = 0_u32;
    let mut random = |bytes: &mut [u8]| {
        count += 1;
        bytes.iter_mut().zip(count.to_le_bytes()).for_each(|(byte, next)| *byte = next);
    };
    match domain::rewrite(text, &new, &mut random) {
        Ok(rewritten) => {
            let clone = Definition::parse(&rewritten).expect("a definition as before");
            assert_eq!(clone.disks().expect("disks as before"), disks);
            assert!(rewritten.contains("c0ffee00-0000-4000-8000-000000000001"));
            assert!(rewritten.contains("clone &lt;1&gt;"));
        }
        Err(error) => {
            if let Some((line, column)) = error.place {
                assert!(
                    text.split('\n').nth(line - 1).is_some_and(|line| column <= line.chars().count() + 1)
                );
            }
        }
    }
}
