//! Opening the repository that is meant, and making what a job needs around it.

use std::path::PathBuf;
use std::sync::Arc;

use aquifer_engine::clock::System;
use aquifer_engine::repository::store::{self, Local, ObjectStore, S3, S3Settings};
use aquifer_engine::repository::{self, Access, OpenOptions, Repository, Secret, Settings, Stores};
use aquifer_engine::{Error, JobContext, JobSettings, Kind, Result};

use crate::context::{Chosen, Context};
use crate::location::StoreUrl;
use crate::password;
use crate::progress;

/// Opens the repository for commands that only read; they never wait for a backup that runs.
///
/// # Errors
/// `NotFound` when there is none, `Denied` for a wrong password, and what the stores say.
pub(crate) async fn reader(context: &Context) -> Result<Arc<Repository>> {
    open(context, Access::Read).await
}

/// Opens the repository for commands that change it.
///
/// # Errors
/// As [`reader`], and `Conflict` when another process on this machine writes the index for too long.
pub(crate) async fn writer(context: &Context) -> Result<Arc<Repository>> {
    open(context, Access::Write).await
}

/// What a backup needs.
///
/// # Errors
/// As [`writer`].
pub(crate) async fn writing_job(context: &Context, read_limit_bytes: Option<u64>) -> Result<JobContext> {
    let repository = writer(context).await?;
    Ok(job(context, repository, read_limit_bytes))
}

/// What a restore or a verification needs.
///
/// # Errors
/// As [`reader`].
pub(crate) async fn reading_job(context: &Context) -> Result<JobContext> {
    let repository = reader(context).await?;
    Ok(job(context, repository, None))
}

fn job(context: &Context, repository: Arc<Repository>, read_limit_bytes: Option<u64>) -> JobContext {
    let defaults = &context.config.defaults;
    JobContext {
        repository,
        world: Arc::new(System::new()),
        settings: JobSettings {
            memory_bytes: defaults.memory.0,
            connections: defaults.connections,
            read_limit_bytes,
            threads: None,
        },
        events: progress::sink(&context.output),
        cancel: context.cancel.clone(),
    }
}

async fn open(context: &Context, access: Access) -> Result<Arc<Repository>> {
    chosen(context, &context.repository()?, access).await
}

/// Opens one certain repository.
///
/// # Errors
/// As [`reader`] and [`writer`].
pub(crate) async fn chosen(context: &Context, chosen: &Chosen, access: Access) -> Result<Arc<Repository>> {
    in_state(context, chosen, access, Some(context.state_dir()?)).await
}

/// Opens one certain repository to read it once: nothing is kept of it on this machine, and its index is in memory. It may
/// be a copy of another one, with the same id.
///
/// # Errors
/// As [`reader`].
pub(crate) async fn passing_reader(context: &Context, chosen: &Chosen) -> Result<Arc<Repository>> {
    in_state(context, chosen, Access::Read, None).await
}

async fn in_state(
    context: &Context,
    chosen: &Chosen,
    access: Access,
    state_dir: Option<PathBuf>,
) -> Result<Arc<Repository>> {
    let secret = secret(chosen)?;
    let opened = async {
        let (stores, world) = (stores(context, chosen, IfMissing::Refuse).await?, Arc::new(System::new()));
        let settings = settings(context);
        let options = OpenOptions { stores, world, state_dir, secret, access, settings };
        Repository::open(options).await.map_err(denied)
    };
    opened.await.map_err(|error: Error| match error.kind() {
        Kind::NotFound => error.hint_or(format!(
            "`aquifer -r {} repository init` makes one; configured repositories: {}",
            chosen.name,
            context.config.repository_names()
        )),
        _ => error,
    })
}

/// Says where what was wrong comes from: the password, or the access to the store.
fn denied(error: repository::Error) -> Error {
    let of_store = matches!(error, repository::Error::Store(_));
    let error = Error::from(error);
    match error.kind() {
        Kind::Denied if of_store => {
            error.hint_or("this access to the store does not have all rights it needs")
        }
        Kind::Denied => error.hint_or(
            "the password comes from --password-file FILE, AQUIFER_PASSWORD_FILE or the configuration",
        ),
        _ => error,
    }
}

/// What to do about a directory that is not there. A bucket must be, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfMissing {
    /// It is an error.
    Refuse,
    /// It is made.
    Make,
}

/// The stores of `chosen`.
///
/// # Errors
/// `NotFound` when one does not exist, and what the stores say.
pub(crate) async fn stores(context: &Context, chosen: &Chosen, missing: IfMissing) -> Result<Stores> {
    let packs = context.traffic.count(store(&chosen.packs, missing).await?);
    let log = match &chosen.log {
        Some(log) => Some(context.traffic.count(store(log, missing).await?)),
        None => None,
    };
    Ok(Stores { packs, log })
}

async fn store(url: &StoreUrl, missing: IfMissing) -> Result<Arc<dyn ObjectStore>> {
    match (url, missing) {
        (StoreUrl::Directory(path), IfMissing::Refuse) => Ok(Arc::new(opened(Local::open(path))?)),
        (StoreUrl::Directory(path), IfMissing::Make) => Ok(Arc::new(opened(Local::create(path))?)),
        (StoreUrl::Bucket(settings), _) => {
            let bucket = opened(S3::open(S3Settings::clone(settings)).await);
            let bucket = bucket.map_err(|error| match error.kind() {
                Kind::Denied => error.hint_or(
                    "access keys come from the environment, ~/.aws, the instance, or credentials-file=FILE in the URL",
                ),
                Kind::NotFound => error.hint_or("a bucket is never made here: its owner does that"),
                _ => error,
            });
            Ok(Arc::new(bucket?))
        }
    }
}

/// What a store said, as an error of the engine.
///
/// # Errors
/// What the store said.
pub(crate) fn opened<T>(answer: store::Result<T>) -> Result<T> {
    Ok(answer.map_err(repository::Error::from)?)
}

/// What unlocks `chosen`, if it has a password.
///
/// # Errors
/// As reading its file.
pub(crate) fn secret(chosen: &Chosen) -> Result<Option<Secret>> {
    let password = chosen.password_file.as_deref().map(password::from_file).transpose()?;
    Ok(password.map(|mut password| Secret::new(std::mem::take(&mut *password))))
}

/// How packs are made, from the configuration.
pub(crate) fn settings(context: &Context) -> Settings {
    let defaults = &context.config.defaults;
    Settings {
        compression: defaults.zstd_level.compression(),
        self_check: defaults.self_check,
        ..Settings::default()
    }
}
