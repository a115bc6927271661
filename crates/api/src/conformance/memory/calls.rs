//! The calls and the environment of the suite, over the catalogue's own state.
//!
//! Each call is one closure over the locked state, so that it happens at one moment.

use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;

use super::{Domain, Entry, Fault, Memory, STORE, State};
use crate::conformance::{Environment, TestDomain};
use crate::request::{Start, parse_default_target};
use crate::xml::Target;
use crate::{
    Backup, BackupApi, Call, CreateFlags, Creation, DeleteFlags, DomainRecord, Error, FinishFlags, FlagError,
    JobState, ListFlags, Parameters, ReservedFlags, Restore, RestoreFlags, Result, TargetFlags,
    UndefineFlags, XmlFlags,
};

impl Memory {
    /// A catalogue with a fault.
    pub(in crate::conformance) fn faulty(fault: Fault) -> Memory {
        Memory(Mutex::new(State { fault: Some(fault), ..State::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the state")
    }

    /// Does it at once: nothing here waits.
    fn answer<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce(&mut State) -> Result<T> + Send + 'a,
    ) -> Call<'a, T> {
        Box::pin(async move { call(&mut self.state()) })
    }
}

impl BackupApi for Memory {
    fn create_backup<'a>(&'a self, domain: &'a str, xml: &'a str, flags: CreateFlags) -> Call<'a, Creation> {
        self.answer(move |state| state.start(domain, xml, flags, Start::Managed))
    }

    fn start_unmanaged<'a>(&'a self, domain: &'a str, xml: &'a str, flags: CreateFlags) -> Call<'a, Backup> {
        self.answer(move |state| match state.start(domain, xml, flags, Start::Unmanaged)? {
            Creation::Started(backup) => Ok(backup),
            Creation::Estimated(_) => {
                Err(Error::OperationUnsupported("an estimate of an unmanaged backup".into()))
            }
        })
    }

    fn list_backups<'a>(&'a self, domain: &'a str, flags: ListFlags) -> Call<'a, Vec<Backup>> {
        self.answer(move |state| {
            if flags.contains(ListFlags::DESCENDANTS) {
                let (unknown, known) = (ListFlags::DESCENDANTS.bits(), "all but DESCENDANTS".to_owned());
                return Err(FlagError::Unknown { set: "virDomainBackupList", unknown, known }.into());
            }
            state.domain(domain)?;
            Ok(state.filter(state.backups.iter().filter(|entry| entry.domain == domain).collect(), flags))
        })
    }

    fn list_children<'a>(&'a self, backup: &'a Backup, flags: ListFlags) -> Call<'a, Vec<Backup>> {
        self.answer(move |state| {
            state.index(backup.uuid())?;
            let direct = |entry: &&Entry| entry.description.parent == Some(backup.uuid());
            let all = flags.contains(ListFlags::DESCENDANTS);
            let child = |entry: &&Entry| direct(entry) || all && state.descends(entry, backup.uuid());
            Ok(state.filter(state.backups.iter().filter(child).collect(), flags))
        })
    }

    fn restore<'a>(&'a self, xml: &'a str, flags: RestoreFlags) -> Call<'a, Restore> {
        self.answer(move |state| state.restore(xml, flags))
    }

    fn delete_backup<'a>(&'a self, backup: &'a Backup, flags: DeleteFlags) -> Call<'a, ()> {
        self.answer(move |state| {
            let root = &state.backups[state.index(backup.uuid())?];
            let doomed = state.backups.iter().filter(|entry| {
                entry.uuid() == backup.uuid()
                    || flags.contains(DeleteFlags::ALL) && entry.domain == root.domain
                    || flags.contains(DeleteFlags::ALL_CHILDREN) && state.descends(entry, backup.uuid())
            });
            let doomed: Vec<Uuid> = doomed.map(Entry::uuid).collect();
            state.delete(&doomed)
        })
    }

    fn get_xml<'a>(&'a self, backup: &'a Backup, _: XmlFlags) -> Call<'a, String> {
        self.answer(move |state| {
            let mut out = Vec::new();
            let written = state.backups[state.index(backup.uuid())?].description.write(&mut out);
            written.map_err(|error| Error::Internal(error.to_string()))?;
            String::from_utf8(out).map_err(|error| Error::Internal(error.to_string()))
        })
    }

    fn lookup(&self, uuid: Uuid, _: ReservedFlags) -> Call<'_, Backup> {
        self.answer(move |state| state.index(uuid).map(|_| Backup::new(uuid)))
    }

    fn domain_of<'a>(&'a self, backup: &'a Backup) -> Call<'a, DomainRecord> {
        self.answer(move |state| {
            let name = state.backups[state.index(backup.uuid())?].domain.clone();
            Ok(DomainRecord { defined: state.domains.contains_key(&name), name, uuid: None })
        })
    }

    fn finish_job<'a>(&'a self, backup: &'a Backup, flags: FinishFlags) -> Call<'a, JobState> {
        self.answer(move |state| state.finish(backup.uuid(), flags))
    }

    fn get_parameters<'a>(&'a self, backup: &'a Backup, _: ReservedFlags) -> Call<'a, Parameters> {
        self.answer(move |state| state.parameters(backup.uuid()))
    }

    fn set_default_target<'a>(
        &'a self,
        domain: &'a str,
        xml: Option<&'a str>,
        flags: TargetFlags,
    ) -> Call<'a, ()> {
        self.answer(move |state| {
            let target = xml.map(parse_default_target).transpose()?;
            if let Some(Target::ChunkStore { store, .. }) = &target
                && store != STORE
                && !flags.contains(TargetFlags::FORCE)
            {
                return Err(Error::NoStore(store.clone()));
            }
            let known = state.domains.get_mut(domain).ok_or_else(|| Error::NoDomain(domain.to_owned()))?;
            known.target = target;
            Ok(())
        })
    }

    fn undefine<'a>(&'a self, domain: &'a str, flags: UndefineFlags) -> Call<'a, ()> {
        self.answer(move |state| {
            state.domain(domain)?;
            let backups: Vec<Uuid> =
                state.backups.iter().filter(|entry| entry.domain == domain).map(Entry::uuid).collect();
            if !backups.is_empty() && !flags.contains(UndefineFlags::BACKUP) {
                return Err(Error::HasBackups { domain: domain.to_owned(), count: backups.len() });
            }
            state.delete(&backups)?;
            state.domains.remove(domain);
            Ok(())
        })
    }
}

impl Environment for Memory {
    fn api(&self) -> &dyn BackupApi {
        self
    }

    fn domain(&self) -> Call<'_, TestDomain> {
        self.answer(|state| {
            let name = format!("vm-{}", state.id());
            let disks = ["vda".to_owned(), "vdb".to_owned()];
            state.domains.insert(name.clone(), Domain { disks: disks.to_vec(), target: None });
            Ok(TestDomain { name, disks })
        })
    }

    fn store(&self) -> String {
        STORE.to_owned()
    }

    fn uuid(&self) -> Uuid {
        self.state().id()
    }
}
