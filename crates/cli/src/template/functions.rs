//! The functions of a template: Go's own and those that Docker adds.

use std::cmp::Ordering;

use serde_json::Value;

use super::print;

const NAMES: [&str; 26] = [
    "and", "eq", "ge", "gt", "html", "index", "join", "js", "json", "le", "len", "lower", "lt",
    "ne", "not", "or", "pad", "print", "printf", "println", "slice", "split", "title", "truncate",
    "upper", "urlquery",
];

/// Longest text that `pad` makes.
const MAX_PAD: i64 = 4096;

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Go's truth: not false, zero, empty or nil.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Runs a function; over column titles (`header`) the shaping ones give their input back.
pub(super) fn call(name: &str, mut arguments: Vec<Value>, header: bool) -> Result<Value, String> {
    let shapes = matches!(
        name,
        "json" | "split" | "join" | "title" | "lower" | "upper" | "truncate"
    );
    if header && shapes && !arguments.is_empty() {
        return Ok(arguments.swap_remove(0));
    }
    let arguments = arguments.as_slice();
    match (name, arguments) {
        ("and" | "or", [.., last]) => Ok(last.clone()),
        ("not", [value]) => Ok((!truth(value)).into()),
        ("len", [value]) => match value {
            Value::String(text) => Ok(text.len().into()),
            Value::Array(items) => Ok(items.len().into()),
            Value::Object(map) => Ok(map.len().into()),
            Value::Null => Err("len of nil pointer".into()),
            other => Err(format!("len of type {}", print::kind(other))),
        },
        ("index", [value, keys @ ..]) => index(value, keys),
        ("slice", [value, bounds @ ..]) => slice(value, bounds),
        ("print", values) => Ok(print::sprint(values).into()),
        ("println", values) => Ok(print::sprintln(values).into()),
        ("printf", [Value::String(format), values @ ..]) => {
            print::sprintf(format, values).map(Value::from)
        }
        ("html", values) => Ok(html(&print::sprint(values)).into()),
        ("js", values) => {
            let quoted = Value::from(print::sprint(values)).to_string();
            Ok(quoted[1..quoted.len() - 1].into())
        }
        ("urlquery", values) => Ok(url(&print::sprint(values)).into()),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            for other in rest {
                if equal(first, other)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        ("ne", [a, b]) => Ok((!equal(a, b)?).into()),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let order = compare(a, b)?;
            Ok(match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into())
        }
        ("json", [value]) => Ok(value.to_string().into()),
        ("split", [text, separator]) => {
            let (text, separator) = (string(text)?, string(separator)?);
            let parts: Vec<String> = if separator.is_empty() {
                text.chars().map(String::from).collect()
            } else {
                text.split(separator).map(str::to_owned).collect()
            };
            Ok(parts.into())
        }
        ("join", [items, separator]) => {
            let separator = string(separator)?;
            let Value::Array(items) = items else {
                return Err(format!(
                    "wrong type for value; expected []string; got {}",
                    print::kind(items)
                ));
            };
            let items: Vec<String> = items.iter().map(print::plain).collect();
            Ok(items.join(separator).into())
        }
        ("title", [text]) => {
            let mut start = true;
            let titled: String = string(text)?
                .chars()
                .flat_map(|c| {
                    let upper = start;
                    start = !(c.is_alphanumeric() || c == '_' || c == '\'');
                    let shown = if upper {
                        c.to_uppercase().collect::<String>()
                    } else {
                        c.to_string()
                    };
                    shown.chars().collect::<Vec<_>>()
                })
                .collect();
            Ok(titled.into())
        }
        ("lower", [text]) => Ok(string(text)?.to_lowercase().into()),
        ("upper", [text]) => Ok(string(text)?.to_uppercase().into()),
        ("pad", [text, before, after]) => {
            let text = string(text)?;
            let width = |value: &Value| match value.as_i64() {
                Some(width @ 0..=MAX_PAD) => usize::try_from(width).map_err(|e| e.to_string()),
                Some(_) => Err("padding out of range".to_owned()),
                None => Err(expected("int", value)),
            };
            let (before, after) = (width(before)?, width(after)?);
            if text.is_empty() {
                return Ok(text.into());
            }
            Ok(format!("{}{text}{}", " ".repeat(before), " ".repeat(after)).into())
        }
        ("truncate", [text, most]) => {
            let text = string(text)?;
            let most = most.as_i64().ok_or_else(|| expected("int", most))?;
            let most = usize::try_from(most).map_err(|_| "slice bounds out of range".to_owned())?;
            Ok(text.chars().take(most).collect::<String>().into())
        }
        _ => Err(format!(
            "wrong number or type of args for {name}: got {}",
            arguments.len()
        )),
    }
}

