//! `repository`: making one, and asking it about itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_engine::clock::System;
use aquifer_engine::repository::format::KdfParams;
use aquifer_engine::repository::store::probe;
use aquifer_engine::repository::{
    Access, InitOptions, LockReport, OpenOptions, RebuildFrom, RebuildProgress, Repository, RepositoryInfo,
    Secret, World,
};
use aquifer_engine::{Error, Kind, Result};
use indicatif::ProgressBar;
use serde::Serialize;
use zeroize::Zeroizing;

use super::list::timestamp;
use super::open::IfMissing;
use super::{keys, open};
use crate::args::{InitArgs, RepositoryCommand};
use crate::context::{Chosen, Context};
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Runs `repository …`.
///
/// # Errors
/// As opening the repository; for `init`, `Conflict` when something is there already.
pub(crate) async fn run(context: &Context, command: RepositoryCommand) -> Result<Exit> {
    match command {
        RepositoryCommand::Init(args) => init(context, args).await?,
        RepositoryCommand::Info => info(context).await?,
        RepositoryCommand::Stats => stats(context).await?,
        RepositoryCommand::Probe => return race(context).await,
        RepositoryCommand::RebuildIndex { from_packs } => rebuild(context, from_packs).await?,
        RepositoryCommand::AdoptLog => adopt_log(context).await?,
        RepositoryCommand::ExtendLocks => extend_locks(context).await?,
        RepositoryCommand::Keys(command) => keys::run(context, command).await?,
    }
    Ok(Exit::Done)
}

/// What a repository is.
#[derive(Serialize)]
struct Info {
    name: String,
    repository: String,
    version: u32,
    encrypted: bool,
    chunk_bytes: u32,
    packs: String,
    log: Option<String>,
    log_entries: u64,
    writers: usize,
    features: Vec<String>,
    backups: usize,
    open_sessions: usize,
    state_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<PathBuf>,
}

impl Info {
    fn new(chosen: Chosen, info: RepositoryInfo) -> Self {
        Info {
            name: chosen.name,
            repository: info.config.repository.to_string(),
            version: info.config.version,
            encrypted: info.config.encrypted,
            chunk_bytes: info.config.chunk_bytes,
            packs: info.packs,
            log: info.log,
            log_entries: info.seq,
            writers: info.writers,
            features: info.features,
            backups: info.backups,
            open_sessions: info.sessions,
            state_dir: info.state_dir,
            recovery_key: None,
        }
    }
}

async fn info(context: &Context) -> Result<()> {
    let repository = open::reader(context).await?;
    context.output.report(&Info::new(context.repository()?, repository.info()))
}

async fn adopt_log(context: &Context) -> Result<()> {
    let chosen = context.repository()?;
    let options = OpenOptions {
        stores: open::stores(context, &chosen, IfMissing::Make).await?,
        world: Arc::new(System::new()),
        state_dir: Some(context.state_dir()?),
        secret: open::secret(&chosen)?,
        access: Access::Write,
        settings: open::settings(context),
    };
    let repository = Repository::adopt_log(options).await?;
    context.output.report(&Info::new(chosen, repository.info()))
}

async fn extend_locks(context: &Context) -> Result<()> {
    let repository = open::reader(context).await?;
    let report = Box::pin(repository.extend_locks(context.cancel.cancelled())).await?;
    context.output.report(&report)
}

impl Report for LockReport {
    fn human(&self) -> String {
        let until = match self.locked_until_ms {
            Some(ms) => timestamp(ms).map_or_else(|_| format!("{ms} ms"), human::time),
            None => "never".to_owned(),
        };
        let missing = match self.missing {
            0 => String::new(),
            count => {
                format!("needed, and no copy known: {count} chunks and tree nodes; run `aquifer verify`\n")
            }
        };
        missing
            + &format!(
                "{} objects are needed; {} locks extended, the first ends {until}; {} objects nobody needs\n",
                self.objects, self.extended, self.unneeded
            )
    }
}

