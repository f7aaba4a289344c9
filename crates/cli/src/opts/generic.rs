//! `--generic-resource KIND=COUNT` (SwarmKit `genericresource.Parse`).

use serde_json::{Value, json};

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
        assert!(resources(&["GPU=1".into(), "GPU=2".into()]).is_err());
    }
}
