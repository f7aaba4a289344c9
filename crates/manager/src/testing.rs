//! Objects for tests.

use std::{collections::BTreeMap, net::Ipv4Addr};

use shoal_raft_store::Change;
use shoal_types::{
    ClusterId, Desired, NetworkId, NodeId, ServiceId, Slot, TaskId, TaskStatus, Timestamp, Version,
    object::{
        Cluster, EndpointAtBirth, Meta, Network, Node, NodeDescription, NodeResources, NodeState,
        NodeStatus, Task, TaskPlace,
    },
    spec::{
        Availability, ContainerSpec, EndpointSpec, Ipv4Net, NetworkSpec, NodeSpec, Placement,
        Platform, Resources, RestartPolicy, Role, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
    },
};

fn bytes(n: u32) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[13..].copy_from_slice(&n.to_be_bytes());
    bytes
}

pub(crate) fn node_id(n: u32) -> NodeId {
    NodeId::from_random(bytes(n))
}

pub(crate) fn service_id(n: u32) -> ServiceId {
    ServiceId::from_random(bytes(n))
}

pub(crate) fn task_id(n: u32) -> TaskId {
    TaskId::from_random(bytes(n))
}

pub(crate) fn network_id(n: u32) -> NetworkId {
    NetworkId::from_random(bytes(n))
}

/// A ready manager with 2 processors and 1 GiB.
pub(crate) fn node(n: u32) -> Node {
    Node {
        id: node_id(n),
        meta: Meta::default(),
        spec: NodeSpec {
            name: String::new(),
            labels: BTreeMap::new(),
            role: Role::Manager,
            availability: Availability::Active,
        },
        description: NodeDescription {
            hostname: format!("node-{n}"),
            platform: Platform {
                architecture: "x86_64".to_owned(),
                os: "linux".to_owned(),
            },
            resources: NodeResources {
                nano_cpus: 2_000_000_000,
                memory_bytes: 1 << 30,
                generic: Vec::new(),
            },
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: format!("10.200.0.{}", n % 250),
            since: Timestamp::EPOCH,
        },
        manager: None,
    }
}

pub(crate) fn task_spec() -> TaskSpec {
    TaskSpec {
        container: ContainerSpec::new("shoal/hello"),
        limits: Resources::default(),
        reservations: Resources::default(),
        restart: RestartPolicy::default(),
        placement: Placement::default(),
        networks: Vec::new(),
        force_update: 0,
        log_driver: None,
    }
}

pub(crate) fn service_spec(name: &str, mode: ServiceMode) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        labels: BTreeMap::new(),
        task: task_spec().into(),
        mode,
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    }
}

/// Task `id` of service `service`, slot 1, wanted and without a node.
pub(crate) fn task(service: u32, id: u32) -> Task {
    Task {
        id: task_id(id),
        meta: Meta::default(),
        service: service_id(service),
        service_name: format!("service-{service}"),
        place: TaskPlace::Slot(Slot(1)),
        spec: task_spec().into(),
        service_labels: BTreeMap::new(),
        spec_version: Version(1),
        node: None,
        desired: Desired::Running,
        status: TaskStatus::default(),
        attachments: Vec::new(),
        endpoint: EndpointAtBirth::default(),
        generic: Vec::new(),
        not_before: Timestamp::EPOCH,
    }
}

/// A cluster with its two predefined networks and one more, number 3.
pub(crate) fn cluster_changes() -> Vec<Change> {
    let cluster = Cluster {
        id: ClusterId::from_random([1; 17]),
        meta: Meta::default(),
        name: "default".to_owned(),
        labels: BTreeMap::new(),
        task_history_limit: 5,
        address_pools: vec!["10.0.0.0/8".parse().unwrap()],
        subnet_prefix: 24,
        data_path_port: 4789,
        trust: Default::default(),
        epoch: 0,
        heartbeat_period: Cluster::HEARTBEAT_PERIOD,
    };
    let network = |n: u32, name: &str, ingress: bool| {
        let subnet = Ipv4Net::containing(Ipv4Addr::new(10, 0, u8::try_from(n).unwrap() - 1, 0), 24);
        let subnet = subnet.unwrap();
        Change::CreateNetwork(Box::new(Network {
            id: network_id(n),
            meta: Meta::default(),
            spec: NetworkSpec {
                name: name.to_owned(),
                driver: "overlay".to_owned(),
                ingress,
                ..NetworkSpec::default()
            },
            subnet,
            gateway: subnet.nth(1).unwrap(),
            vni: 4095 + n,
            predefined: n < 3,
        }))
    };
    vec![
        Change::CreateCluster(Box::new(cluster)),
        network(1, "ingress", true),
        network(2, "bridge", false),
        network(3, "front", false),
    ]
}
