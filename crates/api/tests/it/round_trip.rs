//! The laws of reading and writing, for any document of either dialect.

use std::io;

use aquifer_api::request::RestoreRequest;
use aquifer_api::xml::{BackupDisk, Document, DomainBackup, Target};
use proptest::prelude::*;

use crate::generate::{document, proposal, written};

proptest! {
    #[test]
    fn what_is_written_is_read_back_as_the_same(document in document()) {
        let text = written(&document);
        prop_assert_eq!(Document::parse(&text), Ok(document), "{}", text);
    }

    #[test]
    fn a_restore_takes_every_description_of_a_backup(backup in proposal(), id in any::<u128>()) {
        let backup = DomainBackup { uuid: Some(uuid::Uuid::from_u128(id)), ..backup };
        prop_assume!(backup.disks.iter().flatten().any(|disk| !disk.excluded) || backup.disks.iter().flatten().next().is_none());
        let request = RestoreRequest::parse(&written(&Document::Proposal(backup.clone())));
        let request = request.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(Some(request.backup), backup.uuid);
        let restored: Vec<_> = request.disks.into_iter().flatten().map(|(name, _)| name).collect();
        let described = backup.disks.into_iter().flatten().filter(|disk| !disk.excluded);
        prop_assert_eq!(restored, described.map(|disk| disk.name).collect::<Vec<_>>());
    }
}

#[test]
fn a_character_that_xml_cannot_carry_becomes_the_replacement_character() {
    let disk = BackupDisk {
        name: "a\u{1}".into(),
        target: Some(Target::ChunkStore { store: "b\u{0}".into(), namespace: None }),
        ..BackupDisk::default()
    };
    let odd = DomainBackup {
        description: Some("c\u{1b}d\u{ffff}".into()),
        disks: Some(vec![disk]),
        ..DomainBackup::default()
    };
    let text = written(&Document::Proposal(odd));
    assert!(text.contains("<description>c\u{fffd}d\u{fffd}</description>"), "{text}");
    assert!(text.contains("name=\"a\u{fffd}\"") && text.contains("store=\"b\u{fffd}\""), "{text}");
    assert!(Document::parse(&text).is_ok());
}

#[test]
fn an_error_of_the_output_is_reported() {
    let mut short = [0_u8; 10];
    let error = DomainBackup::default().write(&mut short[..]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
}
