//! A new log store for a repository whose own was lost: filled with the copies that lie beside the packs (docs/FORMAT.md,
//! "Log store").
//!
//! Order of writes: key slots, log and checkpoints, then `format`, then the mark that makes the place the log store, then one
//! entry of the log. By that entry a host that still uses the old store notices that the log went on elsewhere.
//!
//! Invariant: nothing beside the packs is changed but what every append changes, and a place that is a log store already is
//! refused. An adoption that was cut short is completed by the next.

use std::sync::Arc;

use aquifer_store::{Bytes, Created, GetRange, Key, ObjectStore};

use crate::init::{prove_atomic, refuse_foreign};
use crate::log::optional;
use crate::open::{OpenOptions, mark_body, read_format};
use crate::repository::{Access, Repository, Stores};
use crate::{Error, Result, layout};

impl Repository {
    /// Makes the log store of `options` that of the repository beside whose packs its copies lie, and opens it. Nobody may
    /// use the lost one again: its next writer is refused.
    ///
    /// # Errors
    /// [`Error::WrongSecret`]; [`Error::RolledBack`] when this host saw entries that were never copied;
    /// [`Error::AlreadyInitialised`], [`Error::NotEmpty`], [`Error::StoresDiffer`] and [`Error::AtomicCreate`] when the new
    /// store cannot be used; [`Error::NoNewLogStore`] without one; those of the stores.
    pub async fn adopt_log(options: OpenOptions) -> Result<Arc<Self>> {
        let Some(log) = options.stores.log.clone() else {
            return Err(Error::NoNewLogStore { store: options.stores.packs.describe() });
        };
        let packs = Arc::clone(&options.stores.packs);
        let copies = Stores { packs: Arc::clone(&packs), log: None };
        let config = read_format(&copies).await?;
        let mark = layout::store_mark(&config.log_store);
        if optional(log.head(&mark).await)?.is_some() {
            return Err(Error::AlreadyInitialised { store: log.describe() });
        }
        refuse_foreign(log.as_ref()).await?;
        // The password opens the copies, and they are a log without a gap, at least as long as this host knows it.
        drop(Self::open(OpenOptions { stores: copies, access: Access::Read, ..options.clone() }).await?);
        prove_atomic(&log, &options.world).await?;
        for prefix in [layout::SLOTS, layout::CHECKPOINTS, layout::ENTRIES] {
            copy_all(&packs, &log, prefix).await?;
        }
        copy(&packs, &log, &layout::format()).await?;
        log.create(&mark, Bytes::from(mark_body(&config))).await?;
        let repository = Self::open(OpenOptions { access: Access::Write, ..options }).await?;
        repository.log.append(|_| Ok(Vec::new())).await?;
        Ok(repository)
    }
}

async fn copy_all(from: &Arc<dyn ObjectStore>, to: &Arc<dyn ObjectStore>, prefix: &str) -> Result<()> {
    let mut after = None;
    loop {
        let page = from.list(prefix, after.as_ref()).await?;
        for listed in &page.entries {
            copy(from, to, &listed.key).await?;
        }
        after = page.entries.last().map(|listed| listed.key.clone());
        if !page.more || after.is_none() {
            return Ok(());
        }
    }
}

async fn copy(from: &Arc<dyn ObjectStore>, to: &Arc<dyn ObjectStore>, key: &Key) -> Result<()> {
    let object = from.get(key, GetRange::Whole).await?;
    if to.create(key, object.clone()).await? == Created::Exists
        && to.get(key, GetRange::Whole).await? != object
    {
        return Err(Error::StoresDiffer { log: to.describe(), packs: from.describe() });
    }
    Ok(())
}
