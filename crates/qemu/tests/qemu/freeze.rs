//! The guest agent, scripted: the order of freeze, instant and thaw, and that the thaw comes whatever happens.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquifer_qemu::{
    Ending, Error, ErrorKind, ExportSession, MonitorAddress, MonitorOptions, Quiesce, cleanup,
};
use serde_json::json;

use crate::support::{Machine, eventually, hear, qcow2, run, say, serve};

/// What an agent was asked, in order, and whether its guest is frozen.
#[derive(Default)]
struct Guest {
    frozen: bool,
    heard: Vec<String>,
    /// Process that is stopped (SIGSTOP) between the freeze and its answer.
    stops: Option<String>,
}

impl Guest {
    fn answer(&mut self, command: &str) -> String {
        self.heard.push(command.to_owned());
        match command {
            "guest-fsfreeze-status" => {
                json!({"return": if self.frozen { "frozen" } else { "thawed" }}).to_string()
            }
            "guest-fsfreeze-freeze" => {
                self.frozen = true;
                r#"{"return": 2}"#.to_owned()
            }
            "guest-fsfreeze-thaw" => {
                self.frozen = false;
                r#"{"return": 2}"#.to_owned()
            }
            _ => r#"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#.to_owned(),
        }
    }
}

/// An agent that says a stale line first, as a real one may; `mute` names a command that it never answers.
fn agent(path: &Path, mute: &'static str) -> Arc<Mutex<Guest>> {
    let guest = Arc::new(Mutex::new(Guest::default()));
    let shared = Arc::clone(&guest);
    serve(path, move |mut stream| {
        let guest = Arc::clone(&shared);
        async move {
            say(&mut stream, r#"{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}"#).await;
            say(&mut stream, r#"{"return": 12345}"#).await;
            while let Some(request) = hear(&mut stream).await {
                let command = request["execute"].as_str().unwrap().to_owned();
                if command == "guest-sync-delimited" {
                    say(&mut stream, &json!({"return": request["arguments"]["id"]}).to_string()).await;
                    continue;
                }
                let answer = guest.lock().unwrap().answer(&command);
                let stops = guest.lock().unwrap().stops.clone();
                if let Some(pid) = stops.filter(|_| command == "guest-fsfreeze-freeze") {
                    run("kill", &["-STOP", &pid]).await;
                }
                if command != mute {
                    say(&mut stream, &answer).await;
                }
            }
        }
    });
    guest
}

async fn machine_with_agent(
    mute: &'static str,
) -> (Machine, Arc<Mutex<Guest>>, aquifer_qemu::SessionRequest) {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let guest = agent(&machine.path("ga.sock"), mute);
    let mut request = machine.request();
    request.scope.agent = Some(MonitorAddress::Unix(machine.path("ga.sock")));
    request.quiesce = Quiesce::Require;
    (machine, guest, request)
}

#[tokio::test]
async fn the_guest_is_frozen_for_the_instant_and_thawed_after_it() {
    let (_machine, guest, request) = machine_with_agent("").await;
    let session = ExportSession::open(request).await.unwrap();
    assert!(session.quiesced() && session.freeze_ms().unwrap() < 5000, "{:?}", session.freeze_ms());
    let heard = guest.lock().unwrap().heard.clone();
    assert_eq!(heard, ["guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(guest.lock().unwrap().heard.len(), 3, "a session's end asks the agent nothing");
}

#[tokio::test]
async fn quiesce_off_never_speaks_to_the_agent() {
    let (_machine, guest, mut request) = machine_with_agent("").await;
    request.quiesce = Quiesce::Off;
    let session = ExportSession::open(request).await.unwrap();
    assert!(!session.quiesced() && session.freeze_ms().is_none());
    session.close(Ending::Failed).await.unwrap();
    assert!(guest.lock().unwrap().heard.is_empty());
}

#[tokio::test]
async fn a_transaction_that_fails_thaws_the_guest() {
    let (machine, guest, mut request) = machine_with_agent("").await;
    let before = machine.inventory().await;
    request.backup = "not a job id".to_owned();
    let error = ExportSession::open(request).await.unwrap_err();
    assert!(matches!(error, Error::Refused { command: "transaction", .. }), "{error}");
    assert!(!guest.lock().unwrap().frozen);
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_session_dropped_while_the_agent_still_freezes_is_thawed() {
    let (_machine, guest, request) = machine_with_agent("guest-fsfreeze-freeze").await;
    let opening = ExportSession::open(request);
    assert!(tokio::time::timeout(Duration::from_secs(1), opening).await.is_err());
    assert!(guest.lock().unwrap().frozen);
    eventually("the task that owns the thaw thaws", || async { !guest.lock().unwrap().frozen }).await;
}

#[tokio::test]
async fn a_session_dropped_while_the_guest_is_frozen_is_thawed() {
    let (machine, guest, request) = machine_with_agent("").await;
    // A QEMU that stands still cannot answer the transaction.
    let pid = machine.child.id().unwrap().to_string();
    guest.lock().unwrap().stops = Some(pid.clone());
    let opening = ExportSession::open(request);
    assert!(tokio::time::timeout(Duration::from_secs(3), opening).await.is_err(), "QEMU was to be stopped");
    eventually("the guest is thawed", || async { !guest.lock().unwrap().frozen }).await;
    run("kill", &["-CONT", &pid]).await;
}

#[tokio::test]
async fn a_transaction_that_takes_too_long_is_overtaken_by_the_watchdog() {
    let (machine, guest, request) = machine_with_agent("").await;
    let before = machine.inventory().await;
    let pid = machine.child.id().unwrap().to_string();
    guest.lock().unwrap().stops = Some(pid.clone());
    let opening = tokio::spawn(ExportSession::open(request));
    eventually("the guest is frozen", || async { guest.lock().unwrap().frozen }).await;
    eventually("the watchdog thaws", || async { !guest.lock().unwrap().frozen }).await;
    run("kill", &["-CONT", &pid]).await;
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::ThawedEarly { frozen_ms: 10_000.. }), "{error}");
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_guest_that_somebody_else_froze_is_a_conflict_and_stays_frozen() {
    let (machine, guest, request) = machine_with_agent("").await;
    let before = machine.inventory().await;
    guest.lock().unwrap().frozen = true;
    let error = ExportSession::open(request).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyFrozen { .. }) && error.kind() == ErrorKind::Conflict, "{error}");
    assert!(guest.lock().unwrap().frozen);
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_guest_that_a_killed_run_left_frozen_is_thawed_by_the_next_cleanup() {
    let (machine, guest, request) = machine_with_agent("").await;
    guest.lock().unwrap().frozen = true;
    let node = json!({"driver": "null-co", "node-name": "aqf-01234567-d0", "size": 1024});
    machine.qmp("blockdev-add", node).await;
    let report = cleanup(&machine.monitor(), &MonitorOptions::default(), &request.scope).await.unwrap();
    assert!(report.thawed && !guest.lock().unwrap().frozen);
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_a_warning_with_try_and_an_error_with_require() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let mut request = machine.request();
    request.scope.agent = Some(MonitorAddress::Unix(machine.path("nothing.sock")));
    request.quiesce = Quiesce::Try;
    let session = ExportSession::open(request.clone()).await.unwrap();
    assert!(
        !session.quiesced() && session.warnings()[0].contains("not quiesced"),
        "{:?}",
        session.warnings()
    );
    session.close(Ending::Failed).await.unwrap();
    request.quiesce = Quiesce::Require;
    assert!(matches!(ExportSession::open(request.clone()).await, Err(Error::NoSuchAgent { .. })));
    request.scope.agent = None;
    assert!(matches!(ExportSession::open(request).await, Err(Error::NoAgent)));
}
