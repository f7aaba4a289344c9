//! The names of one network, and who may know them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use crate::model::NetworkState;

/// Names of one network, in lower case and without the final dot.
#[derive(Debug)]
pub(super) struct Zone {
    state: Arc<NetworkState>,
    /// Made when the first address is asked for: names change often, and few ask so.
    by_address: OnceLock<HashMap<Ipv4Addr, String>>,
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
    pub(super) fn new(state: Arc<NetworkState>) -> Self {
        Self {
            forwards: state.has_uplink(),
            state,
            by_address: OnceLock::new(),
        }
    }

    fn own_names(&self) -> HashMap<Ipv4Addr, String> {
        let mut by_address: HashMap<Ipv4Addr, (Rank<'_>, &str)> = HashMap::new();
        for (name, addrs) in &self.state.names {
            let rank = rank(name, addrs);
            for addr in addrs {
                let best = by_address.entry(*addr).or_insert((rank, name));
                if rank > best.0 {
                    *best = (rank, name);
                }
            }
        }
        by_address
            .into_iter()
            .map(|(addr, (_, name))| (addr, name.to_owned()))
            .collect()
    }

    pub(super) fn is_of(&self, state: &Arc<NetworkState>) -> bool {
        Arc::ptr_eq(&self.state, state)
            || (&self.state.names, self.state.subnet, self.forwards)
                == (&state.names, state.subnet, state.has_uplink())
    }

    pub(super) fn addresses(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.state.names.get(name).map(Vec::as_slice)
    }

    /// The name of an address of this network; empty when it has none.
    pub(super) fn name(&self, addr: Ipv4Addr) -> Option<&str> {
        let own_names = self.by_address.get_or_init(|| self.own_names());
        let name = own_names.get(&addr).map(String::as_str);
        name.or_else(|| self.state.subnet.contains(addr).then_some(""))
    }
}

/// Which name of an address is its own: one that no other address has, and the fullest of those.
type Rank<'a> = (bool, usize, std::cmp::Reverse<&'a str>);

fn rank<'a>(name: &'a str, addrs: &[Ipv4Addr]) -> Rank<'a> {
    (addrs.len() == 1, name.len(), std::cmp::Reverse(name))
}
