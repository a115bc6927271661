//! From rows to tables: medians, and ratios against floors, peers and targets.
//!
//! A ratio against a floor is the median of the ratios within each round; one against peers is that of medians, because
//! peers run in fewer rounds. Not here: the picture ([`crate::plot`]).
//!
//! Invariant: a figure that no row backs is a dash.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::job::{Op, Row};
use crate::measure::{Cost, median};
use crate::ours::{AQUIFER, CAT, CP, NBDCOPY, UNPACK, ZSTD};
use crate::peers::deduplicates;

/// What a work of ours is held against, and the most that it may be of that.
enum Against {
    /// The work of the same kind of one floor.
    Floor(&'static str, Op),
    /// The fastest deduplicating peer at the work of this kind.
    Peers(Op),
}

const TARGETS: &[(Op, Against, f64)] = &[
    (Op::Full, Against::Floor(ZSTD, Op::Full), 1.2),
    (Op::Full, Against::Peers(Op::Full), 0.55),
    (Op::FullUnchecked, Against::Floor(ZSTD, Op::Full), 0.95),
    (Op::FullUnchecked, Against::Peers(Op::Full), 0.45),
    (Op::NextDay, Against::Peers(Op::NextDay), 0.45),
    (Op::Unchanged, Against::Floor(NBDCOPY, Op::Unchanged), 1.15),
    (Op::Unchanged, Against::Peers(Op::Unchanged), 0.65),
    (Op::Restore, Against::Floor(CP, Op::Restore), 1.3),
    (Op::Restore, Against::Peers(Op::Restore), 0.55),
    (Op::Rewrite, Against::Floor(CAT, Op::Rewrite), 1.2),
    (Op::RewriteCold, Against::Floor(CAT, Op::RewriteCold), 1.2),
    (Op::Verify, Against::Floor(UNPACK, Op::Verify), 1.25),
];

/// The rows of a run, by whom and what.
pub(crate) struct Figures {
    by: BTreeMap<(String, Op), Vec<Row>>,
    /// Everybody, in the order of appearance.
    pub(crate) tools: Vec<String>,
}

impl Figures {
    pub(crate) fn of(rows: Vec<Row>) -> Self {
        let (mut by, mut tools) = (BTreeMap::<_, Vec<Row>>::new(), Vec::new());
        for row in rows {
            if !tools.contains(&row.tool) {
                tools.push(row.tool.clone());
            }
            by.entry((row.tool.clone(), row.op)).or_default().push(row);
        }
        Figures { by, tools }
    }

    fn rows(&self, tool: &str, op: Op) -> &[Row] {
        self.by.get(&(tool.to_owned(), op)).map_or(&[], Vec::as_slice)
    }

    fn middle(&self, tool: &str, op: Op, pick: fn(&Cost) -> f64) -> Option<f64> {
        let figures: Vec<f64> = self.rows(tool, op).iter().map(|row| pick(&row.cost)).collect();
        (!figures.is_empty()).then(|| median(&figures))
    }

    /// The median of wall seconds.
    pub(crate) fn wall(&self, tool: &str, op: Op) -> Option<f64> {
        self.middle(tool, op, |cost| cost.wall_seconds)
    }

    fn stored(&self, tool: &str, op: Op) -> Option<f64> {
        let sizes: Vec<f64> = self.rows(tool, op).iter().map(|row| row.stored_mib as f64).collect();
        (!sizes.is_empty() && sizes[0] > 0.0).then(|| median(&sizes))
    }

    fn peak(&self, tool: &str) -> Option<f64> {
        let peaks = Op::ALL.into_iter().filter_map(|op| self.middle(tool, op, |cost| cost.peak_mib));
        peaks.reduce(f64::max)
    }

