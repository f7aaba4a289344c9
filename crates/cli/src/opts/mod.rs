//! Parsers of flag values: each takes the words of one flag and gives the checked value, or Docker's message for it.
//! They know nothing of commands and touch nothing outside the text (but for env files and a relative mount source).

pub(crate) mod csv;
pub(crate) mod duration;
pub(crate) mod file_reference;
pub(crate) mod filter;
pub(crate) mod generic;
pub(crate) mod list;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod port;
pub(crate) mod reference;
pub(crate) mod shell_words;
pub(crate) mod size;
pub(crate) mod ulimit;

pub(crate) use duration::{GoDuration, PositiveDuration};
pub(crate) use file_reference::FileReference;
pub(crate) use filter::{Filter, Filters};
pub(crate) use mount::Mount;
pub(crate) use network::NetworkAttachment;
pub(crate) use port::Ports;
pub(crate) use shell_words::ShellWords;
pub(crate) use size::{Bytes, NanoCpus};
pub(crate) use ulimit::Ulimit;

/// A flag's value that cannot be used, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadValue(String);

impl BadValue {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Unsigned number in Go's notation with base prefixes (`strconv.ParseUint(s, 0, 64)`).
pub(crate) fn uint(text: &str) -> Result<u64, BadValue> {
    let error = |why| BadValue(format!("strconv.ParseUint: parsing {text:?}: {why}"));
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (lower.as_str(), 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(error("invalid syntax"));
    }
    u64::from_str_radix(digits, radix).map_err(|_| error("value out of range"))
}

/// Signed number in Go's notation (`strconv.ParseInt(s, 0, 64)`).
pub(crate) fn int(text: &str) -> Result<i64, BadValue> {
    let error = |why| BadValue(format!("strconv.ParseInt: parsing {text:?}: {why}"));
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.starts_with(['+', '-']) {
        return Err(error("invalid syntax"));
    }
    let magnitude = uint(rest).map_err(|BadValue(message)| {
        error(if message.ends_with("range") {
            "value out of range"
        } else {
            "invalid syntax"
        })
    })?;
    let value = i128::from(magnitude) * if negative { -1 } else { 1 };
    i64::try_from(value).map_err(|_| error("value out of range"))
}

/// A ratio kept as the shortest text of a 32 bit float, as Docker stores it.
pub(crate) fn float32(text: &str) -> Result<f32, BadValue> {
    text.parse().map_err(|_| {
        BadValue(format!(
            "strconv.ParseFloat: parsing {text:?}: invalid syntax"
        ))
    })
}

/// A boolean in Go's notation (`strconv.ParseBool`).
pub(crate) fn boolean(text: &str) -> Result<bool, BadValue> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(BadValue(format!(
            "strconv.ParseBool: parsing {text:?}: invalid syntax"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_go_prefixes() {
        assert_eq!(uint("0x10"), Ok(16));
        assert_eq!(uint("010"), Ok(8));
        assert_eq!(uint("0"), Ok(0));
        assert_eq!(int("-5"), Ok(-5));
        assert_eq!(
            uint("-1").unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"-1\": invalid syntax"
        );
        assert_eq!(
            uint("99999999999999999999").unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"99999999999999999999\": value out of range"
        );
        assert!(int("--5").is_err());
        assert_eq!(int("-9223372036854775808"), Ok(i64::MIN));
    }
}
