//! A monitor that can be held at any command: what makes "killed between step 17 and step 18" a fact and not a hope.
//!
//! The proxy stands between a client and QEMU's monitor and forwards lines both ways. Told to [`Hold`], it stops at one
//! command, before QEMU sees it or after QEMU has answered it, and says so; the test then kills the client, and goes
//! on with [`Proxy::release`]. One client at a time, as with the monitor itself.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Before or after the command takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The command has not reached QEMU, and never will.
    Before,
    /// QEMU has answered; the client has not heard it.
    After,
}

/// Where to stop: at the command of this number, counted from zero over all commands of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The command's number.
    pub command: usize,
    /// On which side of it.
    pub side: Side,
}

#[derive(Debug, Default)]
struct State {
    hold: Option<Hold>,
    held: bool,
    commands: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits here if the hold is at this command and side; false when what was held must not go on.
    fn pass(&self, command: usize, side: Side) -> bool {
        let mut state = self.state();
        if state.hold != Some(Hold { command, side }) {
            return true;
        }
        state.held = true;
        self.changed.notify_all();
        while state.hold.is_some() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }
}

/// A monitor's stand-in, at a socket of its own.
#[derive(Debug)]
pub struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on `socket` and serves each client with a connection to `monitor`. The thread ends with the process.
    pub fn start(socket: &Path, monitor: &Path) -> Result<Proxy> {
        let listener = UnixListener::bind(socket).with_context(|| format!("{}", socket.display()))?;
        let shared = Arc::new(Shared::default());
        let (serving, monitor) = (shared.clone(), monitor.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                // A client that was killed is no error of the proxy's; the next one finds it listening.
                let _ = client.and_then(|client| serve(client, UnixStream::connect(&monitor)?, &serving));
            }
        });
        Ok(Proxy { socket: socket.to_owned(), shared })
    }

    /// The socket that a client connects to instead of the monitor's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Forgets the commands seen, and stops at the next one that `hold` names.
    pub fn arm(&self, hold: Option<Hold>) {
        *self.shared.state() = State { hold, ..State::default() };
        self.shared.changed.notify_all();
    }

    /// The commands seen since [`Proxy::arm`], in order.
    pub fn commands(&self) -> Vec<String> {
        self.shared.state().commands.clone()
    }

    /// Waits until a command is held, and returns its name.
    pub fn wait_held(&self, within: Duration) -> Result<String> {
        let (state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), within, |state| !state.held)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            bail!("nothing was held: of the commands, only {:?} came", state.commands);
        }
        state.commands.last().cloned().context("held without a command")
    }

    /// Drops what is held. From now on everything passes.
    pub fn release(&self) {
        let mut state = self.shared.state();
        state.hold = None;
        state.held = false;
        self.shared.changed.notify_all();
    }
}

/// The commands that wait for their answer: id and number.
type Asked = Arc<Mutex<Vec<(Value, usize)>>>;

/// Forwards one client's session; ends when either side has hung up or what was held was dropped.
fn serve(client: UnixStream, monitor: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let asked = Asked::default();
    let (from_monitor, to_client) = (monitor.try_clone()?, client.try_clone()?);
    let (answers_shared, waiting) = (shared.clone(), asked.clone());
    let answers = thread::spawn(move || {
        let _ = forward_answers(&from_monitor, &to_client, &answers_shared, &waiting);
        let _ = to_client.shutdown(Shutdown::Both);
        let _ = from_monitor.shutdown(Shutdown::Both);
    });
    let _ = forward_commands(&client, &monitor, shared, &asked);
    let _ = client.shutdown(Shutdown::Both);
    let _ = monitor.shutdown(Shutdown::Both);
    let _ = answers.join();
    Ok(())
}

fn forward_commands(
    client: &UnixStream,
    mut monitor: &UnixStream,
    shared: &Shared,
    asked: &Asked,
) -> io::Result<()> {
    for line in BufReader::new(client).lines() {
        let line = line?;
        let document: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(name) = document["execute"].as_str() {
            let number = {
                let mut state = shared.state();
                state.commands.push(name.to_owned());
                state.commands.len() - 1
            };
            if !shared.pass(number, Side::Before) {
                return Ok(());
            }
            asked.lock().unwrap_or_else(PoisonError::into_inner).push((document["id"].clone(), number));
        }
        monitor.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

fn forward_answers(
    monitor: &UnixStream,
    mut client: &UnixStream,
    shared: &Shared,
    asked: &Asked,
) -> io::Result<()> {
    for line in BufReader::new(monitor).lines() {
        let line = line?;
        let number = answered(&line, asked);
        if number.is_some_and(|number| !shared.pass(number, Side::After)) {
            return Ok(());
        }
        client.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

/// The number of the command that a line of the monitor answers: of the oldest one with its id.
fn answered(line: &str, asked: &Asked) -> Option<usize> {
    let document: Value = serde_json::from_str(line).ok()?;
    document.get("return").or(document.get("error"))?;
    let id = document.get("id").cloned().unwrap_or_default();
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let at = asked.iter().position(|(asked, _)| *asked == id)?;
    Some(asked.remove(at).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A monitor that answers every line with its count, and hands over what it heard.
    fn monitor(socket: &Path) -> Arc<Mutex<Vec<String>>> {
        let listener = UnixListener::bind(socket).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = heard.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                for line in BufReader::new(&client).lines().map_while(|line| line.ok()) {
                    hearing.lock().unwrap().push(line);
                    let _ = (&client).write_all(b"{\"return\": {}}\n");
                }
            }
        });
        heard
    }

    fn client(proxy: &Proxy) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(proxy.socket()).unwrap();
        stream.set_read_timeout(Some(10 * SECOND)).unwrap();
        BufReader::new(stream)
    }

    fn send(client: &mut BufReader<UnixStream>, command: &str) {
        client.get_mut().write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
    }

    /// The client's next line; empty when it was hung up on.
    fn answer(client: &mut BufReader<UnixStream>) -> String {
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn a_command_held_before_never_reaches_the_monitor_and_one_held_after_does() {
        for (side, reaches) in [(Side::Before, 1), (Side::After, 2)] {
            let folder = tempfile::tempdir().unwrap();
            let heard = monitor(&folder.path().join("monitor"));
            let proxy = Proxy::start(&folder.path().join("proxy"), &folder.path().join("monitor")).unwrap();
            proxy.arm(Some(Hold { command: 1, side }));
            let mut held = client(&proxy);
            send(&mut held, "first");
            assert!(answer(&mut held).contains("return"));
            send(&mut held, "second");
            assert_eq!(proxy.wait_held(10 * SECOND).unwrap(), "second");
            assert_eq!(heard.lock().unwrap().len(), reaches);
            proxy.release();
            assert_eq!(answer(&mut held), "", "the held answer came through");

            let mut next = client(&proxy);
            send(&mut next, "third");
            assert!(answer(&mut next).contains("return"));
            assert_eq!(proxy.commands(), ["first", "second", "third"]);
        }
    }

    #[test]
    fn a_hold_that_nothing_reaches_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        monitor(&folder.path().join("monitor"));
        let proxy = Proxy::start(&folder.path().join("proxy"), &folder.path().join("monitor")).unwrap();
        proxy.arm(Some(Hold { command: 7, side: Side::Before }));
        assert!(proxy.wait_held(Duration::from_millis(20)).is_err());
    }
}
