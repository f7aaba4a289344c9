//! The tasks of this node: for each one a worker that takes one idempotent step at a time.
//!
//! `machine` decides, `worker` does, `memory` pretends to, `health` knows how containers are, and `container`, `files`, `mounts`,
//! `resources` and `template` translate a task into a container.

pub(crate) mod container;
pub(crate) mod files;
pub(crate) mod health;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod mounts;
pub(crate) mod resources;
pub(crate) mod signal;
pub(crate) mod template;
pub(crate) mod worker;

use sha2::{Digest, Sha256};
use shoal_types::{ContainerId, TaskId};

/// The container of a task. Derived, so that an agent that lost its memory finds the container again,
/// and making it twice is not possible.
pub fn container_id(task: &TaskId) -> ContainerId {
    let mut digest = Sha256::new();
    digest.update(b"shoal task ");
    digest.update(task.as_str());
    ContainerId::from_random(digest.finalize().into())
}

#[cfg(test)]
pub(crate) mod tests {
    use shoal_types::{
        Desired, NodeId, ServiceId, Slot, TaskStatus, Timestamp, Version,
        object::{EndpointAtBirth, Meta, NodeDescription, Task, TaskPlace},
        spec::{ContainerSpec, Placement, Resources, RestartPolicy, TaskSpec},
    };

    use super::*;

    pub(crate) fn node() -> NodeDescription {
        NodeDescription {
            hostname: "host-a".to_owned(),
            ..NodeDescription::default()
        }
    }

    pub(crate) fn task() -> Task {
        Task {
            id: TaskId::from_random([7; 17]),
            meta: Meta::default(),
            service: ServiceId::from_random([8; 17]),
            service_name: "web".to_owned(),
            place: TaskPlace::Slot(Slot(3)),
            spec: TaskSpec {
                container: ContainerSpec::new("busybox"),
                limits: Resources::default(),
                reservations: Resources::default(),
                restart: RestartPolicy::default(),
                placement: Placement::default(),
                networks: Vec::new(),
                force_update: 0,
                log_driver: None,
            }
            .into(),
            service_labels: [("tier".to_owned(), "front".to_owned())].into(),
            spec_version: Version(1),
            node: Some(NodeId::from_random([9; 17])),
            desired: Desired::Running,
            status: TaskStatus::default(),
            attachments: Vec::new(),
            endpoint: EndpointAtBirth::default(),
            generic: Vec::new(),
            not_before: Timestamp::EPOCH,
        }
    }

    #[test]
    fn a_task_always_has_the_same_container() {
        let id = TaskId::from_random([1; 17]);
        assert_eq!(container_id(&id), container_id(&id));
        assert_ne!(
            container_id(&id),
            container_id(&TaskId::from_random([2; 17]))
        );
    }
}
