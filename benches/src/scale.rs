//! The picture and the table of `scale.sh`: time and memory against the size of a disk and the number of backups.
//!
//! Both panels of sizes have logarithmic axes, on which work that grows with its size is a line at 45 degrees; the one of
//! numbers has plain ones. Invariant: a series is drawn with its own points and nothing is fitted or left out.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

const WIDTH: f64 = 860.0;
const PANEL: f64 = 250.0;
const PLOT_WIDE: f64 = 560.0;
const PLOT_HIGH: f64 = 190.0;
const LEFT: f64 = 80.0;
const COLORS: [&str; 4] = ["#1f6feb", "#bc4c00", "#1a7f37", "#8250df"];

/// One measured point.
#[derive(Debug, Clone, PartialEq)]
struct Point {
    series: String,
    x: f64,
    seconds: f64,
    peak_mib: f64,
}

/// What one panel shows.
struct Panel {
    title: &'static str,
    x_name: &'static str,
    /// Names in the figures, and what the legend calls them.
    series: &'static [(&'static str, &'static str)],
    logarithmic: bool,
    y: fn(&Point) -> f64,
}

const SIZES: &[(&str, &str)] = &[
    ("first", "first backup"),
    ("unchanged", "unchanged, all read"),
    ("verify", "verify, chunks"),
    ("restore", "restore, verified"),
];

const PANELS: [Panel; 3] = [
    Panel {
        title: "Seconds",
        x_name: "GiB on the disk",
        series: SIZES,
        logarithmic: true,
        y: |point| point.seconds,
    },
    Panel {
        title: "Peak memory, MiB",
        x_name: "GiB on the disk",
        series: SIZES,
        logarithmic: true,
        y: |point| point.peak_mib,
    },
    Panel {
        title: "Seconds, one disk of 1 GiB",
        x_name: "backups in the repository",
        series: &[("nth-backup", "backup, all read"), ("nth-restore", "restore"), ("nth-list", "list")],
        logarithmic: false,
        y: |point| point.seconds,
    },
];

/// The picture and the table of what `scale.sh` wrote.
pub(crate) fn draw(figures: &str) -> Result<(String, String)> {
    let points = figures.lines().map(read_line).collect::<Result<Vec<Point>>>()?;
    ensure!(!points.is_empty(), "there are no figures");
    let high = PANEL * PANELS.len() as f64;
    let mut body = String::new();
    for (at, panel) in PANELS.iter().enumerate() {
        draw_panel(&mut body, panel, &points, PANEL * at as f64 + 30.0);
    }
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {high}\" font-family=\"sans-serif\" \
         font-size=\"13\" fill=\"#1f2328\">\n<rect width=\"{WIDTH}\" height=\"{high}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    );
    Ok((svg, table(&points)))
}

fn read_line(line: &str) -> Result<Point> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [series, x, seconds, peak] = fields[..] else { anyhow::bail!("four fields are needed in {line:?}") };
    let number = |text: &str| text.parse::<f64>().with_context(|| format!("in the line {line:?}"));
    Ok(Point { series: series.to_owned(), x: number(x)?, seconds: number(seconds)?, peak_mib: number(peak)? })
}

/// From a value to its place between 0 and 1.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let (low, high) =
            values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if logarithmic {
            // Whole decades, so that both axes have marks that people read.
            let low = low.max(0.01);
            return Axis {
                low: 10_f64.powf(low.log10().floor()),
                high: 10_f64.powf(high.log10().ceil()),
                logarithmic,
            };
        }
        Axis { low: 0.0, high: high * 1.05, logarithmic }
    }

    fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            return (value.max(self.low) / self.low).log10() / (self.high / self.low).log10().max(1.0);
        }
        (value - self.low) / (self.high - self.low).max(f64::MIN_POSITIVE)
    }

    fn marks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = std::iter::successors(Some(self.low), |mark| Some(mark * 10.0));
            return decades.take_while(|mark| *mark < self.high * 2.0).collect();
        }
        (0..=4).map(|quarter| self.high * f64::from(quarter) / 4.0).collect()
    }
}

