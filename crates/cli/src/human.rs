//! Texts for people: tables, sizes, times and durations.
//!
//! Invariant: what a person may copy (uuids, keys, paths) is printed whole, whatever the terminal's width.

use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;

/// Bytes with a binary unit, such as `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A point in time as RFC 3339 in whole seconds.
pub(crate) fn time(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// A duration in the two units that matter, such as `3m 12s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A table with a head line and without frames; the columns named in `numbers` stand at the right.
pub(crate) fn table(head: &[&str], numbers: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Lines of `name: value`, the values under each other.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{:width$} {value}\n", format!("{name}:"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_no_trailing_blanks() {
        let text = table(
            &["name", "size"],
            &[1],
            [vec!["vda".to_owned(), size(5 << 30)], vec!["data".to_owned(), size(300)]],
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn facts_stand_under_each_other() {
        assert_eq!(
            facts(&[("id", "7f".to_owned()), ("encrypted", "yes".to_owned())]),
            "id:        7f\nencrypted: yes\n"
        );
    }

    #[test]
    fn durations_show_two_units_at_most() {
        let text = |millis| duration(Duration::from_millis(millis));
        assert_eq!(
            [text(1_250), text(12_900), text(192_000), text(7_380_000)],
            ["1.2s", "12s", "3m 12s", "2h 03m"]
        );
    }

    #[test]
    fn times_are_rfc_3339_in_whole_seconds() {
        assert_eq!(time(Timestamp::from_millisecond(1_270_477_159_250).unwrap()), "2010-04-05T14:19:19Z");
    }
}
