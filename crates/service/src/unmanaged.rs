//! Unmanaged backups: served, watched over, and given up when nobody reads them for the time of their lease.
//!
//! The process that serves a backup has the connection to QEMU and sees at once when the instant is lost. Another process
//! that wants the backup asks it, by a signal, to let go, and takes it over from the journal; so does one that finds it
//! dead. Not here: finishing (`finish.rs`).
//!
//! Invariant: as long as a process watches, the guest cannot come to harm by a full scratch; when it ends, however it
//! ends, its guard or the next command on the domain clears up.

use std::time::Duration;

use aquifer_api::request::{BackupRequest as Asked, Parent, Start};
use aquifer_api::xml::Target;
use aquifer_api::{Backup, CreateFlags, Error, JobState, Result};
use aquifer_engine::{Exposed, Exposure};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{journal, to_api};
use crate::journal::{Entry, EntryDisk, Job, JobKind};
use crate::service::{Live, Service};

/// How often it is looked whether somebody reads, at most; of short leases a fourth.
const LOOK: Duration = Duration::from_secs(30);

/// Where the task that watches a served backup hands everything over: QEMU's session and the job.
pub(crate) type HandOver = oneshot::Sender<(Exposure, Job)>;

/// A backup that is being watched over by this process for others.
#[derive(Debug)]
pub struct Keeper {
    service: Service,
    uuid: Uuid,
}

impl Keeper {
    /// The keeper of a backup that this service serves.
    pub fn new(service: &Service, backup: &Backup) -> Self {
        Keeper { service: service.clone(), uuid: backup.uuid() }
    }

    /// Resolves when the backup is over: its lease ended, or its instant was lost.
    pub async fn over(&self) {
        self.service.wait(self.uuid).await;
    }

    /// Lets the backup go, so that another process can take it over from the journal.
    ///
    /// # Errors
    /// Those of the clean-up's guard.
    pub async fn leave(self) -> Result<()> {
        let Some((exposure, job)) = self.service.reclaim(self.uuid).await else { return Ok(()) };
        let domain = exposure.exposed().domain.clone();
        let left = exposure.leave().await.map_err(|error| to_api(&error, &domain));
        drop(job);
        left
    }
}

impl Service {
    pub(crate) async fn start(&self, domain: &str, xml: &str, flags: CreateFlags) -> Result<Backup> {
        flags.check()?;
        let asked = Asked::parse(xml, Start::Unmanaged)?;
        if asked.is_for_stores() {
            return self.pull(domain, xml, &asked, flags).await;
        }
        refuse_unsupported(&asked, flags)?;
        let mut request = self.request(domain, &asked, flags).await?;
        let uuid =
            *request.uuid.get_or_insert_with(|| aquifer_engine::clock::new_uuid(&*self.context().world));
        let mut entry = Entry::new(uuid, domain, JobKind::Unmanaged, xml, self.now_ms());
        entry.lease_ms = u64::try_from(self.0.lease.as_millis()).unwrap_or(u64::MAX);
        let mut job = self.0.journal.begin(entry).map_err(journal)?;
        match self.expose(&mut job, request).await {
            Ok(exposure) => {
                self.watch_over(exposure, job);
                Ok(Backup::new(uuid))
            }
            Err(error) => {
                // Whoever asked knows, and there is no point in time to speak of.
                job.discard().map_err(journal)?;
                Err(error)
            }
        }
    }

    /// What is served of a backup, while it is.
    ///
    /// # Errors
    /// The journal's.
    pub fn served(&self, uuid: Uuid) -> Result<Option<Exposed>> {
        let entry = self.entry(uuid)?.filter(|entry| entry.state == JobState::Exposed);
        Ok(entry.and_then(|entry| entry.exposed).map(|exposed| *exposed))
    }

