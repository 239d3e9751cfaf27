//! Figures: samples, their spread, their peer and what was promised.

use crate::chart::Chart;
use crate::machine::Machine;
use serde::Serialize;
use std::fmt::Write as _;

/// Samples of one thing, all of one unit.
#[derive(Clone, Debug, Serialize)]
pub struct Samples {
    /// Unit of every value.
    pub unit: &'static str,
    /// In the order taken.
    pub values: Vec<f64>,
}

impl Samples {
    /// Samples in `unit`.
    pub fn new(unit: &'static str, mut values: Vec<f64>) -> Self {
        // No clock here is better than a nanosecond; more digits would only be noise in the file.
        values.iter_mut().for_each(|value| *value = (*value * 1000.0).round() / 1000.0);
        Samples { unit, values }
    }

    /// Nanoseconds, kept as microseconds.
    pub fn from_ns(ns: &[u64]) -> Self {
        Samples::new("us", ns.iter().map(|ns| *ns as f64 / 1000.0).collect())
    }

    /// The middle value, or NaN when there is none.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The least value, or NaN.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// The greatest value, or NaN.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// What was promised of a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The median is at most this.
    Most(f64),
    /// The median over the peer's is at most this.
    RatioMost(f64),
    /// The median over the peer's is at least this.
    RatioLeast(f64),
}

/// One measured thing beside its peer.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Least, middle and greatest sample.
    pub min: f64,
    /// The middle sample.
    pub median: f64,
    /// The greatest sample.
    pub max: f64,
    /// All of them.
    pub samples: Samples,
    /// What it is compared with.
    pub peer: Option<String>,
    /// Median over the peer's median.
    pub ratio: Option<f64>,
    /// What was promised.
    pub target: Option<Target>,
    /// Whether the promise was kept in this run.
    pub met: Option<bool>,
    /// What the paper says (Wei et al., OSDI'23), on its machines; in the unit of the samples. Not of
    /// this run.
    pub paper: Option<f64>,
}

impl Figure {
    /// A figure without a peer.
    pub fn new(name: impl Into<String>, samples: Samples) -> Self {
        let (min, median, max) = (samples.min(), samples.median(), samples.max());
        let name = name.into();
        Figure {
            name,
            min,
            median,
            max,
            samples,
            peer: None,
            ratio: None,
            target: None,
            met: None,
            paper: None,
        }
    }

    /// Compared with `value`, the median of `peer`.
    pub fn beside(mut self, peer: &str, value: f64) -> Self {
        self.peer = Some(peer.to_owned());
        self.ratio = Some(self.median / value);
        self.judge()
    }

    /// With what the paper published of it.
    pub fn in_paper(mut self, value: f64) -> Self {
        self.paper = Some(value);
        self
    }

    /// With a promise.
    pub fn promised(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.judge()
    }

    fn judge(mut self) -> Self {
        self.met = match (self.target, self.ratio) {
            (Some(Target::Most(limit)), _) => Some(self.median <= limit),
            (Some(Target::RatioMost(limit)), Some(ratio)) => Some(ratio <= limit),
            (Some(Target::RatioLeast(limit)), Some(ratio)) => Some(ratio >= limit),
            _ => None,
        };
        self
    }
}

/// The figures of one benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// Name of the benchmark.
    pub name: String,
    /// In the order measured.
    pub figures: Vec<Figure>,
    /// Facts that are no samples, for people.
    pub notes: Vec<String>,
    /// Plots besides the one of all samples.
    #[serde(skip)]
    pub charts: Vec<Chart>,
}

impl Section {
    /// An empty section.
    pub fn new(name: &str) -> Self {
        Section {
            name: name.to_owned(),
            figures: Vec::new(),
            notes: Vec::new(),
            charts: Vec::new(),
        }
    }

    /// Adds a figure and returns its median.
    pub fn add(&mut self, figure: Figure) -> f64 {
        let median = figure.median;
        self.figures.push(figure);
        median
    }
}

/// All that one run of `mitosis bench` found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// Whether it ran with fewer runs than one may quote.
    pub quick: bool,
    /// One for each benchmark asked for.
    pub sections: Vec<Section>,
}

