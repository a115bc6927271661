//! Monitors on other machines: through ssh to a server of our own on the loopback interface, and over TLS.

use std::path::Path;

use aquifer_qemu::{
    Ending, Error, ErrorKind, ExportSession, Monitor, MonitorAddress, MonitorOptions, NbdListen, cleanup,
};
use aquifer_testkit::{CLIENT_NAME, Sshd, make_certificates, tools};
use serde_json::json;

use crate::support::{MIB, Machine, pull, qcow2};

fn options(sshd: &Sshd) -> MonitorOptions {
    MonitorOptions { ssh_config: Some(sshd.client_config()), ..MonitorOptions::default() }
}

fn over_ssh(sshd: &Sshd, path: &Path) -> MonitorAddress {
    sshd.monitor(path).parse().unwrap()
}

#[tokio::test]
async fn a_session_through_ssh_pulls_and_leaves_nothing_there() {
    let machine = Machine::start(&[qcow2("n0", 4)]).await;
    let before = machine.inventory().await;
    let keys = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(keys.path()).unwrap();
    machine.write("n0", 9, MIB, MIB).await;
    let mut request = machine.request();
    request.monitor = over_ssh(&sshd, &machine.path("qmp.sock"));
    request.options = options(&sshd);
    let mut session = ExportSession::open(request).await.unwrap();
    assert!(session.warnings().is_empty(), "the space was to be reserved there: {:?}", session.warnings());
    machine.write("n0", 0xEE, MIB, MIB).await;
    let uri = session.exports()[0].uri.clone();
    assert!(uri.contains("aquifer-ssh-"), "not the forwarded socket: {uri}");
    let image = pull(&uri, keys.path()).await;
    assert!(image[MIB as usize..2 * MIB as usize].iter().all(|&byte| byte == 9));
    session.check().await.unwrap();
    let report = session.close(Ending::Failed).await.unwrap();
    assert!(report.kept.is_empty(), "{report:?}");
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn through_ssh_a_missing_socket_and_an_unknown_host_are_told_apart() {
    let keys = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(keys.path()).unwrap();
    let error = Monitor::connect(&over_ssh(&sshd, Path::new("/nonexistent/vm.qmp")), &options(&sshd))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchSocket { .. }), "{error}");
    sshd.forget_host().unwrap();
    let error =
        Monitor::connect(&over_ssh(&sshd, Path::new("/run/vm.qmp")), &options(&sshd)).await.unwrap_err();
    assert!(matches!(error, Error::Ssh { .. }) && error.kind() == ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn what_a_killed_run_left_behind_ssh_is_removed_through_ssh() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let mut client = crate::crash::Client::start(&machine, &machine.monitor(), false);
    client.kill().await;
    let keys = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(keys.path()).unwrap();
    let address = over_ssh(&sshd, &machine.path("qmp.sock"));
    let report = cleanup(&address, &options(&sshd), &machine.scope()).await.unwrap();
    assert!(report.removed.iter().any(|name| name.ends_with(".qcow2")), "{report:?}");
    assert_eq!(machine.inventory().await, before);
    assert!(!machine.has_server("n0").await);
}

/// A machine with the objects `tls0` and `auth0`, and a TLS monitor on a port.
async fn tls_machine(folder: &Path, port: u16) -> Machine {
    make_certificates(folder).unwrap();
    let creds = format!("tls-creds-x509,id=tls0,dir={},endpoint=server,verify-peer=on", folder.display());
    let rules = json!([{"match": CLIENT_NAME, "policy": "allow"}]);
    let authz =
        json!({"qom-type": "authz-list", "id": "auth0", "policy": "deny", "rules": rules}).to_string();
    let chardev =
        format!("socket,id=tm,host=127.0.0.1,port={port},server=on,wait=off,tls-creds=tls0,tls-authz=auth0");
    let extra =
        ["-S", "-object", &creds, "-object", &authz, "-chardev", &chardev, "-mon", "chardev=tm,mode=control"];
    Machine::start_with(&[qcow2("n0", 4)], &extra).await
}

fn tls_options(folder: &Path) -> MonitorOptions {
    MonitorOptions { tls_certificates: Some(folder.to_owned()), ..MonitorOptions::default() }
}

