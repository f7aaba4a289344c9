//! Attaching containers: a veth pair from the network's namespace into the container's, and what
//! the container needs to use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
};

use nix::errno::Errno;
use shoal_types::spec::Ipv4Net;

use crate::{
    check::is_host_address,
    host::{first, mac_of},
    ipv6::Prefix,
    model::{AttachError, ContainerEndpoints, Difference, Endpoint, NetworkState},
    netlink::{
        Batch, KernelError, Net, Socket,
        route::{End, Link, Mac, Route, TABLE_LOCAL},
    },
    network::Network,
    state::State,
    sys,
};

/// Where the containers' name server answers; Docker's address.
pub(crate) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// What the network's ends of containers' pairs are called: this, and the address in hexadecimal.
pub(crate) const INTERFACE_PREFIX: &str = "v";
/// The network's end of every container's pair. Pairs are point to point, so all may be the same.
const GATEWAY_MAC: Mac = [0x02, 0x53, 0x48, 0x4f, 0x41, 0x4c];
/// Routing tables of a container's networks, but for the main one.
const FIRST_TABLE: u32 = 100;

/// What a container gets in one of its networks.
struct Leg<'a> {
    endpoint: &'a Endpoint,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    /// Of the addresses of IPv6 that go with these, if there are any.
    prefix: Option<Prefix>,
    has_uplink: bool,
    /// Place among the container's networks.
    place: u32,
    is_ingress: bool,
    /// The container's default route leaves here.
    is_default: bool,
    /// What has no address of the container's yet gets that of this network.
    is_main: bool,
}

impl State {
    /// Attaches the container to all networks of the group. Does again only what is missing.
    pub(crate) fn attach(
        &mut self,
        container: &OwnedFd,
        group: &ContainerEndpoints,
    ) -> Result<(), AttachError> {
        let legs = self.legs(group)?;
        let mut inside = sys::in_namespace(container.as_fd(), Socket::route)
            .and_then(|socket| socket)
            .map_err(|error| AttachError::Namespace(KernelError::new("netlink socket", &error)))?;
        for leg in &legs {
            let failed = |doing| {
                move |source| AttachError::Kernel {
                    network: leg.endpoint.network.clone(),
                    addr: leg.endpoint.addr,
                    doing,
                    source,
                }
            };
            let state = self.networks[&leg.endpoint.network].state.as_ref();
            let mtu = state.map_or(self.mtu.out, |state| self.mtu.of(state));
            let network = self
                .networks
                .get_mut(&leg.endpoint.network)
                .expect("checked by legs");
            let link = ensure_pair(network, container, &mut inside, leg, mtu)
                .map_err(failed("make its interface"))?;
            // From here on the address leads to this container, whatever fails below.
            let Endpoint { network: id, addr } = leg.endpoint;
            self.attached
                .insert((id.clone(), *addr), group.owner.clone());
            first(network.route.transact(outer(link.index, leg))).map_err(failed("route to it"))?;
            let (peer, _) = link.peer.expect("a pair has two ends");
            let batch = inner(peer, leg);
            let result = inside.transact(batch).map_err(|errors| {
                // A rule that is there already is the only thing that replacing does not cover.
                errors
                    .into_iter()
                    .filter(|error| error.errno() != Errno::EEXIST)
                    .collect::<Vec<_>>()
            });
            if let Err(errors) = result
                && let Some(error) = errors.into_iter().next()
            {
                return Err(failed("set up its interface")(error));
            }
            inside
                .settle(peer)
                .map_err(failed("bring its interface up"))?;
            network
                .route
                .settle(link.index)
                .map_err(failed("bring its interface up"))?;
        }
        self.dns.attach(group);
        Ok(())
    }

    /// Forgets the container and stops its traffic at once. The pair goes with the container's
    /// namespace.
    pub(crate) fn detach(
        &mut self,
        network: &str,
        addr: Ipv4Addr,
        owner: &str,
    ) -> Result<(), KernelError> {
        self.cut(network, addr, owner, |batch, index| {
            batch.link_up(index, false);
        })
    }

