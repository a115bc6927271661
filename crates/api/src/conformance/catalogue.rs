//! Behaviours of the catalogue: listing, lineage, looking up, deleting, undefining.

use super::{Suite, code, done};
use crate::{Backup, CreateFlags, DeleteFlags, ListFlags, ReservedFlags, UndefineFlags, XmlFlags};

pub(super) async fn check(suite: &Suite<'_>) {
    a_completed_backup_is_listed_and_found(suite).await;
    a_backup_is_read_against_the_newest_of_its_domain(suite).await;
    full_and_latest_filter_alone_and_together(suite).await;
    groups_of_filters_narrow_each_other(suite).await;
    descendants_are_children_and_theirs(suite).await;
    what_is_not_there_is_not_found(suite).await;
    a_released_handle_leaves_the_backup(suite).await;
    children_of_what_is_deleted_become_its_parents(suite).await;
    deleting_a_branch_leaves_what_is_above(suite).await;
    of_a_protected_domain_all_or_nothing_is_deleted(suite).await;
    a_domain_with_backups_is_undefined_on_request_only(suite).await;
}

async fn a_completed_backup_is_listed_and_found(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    assert!(suite.list(&domain, ListFlags::NONE).await.is_empty(), "a new domain has no backups");
    let backup = suite.backup(&domain, CreateFlags::NONE).await;
    assert_eq!(suite.list(&domain, ListFlags::NONE).await, [backup.uuid()]);
    let found = done(suite.api().lookup(backup.uuid(), ReservedFlags::NONE).await);
    assert_eq!(found, backup);
    let record = done(suite.api().domain_of(&found).await);
    assert_eq!((record.name, record.defined), (domain.name, true));
}

async fn a_backup_is_read_against_the_newest_of_its_domain(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let second = suite.backup(&domain, CreateFlags::NONE).await;
    let third = suite.backup(&domain, CreateFlags::FULL).await;
    assert_eq!(suite.described(&first).await.parent, None);
    assert_eq!(suite.described(&second).await.parent, Some(first.uuid()));
    assert_eq!(suite.described(&third).await.parent, None, "a full backup has no parent");
    assert_eq!(suite.list(&domain, ListFlags::NONE).await, [&first, &second, &third].map(Backup::uuid));
}

async fn full_and_latest_filter_alone_and_together(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let full = suite.backup(&domain, CreateFlags::NONE).await.uuid();
    let newest_full = suite.backup(&domain, CreateFlags::FULL).await.uuid();
    let newest = suite.backup(&domain, CreateFlags::NONE).await.uuid();
    assert_eq!(suite.list(&domain, ListFlags::FULL).await, [full, newest_full]);
    assert_eq!(suite.list(&domain, ListFlags::LATEST).await, [newest]);
    assert_eq!(suite.list(&domain, ListFlags::FULL | ListFlags::LATEST).await, [newest_full]);
}

async fn groups_of_filters_narrow_each_other(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let root = suite.backup(&domain, CreateFlags::NONE).await.uuid();
    let leaf = suite.backup(&domain, CreateFlags::PROTECT).await.uuid();
    for (flags, expected) in [
        (ListFlags::COMPLETED, vec![root, leaf]),
        (ListFlags::FAILED | ListFlags::ACTIVE, vec![]),
        (ListFlags::FAILED | ListFlags::COMPLETED, vec![root, leaf]),
        (ListFlags::ROOTS, vec![root]),
        (ListFlags::LEAVES, vec![leaf]),
        (ListFlags::HAS_CHILDREN, vec![root]),
        (ListFlags::LEAVES | ListFlags::HAS_CHILDREN, vec![root, leaf]),
        (ListFlags::PROTECTED, vec![leaf]),
        (ListFlags::PROTECTED | ListFlags::ROOTS, vec![]),
        (ListFlags::CORRUPT, vec![]),
    ] {
        assert_eq!(suite.list(&domain, flags).await, expected, "{flags}");
    }
    let wrong = suite.api().list_backups(&domain.name, ListFlags::DESCENDANTS).await;
    assert_eq!(code(wrong), "INVALID_FLAG", "only a backup has descendants");
}

async fn descendants_are_children_and_theirs(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let second = suite.backup(&domain, CreateFlags::NONE).await;
    let third = suite.backup(&domain, CreateFlags::NONE).await;
    assert_eq!(suite.children(&first, ListFlags::NONE).await, [second.uuid()]);
    assert_eq!(suite.children(&first, ListFlags::DESCENDANTS).await, [second.uuid(), third.uuid()]);
    let leaves = ListFlags::DESCENDANTS | ListFlags::LEAVES;
    assert_eq!(suite.children(&first, leaves).await, [third.uuid()]);
    assert!(suite.children(&third, ListFlags::DESCENDANTS).await.is_empty());
}

