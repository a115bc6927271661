//! A second look at QEMU: a small blocking QMP client of the tests' own.
//!
//! Tests watch and disturb the guest through a monitor that the product does not use. One command at a time, of the
//! events only the stops of the guest are counted, every wait has a deadline. It shares no code with the product's
//! client.

use std::collections::BTreeMap;
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
    stops: u64,
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
        let mut monitor = Qmp { stream: BufReader::new(stream), stops: 0 };
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

    /// The `STOP` events that came before the last answer.
    pub fn stops(&self) -> u64 {
        self.stops
    }

    /// The bitmaps of a node, as QEMU describes them.
    pub fn bitmaps(&mut self, node: &str) -> Result<Vec<Value>> {
        let nodes = self.query("query-named-block-nodes")?;
        let found = nodes.into_iter().find(|found| found["node-name"] == node);
        let mut found = found.with_context(|| format!("there is no node {node}"))?;
        match found["dirty-bitmaps"].take() {
            Value::Array(bitmaps) => Ok(bitmaps),
            _ => Ok(Vec::new()),
        }
    }

    /// Everything in QEMU that a backup may have left: jobs, block exports, NBD server, bitmaps, and nodes that are not
    /// in `known`, each as a short text. Empty when QEMU is as it was. The one bitmap that the newest backup of a
    /// repository leaves on each node is no left-over; a second one of the same repository makes both so.
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
            let mut checkpoints: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
                let text = format!("bitmap: {name}/{}", bitmap["name"]);
                match bitmap["name"].as_str().and_then(checkpoint_repository) {
                    Some(repository) => checkpoints.entry(repository).or_default().push(text),
                    None => found.push(text),
                }
            }
            found.extend(checkpoints.into_values().filter(|bitmaps| bitmaps.len() > 1).flatten());
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
        let document: Value = serde_json::from_str(&line)?;
        self.stops += u64::from(document["event"] == "STOP");
        Ok(document)
    }
}

/// The repository that a bitmap belongs to, if it is one that a backup leaves on purpose:
/// `aqf-REPOSITORY-BACKUP-DISK`.
fn checkpoint_repository(bitmap: &str) -> Option<&str> {
    const REPOSITORY: usize = 32;
    const UUID: usize = 36;
    let rest = bitmap.strip_prefix("aqf-")?;
    let (repository, rest) = (rest.get(..REPOSITORY)?, rest.get(REPOSITORY..)?.strip_prefix('-')?);
    let (uuid, disk) = (rest.get(..UUID)?, rest.get(UUID..)?.strip_prefix('-')?);
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex(repository) && uuid.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && uuid.split('-').all(hex))
        .then_some(repository)
        .filter(|_| !disk.is_empty())
}

#[cfg(test)]
mod tests {
    use super::checkpoint_repository;

    #[test]
    fn only_a_bitmap_with_repository_backup_and_disk_is_left_on_purpose() {
        let repository = "0123456789abcdef0123456789abcdef";
        let uuid = "01890a5d-ac96-774b-bcce-b302099a8057";
        let whole = format!("aqf-{repository}-{uuid}-vda");
        assert_eq!(checkpoint_repository(&whole), Some(repository));
        let others = [
            "theirs".to_owned(),
            format!("{repository}-{uuid}-vda"),
            format!("aqf-{repository}-{uuid}-"),
            format!("aqf-{repository}-{uuid}"),
            format!("aqf-{repository}-vda"),
            format!("aqf-{}-{uuid}-vda", &repository[1..]),
            format!("aqf-{repository}-{}-vda", uuid.replace('b', "x")),
        ];
        for other in others {
            assert_eq!(checkpoint_repository(&other), None, "{other}");
        }
    }
}
