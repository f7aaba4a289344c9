//! The way to a network's containers on other nodes.
//!
//! ```text
//!   route       10.0.1.6/32 via 192.0.2.7        the container is on the node with this address
//!   neighbour   192.0.2.7 is 02:42:c0:00:02:07   and this is that node's end of the tunnel,
//!   forwarding  02:42:c0:00:02:07 at 192.0.2.7   which VXLAN packets (RFC 7348) are sent to
//! ```
//! A node is a next hop by the very address it has outside, so nothing needs to be agreed upon, and
//! a container that moves costs one route. A node that is at an IPv6 address is a next hop by one that
//! follows from it, and the routes of IPv6 packets have next hops that follow from those
//! ([`ipv6`](crate::ipv6)). The interface is in the network's namespace and its
//! packets travel in the host's. It learns nothing, floods nothing and asks nobody.
//!
//! In the ingress network a connection that came in by another node has to be answered through that
//! node, whatever its client's address is. The table marks it with the address of the node
//! ([`tables::network`](crate::tables::network)), and the rules here send what is marked there:
//! ```text
//!   100  from the tunnel         main         arrived, not to be sent back for its mark
//!   101  not marked              main         most packets see no further rule
//!   102  marked 192.0.2.7        192.0.2.7    default via 192.0.2.7; one rule and table per node
//! ```
//! The lookup of where VXLAN packets go is made in the host's namespace, where none of these rules
//! are; no packet can be sent around in circles by its mark.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
};

use nix::errno::Errno;

use crate::{
    host::{first, mac_of},
    ipv6::{self, next_hop, next_hop_v6},
    model::{NetworkState, Overlay},
    netlink::{
        Batch, KernelError, Net, Socket,
        route::{End, Forwarding, Link, Mac, Route, TABLE_MAIN, Vxlan},
        rule::Rule,
    },
    sys,
};

/// The interface in the network's namespace. Kernels before 6.15 want it to be unlike any name in
/// the host's namespace, too.
pub(crate) const DEVICE: &str = "shoal-vxlan";
/// What a frame grows by: Ethernet, VXLAN and UDP headers, and that of the version.
const OVERHEAD: u32 = 14 + 8 + 8;
const OVERHEAD_V4: u32 = OVERHEAD + 20;
const OVERHEAD_V6: u32 = OVERHEAD + 40;
/// The smallest packet that IPv4 carries in one piece (RFC 791).
const LEAST_MTU: u32 = 68;

const ARRIVED: u32 = 100;
const UNMARKED: u32 = 101;
const MARKED: u32 = 102;

/// MTU inside the tunnel, of an underlay that takes packets of `underlay` bytes at this address.
pub(crate) fn mtu(underlay: u32, local: IpAddr) -> u32 {
    let overhead = if local.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    underlay.saturating_sub(overhead).max(LEAST_MTU)
}

/// What leads to the other nodes over the interface.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// With who made them: `true` for us.
    routes: BTreeSet<(Route, bool)>,
    neighbours: BTreeSet<(IpAddr, Mac)>,
    forwarding: BTreeSet<Forwarding>,
    rules: BTreeSet<Rule>,
}

impl Ways {
    /// As `state` wants them, over the interface `index`.
    pub(crate) fn wanted(state: &NetworkState, index: u32) -> Self {
        Self::towards(state, index, |_, _| true)
    }

    /// Adds to `batch` what turns the ways of `old` into those of `new`.
    pub(crate) fn change(old: &NetworkState, new: &NetworkState, index: u32, batch: &mut Batch) {
        // Of thousands of containers a few differ, and nothing is made of the rest.
        let differing = |of: &NetworkState, other: &NetworkState| {
            let other = other.tunnel().map(|overlay| &overlay.remote);
            Self::towards(of, index, |addr, node| {
                other.is_none_or(|other| other.get(addr) != Some(node))
            })
        };
        differing(old, new).change_to(&differing(new, old), index, batch);
    }

