//! Amounts: memory (`64m`, go-units `RAMInBytes`) and processors (`0.5`).

use std::str::FromStr;

use super::BadValue;

/// Bytes; binary multiples whatever the spelling (`64m`, `64MB` and `64MiB` are the same).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) i64);

/// Billionths of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NanoCpus(pub(crate) i64);

impl FromStr for Bytes {
    type Err = BadValue;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a size is a float times a power of two, truncated, as in go-units"
    )]
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let invalid = || BadValue::new(format!("invalid size: '{text}'"));
        let end = text
            .rfind(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(0, |at| at + 1);
        let (number, suffix) = text.split_at(end);
        if number.is_empty()
            || !number.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            || number.contains(|c: char| !c.is_ascii_digit() && c != '.')
        {
            return match text {
                "-1" => Ok(Self(-1)),
                _ => Err(invalid()),
            };
        }
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let suffix = suffix
            .strip_prefix(' ')
            .unwrap_or(suffix)
            .to_ascii_lowercase();
        let shift = match suffix.as_str() {
            "" | "b" => 0,
            _ => {
                let (unit, rest) = suffix.split_at(1);
                if !matches!(rest, "" | "b" | "ib") {
                    return Err(BadValue::new(format!("invalid suffix: '{suffix}'")));
                }
                match unit {
                    "k" => 10,
                    "m" => 20,
                    "g" => 30,
                    "t" => 40,
                    "p" => 50,
                    _ => return Err(BadValue::new(format!("invalid suffix: '{suffix}'"))),
                }
            }
        };
        Ok(Self((number * (1_u64 << shift) as f64) as i64))
    }
}

impl FromStr for NanoCpus {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let invalid = || BadValue::new(format!("failed to parse {text} as a rational number"));
        let number = |text: &str| -> Option<(i128, u32)> {
            let (negative, digits) = match text.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, text.strip_prefix('+').unwrap_or(text)),
            };
            let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
            let all = format!("{whole}{fraction}");
            if all.is_empty() || all.len() > 24 || !all.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let value: i128 = all.parse().ok()?;
            let places = u32::try_from(fraction.len()).ok()?;
            Some((if negative { -value } else { value }, places))
        };
        let (numerator, denominator) = if let Some((above, below)) = text.split_once('/') {
            let (above, 0) = number(above).ok_or_else(invalid)? else {
                return Err(invalid());
            };
            let (below, 0) = number(below).ok_or_else(invalid)? else {
                return Err(invalid());
            };
            (above, below)
        } else {
            let (value, places) = number(text).ok_or_else(invalid)?;
            (value, 10_i128.pow(places))
        };
        if denominator == 0 {
            return Err(invalid());
        }
        let nano = numerator * 1_000_000_000;
        if nano % denominator != 0 {
            return Err(BadValue::new("value is too precise"));
        }
        i64::try_from(nano / denominator)
            .map(Self)
            .map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        let cases = [
            ("0", 0),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("512", 512),
            ("10b", 10),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        let error = |text: &str| text.parse::<Bytes>().unwrap_err().to_string();
        assert_eq!(error("x"), "invalid size: 'x'");
        assert_eq!(error("1y"), "invalid suffix: 'y'");
        assert_eq!(error(""), "invalid size: ''");
    }

    #[test]
    fn processors_are_exact() {
        assert_eq!("0.5".parse(), Ok(NanoCpus(500_000_000)));
        assert_eq!("1/4".parse(), Ok(NanoCpus(250_000_000)));
        assert_eq!("2".parse(), Ok(NanoCpus(2_000_000_000)));
        assert_eq!(
            "x".parse::<NanoCpus>().unwrap_err().to_string(),
            "failed to parse x as a rational number"
        );
        assert_eq!(
            "0.0000000001".parse::<NanoCpus>().unwrap_err().to_string(),
            "value is too precise"
        );
        assert!("1/0".parse::<NanoCpus>().is_err());
    }
}
