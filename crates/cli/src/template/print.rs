//! How Go prints values: `fmt.Sprint` and the verbs of `fmt.Sprintf`.

use serde_json::Value;

/// Widest padding that a format may ask for.
const MAX_WIDTH: usize = 4096;

/// `%v`, but for a missing value at the top.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        value => plain(value),
    }
}

/// `%v`.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => go_float(float),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let items: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", plain(value)))
                .collect();
            format!("map[{}]", items.join(" "))
        }
    }
}

/// `strconv.FormatFloat(f, 'g', -1, 64)` with Go's exponent thresholds.
fn go_float(float: f64) -> String {
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{float}")
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// `fmt.Sprint`: a space between operands of which neither is a string.
pub(super) fn sprint(values: &[Value]) -> String {
    let mut text = String::new();
    for (index, value) in values.iter().enumerate() {
        if index > 0 && !value.is_string() && !values[index - 1].is_string() {
            text.push(' ');
        }
        text.push_str(&plain(value));
    }
    text
}

/// `fmt.Sprintln`.
pub(super) fn sprintln(values: &[Value]) -> String {
    let words: Vec<String> = values.iter().map(plain).collect();
    format!("{}\n", words.join(" "))
}

/// The flags of one verb.
#[derive(Debug, Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    sharp: bool,
    width: usize,
    precision: Option<usize>,
}

/// `fmt.Sprintf` without explicit argument indexes.
pub(super) fn sprintf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut text = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | ' ' | '#')) {
            match flag {
                '-' => spec.left = true,
                '0' => spec.zero = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                _ => {}
            }
        }
        let mut number = || {
            let mut value: Option<usize> = None;
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                let digit = digit.to_digit(10).unwrap_or(0) as usize;
                value = Some(value.unwrap_or(0).saturating_mul(10).saturating_add(digit));
            }
            value
        };
        spec.width = number().unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = 0_usize;
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                let digit = digit.to_digit(10).unwrap_or(0) as usize;
                digits = digits.saturating_mul(10).saturating_add(digit);
            }
            spec.precision = Some(digits);
        }
        if spec.width.max(spec.precision.unwrap_or(0)) > MAX_WIDTH {
            return Err("the width or precision is too large".into());
        }
        match chars.next() {
            None => text.push_str("%!(NOVERB)"),
            Some('%') => text.push('%'),
            Some(verb) => match values.next() {
                None => text.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => text.push_str(&pad(&one(verb, value, &spec), &spec)),
            },
        }
    }
    let extra: Vec<String> = values
        .map(|value| format!("{}={}", kind(value), plain(value)))
        .collect();
    if !extra.is_empty() {
        text.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(text)
}

fn one(verb: char, value: &Value, spec: &Spec) -> String {
    let bad = || format!("%!{verb}({}={})", kind(value), plain(value));
    let cut = |text: String| match spec.precision {
        Some(most) => text.chars().take(most).collect(),
        None => text,
    };
    let int = value.as_i64();
    let float = value.as_f64().filter(|_| value.is_f64());
    match (verb, value) {
        ('v', Value::String(text)) if spec.sharp => format!("{text:?}"),
        ('v', _) => plain(value),
        ('s', Value::String(_) | Value::Array(_) | Value::Object(_)) => cut(plain(value)),
        ('q', Value::String(text)) => format!("{text:?}"),
        ('q', Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| one('q', item, spec)).collect();
            format!("[{}]", items.join(" "))
        }
        ('t', Value::Bool(flag)) => flag.to_string(),
        ('T', _) => kind(value).to_owned(),
        ('x', Value::String(text)) => text
            .bytes()
            .fold(String::new(), |hex, b| hex + &format!("{b:02x}")),
        ('d', _) => match int {
            Some(int) if spec.plus => format!("{int:+}"),
            Some(int) => int.to_string(),
            None => value.as_u64().map_or_else(bad, |int| int.to_string()),
        },
        ('x' | 'X' | 'o' | 'b', _) => match int {
            Some(int) => {
                let sign = if int < 0 { "-" } else { "" };
                let magnitude = int.unsigned_abs();
                let digits = match verb {
                    'x' => format!("{magnitude:x}"),
                    'X' => format!("{magnitude:X}"),
                    'o' => format!("{magnitude:o}"),
                    _ => format!("{magnitude:b}"),
                };
                format!("{sign}{digits}")
            }
            None => bad(),
        },
        ('c', _) => int
            .and_then(|int| u32::try_from(int).ok())
            .and_then(char::from_u32)
            .map_or_else(bad, String::from),
        ('f' | 'F', _) => match float {
            Some(float) => format!("{float:.*}", spec.precision.unwrap_or(6)),
            None => bad(),
        },
        ('g' | 'e', _) => float.map_or_else(bad, go_float),
        _ => bad(),
    }
}

fn pad(text: &str, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(text.chars().count());
    if missing == 0 {
        text.to_owned()
    } else if spec.left {
        format!("{text}{}", " ".repeat(missing))
    } else if spec.zero {
        let (sign, digits) = match text.strip_prefix(['-', '+']) {
            Some(digits) => text.split_at(text.len() - digits.len()),
            None => ("", text),
        };
        format!("{sign}{}{digits}", "0".repeat(missing))
    } else {
        format!("{}{text}", " ".repeat(missing))
    }
}
