//! Second attempts: a chunk whose copy cannot be read is looked for in every pack that is known to hold it.
//!
//! A restore puts such chunks aside and goes on; between two windows of its walk, and at its end, they come here one by
//! one. Not here: deciding what a loss means ([`Target::lose`]).
//!
//! Invariant (P3): as for first attempts, only bytes that hash to the id in the tree and have the length of their place
//! reach the volume.

use std::sync::Arc;

use aquifer_repository::Repository;
use aquifer_repository::format::id::ChunkId;

use crate::error::{Error, Kind, Result};
use crate::target::{Suspect, Target};

/// Deals with everything that was put aside for `target`.
///
/// # Errors
/// Those of the store and the volume; the damage of the first chunk that no copy is left of, unless this is a salvage.
pub(crate) async fn rescue(target: &Target, repository: &Arc<Repository>) -> Result<()> {
    for Suspect { id, chunks } in target.take_suspects() {
        match repository.read_chunk(&id).await.map_err(Error::from) {
            Ok(plain) => {
                tracing::warn!(disk = target.name, chunk = %id, "read one by one, after its pack could not be");
                put(target, &id, &plain, &chunks).await?;
            }
            Err(error) if error.kind() == Kind::Corrupt => {
                target.lose(chunks.iter().map(|&chunk| target.place_of(chunk)), error)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn put(target: &Target, id: &ChunkId, plain: &[u8], chunks: &[u64]) -> Result<()> {
    for &chunk in chunks {
        let place = target.place_of(chunk);
        if usize::try_from(place.end - place.start) == Ok(plain.len()) {
            target.note(target.volume.put(place.start, plain.to_vec()).await?);
        } else {
            let text = format!("chunk {id} has not the length of its place on the disk");
            let error = Error::new(Kind::Corrupt, text).hint("verify the repository");
            target.lose([place], error)?;
        }
    }
    Ok(())
}
