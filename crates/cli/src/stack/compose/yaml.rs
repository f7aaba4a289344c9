//! A tree as YAML, in the style of Docker's `stack config`.

use std::{cmp::Ordering, iter::Peekable, str::Chars};

use super::node::{Data, Entry, Node, float};

/// A document of two spaces a level.
pub(super) fn document(node: &Node) -> String {
    let mut out = String::new();
    match &node.data {
        Data::Map(entries) if !entries.is_empty() => map(&mut out, entries, 0),
        data => {
            out.push_str(&scalar(data, 0));
            out.push('\n');
        }
    }
    out
}

fn map(out: &mut String, entries: &[Entry], depth: usize) {
    for (n, Entry { key, value, .. }) in entries.iter().enumerate() {
        // The first entry of a list's element stands behind its dash.
        if n > 0 || !out.ends_with("- ") {
            out.push_str(&"  ".repeat(depth));
        }
        out.push_str(&text(key, 0, true));
        out.push(':');
        match &value.data {
            Data::Map(entries) if !entries.is_empty() => {
                out.push('\n');
                map(out, entries, depth + 1);
            }
            Data::List(items) if !items.is_empty() => {
                out.push('\n');
                list(out, items, depth + 1);
            }
            data => {
                out.push(' ');
                out.push_str(&scalar(data, depth + 1));
                out.push('\n');
            }
        }
    }
}

fn list(out: &mut String, items: &[Node], depth: usize) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 || !out.ends_with("- ") {
            out.push_str(&"  ".repeat(depth));
        }
        out.push_str("- ");
        match &item.data {
            Data::Map(entries) if !entries.is_empty() => map(out, entries, depth + 1),
            Data::List(items) if !items.is_empty() => list(out, items, depth + 1),
            data => {
                out.push_str(&scalar(data, depth + 1));
                out.push('\n');
            }
        }
    }
}

fn scalar(data: &Data, depth: usize) -> String {
    match data {
        Data::Null => "null".to_owned(),
        Data::Bool(value) => value.to_string(),
        Data::Int(value) => value.to_string(),
        Data::Float(value) => float(*value),
        Data::Text(value) | Data::Substituted(value) => text(value, depth, false),
        Data::List(_) => "[]".to_owned(),
        Data::Map(_) => "{}".to_owned(),
    }
}

/// A text that reads back as the same text.
fn text(text: &str, depth: usize, is_key: bool) -> String {
    let special = !text.chars().all(|c| c == '\n' || is_printable(c));
    let space_before_break = text.contains(" \n") || text.ends_with(' ');
    if text.contains('\n') && !is_key && !special && !space_before_break {
        return literal(text, depth);
    }
    if special || text.contains('\n') || means_more(text) {
        return quoted(text);
    }
    if text.starts_with(' ') || text.ends_with(' ') || has_indicator(text) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    text.to_owned()
}

/// Lines as they are, after what says how they end and, where it cannot be seen, how far they are indented.
fn literal(text: &str, depth: usize) -> String {
    let indent = if text.starts_with([' ', '\n']) {
        "2"
    } else {
        ""
    };
    let end = match text.strip_suffix('\n') {
        None => "-",
        Some(rest) if rest.is_empty() || rest.ends_with('\n') => "+",
        Some(_) => "",
    };
    let mut out = format!("|{indent}{end}");
    let body = text.strip_suffix('\n').unwrap_or(text);
    if text == "\n" {
        return out;
    }
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&"  ".repeat(depth));
            out.push_str(line);
        }
    }
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\0' => out.push_str("\\0"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) <= 0xff => out.push_str(&format!("\\x{:02X}", u32::from(c))),
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        && !matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}')
}

/// Whether a character of the text means something to YAML where it stands.
fn has_indicator(text: &str) -> bool {
    if text.starts_with("---") || text.starts_with("...") {
        return true;
    }
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        let blank_next = chars.peek().is_none_or(|next| *next == ' ');
        let means = match c {
            '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%'
            | '@' | '`'
                if first =>
            {
                true
            }
            '?' | '-' if first => blank_next,
            ':' => blank_next,
            '#' => before == ' ',
            _ => false,
        };
        if means {
            return true;
        }
        (before, first) = (c, false);
    }
    false
}

/// Whether the text, without quotes, would be something else: a number, a boolean, a time, or nothing.
fn means_more(text: &str) -> bool {
    const WORDS: [&str; 16] = [
        "", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE", ".nan",
        ".NaN", ".NAN", ".inf", ".Inf",
    ];
    // YAML 1.1 knew these as booleans, and some readers still do.
    const OLD: [&str; 18] = [
        "y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off",
        "OFF", ".INF", "+.inf",
    ];
    WORDS.contains(&text) || OLD.contains(&text) || is_number(text) || is_time(text)
}

fn is_number(text: &str) -> bool {
    let plain = text.replace('_', "");
    let digits = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return false;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = digits.to_ascii_lowercase().strip_prefix(prefix) {
            return !rest.is_empty() && rest.chars().all(|c| c.is_digit(radix));
        }
    }
    if digits == ".inf" || digits == ".Inf" || digits == ".INF" {
        return true;
    }
    // A float, which an integer is too; or minutes and seconds, which YAML 1.1 took for a number.
    let sexagesimal = digits.contains(':')
        && digits.split(':').enumerate().all(|(n, part)| {
            let whole = part.split('.').next().unwrap_or_default();
            !whole.is_empty()
                && whole.bytes().all(|b| b.is_ascii_digit())
                && (n == 0 || whole.parse::<u32>().is_ok_and(|n| n < 60))
        });
    let is_float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && digits.parse::<f64>().is_ok();
    is_float || sexagesimal
}

/// `2001-01-02`, or with a time behind it.
fn is_time(text: &str) -> bool {
    let date = text.split(['T', 't', ' ']).next().unwrap_or_default();
    let parts: Vec<&str> = date.split('-').collect();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    matches!(parts[..], [year, month, day] if year.len() == 4 && month.len() <= 2 && day.len() <= 2)
        && parts.iter().all(|part| digits(part))
        && (date == text || text[date.len() + 1..].contains(':'))
}

/// The order of keys: numbers by their value, other characters before letters.
pub(super) fn order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.chars().peekable(), b.chars().peekable());
    let mut after_digit = false;
    loop {
        let (x, y) = match (a.peek(), b.peek()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) => (*x, *y),
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let ordering = number(&mut a).cmp(&number(&mut b));
            if ordering.is_ne() {
                return ordering;
            }
            after_digit = true;
            continue;
        }
        if x != y {
            return match (x.is_alphabetic(), y.is_alphabetic()) {
                (true, false) if after_digit => Ordering::Less,
                (false, true) if after_digit => Ordering::Greater,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                _ => x.cmp(&y),
            };
        }
        after_digit = false;
        a.next();
        b.next();
    }
}

/// Takes the digits that begin the text: their value, and their number, which leading zeros add to.
fn number(chars: &mut Peekable<Chars<'_>>) -> (u128, usize) {
    let (mut value, mut digits) = (0_u128, 0);
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        value = value.saturating_mul(10).saturating_add(digit.into());
        digits += 1;
        chars.next();
    }
    (value, digits)
}
