//! The `filters` parameter of lists.

use std::collections::BTreeMap;

use jiff::{SignedDuration, civil::DateTime, tz::TimeZone};
use serde_json::Value;
use shoal_types::Timestamp;

use super::{
    error::{ApiError, ApiResult},
    query::moment,
};

/// Values by key. Values of one key are alternatives, keys narrow each other down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads `{"key":{"value":true}}` or the older `{"key":["value"]}`.
    pub(crate) fn parse(text: &str, known: &[&str]) -> ApiResult<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let invalid = || ApiError::bad_request("invalid filter: expected a JSON object of lists");
        let Ok(Value::Object(object)) = serde_json::from_str(text) else {
            return Err(invalid());
        };
        let mut filters = BTreeMap::new();
        for (key, values) in object {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::bad_request(format!("invalid filter '{key}'")));
            }
            let values: Vec<String> = match values {
                Value::Object(values) => values
                    .into_iter()
                    .filter(|(_, on)| on.as_bool() != Some(false))
                    .map(|(value, _)| value)
                    .collect(),
                Value::Array(values) => values
                    .into_iter()
                    .map(|v| v.as_str().map(str::to_owned).ok_or_else(invalid))
                    .collect::<ApiResult<_>>()?,
                _ => return Err(invalid()),
            };
            if !values.is_empty() {
                filters.insert(key, values);
            }
        }
        Ok(Self(filters))
    }

    pub(crate) fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether no value of `key` was given, or `matches` one.
    pub(crate) fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        self.0
            .get(key)
            .is_none_or(|values| values.iter().any(|v| matches(v)))
    }

    pub(crate) fn exact(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| wanted == value)
    }

    /// Swarm's rule for names and ids; names without regard to case.
    pub(crate) fn prefix(&self, key: &str, value: &str) -> bool {
        let value = value.to_lowercase();
        self.any(key, |wanted| value.starts_with(&wanted.to_lowercase()))
    }

    /// `name` or `name=value`, all of which must hold.
    pub(crate) fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.get(key)
            .iter()
            .all(|wanted| match wanted.split_once('=') {
                None => labels.contains_key(wanted),
                Some((name, value)) => labels.get(name).is_some_and(|v| v == value),
            })
    }

    /// Whether the labels are those that `key` is to leave alone.
    pub(crate) fn spares(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.get(key).is_empty() && self.labels(key, labels)
    }

    /// The one time of `until`: seconds since the epoch, a date, or how long before `now` (`24h`, `1h30m`).
    pub(crate) fn until(&self, now: Timestamp) -> ApiResult<Option<Timestamp>> {
        let text = match self.get("until") {
            [] => return Ok(None),
            [text] => text,
            [..] => {
                return Err(ApiError::bad_request(
                    "more than one until filter specified",
                ));
            }
        };
        let ago = |text: &str| {
            let ago: SignedDuration = text.parse().ok()?;
            Some(Timestamp(
                now.0.saturating_sub(i64::try_from(ago.as_nanos()).ok()?),
            ))
        };
        let date = |text: &str| {
            let date: DateTime = text.parse().ok()?;
            let at = date.to_zoned(TimeZone::system()).ok()?.timestamp();
            Some(Timestamp(i64::try_from(at.as_nanosecond()).ok()?))
        };
        let at = moment(text).or_else(|| ago(text)).or_else(|| date(text));
        at.map(Some).ok_or_else(|| {
            ApiError::bad_request(format!(
                "failed to parse value as time or duration: {text:?} (until)"
            ))
        })
    }

    /// The one boolean of `key`; `None` when it was not given.
    pub(crate) fn flag(&self, key: &str) -> ApiResult<Option<bool>> {
        let values = self.get(key);
        let parse = |value: &String| match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => Ok(true),
            "0" | "f" | "false" => Ok(false),
            _ => Err(ApiError::bad_request(format!(
                "invalid filter '{key}={value}'"
            ))),
        };
        match values {
            [] => Ok(None),
            [value] => parse(value).map(Some),
            [..] => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
        }
    }

    /// Refuses a value of `key` that is none of `allowed`.
    pub(crate) fn one_of(&self, key: &str, allowed: &[&str]) -> ApiResult<()> {
        match self
            .get(key)
            .iter()
            .find(|value| !allowed.contains(&value.as_str()))
        {
            None => Ok(()),
            Some(value) => Err(ApiError::bad_request(format!(
                "invalid filter '{key}={value}'"
            ))),
        }
    }

    /// Refuses a key that Docker knows and Shoal does not act on.
    pub(crate) fn without(&self, keys: &[&str]) -> ApiResult<()> {
        match keys.iter().find(|key| !self.get(key).is_empty()) {
            None => Ok(()),
            Some(key) => Err(ApiError::not_yet(&format!("the filter '{key}'"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_unknown_keys_refused() {
        let known = ["name", "label"];
        let new = Filters::parse(r#"{"name":{"a":true,"b":false},"label":{}}"#, &known).unwrap();
        let old = Filters::parse(r#"{"name":["a"]}"#, &known).unwrap();
        assert_eq!(new, old);
        let error = Filters::parse(r#"{"nam":["a"]}"#, &known).unwrap_err();
        assert_eq!(error.message, "invalid filter 'nam'");
        for bad in ["x", "[]", r#"{"name":1}"#, r#"{"name":[1]}"#] {
            let status = Filters::parse(bad, &known).unwrap_err().status;
            assert_eq!(status, http::StatusCode::BAD_REQUEST, "{bad}");
        }
    }

    #[test]
    fn until_is_a_time_or_an_age() {
        let now = Timestamp::from_unix(1_000_000, 0);
        let until = |text: &str| {
            let text = serde_json::json!({"until": [text]}).to_string();
            Filters::parse(&text, &["until"]).unwrap().until(now)
        };
        let at = |seconds| Ok(Some(Timestamp::from_unix(seconds, 0)));
        assert_eq!(until("24h"), at(1_000_000 - 86_400));
        assert_eq!(until("1h30m"), at(1_000_000 - 5400));
        assert_eq!(until("12345"), at(12_345));
        assert_eq!(until("1970-01-02T00:00:00Z"), at(86_400));
        assert!(until("1970-01-02").is_ok() && until("1970-01-02T10:00:00").is_ok());
        assert!(until("soon").is_err() && until("").is_err());
        assert_eq!(Filters::default().until(now), Ok(None));
    }

    #[test]
    fn labels_must_all_hold_and_other_values_are_alternatives() {
        let filters = Filters::parse(
            r#"{"label":["a","b=1"],"name":["we","db"]}"#,
            &["label", "name"],
        )
        .unwrap();
        let labels = |text: &[(&str, &str)]| {
            text.iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect()
        };
        assert!(filters.labels("label", &labels(&[("a", ""), ("b", "1")])));
        assert!(!filters.labels("label", &labels(&[("a", ""), ("b", "2")])));
        assert!(filters.prefix("name", "Web") && filters.prefix("name", "db"));
        assert!(!filters.prefix("name", "x"));
    }
}
