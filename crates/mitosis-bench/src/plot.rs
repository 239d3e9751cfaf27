//! A plot of one section: each figure's samples as dots on a logarithmic line, as SVG.

use crate::report::{Section, short};
use libm::log10;
use std::fmt::Write as _;

const LABEL_WIDTH: f64 = 420.0;
const PLOT_WIDTH: f64 = 560.0;
const ROW_HEIGHT: f64 = 26.0;
const TOP: f64 = 46.0;

/// The beginning of a plot: its size, a white ground and its title.
pub(crate) fn begin(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"14\">{}</text>\n",
        escape(title)
    )
}

/// The SVG text; figures of different units get lines of their own unit, on one axis of decades.
pub fn svg(section: &Section) -> String {
    let values = section.figures.iter().flat_map(|figure| &figure.samples.values);
    let positive: Vec<f64> = values.copied().filter(|value| *value > 0.0).collect();
    let low = positive.iter().copied().fold(f64::INFINITY, f64::min);
    let low = log10(low).floor();
    let high = positive.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let high = log10(high).ceil();
    let (low, high) = if low.is_finite() { (low, high.max(low + 1.0)) } else { (0.0, 1.0) };
    let x = |value: f64| LABEL_WIDTH + (log10(value) - low) / (high - low) * PLOT_WIDTH;
    let height = TOP + ROW_HEIGHT * (section.figures.len() as f64 + 0.5);
    let width = LABEL_WIDTH + PLOT_WIDTH + 90.0;
    let mut svg = begin(width, height, &section.name);
    let mut decade = low;
    while decade <= high {
        let at = x(10_f64.powi(decade as i32));
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{height}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"38\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            10_f64.powi(decade as i32)
        );
        decade += 1.0;
    }
    for (row, figure) in section.figures.iter().enumerate() {
        let y = TOP + ROW_HEIGHT * (row as f64 + 0.6);
        let unit = figure.samples.unit;
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{:.1}\">{} [{unit}]</text>",
            y + 4.0,
            escape(&figure.name)
        );
        for value in figure.samples.values.iter().filter(|value| **value > 0.0) {
            let at = x(*value);
            let _ = writeln!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#27c\" fill-opacity=\"0.25\"/>"
            );
        }
        if figure.median > 0.0 {
            let at = x(figure.median);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#c22\" \
                 stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"#c22\">{}</text>",
                y - 8.0,
                y + 8.0,
                LABEL_WIDTH + PLOT_WIDTH + 10.0,
                y + 4.0,
                short(figure.median)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Figure, Samples};

    #[test]
    fn odd_values_make_no_odd_plot() {
        let mut section = Section::new("a < b");
        section.add(Figure::new("zero & one", Samples::new("us", vec![0.0, 1.0, 10.0])));
        section.add(Figure::new("nothing", Samples::new("us", Vec::new())));
        let text = svg(&section);
        assert!(text.contains("a &lt; b") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
        assert!(svg(&Section::new("empty")).ends_with("</svg>\n"));
    }
}
