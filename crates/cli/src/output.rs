//! Standard output and standard error: JSON or a short text of the same facts, never both.
//!
//! Standard output carries results, standard error carries messages, logs and progress bars. Texts for people lose
//! their control characters on the way, because names come from repositories and hypervisors.
//!
//! Invariant: a reader that goes away (`aquifer list | head`) ends the output, never the command.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_engine::{Error, Kind, Result};
use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

/// A result that prints itself: as JSON through [`Serialize`], for people through [`Report::human`].
pub(crate) trait Report: Serialize {
    /// The text for people: lines with a line feed each.
    fn human(&self) -> String;
}

/// Where a command prints.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    bars: MultiProgress,
    reader_gone: AtomicBool,
}

impl Output {
    /// Output in JSON, or for people with progress bars where standard error is a terminal.
    pub(crate) fn new(json: bool) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Output { json, bars: MultiProgress::with_draw_target(target), reader_gone: AtomicBool::new(false) }
    }

    /// Whether results are JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// The progress bars; hidden unless standard error is a terminal.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Prints a command's one result.
    ///
    /// # Errors
    /// `Unavailable` when standard output cannot be written, unless its reader has gone.
    pub(crate) fn report(&self, report: &impl Report) -> Result<()> {
        if self.json {
            let mut text = serde_json::to_string_pretty(report).map_err(unprintable)?;
            text.push('\n');
            self.write(text.as_bytes())
        } else {
            self.write(printable(&report.human()).as_bytes())
        }
    }

    /// Prints the last event of a job: one line of JSON, or its text.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub(crate) fn done(&self, report: &impl Report) -> Result<()> {
        if self.json { self.event(report) } else { self.report(report) }
    }

    /// Prints one line of JSON.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub(crate) fn event(&self, event: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(event).map_err(unprintable)?;
        line.push('\n');
        self.write(line.as_bytes())
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        if self.reader_gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match self.bars.suspend(|| stdout.write_all(bytes).and_then(|()| stdout.flush())) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.reader_gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            other => other.map_err(|error| Error::caused(Kind::Unavailable, error).about("standard output")),
        }
    }

    /// Says something to the person in front, on standard error.
    pub(crate) fn say(&self, message: &str) {
        // Nobody can be told that standard error does not work.
        let _ = self.bars.suspend(|| writeln!(io::stderr(), "aquifer: {}", printable(message)));
    }

    /// Reports an error: its message and hint on standard error, and in JSON the error event.
    pub(crate) fn error(&self, error: &Error) {
        if self.json {
            // If standard output fails too, the message on standard error is what remains.
            let _ = self.event(error);
        }
        self.say(&format!("error: {}", error.message()));
        if let Some(hint) = error.hint_text() {
            let _ = writeln!(io::stderr(), "  hint: {}", printable(hint));
        }
        let mut cause = error.cause().and_then(std::error::Error::source);
        while let Some(source) = cause {
            tracing::info!("caused by: {source}");
            cause = source.source();
        }
    }
}

fn unprintable(error: serde_json::Error) -> Error {
    Error::caused(Kind::Internal, error).about("JSON output")
}

/// `text` without the control characters that could steer a terminal.
fn printable(text: &str) -> String {
    let keep = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if keep(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Standard error for log lines, which step aside for the progress bars.
#[derive(Debug, Clone)]
pub(crate) struct LogWriter(pub(crate) MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> LogWriter {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\u{9b}c\n\td"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n\td");
    }
}
