//! A second look at QEMU: a small blocking QMP client of the tests' own.
//!
//! Tests watch and disturb the guest through a monitor that the product does not use. One command at a time, events
//! are skipped, every wait has a deadline. It shares no code with the product's client.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A connection to one of QEMU's monitors.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the monitor's unix socket and takes it over.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(socket).with_context(|| format!("monitor {}", socket.display()))?;
        Qmp::over(stream).with_context(|| format!("monitor {}", socket.display()))
    }

    /// Takes over the monitor at the other end of a connection.
    pub(crate) fn over(stream: UnixStream) -> Result<Qmp> {
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        let mut monitor = Qmp { stream: BufReader::new(stream) };
        let greeting = monitor.line().context("the monitor does not greet: it has a client already")?;
        if greeting.get("QMP").is_none() {
            bail!("this is no QMP monitor: {greeting}");
        }
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs one command and returns what it returns; QEMU's error becomes ours.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.line().with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Runs a query without arguments that returns a list.
    pub fn query(&mut self, command: &str) -> Result<Vec<Value>> {
        match self.execute(command, json!({}))? {
            Value::Array(items) => Ok(items),
            other => bail!("{command} returned no list: {other}"),
        }
    }

    /// Everything in QEMU that a backup may have left: jobs, block exports, NBD server, bitmaps, and nodes that are not
    /// in `known`, each as a short text. Empty when QEMU is as it was.
    pub fn leftovers(&mut self, known: &[String]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (command, key) in [("query-jobs", "id"), ("query-block-exports", "id")] {
            found.extend(self.query(command)?.iter().map(|item| format!("{command}: {}", item[key])));
        }
        for node in self.query("query-named-block-nodes")? {
            let name = node["node-name"].as_str().unwrap_or_default();
            if !known.iter().any(|known| known == name) {
                found.push(format!("node: {name}"));
            }
            for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
                found.push(format!("bitmap: {name}/{}", bitmap["name"]));
            }
        }
        Ok(found)
    }

    /// The names of all block nodes.
    pub fn node_names(&mut self) -> Result<Vec<String>> {
        let nodes = self.query("query-named-block-nodes")?;
        Ok(nodes.iter().filter_map(|node| Some(node["node-name"].as_str()?.to_owned())).collect())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the monitor has hung up");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
