//! Lines over one axis: distributions, and figures that depend on a size or on time, as SVG.

use crate::plot::{self, escape};
use crate::report::{Samples, short};
use libm::log10;
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 46.0;

const COLOURS: [&str; 10] =
    ["#27c", "#c22", "#2a2", "#c80", "#82c", "#088", "#c4a", "#555", "#960", "#6a8"];

/// One plot.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Name of the file, behind the section's name.
    pub file: &'static str,
    /// Headline.
    pub title: String,
    /// What the axes say.
    pub axes: [&'static str; 2],
    /// Which axes are of decades.
    pub log: [bool; 2],
    /// Lines: a name and points.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

impl Chart {
    /// The distributions of samples of one unit.
    pub fn cdf(file: &'static str, title: &str, axis: &'static str) -> Self {
        let axes = [axis, "part of the samples at most so large"];
        Chart { file, title: title.to_owned(), axes, log: [true, false], lines: Vec::new() }
    }

    /// Adds the distribution of `samples`.
    pub fn distribution(&mut self, name: &str, samples: &Samples) {
        let mut values = samples.values.clone();
        values.sort_by(f64::total_cmp);
        let all = values.len() as f64;
        let part = |(index, value): (usize, f64)| {
            [(value, index as f64 / all), (value, (index + 1) as f64 / all)]
        };
        self.lines.push((name.to_owned(), values.into_iter().enumerate().flat_map(part).collect()));
    }

    /// The SVG text.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let x = Axis::new(points().map(|point| point.0), self.log[0]);
        let y = Axis::new(points().map(|point| point.1), self.log[1]);
        let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let at = |point: &(f64, f64)| {
            (LEFT + x.part(point.0) * wide, HEIGHT - BOTTOM - y.part(point.1) * high)
        };
        let mut svg = plot::begin(WIDTH, HEIGHT, &self.title);
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in x.ticks() {
            let (at, text) = (LEFT + x.part(tick) * wide, label(tick));
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{text}</text>",
                bottom + 16.0
            );
        }
        for tick in y.ticks() {
            let (at, text) = (bottom - y.part(tick) * high, label(tick));
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{text}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            LEFT + wide / 2.0,
            HEIGHT - 10.0,
            escape(self.axes[0]),
            TOP + high / 2.0,
            escape(self.axes[1])
        );
        for (index, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let drawn = points.iter().filter(|point| x.has(point.0) && y.has(point.1)).map(at);
            let drawn: Vec<String> = drawn.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let row = TOP + 16.0 * (index as f64 + 0.5);
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
                 <text x=\"{}\" y=\"{row}\" fill=\"{colour}\" font-size=\"11\">{}</text>",
                drawn.join(" "),
                right + 8.0,
                escape(name)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// One axis; values outside of it are not drawn.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let values = values.filter(|value| value.is_finite() && (!log || *value > 0.0));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if !low.is_finite() {
            return Axis { low: 0.0, high: 1.0, log: false };
        }
        let (low, high) =
            if log { (log10(low).floor(), log10(high).ceil()) } else { (low.min(0.0), high) };
        Axis { low, high: if high > low { high } else { low + 1.0 }, log }
    }

    fn has(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    fn part(&self, value: f64) -> f64 {
        let value = if self.log { log10(value) } else { value };
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = (self.high - self.low) as usize;
            return (0..=decades).map(|step| 10_f64.powi(self.low as i32 + step as i32)).collect();
        }
        (0..=4).map(|step| self.low + (self.high - self.low) * f64::from(step) / 4.0).collect()
    }
}

fn label(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { short(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_values_make_no_odd_plot() {
        let mut chart = Chart::cdf("x", "a < b", "us");
        assert!(chart.svg().ends_with("</svg>\n"));
        chart.distribution("one", &Samples::new("us", vec![0.0, 1.0, 10.0]));
        chart.distribution("none", &Samples::new("us", vec![]));
        let text = chart.svg();
        assert!(text.contains("a &lt; b") && !text.contains("NaN") && !text.contains("inf"));
    }
}
