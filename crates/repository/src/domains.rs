//! Domains that somebody defined: what the repository keeps of a virtual machine besides its backups.
//!
//! A backup is filed under a name and needs no definition; a definition adopts the backups of its name, and they stay
//! when it goes. Not here: what a definition or a target says, which the backup API reads.
//!
//! Invariant: a domain and its backups go together by one entry of the log, or neither goes.

use aquifer_format::log::{Body, DefinedDomain, State};
use uuid::Uuid;

use crate::delete::{FORGET_DELAY, forget_time, oldest_first, refuse};
use crate::repository::Repository;
use crate::{RemovalError, Result};

impl Repository {
    /// The domains that are defined, by name, as last replayed.
    pub fn domains(&self) -> Vec<DefinedDomain> {
        self.state().domains().values().cloned().collect()
    }

    /// One of them.
    pub fn domain(&self, name: &str) -> Option<DefinedDomain> {
        self.state().domains().get(name).cloned()
    }

    /// Defines a domain, or changes what is known of it: `change` makes the new definition of what there is, and may be
    /// called again when somebody else defines something meanwhile.
    ///
    /// # Errors
    /// [`crate::Error::Void`] for a name or a definition out of bounds; those of the log.
    pub async fn define_domain(
        &self,
        name: &str,
        change: impl Fn(Option<&DefinedDomain>) -> DefinedDomain + Send + Sync,
    ) -> Result<()> {
        let define = |state: &State| {
            let (before, after) = (state.domains().get(name), change(state.domains().get(name)));
            Ok((before != Some(&after)).then(|| vec![Body::Define { domain: Box::new(after) }]))
        };
        self.log.append_if(define).await.map(drop)
    }

    /// Undefines a domain, and with `backups` deletes its backups by the same entry. Says which were deleted; a domain
    /// that is not defined only loses its backups.
    ///
    /// # Errors
    /// [`RemovalError::HasBackups`] without `backups`; those of [`Repository::delete`]. Nothing is changed then.
    pub async fn undefine_domain(&self, name: &str, backups: bool) -> Result<Vec<Uuid>> {
        self.fence_own_dead().await?;
        let not_before_ms = forget_time(self.world().wall_ms(), FORGET_DELAY);
        let mut doomed = Vec::new();
        let undefine = |state: &State| {
            let listed = state.backups().values().filter(|backup| backup.forgotten.is_none());
            let own = listed.filter(|backup| backup.summary.domain == name);
            let own = oldest_first(state, &own.map(|backup| backup.summary.backup).collect());
            if !own.is_empty() && !backups {
                return Err(RemovalError::HasBackups { domain: name.to_owned(), count: own.len() }.into());
            }
            own.iter().try_for_each(|backup| refuse(state, backup))?;
            doomed.clone_from(&own);
            let mut bodies = Vec::new();
            if !own.is_empty() {
                bodies.push(Body::Forget { backups: own, not_before_ms });
            }
            if state.domains().contains_key(name) {
                bodies.push(Body::Undefine { domain: name.to_owned() });
            }
            Ok((!bodies.is_empty()).then_some(bodies))
        };
        self.log.append_if(undefine).await?;
        Ok(doomed)
    }
}
