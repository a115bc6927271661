//! Behaviours of documents: what a call takes out of them, what it refuses, and that the description restores.

use super::{Suite, code, done, text};
use crate::request::RestoreRequest;
use crate::xml::{BackupDisk, DomainBackup, Target};
use crate::{CreateFlags, ListFlags, RestoreFlags, TargetFlags, XmlFlags};

pub(super) async fn check(suite: &Suite<'_>) {
    the_uuid_of_the_request_is_kept_and_given_once(suite).await;
    a_refused_request_leaves_nothing(suite).await;
    a_named_parent_must_be_the_domains(suite).await;
    only_listed_disks_are_backed_up(suite).await;
    the_description_says_what_was_asked_and_chosen(suite).await;
    the_description_is_a_restores_document(suite).await;
    a_default_target_is_used_where_the_document_says_none(suite).await;
}

async fn the_uuid_of_the_request_is_kept_and_given_once(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let request = DomainBackup { uuid: Some(suite.environment.uuid()), ..suite.request() };
    let backup = done(suite.create(&domain, &request, CreateFlags::NONE).await);
    assert_eq!(Some(backup.uuid()), request.uuid);
    suite.wait(&backup).await;
    assert_eq!(code(suite.create(&domain, &request, CreateFlags::NONE).await), "BACKUP_EXISTS");
    let other = suite.domain().await;
    assert_eq!(code(suite.create(&other, &request, CreateFlags::NONE).await), "BACKUP_EXISTS");
}

async fn a_refused_request_leaves_nothing(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let unknown = BackupDisk { name: format!("{}x", domain.disks[0]), ..BackupDisk::default() };
    let no_disk = text(&DomainBackup { disks: Some(vec![unknown]), ..suite.request() });
    for (xml, flags, expected) in [
        ("<domainbackup>", CreateFlags::NONE, "XML_ERROR"),
        ("<domainbackup><surprise/></domainbackup>", CreateFlags::NONE, "XML_ERROR"),
        ("<domainbackup mode='pull'/>", CreateFlags::NONE, "XML_ERROR"),
        (no_disk.as_str(), CreateFlags::NONE, "NO_DISK"),
        (no_disk.as_str(), CreateFlags::FULL | CreateFlags::STRICT_PARENT, "INVALID_FLAG"),
    ] {
        let refused = suite.api().create_backup(&domain.name, xml, flags).await;
        assert_eq!(code(refused), expected, "{xml}");
    }
    let pushed = suite.api().start_unmanaged(&domain.name, "<domainbackup mode='push'/>", CreateFlags::NONE);
    assert_eq!(code(pushed.await), "XML_ERROR");
    assert!(suite.list(&domain, ListFlags::NONE).await.is_empty());
    suite.backup(&domain, CreateFlags::NONE).await;
}

async fn a_named_parent_must_be_the_domains(suite: &Suite<'_>) {
    let (domain, other) = (suite.domain().await, suite.domain().await);
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let foreign = suite.backup(&other, CreateFlags::NONE).await;
    for parent in [foreign.uuid(), suite.environment.uuid()] {
        let request = DomainBackup { parent: Some(parent), ..suite.request() };
        assert_eq!(code(suite.create(&domain, &request, CreateFlags::NONE).await), "NO_PARENT");
    }
    let request = DomainBackup { parent: Some(first.uuid()), ..suite.request() };
    let child = done(suite.create(&domain, &request, CreateFlags::STRICT_PARENT).await);
    suite.wait(&child).await;
    assert_eq!(suite.described(&child).await.parent, request.parent);
}

