//! Tells usable desired objects from unusable ones. Pure; an unusable object takes nothing but
//! itself out of the set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use shoal_types::spec::Ipv4Net;

use crate::{
    ipv6::next_hop,
    model::{ApplyError, NetworkState, Overlay, Published, PublishedTarget, Refusal, Vip},
};

/// A desired set of which every object is usable.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) networks: BTreeMap<String, Arc<NetworkState>>,
    /// Networks that were refused as a whole. What the kernel has of them stays as it is: bad
    /// input changes nothing.
    pub(crate) refused: BTreeSet<String>,
    pub(crate) errors: Vec<ApplyError>,
}

/// `can_ipv6` says which networks may have IPv6.
pub(crate) fn check(
    desired: Vec<NetworkState>,
    pool: Ipv4Net,
    can_ipv6: impl Fn(&NetworkState) -> bool,
) -> Checked {
    let mut checked = Checked::default();
    let (mut ports, mut vnis) = (BTreeMap::new(), BTreeMap::new());
    for mut state in desired {
        let mut refusals = Vec::new();
        let whole = if checked.networks.contains_key(&state.id) {
            Err(Refusal::DuplicateNetwork)
        } else {
            check_network(&state, pool).and_then(|()| check_tunnel(&state, &vnis))
        };
        if let Err(reason) = whole {
            if !checked.networks.contains_key(&state.id) {
                checked.refused.insert(state.id.clone());
            }
            checked.errors.push(ApplyError::Refused {
                network: state.id,
                reason,
            });
            continue;
        }
        if let Some(overlay) = &state.overlay {
            vnis.insert(overlay.vni, state.id.clone());
        }
        check_vips(&mut state, &mut refusals);
        check_remote(&mut state, &mut refusals);
        check_published(&mut state, &mut ports, &mut refusals);
        state.names = fold_names(state.names);
        state.ipv6 = state.ipv6 && state.has_uplink() && can_ipv6(&state);
        let network = || state.id.clone();
        checked
            .errors
            .extend(refusals.into_iter().map(|reason| ApplyError::Refused {
                network: network(),
                reason,
            }));
        checked.refused.remove(&state.id);
        checked.networks.insert(state.id.clone(), Arc::new(state));
    }
    checked
}

/// An address that a container, a gateway or a vip may have.
pub(crate) fn is_host_address(subnet: Ipv4Net, addr: Ipv4Addr) -> bool {
    subnet.contains(addr) && addr != subnet.addr() && Some(addr) != subnet.nth(subnet.len() - 1)
}

pub(crate) fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Names in lower case; addresses of names that differ only in case are joined.
pub(crate) fn fold_names(
    names: BTreeMap<String, Vec<Ipv4Addr>>,
) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let is_folded = |(name, addrs): (&String, &Vec<Ipv4Addr>)| {
        let odd = name.ends_with('.') || name.bytes().any(|byte| byte.is_ascii_uppercase());
        !odd && addrs.is_sorted_by(|one, next| one < next)
    };
    if names.iter().all(is_folded) {
        return names;
    }
    let mut folded: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for (name, mut addrs) in names {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        folded.entry(name).or_default().append(&mut addrs);
    }
    for addrs in folded.values_mut() {
        addrs.sort_unstable();
        addrs.dedup();
    }
    folded
}

fn check_network(state: &NetworkState, pool: Ipv4Net) -> Result<(), Refusal> {
    let NetworkState {
        subnet, gateway, ..
    } = *state;
    if !is_id(&state.id) {
        return Err(Refusal::Id);
    }
    if !(8..=30).contains(&subnet.prefix()) {
        return Err(Refusal::Subnet(subnet));
    }
    if subnet.overlaps(pool) {
        return Err(Refusal::SubnetInPool(subnet, pool));
    }
    if !is_host_address(subnet, gateway) {
        return Err(Refusal::Gateway { gateway, subnet });
    }
    Ok(())
}

/// What of an overlay concerns the whole of it.
fn check_tunnel(state: &NetworkState, vnis: &BTreeMap<u32, String>) -> Result<(), Refusal> {
    let Some(Overlay {
        vni, port, local, ..
    }) = state.overlay
    else {
        return Ok(());
    };
    if !(1..1 << 24).contains(&vni) {
        return Err(Refusal::Vni(vni));
    }
    if let Some(by) = vnis.get(&vni) {
        let by = by.clone();
        return Err(Refusal::VniTaken { vni, by });
    }
    if port == 0 {
        return Err(Refusal::OverlayPort);
    }
    if !is_node_address(local) {
        return Err(Refusal::NodeAddress(local));
    }
    Ok(())
}

fn is_node_address(addr: IpAddr) -> bool {
    let is_broadcast = matches!(addr, IpAddr::V4(addr) if addr.is_broadcast());
    !addr.is_unspecified() && !addr.is_multicast() && !is_broadcast
}

