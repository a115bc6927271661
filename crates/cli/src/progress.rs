//! Events of a running job on their way to the person or the script: bars, or lines of JSON.
//!
//! Invariant: events are advisory; a job goes on whether or not anybody can see them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aquifer_engine::{Event, EventSink};
use indicatif::{ProgressBar, ProgressStyle};

use crate::human;
use crate::output::Output;

/// A sink that shows events on `output`.
pub(crate) fn sink(output: &Arc<Output>) -> EventSink {
    let output = Arc::clone(output);
    if output.json() {
        return EventSink::new(move |event| {
            // The command's own result reports a standard output that does not work.
            let _ = output.event(&event);
        });
    }
    let bars = Mutex::new(HashMap::new());
    EventSink::new(move |event| show(&output, &bars, &event))
}

/// A sink for commands whose JSON is one document: bars for a person, nothing for a script.
pub(crate) fn quiet_sink(output: &Arc<Output>) -> EventSink {
    if output.json() { EventSink::none() } else { sink(output) }
}

fn show(output: &Output, bars: &Mutex<HashMap<String, ProgressBar>>, event: &Event) {
    let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bar_of = |name: &str, total: u64| {
        let bar = bars.entry(name.to_owned()).or_insert_with(|| {
            output.bars().add(ProgressBar::new(total).with_style(style()).with_prefix(name.to_owned()))
        });
        bar.set_length(total);
        bar.clone()
    };
    match event {
        Event::Started { uuid, domain, disks, memory_bytes } => {
            output.say(&format!("{domain}: backup {uuid}, memory budget {}", human::size(*memory_bytes)));
            for (disk, size_bytes) in disks {
                bar_of(disk, *size_bytes);
            }
        }
        Event::Progress { disk, done_bytes, total_bytes, rate_bytes, eta_ms } => {
            let bar = bar_of(disk, *total_bytes);
            bar.set_message(speed(*rate_bytes, *eta_ms));
            bar.set_position(*done_bytes);
            if done_bytes == total_bytes {
                bar.finish_with_message("done");
            }
        }
        Event::Verifying { backups_done, backups_total, bytes_done, bytes_total } => {
            let bar = bar_of("packs", (*bytes_total).max(1));
            bar.set_message(format!("{backups_done} of {backups_total} backups"));
            bar.set_position(*bytes_done);
        }
        // The job logs its warnings too, and the log is on standard error.
        Event::Committing { .. } | Event::Warning { .. } => {}
    }
}

fn speed(rate_bytes: u64, eta_ms: Option<u64>) -> String {
    let rate = format!("{}/s", human::size(rate_bytes));
    match eta_ms {
        Some(eta_ms) => format!("{rate}, {} left", human::duration(Duration::from_millis(eta_ms))),
        None => rate,
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>10} {wide_bar} {percent:>3}% {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_comes_with_the_time_left_once_it_is_known() {
        assert_eq!(speed(3 << 20, None), "3.0 MiB/s");
        assert_eq!(speed(3 << 20, Some(125_000)), "3.0 MiB/s, 2m 05s left");
    }
}