async fn only_listed_disks_are_backed_up(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let [wanted, left_out] = &domain.disks;
    let disks = [(wanted, false), (left_out, true)];
    let disk = |(name, excluded): (&String, bool)| BackupDisk {
        name: name.clone(),
        excluded,
        ..BackupDisk::default()
    };
    for list in [disks[..1].to_vec(), disks.to_vec()] {
        let request = DomainBackup { disks: Some(list.into_iter().map(disk).collect()), ..suite.request() };
        let backup = done(suite.create(&domain, &request, CreateFlags::NONE).await);
        suite.wait(&backup).await;
        let described = suite.described(&backup).await.disks.unwrap_or_default();
        let taken = described.iter().filter(|disk| !disk.excluded).map(|disk| &disk.name);
        assert_eq!(taken.collect::<Vec<_>>(), [wanted]);
    }
}

async fn the_description_says_what_was_asked_and_chosen(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let request = DomainBackup { description: Some("a <b> & \r\n c".into()), ..suite.request() };
    let backup = done(suite.create(&domain, &request, CreateFlags::NONE).await);
    suite.wait(&backup).await;
    let described = suite.described(&backup).await;
    assert_eq!((described.uuid, &described.description), (Some(backup.uuid()), &request.description));
    assert!(described.creation_time.is_some());
    let disks = described.disks.unwrap_or_default();
    assert_eq!(disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>(), domain.disks);
    assert!(disks.iter().all(|disk| disk.target == request.target), "{disks:?}");
}

async fn the_description_is_a_restores_document(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let backup = suite.backup(&domain, CreateFlags::NONE).await;
    let xml = done(suite.api().get_xml(&backup, XmlFlags::NONE).await);
    let request = RestoreRequest::parse(&xml).unwrap_or_else(|error| panic!("{error} in {xml}"));
    assert_eq!(request.backup, backup.uuid());
    let refused = suite.api().restore(&xml, RestoreFlags::DRY_RUN).await;
    assert_eq!(code(refused), "TARGET_EXISTS", "the domain's own disks are overwritten on request only");
    let part = |uuid, name: &str| {
        let disk = BackupDisk { name: name.to_owned(), ..BackupDisk::default() };
        text(&DomainBackup { uuid: Some(uuid), disks: Some(vec![disk]), ..DomainBackup::default() })
    };
    let flags = RestoreFlags::REWRITE_EXISTING_DISK | RestoreFlags::DRY_RUN | RestoreFlags::WAIT;
    let ghost = part(suite.environment.uuid(), &domain.disks[0]);
    assert_eq!(code(suite.api().restore(&ghost, flags).await), "NO_BACKUP");
    let strange = part(backup.uuid(), &format!("{}x", domain.disks[0]));
    assert_eq!(code(suite.api().restore(&strange, flags).await), "NO_DISK");
    assert_eq!(code(suite.api().restore("<domainbackup/>", flags).await), "XML_ERROR");
}

async fn a_default_target_is_used_where_the_document_says_none(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let target = Target::ChunkStore { store: suite.environment.store(), namespace: Some("default".into()) };
    let xml = text(&DomainBackup { target: Some(target.clone()), ..DomainBackup::default() });
    done(suite.api().set_default_target(&domain.name, Some(&xml), TargetFlags::CONFIG).await);
    let backup = done(suite.create(&domain, &DomainBackup::default(), CreateFlags::NONE).await);
    suite.wait(&backup).await;
    let disks = suite.described(&backup).await.disks.unwrap_or_default();
    assert!(disks.iter().all(|disk| disk.target.as_ref() == Some(&target)), "{disks:?}");
    let own = suite.backup(&domain, CreateFlags::NONE).await;
    let disks = suite.described(&own).await.disks.unwrap_or_default();
    assert!(disks.iter().all(|disk| disk.target == suite.request().target), "the document goes first");
    let nowhere =
        Target::ChunkStore { store: format!("no-store-{}", suite.environment.uuid()), namespace: None };
    let xml = text(&DomainBackup { target: Some(nowhere), ..DomainBackup::default() });
    let refused = suite.api().set_default_target(&domain.name, Some(&xml), TargetFlags::CONFIG).await;
    assert_eq!(code(refused), "NO_STORE");
    done(suite.api().set_default_target(&domain.name, None, TargetFlags::CONFIG).await);
}
