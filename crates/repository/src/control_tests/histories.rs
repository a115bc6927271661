//! Random histories: several hosts back up through stores that fail at random calls, sessions are fenced at random, and
//! now and then a host is lost with its state folder. A seed names a history; a failing one is printed.

use std::collections::BTreeMap;

use aquifer_format::log::{Body, State};
use aquifer_store::Memory;

use super::faults::{Fault, Faulty};
use super::{Host, Seeded, begin, cause, listed, restore, store_and_commit, uuid};
use crate::rig::{noise, run};
use crate::{Access, Error, World};

/// Histories, and backups that each tries.
const HISTORIES: u64 = 12;
const STEPS: u128 = 14;

fn below(world: &Seeded, limit: u64) -> u64 {
    let mut bytes = [0; 8];
    world.random(&mut bytes);
    u64::from_le_bytes(bytes) % limit
}

fn any_fault(world: &Seeded) -> Fault {
    let call = 1 + below(world, 60);
    match below(world, 8) {
        0 => Fault::StopBefore(call),
        1 => Fault::StopAfter(call),
        2 => Fault::Fail(call),
        3 => Fault::LoseAnswer(call),
        4 => Fault::Late(call),
        5 => Fault::Twice(call),
        6 => Fault::Full(call),
        _ => Fault::None,
    }
}

/// A disk that changes a little from step to step, so that backups share chunks.
fn disk(step: u128) -> Vec<u8> {
    const CHUNK: usize = super::CHUNK_BYTES as usize;
    let mut disk = noise(1, 4 * CHUNK);
    let changed = usize::try_from(step % 4).unwrap();
    disk[changed * CHUNK..(changed + 1) * CHUNK]
        .copy_from_slice(&noise(100 + u64::try_from(step).unwrap() / 2, CHUNK));
    disk
}

/// Ends every session that is still open, as a janitor who takes all of them for dead.
async fn fence_all(store: &Memory, seed: u64) {
    let janitor = Host::new(seed, store).open(Access::Write).await.unwrap();
    let fence = |state: &State| {
        Ok(state.sessions().keys().map(|session| Body::Fence { session: *session, seen: 0 }).collect())
    };
    janitor.log.append(fence).await.unwrap();
}

async fn history(seed: u64) {
    let store = Memory::new();
    let dice = Seeded::new(1_000_000 + seed);
    Host::new(seed * 1000 + 1, &store).init().await.unwrap();
    // What each backup must hold if it exists, and whether it must exist.
    let mut tried: BTreeMap<u128, Option<bool>> = BTreeMap::new();
    for step in 0..STEPS {
        let fault = any_fault(&dice);
        let faulty = Faulty::new(&store, fault);
        let host = Host::new(seed * 1000 + 10 + u64::try_from(step).unwrap(), &faulty);
        let attempt = async {
            let repository = host.open(Access::Write).await?;
            let session = repository.begin_backup(begin(step + 1, &format!("domain {}", step % 3))).await?;
            if below(&dice, 6) == 0 {
                fence_all(&store, seed * 1000 + 500 + u64::try_from(step).unwrap()).await;
            }
            let done = store_and_commit(&session, &disk(step)).await;
            // Some processes end their session, some just die.
            if done.is_err() && below(&dice, 2) == 0 {
                let _ = session.abandon().await;
            }
            done
        };
        let outcome = attempt.await;
        faulty.settle().await;
        assert!(
            faulty.overwritten().is_empty(),
            "seed {seed}, step {step}, {fault:?}: {:?}",
            faulty.overwritten()
        );
        let exists = match &outcome {
            Ok(_) => Some(true),
            Err(error) if matches!(cause(error), Error::OutcomeUnknown { .. }) => None,
            Err(_) => Some(false),
        };
        tried.insert(step + 1, exists);
        if below(&dice, 3) == 0 {
            fence_all(&store, seed * 1000 + 700 + u64::try_from(step).unwrap()).await;
        }
    }
    let reader = Host::new(seed * 1000 + 999, &store).open(Access::Read).await.unwrap();
    let backups = listed(&reader);
    for (step, exists) in tried {
        let there = backups.contains(&uuid(step));
        assert!(
            exists.is_none_or(|exists| exists == there),
            "seed {seed}: backup {step}, {exists:?}, {there}"
        );
        if there {
            let restored = restore(&reader, step).await;
            assert!(
                restored.is_ok_and(|bytes| bytes == disk(step - 1)),
                "seed {seed}: backup {step} is wrong"
            );
        }
    }
}

#[test]
fn random_histories_keep_the_promises() {
    for seed in 0..HISTORIES {
        run(history(seed));
    }
}