async fn what_is_not_there_is_not_found(suite: &Suite<'_>) {
    let (api, uuid) = (suite.api(), suite.environment.uuid());
    assert_eq!(code(api.lookup(uuid, ReservedFlags::NONE).await), "NO_BACKUP");
    let ghost = Backup::new(uuid);
    assert_eq!(code(api.list_children(&ghost, ListFlags::NONE).await), "NO_BACKUP");
    assert_eq!(code(api.delete_backup(&ghost, DeleteFlags::NONE).await), "NO_BACKUP");
    assert_eq!(code(api.get_xml(&ghost, XmlFlags::NONE).await), "NO_BACKUP");
    assert_eq!(code(api.domain_of(&ghost).await), "NO_BACKUP");
    assert_eq!(code(api.get_parameters(&ghost, ReservedFlags::NONE).await), "NO_BACKUP");
    let nobody = format!("nobody-{uuid}");
    assert_eq!(code(api.list_backups(&nobody, ListFlags::NONE).await), "NO_DOMAIN");
    assert_eq!(code(api.undefine(&nobody, UndefineFlags::NONE).await), "NO_DOMAIN");
    let xml = super::text(&suite.request());
    assert_eq!(code(api.create_backup(&nobody, &xml, CreateFlags::NONE).await), "NO_DOMAIN");
}

async fn a_released_handle_leaves_the_backup(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let backup = suite.backup(&domain, CreateFlags::NONE).await;
    let uuid = backup.uuid();
    suite.api().release(backup);
    let again = done(suite.api().lookup(uuid, ReservedFlags::NONE).await);
    assert_eq!(again.uuid(), uuid);
}

async fn children_of_what_is_deleted_become_its_parents(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let second = suite.backup(&domain, CreateFlags::NONE).await;
    let third = suite.backup(&domain, CreateFlags::NONE).await;
    done(suite.api().delete_backup(&second, DeleteFlags::NONE).await);
    assert_eq!(suite.list(&domain, ListFlags::NONE).await, [first.uuid(), third.uuid()]);
    assert_eq!(suite.children(&first, ListFlags::NONE).await, [third.uuid()]);
    assert_eq!(suite.described(&third).await.parent, Some(first.uuid()));
    assert_eq!(code(suite.api().get_xml(&second, XmlFlags::NONE).await), "NO_BACKUP");
}

async fn deleting_a_branch_leaves_what_is_above(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let second = suite.backup(&domain, CreateFlags::NONE).await;
    suite.backup(&domain, CreateFlags::NONE).await;
    let other = suite.backup(&domain, CreateFlags::FULL).await;
    done(suite.api().delete_backup(&second, DeleteFlags::ALL_CHILDREN).await);
    assert_eq!(suite.list(&domain, ListFlags::NONE).await, [first.uuid(), other.uuid()]);
}

async fn of_a_protected_domain_all_or_nothing_is_deleted(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let kept = suite.backup(&domain, CreateFlags::PROTECT).await;
    for flags in [DeleteFlags::ALL, DeleteFlags::ALL_CHILDREN, DeleteFlags::ALL | DeleteFlags::ALL_CHILDREN] {
        assert_eq!(code(suite.api().delete_backup(&first, flags).await), "PROTECTED", "{flags}");
        assert_eq!(suite.list(&domain, ListFlags::NONE).await, [first.uuid(), kept.uuid()], "{flags}");
    }
    let free = suite.domain().await;
    let one = suite.backup(&free, CreateFlags::NONE).await;
    suite.backup(&free, CreateFlags::FULL).await;
    done(suite.api().delete_backup(&one, DeleteFlags::ALL).await);
    assert!(suite.list(&free, ListFlags::NONE).await.is_empty());
}

async fn a_domain_with_backups_is_undefined_on_request_only(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let backup = suite.backup(&domain, CreateFlags::NONE).await;
    assert_eq!(code(suite.api().undefine(&domain.name, UndefineFlags::NONE).await), "HAS_BACKUPS");
    assert_eq!(suite.list(&domain, ListFlags::NONE).await, [backup.uuid()]);
    done(suite.api().undefine(&domain.name, UndefineFlags::BACKUP).await);
    assert_eq!(code(suite.api().lookup(backup.uuid(), ReservedFlags::NONE).await), "NO_BACKUP");
    assert_eq!(code(suite.api().list_backups(&domain.name, ListFlags::NONE).await), "NO_DOMAIN");
    let empty = suite.domain().await;
    done(suite.api().undefine(&empty.name, UndefineFlags::NONE).await);
}
