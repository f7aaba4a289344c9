//! What a task's container is told of the things of the node that it got.

use std::collections::BTreeMap;

use shoal_types::spec::GenericResource;

/// A variable for each kind, `DOCKER_RESOURCE_GPU=a,b` or `DOCKER_RESOURCE_SSD=3` (SwarmKit `genericresource.EnvFormat`).
pub fn resource_variables(assigned: &[GenericResource]) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for resource in assigned {
        let (kind, value) = match resource {
            GenericResource::Named { kind, value } => (kind, value.clone()),
            GenericResource::Discrete { kind, count } => (kind, count.to_string()),
        };
        let name = format!("DOCKER_RESOURCE_{}", kind.to_uppercase());
        variables
            .entry(name)
            .and_modify(|values| {
                values.push(',');
                values.push_str(&value);
            })
            .or_insert(value);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_variable() {
        let named = |value: &str| GenericResource::Named {
            kind: "gpu".to_owned(),
            value: value.to_owned(),
        };
        let counted = GenericResource::Discrete {
            kind: "SSD".to_owned(),
            count: 3,
        };
        let variables = resource_variables(&[named("a"), counted, named("b")]);
        let shown: Vec<String> = variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(shown, ["DOCKER_RESOURCE_GPU=a,b", "DOCKER_RESOURCE_SSD=3"]);
    }
}
