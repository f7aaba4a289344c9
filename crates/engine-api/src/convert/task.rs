//! Tasks into Docker's JSON.

use shoal_types::{
    NetworkId,
    object::{Network, Task, TaskPlace},
    spec::ServiceMode,
};

use super::{
    created, generic_resources, port_config, swarm_network, task_spec_out, updated, version,
};
use crate::wire;

/// `network` finds a network that a task is attached to; `mode` is that of its service, if it still exists.
pub(crate) fn task<'a>(
    task: &Task,
    mode: Option<ServiceMode>,
    network: &dyn Fn(NetworkId) -> Option<&'a Network>,
) -> wire::Task {
    let job = matches!(
        mode,
        Some(ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob)
    );
    let status = &task.status;
    wire::Task {
        id: task.id.to_string(),
        version: version(&task.meta),
        created_at: created(&task.meta),
        updated_at: updated(&task.meta),
        // Docker leaves the name of a task empty; its clients put it together from service and slot.
        name: String::new(),
        labels: wire::Map::new(),
        spec: task_spec_out(&task.spec, false),
        service_id: task.service.to_string(),
        slot: match task.place {
            TaskPlace::Slot(slot) => slot.0,
            TaskPlace::Node(_) => 0,
        },
        node_id: task.node.map(|node| node.to_string()).unwrap_or_default(),
        status: wire::TaskStatus {
            timestamp: status.at.into(),
            state: status.state.as_str().to_owned(),
            message: status.message.clone(),
            err: status.err.clone(),
            container_status: status.container.as_ref().map(|c| wire::ContainerStatus {
                container_id: c.id.to_string(),
                pid: c.pid,
                exit_code: c.exit_code,
            }),
            port_status: wire::PortStatus {
                ports: status.ports.iter().map(port_config).collect(),
            },
        },
        desired_state: task.desired.as_state().as_str().to_owned(),
        networks_attachments: task
            .attachments
            .iter()
            .map(|attachment| {
                let found = network(attachment.network);
                let prefix = found.map_or(32, |n| n.subnet.prefix());
                wire::NetworkAttachment {
                    network: found.map_or_else(
                        || wire::SwarmNetwork {
                            id: attachment.network.to_string(),
                            ..wire::SwarmNetwork::default()
                        },
                        swarm_network,
                    ),
                    addresses: vec![format!("{}/{prefix}", attachment.addr)],
                }
            })
            .collect(),
        generic_resources: generic_resources(&task.generic),
        job_iteration: job.then_some(wire::Version {
            index: task.spec_version.0,
        }),
        volumes: None,
    }
}
