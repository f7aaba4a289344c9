//! Times and sizes in people's words (go-units), and texts cut to fit.

use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use super::tabs;

/// `Less than a second`, `3 seconds`, `About a minute`, `2 weeks`…; negative counts as none.
pub(crate) fn duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    // Hours are rounded, as in go-units.
    let hours = (seconds + 1800) / 3600;
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// `3 seconds ago`, from an RFC 3339 time or seconds since the epoch.
pub(crate) fn ago(then: &Value, now: Timestamp) -> String {
    match timestamp(then) {
        Some(then) => format!("{} ago", duration(now.as_second() - then.as_second())),
        None => String::new(),
    }
}

/// The point in time that a JSON value names.
pub(crate) fn timestamp(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => text.parse().ok(),
        value => Timestamp::from_second(value.as_i64()?).ok(),
    }
}

/// Go's `Time.String`, in UTC: `2026-01-02 15:04:05.123 +0000 UTC`.
pub(crate) fn go_time(value: &Value, zone: TimeZone) -> String {
    let Some(time) = timestamp(value) else {
        return String::new();
    };
    let zoned = time.to_zoned(zone);
    let fraction = match zoned.subsec_nanosecond() {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    format!(
        "{}{fraction} {}",
        zoned.strftime("%Y-%m-%d %H:%M:%S"),
        zoned.strftime("%z %Z")
    )
}

/// `1.24kB`: decimal, `digits` significant digits.
pub(crate) fn size(bytes: f64, digits: usize) -> String {
    scaled(
        bytes,
        1000.0,
        &["B", "kB", "MB", "GB", "TB", "PB", "EB"],
        digits,
    )
}

/// `1.5GiB`: binary, 4 significant digits.
pub(crate) fn binary_size(bytes: f64) -> String {
    scaled(
        bytes,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
        4,
    )
}

fn scaled(mut size: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while size >= base && unit < units.len() - 1 {
        size /= base;
        unit += 1;
    }
    format!("{}{}", significant(size, digits), units[unit])
}

/// C's `%.{digits}g` for what sizes need: no trailing zeros, an exponent when the number is too long.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let text = format!("{value:.*e}", digits.saturating_sub(1));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    let most = i32::try_from(digits).unwrap_or(i32::MAX);
    if exponent < -4 || exponent >= most {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.abs());
    }
    let places = usize::try_from(most - 1 - exponent).unwrap_or(0);
    trim(&format!("{value:.places$}"))
}

/// The first `width` columns of `text`, the last of them `…` when something was cut.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if tabs::width(text) <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let mut cut: String = text
        .chars()
        .take_while(|&c| {
            used += tabs::char_width(c);
            used < width
        })
        .collect();
    cut.push('…');
    cut
}

/// The short form of an id: 12 characters, without `sha256:`.
pub(crate) fn short_id(id: &str) -> String {
    let id = id.split_once(':').map_or(id, |(_, id)| id);
    id.chars().take(12).collect()
}

/// `Running` of `running`.
pub(crate) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// `a=1,b=2`, sorted.
pub(crate) fn labels(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    pairs.join(",")
}

/// Names in the order of people: `web.2` before `web.10` (fvbommel/sortorder `NaturalLess`).
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, None) => return std::cmp::Ordering::Equal,
            (None, _) => return std::cmp::Ordering::Less,
            (_, None) => return std::cmp::Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let split = |text: &[u8]| {
                    let end = text.iter().position(|b| !b.is_ascii_digit());
                    end.unwrap_or(text.len())
                };
                let (x, y) = (&a[..split(a)], &b[..split(b)]);
                let strip = |digits: &[u8]| {
                    let zeros = digits.iter().take_while(|&&d| d == b'0').count();
                    digits[zeros..].to_vec()
                };
                let (nx, ny) = (strip(x), strip(y));
                let order = nx
                    .len()
                    .cmp(&ny.len())
                    .then(nx.cmp(&ny))
                    .then(x.len().cmp(&y.len()));
                if order.is_ne() {
                    return order;
                }
                a = &a[x.len()..];
                b = &b[y.len()..];
            }
            (Some(x), Some(y)) => {
                if x != y {
                    return x.cmp(y);
                }
                a = &a[1..];
                b = &b[1..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_docker() {
        let cases = [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (730 * 86400, "2 years"),
        ];
        for (seconds, words) in cases {
            assert_eq!(duration(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn sizes_read_as_in_docker() {
        assert_eq!(size(0.0, 3), "0B");
        assert_eq!(size(999.0, 3), "999B");
        assert_eq!(size(7_833_600.0, 3), "7.83MB");
        assert_eq!(size(1000.0, 3), "1kB");
        assert_eq!(size(999_999.0, 3), "1e+03kB");
        assert_eq!(binary_size(67_108_864.0), "64MiB");
        assert_eq!(binary_size(1_610_612_736.0), "1.5GiB");
        assert_eq!(binary_size(16_512_000_000.0), "15.38GiB");
    }

    #[test]
    fn texts_are_cut_with_an_ellipsis() {
        assert_eq!(ellipsis("short", 30), "short");
        assert_eq!(ellipsis("abcdef", 5), "abcd…");
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(capitalized("rUNNING"), "Running");
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["web.10", "web.2", "api", "web.1", "web.02"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["api", "web.1", "web.2", "web.02", "web.10"]);
    }

    #[test]
    fn go_times_keep_their_fraction() {
        assert_eq!(
            go_time(&"2026-01-02T15:04:05.120Z".into(), TimeZone::UTC),
            "2026-01-02 15:04:05.12 +0000 UTC"
        );
        assert_eq!(
            go_time(&0.into(), TimeZone::UTC),
            "1970-01-01 00:00:00 +0000 UTC"
        );
    }
}