fn expected(kind: &str, value: &Value) -> String {
    format!(
        "wrong type for value; expected {kind}; got {}",
        print::kind(value)
    )
}

fn string(value: &Value) -> Result<&str, String> {
    match value {
        Value::Null => Ok(""),
        value => value.as_str().ok_or_else(|| expected("string", value)),
    }
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, String> {
    let mut current = value;
    for key in keys {
        current = match (current, key) {
            (Value::Object(map), Value::String(key)) => map.get(key).unwrap_or(&Value::Null),
            (Value::Object(_), other) => {
                return Err(format!(
                    "value has type {}; should be string",
                    print::kind(other)
                ));
            }
            (Value::Array(items), Value::Number(at)) => at
                .as_u64()
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|at| items.get(at))
                .ok_or_else(|| format!("index out of range: {at}"))?,
            (Value::String(text), Value::Number(at)) => {
                let byte = at
                    .as_u64()
                    .and_then(|at| usize::try_from(at).ok())
                    .and_then(|at| text.as_bytes().get(at))
                    .ok_or_else(|| format!("index out of range: {at}"))?;
                return Ok((*byte).into());
            }
            (Value::Array(_), other) => {
                return Err(format!(
                    "cannot index slice/array with type {}",
                    print::kind(other)
                ));
            }
            (Value::Null, _) => return Err("index of untyped nil".into()),
            (other, _) => return Err(format!("can't index item of type {}", print::kind(other))),
        };
    }
    Ok(current.clone())
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        other => return Err(format!("can't slice item of type {}", print::kind(other))),
    };
    let mut at = Vec::new();
    for bound in bounds {
        let index = bound
            .as_u64()
            .and_then(|index| usize::try_from(index).ok())
            .filter(|index| *index <= length)
            .ok_or_else(|| format!("index out of range: {}", print::plain(bound)))?;
        at.push(index);
    }
    let (start, end) = match at.as_slice() {
        [] => (0, length),
        [start] => (*start, length),
        [start, end] => (*start, *end),
        _ => return Err(format!("too many slice indexes: {}", at.len())),
    };
    if start > end {
        return Err(format!("invalid slice index: {start} > {end}"));
    }
    match value {
        Value::Array(items) => Ok(items[start..end].to_vec().into()),
        value => {
            let text = value.as_str().unwrap_or("");
            text.get(start..end)
                .map(Value::from)
                .ok_or_else(|| "slice inside a character".into())
        }
    }
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => Ok(compare(a, b)?.is_eq()),
        (Value::Null, _) | (_, Value::Null) => Ok(a == b),
        (Value::Array(_) | Value::Object(_), _) => {
            Err("non-comparable type: ".to_owned() + print::kind(a))
        }
        _ if std::mem::discriminant(a) != std::mem::discriminant(b) => {
            Err("incompatible types for comparison".into())
        }
        _ => Ok(a == b),
    }
}

fn compare(a: &Value, b: &Value) -> Result<Ordering, String> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => a
                .as_f64()
                .zip(b.as_f64())
                .and_then(|(a, b)| a.partial_cmp(&b))
                .ok_or_else(|| "invalid type for comparison".into()),
        },
        _ => Err("incompatible types for comparison".into()),
    }
}

fn html(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&#34;".to_owned(),
            '\'' => "&#39;".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

fn url(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b' ' => "+".to_owned(),
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
