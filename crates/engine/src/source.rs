//! Where the disks of a backup are read: a running domain, exports that somebody serves, or stopped images.
//!
//! An open source is a set of NBD exports that show one instant, and the duty to close them. What freezes
//! the instant and takes it away again is `aquifer-qemu`; what reads the exports is `aquifer-nbd`.
//!
//! Invariant: an [`OpenSource`] that was opened is closed on every path, also when opening the next part of
//! it failed.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use aquifer_nbd::{Client, ClientOptions, Uri};
use aquifer_qemu::{
    BlockSizes, CheckpointPlan, Domain, Ending, ExportSession, ImageExport, ImageRequest, Method, Scope,
    SessionRequest,
};
use uuid::Uuid;

use crate::backup_disk::request_bytes;
use crate::changes::ALLOCATION;
use crate::error::{Error, Kind, Result};
use crate::request::{BackupRequest, QmpSource, Source};
use crate::settings::{JobContext, REQUESTS_PER_CONNECTION};

/// One disk of an open source.
#[derive(Debug)]
pub(crate) struct SourceDisk {
    /// Our name for it.
    pub(crate) name: String,
    /// What it is at the source, for people.
    pub(crate) node: String,
    /// Where it is read.
    pub(crate) uri: Uri,
    /// The metadata context of what changed since its base, where there is one.
    pub(crate) changes: Option<String>,
    /// The bitmap that marks this instant, where there is one.
    pub(crate) checkpoint: Option<String>,
    /// The block sizes that its guest sees, where known.
    pub(crate) blocks: Option<BlockSizes>,
}

impl SourceDisk {
    /// A disk of which nothing is known but where it is read.
    fn plain(name: &str, node: String, uri: Uri) -> Self {
        SourceDisk { name: name.to_owned(), node, uri, changes: None, checkpoint: None, blocks: None }
    }
}

/// The disks at one instant, until it is closed.
pub(crate) struct OpenSource {
    /// The disks, in the order in which they were asked for.
    pub(crate) disks: Vec<SourceDisk>,
    /// The domain's UUID, where it told one.
    pub(crate) domain_uuid: Option<Uuid>,
    /// The instant in milliseconds since 1970 UTC.
    pub(crate) instant_ms: u64,
    /// How long the guest's file systems were frozen.
    pub(crate) freeze_ms: Option<u64>,
    /// Whether they were at the instant.
    pub(crate) quiesced: bool,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
    held: Held,
}

/// What must be closed.
enum Held {
    Session(Box<ExportSession>),
    Images(Vec<ImageExport>),
    Nothing,
}

impl OpenSource {
    /// Looks at a running domain, and takes away what a killed run left there; `None` for every other source.
    ///
    /// # Errors
    /// Those of QEMU.
    pub(crate) async fn look(
        context: &JobContext,
        request: &BackupRequest,
        backup: Uuid,
    ) -> Result<Option<Box<Domain>>> {
        let Source::Qmp(qmp) = &request.source else { return Ok(None) };
        let domain = Domain::connect(session_request(context, qmp, &request.domain, backup)).await?;
        if let Some(verdicts) = &qmp.filter {
            verdicts
                .require(&domain.build())
                .map_err(|error| error.about(format_args!("domain {}", request.domain)))?;
        }
        Ok(Some(Box::new(domain)))
    }

    /// Opens the source: the domain that was looked at, with a plan for each of its disks, or whatever else the request
    /// names.
    ///
    /// # Errors
    /// Those of QEMU and qemu-nbd; nothing is left open then.
    pub(crate) async fn open(
        context: &JobContext,
        source: &Source,
        domain: Option<Box<Domain>>,
        plans: Vec<CheckpointPlan>,
    ) -> Result<Self> {
        if let Some(domain) = domain {
            return open_session(context, domain.open(plans).await?).await;
        }
        match source {
            Source::Images(images) => open_images(context, images).await,
            Source::Nbd(exports) => {
                let disk =
                    |(name, uri): &(String, Uri)| SourceDisk::plain(name, uri.to_string(), uri.clone());
                let disks = exports.iter().map(disk).collect();
                Ok(OpenSource::still(context, disks, Vec::new(), Held::Nothing))
            }
            Source::Qmp(_) => Err(Error::new(Kind::Internal, "the domain was not looked at")),
        }
    }

