//! A backup that somebody else reads: the instant is frozen and served, and we wait for word that it was read.
//!
//! It is catalogued when it is finished, without data, because the data is elsewhere: an *external* backup. It stands
//! beside ours: it owns a bitmap of its own, and neither ends nor moves the one that our backups count from.
//! Not here: for how long to wait, and for whom (`aquifer-service`).
//!
//! Invariants: the domain is held in the log before QEMU is touched, and let go only when QEMU is free again or its
//! session was left for another process on purpose; nothing is catalogued whose instant is not whole at that moment.

use std::collections::BTreeMap;

use aquifer_nbd::{Client, ClientOptions, Uri};
use aquifer_qemu::{BlockSizes, Domain, Ending, ExportSession, Lost, Method, SavedSession};
use aquifer_repository::format::record::{
    BitmapRecord, Definition, DiskRecord, DomainRecord, Mode, QuiesceRecord, RECORD_VERSION, Record,
};
use aquifer_repository::{BeginBackup, DomainHold};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Running;
use crate::backup::{definition_of, host_name};
use crate::clock::new_uuid;
use crate::error::{Error, Kind, Result};
use crate::lineage::{Facts, Offer};
use crate::request::{BackupRequest, Source};
use crate::settings::JobContext;
use crate::source::{check_name, session_request};

/// One disk that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedDisk {
    /// Disk name.
    pub name: String,
    /// What it is in QEMU, for people.
    pub node: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Where it is served: an NBD URI, as it is reached from here.
    pub uri: String,
    /// The metadata context that tells what changed since the parent, where there is one.
    pub bitmap_context: Option<String>,
    /// The backup since which it tells the changes.
    pub parent: Option<Uuid>,
    /// Why there are no changes, although a parent was named.
    pub reason: Option<String>,
    logical_block_bytes: u32,
    physical_block_bytes: u32,
    bitmap: Option<BitmapRecord>,
}

/// A backup that is served: everything that another process needs to finish it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exposed {
    /// Its id.
    pub uuid: Uuid,
    /// Its domain.
    pub domain: String,
    /// The instant that it shows, in milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// How long the guest's file systems were frozen, in milliseconds, if they were.
    pub freeze_ms: Option<u64>,
    /// Whether they were at the instant.
    pub quiesced: bool,
    /// Free text.
    pub description: String,
    /// Its disks.
    pub disks: Vec<ExposedDisk>,
    /// What the caller should know.
    pub warnings: Vec<String>,
    labels: BTreeMap<String, String>,
    namespace: Option<String>,
    definition: Option<Definition>,
    domain_uuid: Option<Uuid>,
    session: SavedSession,
}

/// A served backup in the hands of this process.
#[derive(Debug)]
pub struct Exposure {
    exposed: Exposed,
    session: ExportSession,
    /// None after it was taken over: whoever held the domain is gone.
    hold: Option<DomainHold>,
}

/// Freezes the disks of a running domain and serves them.
///
/// # Errors
/// Any failure, after which nothing is left in QEMU and the domain is free: `Conflict` while somebody else backs it up
/// or when the uuid is taken, `Unsupported` for a source that is no running domain, and those of QEMU.
pub fn expose(context: &JobContext, request: BackupRequest) -> Running<'_, Result<Exposure>> {
    Box::pin(begin(context, request))
}

async fn begin(context: &JobContext, request: BackupRequest) -> Result<Exposure> {
    check_name("domain", &request.domain)?;
    let Source::Qmp(qmp) = &request.source else {
        return Err(Error::new(Kind::Unsupported, "only a running domain can be served to others")
            .hint("give its monitor: --qmp ADDRESS"));
    };
    let uuid = request.uuid.unwrap_or_else(|| new_uuid(&*context.world));
    context.repository.refresh().await?;
    let mut facts = Facts::gather(context, &request).await;
    let hold = context.repository.hold_domain(&request.domain, uuid, request.fence_after).await?;
    let opened = async {
        let domain = Domain::connect(session_request(context, qmp, &request.domain, uuid)).await?;
        facts.look_at(context, &domain).await;
        let offers = domain.disks().map(|(disk, checkpoints)| facts.offer(disk, checkpoints));
        let offers = offers.collect::<Result<Vec<Offer>>>()?;
        let session = domain.open(offers.iter().map(|offer| offer.plan.clone()).collect()).await?;
        Ok::<_, Error>((session, offers))
    };
    match opened.await {
        Ok((session, offers)) => {
            let exposed = describe(context, &request, uuid, &session, offers, facts.granularity_bytes());
            exposed.warnings.iter().for_each(|warning| context.events.warn(warning));
            Ok(Exposure { exposed, session, hold: Some(hold) })
        }
        Err(error) => {
            release(Some(hold)).await;
            Err(error.about(format_args!("domain {}", request.domain)))
        }
    }
}

