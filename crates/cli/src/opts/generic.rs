//! `--generic-resource KIND=COUNT` (SwarmKit `genericresource.Parse`).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shoal_types::spec::GenericResource;

use super::BadValue;

/// Checks the form of one flag.
pub(crate) fn entry(text: &str) -> Result<String, BadValue> {
    if text.contains('=') {
        Ok(text.to_owned())
    } else {
        Err(BadValue::new(format!(
            "invalid generic-resource format `{text}` expected `name=value`"
        )))
    }
}

/// The API's form of all flags; a service can only ask for numbers of things, not for named ones.
pub(crate) fn resources(entries: &[String]) -> Result<Vec<(String, Value)>, BadValue> {
    let invalid =
        |why: String| BadValue::new(format!("invalid generic resource specification: {why}"));
    let mut resources: Vec<(String, Value)> = Vec::new();
    for entry in entries {
        let (kind, value) = entry.split_once('=').unwrap_or((entry, ""));
        if kind.is_empty() || value.is_empty() {
            return Err(invalid(format!(
                "incorrect term {entry}, missing '=' or malformed expression"
            )));
        }
        let Ok(count) = value.parse::<i64>() else {
            return Err(BadValue::new(format!(
                "invalid generic-resource request `{kind}={value}`, Named Generic Resources is not supported for service create or update"
            )));
        };
        if count < 0 {
            return Err(invalid(format!("cannot ask for negative resource {kind}")));
        }
        if resources.iter().any(|(other, _)| other == kind) {
            return Err(invalid(format!(
                "inconsistent: {kind} appears more than once"
            )));
        }
        let mut spec = json!({"Kind": kind});
        if count != 0 {
            spec["Value"] = count.into();
        }
        resources.push((kind.to_owned(), json!({ "DiscreteResourceSpec": spec })));
    }
    Ok(resources)
}

/// What a node has, as `--node-generic-resource` says it: `KIND=COUNT` once, or `KIND=NAME` for each of a kind.
pub(crate) fn of_node(entries: &[String]) -> Result<Vec<GenericResource>, BadValue> {
    let invalid =
        |why: String| BadValue::new(format!("invalid generic resource specification: {why}"));
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in entries.iter().flat_map(|entry| entry.split(',')) {
        let pair = entry.split_once('=');
        let (kind, value) = pair
            .filter(|(kind, value)| !kind.is_empty() && !value.is_empty())
            .ok_or_else(|| {
                invalid(format!(
                    "incorrect term {entry}, missing '=' or malformed expression"
                ))
            })?;
        let values = kinds.entry(kind).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    let mut resources = Vec::new();
    for (kind, values) in kinds {
        let kind = kind.to_owned();
        match values.as_slice() {
            [count] if count.parse::<i64>().is_ok() => {
                let count = count.parse::<u64>();
                let negative = |_| invalid(format!("cannot ask for negative resource {kind}"));
                let count = count.map_err(negative)?;
                resources.push(GenericResource::Discrete { kind, count });
            }
            names if names.iter().any(|name| name.parse::<i64>().is_ok()) => {
                let names = names.join(",");
                return Err(invalid(format!(
                    "mixed discrete and named resources in expression '{kind}={names}'"
                )));
            }
            names => resources.extend(names.iter().map(|name| GenericResource::Named {
                kind: kind.clone(),
                value: (*name).to_owned(),
            })),
        }
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_counted() {
        assert_eq!(
            resources(&["GPU=2".into()]).unwrap()[0].1,
            json!({"DiscreteResourceSpec": {"Kind": "GPU", "Value": 2}})
        );
        assert_eq!(
            resources(&["GPU=UUID1".into()]).unwrap_err().to_string(),
            "invalid generic-resource request `GPU=UUID1`, Named Generic Resources is not supported for service create or update"
        );
        assert!(entry("GPU").is_err());
        assert_eq!(of_node(&[]), Ok(Vec::new()));
        let node = of_node(&["GPU=a".into(), "SSD=3".into(), "GPU=b,GPU=a".into()]).unwrap();
        let gpu = |value: &str| GenericResource::Named {
            kind: "GPU".into(),
            value: value.into(),
        };
        let ssd = GenericResource::Discrete {
            kind: "SSD".into(),
            count: 3,
        };
        assert_eq!(node, [gpu("a"), gpu("b"), ssd]);
        for wrong in ["GPU", "=1", "GPU=", "GPU=-1", "GPU=1,GPU=a"] {
            assert!(of_node(&[wrong.into()]).is_err(), "{wrong}");
        }
        assert!(resources(&["GPU=1".into(), "GPU=2".into()]).is_err());
    }
}
