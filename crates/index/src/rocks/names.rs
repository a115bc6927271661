//! The names of all packs by their number, in memory.
//!
//! Invariant: a number that was given out and whose pack was removed stays empty for ever, so "gone" is final; the
//! compaction filter relies on it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aquifer_format::id::PackName;

/// Names by number; `None` where the pack is gone.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Option<PackName>>);

impl Table {
    /// The name of a pack that is there.
    pub(super) fn get(&self, number: u32) -> Option<PackName> {
        usize::try_from(number).ok().and_then(|number| self.0.get(number)).copied().flatten()
    }

    /// Whether the pack was there once and was removed. A number not yet given out is not gone.
    pub(super) fn is_gone(&self, number: u32) -> bool {
        usize::try_from(number).ok().and_then(|number| self.0.get(number)).is_some_and(Option::is_none)
    }

    /// Number of packs that are there.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.0.iter().flatten().count()).unwrap_or(u64::MAX)
    }

    fn set(&mut self, number: u32, name: Option<PackName>) {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        self.0[at] = name;
    }
}

/// The shared table.
#[derive(Debug, Default)]
pub(super) struct Names(RwLock<Table>);

impl Names {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the pack that got the next number.
    pub(super) fn push(&self, number: u32, name: PackName) {
        self.write().set(number, Some(name));
    }

    /// Empties the places of removed packs.
    pub(super) fn remove(&self, numbers: &[u32]) {
        let mut table = self.write();
        numbers.iter().for_each(|number| table.set(*number, None));
    }

    /// Takes over what the disk says: every number below `next` that is not in `packs` is gone.
    pub(super) fn replace(&self, next: u32, packs: impl Iterator<Item = (u32, PackName)>) {
        let mut table = Table::default();
        if let Some(last) = next.checked_sub(1) {
            table.set(last, None);
        }
        packs.for_each(|(number, name)| table.set(number, Some(name)));
        *self.write() = table;
    }
}
