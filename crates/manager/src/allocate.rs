//! Addresses, ports and subnets.
//!
//! Keeps true: an address belongs to one task or service at a time; addresses are handed out in turn,
//! so that one just given back rests while others are free; a service keeps its addresses and ports as
//! long as it asks for them; whoever gets none is told which range is used up. `apply` has the last
//! word on every address and port.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use shoal_raft_store::{Change, State};
use shoal_types::{
    NetworkId, ServiceId, Timestamp,
    object::{Cluster, Endpoint, Network, NetworkAttachment, Service, Task, VirtualIp},
    spec::{EndpointMode, Ipv4Net, PortConfig, PublishMode, ServiceSpec, TaskSpec},
};

/// Ports for those who name none (SwarmKit `portallocator.go`).
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Network identifiers below are left to operators, as in Swarm.
const FIRST_VNI: u32 = 4096;
const LAST_VNI: u32 = (1 << 24) - 1;

/// Name of the network that tasks without networks and ingress ports are in.
pub(crate) const BRIDGE: &str = "bridge";

/// Hands out addresses. What it remembers is only where to go on; what is taken stands in the state.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    /// The last address given in each network, and when.
    cursors: HashMap<NetworkId, (Timestamp, Ipv4Addr)>,
    /// Given in this pass to tasks that are not in the state yet.
    reserved: BTreeSet<(NetworkId, Ipv4Addr)>,
}

impl Allocator {
    pub(crate) fn new(state: &State) -> Self {
        let mut allocator = Self::default();
        for task in state.tasks() {
            allocator.note_task(task);
        }
        for service in state.services() {
            allocator.note_service(service);
        }
        allocator
    }

    /// Forgets what the last pass reserved: it is in the state by now, or was refused.
    pub(crate) fn start_pass(&mut self) {
        self.reserved.clear();
    }

    pub(crate) fn note_task(&mut self, task: &Task) {
        self.note_task_at(task, task.meta.created_at);
    }

    /// Takes note of a task that is made `at`.
    pub(crate) fn note_task_at(&mut self, task: &Task, at: Timestamp) {
        for attachment in &task.attachments {
            self.note(attachment.network, attachment.addr, at);
        }
    }

    pub(crate) fn note_service(&mut self, service: &Service) {
        for vip in service.endpoint.iter().flat_map(|e| &e.virtual_ips) {
            self.note(vip.network, vip.addr, service.meta.created_at);
        }
    }

    fn note(&mut self, network: NetworkId, addr: Ipv4Addr, at: Timestamp) {
        let cursor = self.cursors.entry(network).or_insert((at, addr));
        if cursor.0 < at {
            *cursor = (at, addr);
        }
    }

    /// What the endpoint of `service` should be: as it is, where that still fits the spec.
    pub(crate) fn endpoint(
        &mut self,
        state: &State,
        service: &Service,
    ) -> Result<Endpoint, String> {
        let spec = &service.spec.endpoint;
        let old = service.endpoint.clone().unwrap_or_default();
        let mut virtual_ips = Vec::new();
        let mut networks = Vec::new();
        if spec.mode == EndpointMode::Vip {
            networks.extend(service.spec.task.networks.iter().map(|n| n.network));
        }
        if publishes_ingress(&spec.ports) {
            networks.push(ingress(state)?.id);
        }
        for id in networks {
            let network = state
                .network(&id)
                .ok_or_else(|| format!("network {id} not found"))?;
            if network.predefined && !network.spec.ingress {
                continue;
            }
            let kept = old.virtual_ips.iter().find(|vip| vip.network == id);
            let addr = match kept {
                Some(vip) => vip.addr,
                None => self.address(state, network)?,
            };
            virtual_ips.push(VirtualIp { network: id, addr });
        }
        Ok(Endpoint {
            mode: spec.mode,
            ports: ports(state, service, &old.ports)?,
            virtual_ips,
        })
    }

    /// An address in each network of a task made for `service` now.
    pub(crate) fn attachments(
        &mut self,
        state: &State,
        task: &TaskSpec,
        ports: &[PortConfig],
    ) -> Result<Vec<NetworkAttachment>, String> {
        let mut attachments = Vec::new();
        for wanted in &task.networks {
            let id = wanted.network;
            let network = state
                .network(&id)
                .ok_or_else(|| format!("network {id} not found"))?;
            attachments.push(NetworkAttachment {
                network: id,
                addr: self.address(state, network)?,
                aliases: wanted.aliases.clone(),
            });
        }
        let implied = if publishes_ingress(ports) {
            Some(ingress(state)?)
        } else if attachments.is_empty() {
            state.network_named(BRIDGE).map(AsRef::as_ref)
        } else {
            None
        };
        if let Some(network) = implied {
            attachments.push(NetworkAttachment {
                network: network.id,
                addr: self.address(state, network)?,
                aliases: Vec::new(),
            });
        }
        Ok(attachments)
    }

