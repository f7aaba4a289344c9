//! The table and the JSON.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    machine::Machine,
    stats::{Series, Summary, Unit, ratio},
};

/// The number of samples from which on a 99th percentile is shown.
const WITH_P99: usize = 20;

/// One case on both sides.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    case: String,
    unit: Unit,
    peer_name: String,
    ours: Option<Summary>,
    peer: Option<Summary>,
    /// Above 1: ours is better.
    ratio: Option<f64>,
    ours_samples: Vec<f64>,
    peer_samples: Vec<f64>,
}

/// Everything one run found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) peers: Vec<String>,
    rows: Vec<Row>,
    /// What could not be measured, and why.
    notes: Vec<String>,
    /// What other programs printed, below the table as it is.
    pub(crate) appendix: Vec<String>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            peers: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
            appendix: Vec::new(),
        }
    }

    /// Says at once, and again below the table, why something is missing from it.
    pub(crate) fn note(&mut self, note: String) {
        eprintln!("bench: {note}");
        self.notes.push(note);
    }

    /// Whether everything that was wanted was measured.
    pub(crate) fn is_complete(&self) -> bool {
        self.notes.is_empty()
    }

    /// Puts the cases of both sides beside each other, in the peer's order, then those that only ours has.
    pub(crate) fn compare(&mut self, peer_name: &str, ours: &[Series], peer: &[Series]) {
        let only_ours = ours
            .iter()
            .filter(|series| !peer.iter().any(|other| other.case == series.case));
        for series in peer.iter().chain(only_ours) {
            let find =
                |side: &[Series]| side.iter().find(|other| other.case == series.case).cloned();
            let (ours, peer) = (find(ours), find(peer));
            let ours_summary = ours.as_ref().and_then(Series::summary);
            let peer_summary = peer.as_ref().and_then(Series::summary);
            self.rows.push(Row {
                case: series.case.clone(),
                unit: series.unit,
                peer_name: peer_name.to_owned(),
                ours: ours_summary,
                peer: peer_summary,
                ratio: ours_summary
                    .zip(peer_summary)
                    .map(|(ours, peer)| ratio(series.unit, ours, peer))
                    // Nothing is no multiple of nothing.
                    .filter(|ratio| ratio.is_finite()),
                ours_samples: ours.map(|series| series.samples).unwrap_or_default(),
                peer_samples: peer.map(|series| series.samples).unwrap_or_default(),
            });
        }
    }

    /// Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}\n\nPeers: {}.\n\n", self.machine, self.peers.join(", "));
        text.push_str("| case | ours median (min–max) | peer median (min–max) | ratio | n |\n");
        text.push_str("|---|---|---|---|---|\n");
        for row in &self.rows {
            let n = match (row.ours, row.peer) {
                (Some(ours), Some(peer)) if ours.n != peer.n => format!("{}/{}", ours.n, peer.n),
                (Some(side), _) | (_, Some(side)) => side.n.to_string(),
                (None, None) => "0".to_owned(),
            };
            let ratio = row
                .ratio
                .map_or_else(|| "—".to_owned(), |ratio| format!("{}×", digits(ratio)));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} {} | {ratio} | {n} |",
                row.case,
                cell(row.ours, row.unit),
                row.peer_name,
                cell(row.peer, row.unit),
            );
        }
        text.push_str(
            "\nThe ratio is that of the medians, above 1 where ours takes less or does more a second.\n",
        );
        for note in &self.notes {
            let _ = writeln!(text, "\nNot measured: {note}");
        }
        for text_of_other in &self.appendix {
            let _ = writeln!(text, "\n{text_of_other}");
        }
        text
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encode the report")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

fn cell(summary: Option<Summary>, unit: Unit) -> String {
    let Some(summary) = summary else {
        return "—".to_owned();
    };
    let p99 = if summary.n >= WITH_P99 {
        format!("; p99 {}", digits(summary.p99))
    } else {
        String::new()
    };
    format!(
        "**{} {}** ({}–{}{p99})",
        digits(summary.median),
        unit.name(),
        digits(summary.min),
        digits(summary.max)
    )
}

/// Three significant digits, and no fraction from 100 on.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(case: &str, unit: Unit, samples: &[f64]) -> Series {
        let mut series = Series::new(case, unit);
        series.samples.extend_from_slice(samples);
        series
    }

    fn lines(report: &Report) -> Vec<String> {
        let table = report.table();
        let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
        rows.map(str::to_owned).collect()
    }

    #[test]
    fn sides_are_joined_by_case() {
        let mut report = Report::new(Machine::read());
        report.compare(
            "crun",
            &[
                series("start", Unit::Millis, &[3.0, 2.0, 4.0]),
                series("extra", Unit::Seconds, &[1.0]),
            ],
            &[series("start", Unit::Millis, &[30.0, 33.0])],
        );
        assert_eq!(
            lines(&report),
            [
                "| start | **3.00 ms** (2.00–4.00) | crun **31.5 ms** (30.0–33.0) | 10.5× | 3/2 |",
                "| extra | **1.00 s** (1.00–1.00) | crun — | — | 1 |",
            ]
        );
    }

    #[test]
    fn side_without_samples_gets_no_ratio() {
        let mut report = Report::new(Machine::read());
        let peer = [series("rate", Unit::PerSecond, &[777.0])];
        report.compare("dockerd", &[], &peer);
        assert_eq!(
            lines(&report),
            ["| rate | — | dockerd **777 /s** (777–777) | — | 1 |"]
        );
    }
}
