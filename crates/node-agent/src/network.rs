//! From assignments to what the node's datapath should look like: pure translation.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use shoal_network::{self as datapath, NetworkState, Overlay, Published, PublishedTarget, Vip};
use shoal_types::{
    NetworkId, NodeId, TaskState,
    object::Task,
    spec::{Protocol, PublishMode},
    wire::{Assignments, NetworkAssignment},
};

/// The networks of `assignments` as the datapath takes them.
///
/// `gone` are addresses of this node's own tasks that no longer serve (their container has ended, or
/// is about to be stopped): they leave the balancing at once, without waiting for a manager to say so.
///
/// `nodes` is how the networks reach other nodes.
pub fn desired(
    assignments: &Assignments,
    gone: &BTreeSet<(NetworkId, Ipv4Addr)>,
    nodes: &Nodes,
) -> Vec<NetworkState> {
    assignments
        .networks
        .iter()
        .map(|network| NetworkState {
            id: network.id.to_string(),
            subnet: network.subnet,
            gateway: network.gateway,
            internal: network.internal,
            ingress: network.ingress,
            mtu: network.mtu,
            // For those who ask published ports; without a way out there are none.
            ipv6: network.ingress || !network.internal,
            vips: vips(network, gone),
            published: ingress_ports(network)
                .chain(host_ports(network, &assignments.tasks))
                .collect(),
            names: names(network, gone),
            overlay: nodes.overlay(network),
        })
        .collect()
}

/// Addresses that must not get new connections, as far as the node knows better than `set`: of its own
/// tasks that do not serve. `shown` are the tasks as they are on the node, and how far each has come. An
/// address that `set` says is another task's by now, here or elsewhere, is that one's affair.
pub fn gone<'a>(
    set: &'a Assignments,
    shown: impl Iterator<Item = (&'a Task, TaskState)>,
) -> BTreeSet<(NetworkId, Ipv4Addr)> {
    let mut owners = BTreeMap::new();
    for network in &set.networks {
        let endpoints = network.endpoints.iter();
        owners.extend(endpoints.map(|endpoint| ((network.id, endpoint.addr), endpoint.task)));
    }
    // It runs, and is not about to stop.
    let serves = |task: &Task, state| state == TaskState::Running && task.desired.wants_run();
    let idle = shown.filter(|(task, state)| !serves(task, *state));
    let stopping = set.tasks.iter().filter(|task| !task.desired.wants_run());
    idle.map(|(task, _)| task)
        .chain(stopping.map(AsRef::as_ref))
        .flat_map(|task| {
            let attachments = task.attachments.iter();
            attachments.map(|a| (task.id, (a.network, a.addr)))
        })
        .filter(|(task, at)| owners.get(at).is_none_or(|owner| owner == task))
        .map(|(_, at)| at)
        .collect()
}

/// How this node's networks reach those of other nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// This node's data address and the port; `None` where there is no traffic between nodes.
    here: Option<(IpAddr, u16)>,
    /// All others with an address of the same version, and never this one.
    peers: BTreeMap<NodeId, IpAddr>,
    /// Why some of them, or all, are out of reach.
    pub problems: Vec<String>,
}

impl Nodes {
    /// `data_addr` is that of this node.
    pub fn of(assignments: &Assignments, data_addr: Option<IpAddr>) -> Self {
        let mut nodes = Self::default();
        let port = assignments.data_path_port;
        let local = match data_addr {
            _ if port == 0 => return nodes,
            Some(local) => local,
            None if assignments.peers.is_empty() => return nodes,
            None => {
                nodes.problems.push(
                    "the node has no data path address: containers on other nodes are out of \
                     reach; give it one with --data-path-addr"
                        .to_owned(),
                );
                return nodes;
            }
        };
        nodes.here = Some((local, port));
        for peer in &assignments.peers {
            let addr = peer.addr;
            if addr.is_ipv4() == local.is_ipv4() {
                nodes.peers.insert(peer.node, addr);
                continue;
            }
            nodes.problems.push(format!(
                "node {} has the data path address {addr}, and this node {local}: its containers \
                 are out of reach; give all nodes addresses of one version with --data-path-addr",
                peer.node
            ));
        }
        nodes
    }

    fn overlay(&self, network: &NetworkAssignment) -> Option<Overlay> {
        let (local, port) = self.here?;
        let at = |node| self.peers.get(node).copied();
        let remote = network.endpoints.iter();
        Some(Overlay {
            vni: network.vni,
            port,
            local,
            peers: self.peers.values().copied().collect(),
            remote: remote
                .filter_map(|e| Some((e.addr, at(&e.node)?)))
                .collect(),
        })
    }
}

fn vips(network: &NetworkAssignment, gone: &BTreeSet<(NetworkId, Ipv4Addr)>) -> Vec<Vip> {
    network
        .services
        .iter()
        .filter_map(|service| {
            let backends = live(network, &service.backends, gone);
            service.virtual_ip.map(|addr| Vip { addr, backends })
        })
        .collect()
}

