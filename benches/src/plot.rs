//! The picture of a run: for each work everybody's median as a bar, in SVG.
//!
//! Drawn by hand, because bars and words are all that is needed. Invariant: every panel has its own scale, which its
//! longest bar fills.

use std::fmt::Write as _;

use crate::job::Op;
use crate::ours::{AQUIFER, LEVELS, at_level};
use crate::report::Figures;

const WIDTH: f64 = 860.0;
/// Where bars begin, and the most that they take.
const BARS_AT: f64 = 220.0;
const BARS_WIDE: f64 = 560.0;
const BAR: f64 = 16.0;
const STEP: f64 = 22.0;
const OURS: &str = "#1f6feb";
const OTHERS: &str = "#9aa4b2";

/// The works that peers do, too.
const PANELS: [(Op, &str); 4] = [
    (Op::Full, "First backup"),
    (Op::NextDay, "Next day, everything read"),
    (Op::Unchanged, "Unchanged, everything read"),
    (Op::Restore, "Restore to a raw file"),
];

/// The document.
pub(crate) fn svg(figures: &Figures) -> String {
    let mut body = String::new();
    let mut y = 20.0;
    for (op, title) in PANELS {
        let shown = figures.tools.iter().filter(|tool| !LEVELS.map(at_level).contains(tool));
        let mut bars: Vec<(&str, f64)> =
            shown.filter_map(|tool| Some((tool.as_str(), figures.wall(tool, op)?))).collect();
        bars.sort_by(|a, b| a.1.total_cmp(&b.1));
        y = panel(&mut body, y, title, &bars);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#1f2328\">\n\
         <rect width=\"{WIDTH}\" height=\"{y:.0}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// Draws one work from `y` on, and returns where the next begins.
fn panel(body: &mut String, mut y: f64, title: &str, bars: &[(&str, f64)]) -> f64 {
    let longest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
    let _ =
        writeln!(body, "<text x=\"16\" y=\"{:.0}\" font-weight=\"bold\">{title} (seconds)</text>", y + 12.0);
    y += 24.0;
    for (tool, seconds) in bars {
        let (wide, color) = (seconds / longest * BARS_WIDE, if *tool == AQUIFER { OURS } else { OTHERS });
        let base = y + BAR - 4.0;
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{BARS_AT}\" y=\"{y:.0}\" width=\"{wide:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\
             <text x=\"{:.0}\" y=\"{base:.0}\">{seconds:.1}</text>",
            BARS_AT - 8.0,
            escaped(tool),
            BARS_AT + wide + 6.0,
        );
        y += STEP;
    }
    y + 18.0
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