    async fn expose(&self, job: &mut Job, request: aquifer_engine::BackupRequest) -> Result<Exposure> {
        let domain = request.domain.clone();
        job.advance(JobState::Preparing, self.now_ms()).map_err(journal)?;
        let exposure =
            aquifer_engine::expose(self.context(), request).await.map_err(|error| to_api(&error, &domain))?;
        let exposed = exposure.exposed().clone();
        let disks = exposed.disks.iter().map(|disk| EntryDisk {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            mode: if disk.parent.is_some() { "bitmap" } else { "full" }.to_owned(),
            reason: disk.reason.clone(),
            ..EntryDisk::default()
        });
        let (disks, now) = (disks.collect(), self.moment());
        let noted = job.change(|entry| {
            entry.instant_ms = Some(exposed.created_ms);
            entry.freeze_ms = exposed.freeze_ms;
            entry.disks = disks;
            entry.touched = Some(now);
            entry.exposed = Some(Box::new(exposed));
        });
        match noted.and_then(|()| job.advance(JobState::Exposed, self.now_ms())) {
            Ok(()) => Ok(exposure),
            Err(error) => {
                exposure.cancel().await.map_err(|error| to_api(&error, &domain))?;
                Err(journal(error))
            }
        }
    }

    /// Watches over a served backup, in a task of its own.
    fn watch_over(&self, exposure: Exposure, job: Job) {
        let (hand_over, orders) = mpsc::channel(1);
        let (ended, over) = watch::channel(false);
        let (uuid, cancel) = (job.entry().uuid, CancellationToken::new());
        self.enter(uuid, Live { cancel, over, hand_over: Some(hand_over) });
        let service = self.clone();
        tokio::spawn(async move {
            service.watch(exposure, job, orders).await;
            service.leave_live(uuid);
            ended.send_replace(true);
        });
    }