fn draw_panel(body: &mut String, panel: &Panel, points: &[Point], top: f64) {
    let shown: Vec<&Point> =
        points.iter().filter(|point| panel.series.iter().any(|(name, _)| point.series == *name)).collect();
    if shown.is_empty() {
        return;
    }
    let x_axis = Axis::of(shown.iter().map(|point| point.x), panel.logarithmic);
    let y_axis = Axis::of(shown.iter().map(|point| (panel.y)(point)), panel.logarithmic);
    let x_at = |value: f64| LEFT + x_axis.place(value) * PLOT_WIDE;
    let y_at = |value: f64| top + PLOT_HIGH - y_axis.place(value) * PLOT_HIGH;
    let _ =
        writeln!(body, "<text x=\"16\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", top - 10.0, panel.title);
    for mark in y_axis.marks() {
        let y = y_at(mark);
        let _ = writeln!(
            body,
            "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#d8dee4\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + PLOT_WIDE,
            LEFT - 8.0,
            y + 4.0,
            short(mark),
        );
    }
    for mark in x_axis.marks() {
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x_at(mark),
            top + PLOT_HIGH + 18.0,
            short(mark),
        );
    }
    let _ = writeln!(
        body,
        "<text x=\"{:.0}\" y=\"{:.0}\">{}</text>",
        LEFT + PLOT_WIDE + 24.0,
        top + PLOT_HIGH + 18.0,
        panel.x_name,
    );
    for (at, (name, legend)) in panel.series.iter().enumerate() {
        let of_series: Vec<(f64, f64)> = shown
            .iter()
            .filter(|point| point.series == *name)
            .map(|point| (x_at(point.x), y_at((panel.y)(point))))
            .collect();
        draw_series(body, COLORS[at % COLORS.len()], legend, top + 12.0 + 20.0 * at as f64, &of_series);
    }
}

fn draw_series(body: &mut String, color: &str, legend: &str, legend_y: f64, points: &[(f64, f64)]) {
    let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        body,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        line.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
    }
    let x = LEFT + PLOT_WIDE + 24.0;
    let _ = writeln!(
        body,
        "<circle cx=\"{x:.0}\" cy=\"{:.0}\" r=\"4\" fill=\"{color}\"/><text x=\"{:.0}\" y=\"{legend_y:.0}\">{legend}</text>",
        legend_y - 4.0,
        x + 12.0,
    );
}

fn short(value: f64) -> String {
    if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value}").chars().take(4).collect()
    }
}

fn table(points: &[Point]) -> String {
    let mut text = "| series | GiB, or backups | seconds | peak MiB |\n|---|---|---|---|\n".to_owned();
    for Point { series, x, seconds, peak_mib } in points {
        // Of the many backups, those whose number is round enough to be read.
        if series != "nth-backup" || *x == 1.0 || x % 16.0 == 0.0 {
            let _ = writeln!(text, "| {series} | {x} | {seconds:.2} | {peak_mib:.0} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_grows_with_its_size_is_a_straight_line_on_the_logarithmic_panel() {
        let axis = Axis::of([1.0, 100.0].into_iter(), true);
        let places: Vec<f64> = [1.0, 10.0, 100.0].map(|value| axis.place(value)).to_vec();
        assert_eq!(places, [0.0, 0.5, 1.0]);
    }

    #[test]
    fn every_point_is_drawn_and_a_line_that_is_none_is_an_error() {
        let figures =
            "first\t1\t2.5\t200\nfirst\t10\t25\t200\nunchanged\t10\t4\t84\nnth-backup\t2\t0.6\t90\n";
        let (svg, table) = draw(figures).unwrap();
        // Three points on each panel of sizes and one on the last, beside eleven marks of legends.
        assert_eq!(svg.matches("r=\"3\"").count(), 3 + 3 + 1);
        assert!(table.contains("| first | 10 | 25.00 | 200 |") && !table.contains("nth-backup"), "{table}");
        draw("first\t1\t2.5\n").unwrap_err();
        draw("").unwrap_err();
    }
}
