//! Nodes, in both directions.

use shoal_types::{
    object::{Node, NodeState},
    spec::{Availability, NodeSpec, Role},
};

use super::{Result, SpecError, created, generic_resources, updated, version};
use crate::{engine::ActiveSwarm, wire};

pub(crate) fn node_spec(spec: wire::NodeSpec) -> Result<NodeSpec> {
    Ok(NodeSpec {
        name: spec.name,
        labels: spec.labels,
        role: match spec.role.as_str() {
            "worker" => Role::Worker,
            "manager" => Role::Manager,
            other => {
                let message = format!("invalid Role: {other:?}");
                return Err(SpecError::invalid("Role", message));
            }
        },
        availability: availability(&spec.availability)?,
    })
}

pub(crate) fn availability(text: &str) -> Result<Availability> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => {
            let message = format!("invalid Availability: {other:?}");
            Err(SpecError::invalid("Availability", message))
        }
    }
}

pub(crate) fn node(node: &Node, swarm: &ActiveSwarm) -> wire::Node {
    // A manager that nobody has tried to reach lately is judged by its node.
    let is_reachable = swarm.leader == Some(node.id)
        || swarm
            .reachability
            .get(&node.id)
            .copied()
            .unwrap_or(node.status.state != NodeState::Down);
    let description = &node.description;
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    wire::Node {
        id: node.id.to_string(),
        version: version(&node.meta),
        created_at: created(&node.meta),
        updated_at: updated(&node.meta),
        spec: wire::NodeSpec {
            name: node.spec.name.clone(),
            labels: node.spec.labels.clone(),
            role: node.spec.role.as_str().to_owned(),
            availability: node.spec.availability.as_str().to_owned(),
        },
        description: wire::NodeDescription {
            hostname: description.hostname.clone(),
            platform: wire::Platform {
                architecture: description.platform.architecture.clone(),
                os: description.platform.os.clone(),
            },
            resources: wire::Resources {
                nano_cpus: signed(description.resources.nano_cpus),
                memory_bytes: signed(description.resources.memory_bytes),
                generic_resources: generic_resources(&description.resources.generic),
            },
            engine: wire::EngineDescription {
                engine_version: description.engine_version.clone(),
                labels: description.engine_labels.clone(),
                plugins: description
                    .plugins
                    .iter()
                    .map(|(kind, name)| wire::PluginDescription {
                        kind: kind.clone(),
                        name: name.clone(),
                    })
                    .collect(),
            },
            tls_info: wire::TlsInfo {
                trust_root: swarm.trust_root.clone(),
                ..wire::TlsInfo::default()
            },
        },
        status: wire::NodeStatus {
            state: node.status.state.as_str().to_owned(),
            message: node.status.message.clone(),
            addr: node.status.addr.clone(),
        },
        manager_status: node.manager.as_ref().map(|manager| wire::ManagerStatus {
            leader: swarm.leader == Some(node.id),
            reachability: if is_reachable {
                "reachable"
            } else {
                "unreachable"
            }
            .to_owned(),
            addr: manager.addr.clone(),
        }),
    }
}
