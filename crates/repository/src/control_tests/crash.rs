//! A backup whose store fails, or whose process stops, at every call in turn. Whatever happens: what was reported
//! committed restores byte for byte (P1), nothing partial is listed (P2), nothing but a heartbeat is overwritten, and
//! the next backup works (P4).

use aquifer_store::Memory;

use super::faults::{Fault, Faulty};
use super::{Host, backup, begin, listed, restore, uuid};
use crate::rig::{noise, run};
use crate::{Access, Error, Result};

const CHUNK: usize = super::CHUNK_BYTES as usize;

/// The disk of the backup that exists before, and the one of the backup under test: half of it is shared.
fn disks() -> (Vec<u8>, Vec<u8>) {
    let before = noise(1, 5 * CHUNK);
    let mut after = before.clone();
    after[2 * CHUNK..4 * CHUNK].copy_from_slice(&noise(2, 2 * CHUNK));
    (before, after)
}

/// A repository with one backup.
async fn seeded() -> Memory {
    let store = Memory::new();
    let repository = Host::new(1, &store).init().await.unwrap();
    backup(&repository, begin(1, "one"), &disks().0).await.unwrap();
    store
}

/// Opens, backs up, and says what came of it.
async fn attempt(store: &Faulty) -> Result<u64> {
    let repository = Host::new(2, store).open(Access::Write).await?;
    backup(&repository, begin(2, "two"), &disks().1).await.map(|done| done.seq)
}

/// Holds the promises against what is in the store after the attempt.
async fn promises_hold(fault: Fault, store: &Memory, outcome: Result<u64>) {
    let (before, after) = disks();
    let repository = Host::new(3, store).open(Access::Write).await.unwrap_or_else(|error| {
        panic!("{fault:?}: the repository does not open any more: {error}");
    });
    assert_eq!(restore(&repository, 1).await.unwrap(), before, "{fault:?}: the older backup changed");
    let backups = listed(&repository);
    let exists = backups.contains(&uuid(2));
    assert_eq!(backups.len(), 1 + usize::from(exists), "{fault:?}: something else is listed");
    match &outcome {
        Ok(_) => assert!(exists, "{fault:?}: a backup reported committed is not there"),
        Err(Error::OutcomeUnknown { .. }) => {}
        Err(error) => assert!(!exists, "{fault:?}: a backup is there in spite of {error}"),
    }
    if exists {
        assert_eq!(restore(&repository, 2).await.unwrap(), after, "{fault:?}: wrong bytes");
    }
    backup(&repository, begin(3, "three"), &after).await.unwrap_or_else(|error| {
        panic!("{fault:?}: the next backup failed: {error}");
    });
    assert_eq!(restore(&repository, 3).await.unwrap(), after, "{fault:?}: wrong bytes after it");
}

/// Runs the attempt with `fault` at every call in turn, until it is no longer reached.
fn at_every_call(fault: impl Fn(u64) -> Fault) {
    run(async {
        let seed = seeded().await;
        for call in 1.. {
            assert!(call < 500, "the attempt takes more calls than it can need");
            let memory = seed.snapshot();
            let store = Faulty::new(&memory, fault(call));
            let outcome = attempt(&store).await;
            let reached = store.calls() >= call;
            store.settle().await;
            assert_eq!(store.overwritten(), Vec::<String>::new(), "{:?}", fault(call));
            promises_hold(fault(call), &memory, outcome).await;
            if !reached {
                break;
            }
        }
    });
}

#[test]
fn a_process_that_stops_before_any_call_harms_nothing() {
    at_every_call(Fault::StopBefore);
}

#[test]
fn a_process_that_stops_after_any_call_harms_nothing() {
    at_every_call(Fault::StopAfter);
}

#[test]
fn a_call_that_fails_harms_nothing() {
    at_every_call(Fault::Fail);
}

#[test]
fn a_lost_answer_harms_nothing() {
    at_every_call(Fault::LoseAnswer);
}

#[test]
fn a_write_that_arrives_late_harms_nothing() {
    at_every_call(Fault::Late);
}

#[test]
fn a_write_that_arrives_twice_harms_nothing() {
    at_every_call(Fault::Twice);
}

#[test]
fn a_full_store_harms_nothing() {
    at_every_call(Fault::Full);
}

/// A lost answer of the very entry that commits is settled by reading the slot, not reported as a failure.
#[test]
fn a_lost_answer_of_the_commit_is_settled() {
    run(async {
        let seed = seeded().await;
        let mut settled = 0;
        for call in 1..60 {
            let store = Faulty::new(&seed.snapshot(), Fault::LoseAnswer(call));
            settled += u32::from(attempt(&store).await.is_ok());
        }
        assert!(settled >= 2, "neither the lost answer of the Open nor that of the Commit was settled");
    });
}