async fn init(context: &Context, args: InitArgs) -> Result<()> {
    let chosen = context.repository()?;
    let secret = match (open::secret(&chosen)?, args.no_encryption) {
        (Some(_), true) => {
            return Err(Error::new(Kind::Invalid, "--no-encryption and a password contradict each other")
                .hint("leave one of them out; the password comes from --password-file, AQUIFER_PASSWORD_FILE or the configuration"));
        }
        (None, false) => {
            return Err(Error::new(Kind::Invalid, "a new repository needs a password")
                .hint("add --password-file FILE; or --no-encryption, if everybody who reads the store may read the disks"));
        }
        (secret, _) => secret,
    };
    let chunk_bytes = u32::try_from(args.chunk_size.0)
        .map_err(|_| Error::new(Kind::Invalid, format!("--chunk-size {} is above 4 MiB", args.chunk_size)))?;
    let stores = open::stores(context, &chosen, IfMissing::Make).await?;
    let world = System::new();
    let recovery = args.recovery_key.as_deref().map(|path| RecoveryKey::make(path, &world)).transpose()?;
    let made = Repository::init(InitOptions {
        stores,
        world: Arc::new(world),
        state_dir: Some(context.state_dir()?),
        secret,
        recovery: recovery.as_ref().map(RecoveryKey::secret),
        kdf: KdfParams::default(),
        chunk_bytes,
        settings: open::settings(context),
    });
    let repository = made.await?;
    let mut info = Info::new(chosen, repository.info());
    info.recovery_key = recovery.map(RecoveryKey::keep);
    context.output.report(&info)
}

/// A random secret in a file of its own, which is removed again unless it is kept.
struct RecoveryKey {
    path: PathBuf,
    text: Zeroizing<String>,
    kept: bool,
}

impl RecoveryKey {
    /// Makes the key and its file, which must not exist.
    fn make(path: &Path, world: &dyn World) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::AlreadyExists => Kind::Conflict,
                std::io::ErrorKind::NotFound => Kind::NotFound,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Unavailable,
            };
            Error::caused(kind, error).about(format_args!("recovery key {}", path.display()))
        };
        let mut random = Zeroizing::new([0_u8; 32]);
        world.random(random.as_mut_slice());
        let text = Zeroizing::new(random.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        // From here on a failure takes the file along.
        let key = RecoveryKey { path: path.to_owned(), text, kept: false };
        writeln!(file, "{}", *key.text).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(key)
    }

    fn secret(&self) -> Secret {
        Secret::new(self.text.as_bytes().to_vec())
    }

    fn keep(mut self) -> PathBuf {
        self.kept = true;
        std::mem::take(&mut self.path)
    }
}

impl Drop for RecoveryKey {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("{} opens nothing and could not be removed: {error}", self.path.display());
        }
    }
}

/// How the store fared in the race of creates.
#[derive(Serialize)]
struct Probed {
    store: String,
    passed: bool,
    racers: u8,
    rounds: Vec<Round>,
    left_behind: usize,
}

#[derive(Serialize)]
struct Round {
    winners: usize,
    failures: usize,
    winner_kept: bool,
}

async fn race(context: &Context) -> Result<Exit> {
    let stores = open::stores(context, &context.repository()?, IfMissing::Refuse).await?;
    let store = stores.log.as_ref().unwrap_or(&stores.packs);
    let world = System::new();
    let report = open::opened(probe::race(store, &|out| world.random(out)).await)?;
    let probed = Probed {
        store: store.describe(),
        passed: report.passed(),
        racers: probe::RACERS,
        rounds: report
            .rounds
            .iter()
            .map(|round| Round {
                winners: round.winners,
                failures: round.failures,
                winner_kept: round.winner_kept,
            })
            .collect(),
        left_behind: report.left_behind,
    };
    context.output.report(&probed)?;
    if probed.passed {
        return Ok(Exit::Done);
    }
    context
        .output
        .say("error: this store may hold packs, but not the log: name another one for it with --log URL");
    Ok(Exit::Failed(Kind::Unsupported))
}

