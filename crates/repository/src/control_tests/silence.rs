//! Domains that another host's session keeps busy: what is observed of it, and when it is ended.
//!
//! Time is the tests' own: it stands still until a test lets it pass.

use std::path::Path;
use std::time::Duration;

use aquifer_format::hb::{Heartbeat, seal_heartbeat};
use aquifer_format::id::SessionId;
use aquifer_format::log::{Body, SessionKind};
use aquifer_store::{Bytes, GetRange, Memory, ObjectStore};
use tempfile::TempDir;

use super::interrupted::Interrupted;
use super::{Host, begin, cause, listed, store_and_commit, uuid};
use crate::rig::{noise, run};
use crate::{Access, BackupSession, BeginBackup, Error, FENCE_AFTER, Repository, Result, layout};

const MINUTE: Duration = Duration::from_secs(60);

fn begin_after(fence_after: Duration) -> BeginBackup {
    BeginBackup { fence_after, ..begin(2, "web") }
}

/// Waits for the first beat, which comes from a task of its own; the next one is a minute away.
pub(super) async fn beating(store: &Memory, session: &SessionId) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while store.get(&layout::heartbeat(session), GetRange::Whole).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no heartbeat within ten seconds");
        tokio::task::yield_now().await;
    }
}

/// Stores beat `number` of a session, as its host would.
async fn beat(store: &Memory, repository: &Repository, session: SessionId, number: u64) {
    let body = Heartbeat { session, beat: number, wall_ms: 0, host: "there".into(), note: String::new() };
    let salt = [u8::try_from(number).unwrap(); 32];
    let object = seal_heartbeat(repository.ring(), salt, &body).unwrap();
    store.put(&layout::heartbeat(&session), Bytes::from(object)).await.unwrap();
}

/// A repository in which a host that is gone has left a session of the domain after its first beat.
async fn abandoned(store: &Memory) -> SessionId {
    let repository = Host::new(1, store).init().await.unwrap();
    let session = repository.begin_backup(begin(1, "web")).await.unwrap();
    beating(store, &session.id()).await;
    session.id()
}

/// Another host, with a state folder.
fn observer(store: &(impl ObjectStore + Clone + 'static), folder: &Path) -> Host {
    Host::new(2, store).with_state(folder)
}

/// One run of a process on `host` that tries to back the domain up and gives it up at once.
async fn try_once(host: &Host, fence_after: Duration) -> Result<()> {
    let repository = host.open(Access::Write).await?;
    repository.begin_backup(begin_after(fence_after)).await?.abandon().await
}

/// For how long the session was seen silent when the domain was refused.
fn silent(refused: Result<()>) -> Duration {
    match refused.unwrap_err() {
        Error::DomainBusy { silent: Some(silent), .. } => silent,
        other => panic!("{other}"),
    }
}

fn observations(repository: &Repository) -> usize {
    std::fs::read_dir(repository.local.as_ref().unwrap().observations()).unwrap().count()
}

/// What `seen` the `Fence` entries of the log say, in order.
async fn fences(store: &Memory, repository: &Repository) -> Vec<(SessionId, u64)> {
    let mut fences = Vec::new();
    for seq in 1..=repository.refresh().await.unwrap().seq() {
        let object = store.get(&layout::log(seq), GetRange::Whole).await.unwrap();
        let entry = aquifer_format::log::open_entry(repository.ring(), seq, &object).unwrap();
        fences.extend(entry.bodies.into_iter().filter_map(|body| match body {
            Body::Fence { session, seen } => Some((session, seen)),
            _ => None,
        }));
    }
    fences
}

#[test]
fn a_silent_session_of_another_host_is_fenced_by_a_later_run_and_the_backup_goes_on() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let dead = abandoned(&store).await;
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER - Duration::from_millis(1));
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), FENCE_AFTER - Duration::from_millis(1));
        host.world.pass(Duration::from_millis(1));
        let repository = host.open(Access::Write).await.unwrap();
        let session = repository.begin_backup(begin_after(FENCE_AFTER)).await.unwrap();
        assert_eq!(fences(&store, &repository).await, [(dead, 1)]);
        store_and_commit(&session, &noise(1, 1000)).await.unwrap();
        assert_eq!(listed(&repository), [uuid(2)]);
    });
}