    /// To all nodes, and to those containers on them that `is_meant`.
    fn towards(
        state: &NetworkState,
        index: u32,
        is_meant: impl Fn(&Ipv4Addr, &IpAddr) -> bool,
    ) -> Self {
        let Some(Overlay { peers, remote, .. }) = state.tunnel() else {
            return Self::default();
        };
        let meant = remote.iter().filter(|(addr, node)| is_meant(addr, node));
        let prefix = state.prefix6();
        let containers = meant.flat_map(|(addr, node)| {
            let hop = next_hop(*node);
            let v4 = Route::new(Net::host(*addr), index)
                .via(hop)
                .source(state.gateway);
            let v6 = prefix.map(|prefix| {
                Route::new(Net::host(prefix.addr(*addr)), index)
                    .via(next_hop_v6(hop))
                    .source(prefix.addr(state.gateway))
            });
            std::iter::once(v4).chain(v6)
        });
        let hops = || peers.iter().map(|node| next_hop(*node));
        let neighbours = hops().flat_map(|hop| {
            let v6 = prefix.map(|_| next_hop_v6(hop).into());
            let hops = std::iter::once(IpAddr::from(hop)).chain(v6);
            hops.map(move |addr| (addr, mac_of(hop)))
        });
        let mut ways = Self {
            routes: containers.map(|route| (route, true)).collect(),
            neighbours: neighbours.collect(),
            forwarding: peers.iter().map(|node| forwarding(*node)).collect(),
            rules: BTreeSet::new(),
        };
        if state.is_mesh() {
            ways.add_answers(hops().map(|hop| (hop, hop.into())), index);
            if prefix.is_some() {
                ways.add_answers(hops().map(|hop| (hop, next_hop_v6(hop).into())), index);
            }
        }
        ways
    }

    /// By each of these nodes, which is also the mark; the next hops are of one version.
    fn add_answers(&mut self, hops: impl Iterator<Item = (Ipv4Addr, IpAddr)>, index: u32) {
        for (node, via) in hops {
            let rule = |priority, from, mark, table| Rule {
                is_v6: via.is_ipv6(),
                priority,
                from,
                mark,
                table,
            };
            let arrived = rule(ARRIVED, Some(DEVICE.to_owned()), None, TABLE_MAIN);
            let unmarked = rule(UNMARKED, None, Some(0), TABLE_MAIN);
            let number = u32::from(node);
            let marked = rule(MARKED, None, Some(number), number);
            self.rules.extend([arrived, unmarked, marked]);
            let route = Route::new(Net::everything(via), index);
            self.routes.insert((route.via(via).table(number), true));
        }
    }

    /// As the kernel has them over the interface `index`; without one, only the rules.
    pub(crate) fn found(
        socket: &mut Socket,
        index: Option<u32>,
        routes: &[(Route, bool)],
        neighbours: &[(u32, IpAddr, Mac)],
    ) -> Result<Self, KernelError> {
        let mut ways = Self {
            rules: socket.rules()?.into_iter().collect(),
            ..Self::default()
        };
        if let Some(index) = index {
            let here = routes.iter().filter(|(r, _)| r.interface == Some(index));
            ways.routes = here.copied().collect();
            let here = neighbours.iter().filter(|(on, ..)| *on == index);
            ways.neighbours = here.map(|(_, addr, mac)| (*addr, *mac)).collect();
            ways.forwarding = socket.forwarding(index)?.into_iter().collect();
        }
        Ok(ways)
    }

    /// What is left of these once the interface has its hardware address: the kernel forgets all
    /// neighbours of an interface that gets another, permanent ones too.
    pub(crate) fn surviving(mut self, link: &Link, overlay: &Overlay) -> Self {
        if link.mac != Some(mac_of_node(overlay.local)) {
            self.neighbours.clear();
        }
        self
    }

