//! Samples of one case, and what the table says of them.

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
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::Seconds => "s",
            Self::PerSecond => "/s",
            Self::Mebibytes => "MiB",
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

/// Median, minimum and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
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
            n,
        })
    }
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

    fn series(unit: Unit, samples: &[f64]) -> Summary {
        let series = Series {
            case: "x".to_owned(),
            unit,
            samples: samples.to_vec(),
        };
        series.summary().expect("samples")
    }

    #[test]
    fn median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        let odd = series(Unit::Millis, &[9.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max, odd.n), (2.0, 1.0, 9.0, 3));
        assert_eq!(series(Unit::Millis, &[4.0, 1.0, 2.0, 9.0]).median, 3.0);
        assert_eq!(series(Unit::Millis, &[7.0]).median, 7.0);
        assert_eq!(Series::new("x", Unit::Millis).summary(), None);
    }

    #[test]
    fn ratio_above_one_is_better_for_times_and_for_rates() {
        let (small, large) = (series(Unit::Millis, &[2.0]), series(Unit::Millis, &[8.0]));
        assert_eq!(ratio(Unit::Millis, small, large), 4.0);
        assert_eq!(ratio(Unit::Mebibytes, large, small), 0.25);
        assert_eq!(ratio(Unit::PerSecond, large, small), 4.0);
    }
}