fn live(
    network: &NetworkAssignment,
    backends: &[Ipv4Addr],
    gone: &BTreeSet<(NetworkId, Ipv4Addr)>,
) -> Vec<Ipv4Addr> {
    backends
        .iter()
        .copied()
        .filter(|addr| !gone.contains(&(network.id, *addr)))
        .collect()
}

fn ingress_ports(network: &NetworkAssignment) -> impl Iterator<Item = Published> {
    network.services.iter().flat_map(|service| {
        let vip = service.virtual_ip;
        service.published.iter().filter_map(move |port| {
            Some(Published {
                protocol: protocol(port.protocol),
                host_ip: None,
                port: port.published,
                to: PublishedTarget::Vip {
                    addr: vip?,
                    port: port.target,
                },
            })
        })
    })
}

/// Ports in host mode of tasks whose first network is this one.
fn host_ports(
    network: &NetworkAssignment,
    tasks: &[std::sync::Arc<Task>],
) -> impl Iterator<Item = Published> {
    let here = tasks.iter().filter_map(|task| {
        let first = task
            .attachments
            .first()
            .filter(|first| first.network == network.id)?;
        let serves = task.desired.wants_run() && !task.status.state.is_terminal();
        serves.then_some((task, first.addr))
    });
    here.flat_map(|(task, addr)| {
        let ports = task.endpoint.ports.iter();
        ports
            .filter(|p| p.mode == PublishMode::Host && p.published != 0)
            .map(move |port| Published {
                protocol: protocol(port.protocol),
                host_ip: None,
                port: port.published,
                to: PublishedTarget::Container {
                    addr,
                    port: port.target,
                },
            })
    })
}

/// Service names and aliases, `tasks.` names, and container names. The ingress network has none.
fn names(
    network: &NetworkAssignment,
    gone: &BTreeSet<(NetworkId, Ipv4Addr)>,
) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let mut names: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    if network.ingress {
        return names;
    }
    for service in &network.services {
        let backends = live(network, &service.backends, gone);
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            let addrs = service
                .virtual_ip
                .map_or_else(|| backends.clone(), |vip| vec![vip]);
            names.entry(name.clone()).or_default().extend(addrs);
            names
                .entry(format!("tasks.{name}"))
                .or_default()
                .extend(&backends);
        }
    }
    for endpoint in &network.endpoints {
        if !gone.contains(&(network.id, endpoint.addr)) {
            names
                .entry(endpoint.name.clone())
                .or_default()
                .push(endpoint.addr);
        }
    }
    names
}