    /// Takes the network away from a container that lives on. Slow (about 30 ms).
    pub(crate) fn disconnect(
        &mut self,
        network: &str,
        addr: Ipv4Addr,
        owner: &str,
    ) -> Result<(), KernelError> {
        self.cut(network, addr, owner, Batch::delete_link)
    }

    fn cut(
        &mut self,
        network: &str,
        addr: Ipv4Addr,
        owner: &str,
        by: impl FnOnce(&mut Batch, u32),
    ) -> Result<(), KernelError> {
        // Of an address that was not attached since the daemon began, nobody knows better.
        let now = self.attached.get(&(network.to_owned(), addr));
        if now.is_some_and(|now| now != owner) {
            return Ok(());
        }
        self.forget(network, addr);
        let Some(network) = self.networks.get_mut(network) else {
            return Ok(());
        };
        if let Some(link) = network.route.link(&interface_name(addr))? {
            let mut batch = Batch::default();
            by(&mut batch, link.index);
            gone_is_fine(network.route.transact(batch))?;
        }
        network.forget_connections_to(addr)
    }

    fn forget(&mut self, network: &str, addr: Ipv4Addr) {
        self.dns.detach(network, addr);
        self.attached.remove(&(network.to_owned(), addr));
    }

    fn legs<'a>(&self, group: &'a ContainerEndpoints) -> Result<Vec<Leg<'a>>, AttachError> {
        let mut seen = BTreeSet::new();
        let mut legs: Vec<Leg<'_>> = Vec::new();
        for (endpoint, place) in group.endpoints.iter().zip(0..) {
            let Endpoint { network, addr } = endpoint;
            let known = self
                .networks
                .get(network)
                .and_then(|network| network.state.as_ref());
            let state = known.ok_or_else(|| AttachError::UnknownNetwork(network.clone()))?;
            if !seen.insert(network) {
                return Err(AttachError::DuplicateNetwork(network.clone()));
            }
            let is_vip = state.vips.iter().any(|vip| vip.addr == *addr);
            if !is_host_address(state.subnet, *addr) || *addr == state.gateway || is_vip {
                let (network, addr, subnet) = (network.clone(), *addr, state.subnet);
                return Err(AttachError::Address {
                    network,
                    addr,
                    subnet,
                });
            }
            let has_uplink = state.has_uplink();
            let NetworkState {
                subnet, gateway, ..
            } = **state;
            legs.push(Leg {
                endpoint,
                subnet,
                gateway,
                prefix: state.prefix6(),
                has_uplink,
                place,
                is_ingress: state.ingress,
                is_default: false,
                is_main: false,
            });
        }
        choose_ways_out(&mut legs);
        Ok(legs)
    }

    /// What the network's attached containers lack on its side, and what gives it to them. An
    /// interface that is gone cannot be given back: its container must be attached again.
    fn plan_containers(&mut self, id: &str) -> Result<(Batch, Vec<String>), KernelError> {
        let (mut batch, mut found) = (Batch::default(), Vec::new());
        let mut ours = self
            .attached
            .iter()
            .filter(|((network, _), _)| network == id)
            .peekable();
        let Some(network) = self.networks.get_mut(id).filter(|_| ours.peek().is_some()) else {
            return Ok((batch, found));
        };
        let Some(state) = network.state.clone() else {
            return Ok((batch, found));
        };
        let (gateway, prefix) = (state.gateway, state.prefix6());
        // What is wanted goes over what still runs.
        let is_elsewhere = |addr| {
            let overlay = state.tunnel();
            overlay.is_some_and(|overlay| overlay.remote.contains_key(addr))
        };
        let links: BTreeMap<String, Link> = network
            .route
            .links()?
            .into_iter()
            .map(|link| (link.name.clone(), link))
            .collect();
        let routes: BTreeSet<_> = network.route.routes()?.into_iter().collect();
        let neighbours: BTreeSet<_> = network.route.neighbours()?.into_iter().collect();
        for ((_, addr), _) in ours.filter(|((_, addr), _)| !is_elsewhere(addr)) {
            let before = found.len();
            let Some(link) = links.get(&interface_name(*addr)) else {
                found.push(format!("container {addr} has no interface"));
                continue;
            };
            if !link.up {
                found.push(format!("container {addr} has an interface that is down"));
            }
            let mac = mac_of(*addr);
            for (addr, gateway) in both(prefix, *addr, gateway) {
                let route = Route::new(Net::host(addr), link.index).source(gateway);
                if !routes.contains(&(route, true)) {
                    found.push(format!("container {addr} has no route"));
                }
                if !neighbours.contains(&(link.index, addr, mac)) {
                    found.push(format!("container {addr} has no neighbour entry"));
                }
            }
            if found.len() > before {
                reach(&mut batch, link.index, prefix, (*addr, gateway));
            }
        }
        Ok((batch, found))
    }

    /// Gives attached containers what they lack on the network's side.
    pub(crate) fn repair_containers(&mut self, id: &str) -> Result<(), KernelError> {
        let (batch, _) = self.plan_containers(id)?;
        self.networks.get_mut(id).map_or(Ok(()), |network| {
            gone_is_fine(network.route.transact(batch))
        })
    }

    /// What attached containers lack, over all networks.
    pub(crate) fn diff_containers(
        &mut self,
        found: &mut Vec<Difference>,
    ) -> Result<(), KernelError> {
        for id in self.networks.keys().cloned().collect::<Vec<_>>() {
            let (_, what) = self.plan_containers(&id)?;
            if !what.is_empty()
                && let Some(network) = self.networks.get_mut(&id)
            {
                network.forget_base();
            }
            found.extend(what.into_iter().map(|what| Difference {
                network: Some(id.clone()),
                what,
            }));
        }
        Ok(())
    }
}

