//! From the words to the end: parse, make a runtime, run the command, report what went wrong.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use aquifer_engine::{Error, Kind, Result};
use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::commands;
use crate::config::Config;
use crate::context::{Context, Environment};
use crate::exit::Exit;
use crate::manual;
use crate::output::{LogWriter, Output};
use crate::signals;
use crate::traffic::Traffic;

/// How long threads that wait for a file system may still finish after the command has ended.
const LAST_THREADS: Duration = Duration::from_secs(5);

/// Runs the command in `words`, of which the first is the program's name.
pub(crate) fn start(words: impl IntoIterator<Item = OsString>) -> Exit {
    let words: Vec<OsString> = words.into_iter().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, words.iter().any(|word| word == "--json")),
    };
    let output = Arc::new(Output::new(cli.global.json));
    if let Err(error) = log(cli.global.verbose, &output) {
        output.error(&error);
        return Exit::Failed(error.kind());
    }
    run(cli, &output).unwrap_or_else(|error| {
        output.error(&error);
        Exit::Failed(error.kind())
    })
}

fn run(cli: Cli, output: &Arc<Output>) -> Result<Exit> {
    match cli.command {
        Command::Completions { shell } => return manual::completions(shell, output).map(|()| Exit::Done),
        Command::Man { folder } => return manual::pages(&folder).map(|()| Exit::Done),
        Command::Guard => return guard(),
        _ => {}
    }
    let environment = Environment::of_process();
    let config = Config::load(cli.global.config.as_deref(), &environment.default_config())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(no_runtime)?;
    let end = runtime.block_on(async {
        let cancel = signals::cancel_on_signal()?;
        let (output, traffic) = (Arc::clone(output), Traffic::default());
        let context = Context { global: cli.global, config, environment, output, cancel, traffic };
        let end = Box::pin(commands::run(&context, cli.command)).await;
        context.traffic.log();
        end
    });
    runtime.shutdown_timeout(LAST_THREADS);
    end
}

/// The guard has to stay small and needs no configuration.
fn guard() -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)?;
    runtime.block_on(aquifer_engine::guard()).map(|()| Exit::Done)
}

fn no_runtime(error: std::io::Error) -> Error {
    Error::caused(Kind::Internal, error).about("runtime")
}

/// Help and version are answers; everything else that clap says is wrong usage.
fn refuse(error: &clap::Error, json: bool) -> Exit {
    if json && error.use_stderr() {
        let document = serde_json::json!({
            "event": "error",
            "kind": "usage",
            "message": error.render().to_string().trim_end(),
            "hint": "aquifer --help",
            "context": {},
        });
        // The message on standard error remains.
        let _ = writeln!(std::io::stdout(), "{document}");
    }
    // There is no better place to report that the terminal does not take the text.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    }
}

/// Sends the log to standard error: warnings, or more with `-v`, or what `AQUIFER_LOG` selects.
fn log(verbose: u8, output: &Output) -> Result<()> {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = match std::env::var("AQUIFER_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|error| {
            Error::caused(Kind::Invalid, error).about(format_args!("AQUIFER_LOG={directives}"))
        })?,
        Err(_) => EnvFilter::new(default),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogWriter(output.bars().clone()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 0)
        .without_time()
        .try_init()
        .map_err(|error| Error::new(Kind::Internal, format!("the log cannot be set up: {error}")))
}
