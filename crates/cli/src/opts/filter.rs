//! `--filter NAME=VALUE`, which the daemon gets as `{"name":{"value":true}}`.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use serde_json::{Map, Value};

use super::BadValue;

/// One `--filter`; an empty text means none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter(Option<(String, String)>);

impl FromStr for Filter {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| BadValue::new("bad format of filter (expected name=value)"))?;
        Ok(Self(Some((
            name.trim().to_lowercase(),
            value.trim().to_owned(),
        ))))
    }
}

/// All filters of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    pub(crate) fn new(filters: &[Filter]) -> Self {
        let mut all = Self::default();
        for Filter(filter) in filters {
            if let Some((name, value)) = filter {
                all.add(name, value);
            }
        }
        all
    }

    pub(crate) fn add(&mut self, name: &str, value: &str) {
        self.0
            .entry(name.to_owned())
            .or_default()
            .insert(value.to_owned());
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.add(name, value);
        self
    }

    /// Takes out every value of `name`.
    pub(crate) fn take(&mut self, name: &str) -> Vec<String> {
        self.0
            .remove(name)
            .map(|values| values.into_iter().collect())
            .unwrap_or_default()
    }

    /// The query parameter, `None` when there is no filter.
    pub(crate) fn query(&self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let map: Map<String, Value> = self
            .0
            .iter()
            .map(|(name, values)| {
                let values: Map<String, Value> = values
                    .iter()
                    .map(|value| (value.clone(), Value::Bool(true)))
                    .collect();
                (name.clone(), Value::Object(values))
            })
            .collect();
        Some(Value::Object(map).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_one_query_parameter() {
        let filters = Filters::new(&[
            "Name=web".parse().unwrap(),
            "label=a=b".parse().unwrap(),
            "name= api ".parse().unwrap(),
            "".parse().unwrap(),
        ]);
        assert_eq!(
            filters.query().unwrap(),
            r#"{"label":{"a=b":true},"name":{"api":true,"web":true}}"#
        );
        assert_eq!(Filters::default().query(), None);
        assert!("name".parse::<Filter>().is_err());
    }
}
