//! A real S3 server to store in: moto, over HTTP, in a process of its own, with its objects in memory.
//!
//! `scripts/moto.sh` installs it into the cache folder (`make deps` runs that). Without credentials being asked for it
//! takes any; [`S3Server::guard`] turns its checks of signatures and rights on. Two of its faults are mended as it starts
//! (`serve_moto.py`): as it is shipped, racing creates can both win, and a signed query never matches.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Daemon, wait_for};
use crate::tools::cache_dir;

/// Hard limit of a server's life.
const LIFE: Duration = Duration::from_secs(900);
/// From the start of the server to its first answer: Python takes its time on a busy machine.
const SERVING_WITHIN: Duration = Duration::from_secs(120);

/// Moto with a watch on the process that started it.
const SERVE: &str = include_str!("serve_moto.py");

/// An access key with its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKey {
    /// The public part.
    pub id: String,
    /// The secret part.
    pub secret: String,
}

impl AccessKey {
    /// The one of a server that asks for none.
    pub fn any() -> AccessKey {
        AccessKey { id: "AKIAANY".to_owned(), secret: "any".to_owned() }
    }

    /// Writes it to a file in `folder`, in the form of `~/.aws/credentials`.
    pub fn file_in(&self, folder: &Path) -> Result<PathBuf> {
        let AccessKey { id, secret } = self;
        let file = folder.join(format!("{id}.credentials"));
        fs::write(&file, format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"))?;
        Ok(file)
    }
}

/// A server that answers.
#[derive(Debug)]
pub struct S3Server {
    _daemon: Daemon,
    address: SocketAddr,
}

impl S3Server {
    /// Starts moto; what it prints goes to `folder/moto.log`.
    pub fn start(folder: &Path) -> Result<S3Server> {
        S3Server::run(folder, "", ["", "", ""], &[])
    }

    /// The one server of all tests of this process that mind only their own buckets: it starts slowly. It ends with
    /// the process.
    pub fn shared() -> Result<&'static S3Server> {
        static SHARED: Mutex<Option<&'static S3Server>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = *shared {
            return Ok(server);
        }
        // Moto removes the folder when this process is gone.
        let folder = tempfile::tempdir()?.keep();
        let server = S3Server::run(&folder, &folder.to_string_lossy(), ["", "", ""], &[])?;
        Ok(shared.insert(Box::leak(Box::new(server))))
    }

    /// Starts moto with TLS: the server's certificate and its key as PEM files.
    pub fn start_tls(folder: &Path, certificate: &Path, key: &Path) -> Result<S3Server> {
        let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
        S3Server::run(folder, "", ["", "", ""], &["-s", "-c", &certificate, "-k", &key])
    }

    /// Starts moto with `objects` objects of three bytes in `bucket`, named `prefix` and a number of 16 hex digits from
    /// zero on. They are made inside the server, which takes a fraction of the time that requests would.
    pub fn start_filled(folder: &Path, bucket: &str, prefix: &str, objects: u64) -> Result<S3Server> {
        S3Server::run(folder, "", [bucket, prefix, &objects.to_string()], &[])
    }

    fn run(folder: &Path, scratch: &str, fill: [&str; 3], further: &[&str]) -> Result<S3Server> {
        let program = cache_dir()?.join("moto/bin/python3");
        ensure!(program.exists(), "{} is missing: `make deps` installs moto", program.display());
        let mut command = Command::new(program);
        command.args(["-u", "-c", SERVE, &std::process::id().to_string(), scratch]).args(fill);
        command.args(["-H", "127.0.0.1", "-p", "0"]).args(further);
        // Its own SDK must not find this machine's configuration.
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_CONFIG_FILE", "/dev/null");
        let mut daemon = Daemon::spawn(&command, &folder.join("moto.log"), LIFE)?;
        let address = wait_for("moto's address", SERVING_WITHIN, || {
            daemon.ensure_running()?;
            let messages = daemon.messages();
            let address = messages.split("Running on http").nth(1).and_then(|rest| rest.lines().next());
            let address = address.and_then(|address| address.trim_start_matches('s').strip_prefix("://"));
            Ok(address.and_then(|address| address.trim().parse().ok()))
        })?;
        Ok(S3Server { _daemon: daemon, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        self.ask("PUT", &format!("/{name}"), "s3", "").map(drop)
    }

    /// Makes a bucket that keeps versions and heeds object locks.
    pub fn make_locking_bucket(&self, name: &str) -> Result<()> {
        let header = "x-amz-bucket-object-lock-enabled: true\r\n";
        self.ask_with("PUT", &format!("/{name}"), "s3", header, "").map(drop)
    }

    /// Stores an object under any name, already percent-encoded.
    pub fn put(&self, bucket: &str, name: &str, body: &str) -> Result<()> {
        self.ask("PUT", &format!("/{bucket}/{name}"), "s3", body).map(drop)
    }

    /// The names of the first thousand objects of a bucket, in order.
    pub fn names(&self, bucket: &str) -> Result<Vec<String>> {
        let listed = self.ask("GET", &format!("/{bucket}?list-type=2"), "s3", "")?;
        let names = listed.split("<Key>").skip(1);
        Ok(names.filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect())
    }

    /// Removes an object.
    pub fn remove(&self, bucket: &str, name: &str) -> Result<()> {
        self.ask("DELETE", &format!("/{bucket}/{name}"), "s3", "").map(drop)
    }

    /// Makes a user who may do these actions (`s3:PutObject`) with everything, and returns a key of theirs.
    pub fn make_user(&self, name: &str, actions: &[&str]) -> Result<AccessKey> {
        let iam = |query: &str| {
            self.ask("POST", "/", "iam", &format!("Version=2010-05-08&UserName={name}&{query}"))
        };
        iam("Action=CreateUser")?;
        let actions: Vec<String> = actions.iter().map(|action| format!("%22{action}%22")).collect();
        let statement = format!(
            "%7B%22Effect%22:%22Allow%22,%22Action%22:[{}],%22Resource%22:%22*%22%7D",
            actions.join(",")
        );
        let document = format!("%7B%22Version%22:%222012-10-17%22,%22Statement%22:[{statement}]%7D");
        iam(&format!("Action=PutUserPolicy&PolicyName=only&PolicyDocument={document}"))?;
        let made = iam("Action=CreateAccessKey")?;
        let element = |name: &str| -> Result<String> {
            let rest = made.split(&format!("<{name}>")).nth(1).with_context(|| made.clone())?;
            Ok(rest.split('<').next().unwrap_or_default().to_owned())
        };
        Ok(AccessKey { id: element("AccessKeyId")?, secret: element("SecretAccessKey")? })
    }

    /// From now on signatures and rights are checked.
    pub fn guard(&self) -> Result<()> {
        self.ask("POST", "/moto-api/reset-auth", "s3", "0").map(drop)
    }

    /// One plain request that must succeed, and the body of its answer.
    fn ask(&self, method: &str, path: &str, service: &str, body: &str) -> Result<String> {
        self.ask_with(method, path, service, "", body)
    }

    /// The same with further lines of the head.
    fn ask_with(&self, method: &str, path: &str, service: &str, further: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(SERVING_WITHIN))?;
        // Moto takes the body of a form for parameters.
        let kind = if service == "iam" { "application/x-www-form-urlencoded" } else { "text/plain" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: {kind}\r\n{further}\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20250101/us-east-1/{service}/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let done = ["HTTP/1.1 200 ", "HTTP/1.1 204 "].iter().any(|status| head.starts_with(status));
        ensure!(done, "moto refused {method} {path}: {answer}");
        Ok(body.to_owned())
    }
}