    /// The next free address after the one given last, starting over at the end.
    fn address(&mut self, state: &State, network: &Network) -> Result<Ipv4Addr, String> {
        let range = network.spec.ipam.range.unwrap_or(network.subnet);
        let size = range.len();
        let after = self
            .cursors
            .get(&network.id)
            .map_or_else(|| range.addr(), |(_, addr)| *addr);
        let start = if range.contains(after) {
            u64::from(u32::from(after) - u32::from(range.addr()))
        } else {
            0
        };
        let first = network.subnet.addr();
        let last = network.subnet.nth(network.subnet.len() - 1);
        let free = (1..=size)
            .filter_map(|step| range.nth((start + step) % size))
            .find(|addr| {
                *addr != first
                    && Some(*addr) != last
                    && *addr != network.gateway
                    && !self.reserved.contains(&(network.id, *addr))
                    && state.address_owner(network.id, *addr).is_none()
            });
        let Some(addr) = free else {
            return Err(format!(
                "no available IPv4 addresses on network {} ({range} is used up): remove services from \
                 it, or move them to a network with a larger --subnet",
                network.spec.name
            ));
        };
        self.reserved.insert((network.id, addr));
        let at = self
            .cursors
            .get(&network.id)
            .map_or(Timestamp::EPOCH, |c| c.0);
        self.cursors.insert(network.id, (at, addr));
        Ok(addr)
    }
}

/// The change that makes a service. With its endpoint, where that is plain, the leader has one command
/// less to add.
pub(crate) fn creation(id: ServiceId, spec: ServiceSpec) -> Change {
    let endpoint = obvious_endpoint(&spec).map(Box::new);
    let spec = Box::new(spec);
    match endpoint {
        Some(endpoint) => Change::CreateServiceWith { id, spec, endpoint },
        None => Change::CreateService { id, spec },
    }
}

/// The endpoint of a new service that leaves nothing to choose: it needs no address and no port number.
fn obvious_endpoint(spec: &ServiceSpec) -> Option<Endpoint> {
    let addressed = spec.endpoint.mode == EndpointMode::Vip && !spec.task.networks.is_empty();
    let chooses = addressed || publishes_ingress(&spec.endpoint.ports);
    (!chooses).then(|| Endpoint {
        mode: spec.endpoint.mode,
        ports: spec.endpoint.ports.clone(),
        virtual_ips: Vec::new(),
    })
}

pub(crate) fn publishes_ingress(ports: &[PortConfig]) -> bool {
    ports.iter().any(|port| port.mode == PublishMode::Ingress)
}

pub(crate) fn ingress(state: &State) -> Result<&Network, String> {
    state
        .networks()
        .find(|network| network.spec.ingress)
        .map(AsRef::as_ref)
        .ok_or_else(|| "no ingress network: create one with `network create --ingress`".to_owned())
}

/// The ports of the spec; those without a number keep the one they have, or get a free one.
fn ports(state: &State, service: &Service, old: &[PortConfig]) -> Result<Vec<PortConfig>, String> {
    let spec: &ServiceSpec = &service.spec;
    let named = |port: &PortConfig| {
        let mut all = spec.endpoint.ports.iter();
        all.any(|p| {
            p.mode == PublishMode::Ingress
                && p.protocol == port.protocol
                && p.published == port.published
        })
    };
    let mut ports: Vec<PortConfig> = Vec::new();
    for wanted in &spec.endpoint.ports {
        let mut port = wanted.clone();
        if port.mode == PublishMode::Ingress && port.published == 0 {
            let taken = |candidate: &PortConfig, ports: &[PortConfig]| {
                named(candidate)
                    || ports.iter().any(|p| {
                        p.mode == PublishMode::Ingress
                            && p.protocol == candidate.protocol
                            && p.published == candidate.published
                    })
            };
            let same = |o: &&PortConfig| {
                let bare = PortConfig {
                    published: 0,
                    ..(*o).clone()
                };
                bare == *wanted && !taken(o, &ports)
            };
            if let Some(kept) = old.iter().find(same) {
                port.published = kept.published;
            } else {
                let free = DYNAMIC_PORTS.into_iter().find(|number| {
                    let candidate = PortConfig {
                        published: *number,
                        ..port.clone()
                    };
                    let owner = state.port_owner(port.protocol, *number);
                    owner.is_none_or(|owner| owner == service.id) && !taken(&candidate, &ports)
                });
                port.published = free.ok_or_else(|| {
                    format!(
                        "no free {} port between {} and {}: publish port {} under a number of your \
                         own",
                        port.protocol,
                        DYNAMIC_PORTS.start(),
                        DYNAMIC_PORTS.end(),
                        port.target
                    )
                })?;
            }
        }
        ports.push(port);
    }
    Ok(ports)
}

