//! Behaviours of jobs: exposing, finishing, cancelling, parameters.

use super::{Suite, code, done};
use crate::xml::Target;
use crate::{CreateFlags, Creation, DeleteFlags, FinishFlags, JobState, ListFlags, ReservedFlags, Value};

pub(super) async fn check(suite: &Suite<'_>) {
    an_unmanaged_backup_names_an_export_for_each_disk(suite).await;
    finishing_an_exposed_backup_completes_it_once(suite).await;
    an_external_backup_is_a_parent_of_external_ones_only(suite).await;
    a_cancelled_backup_is_no_backup_and_no_parent(suite).await;
    a_domain_has_one_job(suite).await;
    a_job_that_is_not_over_is_not_deleted(suite).await;
    a_completed_job_has_nothing_to_finish(suite).await;
    an_estimate_starts_nothing(suite).await;
    the_parameters_tell_state_and_domain(suite).await;
}

async fn state(suite: &Suite<'_>, backup: &crate::Backup) -> Option<JobState> {
    suite.described(backup).await.state
}

async fn an_unmanaged_backup_names_an_export_for_each_disk(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let backup = suite.expose(&domain).await;
    let description = suite.described(&backup).await;
    assert_eq!(description.state, Some(JobState::Exposed));
    assert!(description.creation_time.is_some(), "the point in time exists");
    let disks = description.disks.unwrap_or_default();
    assert_eq!(disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>(), domain.disks);
    let mut uris = Vec::new();
    for disk in disks {
        let Some(Target::Nbd(Some(source))) = disk.target else { panic!("{} has no export", disk.name) };
        assert!(!uris.contains(&source.uri), "{} is the export of two disks", source.uri);
        uris.push(source.uri);
    }
    assert_eq!(suite.list(&domain, ListFlags::ACTIVE).await, [backup.uuid()]);
    done(suite.api().finish_job(&backup, FinishFlags::CANCEL).await);
}

async fn finishing_an_exposed_backup_completes_it_once(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let backup = suite.expose(&domain).await;
    assert_eq!(done(suite.api().finish_job(&backup, FinishFlags::NONE).await), JobState::Completed);
    assert_eq!(state(suite, &backup).await, Some(JobState::Completed));
    for flags in [FinishFlags::NONE, FinishFlags::CANCEL] {
        assert_eq!(code(suite.api().finish_job(&backup, flags).await), "NO_BACKUP_JOB", "{flags}");
    }
}

async fn an_external_backup_is_a_parent_of_external_ones_only(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let managed = suite.backup(&domain, CreateFlags::NONE).await;
    let external = suite.expose(&domain).await;
    assert_eq!(suite.described(&external).await.parent, None, "nobody outside has read anything yet");
    done(suite.api().finish_job(&external, FinishFlags::NONE).await);
    let child = suite.backup(&domain, CreateFlags::NONE).await;
    assert_eq!(suite.described(&child).await.parent, Some(managed.uuid()), "the external one is passed over");
    let request = crate::xml::DomainBackup { parent: Some(external.uuid()), ..suite.request() };
    let insisting = suite.create(&domain, &request, CreateFlags::STRICT_PARENT).await;
    assert_eq!(code(insisting), "CHECKPOINT_INCONSISTENT");
    let next = suite.expose(&domain).await;
    assert_eq!(suite.described(&next).await.parent, Some(external.uuid()), "it offers what changed since");
    done(suite.api().finish_job(&next, FinishFlags::CANCEL).await);
}

