//! Durations in Go's notation (`time.ParseDuration`): `1h30m`, `300ms`, `-1.5h`.

use std::{fmt, str::FromStr};

use super::BadValue;

/// Nanoseconds, as Docker's API carries them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoDuration(pub(crate) i64);

/// A duration that is not below zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PositiveDuration(pub(crate) GoDuration);

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl FromStr for GoDuration {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let invalid = || BadValue::new(format!("time: invalid duration {text:?}"));
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let end = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(rest.len());
            let (number, after) = rest.split_at(end);
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
                return Err(invalid());
            }
            let end = after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len());
            let (unit, next) = after.split_at(end);
            if unit.is_empty() {
                return Err(BadValue::new(format!(
                    "time: missing unit in duration {text:?}"
                )));
            }
            let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(BadValue::new(format!(
                    "time: unknown unit {unit:?} in duration {text:?}"
                )));
            };
            if whole.len() > 19 {
                return Err(invalid());
            }
            let whole: i128 = if whole.is_empty() {
                0
            } else {
                whole.parse().map_err(|_| invalid())?
            };
            // Digits beyond the eighteenth are far below a nanosecond.
            let digits = &fraction[..fraction.len().min(18)];
            let part: i128 = if digits.is_empty() {
                0
            } else {
                digits.parse().map_err(|_| invalid())?
            };
            let places = u32::try_from(digits.len()).map_err(|_| invalid())?;
            total += whole * i128::from(*scale) + part * i128::from(*scale) / 10_i128.pow(places);
            rest = next;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed).map(Self).map_err(|_| invalid())
    }
}

impl FromStr for PositiveDuration {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let duration: GoDuration = text.parse()?;
        if duration.0 < 0 {
            return Err(BadValue::new("duration cannot be negative"));
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for GoDuration {
    /// Go's `Duration.String`: `2160h0m0s`, `1.5s`, `10ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let decimal = |value: u64, scale: u64| {
            let digits = scale.ilog10() as usize;
            let fraction = format!("{:0digits$}", value % scale);
            let fraction = fraction.trim_end_matches('0');
            if scale == 1 || fraction.is_empty() {
                (value / scale).to_string()
            } else {
                format!("{}.{fraction}", value / scale)
            }
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{sign}{nanos}ns"),
            1_000..1_000_000 => write!(f, "{sign}{}µs", decimal(nanos, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{sign}{}ms", decimal(nanos, 1_000_000)),
            _ => {
                let minutes = nanos / 60_000_000_000;
                let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{sign}{seconds}s"),
                    (0, minutes) => write!(f, "{sign}{minutes}m{seconds}s"),
                    (hours, minutes) => write!(f, "{sign}{hours}h{minutes}m{seconds}s"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_in_go() {
        let cases = [
            ("0", 0, "0s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("300ms", 300_000_000, "300ms"),
            ("-2s", -2_000_000_000, "-2s"),
            ("2160h", 7_776_000_000_000_000, "2160h0m0s"),
            (".5m", 30_000_000_000, "30s"),
            ("15us", 15_000, "15µs"),
            ("7ns", 7, "7ns"),
        ];
        for (text, nanos, shown) in cases {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.0, nanos, "{text}");
            assert_eq!(parsed.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn bad_durations_say_what_go_says() {
        let cases = [
            ("x", "time: invalid duration \"x\""),
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5y", "time: unknown unit \"y\" in duration \"5y\""),
            ("99999999h", "time: invalid duration \"99999999h\""),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<GoDuration>().unwrap_err().to_string(), message);
        }
        assert_eq!(
            "-1s".parse::<PositiveDuration>().unwrap_err().to_string(),
            "duration cannot be negative"
        );
    }
}
