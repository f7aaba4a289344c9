//! What openraft needs of the crate `base2histogram`, written anew: the same names, and buckets of the
//! same bounds, computed where the original looks them up in tables of 26 MB for sixteen resolutions, of
//! which openraft uses one.
//!
//! The 252 buckets are four for each power of two, so that a value is at most an eighth off the middle
//! of its bucket.

use std::{fmt, marker::PhantomData};

/// Buckets from one power of two to the next. Values below it have a bucket each.
const PER_GROUP: u64 = 4;
const WIDTH: u32 = PER_GROUP.ilog2();

/// Counts values by their size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// Up to the largest bucket that ever had a value.
    counts: Vec<u64>,
    total: u64,
    data: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self {
            counts: Vec::new(),
            total: 0,
            data: PhantomData,
        }
    }
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// As if `value` were recorded `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = bucket_of(value);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
        self.total = self.total.saturating_add(count);
    }

    /// How many values were recorded.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The value that `permille` thousandths of all are not above, as if those of a bucket lay evenly in
    /// it; 0 when there are none.
    fn permille(&self, permille: u64) -> u64 {
        let rank = u128::from(self.total) * u128::from(permille);
        let rank = rank.div_ceil(1000).max(1);
        let mut before = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            let up_to_here = before + u128::from(*count);
            if *count > 0 && up_to_here >= rank {
                let (first, width) = bounds(bucket);
                let place =
                    u128::from(width) * (2 * (rank - before) - 1) / (2 * u128::from(*count));
                return first + u64::try_from(place).expect("less than the width");
            }
            before = up_to_here;
        }
        0
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.permille(1),
            p1: self.permille(10),
            p5: self.permille(50),
            p10: self.permille(100),
            p50: self.permille(500),
            p90: self.permille(900),
            p99: self.permille(990),
            p99_9: self.permille(999),
        }
    }
}

/// How many values there are, and which of them so many percent are not above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[samples: {}", self.samples)?;
        for (name, value) in [
            ("P0.1", self.p0_1),
            ("P1", self.p1),
            ("P5", self.p5),
            ("P10", self.p10),
            ("P50", self.p50),
            ("P90", self.p90),
            ("P99", self.p99),
            ("P99.9", self.p99_9),
        ] {
            write!(f, ", {name}: {value}")?;
        }
        f.write_str("]")
    }
}

/// Histograms, to be drawn below each other.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    /// A line for each bucket that is not empty, with a bar in proportion to the fullest of its histogram.
    pub fn detailed(&self) -> impl fmt::Display + '_ {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: u128 = 40;
        for (name, histogram) in &self.series {
            writeln!(f, "{name}: {}", histogram.total)?;
            let most = u128::from(histogram.counts.iter().copied().max().unwrap_or(0));
            let counts = histogram.counts.iter().enumerate();
            for (bucket, count) in counts.filter(|(_, count)| **count > 0) {
                let length = (u128::from(*count) * LONGEST).div_ceil(most);
                let length = usize::try_from(length).expect("at most the longest");
                let (first, _) = bounds(bucket);
                writeln!(f, "{first:>20} {:#<length$} {count}", "")?;
            }
        }
        Ok(())
    }
}

fn bucket_of(value: u64) -> usize {
    let bucket = if value < PER_GROUP {
        value
    } else {
        let group = u64::from(value.ilog2() - WIDTH);
        (group + 1) * PER_GROUP + ((value >> group) - PER_GROUP)
    };
    usize::try_from(bucket).expect("there are 252 buckets")
}

/// The first value of a bucket, and how many values it has.
fn bounds(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    if bucket < PER_GROUP {
        return (bucket, 1);
    }
    let group = bucket / PER_GROUP - 1;
    ((bucket % PER_GROUP + PER_GROUP) << group, 1 << group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_the_bucket_whose_bounds_hold_it() {
        let around = |power: u32| [-1_i128, 0, 1, 7].map(|by| (1_i128 << power) + by);
        let values = (0..=64).flat_map(around).chain(0..5000);
        for value in values.filter_map(|value| u64::try_from(value).ok()) {
            let (first, width) = bounds(bucket_of(value));
            assert!(first <= value && value - first < width, "{value}");
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, 251));
        for bucket in 0..251 {
            let (first, width) = bounds(bucket);
            assert_eq!(bounds(bucket + 1).0, first + width);
        }
    }

    #[test]
    fn percentiles_are_an_eighth_off_at_most() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        for value in 1..=10_000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 10_000);
        for (found, exact) in [
            (stats.p0_1, 10_u64),
            (stats.p1, 100),
            (stats.p5, 500),
            (stats.p10, 1000),
            (stats.p50, 5000),
            (stats.p90, 9000),
            (stats.p99, 9900),
            (stats.p99_9, 9990),
        ] {
            assert!(found.abs_diff(exact) <= exact / 8, "{found} for {exact}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_counted() {
        let mut histogram = Histogram::<()>::new();
        histogram.record_n(u64::MAX, u64::MAX);
        histogram.record_n(0, 5);
        assert_eq!(histogram.total(), u64::MAX);
        assert_eq!(bucket_of(histogram.percentile_stats().p99_9), 251);
    }

    #[test]
    fn a_chart_has_a_line_for_each_bucket_with_values() {
        let mut histogram = Histogram::new();
        histogram.record_n(3, 2);
        histogram.record(1000);
        let chart = AsciiChart::new()
            .add("latency", histogram)
            .detailed()
            .to_string();
        let lines: Vec<&str> = chart.lines().collect();
        let bar = |length: usize| "#".repeat(length);
        let expected = [
            "latency: 3".to_owned(),
            format!("{:>20} {} 2", 3, bar(40)),
            format!("{:>20} {} 1", 896, bar(20)),
        ];
        assert_eq!(lines, expected);
    }
}
