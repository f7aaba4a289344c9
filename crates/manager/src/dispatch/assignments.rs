//! What one node is to run and know, as a function of the state.

use std::{collections::BTreeMap, sync::Arc};

use shoal_raft_store::{AddressOwner, State};
use shoal_types::{
    Generation, NetworkId, NodeId, ServiceId, TaskState, Version,
    object::{Network, Node, NodeState, Service, Task},
    spec::{EndpointMode, PublishMode, Role},
    wire::{
        Assignments, DataPeer, ManagerPeer, NetworkAssignment, NetworkEndpoint, NetworkService,
        PublishedPort,
    },
};

/// Bits of a generation that count versions; those above count epochs.
const VERSION_BITS: u32 = 48;

/// The state's version, which every leader goes on from, after the epoch, since the first of a new one
/// may be an older version than the last of the one before.
fn generation(state: &State) -> Generation {
    let epoch = state.cluster().map_or(0, |cluster| cluster.epoch);
    Generation(u64::from(epoch) << VERSION_BITS | state.version().0)
}

/// Networks as nodes need to know them, made once for a state and shared by all nodes.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    version: Option<Version>,
    made: BTreeMap<NetworkId, Arc<NetworkAssignment>>,
}

impl Networks {
    /// The network as it is in `state`. One that is as it was before is the same allocation.
    fn get(&mut self, state: &State, network: &Network) -> Arc<NetworkAssignment> {
        if self.version != Some(state.version()) {
            self.version = Some(state.version());
            let known = std::mem::take(&mut self.made);
            for (id, before) in known {
                if let Some(network) = state.network(&id) {
                    let now = network_assignment(state, network);
                    let kept = if *before == now {
                        before
                    } else {
                        Arc::new(now)
                    };
                    self.made.insert(id, kept);
                }
            }
        }
        let made = self.made.entry(network.id);
        made.or_insert_with(|| Arc::new(network_assignment(state, network)))
            .clone()
    }
}

/// Everything `node` needs.
pub fn assignments(state: &State, node: NodeId) -> Assignments {
    assignments_with(&mut Networks::default(), state, node)
}

/// Everything `node` needs.
pub(crate) fn assignments_with(shared: &mut Networks, state: &State, node: NodeId) -> Assignments {
    let tasks: Vec<Arc<Task>> = state
        .tasks_on(node)
        .filter(|task| is_assigned(task))
        .cloned()
        .collect();
    let mut networks: BTreeMap<NetworkId, &Arc<Network>> = state
        .networks()
        .filter(|network| network.spec.ingress)
        .map(|network| (network.id, network))
        .collect();
    let mut secrets = BTreeMap::new();
    let mut configs = BTreeMap::new();
    for task in tasks.iter().filter(|task| !task.status.state.is_terminal()) {
        for attachment in &task.attachments {
            if let Some(network) = state.network(&attachment.network) {
                networks.insert(network.id, network);
            }
        }
        if !task.desired.wants_run() {
            continue;
        }
        for file in &task.spec.container.secrets {
            secrets.extend(
                state
                    .secret(&file.id)
                    .map(|secret| (file.id, secret.clone())),
            );
        }
        for file in &task.spec.container.configs {
            configs.extend(
                state
                    .config(&file.id)
                    .map(|config| (file.id, config.clone())),
            );
        }
    }
    Assignments {
        generation: generation(state),
        tasks,
        networks: networks
            .into_values()
            .map(|network| shared.get(state, network))
            .collect(),
        secrets: secrets.into_values().collect(),
        configs: configs.into_values().collect(),
        role: state
            .node(&node)
            .map_or(Role::Worker, |node| node.spec.role),
        managers: managers(state),
        peers: peers(state, node),
        data_path_port: state.cluster().map_or(0, |cluster| cluster.data_path_port),
    }
}

/// The managers that other nodes can reach.
pub(crate) fn managers(state: &State) -> Vec<ManagerPeer> {
    let peer = |node: &Arc<Node>| {
        let addr = node.manager.as_ref().map(|manager| manager.addr.clone())?;
        (!addr.is_empty()).then_some(ManagerPeer {
            node: node.id,
            addr,
        })
    };
    state.nodes().filter_map(peer).collect()
}

/// The other nodes that take part in cluster networks. One that is down is left out: its endpoints
/// are gone from every network, and it gets a whole set when it comes back.
fn peers(state: &State, node: NodeId) -> Vec<DataPeer> {
    let others = state
        .nodes()
        .filter(|other| other.id != node && other.status.state != NodeState::Down);
    let peer = |other: &Arc<Node>| {
        let addr = other.description.data_addr?;
        Some(DataPeer {
            node: other.id,
            addr,
        })
    };
    others.filter_map(peer).collect()
}

/// The node has something to do or to undo for the task, or keeps its output: an ended task stays in
/// the set until its record is reaped.
fn is_assigned(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned
}

/// A task that takes new connections.
fn is_backend(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired.wants_run()
}

fn network_assignment(state: &State, network: &Network) -> NetworkAssignment {
    let mut endpoints = Vec::new();
    let mut services: BTreeMap<ServiceId, NetworkService> = BTreeMap::new();
    for (addr, owner) in state.addresses_in(network.id) {
        match owner {
            AddressOwner::Service(id) => {
                if let Some(service) = state.service(&id) {
                    services
                        .entry(id)
                        .or_insert_with(|| network_service(network, service))
                        .virtual_ip = Some(addr);
                }
            }
            AddressOwner::Task(id) => {
                let Some(task) = state.task(&id) else {
                    continue;
                };
                let Some(node) = task.node else { continue };
                endpoints.push(NetworkEndpoint {
                    addr,
                    task: id,
                    name: task.name(),
                    node,
                });
                let service = state
                    .service(&task.service)
                    .filter(|service| is_member(network, service));
                if let Some(service) = service {
                    let entry = services
                        .entry(service.id)
                        .or_insert_with(|| network_service(network, service));
                    if is_backend(task) {
                        entry.backends.push(addr);
                    }
                }
            }
        }
    }
    NetworkAssignment {
        id: network.id,
        name: network.spec.name.clone(),
        subnet: network.subnet,
        gateway: network.gateway,
        vni: network.vni,
        internal: network.spec.internal,
        ingress: network.spec.ingress,
        mtu: network.spec.mtu(),
        services: services.into_values().collect(),
        endpoints,
    }
}

/// The service can be found in the network: it names it, or publishes ports through it.
fn is_member(network: &Network, service: &Service) -> bool {
    let named = service
        .spec
        .task
        .networks
        .iter()
        .any(|attachment| attachment.network == network.id);
    let endpoint = service.endpoint.as_ref();
    let has_vip = endpoint.is_some_and(|endpoint| {
        endpoint
            .virtual_ips
            .iter()
            .any(|vip| vip.network == network.id)
    });
    named && service.spec.endpoint.mode == EndpointMode::DnsRoundRobin || has_vip
}

fn network_service(network: &Network, service: &Service) -> NetworkService {
    let ports = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    let published = ports
        .filter(|port| network.spec.ingress && port.mode == PublishMode::Ingress)
        .map(|port| PublishedPort {
            protocol: port.protocol,
            published: port.published,
            target: port.target,
        });
    let named = service.spec.task.networks.iter();
    let aliases = named
        .filter(|attachment| attachment.network == network.id)
        .flat_map(|attachment| attachment.aliases.iter().cloned());
    NetworkService {
        id: service.id,
        name: service.spec.name.clone(),
        aliases: aliases.collect(),
        virtual_ip: None,
        backends: Vec::new(),
        published: published.collect(),
    }
}