/// Whoever asks by a published port comes from anywhere, and a server that answers datagrams without
/// saying from which address answers from that of the default route: the ingress network's.
fn choose_ways_out(legs: &mut [Leg<'_>]) {
    let default = legs
        .iter()
        .position(|leg| leg.is_ingress)
        .or_else(|| legs.iter().position(|leg| leg.has_uplink));
    if let Some(leg) = default.and_then(|at| legs.get_mut(at)) {
        leg.is_default = true;
    }
    if let Some(leg) = legs.get_mut(default.unwrap_or(0)) {
        leg.is_main = true;
    }
}

/// The pair for this leg: the one that is there, or a new one.
fn ensure_pair(
    network: &mut Network,
    container: &OwnedFd,
    inside: &mut Socket,
    leg: &Leg<'_>,
    mtu: u32,
) -> Result<Link, KernelError> {
    let name = interface_name(leg.endpoint.addr);
    if let Some(link) = network.route.link(&name)? {
        let here = network.route.namespace_id(container.as_fd())?;
        if link.peer.is_some_and(|(_, peer)| Some(peer) == here) {
            return Ok(link);
        }
        // It leads into the namespace of a container that had the address before. Namespaces die
        // some 30 ms after their last process; until then the name must not be in the way.
        let mut batch = Batch::default();
        batch.link_up(link.index, false);
        batch.rename(link.index, &format!("x{:x}", link.index));
        gone_is_fine(network.route.transact(batch))?;
    }
    let there = free_name(inside)?;
    let mut batch = Batch::default();
    batch.add_veth(
        End {
            name: &name,
            mac: Some(GATEWAY_MAC),
        },
        End {
            name: &there,
            mac: Some(mac_of(leg.endpoint.addr)),
        },
        container.as_fd(),
        mtu,
    );
    first(network.route.transact(batch))?;
    let missing = || KernelError::new(format!("interface {name}"), &Errno::ENODEV.into());
    network
        .route
        .link(&name)?
        .filter(|link| link.peer.is_some())
        .ok_or_else(missing)
}

/// What the network's namespace needs to reach the container.
fn outer(interface: u32, leg: &Leg<'_>) -> Batch {
    let mut batch = Batch::default();
    let pair = (leg.endpoint.addr, leg.gateway);
    reach(&mut batch, interface, leg.prefix, pair);
    batch
}

fn reach(
    batch: &mut Batch,
    interface: u32,
    prefix: Option<Prefix>,
    (addr, gateway): (Ipv4Addr, Ipv4Addr),
) {
    batch.link_up(interface, true);
    let mac = mac_of(addr);
    for (addr, gateway) in both(prefix, addr, gateway) {
        batch.add_route(Route::new(Net::host(addr), interface).source(gateway));
        batch.add_neighbour(interface, addr, mac);
    }
}

/// An address and its gateway, and with a prefix those of IPv6 that go with them.
fn both(
    prefix: Option<Prefix>,
    addr: Ipv4Addr,
    gateway: Ipv4Addr,
) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let v6 = prefix.map(|prefix| (prefix.addr(addr).into(), prefix.addr(gateway).into()));
    std::iter::once((addr.into(), gateway.into())).chain(v6)
}

