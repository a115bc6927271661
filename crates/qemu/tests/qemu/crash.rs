//! SIGKILL after every single command of a session: by the guard, or by the next clean-up, everything of ours goes,
//! and nothing else.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_qemu::{
    Ending, ExportSession, Lost, Method, MonitorAddress, MonitorOptions, SessionRequest, cleanup,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::support::{
    BACKUP, Inventory, Machine, PATIENCE, REPOSITORY, eventually, example, guard, qcow2, raw,
};

/// The example program, with a session in it.
pub(crate) struct Client {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// Its session stays open until [`Client::end`].
    pub(crate) fn start(machine: &Machine, monitor: &MonitorAddress, guarded: bool) -> Self {
        Self::start_as("classic", machine, monitor, guarded)
    }

    fn start_as(method: &str, machine: &Machine, monitor: &MonitorAddress, guarded: bool) -> Self {
        let mut command = Command::new(example("session"));
        command.arg(monitor.to_string()).arg(machine.path("scratch")).arg(REPOSITORY).arg(method);
        if guarded {
            command.arg(example("guard"));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    /// SIGKILL, once the session is open.
    pub(crate) async fn kill(&mut self) {
        timeout(PATIENCE, self.says("open")).await.expect("the session opens");
        self.child.kill().await.unwrap();
    }

    /// Lets the session end by itself.
    fn end(&mut self) {
        drop(self.child.stdin.take());
    }

    async fn says(&mut self, word: &str) {
        while let Ok(Some(line)) = self.output.next_line().await {
            if line == word {
                return;
            }
        }
        std::future::pending().await
    }
}

/// A monitor in between, that lets so many commands through, and after the last swallows every answer.
struct Proxy {
    path: PathBuf,
    /// Commands that may still pass; `usize::MAX` for all.
    left: Arc<AtomicUsize>,
    stopped: Arc<Notify>,
    /// Turned to end the connection that stands.
    hang_up: watch::Sender<()>,
}

impl Proxy {
    fn start(machine: &Machine) -> Self {
        let path = machine.path("proxy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let upstream = machine.path("qmp.sock");
        let (left, stopped) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(Notify::new()));
        let (hang_up, hung_up) = watch::channel(());
        let proxy = Self { path, left: Arc::clone(&left), stopped: Arc::clone(&stopped), hang_up };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut hung_up = hung_up.clone();
                hung_up.mark_unchanged();
                let qemu = loop {
                    match UnixStream::connect(&upstream).await {
                        Ok(qemu) => break qemu,
                        // QEMU has not taken the last connection yet, and its queue holds one.
                        Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                };
                tokio::select! {
                    () = relay(client, qemu, &left, &stopped) => {}
                    _ = hung_up.changed() => {}
                }
            }
        });
        proxy
    }

    fn address(&self) -> MonitorAddress {
        MonitorAddress::Unix(self.path.clone())
    }
}

async fn relay(client: UnixStream, qemu: UnixStream, left: &AtomicUsize, stopped: &Notify) {
    let (from_client, mut to_client) = client.into_split();
    let (from_qemu, mut to_qemu) = qemu.into_split();
    let mut requests = BufReader::new(from_client).lines();
    let mut answers = BufReader::new(from_qemu).lines();
    let mut last = false;
    loop {
        tokio::select! {
            line = requests.next_line(), if !last => {
                let Ok(Some(line)) = line else { return };
                // All but the unlimited ones are counted down.
                let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n != usize::MAX).then(|| n - 1));
                last = before == Ok(1);
                to_qemu.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            }
            line = answers.next_line() => {
                let Ok(Some(line)) = line else { return };
                if !last {
                    if to_client.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                        return;
                    }
                } else if line.starts_with("{\"return\"") || line.starts_with("{\"error\"") {
                    stopped.notify_one();
                }
            }
        }
    }
}

/// Runs a session through the proxy and kills it after each number of commands in turn, `after` each.
async fn at_every_step(
    method: &str,
    machine: &Machine,
    guarded: bool,
    after: impl AsyncFn(&Proxy, &Inventory),
) -> usize {
    let before = machine.inventory().await;
    let proxy = Proxy::start(machine);
    for commands in 1.. {
        proxy.left.store(commands, Ordering::SeqCst);
        let mut client = Client::start_as(method, machine, &proxy.address(), guarded);
        client.end();
        let ended = tokio::select! {
            () = proxy.stopped.notified() => false,
            () = client.says("closed") => true,
            () = tokio::time::sleep(PATIENCE) => panic!("stuck at command {commands}"),
        };
        client.child.kill().await.unwrap();
        proxy.left.store(usize::MAX, Ordering::SeqCst);
        proxy.hang_up.send_replace(());
        after(&proxy, &before).await;
        assert!(!machine.has_server("n0").await, "the NBD server of command {commands} is still there");
        if ended {
            return commands;
        }
    }
    unreachable!("the session ends before the numbers do")
}