fn describe(
    context: &JobContext,
    request: &BackupRequest,
    uuid: Uuid,
    session: &ExportSession,
    offers: Vec<Offer>,
    granularity_bytes: u64,
) -> Exposed {
    let disks = session.exports().iter().zip(offers).map(|(export, offer)| {
        let BlockSizes { logical_bytes, physical_bytes } =
            export.disk.blocks.unwrap_or(BlockSizes { logical_bytes: 0, physical_bytes: 0 });
        ExposedDisk {
            name: export.disk.name.clone(),
            node: export.disk.node.clone(),
            size_bytes: export.disk.size_bytes,
            uri: export.uri.clone(),
            bitmap_context: export.changes.clone(),
            parent: offer.parent.filter(|_| export.changes.is_some()),
            reason: offer.reason,
            logical_block_bytes: logical_bytes,
            physical_block_bytes: physical_bytes,
            bitmap: export.checkpoint.clone().map(|name| BitmapRecord { name, granularity_bytes }),
        }
    });
    Exposed {
        uuid,
        domain: request.domain.clone(),
        created_ms: session.instant_ms().unwrap_or_else(|| context.world.wall_ms()),
        freeze_ms: session.freeze_ms(),
        quiesced: session.quiesced(),
        description: request.description.clone(),
        disks: disks.collect(),
        warnings: session.warnings().to_vec(),
        labels: request.labels.clone(),
        namespace: request.namespace.clone(),
        definition: request.definition.clone().map(definition_of),
        domain_uuid: session.domain_uuid().and_then(|uuid| uuid.parse().ok()),
        session: session.saved(),
    }
}

impl Exposure {
    /// What is served.
    pub fn exposed(&self) -> &Exposed {
        &self.exposed
    }

    /// Resolves when the instant is lost.
    pub fn lost(&self) -> Running<'static, Error> {
        let (lost, domain) = (self.session.failed(), self.exposed.domain.clone());
        Box::pin(async move { lost_of(&domain, lost.await) })
    }

    /// How many clients are connected to the exports; `None` where that cannot be seen, as with TLS.
    ///
    /// # Errors
    /// Those of the host that QEMU runs on.
    pub async fn readers(&self) -> Result<Option<usize>> {
        Ok(self.session.readers().await?)
    }

    /// Catalogues the backup, which somebody else has read, and takes everything out of QEMU. The context must be one
    /// that may write.
    ///
    /// # Errors
    /// `Unavailable` if the instant was lost meanwhile; those of the repository. There is no backup then, and QEMU is
    /// free.
    pub async fn finish(mut self, context: &JobContext) -> Result<Record> {
        let finished = self.commit(context).await;
        let ending = match &finished {
            Ok(_) => Ending::Committed,
            Err(_) => Ending::Failed,
        };
        if let Err(error) = self.session.close(ending).await {
            let warning = format!("backup {}: QEMU is not clean: {error}", self.exposed.uuid);
            context.events.warn(warning);
        }
        finished
    }

    async fn commit(&mut self, context: &JobContext) -> Result<Record> {
        self.check().await?;
        release(self.hold.take()).await;
        let exposed = &self.exposed;
        let session = context.repository.begin_backup(BeginBackup {
            backup: exposed.uuid,
            domain: exposed.domain.clone(),
            parent: None,
            bases: Vec::new(),
            fence_after: aquifer_repository::FENCE_AFTER,
        });
        let session = session.await?;
        let record = exposed.record();
        // Nobody could end the session between the first look and here but us; the log took time, so look again.
        let committed = match self.check().await {
            Ok(()) => std::sync::Arc::clone(&session).commit(record.clone()).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        match committed {
            Ok(_) => Ok(record),
            Err(error) => {
                if let Err(second) = session.abandon().await {
                    tracing::warn!("the session could not be ended in the log: {second}");
                }
                Err(error)
            }
        }
    }

    /// Whether the instant is whole to this moment.
    ///
    /// # Errors
    /// `Unavailable` if it is lost.
    pub async fn check(&mut self) -> Result<()> {
        self.session
            .check()
            .await
            .map_err(|error| Error::from(error).about(format_args!("domain {}", self.exposed.domain)))
    }

    /// Asks every export whether it answers, with the size of its disk.
    ///
    /// # Errors
    /// `Unavailable` if the instant is lost; those of the NBD client; `Corrupt` for another size.
    pub async fn probe(&mut self) -> Result<()> {
        self.check().await?;
        for disk in &self.exposed.disks {
            let about = |error: Error| {
                error.about(format_args!("disk {}", disk.name)).with("disk", disk.name.clone())
            };
            let uri = disk.uri.parse::<Uri>().map_err(|error| about(error.into()))?;
            let options = ClientOptions { connections: 1, connections_max: 1, ..ClientOptions::default() };
            let client = Client::connect(&uri, &options).await.map_err(|error| about(error.into()))?;
            let (found, expected) = (client.info().size_bytes, disk.size_bytes);
            if found != expected {
                let message = format!("its export has {found} bytes instead of {expected}");
                return Err(about(Error::new(Kind::Corrupt, message)));
            }
        }
        self.check().await
    }

    /// Takes everything out of QEMU; there is no backup.
    ///
    /// # Errors
    /// Those of QEMU; the domain is free for the next backup all the same, which clears up.
    pub async fn cancel(mut self) -> Result<()> {
        let whole = self.hold.is_some() || self.session.check().await.is_ok();
        let ended = match whole {
            true => self.session.close(Ending::Failed).await.map(drop),
            // What is in QEMU now may be somebody else's, who came after us.
            false => self.session.disown().await,
        };
        release(self.hold.take()).await;
        Ok(ended?)
    }

    /// Leaves the served backup to another process. The domain stays held in the log until that one, or any later
    /// backup of this host, finds this process gone.
    ///
    /// # Errors
    /// The guard's, which then takes everything out of QEMU.
    pub async fn leave(self) -> Result<()> {
        Ok(self.session.leave().await?)
    }

    /// Takes over what another process of this host served, and left or died beside.
    ///
    /// # Errors
    /// The monitor's.
    pub async fn resume(exposed: Exposed) -> Result<Self> {
        let session = ExportSession::resume(exposed.session.clone()).await?;
        Ok(Exposure { exposed, session, hold: None })
    }
}

