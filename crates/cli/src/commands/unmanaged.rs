//! `start-unmanaged` and `finish`: a backup that another program reads, and the process that stays with it meanwhile.
//!
//! That process, the keeper, is this program again, in a session of its own. It has the connection to QEMU, sees at once
//! when the instant is lost, and gives the backup up when nobody reads it for the time of its lease. What it is told and
//! what it answers goes over its standard input and output, a line of JSON each; when its parent is gone before it has
//! taken the answer, there is no backup.
//!
//! Invariant: the keeper never touches QEMU before it can be told to let go.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aquifer_api::request::{BackupRequest, Start};
use aquifer_api::{Backup, BackupApi, CreateFlags, FinishFlags};
use aquifer_engine::{Error, Kind, Result};
use aquifer_service::{Keeper, Service};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::open;
use super::service::{self, Wishes, told};
use crate::args::Global;
use crate::args::api::{FinishArgs, StartUnmanagedArgs};
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Longest document that is read, in bytes: a little more than what the API takes, so that it can say so.
const XML_BYTES_MAX: u64 = (4 << 20) + 1;
/// Longest line between the two processes, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// What the parent says when it has read the answer.
const TAKEN: &[u8] = b"taken\n";

/// What the keeper is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    domain: String,
    xml: String,
    qmp: Option<String>,
    flags: u32,
    lease_ms: u64,
}

/// What `start-unmanaged` prints, and the keeper answers.
#[derive(Debug, Serialize, Deserialize)]
struct Started {
    uuid: Uuid,
    state: String,
    exports: Vec<Served>,
}

/// One disk that is served.
#[derive(Debug, Serialize, Deserialize)]
struct Served {
    disk: String,
    size_bytes: u64,
    uri: String,
    bitmap_context: Option<String>,
}

/// Runs `start-unmanaged`.
///
/// # Errors
/// As the API says, by way of the keeper.
pub(crate) async fn start(context: &Context, args: StartUnmanagedArgs) -> Result<Exit> {
    let flags = [
        (args.quiesce, CreateFlags::REQUIRE_QUIESCE),
        (args.full, CreateFlags::FULL),
        (args.strict_parent, CreateFlags::STRICT_PARENT),
    ];
    let set = flags.into_iter().filter(|(set, _)| *set);
    let flags = set.fold(CreateFlags::NONE, |flags, (_, flag)| flags | flag);
    let xml = read_text(&args.xml).await?;
    if BackupRequest::parse(&xml, Start::Unmanaged).is_ok_and(|asked| asked.is_for_stores()) {
        return pull(context, args, &xml, flags).await;
    }
    let order = Order {
        domain: args.domain,
        xml,
        qmp: args.qmp,
        flags: flags.bits(),
        lease_ms: u64::try_from(args.lease.0.as_millis()).unwrap_or(u64::MAX),
    };
    let mut keeper = spawn(context)?;
    let answer = tokio::select! {
        answer = ask(context, &mut keeper, &order) => answer?,
        // The keeper sees that nobody is there any more, and clears up.
        () = context.cancel.cancelled() => return Err(Error::cancelled()),
    };
    context.output.report(&answer)?;
    Ok(Exit::Done)
}

/// A backup that nobody else reads, since it goes into the repository: it is made here and now.
async fn pull(context: &Context, args: StartUnmanagedArgs, xml: &str, flags: CreateFlags) -> Result<Exit> {
    let wishes = Wishes { qmp: args.qmp, lease: None };
    let service = service::with(context, open::writing_job(context, None).await?, wishes)?;
    let outcome = service.backup_document(&args.domain, xml, Start::Unmanaged, flags).await?;
    context.done(&outcome)?;
    Ok(Exit::Done)
}

