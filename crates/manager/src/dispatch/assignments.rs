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

/// What a node that was removed is to run: nothing. It may go on asking, and be told why it is refused.
pub(super) fn nothing(state: &State) -> Assignments {
    Assignments {
        generation: generation(state),
        managers: managers(state),
        ..Assignments::default()
    }
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

/// A task that takes new connections. One on a node that is down does not, whatever it was told to do.
fn is_backend(state: &State, task: &Task, node: NodeId) -> bool {
    let is_down = |node: &Arc<Node>| node.status.state == NodeState::Down;
    task.status.state == TaskState::Running
        && task.desired.wants_run()
        && !state.node(&node).is_some_and(is_down)
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
                    if is_backend(state, task, node) {
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

#[cfg(test)]
mod tests {
    use shoal_raft_store::{Change, Command};
    use shoal_types::{
        ConfigId, Desired, SecretId, Timestamp,
        object::{Config, Meta, NodeStatus, Secret},
        spec::{FileReference, ServiceMode},
    };

    use super::*;
    use crate::testing;

    fn apply(state: &mut State, change: Change) {
        let command = Command {
            at: Timestamp::EPOCH,
            changes: vec![change],
        };
        let version = Version(state.version().0 + 1);
        state.apply(version, &command).unwrap();
    }

    fn reference<Id>(id: Id) -> FileReference<Id> {
        FileReference {
            id,
            name: "file".to_owned(),
            target: "file".to_owned(),
            uid: "0".to_owned(),
            gid: "0".to_owned(),
            mode: 0o444,
        }
    }

    fn secret(n: u8) -> SecretId {
        SecretId::from_random([n; 17])
    }

    fn config(n: u8) -> ConfigId {
        ConfigId::from_random([n; 17])
    }

    /// Nodes 1 to 3. A task on each of the first two uses the secret and the config of the node's number;
    /// those with number 3 nobody uses.
    fn state() -> State {
        let mut state = State::default();
        for change in testing::cluster_changes() {
            apply(&mut state, change);
        }
        for n in 1..=3 {
            apply(&mut state, Change::CreateNode(Box::new(testing::node(n))));
        }
        for n in 1..=3 {
            let (meta, labels, data) = (Meta::default(), BTreeMap::new(), vec![n]);
            let of_secret = Secret {
                id: secret(n),
                meta,
                name: format!("secret-{n}"),
                labels: labels.clone(),
                data: data.clone(),
            };
            let of_config = Config {
                id: config(n),
                meta,
                name: format!("config-{n}"),
                labels,
                data,
            };
            apply(&mut state, Change::CreateSecret(Box::new(of_secret)));
            apply(&mut state, Change::CreateConfig(Box::new(of_config)));
        }
        for n in 1..=2 {
            let mode = ServiceMode::Replicated { replicas: 1 };
            let mut spec = testing::service_spec(&format!("service-{n}"), mode);
            let mut container = spec.task.container.clone();
            let number = u8::try_from(n).unwrap();
            container.secrets = vec![reference(secret(number))];
            container.configs = vec![reference(config(number))];
            let mut of_task = testing::task_spec();
            of_task.container = container;
            spec.task = of_task.clone().into();
            let id = testing::service_id(n);
            let spec = Box::new(spec);
            apply(&mut state, Change::CreateService { id, spec });
            let mut task = testing::task(n, n);
            task.spec = of_task.into();
            task.spec_version = state.service(&id).unwrap().meta.version;
            task.node = Some(testing::node_id(n));
            task.status.state = TaskState::Running;
            apply(&mut state, Change::CreateTask(Box::new(task)));
        }
        state
    }

    fn files(state: &State, node: u32) -> (Vec<SecretId>, Vec<ConfigId>) {
        let set = assignments(state, testing::node_id(node));
        (
            set.secrets.iter().map(|secret| secret.id).collect(),
            set.configs.iter().map(|config| config.id).collect(),
        )
    }

    #[test]
    fn a_node_is_given_the_secrets_and_configs_of_its_own_tasks_while_they_are_to_run() {
        let mut state = state();
        assert_eq!(files(&state, 1), (vec![secret(1)], vec![config(1)]));
        assert_eq!(files(&state, 2), (vec![secret(2)], vec![config(2)]));
        assert_eq!(files(&state, 3), (vec![], vec![]));
        let stop = Change::SetTaskDesired {
            id: testing::task_id(1),
            desired: Desired::Shutdown,
        };
        apply(&mut state, stop);
        assert_eq!(files(&state, 1), (vec![], vec![]));
    }

    #[test]
    fn a_node_that_was_removed_is_to_run_nothing_at_a_newer_generation() {
        let mut state = state();
        let node = testing::node_id(1);
        let before = assignments(&state, node);
        assert_eq!(before.tasks.len(), 1);
        apply(&mut state, Change::RemoveNode { id: node });
        let after = nothing(&state);
        assert!(after.generation > before.generation);
        assert!(after.tasks.is_empty() && after.networks.is_empty() && after.secrets.is_empty());
    }

    #[test]
    fn tasks_of_a_node_that_is_down_take_no_connections() {
        let mut state = state();
        let (task, node) = (testing::task_id(1), testing::node_id(1));
        let serves = |state: &State| is_backend(state, state.task(&task).unwrap(), node);
        assert!(serves(&state));
        let status = NodeStatus {
            state: NodeState::Down,
            ..testing::node(1).status
        };
        apply(&mut state, Change::SetNodeStatus { id: node, status });
        assert!(!serves(&state));
    }
}
