//! The node's clock, and points in time as an operator reads them.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use shoal_types::Timestamp;

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::EPOCH.after(since)
}

/// To the second, UTC: `2026-03-01T12:00:00Z`.
#[derive(Debug, Clone, Copy)]
pub struct Utc(pub Timestamp);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.0.div_euclid(1_000_000_000);
        jiff::Timestamp::from_second(seconds)
            .expect("i64 nanoseconds reach from 1677 to 2262, which jiff covers")
            .fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timestamp_can_be_shown() {
        assert_eq!(
            Utc(Timestamp::from_unix(1_772_366_400, 9)).to_string(),
            "2026-03-01T12:00:00Z"
        );
        let _ = Utc(Timestamp(i64::MIN)).to_string();
        let _ = Utc(Timestamp(i64::MAX)).to_string();
    }
}