    /// The ratios of two works within each round that has both, in order.
    fn ratios(&self, ours: Op, floor: &str, its: Op) -> Vec<f64> {
        let wall = |rows: &[Row]| -> BTreeMap<u32, f64> {
            rows.iter().map(|row| (row.round, row.cost.wall_seconds)).collect()
        };
        let floors = wall(self.rows(floor, its));
        let ours = wall(self.rows(AQUIFER, ours));
        let mut ratios: Vec<f64> =
            ours.iter().filter_map(|(round, ours)| Some(ours / floors.get(round)?)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// The fastest deduplicating peer at a work, and its median.
    fn fastest(&self, op: Op) -> Option<(&str, f64)> {
        let peers = self.tools.iter().filter(|tool| deduplicates(tool));
        let timed = peers.filter_map(|tool| Some((tool.as_str(), self.wall(tool, op)?)));
        timed.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

fn cell(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"))
}

/// The tables in Markdown.
pub(crate) fn tables(figures: &Figures) -> String {
    everybody(figures) + "\n" + &ours(figures) + "\n" + &targets(figures)
}

fn everybody(figures: &Figures) -> String {
    let mut text =
        "| wall seconds | full | next day | unchanged | restore | MiB after day 1 | 2 | 3 | peak MiB |\n\
                    |---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for tool in &figures.tools {
        let name = tool.replace('|', "\\|");
        let wall = |op| cell(figures.wall(tool, op), 1);
        let stored = |op| cell(figures.stored(tool, op), 0);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |",
            wall(Op::Full),
            wall(Op::NextDay),
            wall(Op::Unchanged),
            wall(Op::Restore),
            stored(Op::Full),
            stored(Op::NextDay),
            stored(Op::ThirdDay),
            cell(figures.peak(tool), 0),
        );
    }
    text
}

fn ours(figures: &Figures) -> String {
    let mut text = "| aquifer | wall s | cpu s | peak MiB |\n|---|---|---|---|\n".to_owned();
    for op in Op::ALL {
        let middle = |pick, digits| cell(figures.middle(AQUIFER, op, pick), digits);
        let (wall, cpu) = (middle(|cost| cost.wall_seconds, 2), middle(|cost| cost.cpu_seconds, 2));
        let _ = writeln!(text, "| {} | {wall} | {cpu} | {} |", op.name(), middle(|cost| cost.peak_mib, 0));
    }
    text
}

fn targets(figures: &Figures) -> String {
    let mut text =
        "| aquifer against | ratio | lowest | highest | target | |\n|---|---|---|---|---|---|\n".to_owned();
    for (op, against, target) in TARGETS {
        let (whom, ratios) = match against {
            Against::Floor(floor, its) => (format!("`{floor}`"), figures.ratios(*op, floor, *its)),
            Against::Peers(its) => match (figures.fastest(*its), figures.wall(AQUIFER, *op)) {
                (Some((peer, theirs)), Some(ours)) => {
                    (format!("{peer}, the fastest peer"), vec![ours / theirs])
                }
                _ => ("the fastest peer".to_owned(), Vec::new()),
            },
        };
        let ratio = (!ratios.is_empty()).then(|| median(&ratios));
        let several = if ratios.len() > 1 { ratios.as_slice() } else { &[] };
        let verdict = match ratio {
            Some(ratio) if ratio <= *target => "met",
            Some(_) => "missed",
            None => "",
        };
        let _ = writeln!(
            text,
            "| {} / {whom} | {} | {} | {} | ≤ {target} | {verdict} |",
            op.name(),
            cell(ratio, 2),
            cell(several.first().copied(), 2),
            cell(several.last().copied(), 2),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(round: u32, tool: &str, op: Op, wall_seconds: f64) -> Row {
        let cost = Cost { wall_seconds, cpu_seconds: 2.0 * wall_seconds, peak_mib: 100.0 };
        Row { round, tool: tool.to_owned(), op, cost, stored_mib: 1000 }
    }

    #[test]
    fn a_ratio_is_taken_within_its_round_and_then_the_middle_one_is_quoted() {
        let mut rows = Vec::new();
        // The machine gets slower from round to round, which takes nothing away from a ratio.
        for (round, speed, ours) in [(1, 1.0, 1.0), (2, 2.0, 2.2), (3, 4.0, 6.0)] {
            rows.push(row(round, ZSTD, Op::Full, speed));
            rows.push(row(round, AQUIFER, Op::Full, ours));
        }
        let text = targets(&Figures::of(rows));
        assert!(text.contains("| full / `zstd -1 -T2` | 1.10 | 1.00 | 1.50 | ≤ 1.2 | met |"), "{text}");
        assert!(text.contains("| full / the fastest peer | – | – | – | ≤ 0.55 |  |"), "{text}");
    }

    #[test]
    fn the_fastest_of_the_deduplicating_peers_counts() {
        let rows = vec![
            row(1, AQUIFER, Op::Full, 6.0),
            row(1, "restic", Op::Full, 20.0),
            row(1, "rustic", Op::Full, 10.0),
            row(1, "qemu-img convert -c, zstd", Op::Full, 5.0),
        ];
        let text = targets(&Figures::of(rows));
        assert!(
            text.contains("| full / rustic, the fastest peer | 0.60 | – | – | ≤ 0.55 | missed |"),
            "{text}"
        );
    }
}