/// Takes unusable nodes out of the overlay, and with them what is said to be there.
fn check_remote(state: &mut NetworkState, refusals: &mut Vec<Refusal>) {
    let NetworkState {
        subnet, gateway, ..
    } = *state;
    let Some(Overlay {
        local,
        peers,
        remote,
        ..
    }) = &mut state.overlay
    else {
        return;
    };
    let mut dropped = BTreeSet::new();
    let mut hops = BTreeMap::from([(next_hop(*local), *local)]);
    peers.retain(|peer| {
        let refusal = if !is_node_address(*peer) {
            Refusal::NodeAddress(*peer)
        } else if peer == local {
            Refusal::NodeIsThis(*peer)
        } else if peer.is_ipv4() != local.is_ipv4() {
            let (node, local) = (*peer, *local);
            Refusal::NodeVersion { node, local }
        } else if let Some(other) = hops.insert(next_hop(*peer), *peer) {
            hops.insert(next_hop(other), other);
            Refusal::NodesAlike(other, *peer)
        } else if next_hop(*peer) == gateway {
            // Nodes are next hops by their addresses, and nobody is his own next hop.
            Refusal::NodeIsGateway(*peer)
        } else {
            return true;
        };
        refusals.push(refusal);
        dropped.insert(*peer);
        false
    });
    remote.retain(|addr, node| {
        let is_vip = state.vips.binary_search_by_key(addr, |vip| vip.addr);
        if !is_host_address(subnet, *addr) || *addr == gateway || is_vip.is_ok() {
            refusals.push(Refusal::Remote {
                addr: *addr,
                subnet,
            });
            return false;
        }
        let is_known = peers.contains(node);
        if !is_known && !dropped.contains(node) {
            refusals.push(Refusal::UnknownPeer {
                addr: *addr,
                node: *node,
            });
        }
        is_known
    });
}

fn check_vips(state: &mut NetworkState, refusals: &mut Vec<Refusal>) {
    let NetworkState {
        subnet, gateway, ..
    } = *state;
    // Stable, so of two vips of one address the first stays.
    state.vips.sort_by_key(|vip| vip.addr);
    let mut last = None;
    state.vips.retain(|Vip { addr, .. }| {
        if !is_host_address(subnet, *addr) || *addr == gateway {
            refusals.push(Refusal::VipAddress {
                addr: *addr,
                subnet,
            });
            return false;
        }
        let is_new = last.replace(*addr) != Some(*addr);
        if !is_new {
            refusals.push(Refusal::DuplicateVip(*addr));
        }
        is_new
    });
    let vips: Vec<Ipv4Addr> = state.vips.iter().map(|vip| vip.addr).collect();
    for Vip {
        addr: vip,
        backends,
    } in &mut state.vips
    {
        backends.sort_unstable();
        backends.dedup();
        backends.retain(|backend| {
            let good = is_host_address(subnet, *backend)
                && *backend != gateway
                && vips.binary_search(backend).is_err();
            if !good {
                refusals.push(Refusal::Backend {
                    vip: *vip,
                    backend: *backend,
                    subnet,
                });
            }
            good
        });
    }
}

type PortKey = (crate::model::Protocol, Option<Ipv4Addr>, u16);

fn check_published(
    state: &mut NetworkState,
    ports: &mut BTreeMap<PortKey, String>,
    refusals: &mut Vec<Refusal>,
) {
    let mut published = std::mem::take(&mut state.published);
    published.retain(|port| match check_port(state, port, ports) {
        Ok(()) => {
            ports.insert((port.protocol, port.host_ip, port.port), state.id.clone());
            true
        }
        Err(refusal) => {
            refusals.push(refusal);
            false
        }
    });
    published.sort_unstable_by_key(|port| (port.protocol, port.host_ip, port.port));
    state.published = published;
}

fn check_port(
    state: &NetworkState,
    published: &Published,
    ports: &BTreeMap<PortKey, String>,
) -> Result<(), Refusal> {
    let subnet = state.subnet;
    let port = published.to_string();
    let (PublishedTarget::Vip { port: target, .. }
    | PublishedTarget::Container { port: target, .. }) = published.to;
    if published.port == 0 || target == 0 {
        return Err(Refusal::PortZero(port));
    }
    if !state.has_uplink() {
        return Err(Refusal::PublishedInternal(port));
    }
    if let Some(by) = ports.get(&(published.protocol, published.host_ip, published.port)) {
        return Err(Refusal::PortTaken {
            port,
            by: by.clone(),
        });
    }
    // Answers of other nodes' containers come back here in the ingress network alone.
    let is_elsewhere = |addr: &Ipv4Addr| {
        let overlay = state.overlay.as_ref().filter(|_| !state.ingress);
        overlay.is_some_and(|overlay| overlay.remote.contains_key(addr))
    };
    match published.to {
        PublishedTarget::Vip { addr, .. } => {
            let Ok(at) = state.vips.binary_search_by_key(&addr, |vip| vip.addr) else {
                return Err(Refusal::NoSuchVip { port, addr });
            };
            let elsewhere = state.vips[at]
                .backends
                .iter()
                .find(|addr| is_elsewhere(addr));
            match elsewhere {
                Some(addr) => Err(Refusal::PortElsewhere { port, addr: *addr }),
                None => Ok(()),
            }
        }
        PublishedTarget::Container { addr, .. } => {
            if !is_host_address(subnet, addr) {
                Err(Refusal::Target { port, addr, subnet })
            } else if is_elsewhere(&addr) {
                Err(Refusal::PortElsewhere { port, addr })
            } else {
                Ok(())
            }
        }
    }
}