/// What the container needs to use its end. Everything beyond the gateway goes through the
/// gateway, its own subnet too: there is no shared link.
fn inner(interface: u32, leg: &Leg<'_>) -> Batch {
    const LOOPBACK: u32 = 1;
    let mut batch = Batch::default();
    batch.link_up(LOOPBACK, true);
    batch.route_localnet(interface);
    if leg.prefix.is_some() {
        batch.no_generated_addresses(interface);
    }
    // Of IPv6 there is nothing on an interface that is down.
    batch.link_up(interface, true);
    let subnets = std::iter::once(leg.subnet.into()).chain(leg.prefix.map(|p| p.net(leg.subnet)));
    let addresses = both(leg.prefix, leg.endpoint.addr, leg.gateway);
    for ((addr, gateway), subnet) in addresses.zip(subnets) {
        use_gateway(&mut batch, interface, leg, (addr, gateway, subnet));
    }
    if leg.place == 0 {
        // More specific than 127.0.0.0/8, so it wins although the address looks local; a program
        // in the container may still bind port 53 of every address.
        let to = Route::new(Net::host(NAME_SERVER), interface).via(leg.gateway);
        batch.add_route(to.source(leg.endpoint.addr).table(TABLE_LOCAL));
    }
    batch
}

/// The container's address of one version, and its ways by the gateway.
fn use_gateway(
    batch: &mut Batch,
    interface: u32,
    leg: &Leg<'_>,
    (addr, gateway, subnet): (IpAddr, IpAddr, Net),
) {
    batch.add_address(interface, addr, subnet.prefix);
    batch.add_neighbour(interface, gateway, GATEWAY_MAC);
    let everything = Net::everything(addr);
    let to_gateway = Route::new(Net::host(gateway), interface)
        .source(addr)
        .metric(leg.place);
    let by_gateway = |to| Route::new(to, interface).via(gateway).source(addr);
    batch.add_route(to_gateway);
    batch.add_route(by_gateway(subnet).metric(leg.place));
    if leg.is_default {
        batch.add_route(by_gateway(everything));
    }
    if !leg.is_main {
        // Answers leave by the interface that the question came in on.
        let table = FIRST_TABLE + leg.place;
        batch.add_route(to_gateway.table(table));
        batch.add_route(by_gateway(subnet).table(table));
        if leg.has_uplink {
            batch.add_route(by_gateway(everything).table(table));
        }
        batch.add_source_rule(addr, table);
    }
}

/// The network's end of the pair of the container with this address.
fn interface_name(addr: Ipv4Addr) -> String {
    format!("{INTERFACE_PREFIX}{:08x}", u32::from(addr))
}

fn free_name(inside: &mut Socket) -> Result<String, KernelError> {
    let taken: BTreeSet<String> = inside.links()?.into_iter().map(|link| link.name).collect();
    let mut names = (0..).map(|n: u32| format!("eth{n}"));
    Ok(names
        .find(|name| !taken.contains(name))
        .expect("a namespace has a finite number of links"))
}

/// An interface that vanished meanwhile needs nothing more.
pub(crate) fn gone_is_fine(result: Result<(), Vec<KernelError>>) -> Result<(), KernelError> {
    match result {
        Err(errors) if errors.iter().all(|error| error.errno() == Errno::ENODEV) => Ok(()),
        result => first(result),
    }
}
