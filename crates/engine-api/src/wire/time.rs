//! Points in time as Go writes them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use shoal_types::Timestamp;

/// How Go writes a `time.Time` that was never set.
const ZERO: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 with up to nine digits of fraction; `None` is Go's zero time, the year 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Option<Timestamp>);

/// The text is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time: expected RFC 3339, like 2026-01-31T12:00:00.5Z")]
pub struct ParseTimeError {
    text: String,
}

impl From<Timestamp> for Time {
    /// The epoch stands for "never" in stored objects.
    fn from(at: Timestamp) -> Self {
        Self(Some(at).filter(|at| *at != Timestamp::EPOCH))
    }
}

impl std::str::FromStr for Time {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        if text == ZERO || text.is_empty() {
            return Ok(Self(None));
        }
        let at: jiff::Timestamp = text.parse().map_err(|_| ParseTimeError {
            text: text.to_owned(),
        })?;
        let nanos = i64::try_from(at.as_nanosecond()).map_err(|_| ParseTimeError {
            text: text.to_owned(),
        })?;
        Ok(Self(Some(Timestamp(nanos))))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.pad(ZERO),
            Some(at) => {
                let at = jiff::Timestamp::from_nanosecond(i128::from(at.0))
                    .expect("every i64 of nanoseconds lies in jiff's range");
                fmt::Display::fmt(&at, f)
            }
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_go_writes_them() {
        let t: Time = "2026-01-31T12:00:00.123456789Z".parse().unwrap();
        assert_eq!(t.to_string(), "2026-01-31T12:00:00.123456789Z");
        let offset: Time = "2026-01-31T14:00:00.5+02:00".parse().unwrap();
        assert_eq!(offset.to_string(), "2026-01-31T12:00:00.5Z");
        assert_eq!(ZERO.parse::<Time>().unwrap(), Time(None));
        assert_eq!(Time(None).to_string(), ZERO);
        assert!("yesterday".parse::<Time>().is_err());
    }
}