/// Starts this program again as a keeper, with the same repository in mind.
fn spawn(context: &Context) -> Result<Child> {
    let program = std::env::current_exe()
        .map_err(|error| Error::caused(Kind::Internal, error).about("the path of this program"))?;
    let state_dir = context.state_dir()?;
    let log = state_dir.join("keeper.log");
    let opened = std::fs::create_dir_all(&state_dir)
        .and_then(|()| File::options().create(true).append(true).open(&log))
        .map_err(|error| Error::caused(Kind::Unavailable, error).about(log.display()))?;
    Command::new(program)
        .args(words(&context.global))
        .args(["--json", "keep"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(opened)
        .spawn()
        .map_err(|error| Error::caused(Kind::Unavailable, error).about("the keeper"))
}

/// The options of every command, as they were typed.
fn words(global: &Global) -> Vec<PathBuf> {
    let mut words = Vec::new();
    let mut word = |name: &str, value: Option<PathBuf>| {
        if let Some(value) = value {
            words.push(PathBuf::from(name));
            words.push(value);
        }
    };
    word("--config", global.config.clone());
    word("--repository", global.repository.clone().map(PathBuf::from));
    word("--log", global.log.clone().map(PathBuf::from));
    word("--password-file", global.password_file.clone());
    word("--state-dir", global.state_dir.clone());
    words.extend((0..global.verbose).map(|_| PathBuf::from("-v")));
    words
}

/// Tells the keeper, and waits for its answer.
async fn ask(context: &Context, keeper: &mut Child, order: &Order) -> Result<Started> {
    let broken = |error: std::io::Error| Error::caused(Kind::Internal, error).about("the keeper");
    let (Some(mut input), Some(output)) = (keeper.stdin.take(), keeper.stdout.take()) else {
        return Err(Error::new(Kind::Internal, "the keeper has no pipes"));
    };
    let mut line = serde_json::to_vec(order).map_err(|error| Error::caused(Kind::Internal, error))?;
    line.push(b'\n');
    // One that ended at once says why on its standard output.
    let _ = input.write_all(&line).await;
    let mut lines = BufReader::new(output.take(LINE_BYTES_MAX)).lines();
    while let Some(line) = lines.next_line().await.map_err(broken)? {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        match event["event"].as_str() {
            Some("error") => return Err(error_of(&event)),
            Some("warning") => context.output.say(event["message"].as_str().unwrap_or_default()),
            Some(_) => {}
            None => {
                let started =
                    serde_json::from_value(event).map_err(|error| Error::caused(Kind::Internal, error))?;
                input.write_all(TAKEN).await.map_err(broken)?;
                return Ok(started);
            }
        }
    }
    let log = context.state_dir()?.join("keeper.log");
    Err(Error::new(Kind::Internal, "the keeper ended without an answer")
        .hint(format!("it logs to {}", log.display())))
}

/// An error as another process of this program printed it.
fn error_of(event: &serde_json::Value) -> Error {
    let kinds = [
        Kind::Invalid,
        Kind::NotFound,
        Kind::Conflict,
        Kind::Denied,
        Kind::Unavailable,
        Kind::Corrupt,
        Kind::Unsupported,
        Kind::Cancelled,
    ];
    let kind = kinds.into_iter().find(|kind| event["kind"] == kind.as_str()).unwrap_or(Kind::Internal);
    let error = Error::new(kind, event["message"].as_str().unwrap_or_default());
    let error = match event["context"]["code"].as_str() {
        Some(code) => error.with("code", code),
        None => error,
    };
    match event["hint"].as_str() {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Runs `keep`.
///
/// # Errors
/// As the API says.
pub(crate) async fn keep(context: &Context) -> Result<Exit> {
    let fault = |error: std::io::Error| Error::caused(Kind::Internal, error).about("the keeper");
    // Before anything else: whoever finds the job may ask for it at once.
    let mut let_go = signal(SignalKind::user_defined1()).map_err(fault)?;
    // A group leader cannot lead a session, and has no terminal to fear either.
    let _ = rustix::process::setsid();
    let mut input = BufReader::new(tokio::io::stdin().take(LINE_BYTES_MAX));
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line).await.map_err(fault)?;
    let order: Order = serde_json::from_slice(&line)
        .map_err(|error| Error::caused(Kind::Invalid, error).about("the order of the keeper"))?;
    let wishes = Wishes { qmp: order.qmp, lease: Some(Duration::from_millis(order.lease_ms)) };
    let service = service::with(context, open::reading_job(context).await?, wishes)?;
    let flags = CreateFlags::from_bits(order.flags).map_err(aquifer_api::Error::from);
    let backup = told(service.start_unmanaged(&order.domain, &order.xml, told(flags)?).await)?;
    let taken = async {
        context.output.event(&started(&service, &backup)?)?;
        line.clear();
        // An error of the pipe is its end.
        let _ = input.read_until(b'\n', &mut line).await;
        if line == TAKEN { Ok(()) } else { Err(Error::cancelled()) }
    };
    if let Err(error) = taken.await {
        told(service.finish_job(&backup, FinishFlags::CANCEL).await)?;
        return Err(error);
    }
    let keeper = Keeper::new(&service, &backup);
    tokio::select! {
        () = keeper.over() => {}
        _ = let_go.recv() => told(keeper.leave().await)?,
    }
    Ok(Exit::Done)
}

fn started(service: &Service, backup: &Backup) -> Result<Started> {
    let served = told(service.served(backup.uuid()))?;
    let served =
        served.ok_or_else(|| Error::new(Kind::Unavailable, "the backup ended as soon as it was served"))?;
    let exports = served.disks.into_iter().map(|disk| Served {
        disk: disk.name,
        size_bytes: disk.size_bytes,
        uri: disk.uri,
        bitmap_context: disk.bitmap_context,
    });
    Ok(Started { uuid: backup.uuid(), state: "exposed".to_owned(), exports: exports.collect() })
}

/// What `finish` did.
#[derive(Debug, Serialize)]
struct Finished {
    uuid: Uuid,
    state: String,
}

/// Runs `finish`.
///
/// # Errors
/// As the API says.
pub(crate) async fn finish(context: &Context, args: FinishArgs) -> Result<Exit> {
    let flags = [
        (args.cancel, FinishFlags::CANCEL),
        (args.check, FinishFlags::CHECK),
        (args.wait, FinishFlags::WAIT),
    ];
    let set = flags.into_iter().filter(|(set, _)| *set);
    let flags = set.fold(FinishFlags::NONE, |flags, (_, flag)| flags | flag);
    let mut service = service::over(context, open::reading_job(context).await?)?;
    let backup = service::resolve(&service, &args.backup)?;
    // Only what was served is entered in the log by this command; a writer that is at work must not be waited for else.
    if !args.cancel && told(service.served(backup.uuid()))?.is_some() {
        drop(service);
        service = service::over(context, open::writing_job(context, None).await?)?;
    }
    let state = told(service.finish_job(&backup, flags).await)?;
    context.output.report(&Finished { uuid: backup.uuid(), state: state.to_string() })?;
    Ok(Exit::Done)
}

/// Reads a text file, or standard input for `-`.
///
/// # Errors
/// `NotFound`, `Invalid` for what is no text or too long, and what the file system says.
pub(crate) async fn read_text(path: &Path) -> Result<String> {
    let about = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Unavailable,
        };
        Error::caused(kind, error).about(path.display())
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        tokio::io::stdin().take(XML_BYTES_MAX).read_to_end(&mut bytes).await.map_err(about)?;
    } else {
        let file = tokio::fs::File::open(path).await.map_err(about)?;
        file.take(XML_BYTES_MAX).read_to_end(&mut bytes).await.map_err(about)?;
    }
    String::from_utf8(bytes).map_err(|error| {
        Error::caused(Kind::Invalid, error).about(path.display()).hint("documents are UTF-8 text")
    })
}

impl Report for Started {
    fn human(&self) -> String {
        let rows = self.exports.iter().map(|export| {
            vec![
                export.disk.clone(),
                human::size(export.size_bytes),
                export.uri.clone(),
                export.bitmap_context.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        });
        human::table(&["disk", "size", "uri", "changes"], &[1], rows)
            + &format!("backup {} is served; end it with `aquifer finish {}`\n", self.uuid, self.uuid)
    }
}

impl Report for Finished {
    fn human(&self) -> String {
        format!("backup {}: {}\n", self.uuid, self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_keeper_is_reported_as_it_was() {
        let error = Error::new(Kind::Conflict, "domain web01 is busy").hint("wait").with("code", "JOB_BUSY");
        let back = error_of(&serde_json::to_value(&error).unwrap());
        assert_eq!(
            (back.kind(), back.message(), back.hint_text()),
            (Kind::Conflict, error.message(), Some("wait"))
        );
        assert_eq!(back.context()["code"], "JOB_BUSY");
    }
}
