//! Tells usable desired objects from unusable ones. Pure; an unusable object takes nothing but
//! itself out of the set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use shoal_types::spec::Ipv4Net;

use crate::model::{ApplyError, NetworkState, Published, PublishedTarget, Refusal, Vip};

/// A desired set of which every object is usable.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) networks: BTreeMap<String, Arc<NetworkState>>,
    /// Networks that were refused as a whole. What the kernel has of them stays as it is: bad
    /// input changes nothing.
    pub(crate) refused: BTreeSet<String>,
    pub(crate) errors: Vec<ApplyError>,
}

pub(crate) fn check(desired: Vec<NetworkState>, pool: Ipv4Net) -> Checked {
    let mut checked = Checked::default();
    let mut ports = BTreeMap::new();
    for mut state in desired {
        let mut refusals = Vec::new();
        let whole = if checked.networks.contains_key(&state.id) {
            Err(Refusal::DuplicateNetwork)
        } else {
            check_network(&state, pool)
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
        check_vips(&mut state, &mut refusals);
        check_published(&mut state, &mut ports, &mut refusals);
        state.names = fold_names(state.names);
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
    match published.to {
        PublishedTarget::Vip { addr, .. } => {
            let known = state
                .vips
                .binary_search_by_key(&addr, |vip| vip.addr)
                .is_ok();
            if known {
                Ok(())
            } else {
                Err(Refusal::NoSuchVip { port, addr })
            }
        }
        PublishedTarget::Container { addr, .. } => {
            let good = is_host_address(subnet, addr);
            if good {
                Ok(())
            } else {
                Err(Refusal::Target { port, addr, subnet })
            }
        }
    }
}