#[test]
fn a_new_beat_starts_the_observation_anew() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let slow = abandoned(&store).await;
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
        beat(&store, &reader, slow, 2).await;
        host.world.pass(FENCE_AFTER);
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(MINUTE);
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), MINUTE);
    });
}

#[test]
fn a_reboot_starts_the_observation_anew() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        abandoned(&store).await;
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.reboot();
        host.world.pass(FENCE_AFTER);
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        try_once(&host, FENCE_AFTER).await.unwrap();
    });
}

#[test]
fn a_session_without_a_heartbeat_is_observed_like_one_whose_heart_stopped() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let dead = abandoned(&store).await;
        store.delete(&layout::heartbeat(&dead)).await.unwrap();
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        try_once(&host, FENCE_AFTER).await.unwrap();
        let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(fences(&store, &reader).await, [(dead, 0)]);
    });
}

#[test]
fn a_heartbeat_that_does_not_open_counts_by_whether_it_changes() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let dead = abandoned(&store).await;
        let key = layout::heartbeat(&dead);
        store.put(&key, Bytes::from_static(b"of a later version")).await.unwrap();
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        store.put(&key, Bytes::from_static(b"of a later version, later")).await.unwrap();
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        try_once(&host, FENCE_AFTER).await.unwrap();
    });
}

#[test]
fn an_observation_that_cannot_be_read_is_made_anew() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let dead = abandoned(&store).await;
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        let repository = host.open(Access::Read).await.unwrap();
        std::fs::write(repository.local.as_ref().unwrap().observation(&dead), b"{torn").unwrap();
        host.world.pass(FENCE_AFTER);
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        try_once(&host, FENCE_AFTER).await.unwrap();
    });
}

#[test]
fn zero_fences_at_once_without_a_state_folder() {
    run(async {
        let store = Memory::new();
        let dead = abandoned(&store).await;
        let host = Host::new(2, &store);
        assert_eq!(silent(try_once(&host, Duration::from_secs(1)).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        let again = try_once(&host, Duration::from_secs(1)).await;
        assert_eq!(silent(again), Duration::ZERO, "nothing is remembered between runs");
        try_once(&host, Duration::ZERO).await.unwrap();
        let reader = Host::new(3, &store).open(Access::Read).await.unwrap();
        assert_eq!(fences(&store, &reader).await, [(dead, 1)]);
    });
}

#[test]
fn without_a_state_folder_one_process_remembers() {
    run(async {
        let store = Memory::new();
        abandoned(&store).await;
        let host = Host::new(2, &store);
        let repository = host.open(Access::Write).await.unwrap();
        let refused = repository.begin_backup(begin_after(MINUTE)).await.map(drop);
        assert_eq!(silent(refused), Duration::ZERO);
        host.world.pass(MINUTE);
        repository.begin_backup(begin_after(MINUTE)).await.unwrap().abandon().await.unwrap();
    });
}

#[test]
fn observations_of_ended_sessions_are_removed() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        abandoned(&store).await;
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        let repository = host.open(Access::Write).await.unwrap();
        assert_eq!(observations(&repository), 1);
        let session = repository.begin_backup(begin_after(Duration::ZERO)).await.unwrap();
        session.abandon().await.unwrap();
        // Whatever session this state folder opens next finds the observation to be of a session that is over.
        repository.begin_read(SessionKind::Verify, vec![]).await.unwrap().close().await.unwrap();
        assert_eq!(observations(&repository), 0);
    });
}

fn assert_lives(refusal: &Error, living: &BackupSession) {
    assert!(
        matches!(refusal, Error::DomainBusy { session, silent: None, .. } if *session == living.id()),
        "{refusal}"
    );
    assert!(refusal.to_string().ends_with("in a process that lives: wait for its end"), "{refusal}");
}

#[test]
fn a_living_session_of_the_same_process_is_never_fenced() {
    run(async {
        let store = Memory::new();
        let repository = Host::new(1, &store).init().await.unwrap();
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        let refusal = repository.begin_backup(begin_after(Duration::ZERO)).await.err().unwrap();
        assert_lives(&refusal, &session);
        store_and_commit(&session, &noise(1, 1000)).await.unwrap();
        repository.begin_backup(begin_after(FENCE_AFTER)).await.unwrap().abandon().await.unwrap();
    });
}

