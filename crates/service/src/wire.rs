//! The API's calls, each handed to where it is done.

use aquifer_api::{
    Backup, BackupApi, Call, CreateFlags, Creation, DeleteFlags, DomainRecord, FinishFlags, JobState,
    ListFlags, Parameters, ReservedFlags, Restore, RestoreFlags, TargetFlags, UndefineFlags, XmlFlags,
};
use uuid::Uuid;

use crate::service::Service;

impl BackupApi for Service {
    fn create_backup<'a>(&'a self, domain: &'a str, xml: &'a str, flags: CreateFlags) -> Call<'a, Creation> {
        Box::pin(self.create(domain, xml, flags))
    }

    fn start_unmanaged<'a>(&'a self, domain: &'a str, xml: &'a str, flags: CreateFlags) -> Call<'a, Backup> {
        Box::pin(self.start(domain, xml, flags))
    }

    fn list_backups<'a>(&'a self, domain: &'a str, flags: ListFlags) -> Call<'a, Vec<Backup>> {
        Box::pin(self.list(domain, flags))
    }

    fn list_children<'a>(&'a self, backup: &'a Backup, flags: ListFlags) -> Call<'a, Vec<Backup>> {
        Box::pin(self.children(backup.uuid(), flags))
    }

    fn restore<'a>(&'a self, xml: &'a str, flags: RestoreFlags) -> Call<'a, Restore> {
        Box::pin(self.restore_document(xml, flags))
    }

    fn delete_backup<'a>(&'a self, backup: &'a Backup, flags: DeleteFlags) -> Call<'a, ()> {
        Box::pin(self.delete(backup.uuid(), flags))
    }

    fn get_xml<'a>(&'a self, backup: &'a Backup, flags: XmlFlags) -> Call<'a, String> {
        Box::pin(self.document(backup.uuid(), flags))
    }

    fn lookup(&self, uuid: Uuid, _: ReservedFlags) -> Call<'_, Backup> {
        Box::pin(async move { self.item(uuid).await.map(|item| Backup::new(item.uuid())) })
    }

    fn domain_of<'a>(&'a self, backup: &'a Backup) -> Call<'a, DomainRecord> {
        Box::pin(self.domain_record(backup.uuid()))
    }

    fn finish_job<'a>(&'a self, backup: &'a Backup, flags: FinishFlags) -> Call<'a, JobState> {
        Box::pin(self.finish(backup.uuid(), flags))
    }

    fn get_parameters<'a>(&'a self, backup: &'a Backup, _: ReservedFlags) -> Call<'a, Parameters> {
        Box::pin(self.parameters(backup.uuid()))
    }

    fn set_default_target<'a>(
        &'a self,
        domain: &'a str,
        xml: Option<&'a str>,
        flags: TargetFlags,
    ) -> Call<'a, ()> {
        Box::pin(self.set_target(domain, xml, flags))
    }

    fn undefine<'a>(&'a self, domain: &'a str, flags: UndefineFlags) -> Call<'a, ()> {
        Box::pin(self.undefine_domain(domain, flags))
    }
}