impl Exposed {
    /// Clears up, by its names, behind a QEMU that has ended.
    ///
    /// # Errors
    /// Those of QEMU's host.
    pub async fn clear(&self) -> Result<()> {
        let (monitor, options, scope) = self.session.parts();
        aquifer_qemu::cleanup(monitor, options, scope).await?;
        Ok(())
    }

    /// The record of the backup, once it is finished.
    fn record(&self) -> Record {
        let disks = self.disks.iter().map(|disk| DiskRecord {
            name: disk.name.clone(),
            node: disk.node.clone(),
            size_bytes: disk.size_bytes,
            logical_block_bytes: disk.logical_block_bytes,
            physical_block_bytes: disk.physical_block_bytes,
            root: None,
            bitmap: disk.bitmap.clone(),
            mode: if disk.parent.is_some() { Mode::Bitmap } else { Mode::Full },
            reason: disk.reason.clone(),
            read_bytes: 0,
            new_bytes: 0,
            dedup_bytes: 0,
            zero_bytes: 0,
            stored_bytes: 0,
        });
        Record {
            version: RECORD_VERSION,
            backup: self.uuid,
            parent: self.parent(),
            domain: DomainRecord { uuid: self.domain_uuid, name: self.domain.clone(), host: host_name() },
            created_ms: self.created_ms,
            description: self.description.clone(),
            disks: disks.collect(),
            definition: self.definition.clone(),
            quiesce: QuiesceRecord { quiesced: self.quiesced, frozen_ms: self.freeze_ms, detail: None },
            tool: concat!("aquifer ", env!("CARGO_PKG_VERSION")).to_owned(),
            labels: self.labels.clone(),
            namespace: self.namespace.clone(),
            external: true,
        }
    }

    /// Whether the instant is held by a filter.
    pub fn by_filter(&self) -> bool {
        self.session.method() == Method::Filter
    }

    /// The newest of the backups since which changes are told.
    pub fn parent(&self) -> Option<Uuid> {
        // Ids of ours grow with time; of others any will do.
        self.disks.iter().filter_map(|disk| disk.parent).max()
    }
}

fn lost_of(domain: &str, lost: Lost) -> Error {
    Error::from(aquifer_qemu::Error::InstantLost(lost)).about(format_args!("domain {domain}"))
}

async fn release(hold: Option<DomainHold>) {
    let Some(hold) = hold else { return };
    if let Err(error) = hold.release().await {
        tracing::warn!("the hold on the domain could not be ended in the log: {error}");
    }
}
