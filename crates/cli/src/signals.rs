//! Ctrl-C, SIGTERM and SIGHUP: each asks the running job to stop and clean up.
//!
//! Invariant: no number of signals cuts the clean-up short; a domain's QEMU is left as it was found. Whoever must
//! end the process at once has SIGKILL, and the guard process cleans up after that.

use std::io::Write;

use aquifer_engine::{Error, Kind, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels. Call once, inside the runtime.
///
/// # Errors
/// `Internal` when the signal handlers cannot be installed.
pub(crate) fn cancel_on_signal() -> Result<CancellationToken> {
    let install =
        |kind| signal(kind).map_err(|error| Error::caused(Kind::Internal, error).about("signal handler"));
    let signals = [
        install(SignalKind::interrupt())?,
        install(SignalKind::terminate())?,
        install(SignalKind::hangup())?,
    ];
    let cancel = CancellationToken::new();
    tokio::spawn(watch(signals, cancel.clone()));
    Ok(cancel)
}

async fn watch([mut interrupt, mut terminate, mut hangup]: [Signal; 3], cancel: CancellationToken) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        let text = if cancel.is_cancelled() {
            "still cleaning up; this ends by itself"
        } else {
            "stopping: cleaning up first"
        };
        // A terminal that hung up is no reason to stop cleaning up.
        let _ = writeln!(std::io::stderr(), "aquifer: {text}");
        cancel.cancel();
    }
}
