//! A proxy that breaks HTTP on purpose: what makes "the answer was lost" a fact and not a hope.
//!
//! It stands between a client and a server and passes every request on, one connection each, unless a [`Fault`] is
//! armed for it. It speaks what an SDK sends (a body with its length, or none) and nothing more.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// The longest that one side may say nothing, so that no thread outlives its test for long.
const SILENCE: Duration = Duration::from_secs(120);

/// What is done to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered so by the proxy: status, further header lines, body. The server never sees it.
    Answer(u16, Vec<String>, String),
    /// The server gets it and acts; the client hears nothing but the end of the connection.
    LoseAnswer,
    /// The server's answer ends after so many bytes of its body.
    CutAnswer(usize),
    /// Passed on without this header, given in lower case: the server never learns of it.
    Without(&'static str),
    /// Never answered; the server never sees it.
    Silence,
    /// Not passed on either; the connection ends at once.
    Drop,
}

/// To which requests, and to how many, a fault happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The method, such as `PUT`.
    pub method: &'static str,
    /// What the target contains.
    pub target: String,
    /// How many such requests pass first.
    pub after: usize,
    /// How many it then happens to.
    pub times: usize,
    /// What happens.
    pub fault: Fault,
}

/// A request that came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its target.
    pub target: String,
    /// Its header lines in lower case.
    pub head: String,
    /// The length of its body in bytes.
    pub body_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server's stand-in, at an address of its own.
#[derive(Debug)]
pub struct HttpProxy {
    address: SocketAddr,
    shared: Shared,
}

impl HttpProxy {
    /// Listens on a free port and passes everything on to `server`. Its threads end with the process.
    pub fn start(server: SocketAddr) -> Result<HttpProxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, shared) = (listener.local_addr()?, Shared::default());
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A client or a server that hangs up is no error of the proxy's.
                thread::spawn(move || drop(serve(&client, server, &shared)));
            }
        });
        Ok(HttpProxy { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces all rules; of those that fit, the first counts. Forgets what was seen.
    pub fn arm(&self, rules: impl IntoIterator<Item = Rule>) {
        *lock(&self.shared) = State { rules: rules.into_iter().collect(), seen: Vec::new() };
    }

    /// The requests since [`HttpProxy::arm`], in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared).seen.clone()
    }
}

/// Serves one request of one connection, and ends it.
fn serve(client: &TcpStream, server: SocketAddr, shared: &Shared) -> io::Result<()> {
    client.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(client);
    let head = read_head(&mut reader)?;
    if head.to_lowercase().contains("\r\nexpect: 100-continue\r\n") {
        (&*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = vec![0; content_length(&head)];
    reader.read_exact(&mut body)?;
    let fault = note(shared, &head, body.len());
    match fault {
        Some(Fault::Answer(status, lines, text)) => answer(client, status, &lines, &text)?,
        Some(Fault::Silence) => drop(reader.read(&mut [0])),
        Some(Fault::Drop) => {}
        Some(Fault::Without(header)) => {
            (&*client).write_all(&forward(server, &without(&head, header), &body)?)?
        }
        Some(Fault::LoseAnswer) => drop(forward(server, &head, &body)?),
        Some(Fault::CutAnswer(bytes)) => {
            let whole = forward(server, &head, &body)?;
            let start =
                whole.windows(4).position(|four| four == b"\r\n\r\n").map_or(whole.len(), |at| at + 4);
            (&*client).write_all(&whole[..whole.len().min(start + bytes)])?;
        }
        None => (&*client).write_all(&forward(server, &head, &body)?)?,
    }
    client.shutdown(Shutdown::Both)
}

/// Notes the request, and takes the fault that is due.
fn note(shared: &Shared, head: &str, body_bytes: usize) -> Option<Fault> {
    let mut words = head.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let mut state = lock(shared);
    let rule = state
        .rules
        .iter_mut()
        .find(|rule| rule.times > 0 && rule.method == method && target.contains(&rule.target));
    let fault = rule.and_then(|rule| match rule.after {
        0 => {
            rule.times -= 1;
            Some(rule.fault.clone())
        }
        _ => {
            rule.after -= 1;
            None
        }
    });
    state.seen.push(Seen { method, target, head: head.to_lowercase(), body_bytes });
    fault
}

/// The server's whole answer. The connection is the request's own, so the answer ends with it.
fn forward(server: SocketAddr, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let head = without(&without(head, "connection"), "expect");
    stream.write_all(format!("{}\r\nConnection: close\r\n\r\n", head.trim_end()).as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// The head without a header, which is given in lower case.
fn without(head: &str, header: &str) -> String {
    let named = |line: &&str| line.split(':').next().unwrap_or_default().eq_ignore_ascii_case(header);
    head.split_inclusive("\r\n").filter(|line| !named(line)).collect()
}

fn answer(mut client: &TcpStream, status: u16, lines: &[String], text: &str) -> io::Result<()> {
    let further: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let length = text.len();
    let head =
        format!("HTTP/1.1 {status} Told\r\n{further}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    client.write_all(format!("{head}{text}").as_bytes())
}

fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

fn content_length(head: &str) -> usize {
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut length =
        lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value);
    length.next_back().and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every request with its body, until the process ends.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut reader = BufReader::new(&client);
                let Ok(head) = read_head(&mut reader) else { continue };
                let mut body = vec![0; content_length(&head)];
                reader.read_exact(&mut body).unwrap();
                answer(&client, 200, &[], &String::from_utf8(body).unwrap()).unwrap();
            }
        });
        address
    }

    fn ask(proxy: &HttpProxy, target: &str) -> String {
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        let request = format!("PUT {target} HTTP/1.1\r\nContent-Length: 5\r\n\r\n12345");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn rule(target: &str, after: usize, times: usize, fault: Fault) -> Rule {
        Rule { method: "PUT", target: target.to_owned(), after, times, fault }
    }

    #[test]
    fn a_fault_happens_to_the_requests_it_was_armed_for_and_to_no_other() {
        let proxy = HttpProxy::start(echo()).unwrap();
        let slow = Fault::Answer(503, vec!["X-Why: test".into()], "slow".into());
        proxy.arm([rule("/a", 1, 1, slow), rule("/b", 0, 1, Fault::CutAnswer(2))]);
        assert!(ask(&proxy, "/a").ends_with("\r\n\r\n12345"));
        let refused = ask(&proxy, "/a");
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("X-Why: test"), "{refused}");
        assert!(ask(&proxy, "/a").ends_with("\r\n\r\n12345"));
        assert!(ask(&proxy, "/b").ends_with("\r\n\r\n12"));
        let seen = proxy.seen();
        assert_eq!(
            seen.iter().map(|seen| seen.target.as_str()).collect::<Vec<_>>(),
            ["/a", "/a", "/a", "/b"]
        );
        assert!(seen.iter().all(|seen| seen.body_bytes == 5));
    }

    #[test]
    fn a_header_is_taken_out_and_no_other() {
        let head = "PUT / HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n";
        assert_eq!(without(head, "if-none-match"), "PUT / HTTP/1.1\r\nHost: x\r\n\r\n");
    }

    #[test]
    fn a_lost_answer_ends_the_connection_without_a_word() {
        let proxy = HttpProxy::start(echo()).unwrap();
        proxy.arm([rule("/", 0, 1, Fault::LoseAnswer), rule("/", 0, 1, Fault::Drop)]);
        assert_eq!((ask(&proxy, "/").as_str(), ask(&proxy, "/").as_str()), ("", ""));
        assert!(ask(&proxy, "/").starts_with("HTTP/1.1 200 "));
    }
}
