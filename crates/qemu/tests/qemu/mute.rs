//! Monitors that misbehave, scripted; and those that are taken or gone, real.

use std::time::Duration;

use aquifer_qemu::{Error, ErrorKind, Monitor, MonitorAddress, MonitorOptions, commands};
use serde_json::json;
use tokio::net::UnixListener;

use crate::support::{GREETING, Machine, SCHEMA, hear, qcow2, say, serve};

fn quick() -> MonitorOptions {
    MonitorOptions {
        greeting_deadline: Duration::from_millis(300),
        command_deadline: Duration::from_millis(300),
        ..MonitorOptions::default()
    }
}

/// A folder with a scripted monitor in it, that negotiates and then says `lines` before its first answer.
fn monitor_saying(lines: Vec<String>, answer: &'static str) -> (tempfile::TempDir, MonitorAddress) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    serve(&path, move |mut stream| {
        let lines = lines.clone();
        async move {
            say(&mut stream, GREETING).await;
            hear(&mut stream).await;
            say(&mut stream, r#"{"return": {}}"#).await;
            while hear(&mut stream).await.is_some() {
                for line in &lines {
                    say(&mut stream, line).await;
                }
                say(&mut stream, answer).await;
            }
        }
    });
    (folder, MonitorAddress::Unix(path))
}