    async fn watch(&self, exposure: Exposure, mut job: Job, mut orders: mpsc::Receiver<HandOver>) {
        let lost = exposure.lost();
        tokio::pin!(lost);
        let lease = Duration::from_millis(job.entry().lease_ms);
        let mut look = tokio::time::interval(LOOK.min(lease / 4).max(Duration::from_millis(20)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (end, why) = loop {
            tokio::select! {
                biased;
                error = &mut lost => break (JobState::Failed, error.message().to_owned()),
                () = self.context().cancel.cancelled() => {
                    break (JobState::Cancelled, "the service ended".to_owned());
                }
                order = orders.recv() => {
                    let Some(to) = order else { break (JobState::Cancelled, "the service ended".to_owned()) };
                    // Nobody may have waited for it; then it ends here.
                    let Err((exposure, job)) = to.send((exposure, job)) else { return };
                    return self.give_up(exposure, job, JobState::Cancelled, "nobody took it over").await;
                }
                _ = look.tick() => {
                    match exposure.readers().await {
                        Ok(Some(0) | None) => {}
                        Ok(Some(_)) => self.touch(&mut job),
                        Err(error) => tracing::debug!(%error, "whether somebody reads cannot be seen"),
                    }
                    if self.idle_ms(job.entry()) >= job.entry().lease_ms {
                        break (JobState::Cancelled, format!("nobody read it for {} s", lease.as_secs()));
                    }
                }
            }
        };
        self.give_up(exposure, job, end, &why).await;
    }

    /// Ends a served backup without success.
    pub(crate) async fn give_up(&self, exposure: Exposure, mut job: Job, end: JobState, why: &str) {
        let uuid = job.entry().uuid;
        tracing::warn!(%uuid, "an unmanaged backup ends as {end}: {why}");
        if let Err(error) = job.fail(end, why, self.now_ms()) {
            tracing::warn!(%uuid, %error, "the end of a job is not in the journal");
        }
        if let Err(error) = exposure.cancel().await {
            tracing::warn!(%uuid, %error, "QEMU is not clean; the next backup of the domain clears up");
        }
    }

    fn touch(&self, job: &mut Job) {
        let now = self.moment();
        if let Err(error) = job.change(|entry| entry.touched = Some(now)) {
            tracing::warn!(%error, "a lease that was renewed is not in the journal");
        }
    }

    /// For how long nobody read, in milliseconds; for ever, if the machine was started anew since.
    fn idle_ms(&self, entry: &Entry) -> u64 {
        entry.touched.and_then(|touched| self.moment().since(touched)).unwrap_or(u64::MAX)
    }

    /// Takes a served backup out of the hands of this process's own task.
    pub(crate) async fn reclaim(&self, uuid: Uuid) -> Option<(Exposure, Job)> {
        let live = self.live(uuid)?;
        let (to, given) = oneshot::channel();
        live.hand_over?.send(to).await.ok()?;
        given.await.ok()
    }

    /// Brings into order what processes that are gone left of the domain's jobs: a served backup whose lease is over is
    /// cancelled.
    ///
    /// # Errors
    /// The journal's. What is left in QEMU is found by the next backup.
    pub async fn settle(&self, domain: &str) -> Result<()> {
        for entry in self.entries()? {
            let served =
                entry.domain == domain && matches!(entry.state, JobState::Exposed | JobState::Finalizing);
            if !served || self.live(entry.uuid).is_some() || self.idle_ms(&entry) < entry.lease_ms {
                continue;
            }
            let Some(mut job) = self.0.journal.take(entry.uuid).map_err(journal)? else { continue };
            // Read again under the lock.
            let (Some(exposed), false) = (job.entry().exposed.clone(), job.entry().state.is_final()) else {
                continue;
            };
            match Exposure::resume(*exposed).await {
                Ok(exposure) => {
                    self.give_up(
                        exposure,
                        job,
                        JobState::Cancelled,
                        "nobody read it for the time of its lease",
                    )
                    .await
                }
                Err(error) => {
                    job.fail(JobState::Interrupted, error.message(), self.now_ms()).map_err(journal)?;
                }
            }
        }
        Ok(())
    }
}

/// What a document or flags ask of an unmanaged backup and is not done.
fn refuse_unsupported(asked: &Asked, flags: CreateFlags) -> Result<()> {
    let refuse = |what: &str| Err(Error::OperationUnsupported(what.to_owned()));
    for (flag, what) in [
        (
            CreateFlags::ESTIMATE,
            "ESTIMATE of an unmanaged backup; a managed one of the same disks tells as much",
        ),
        (CreateFlags::VERIFY, "VERIFY of a backup that somebody else stores"),
        (CreateFlags::PROTECT, "PROTECT of a backup that is not there yet; protect it when it is finished"),
        (CreateFlags::REUSE_EXTERNAL, "REUSE_EXTERNAL: scratch files are made anew for each backup"),
        (
            CreateFlags::PRESERVE_SHUTDOWN,
            "PRESERVE_SHUTDOWN: that a domain stays paused after its guest's shutdown is QEMU's option -action shutdown=pause",
        ),
        (CreateFlags::OFFLINE_OK, "OFFLINE_OK: the images of a stopped domain are served by `qemu-nbd`"),
    ] {
        if flags.contains(flag) {
            return refuse(what);
        }
    }
    if asked.server.is_some() {
        return refuse(
            "a <server> of the caller's choice; the description names the endpoint that was chosen",
        );
    }
    let disks = asked.disks.iter().flatten().filter(|disk| !disk.excluded);
    for (name, target) in disks
        .clone()
        .map(|disk| (disk.name.as_str(), disk.target.as_ref()))
        .chain([("", asked.target.as_ref())])
    {
        match target {
            None | Some(Target::Nbd(None)) => {}
            Some(Target::ChunkStore { .. }) => {
                return refuse(
                    "some disks into a chunkstore and some to be read by others; ask for them one after the other",
                );
            }
            Some(_) => {
                return refuse(&format!(
                    "an endpoint of the caller's choice for disk {name:?}; write <target type='nbd'/>, and the description names the one that was chosen"
                ));
            }
        }
    }
    for disk in disks {
        if disk.export_name.is_some() || disk.export_bitmap.is_some() {
            return refuse(
                "names of exports and bitmaps of the caller's choice; the description names those that were chosen",
            );
        }
        if disk
            .scratch
            .as_ref()
            .is_some_and(|scratch| scratch.place != aquifer_api::xml::ImagePlace::File(None))
        {
            return refuse(
                "a <scratch> of the caller's choice; the folder of scratch files is the domain's `scratch`",
            );
        }
        if matches!(disk.parent, Some(Parent::Checkpoint(_) | Parent::Backup(_))) {
            return refuse("a parent of one disk alone; name one for the whole backup");
        }
    }
    Ok(())
}
