//! The words of messages that are more than a value: what a session does, how long something took, what to do now.
//!
//! Not here: which error it is.

use std::time::Duration;

use aquifer_format::log::SessionKind;

/// What a session does, in a word.
pub(crate) fn doing(kind: SessionKind) -> &'static str {
    match kind {
        SessionKind::Backup => "backup",
        SessionKind::Restore => "restore",
        SessionKind::Verify => "verification",
        SessionKind::Export => "export",
        SessionKind::Replicate => "replication",
        SessionKind::Collect => "collection",
    }
}

/// What can be done about a busy domain.
pub(super) fn way_out(silent: Option<Duration>, fence_after: Duration) -> String {
    match silent {
        None => ", in a process that lives: wait for its end".to_owned(),
        Some(silent) => format!(
            "; no new heartbeat of it was seen for {}, and after {} it is ended as dead: run the backup again later, or with --fence-after 0s if that host is known to be dead",
            spelt(silent),
            spelt(fence_after)
        ),
    }
}

/// A duration in whole units: `1 h 30 min`, `47 min 5 s`, `0 s`.
fn spelt(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(seconds / 3600, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let said: Vec<_> =
        units.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count} {unit}")).collect();
    if said.is_empty() { "0 s".to_owned() } else { said.join(" ") }
}
