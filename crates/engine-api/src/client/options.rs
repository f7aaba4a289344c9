//! What calls can be asked for.

use std::collections::{BTreeMap, BTreeSet};

/// Filters of a list: values under the same key are alternatives, keys narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.add(key, value);
        self
    }

    pub fn add(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.entry(key.into()).or_default().insert(value.into());
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Docker's newer form, `{"key":{"value":true}}`; empty for no filters.
    pub(super) fn to_query(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let object: serde_json::Map<_, _> = self
            .0
            .iter()
            .map(|(key, values)| {
                let values = values.iter().map(|v| (v.clone(), true.into())).collect();
                (key.clone(), serde_json::Value::Object(values))
            })
            .collect();
        serde_json::Value::Object(object).to_string()
    }
}

/// Which output of a container, task or service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    /// Go on with what is written from now on.
    pub follow: bool,
    /// Puts the time before each line.
    pub timestamps: bool,
    /// Puts `key=value,key=value ` before each line; for services and tasks the ids of node, service and task.
    pub details: bool,
    /// Seconds since the epoch, with a fraction; empty: no limit.
    pub since: String,
    pub until: String,
    /// A number of lines, or empty for all.
    pub tail: String,
}

/// How a service is updated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceUpdate {
    /// Encoded `X-Registry-Auth` for the nodes that pull.
    pub registry_auth: Option<String>,
    /// Where credentials come from when none are given: `spec` (the default) or `previous-spec`.
    pub registry_auth_from: String,
    /// Back to the spec before the current one; the body is checked but not used.
    pub rollback: bool,
}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventOptions {
    pub filters: Filters,
    /// Seconds since the epoch, with a fraction; empty: from now on.
    pub since: String,
    /// As `since`; empty: for ever.
    pub until: String,
}