    /// A source that has no instant of its own: it stands still because somebody else sees to that.
    fn still(context: &JobContext, disks: Vec<SourceDisk>, warnings: Vec<String>, held: Held) -> Self {
        let instant_ms = context.world.wall_ms();
        OpenSource { disks, domain_uuid: None, instant_ms, freeze_ms: None, quiesced: false, warnings, held }
    }

    /// Resolves when the instant is lost; never for a source that cannot tell.
    pub(crate) fn lost(&self) -> Pin<Box<dyn Future<Output = Error> + Send>> {
        match &self.held {
            Held::Session(session) => {
                let failed = session.failed();
                Box::pin(async move { Error::from(aquifer_qemu::Error::InstantLost(failed.await)) })
            }
            Held::Images(_) | Held::Nothing => Box::pin(std::future::pending()),
        }
    }

    /// Proves that what was read so far showed one instant.
    ///
    /// # Errors
    /// `Unavailable` if the instant was lost.
    pub(crate) async fn check(&mut self) -> Result<()> {
        match &mut self.held {
            Held::Session(session) => Ok(session.check().await?),
            Held::Images(_) | Held::Nothing => Ok(()),
        }
    }

    /// Takes everything away again, in the order that never stops the guest; the bitmaps as `ending` says.
    ///
    /// # Errors
    /// Those of QEMU; what is left then is found by the next run or by `domain cleanup`.
    pub(crate) async fn close(self, ending: Ending) -> Result<()> {
        match self.held {
            Held::Session(session) => {
                session.close(ending).await?;
            }
            Held::Images(images) => close_images(images).await?,
            Held::Nothing => {}
        }
        Ok(())
    }

    /// Connects to one of the disks.
    ///
    /// # Errors
    /// Those of the NBD client.
    pub(crate) async fn connect(context: &JobContext, disk: &SourceDisk) -> Result<Client> {
        let request_bytes = request_bytes(context.repository.config().chunk_bytes);
        let (connections, connections_max) = context.settings.connections();
        let options = ClientOptions {
            connections,
            connections_max,
            depth: REQUESTS_PER_CONNECTION,
            request_bytes,
            in_flight_bytes: context.settings.line_bytes(request_bytes),
            contexts: std::iter::once(ALLOCATION.to_owned()).chain(disk.changes.clone()).collect(),
            ..ClientOptions::default()
        };
        let client = Client::connect(&disk.uri, &options).await;
        client.map_err(|error| {
            Error::from(error).about(format_args!("disk {}", disk.name)).with("disk", disk.name.clone())
        })
    }
}

/// What a session in the domain's QEMU is opened with.
pub(crate) fn session_request(
    context: &JobContext,
    qmp: &QmpSource,
    domain: &str,
    backup: Uuid,
) -> SessionRequest {
    let wanted = u32::try_from(qmp.disks.only.len().max(qmp.disks.names.len()).max(16)).unwrap_or(u32::MAX);
    SessionRequest {
        monitor: qmp.monitor.clone(),
        options: qmp.monitor_options.clone(),
        scope: Scope {
            repository: context.repository.config().repository.to_string(),
            domain: domain.to_owned(),
            scratch: qmp.scratch.clone(),
            nbd: qmp.listen.clone(),
            agent: qmp.agent.clone(),
        },
        backup: backup.to_string(),
        disks: qmp.disks.clone(),
        scratch_max_bytes: qmp.scratch_max_bytes,
        // One more for each disk, so that a connection that is lost and not yet noticed does not block its heir.
        max_connections: wanted.saturating_mul(u32::from(context.settings.connections().1) + 1),
        quiesce: qmp.quiesce,
        method: if qmp.filter.is_some() { Method::Filter } else { Method::Classic },
        guard: qmp.guard.clone(),
    }
}

