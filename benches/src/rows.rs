//! The raw figures of a run as lines of tabs, so that a report can be made again without another run.
//!
//! Invariant: what is written is read back as it was, to the digits written.

use anyhow::{Context, Result};

use crate::job::{Op, Row};
use crate::measure::Cost;

/// The first line.
const HEAD: &str = "round\ttool\twork\twall_s\tcpu_s\tpeak_mib\tstored_mib";

/// All rows, with a first line that names the columns.
pub(crate) fn write(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let Cost { wall_seconds, cpu_seconds, peak_mib } = row.cost;
        let (round, tool, op, stored) = (row.round, &row.tool, row.op.name(), row.stored_mib);
        format!("{round}\t{tool}\t{op}\t{wall_seconds:.3}\t{cpu_seconds:.2}\t{peak_mib:.1}\t{stored}\n")
    };
    format!("{HEAD}\n") + &rows.iter().map(line).collect::<String>()
}

/// What [`write()`] wrote.
pub(crate) fn read(text: &str) -> Result<Vec<Row>> {
    text.lines()
        .skip(1)
        .map(|line| read_line(line).with_context(|| format!("in the line {line:?}")))
        .collect()
}

fn read_line(line: &str) -> Result<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [round, tool, op, wall, cpu, peak, stored] = fields[..] else {
        anyhow::bail!("seven fields are needed")
    };
    Ok(Row {
        round: round.parse()?,
        tool: tool.to_owned(),
        op: Op::ALL.into_iter().find(|known| known.name() == op).context("an unknown work")?,
        cost: Cost { wall_seconds: wall.parse()?, cpu_seconds: cpu.parse()?, peak_mib: peak.parse()? },
        stored_mib: stored.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let cost = Cost { wall_seconds: 1.25, cpu_seconds: 2.5, peak_mib: 100.5 };
        let row = |round, op| Row { round, tool: "borg, zstd,1".to_owned(), op, cost, stored_mib: 1700 };
        let rows: Vec<Row> = (1..).zip(Op::ALL).map(|(round, op)| row(round, op)).collect();
        assert_eq!(read(&write(&rows)).unwrap(), rows);
        assert!(read("head\n1\tx\tfull\t1\n").is_err());
        assert!(read("head\n1\tx\tlunch\t1\t1\t1\t1\n").is_err());
    }
}
