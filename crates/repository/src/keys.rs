//! Key slots: which secrets open the repository.
//!
//! A slot holds the master key sealed under one secret. Retiring a slot removes it; whoever copied the master key
//! before still has it, so retiring is not revoking (docs/FORMAT.md, "Crypto").
//!
//! Invariant: the last slot is never removed, and a slot is stored beside the packs too before it counts as added.

use aquifer_format::config::RepositoryConfig;
use aquifer_format::id::SlotId;
use aquifer_format::keys::{KdfParams, KeyRing, MasterKey, open_slot, seal_slot, slot_id};
use aquifer_store::{Bytes, GetRange, ObjectStore};

use crate::log::optional;
use crate::repository::{Repository, Secret, Stores, blocking};
use crate::world::{World, random};
use crate::{Error, Result, layout};

/// The most slots that are tried; each try costs a second by design.
const SLOTS_MAX: usize = 64;

/// The largest slot object in bytes that is read: far above what a slot takes.
const SLOT_BYTES_MAX: u64 = 64 << 10;

/// A key slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// Its name.
    pub slot: SlotId,
    /// Whether the secret given at opening is this slot's.
    pub in_use: bool,
}

/// What a secret opened.
pub(crate) struct Unlocked {
    pub(crate) ring: KeyRing,
    pub(crate) master: Option<MasterKey>,
    pub(crate) slot: Option<SlotId>,
}

/// Opens the repository's keys with a secret, or without one a plain repository.
pub(crate) async fn unlock(
    stores: &Stores,
    config: &RepositoryConfig,
    secret: Option<Secret>,
) -> Result<Unlocked> {
    let Some(secret) = secret else {
        return Ok(Unlocked { ring: KeyRing::plain(config)?, master: None, slot: None });
    };
    if !config.encrypted {
        return Err(aquifer_format::Error::Downgrade.into());
    }
    let store = stores.of_log().as_ref();
    let slots = list(store).await?;
    let (mut wrong, mut damaged) = (0, None);
    for slot in slots {
        match open_one(store, config, slot, &secret).await {
            Ok(Some(master)) => {
                let ring = KeyRing::encrypted(config, master.clone())?;
                return Ok(Unlocked { ring, master: Some(master), slot: Some(slot) });
            }
            Ok(None) => {}
            Err(Error::Format(aquifer_format::Error::WrongSecret)) => wrong += 1,
            Err(Error::Format(source)) => {
                let key = layout::slot(slot).to_string();
                tracing::warn!(key, error = %source, "a key slot cannot be used");
                damaged = Some(Error::Object { key, source });
            }
            Err(other) => return Err(other),
        }
    }
    match (wrong, damaged) {
        (0, Some(error)) => Err(error),
        (0, None) => Err(Error::NoSlot { store: store.describe() }),
        (slots, _) => Err(Error::WrongSecret { slots }),
    }
}

/// Tries one slot; `None` when it was retired meanwhile.
async fn open_one(
    store: &dyn ObjectStore,
    config: &RepositoryConfig,
    slot: SlotId,
    secret: &Secret,
) -> Result<Option<MasterKey>> {
    let key = layout::slot(slot);
    let Some(size) = optional(store.head(&key).await)? else { return Ok(None) };
    if size > SLOT_BYTES_MAX {
        let (object, limit) = ("key slot", SLOT_BYTES_MAX);
        return Err(aquifer_format::Error::Limit { object, field: "object bytes", value: size, limit }.into());
    }
    let Some(object) = optional(store.get(&key, GetRange::Whole).await)? else { return Ok(None) };
    let (config, secret) = (config.clone(), secret.clone());
    blocking(move || Ok(open_slot(&config, &object, secret.bytes())?)).await.map(Some)
}

/// Every slot, by name.
async fn list(store: &dyn ObjectStore) -> Result<Vec<SlotId>> {
    let page = store.list(layout::SLOTS, None).await?;
    if page.more || page.entries.len() > SLOTS_MAX {
        return Err(Error::ManySlots { limit: SLOTS_MAX });
    }
    Ok(page.entries.iter().filter_map(|entry| layout::last_part(&entry.key).parse().ok()).collect())
}

/// Seals the master key under `secret` and stores the slot.
pub(crate) async fn store_slot(
    stores: &Stores,
    world: &dyn World,
    config: &RepositoryConfig,
    master: &MasterKey,
    secret: &Secret,
    kdf: KdfParams,
) -> Result<SlotId> {
    let salt: [u8; 32] = random(world);
    let (config, master, secret) = (config.clone(), master.clone(), secret.clone());
    let sealed = blocking(move || Ok(seal_slot(&config, &master, secret.bytes(), kdf, salt)?)).await?;
    let (slot, object) = (slot_id(&salt), Bytes::from(sealed));
    let key = layout::slot(slot);
    if let Some(mirror) = stores.mirror() {
        mirror.put(&key, object.clone()).await?;
    }
    // The name is random: a taken one would be this very object, sent twice.
    stores.of_log().create(&key, object).await?;
    Ok(slot)
}

impl Repository {
    /// The key slots.
    ///
    /// # Errors
    /// [`Error::NotEncrypted`]; [`Error::ManySlots`]; those of the store.
    pub async fn keys_list(&self) -> Result<Vec<KeySlot>> {
        if !self.config.encrypted {
            return Err(Error::NotEncrypted);
        }
        let slots = list(self.stores.of_log().as_ref()).await?;
        Ok(slots.into_iter().map(|slot| KeySlot { slot, in_use: self.opened_slot == Some(slot) }).collect())
    }

    /// Adds a slot that `secret` opens.
    ///
    /// # Errors
    /// [`Error::NotEncrypted`]; [`Error::ManySlots`]; those of the store.
    pub async fn key_add(&self, secret: &Secret, kdf: KdfParams) -> Result<SlotId> {
        let master = self.master.as_ref().ok_or(Error::NotEncrypted)?;
        if self.keys_list().await?.len() >= SLOTS_MAX {
            return Err(Error::ManySlots { limit: SLOTS_MAX });
        }
        store_slot(&self.stores, self.parts.world.as_ref(), &self.config, master, secret, kdf).await
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`], [`Error::LastSlot`], [`Error::NotEncrypted`]; those of the store.
    pub async fn key_retire(&self, slot: SlotId) -> Result<()> {
        let slots = self.keys_list().await?;
        if !slots.iter().any(|known| known.slot == slot) {
            return Err(Error::UnknownSlot { slot });
        }
        if slots.len() == 1 {
            return Err(Error::LastSlot { slot });
        }
        let key = layout::slot(slot);
        if let Some(mirror) = self.stores.mirror() {
            mirror.delete(&key).await?;
        }
        Ok(self.stores.of_log().delete(&key).await?)
    }
}