impl Report {
    /// JSON, one figure in a line, so that runs can be compared by `diff` and read by `grep`.
    ///
    /// # Errors
    /// Only if a value has no form in JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        let machine = serde_json::to_string(&self.machine)?;
        let mut text =
            format!("{{\"machine\":{machine},\n\"quick\":{},\n\"sections\":[", self.quick);
        for (index, section) in self.sections.iter().enumerate() {
            let (name, notes) = (&section.name, &section.notes);
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            let _ = write!(text, "{{\"name\":{},", serde_json::to_string(name)?);
            let _ = writeln!(text, "\"notes\":{},\"figures\":[", serde_json::to_string(notes)?);
            let figures: Result<Vec<String>, _> =
                section.figures.iter().map(serde_json::to_string).collect();
            text.push_str(&figures?.join(",\n"));
            text.push_str("]}");
        }
        text.push_str("]}");
        Ok(text)
    }

    /// Tables for people.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        for section in &self.sections {
            text.push_str(&section.table());
        }
        text
    }
}

impl Section {
    /// The table of this benchmark.
    pub fn table(&self) -> String {
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        let mut text = format!("\n{}\n", self.name);
        let (min, median, max) = ("min", "median", "max");
        let _ = writeln!(
            text,
            "{:width$} {min:>10} {median:>10} {max:>10} unit   n  ratio, peer, promise",
            ""
        );
        for figure in &self.figures {
            let _ = writeln!(
                text,
                "{:width$} {:>10} {:>10} {:>10} {:4} {:>3}  {}",
                figure.name,
                short(figure.min),
                short(figure.median),
                short(figure.max),
                figure.samples.unit,
                figure.samples.values.len(),
                figure.verdict(),
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }
}

impl Figure {
    fn verdict(&self) -> String {
        let mut text = String::new();
        if let Some(paper) = self.paper {
            let _ = write!(text, "(paper: {}) ", short(paper));
        }
        if let (Some(ratio), Some(peer)) = (self.ratio, &self.peer) {
            let _ = write!(text, "{} x {peer}", short(ratio));
        }
        let promise = match self.target {
            Some(Target::Most(limit)) => format!("at most {limit} {}", self.samples.unit),
            Some(Target::RatioMost(limit)) => format!("at most {limit} x"),
            Some(Target::RatioLeast(limit)) => format!("at least {limit} x"),
            None => return text,
        };
        let met = match self.met {
            Some(true) => "kept",
            Some(false) => "MISSED",
            None => "not judged",
        };
        let gap = if text.is_empty() { "" } else { "; " };
        format!("{text}{gap}{promise}: {met}")
    }
}

/// Three or four significant digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new("us", values.to_vec())
    }

    #[test]
    fn medians() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(samples(&[]).median().is_nan());
        assert_eq!((samples(&[2.0, 1.0]).min(), samples(&[2.0, 1.0]).max()), (1.0, 2.0));
    }

    #[test]
    fn the_json_is_json() {
        let mut section = Section::new("a \"b\"");
        section.add(Figure::new("x", samples(&[1.0])).promised(Target::Most(2.0)));
        section.add(Figure::new("none", samples(&[])));
        let machine = Machine::this();
        let sections = vec![section.clone(), section];
        let text = Report { machine, quick: true, sections }.json().expect("json");
        let value: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(value["sections"][1]["figures"][0]["met"], true);
        assert_eq!(value["sections"][0]["figures"][1]["median"], serde_json::Value::Null);
    }

    #[test]
    fn promises_are_judged_by_the_median() {
        let figure = |v| Figure::new("x", samples(&[v]));
        assert_eq!(figure(2.0).promised(Target::Most(2.0)).met, Some(true));
        let half = figure(2.0).beside("peer", 4.0);
        assert_eq!(half.clone().promised(Target::RatioLeast(0.6)).met, Some(false));
        assert_eq!(half.promised(Target::RatioMost(0.5)).met, Some(true));
        assert_eq!(figure(2.0).promised(Target::RatioMost(1.5)).met, None);
        assert_eq!(figure(f64::NAN).promised(Target::Most(2.0)).met, Some(false));
    }
}
