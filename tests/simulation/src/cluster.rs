//! The objects that a new cluster begins with.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use shoal_raft_store::Change;
use shoal_types::{
    ClusterId, NetworkId, NodeId, RaftId, Timestamp,
    object::{
        Cluster, ManagerStatus, Meta, Network, Node, NodeDescription, NodeResources, NodeState,
        NodeStatus,
    },
    spec::{
        Availability, ContainerSpec, EndpointSpec, Ipv4Net, NetworkSpec, NodeSpec, Placement,
        Platform, Resources, RestartPolicy, Role, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
    },
};

/// Tasks kept for each slot.
pub(crate) const HISTORY: usize = 5;

/// The cluster and its two predefined networks.
pub(crate) fn founding() -> Vec<Change> {
    let cluster = Cluster {
        id: ClusterId::from_random([1; 17]),
        meta: Meta::default(),
        name: "default".to_owned(),
        labels: BTreeMap::new(),
        task_history_limit: 5,
        address_pools: vec![net(Ipv4Addr::new(10, 0, 0, 0), 8)],
        subnet_prefix: 24,
        data_path_port: 4789,
        trust: Default::default(),
        epoch: 0,
        heartbeat_period: Cluster::HEARTBEAT_PERIOD,
    };
    let network = |n: u8, name: &str, prefix: u8, ingress: bool| {
        let subnet = net(Ipv4Addr::new(10, 64 + n, 0, 0), prefix);
        Change::CreateNetwork(Box::new(Network {
            id: NetworkId::from_random([n; 17]),
            meta: Meta::default(),
            spec: NetworkSpec {
                name: name.to_owned(),
                driver: "overlay".to_owned(),
                ingress,
                ..NetworkSpec::default()
            },
            subnet,
            gateway: subnet.nth(1).expect("it has more than one address"),
            vni: 4096 + u32::from(n),
            predefined: true,
        }))
    };
    vec![
        Change::CreateCluster(Box::new(cluster)),
        network(1, "ingress", 24, true),
        network(2, "bridge", 24, false),
    ]
}

/// Gives a network of the founding room for a million tasks and more.
pub(crate) fn widen(network: &mut Network) {
    let first = if network.spec.ingress { 16 } else { 32 };
    network.subnet = net(Ipv4Addr::new(10, first, 0, 0), 12);
    network.gateway = network.subnet.nth(1).expect("it has more than one address");
}

fn net(addr: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::containing(addr, prefix).expect("the prefix is below 33")
}

pub(crate) fn description(index: usize, data_addr: IpAddr) -> NodeDescription {
    NodeDescription {
        hostname: format!("host-{index}"),
        platform: Platform {
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
        },
        resources: NodeResources {
            nano_cpus: 2_000_000_000,
            memory_bytes: 1 << 30,
            generic: Vec::new(),
        },
        data_addr: Some(data_addr),
        ..NodeDescription::default()
    }
}

/// Machine `index` as it joins.
pub(crate) fn node(id: NodeId, index: usize, manager: Option<usize>, data_addr: IpAddr) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec {
            name: String::new(),
            labels: BTreeMap::new(),
            role: if manager.is_some() {
                Role::Manager
            } else {
                Role::Worker
            },
            availability: Availability::Active,
        },
        description: description(index, data_addr),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: String::new(),
            addr: data_addr.to_string(),
            since: Timestamp::EPOCH,
        },
        manager: manager.map(|raft| ManagerStatus {
            raft: RaftId(raft as u64 + 1),
            addr: format!("host-{index}:2377"),
        }),
    }
}

pub(crate) fn service(name: &str, image: &str, mode: ServiceMode) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        labels: BTreeMap::new(),
        task: TaskSpec {
            container: ContainerSpec::new(image),
            limits: Resources::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            force_update: 0,
            log_driver: None,
        }
        .into(),
        mode,
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    }
}
