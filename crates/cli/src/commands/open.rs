//! Opening the repository that is meant, and making what a job needs around it.

use std::sync::Arc;

use aquifer_engine::clock::System;
use aquifer_engine::repository::store::{self, Local, ObjectStore};
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
    let (secret, state_dir) = (secret(chosen)?, Some(context.state_dir()?));
    let opened = async {
        let (stores, world) = (stores(chosen, existing)?, Arc::new(System::new()));
        let settings = settings(context);
        let options = OpenOptions { stores, world, state_dir, secret, access, settings };
        Ok(Repository::open(options).await?)
    };
    opened.await.map_err(|error: Error| match error.kind() {
        Kind::NotFound => error.hint_or(format!(
            "`aquifer -r {} repository init` makes one; configured repositories: {}",
            chosen.name,
            context.config.repository_names()
        )),
        Kind::Denied => error.hint_or(
            "the password comes from --password-file FILE, AQUIFER_PASSWORD_FILE or the configuration",
        ),
        _ => error,
    })
}

/// The stores of `chosen`, each directory opened by `directory`.
///
/// # Errors
/// What `directory` says.
pub(crate) fn stores(chosen: &Chosen, directory: impl Fn(&StoreUrl) -> Result<Local>) -> Result<Stores> {
    let store = |url: &StoreUrl| -> Result<Arc<dyn ObjectStore>> { Ok(Arc::new(directory(url)?)) };
    Ok(Stores { packs: store(&chosen.packs)?, log: chosen.log.as_ref().map(store).transpose()? })
}

/// The store at `url`, which must exist.
///
/// # Errors
/// `NotFound` when it does not.
pub(crate) fn existing(url: &StoreUrl) -> Result<Local> {
    let StoreUrl::Directory(path) = url;
    opened(Local::open(path))
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
    Settings { zstd_level: defaults.zstd_level, self_check: defaults.self_check, ..Settings::default() }
}
