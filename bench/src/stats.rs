//! Samples of one case, and what the table says of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a sample counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Millis,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "/s")]
    PerSecond,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "µs")]
    Micros,
    #[serde(rename = "tasks")]
    Tasks,
    #[serde(rename = "nodes")]
    Nodes,
    /// Of one processor.
    #[serde(rename = "%")]
    Percent,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::Seconds => "s",
            Self::PerSecond => "/s",
            Self::Mebibytes => "MiB",
            Self::Micros => "µs",
            Self::Tasks => "tasks",
            Self::Nodes => "nodes",
            Self::Percent => "%",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }
}

/// All samples of one case on one side, in the order they were taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) case: String,
    pub(crate) unit: Unit,
    pub(crate) samples: Vec<f64>,
}

/// Median, minimum, maximum and 99th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// The least sample that 99 of 100 are not above (nearest rank): below 100 samples, the maximum.
    pub(crate) p99: f64,
    pub(crate) n: usize,
}

impl Series {
    pub(crate) fn new(case: impl Into<String>, unit: Unit) -> Self {
        Self {
            case: case.into(),
            unit,
            samples: Vec::new(),
        }
    }

    /// `None` without samples.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        Some(Summary {
            median: f64::midpoint(*sorted.get(n.checked_sub(1)? / 2)?, sorted[n / 2]),
            min: sorted[0],
            max: sorted[n - 1],
            p99: sorted[(n * 99).div_ceil(100) - 1],
            n,
        })
    }
}

/// `count` things in `took`.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// How many times better `ours` is than `peer`: above 1 when it takes less, or does more a second.
pub(crate) fn ratio(unit: Unit, ours: Summary, peer: Summary) -> f64 {
    if unit.more_is_better() {
        ours.median / peer.median
    } else {
        peer.median / ours.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(samples: &[f64]) -> Summary {
        let mut series = Series::new("x", Unit::Millis);
        series.samples.extend_from_slice(samples);
        series.summary().expect("samples")
    }

    #[test]
    fn median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        let expected = |median, min, max, n| Summary {
            median,
            min,
            max,
            p99: max,
            n,
        };
        assert_eq!(summary(&[9.0, 1.0, 2.0]), expected(2.0, 1.0, 9.0, 3));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 9.0]), expected(3.0, 1.0, 9.0, 4));
        assert_eq!(summary(&[7.0]), expected(7.0, 7.0, 7.0, 1));
        assert_eq!(Series::new("x", Unit::Millis).summary(), None);
    }

    #[test]
    fn p99_is_what_99_of_100_are_not_above() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(summary(&samples).p99.to_string(), "198");
        assert_eq!(summary(&samples[..20]).p99.to_string(), "20");
    }

    #[test]
    fn ratio_above_one_is_better_for_times_and_for_rates() {
        let (small, large) = (summary(&[2.0]), summary(&[8.0]));
        let ratios = [
            ratio(Unit::Millis, small, large),
            ratio(Unit::Mebibytes, large, small),
            ratio(Unit::PerSecond, large, small),
        ];
        assert_eq!(ratios.map(|ratio| ratio.to_string()), ["4", "0.25", "4"]);
    }
}
