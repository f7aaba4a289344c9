//! Go's way with JSON objects: fields that are empty are left out.

use serde_json::{Map, Value};

/// What Go's `omitempty` leaves out.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Sets `key`, or removes it when `value` is empty.
pub(crate) fn put(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let value = value.into();
    if is_empty(&value) {
        map.remove(key);
    } else {
        map.insert(key.to_owned(), value);
    }
}

/// The object under `key`, made when there is none.
pub(crate) fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

/// The elements of the array under `key`, taken out.
pub(crate) fn take_array(map: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match map.remove(key) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// The texts of the array under `key`, taken out.
pub(crate) fn take_strings(map: &mut Map<String, Value>, key: &str) -> Vec<String> {
    take_array(map, key)
        .into_iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// The text at `path`, empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// The number at `path`, 0 when there is none.
pub(crate) fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// A 32 bit float as Go writes it: its shortest decimal.
pub(crate) fn ratio(value: f32) -> Value {
    let shortest: f64 = value.to_string().parse().unwrap_or(0.0);
    if shortest == 0.0 {
        Value::from(0)
    } else {
        Value::from(shortest)
    }
}