/// The first free subnet of the cluster's pools.
pub(crate) fn free_subnet(state: &State, cluster: &Cluster) -> Result<Ipv4Net, String> {
    let prefix = cluster.subnet_prefix;
    let mut used: Vec<Ipv4Net> = state.networks().map(|network| network.subnet).collect();
    used.sort();
    for pool in &cluster.address_pools {
        if prefix < pool.prefix() {
            continue;
        }
        let size = 1u64 << (32 - u32::from(prefix));
        let count = pool.len() / size;
        let mut index = 0;
        while index < count {
            let candidate = pool
                .nth(index * size)
                .and_then(|addr| Ipv4Net::containing(addr, prefix));
            let Some(candidate) = candidate else { break };
            match used.iter().find(|net| net.overlaps(candidate)) {
                None => return Ok(candidate),
                // A larger network is stepped over at once.
                Some(net) => index += (net.len() / size).max(1),
            }
        }
    }
    let pools: Vec<String> = cluster
        .address_pools
        .iter()
        .map(ToString::to_string)
        .collect();
    Err(format!(
        "could not find an available, non-overlapping IPv4 address pool among {} (in subnets of /{prefix}): \
         name a --subnet, or remove networks that nobody uses",
        pools.join(", ")
    ))
}

/// The lowest free network identifier.
pub(crate) fn free_vni(state: &State) -> Option<u32> {
    let used: BTreeSet<u32> = state.networks().map(|network| network.vni).collect();
    (FIRST_VNI..=LAST_VNI).find(|vni| !used.contains(vni))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shoal_raft_store::{Change, Command};
    use shoal_types::{
        Version,
        object::TaskPlace,
        spec::{NetworkAttachmentSpec, Protocol, ServiceMode},
    };

    use super::*;
    use crate::testing;

    fn state() -> State {
        let mut state = State::default();
        apply(&mut state, testing::cluster_changes());
        state
    }

    fn apply(state: &mut State, changes: Vec<Change>) {
        let version = Version(state.version().0 + 1);
        let at = Timestamp::from_unix(i64::try_from(version.0).unwrap(), 0);
        state.apply(version, &Command { at, changes }).unwrap();
    }

    fn port(published: u16, target: u16) -> PortConfig {
        PortConfig {
            name: String::new(),
            protocol: Protocol::Tcp,
            target,
            published,
            mode: PublishMode::Ingress,
        }
    }

    fn attached() -> NetworkAttachmentSpec {
        NetworkAttachmentSpec {
            network: testing::network_id(3),
            aliases: vec!["alias".to_owned()],
        }
    }

    fn service(state: &mut State, n: u32, edit: impl FnOnce(&mut ServiceSpec)) -> Arc<Service> {
        let replicas = ServiceMode::Replicated { replicas: 1 };
        let mut spec = testing::service_spec(&format!("s{n}"), replicas);
        edit(&mut spec);
        let id = testing::service_id(n);
        let spec = Box::new(spec);
        apply(state, vec![Change::CreateService { id, spec }]);
        state.service(&id).unwrap().clone()
    }

    #[test]
    fn a_service_has_a_vip_in_each_of_its_networks_and_in_ingress_when_it_publishes() {
        let mut state = state();
        let service = service(&mut state, 1, |s| {
            s.task.networks = vec![attached()];
            s.endpoint.ports = vec![port(80, 80)];
        });
        let endpoint = Allocator::default().endpoint(&state, &service).unwrap();
        assert_eq!(obvious_endpoint(&service.spec), None);
        let vip = |n, addr: [u8; 4]| VirtualIp {
            network: testing::network_id(n),
            addr: addr.into(),
        };
        assert_eq!(
            endpoint.virtual_ips,
            [vip(3, [10, 0, 2, 2]), vip(1, [10, 0, 0, 2])]
        );
        assert_eq!(endpoint.ports, [port(80, 80)]);
    }

    #[test]
    fn dns_round_robin_takes_no_vip_and_a_task_without_networks_is_in_the_bridge() {
        let mut state = state();
        let service = service(&mut state, 1, |s| {
            s.task.networks = vec![attached()];
            s.endpoint.mode = EndpointMode::DnsRoundRobin;
        });
        let mut allocator = Allocator::default();
        let endpoint = allocator.endpoint(&state, &service).unwrap();
        assert!(endpoint.virtual_ips.is_empty());
        assert_eq!(obvious_endpoint(&service.spec), Some(endpoint));
        let networks = |allocator: &mut Allocator, task: &TaskSpec, ports: &[PortConfig]| {
            let attachments = allocator.attachments(&state, task, ports).unwrap();
            attachments.iter().map(|a| a.network).collect::<Vec<_>>()
        };
        let bare = testing::task_spec();
        assert_eq!(
            networks(&mut allocator, &bare, &[]),
            [testing::network_id(2)]
        );
        assert_eq!(
            networks(&mut allocator, &bare, &[port(0, 80)]),
            [testing::network_id(1)]
        );
        assert_eq!(
            networks(&mut allocator, &service.spec.task, &[port(0, 80)]),
            [testing::network_id(3), testing::network_id(1)]
        );
    }

    #[test]
    fn an_address_rests_before_it_is_given_again_and_a_full_network_says_so() {
        let mut state = state();
        let owner = service(&mut state, 1, |s| s.task.networks = vec![attached()]);
        let mut allocator = Allocator::new(&state);
        let spec = owner.spec.task.clone();
        let mut given = BTreeSet::new();
        for n in 0..253 {
            allocator.start_pass();
            let attachments = allocator.attachments(&state, &spec, &[]).unwrap();
            let addr = attachments[0].addr;
            assert!(given.insert(addr), "{addr} is given twice");
            let mut task = testing::task(1, 1000 + n);
            task.spec = spec.clone();
            task.spec_version = owner.spec_version;
            task.attachments = attachments;
            task.place = TaskPlace::Slot(shoal_types::Slot(u64::from(n) + 1));
            apply(&mut state, vec![Change::CreateTask(Box::new(task))]);
            // A new leader goes on where the old one was.
            allocator = Allocator::new(&state);
        }
        let error = allocator.attachments(&state, &spec, &[]).unwrap_err();
        assert!(
            error.contains("network front (10.0.2.0/24 is used up)"),
            "{error}"
        );
        apply(
            &mut state,
            vec![Change::RemoveTask {
                id: testing::task_id(1005),
            }],
        );
        let again = allocator.attachments(&state, &spec, &[]).unwrap();
        assert_eq!(again[0].addr, Ipv4Addr::new(10, 0, 2, 7));
    }

    #[test]
    fn ports_without_a_number_get_one_that_stays() {
        let mut state = state();
        let ports = vec![port(0, 80), port(0, 81), port(30_001, 82)];
        let first = service(&mut state, 1, |s| s.endpoint.ports = ports);
        let mut allocator = Allocator::default();
        let endpoint = allocator.endpoint(&state, &first).unwrap();
        let numbers: Vec<u16> = endpoint.ports.iter().map(|p| p.published).collect();
        assert_eq!(numbers, [30_000, 30_002, 30_001]);
        apply(
            &mut state,
            vec![Change::SetServiceEndpoint {
                id: first.id,
                spec_version: first.spec_version,
                endpoint: Some(endpoint.clone()),
                err: String::new(),
            }],
        );
        let first = state.service(&first.id).unwrap().clone();
        assert_eq!(
            allocator.endpoint(&state, &first).unwrap(),
            endpoint,
            "sticky"
        );
        let second = service(&mut state, 2, |s| s.endpoint.ports = vec![port(0, 80)]);
        let other = allocator.endpoint(&state, &second).unwrap();
        assert_eq!(other.ports[0].published, 30_003);
    }

    #[test]
    fn subnets_and_identifiers_are_the_lowest_free_ones() {
        let state = state();
        let cluster = (**state.cluster().unwrap()).clone();
        assert_eq!(
            free_subnet(&state, &cluster).unwrap().to_string(),
            "10.0.3.0/24"
        );
        assert_eq!(free_vni(&state), Some(4099));
        let full = Cluster {
            address_pools: vec!["10.0.0.0/23".parse().unwrap()],
            ..cluster
        };
        let error = free_subnet(&state, &full).unwrap_err();
        assert!(error.contains("10.0.0.0/23"), "{error}");
    }
}