#[tokio::test]
async fn the_nbd_server_listens_with_tls_and_is_ours_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let machine = tls_machine(folder.path(), tools::free_port().unwrap()).await;
    let before = machine.inventory().await;
    machine.write("n0", 5, 0, MIB).await;
    let mut request = machine.request();
    request.options = tls_options(folder.path());
    let (creds, authz) = ("tls0".to_owned(), Some("auth0".to_owned()));
    request.scope.nbd =
        NbdListen::Tls { host: "0.0.0.0".to_owned(), port: tools::free_port().unwrap(), creds, authz };
    let session = ExportSession::open(request.clone()).await.unwrap();
    let uri = &session.exports()[0].uri;
    assert!(uri.starts_with("nbds://localhost:"), "{uri}");
    assert!(pull(uri, machine.folder.path()).await[..MIB as usize].iter().all(|&byte| byte == 5));
    // Killed: the server is known as ours by what is left around it.
    drop(session);
    let report = cleanup(&machine.monitor(), &request.options, &request.scope).await.unwrap();
    assert!(report.removed.contains(&"NBD server".to_owned()), "{report:?}");
    assert_eq!(machine.inventory().await, before);
    assert!(!machine.has_server("n0").await);
}

#[tokio::test]
async fn a_foreign_server_is_not_stopped_when_ours_would_listen_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let machine = tls_machine(folder.path(), tools::free_port().unwrap()).await;
    let address = json!({"type": "unix", "data": {"path": machine.path("foreign.sock")}});
    machine.qmp("nbd-server-start", json!({"addr": address})).await;
    let mut request = machine.request();
    request.options = tls_options(folder.path());
    request.scope.nbd = NbdListen::Tls {
        host: "127.0.0.1".to_owned(),
        port: tools::free_port().unwrap(),
        creds: "tls0".to_owned(),
        authz: None,
    };
    let error = ExportSession::open(request.clone()).await.unwrap_err();
    assert!(matches!(error, Error::ForeignServer { .. }), "{error}");
    cleanup(&machine.monitor(), &request.options, &request.scope).await.unwrap();
    assert!(machine.has_server("n0").await);
}

/// QEMU 7.2 greets over TLS and never answers; later versions work, and then the scratch is QEMU's own to make.
#[tokio::test]
async fn a_tls_monitor_works_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let port = tools::free_port().unwrap();
    let machine = tls_machine(folder.path(), port).await;
    let before = machine.inventory().await;
    let mut request = machine.request();
    request.monitor = format!("tls:localhost:{port}").parse().unwrap();
    let error = ExportSession::open(request.clone()).await.unwrap_err();
    assert!(matches!(error, Error::NoWayToSocket { .. }) && error.kind() == ErrorKind::Invalid, "{error}");
    request.options = tls_options(folder.path());
    request.options.command_deadline = std::time::Duration::from_secs(3);
    request.scope.nbd = NbdListen::Tls {
        host: "0.0.0.0".to_owned(),
        port: tools::free_port().unwrap(),
        creds: "tls0".to_owned(),
        authz: None,
    };
    let opened = ExportSession::open(request).await;
    if machine.test.version().starts_with("7.") {
        let error = opened.unwrap_err();
        assert!(
            matches!(error, Error::MonitorMute { .. }) && error.to_string().contains("ssh://"),
            "{error}"
        );
        return;
    }
    let mut session = opened.unwrap();
    assert_eq!(pull(&session.exports()[0].uri, machine.folder.path()).await.len() as u64, 4 * MIB);
    session.check().await.unwrap();
    let report = session.close(Ending::Failed).await.unwrap();
    assert_eq!(report.kept.len(), 1, "{report:?}");
    let after = machine.inventory().await;
    assert_eq!((after.nodes, after.jobs, after.exports), (before.nodes, before.jobs, before.exports));
    assert_eq!(after.files, ["aquifer-01234567-web01+virtio-n0.qcow2"], "the scratch is kept");
}

#[tokio::test]
async fn tls_without_certificates_or_with_a_strangers_is_denied_by_name() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let port = tools::free_port().unwrap();
    let _machine = tls_machine(ours.path(), port).await;
    let address: MonitorAddress = format!("tls:localhost:{port}").parse().unwrap();
    let error = Monitor::connect(&address, &MonitorOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::NoCertificates { .. }), "{error}");
    make_certificates(theirs.path()).unwrap();
    let error = Monitor::connect(&address, &tls_options(theirs.path())).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.kind() == ErrorKind::Denied, "{error}");
    std::fs::remove_file(theirs.path().join("client-key.pem")).unwrap();
    let error = Monitor::connect(&address, &tls_options(theirs.path())).await.unwrap_err();
    assert!(error.to_string().contains("client-key.pem"), "{error}");
}