#[tokio::test]
async fn unknown_events_values_and_lines_do_not_end_the_session() {
    let lines = [
        r#"{"event": "TELEPATHY", "data": {"a": [1, {}]}, "timestamp": {"seconds": 1, "microseconds": 2000}}"#,
        r#"{"event": "JOB_STATUS_CHANGE", "data": {"id": "x", "status": "dreaming"}}"#,
        r#"{"event": "STOP"}"#,
        r#"{"event": "ODD", "data": 5, "timestamp": "yesterday"}"#,
        r#"{"news": "of another kind"}"#,
        "",
    ];
    let (_folder, address) = monitor_saying(lines.map(str::to_owned).to_vec(), r#"{"return": []}"#);
    let monitor = Monitor::connect(&address, &quick()).await.unwrap();
    let mut events = monitor.events();
    for _ in 0..3 {
        assert!(monitor.execute(commands::QueryJobs(json!({}))).await.unwrap().is_empty());
    }
    let first = events.recv().await.unwrap();
    assert_eq!((first.name.as_str(), first.at_ms), ("TELEPATHY", 1002));
    assert_eq!(events.recv().await.unwrap().text("status"), "dreaming");
    assert_eq!(monitor.version(), "12.1.0");
}

#[tokio::test]
async fn an_unknown_error_class_is_an_ordinary_refusal() {
    let (_folder, address) =
        monitor_saying(Vec::new(), r#"{"error": {"class": "CosmicRays", "desc": "the sun is active"}}"#);
    let monitor = Monitor::connect(&address, &quick()).await.unwrap();
    for _ in 0..2 {
        let error = monitor.execute(commands::QueryJobs(json!({}))).await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused { description, .. } if description == "the sun is active"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_reply_of_another_shape_fails_that_command_alone() {
    let (_folder, address) = monitor_saying(Vec::new(), r#"{"return": {"no": "list"}}"#);
    let monitor = Monitor::connect(&address, &quick()).await.unwrap();
    let error = monitor.execute(commands::QueryJobs(json!({}))).await.unwrap_err();
    assert!(matches!(error, Error::UnexpectedReply { command: "query-jobs", .. }), "{error}");
    assert!(monitor.execute(commands::Cont(json!({}))).await.is_ok());
}

#[tokio::test]
async fn a_line_without_end_closes_the_monitor_before_memory_is_gone() {
    let endless = "x".repeat(aquifer_qemu::monitor::LINE_BYTES_MAX + 1);
    let (_folder, address) = monitor_saying(vec![endless], r#"{"return": []}"#);
    let options = MonitorOptions { command_deadline: Duration::from_secs(20), ..quick() };
    let monitor = Monitor::connect(&address, &options).await.unwrap();
    let error = monitor.execute(commands::QueryJobs(json!({}))).await.unwrap_err().to_string();
    assert!(error.contains("16777216 bytes"), "{error}");
}

#[tokio::test]
async fn garbage_closes_the_monitor_and_is_shown() {
    let (_folder, address) = monitor_saying(vec!["HTTP/1.1 400 Bad Request".to_owned()], r#"{"return": []}"#);
    let monitor = Monitor::connect(&address, &quick()).await.unwrap();
    let error = monitor.execute(commands::QueryJobs(json!({}))).await.unwrap_err().to_string();
    assert!(error.contains("HTTP/1.1 400"), "{error}");
    assert!(monitor.execute(commands::QueryJobs(json!({}))).await.is_err());
}

#[tokio::test]
async fn silence_after_a_command_is_a_deadline_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    serve(&path, |mut stream| async move {
        say(&mut stream, GREETING).await;
        hear(&mut stream).await;
        say(&mut stream, r#"{"return": {}}"#).await;
        while hear(&mut stream).await.is_some() {}
    });
    let monitor = Monitor::connect(&MonitorAddress::Unix(path), &quick()).await.unwrap();
    let error = monitor.execute(commands::QuerySchema(json!({}))).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { command: SCHEMA, deadline_ms: 300, .. }), "{error}");
}

#[tokio::test]
async fn a_greeting_and_then_silence_points_to_ssh() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    serve(&path, |mut stream| async move {
        say(&mut stream, GREETING).await;
        while hear(&mut stream).await.is_some() {}
    });
    let error = Monitor::connect(&MonitorAddress::Unix(path), &quick()).await.unwrap_err();
    assert!(matches!(error, Error::MonitorMute { .. }) && error.to_string().contains("ssh://"), "{error}");
}

#[tokio::test]
async fn something_else_than_a_monitor_is_named_by_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    serve(&path, |mut stream| async move { say(&mut stream, "SSH-2.0-OpenSSH_9.2p1").await });
    let error = Monitor::connect(&MonitorAddress::Unix(path), &quick()).await.unwrap_err();
    assert!(matches!(&error, Error::NotAMonitor { line, .. } if line.contains("OpenSSH")), "{error}");
}

#[tokio::test]
async fn a_path_without_a_socket_and_a_socket_without_a_listener_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let address = MonitorAddress::Unix(path.clone());
    let error = Monitor::connect(&address, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchSocket { .. }) && error.kind() == ErrorKind::NotFound, "{error}");
    drop(UnixListener::bind(&path).unwrap());
    let error = Monitor::connect(&address, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::NotListening { .. }) && error.kind() == ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_monitor_that_serves_another_client_is_taken_and_free_again_after_it() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let first = Monitor::connect(&machine.monitor(), &quick()).await.unwrap();
    let error = Monitor::connect(&machine.monitor(), &quick()).await.unwrap_err();
    assert!(matches!(error, Error::MonitorTaken { .. }) && error.kind() == ErrorKind::Conflict, "{error}");
    drop(first);
    Monitor::connect(&machine.monitor(), &MonitorOptions::default()).await.unwrap();
}

#[tokio::test]
async fn the_end_of_qemu_fails_what_is_pending_and_what_comes_later() {
    let mut machine = Machine::start(&[qcow2("n0", 1)]).await;
    let monitor = Monitor::connect(&machine.monitor(), &MonitorOptions::default()).await.unwrap();
    machine.child.kill().await.unwrap();
    monitor.closed().await;
    let error = monitor.execute(commands::QueryJobs(json!({}))).await.unwrap_err();
    assert!(matches!(error, Error::MonitorClosed { .. }), "{error}");
}

#[tokio::test]
async fn a_command_whose_future_is_dropped_does_not_end_the_session() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let monitor = Monitor::connect(&machine.monitor(), &MonitorOptions::default()).await.unwrap();
    let hurry = Duration::from_micros(1);
    for _ in 0..20 {
        // Its answer comes when nobody waits any more.
        let _ = tokio::time::timeout(hurry, monitor.execute(commands::QuerySchema(json!({})))).await;
    }
    assert!(monitor.capabilities().await.unwrap().has_action("blockdev-backup"));
}