    /// Adds to `batch` what turns these into `wanted`, and says what differs.
    pub(crate) fn change_to(&self, wanted: &Self, index: u32, batch: &mut Batch) -> Vec<String> {
        let mut found = Vec::new();
        self.change_neighbours(wanted, index, batch, &mut found);
        self.change_forwarding(wanted, index, batch, &mut found);
        // A route comes after what it needs, and a rule after the route that it leads to.
        self.change_routes(wanted, batch, &mut found);
        for rule in wanted.rules.difference(&self.rules) {
            found.push(format!("rule {} is missing", name(rule)));
            batch.add_rule(rule);
        }
        for rule in self.rules.difference(&wanted.rules) {
            found.push(format!("rule {} should not be there", name(rule)));
            batch.delete_rule(rule);
        }
        found
    }

    fn change_routes(&self, wanted: &Self, batch: &mut Batch, found: &mut Vec<String>) {
        // The kernel replaces a route by one of the same place.
        let place = |route: &Route| (route.to, route.table, route.metric);
        let mut replaced = BTreeSet::new();
        for (route, _) in wanted.routes.difference(&self.routes) {
            let via = route.via.unwrap_or(route.to.addr);
            found.push(format!("route to {} by node {via} is missing", route.to));
            batch.add_route(*route);
            replaced.insert(place(route));
        }
        for (route, _) in self.routes.difference(&wanted.routes) {
            if !replaced.contains(&place(route)) {
                found.push(format!("route to {} should not be there", route.to));
                batch.delete_route(*route);
            }
        }
    }

    fn change_neighbours(
        &self,
        wanted: &Self,
        index: u32,
        batch: &mut Batch,
        found: &mut Vec<String>,
    ) {
        let mut replaced = BTreeSet::new();
        for (addr, mac) in wanted.neighbours.difference(&self.neighbours) {
            found.push(format!("neighbour {addr} is missing"));
            batch.add_neighbour(index, *addr, *mac);
            replaced.insert(*addr);
        }
        for (addr, _) in self.neighbours.difference(&wanted.neighbours) {
            if !replaced.contains(addr) {
                found.push(format!("neighbour {addr} should not be there"));
                batch.delete_neighbour(index, *addr);
            }
        }
    }

    fn change_forwarding(
        &self,
        wanted: &Self,
        index: u32,
        batch: &mut Batch,
        found: &mut Vec<String>,
    ) {
        let mut replaced = BTreeSet::new();
        for entry in wanted.forwarding.difference(&self.forwarding) {
            if let Some(node) = entry.to {
                found.push(format!("forwarding entry for node {node} is missing"));
                batch.add_forwarding(index, entry.mac, node);
                replaced.insert(entry.mac);
            }
        }
        for Forwarding { mac, .. } in self.forwarding.difference(&wanted.forwarding) {
            if !replaced.contains(mac) {
                let mac_text = mac.map(|byte| format!("{byte:02x}")).join(":");
                found.push(format!("forwarding entry {mac_text} should not be there"));
                batch.delete_forwarding(index, *mac);
            }
        }
    }
}

/// The hardware address of a node's end of the tunnel.
fn mac_of_node(node: IpAddr) -> Mac {
    mac_of(next_hop(node))
}

fn forwarding(node: IpAddr) -> Forwarding {
    Forwarding {
        mac: mac_of_node(node),
        to: Some(node),
    }
}

fn name(rule: &Rule) -> String {
    match (&rule.from, rule.mark) {
        (Some(from), _) => format!("for packets from {from}"),
        (None, Some(0)) => "for unmarked packets".to_owned(),
        (None, Some(mark)) => format!("for answers by node {}", Ipv4Addr::from(mark)),
        (None, None) => format!("{} of all packets", rule.priority),
    }
}

/// Makes the interface, still down. `host` is a socket in the host's namespace.
pub(crate) fn create(
    host: &mut Socket,
    namespace: BorrowedFd<'_>,
    overlay: &Overlay,
    mtu: u32,
) -> Result<(), KernelError> {
    let mut batch = Batch::default();
    let end = End {
        name: DEVICE,
        mac: Some(mac_of_node(overlay.local)),
    };
    let vxlan = Vxlan {
        vni: overlay.vni,
        port: overlay.port,
        local: overlay.local,
        is_static: true,
        underlay: None,
    };
    batch.add_vxlan(end, vxlan, namespace, mtu);
    first(host.transact(batch))
}

