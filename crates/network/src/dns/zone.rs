//! The names of one network, and who may know them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
};

use shoal_types::spec::Ipv4Net;

use crate::model::NetworkState;

/// Names of one network, in lower case and without the final dot.
#[derive(Debug)]
pub(super) struct Zone {
    names: BTreeMap<String, Vec<Ipv4Addr>>,
    by_address: HashMap<Ipv4Addr, String>,
    subnet: Ipv4Net,
    /// The network has a way out, so its containers may ask the world.
    pub(super) forwards: bool,
}

/// A container that asks.
#[derive(Debug)]
pub(super) struct Asker {
    /// In the order of its interfaces: the first that knows a name answers.
    pub(super) networks: Vec<String>,
    /// Names that it alone knows.
    pub(super) names: BTreeMap<String, Vec<Ipv4Addr>>,
    pub(super) upstreams: Option<Vec<SocketAddr>>,
}

impl Asker {
    pub(super) fn of_network(id: &str) -> Self {
        Self {
            networks: vec![id.to_owned()],
            names: BTreeMap::new(),
            upstreams: None,
        }
    }
}

impl Zone {
    /// The zone of a checked state, whose names are in lower case.
    pub(super) fn new(state: &NetworkState) -> Self {
        let mut by_address: HashMap<Ipv4Addr, (Rank<'_>, &str)> = HashMap::new();
        for (name, addrs) in &state.names {
            let rank = rank(name, addrs);
            for addr in addrs {
                let best = by_address.entry(*addr).or_insert((rank, name));
                if rank > best.0 {
                    *best = (rank, name);
                }
            }
        }
        Self {
            by_address: by_address
                .into_iter()
                .map(|(addr, (_, name))| (addr, name.to_owned()))
                .collect(),
            names: state.names.clone(),
            subnet: state.subnet,
            forwards: state.has_uplink(),
        }
    }

    pub(super) fn is_of(&self, state: &NetworkState) -> bool {
        (&self.names, self.subnet, self.forwards)
            == (&state.names, state.subnet, state.has_uplink())
    }

    pub(super) fn addresses(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.names.get(name).map(Vec::as_slice)
    }

    /// The name of an address of this network; empty when it has none.
    pub(super) fn name(&self, addr: Ipv4Addr) -> Option<&str> {
        let name = self.by_address.get(&addr).map(String::as_str);
        name.or_else(|| self.subnet.contains(addr).then_some(""))
    }
}

/// Which name of an address is its own: one that no other address has, and the fullest of those.
type Rank<'a> = (bool, usize, std::cmp::Reverse<&'a str>);

fn rank<'a>(name: &'a str, addrs: &[Ipv4Addr]) -> Rank<'a> {
    (addrs.len() == 1, name.len(), std::cmp::Reverse(name))
}
