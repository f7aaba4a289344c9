//! Stop signals as images and services name them (moby `signal.ParseSignal`).

use nix::sys::signal::Signal;

/// The number of a signal written as `SIGTERM`, `term`, `15` or `RTMIN+3`; `None` when there is no
/// such signal.
pub(crate) fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The C library keeps the first two real-time signals for itself: signal(7).
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return offset_of(offset, '+').map(|n| 34 + n).filter(|n| *n <= 64);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return offset_of(offset, '-').map(|n| 64 - n).filter(|n| *n >= 34);
    }
    format!("SIG{name}")
        .parse::<Signal>()
        .ok()
        .map(|signal| signal as i32)
}

fn offset_of(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        Some(0)
    } else {
        text.strip_prefix(sign)?.parse().ok().filter(|n| *n >= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_found_by_name_and_number() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("0", None),
            ("65", None),
            ("RTMIN+99", None),
            ("SIGNOPE", None),
            ("", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
