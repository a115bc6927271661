//! The service keeps the contract of the backup API, and what it keeps is right across services: as after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use aquifer_api::conformance::{Environment, TestDomain, check};
use aquifer_api::{Backup, BackupApi, Call, CreateFlags, Creation, Error, FinishFlags, JobState, ListFlags};
use aquifer_engine::clock::System;
use aquifer_engine::repository::format::keys::KdfParams;
use aquifer_engine::repository::store::Local;
use aquifer_engine::repository::{InitOptions, Repository, Secret, Settings, Stores};
use aquifer_engine::{EventSink, JobContext, JobSettings};
use aquifer_service::{DomainDefinition, LEASE, Service, ServiceOptions};
use aquifer_testkit::{TempDir, tempdir};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::machine::{DISKS, Machine};

const STORE: &str = "main";

/// The machines by the names of their domains.
type Machines = Arc<Mutex<BTreeMap<String, Machine>>>;

/// A service over a repository of its own, and a machine for each domain.
struct Appliance {
    folder: TempDir,
    job: JobContext,
    service: Service,
    machines: Machines,
}

impl Appliance {
    async fn new() -> Appliance {
        let folder = tempdir().unwrap();
        let world = Arc::new(System::new());
        let repository = Repository::init(InitOptions {
            stores: Stores { packs: Arc::new(Local::create(folder.path().join("repo")).unwrap()), log: None },
            world: Arc::clone(&world) as Arc<_>,
            state_dir: Some(folder.path().join("state")),
            secret: Some(Secret::new(b"correct horse".to_vec())),
            recovery: None,
            kdf: KdfParams { memory_kib: 64, passes: 1, lanes: 1 },
            chunk_bytes: 128 << 10,
            settings: Settings { pack_bytes: 1 << 20, meta_pack_bytes: 1 << 18, ..Settings::default() },
        })
        .await
        .unwrap();
        let job = JobContext {
            repository,
            world,
            settings: JobSettings::default(),
            events: EventSink::none(),
            cancel: CancellationToken::new(),
        };
        let machines = Machines::default();
        let service = service(&folder, &job, &machines);
        Appliance { folder, job, service, machines }
    }

    /// Another service over the same repository and journal: what the next process has.
    fn next(&self) -> Service {
        service(&self.folder, &self.job, &self.machines)
    }
}

fn service(folder: &TempDir, job: &JobContext, machines: &Machines) -> Service {
    let machines = Arc::clone(machines);
    Service::new(ServiceOptions {
        context: job.clone(),
        state_dir: folder.path().join("state"),
        store: STORE.to_owned(),
        source: Arc::new(move |domain: &str| Ok(machines.lock().unwrap().get(domain).map(Machine::source))),
        configured: BTreeSet::new(),
        filter: None,
        lease: LEASE,
    })
    .unwrap()
}

impl Environment for Appliance {
    fn api(&self) -> &dyn BackupApi {
        &self.service
    }

    fn domain(&self) -> Call<'_, TestDomain> {
        Box::pin(async {
            let name = format!("vm-{}", self.machines.lock().unwrap().len());
            let machine = Machine::start(self.folder.path().join(&name));
            let machine = machine.map_err(|error| Error::Internal(format!("{error:#}")))?;
            self.machines.lock().unwrap().insert(name.clone(), machine);
            let definition = format!("<domain type='qemu'><name>{name}</name></domain>");
            self.service.define(&DomainDefinition::read(definition.into_bytes())?).await?;
            Ok(TestDomain { name, disks: DISKS.map(str::to_owned) })
        })
    }

    fn store(&self) -> String {
        STORE.to_owned()
    }

    fn uuid(&self) -> Uuid {
        aquifer_engine::clock::new_uuid(&*self.job.world)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group api_conformance"]
async fn the_service_keeps_the_contract() {
    check(&Appliance::new().await).await;
}

/// A request for one export a disk.
const SERVED: &str =
    "<domainbackup><disks><disk name='vda'><target type='nbd'/></disk></disks></domainbackup>";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group api_conformance"]
async fn a_service_beside_sees_what_is_served_and_does_not_take_it_from_a_living_one() {
    let appliance = Appliance::new().await;
    let domain = appliance.domain().await.unwrap().name;
    let (first, second) = (&appliance.service, appliance.next());
    let backup = first.start_unmanaged(&domain, SERVED, CreateFlags::NONE).await.unwrap();
    assert_eq!(second.list_backups(&domain, ListFlags::ACTIVE).await.unwrap(), [Backup::new(backup.uuid())]);
    let busy = second.create_backup(&domain, "<domainbackup/>", CreateFlags::NONE).await;
    assert_eq!(busy.unwrap_err().code(), "JOB_BUSY");
    assert_eq!(first.finish_job(&backup, FinishFlags::NONE).await.unwrap(), JobState::Completed);
    assert_eq!(second.list_backups(&domain, ListFlags::LATEST).await.unwrap(), [Backup::new(backup.uuid())]);
    let started = second.create_backup(&domain, "<domainbackup/>", CreateFlags::NONE).await.unwrap();
    let Creation::Started(managed) = started else { panic!("an estimate that nobody asked for") };
    second.wait(managed.uuid()).await;
    let latest = second.list_backups(&domain, ListFlags::LATEST).await.unwrap();
    assert_eq!(latest, [managed]);
}