/// Whether the interface can become the one wanted without being made anew.
pub(crate) fn can_stay(link: &Link, overlay: &Overlay, underlay: Option<i32>) -> bool {
    link.vxlan.is_some_and(|is| {
        (is.vni, is.port, is.is_static) == (overlay.vni, overlay.port, true)
            && is.local.is_ipv4() == overlay.local.is_ipv4()
            && is.underlay.is_some()
            && is.underlay == underlay
    })
}

/// What of the interface itself is not as wanted, other than what needs a new one.
pub(crate) fn change_link(
    link: &Link,
    overlay: &Overlay,
    mtu: u32,
    is_mesh: bool,
    batch: &mut Batch,
) -> Vec<String> {
    let mut found = Vec::new();
    let local = overlay.local;
    if link.vxlan.is_some_and(|is| is.local != local) {
        found.push(format!("the tunnel does not send from {local}"));
        batch.set_vxlan_local(link.index, local);
    }
    if link.mac != Some(mac_of_node(local)) {
        found.push("the tunnel has another hardware address".to_owned());
        batch.set_mac(link.index, mac_of_node(local));
    }
    if link.mtu != mtu {
        found.push(format!("the tunnel has mtu {} instead of {mtu}", link.mtu));
        batch.set_mtu(link.index, mtu);
    }
    // Clients of published ports have any address, and come by the node they asked.
    let rp_filter = u32::from(!is_mesh);
    if link.rp_filter != rp_filter {
        found.push(format!("the tunnel has not rp_filter {rp_filter}"));
        batch.rp_filter(link.index, rp_filter);
    }
    if !link.up {
        found.push("the tunnel is down".to_owned());
        batch.link_up(link.index, true);
    }
    found
}

/// Removes the interface from a namespace, whoever made it. Its vni is free afterwards, which it
/// would not be until some time after the namespace is let go.
pub(crate) fn remove(namespace: BorrowedFd<'_>) -> Result<(), KernelError> {
    let mut socket = sys::in_namespace(namespace, Socket::route)
        .and_then(|socket| socket)
        .map_err(|error| KernelError::new("netlink socket", &error))?;
    match socket.link(DEVICE)? {
        Some(link) => delete(&mut socket, link.index),
        None => Ok(()),
    }
}

/// Slow (about 30 ms), as every removal of an interface is.
pub(crate) fn delete(socket: &mut Socket, index: u32) -> Result<(), KernelError> {
    let mut batch = Batch::default();
    batch.delete_link(index);
    first(without(socket.transact(batch), &[Errno::ENODEV]))
}

/// Sends a batch in which something may be deleted that has gone by itself.
pub(crate) fn transact(socket: &mut Socket, batch: Batch) -> Result<(), KernelError> {
    first(without(
        socket.transact(batch),
        &[Errno::ESRCH, Errno::ENOENT],
    ))
}

fn without(
    result: Result<(), Vec<KernelError>>,
    harmless: &[Errno],
) -> Result<(), Vec<KernelError>> {
    let mut errors = result.err().unwrap_or_default();
    errors.retain(|error| !harmless.contains(&error.errno()));
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// The MTUs of the host's interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mtu {
    /// Of the way out.
    pub(crate) out: u32,
    /// Of the interface that has an address.
    pub(crate) at: BTreeMap<IpAddr, u32>,
}

impl Mtu {
    /// Of the interfaces of `state`'s containers.
    pub(crate) fn of(&self, state: &NetworkState) -> u32 {
        let local = state.overlay.as_ref().map(|overlay| overlay.local);
        match (state.mtu, local) {
            (Some(told), local) => {
                let local = local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                mtu(told.into(), local)
            }
            (None, Some(local)) => mtu(*self.at.get(&local).unwrap_or(&self.out), local),
            (None, None) => self.out,
        }
    }

    /// Whether `state`'s containers can have IPv6.
    pub(crate) fn can_ipv6(&self, state: &NetworkState) -> bool {
        ipv6::is_there() && self.of(state) >= ipv6::LEAST_MTU
    }
}
