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

use shoal_raft_store::State;
use shoal_types::{
    NetworkId, Timestamp,
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
        for attachment in &task.attachments {
            self.note(attachment.network, attachment.addr, task.meta.created_at);
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
            .map_or(range.addr(), |(_, addr)| *addr);
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