async fn a_cancelled_backup_is_no_backup_and_no_parent(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let first = suite.backup(&domain, CreateFlags::NONE).await;
    let lost = suite.expose(&domain).await;
    for _ in 0..2 {
        let reached = done(suite.api().finish_job(&lost, FinishFlags::CANCEL).await);
        assert_eq!(reached, JobState::Cancelled, "cancelling may be repeated");
    }
    assert_eq!(code(suite.api().finish_job(&lost, FinishFlags::NONE).await), "NO_BACKUP_JOB");
    assert_eq!(suite.list(&domain, ListFlags::LATEST).await, [first.uuid()]);
    assert_eq!(suite.list(&domain, ListFlags::FAILED).await, [lost.uuid()]);
    let next = suite.backup(&domain, CreateFlags::NONE).await;
    assert_eq!(suite.described(&next).await.parent, Some(first.uuid()), "the chain is as before");
    let request = crate::xml::DomainBackup { parent: Some(lost.uuid()), ..suite.request() };
    let refused = suite.create(&domain, &request, CreateFlags::NONE).await;
    assert_eq!(code(refused), "PARENT_NOT_COMPLETE");
    let served = suite.expose(&domain).await;
    assert_eq!(suite.described(&served).await.parent, None, "nor is it one of what is served next");
    done(suite.api().finish_job(&served, FinishFlags::CANCEL).await);
}

async fn a_domain_has_one_job(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let exposed = suite.expose(&domain).await;
    let second = suite.create(&domain, &suite.request(), CreateFlags::NONE).await;
    assert_eq!(code(second), "JOB_BUSY");
    assert_eq!(suite.list(&domain, ListFlags::NONE).await, [exposed.uuid()], "the refused one left nothing");
    let other = suite.domain().await;
    suite.backup(&other, CreateFlags::NONE).await;
    done(suite.api().finish_job(&exposed, FinishFlags::NONE).await);
    suite.backup(&domain, CreateFlags::NONE).await;
}

async fn a_job_that_is_not_over_is_not_deleted(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let exposed = suite.expose(&domain).await;
    assert_eq!(code(suite.api().delete_backup(&exposed, DeleteFlags::NONE).await), "OPERATION_INVALID");
    assert_eq!(state(suite, &exposed).await, Some(JobState::Exposed));
    done(suite.api().finish_job(&exposed, FinishFlags::CANCEL).await);
    done(suite.api().delete_backup(&exposed, DeleteFlags::NONE).await);
    assert!(suite.list(&domain, ListFlags::NONE).await.is_empty());
}

async fn a_completed_job_has_nothing_to_finish(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let backup = suite.backup(&domain, CreateFlags::NONE).await;
    assert_eq!(code(suite.api().finish_job(&backup, FinishFlags::NONE).await), "NO_BACKUP_JOB");
    let ghost = crate::Backup::new(suite.environment.uuid());
    assert_eq!(code(suite.api().finish_job(&ghost, FinishFlags::CANCEL).await), "NO_BACKUP");
    let both = FinishFlags::CANCEL | FinishFlags::CHECK;
    assert_eq!(code(suite.api().finish_job(&backup, both).await), "INVALID_FLAG");
}

async fn an_estimate_starts_nothing(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let xml = super::text(&suite.request());
    match done(suite.api().create_backup(&domain.name, &xml, CreateFlags::ESTIMATE).await) {
        Creation::Started(backup) => panic!("{backup:?} was started"),
        Creation::Estimated(disks) => {
            assert_eq!(disks.iter().map(|disk| disk.disk.clone()).collect::<Vec<_>>(), domain.disks);
            assert!(disks.iter().all(|disk| disk.size_bytes > 0 && disk.read_bytes <= disk.size_bytes));
        }
    }
    assert!(suite.list(&domain, ListFlags::NONE).await.is_empty());
}

async fn the_parameters_tell_state_and_domain(suite: &Suite<'_>) {
    let domain = suite.domain().await;
    let exposed = suite.expose(&domain).await;
    let parameters = done(suite.api().get_parameters(&exposed, ReservedFlags::NONE).await);
    assert_eq!(parameters.get("state"), Some(&Value::String("exposed".into())));
    assert_eq!(parameters.get("domain"), Some(&Value::String(domain.name.clone())));
    for (number, disk) in domain.disks.iter().enumerate() {
        assert_eq!(parameters.get(&format!("disk.{number}.name")), Some(&Value::String(disk.clone())));
    }
    done(suite.api().finish_job(&exposed, FinishFlags::NONE).await);
    let parameters = done(suite.api().get_parameters(&exposed, ReservedFlags::NONE).await);
    assert_eq!(parameters.get("success"), Some(&Value::Boolean(true)));
}