#[tokio::test]
async fn killed_after_any_command_everything_is_found_by_the_next_cleanup() {
    let machine = Machine::start(&[qcow2("n0", 1), raw("n1", 1)]).await;
    let steps = at_every_step("classic", &machine, false, async |_, before| {
        let options = MonitorOptions::default();
        let report = cleanup(&machine.monitor(), &options, &machine.scope()).await.unwrap();
        assert!(report.foreign.is_empty(), "{report:?}");
        assert_eq!(machine.inventory().await, *before);
        let again = cleanup(&machine.monitor(), &options, &machine.scope()).await.unwrap();
        assert!(again.removed.is_empty(), "{again:?}");
    })
    .await;
    assert!(steps > 30, "only {steps} commands were seen");
}

#[tokio::test]
async fn killed_after_any_command_the_guard_ends_everything_at_once() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    at_every_step("classic", &machine, true, async |_, before| {
        eventually("the guard ends everything", || async {
            machine.inventory().await == *before && !machine.has_server("n0").await
        })
        .await;
    })
    .await;
}

/// The guest runs, so that there are steps at which it is paused.
#[tokio::test]
async fn killed_after_any_command_with_filters_the_guest_runs_on_its_own_disk_again() {
    let machine = Machine::start_with(&[qcow2("n0", 1), raw("n1", 1)], &[]).await;
    let steps = at_every_step("filter", &machine, false, async |_, before| {
        let options = MonitorOptions::default();
        let report = cleanup(&machine.monitor(), &options, &machine.scope()).await.unwrap();
        assert!(report.foreign.is_empty(), "{report:?}");
        assert_eq!(machine.inventory().await, *before);
        assert_eq!(machine.status().await, "running");
        // Through the device: an error if that has no node any more.
        machine.write("n0", 1, 0, 4096).await;
        assert!(machine.bitmaps().await.is_empty());
    })
    .await;
    assert!(steps > 40, "only {steps} commands were seen");
}

#[tokio::test]
async fn killed_after_any_command_with_filters_the_guard_puts_everything_back_at_once() {
    let machine = Machine::start_with(&[qcow2("n0", 1)], &[]).await;
    at_every_step("filter", &machine, true, async |_, before| {
        eventually("the guard ends everything", || async {
            machine.inventory().await == *before
                && machine.status().await == "running"
                && machine.bitmaps().await.is_empty()
                && !machine.has_server("n0").await
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_session_whose_way_to_the_monitor_breaks_is_ended_over_another_connection() {
    let machine = Machine::start(&[qcow2("n0", 1), raw("n1", 1)]).await;
    let before = machine.inventory().await;
    let proxy = Proxy::start(&machine);
    for method in [Method::Classic, Method::Filter] {
        let request = SessionRequest { monitor: proxy.address(), method, ..machine.request() };
        let session = ExportSession::open(request).await.unwrap();
        let failed = session.failed();
        proxy.hang_up.send_replace(());
        assert!(matches!(timeout(PATIENCE, failed).await.unwrap(), Lost::MonitorClosed(_)));
        assert_ne!(machine.inventory().await, before);
        session.close(Ending::Failed).await.unwrap();
        assert_eq!(machine.inventory().await, before);
        assert!(!machine.has_server("n0").await);
    }
}

/// The first was taken for dead, and another host went on.
#[tokio::test]
async fn a_session_that_was_cut_off_leaves_its_successor_alone() {
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("second.sock");
    let chardev = format!("socket,id=second,path={},server=on,wait=off", second.display());
    let extra = ["-S", "-chardev", &chardev, "-mon", "chardev=second,mode=control"];
    let machine = Machine::start_with(&[qcow2("n0", 1)], &extra).await;
    let before = machine.inventory().await;
    let proxy = Proxy::start(&machine);
    let first = SessionRequest { monitor: proxy.address(), guard: Some(guard()), ..machine.request() };
    let first = ExportSession::open(first).await.unwrap();
    proxy.hang_up.send_replace(());
    let backup = BACKUP.replace("0190163d", "0190163e");
    let successor = SessionRequest { monitor: MonitorAddress::Unix(second), backup, ..machine.request() };
    let mut successor = ExportSession::open(successor).await.unwrap();
    let during = machine.inventory().await;
    let report = first.close(Ending::Failed).await.unwrap();
    assert!(report.removed.is_empty() && !report.foreign.is_empty(), "{report:?}");
    assert_eq!(machine.inventory().await, during);
    successor.check().await.unwrap();
    successor.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn a_session_after_a_killed_one_says_what_it_removed_and_works() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    let before = machine.inventory().await;
    let mut client = Client::start(&machine, &machine.monitor(), false);
    client.kill().await;
    let mut session = ExportSession::open(machine.request()).await.unwrap();
    assert!(session.warnings()[0].contains("killed run") && session.warnings()[0].contains("NBD server"));
    session.check().await.unwrap();
    session.close(Ending::Failed).await.unwrap();
    assert_eq!(machine.inventory().await, before);
}

#[tokio::test]
async fn scratch_files_of_a_domain_that_runs_no_more_are_removed() {
    let mut machine = Machine::start(&[qcow2("n0", 1)]).await;
    let mut client = Client::start(&machine, &machine.monitor(), false);
    client.kill().await;
    machine.child.kill().await.unwrap();
    let report = cleanup(&machine.monitor(), &MonitorOptions::default(), &machine.scope()).await.unwrap();
    assert_eq!(report.removed.len(), 2, "scratch and socket: {report:?}");
    assert_eq!(std::fs::read_dir(machine.path("scratch")).unwrap().count(), 0);
}