async fn open_session(context: &JobContext, session: ExportSession) -> Result<OpenSource> {
    let disks: Result<Vec<SourceDisk>> = session
        .exports()
        .iter()
        .map(|export| {
            let uri = export.uri.parse::<Uri>().map_err(Error::from)?;
            let plain = SourceDisk::plain(&export.disk.name, export.disk.node.clone(), uri);
            Ok(SourceDisk {
                changes: export.changes.clone(),
                checkpoint: export.checkpoint.clone(),
                blocks: export.disk.blocks,
                ..plain
            })
        })
        .collect();
    let disks = match disks {
        Ok(disks) => disks,
        Err(error) => {
            session.close(Ending::Failed).await?;
            return Err(error);
        }
    };
    let skipped =
        session.skipped().iter().map(|disk| format!("drive {} is empty or removable: skipped", disk.name));
    Ok(OpenSource {
        disks,
        domain_uuid: session.domain_uuid().and_then(|uuid| uuid.parse().ok()),
        // Without a time of QEMU's own, ours is off by the set-up.
        instant_ms: session.instant_ms().unwrap_or_else(|| context.world.wall_ms()),
        freeze_ms: session.freeze_ms(),
        quiesced: session.quiesced(),
        warnings: session.warnings().iter().cloned().chain(skipped).collect(),
        held: Held::Session(Box::new(session)),
    })
}

async fn open_images(context: &JobContext, images: &[(String, PathBuf)]) -> Result<OpenSource> {
    let (mut disks, mut open, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for (name, path) in images {
        let request =
            ImageRequest { path: path.clone(), format: None, sockets: std::env::temp_dir(), writable: false };
        let opened = async {
            let image = ImageExport::open(&request).await?;
            let uri = image.uri().parse::<Uri>()?;
            Ok::<_, Error>((image, uri))
        };
        match opened.await {
            Ok((image, uri)) => {
                warnings.extend(image.warnings().iter().cloned());
                open.push(image);
                disks.push(SourceDisk::plain(name, path.display().to_string(), uri));
            }
            Err(error) => {
                close_images(open).await?;
                return Err(error.about(format_args!("disk {name}")).with("disk", name.clone()));
            }
        }
    }
    Ok(OpenSource::still(context, disks, warnings, Held::Images(open)))
}

/// Closes all of them; the first failure is returned when all were tried.
async fn close_images(images: Vec<ImageExport>) -> Result<()> {
    let mut first = Ok(());
    for image in images {
        let closed = image.close().await.map(|_| ()).map_err(Error::from);
        if first.is_ok() {
            first = closed;
        }
    }
    first
}

impl Source {
    /// Why a disk that has an earlier backup is read whole.
    pub(crate) fn rescan_reason(&self) -> &'static str {
        match self {
            Source::Qmp(_) => "no bitmap marks what changed since the earlier backup",
            Source::Nbd(_) => "the export carries no bitmap of this repository",
            Source::Images(_) => "the image is read while its domain is stopped",
        }
    }

    /// The disks that the request itself names: none for a running domain, which tells its own.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let exports = match self {
            Source::Nbd(exports) => exports.as_slice(),
            Source::Qmp(_) | Source::Images(_) => &[],
        };
        let images = match self {
            Source::Images(images) => images.as_slice(),
            Source::Qmp(_) | Source::Nbd(_) => &[],
        };
        let exports = exports.iter().map(|(name, _)| name.as_str());
        exports.chain(images.iter().map(|(name, _)| name.as_str()))
    }

    /// Refuses names that cannot be kept apart.
    ///
    /// # Errors
    /// `Invalid` for no disk at all, an empty name, or one that is given twice.
    pub(crate) fn check_names(&self) -> Result<()> {
        if matches!(self, Source::Qmp(_)) {
            return Ok(());
        }
        let names: Vec<&str> = self.names().collect();
        if names.is_empty() {
            return Err(Error::new(Kind::Invalid, "no disk is named")
                .hint("name at least one: NAME=URI or NAME=PATH"));
        }
        for (at, name) in names.iter().enumerate() {
            check_name("disk", name)?;
            if names[..at].contains(name) {
                return Err(Error::new(Kind::Invalid, format!("disk {name} is given twice"))
                    .hint("give each disk a name of its own")
                    .with("disk", *name));
            }
        }
        Ok(())
    }
}

/// Longest name that a listing shows uncut.
const NAME_CHARS: usize = 64;

/// Refuses names of domains and disks that no listing could show.
///
/// # Errors
/// `Invalid`.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let chars = name.chars().count();
    if chars == 0 || chars > NAME_CHARS || name.chars().any(char::is_control) {
        return Err(Error::new(Kind::Invalid, format!("{what} name {name:?} has {chars} characters"))
            .hint(format!("use 1 to {NAME_CHARS} printable characters")));
    }
    Ok(())
}