fn protocol(protocol: Protocol) -> datapath::Protocol {
    match protocol {
        Protocol::Tcp => datapath::Protocol::Tcp,
        Protocol::Udp => datapath::Protocol::Udp,
        Protocol::Sctp => datapath::Protocol::Sctp,
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::{
        ServiceId, TaskId,
        object::NetworkAttachment,
        wire::{DataPeer, NetworkEndpoint, NetworkService, PublishedPort},
    };

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 6);
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

    fn assignments(ingress: bool) -> Assignments {
        let service = NetworkService {
            id: ServiceId::from_random([1; 17]),
            name: "web".to_owned(),
            aliases: vec!["www".to_owned()],
            virtual_ip: Some(VIP),
            backends: vec![A, B],
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                published: 8080,
                target: 80,
            }],
        };
        let endpoint = NetworkEndpoint {
            addr: A,
            task: TaskId::from_random([2; 17]),
            name: "web.1.x".to_owned(),
            node: NodeId::from_random([3; 17]),
        };
        let network = NetworkAssignment {
            id: NetworkId::from_random([4; 17]),
            name: "net".to_owned(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 1, 1),
            vni: 4097,
            internal: false,
            ingress,
            mtu: None,
            services: vec![service],
            endpoints: vec![endpoint],
        };
        Assignments {
            networks: vec![std::sync::Arc::new(network)],
            ..Assignments::default()
        }
    }

    fn node(n: u8) -> NodeId {
        NodeId::from_random([n; 17])
    }

    #[test]
    fn endpoints_on_other_nodes_are_reached_at_those() {
        let mut set = assignments(false);
        let endpoint = set.networks[0].endpoints[0].clone();
        let on = |addr, n| NetworkEndpoint {
            addr,
            node: node(n),
            ..endpoint.clone()
        };
        // On node 5, and on node 6, which is down and so no peer.
        let down = Ipv4Addr::new(10, 0, 1, 7);
        std::sync::Arc::make_mut(&mut set.networks[0])
            .endpoints
            .extend([on(B, 5), on(down, 6)]);
        set.data_path_port = 4789;
        let peer = |n, addr: &str| DataPeer {
            node: node(n),
            addr: addr.parse().unwrap(),
        };
        set.peers = vec![peer(5, "192.0.2.5"), peer(7, "2001:db8::7")];
        let nodes = Nodes::of(&set, Some("192.0.2.3".parse().unwrap()));
        let there = IpAddr::from([192, 0, 2, 5]);
        let overlay = Overlay {
            vni: 4097,
            port: 4789,
            local: [192, 0, 2, 3].into(),
            peers: [there].into(),
            remote: [(B, there)].into(),
        };
        let state = &desired(&set, &BTreeSet::new(), &nodes)[0];
        assert_eq!(state.overlay, Some(overlay));
        assert_eq!(nodes.problems.len(), 1, "{:?}", nodes.problems);
        assert!(nodes.problems[0].contains("2001:db8::7"));
    }

    #[test]
    fn a_node_without_a_usable_address_says_so_only_when_there_are_others() {
        let mut set = assignments(false);
        assert_eq!(
            Nodes::of(&set, Some([192, 0, 2, 3].into())),
            Nodes::default()
        );
        set.data_path_port = 4789;
        assert_eq!(Nodes::of(&set, None), Nodes::default());
        set.peers = vec![DataPeer {
            node: node(5),
            addr: [192, 0, 2, 5].into(),
        }];
        let nodes = Nodes::of(&set, None);
        assert!(nodes.problems[0].contains("--data-path-addr"));
        assert_eq!(desired(&set, &BTreeSet::new(), &nodes)[0].overlay, None);
    }

    #[test]
    fn nodes_at_ipv6_addresses_reach_each_other_and_no_others() {
        let mut set = assignments(false);
        set.data_path_port = 4789;
        let peer = |n, addr: &str| DataPeer {
            node: node(n),
            addr: addr.parse().unwrap(),
        };
        set.peers = vec![peer(5, "192.0.2.5"), peer(7, "2001:db8::7")];
        let local: IpAddr = "2001:db8::3".parse().unwrap();
        let nodes = Nodes::of(&set, Some(local));
        let overlay = desired(&set, &BTreeSet::new(), &nodes)[0].overlay.clone();
        let overlay = overlay.unwrap();
        assert_eq!(overlay.local, local);
        assert_eq!(overlay.peers, [set.peers[1].addr].into());
        assert_eq!(nodes.problems.len(), 1, "{:?}", nodes.problems);
        assert!(nodes.problems[0].contains("192.0.2.5"));
    }

    #[test]
    fn names_lead_to_the_vip_and_to_the_tasks() {
        let state = &desired(&assignments(false), &BTreeSet::new(), &Nodes::default())[0];
        assert_eq!(state.names["web"], [VIP]);
        assert_eq!(state.names["www"], [VIP]);
        assert_eq!(state.names["tasks.web"], [A, B]);
        assert_eq!(state.names["web.1.x"], [A]);
        assert_eq!(
            state.vips,
            [Vip {
                addr: VIP,
                backends: vec![A, B]
            }]
        );
    }

    #[test]
    fn a_task_that_is_gone_is_neither_balanced_to_nor_named() {
        let set = assignments(false);
        let gone = [(set.networks[0].id, A)].into();
        let state = &desired(&set, &gone, &Nodes::default())[0];
        assert_eq!(state.vips[0].backends, [B]);
        assert_eq!(state.names["tasks.web"], [B]);
        assert!(!state.names.contains_key("web.1.x"));
    }

    #[test]
    fn an_address_of_an_ended_task_serves_again_once_it_is_anothers() {
        let mut set = assignments(false);
        let network = set.networks[0].id;
        let mut ended = crate::task::tests::task();
        ended.desired = shoal_types::Desired::Shutdown;
        ended.attachments = vec![NetworkAttachment {
            network,
            addr: A,
            aliases: Vec::new(),
        }];
        std::sync::Arc::make_mut(&mut set.networks[0]).endpoints[0].task = ended.id;
        let shown = || [(&ended, TaskState::Shutdown)].into_iter();
        assert_eq!(gone(&set, shown()), [(network, A)].into());
        // On another node, where this one sees nothing of it.
        std::sync::Arc::make_mut(&mut set.networks[0]).endpoints[0].task =
            TaskId::from_random([2; 17]);
        assert_eq!(gone(&set, shown()), BTreeSet::new());
    }

    #[test]
    fn the_ingress_network_publishes_and_has_no_names() {
        let state = &desired(&assignments(true), &BTreeSet::new(), &Nodes::default())[0];
        assert!(state.names.is_empty());
        let to = PublishedTarget::Vip {
            addr: VIP,
            port: 80,
        };
        let tcp = datapath::Protocol::Tcp;
        assert_eq!(
            state.published,
            [Published {
                protocol: tcp,
                host_ip: None,
                port: 8080,
                to
            }]
        );
    }
}