/// Sizes and counts.
#[derive(Serialize)]
struct Stats {
    backups: u64,
    forgotten: u64,
    domains: u64,
    logical_bytes: u64,
    packs: u64,
    pack_bytes: u64,
    meta_bytes: u64,
    condemned_packs: u64,
    chunks: u64,
    index_bytes: u64,
    segments: u64,
    log_entries: u64,
    open_sessions: u64,
}

async fn stats(context: &Context) -> Result<()> {
    let stats = open::reader(context).await?.stats()?;
    context.output.report(&Stats {
        backups: stats.backups,
        forgotten: stats.forgotten,
        domains: stats.domains,
        logical_bytes: stats.logical_bytes,
        packs: stats.packs,
        pack_bytes: stats.pack_bytes,
        meta_bytes: stats.meta_bytes,
        condemned_packs: stats.condemned_packs,
        chunks: stats.chunks,
        index_bytes: stats.index_bytes,
        segments: stats.segments,
        log_entries: stats.log_entries,
        open_sessions: stats.sessions,
    })
}

/// The index of this machine after it was made anew.
#[derive(Serialize)]
struct Rebuilt {
    from: &'static str,
    read: u64,
}

async fn rebuild(context: &Context, from_packs: bool) -> Result<()> {
    let (from, name) =
        if from_packs { (RebuildFrom::Packs, "packs") } else { (RebuildFrom::Segments, "segments") };
    let repository = open::writer(context).await?;
    let bar = context.output.bars().add(ProgressBar::new(0).with_prefix(name));
    let read = AtomicU64::new(0);
    let report = |progress: RebuildProgress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        read.store(progress.done, Ordering::Relaxed);
    };
    let rebuilt = repository.rebuild_index(from, &report).await;
    bar.finish_and_clear();
    rebuilt?;
    context.output.report(&Rebuilt { from: name, read: read.load(Ordering::Relaxed) })
}

impl Report for Info {
    fn human(&self) -> String {
        let mut facts = vec![
            ("repository", self.name.clone()),
            ("id", self.repository.clone()),
            ("encrypted", if self.encrypted { "yes" } else { "NO" }.to_owned()),
            ("chunk size", human::size(u64::from(self.chunk_bytes))),
            ("packs in", self.packs.clone()),
        ];
        facts.extend(self.log.clone().map(|log| ("log in", log)));
        facts.push(("log entries", self.log_entries.to_string()));
        facts.push(("writers", self.writers.to_string()));
        if !self.features.is_empty() {
            facts.push(("features", self.features.join(", ")));
        }
        facts.push(("backups", self.backups.to_string()));
        facts.push(("open sessions", self.open_sessions.to_string()));
        facts.extend(self.state_dir.as_ref().map(|path| ("state", path.display().to_string())));
        facts.extend(
            self.recovery_key
                .as_ref()
                .map(|path| ("recovery key", format!("{}: take it off this machine", path.display()))),
        );
        human::facts(&facts)
    }
}

impl Report for Stats {
    fn human(&self) -> String {
        let packs = format!("{} in {} packs", human::size(self.pack_bytes), self.packs);
        human::facts(&[
            ("backups", format!("{} of {} domains", self.backups, self.domains)),
            ("disks together", human::size(self.logical_bytes)),
            ("stored", packs),
            ("of that trees", human::size(self.meta_bytes)),
            ("chunks", format!("about {}", self.chunks)),
            ("index here", human::size(self.index_bytes)),
            ("segments", self.segments.to_string()),
            ("log entries", self.log_entries.to_string()),
            ("open sessions", self.open_sessions.to_string()),
        ])
    }
}

impl Report for Probed {
    fn human(&self) -> String {
        let winners: Vec<String> = self.rounds.iter().map(|round| round.winners.to_string()).collect();
        let verdict =
            if self.passed { "creates objects atomically" } else { "does NOT create objects atomically" };
        format!(
            "{}: {verdict}\n{} racers, winners of each round: {}\n",
            self.store,
            self.racers,
            winners.join(" ")
        )
    }
}

impl Report for Rebuilt {
    fn human(&self) -> String {
        format!("index made anew from {} {}\n", self.read, self.from)
    }
}