#[test]
fn a_living_session_of_the_same_state_folder_is_never_fenced() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let host = Host::new(1, &store).with_state(folder.path());
        let repository = host.init().await.unwrap();
        let session = repository.begin_backup(begin(1, "web")).await.unwrap();
        // As another process finds it: by the lock of the journal alone.
        let other = host.open(Access::Read).await.unwrap();
        let (state, id) = (other.state(), session.id());
        let rival = (id, &state.sessions()[&id]);
        let refusal = other.fence_if_silent(&state, "web", rival, Duration::ZERO).await.unwrap_err();
        assert_lives(&refusal, &session);
        store_and_commit(&session, &noise(1, 1000)).await.unwrap();
    });
}

#[test]
fn a_session_fenced_for_its_silence_cannot_commit() {
    run(async {
        let store = Memory::new();
        let slow = Host::new(1, &store).init().await.unwrap();
        let session = slow.begin_backup(begin(1, "web")).await.unwrap();
        beating(&store, &session.id()).await;
        let other = Host::new(2, &store).open(Access::Write).await.unwrap();
        let next = other.begin_backup(begin_after(Duration::ZERO)).await.unwrap();
        let error = store_and_commit(&session, &noise(1, 1000)).await.unwrap_err();
        assert!(
            matches!(cause(&error), Error::Fenced { session: fenced } if *fenced == session.id()),
            "{error}"
        );
        session.abandon().await.unwrap();
        store_and_commit(&next, &noise(2, 1000)).await.unwrap();
        slow.refresh().await.unwrap();
        assert_eq!(listed(&slow), [uuid(2)]);
    });
}

#[test]
fn a_refusal_says_how_long_the_session_was_silent_and_what_can_be_done() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let dead = abandoned(&store).await;
        let host = observer(&store, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(47 * MINUTE + Duration::from_secs(5));
        let error = try_once(&host, FENCE_AFTER + 30 * MINUTE).await.unwrap_err();
        let repository = host.open(Access::Read).await.unwrap();
        assert_eq!(
            error.to_string(),
            format!(
                "domain web: session {dead} of host {} is backing it up; no new heartbeat of it was seen for 47 min 5 s, and after 1 h 30 min it is ended as dead: run the backup again later, or with --fence-after 0s if that host is known to be dead",
                repository.host
            )
        );
    });
}

#[test]
fn a_session_that_commits_while_it_is_about_to_be_fenced_is_not_fenced() {
    run(async {
        let store = Memory::new();
        let slow = Host::new(1, &store).init().await.unwrap();
        let session = slow.begin_backup(begin(1, "web")).await.unwrap();
        beating(&store, &session.id()).await;
        let interrupted = Interrupted::new(&store);
        let other = Host::new(2, &interrupted).open(Access::Write).await.unwrap();
        // Between the look at its heartbeat, which stands still, and the fence.
        interrupted.before_the_next_answer(async move {
            store_and_commit(&session, &noise(1, 1000)).await.unwrap();
        });
        let next = other.begin_backup(begin_after(Duration::ZERO)).await.unwrap();
        assert!(fences(&store, &other).await.is_empty());
        assert_eq!(listed(&other), [uuid(1)]);
        next.abandon().await.unwrap();
    });
}

#[test]
fn a_lost_slot_means_that_the_heartbeat_is_looked_at_again() {
    run(async {
        let (store, folder) = (Memory::new(), TempDir::new().unwrap());
        let slow = Host::new(1, &store).init().await.unwrap();
        let session = slow.begin_backup(begin(1, "web")).await.unwrap();
        beating(&store, &session.id()).await;
        let interrupted = Interrupted::new(&store);
        let host = observer(&interrupted, folder.path());
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        host.world.pass(FENCE_AFTER);
        let (waking, inner) = (session.clone(), store.clone());
        interrupted.before_the_next_answer(async move {
            beat(&inner, waking.repository(), waking.id(), 2).await;
            let reading = waking.repository().begin_read(SessionKind::Verify, vec![]).await.unwrap();
            reading.close().await.unwrap();
        });
        assert_eq!(silent(try_once(&host, FENCE_AFTER).await), Duration::ZERO);
        store_and_commit(&session, &noise(1, 1000)).await.unwrap();
    });
}
