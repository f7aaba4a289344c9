//! The difference between two assignment sets, so that a change in a large cluster is a small message.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Assignments, DataPeer, ManagerPeer, NetworkAssignment, NetworkEndpoint, NetworkService,
};
use crate::{
    Generation, NetworkId, ServiceId, TaskId,
    object::{Config, Secret, Task},
    spec::Role,
};

/// Turns the set of generation `from` into that of generation `to`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignmentChanges {
    pub from: Generation,
    pub to: Generation,
    /// New tasks, and those whose orders are others.
    pub tasks: Vec<Arc<Task>>,
    pub tasks_gone: Vec<TaskId>,
    pub networks: Vec<NetworkChange>,
    pub networks_gone: Vec<NetworkId>,
    /// All of them, when any is another.
    pub secrets: Option<Vec<Arc<Secret>>>,
    pub configs: Option<Vec<Arc<Config>>>,
    pub role: Role,
    pub managers: Option<Vec<ManagerPeer>>,
    pub peers: Option<Vec<DataPeer>>,
    pub data_path_port: u16,
}

/// What is otherwise in one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NetworkChange {
    /// The network is new, or its own settings are others.
    Whole(Arc<NetworkAssignment>),
    Parts {
        id: NetworkId,
        services: Vec<NetworkService>,
        services_gone: Vec<ServiceId>,
        endpoints: Vec<NetworkEndpoint>,
        endpoints_gone: Vec<Ipv4Addr>,
    },
}

/// Changes that do not belong to the set at hand; a whole set has to be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangesError {
    #[error("changes from generation {from} do not apply to generation {have}")]
    Generation { from: Generation, have: Generation },
    #[error("changes of network {id}, which is not in the set")]
    NoNetwork { id: NetworkId },
}

impl AssignmentChanges {
    /// From `old` to `new`. A task that is in both is taken for unchanged when `same` says so of the
    /// old and the new one: most of what becomes of a task is no news to its node.
    pub fn between(
        old: &Assignments,
        new: &Assignments,
        same: impl Fn(&Task, &Task) -> bool,
    ) -> Self {
        let before: BTreeMap<TaskId, &Arc<Task>> = old.tasks.iter().map(|t| (t.id, t)).collect();
        let is_news = |task: &&Arc<Task>| match before.get(&task.id) {
            Some(known) => !(Arc::ptr_eq(known, task) || same(known, task)),
            None => true,
        };
        let networks = by(&old.networks, |network| network.id);
        let changed = |network: &Arc<NetworkAssignment>| match networks.get(&network.id) {
            Some(known) if Arc::ptr_eq(known, network) || known == &network => None,
            Some(known) => Some(NetworkChange::between(known, network)),
            None => Some(NetworkChange::Whole(network.clone())),
        };
        Self {
            from: old.generation,
            to: new.generation,
            tasks: new.tasks.iter().filter(is_news).cloned().collect(),
            tasks_gone: gone(&old.tasks, &new.tasks, |task| task.id),
            networks: new.networks.iter().filter_map(changed).collect(),
            networks_gone: gone(&old.networks, &new.networks, |network| network.id),
            secrets: (old.secrets != new.secrets).then(|| new.secrets.clone()),
            configs: (old.configs != new.configs).then(|| new.configs.clone()),
            role: new.role,
            managers: (old.managers != new.managers).then(|| new.managers.clone()),
            peers: (old.peers != new.peers).then(|| new.peers.clone()),
            data_path_port: new.data_path_port,
        }
    }

    /// The set that these changes make of `old`.
    pub fn apply(&self, old: &Assignments) -> Result<Assignments, ChangesError> {
        if old.generation != self.from {
            return Err(ChangesError::Generation {
                from: self.from,
                have: old.generation,
            });
        }
        let mut networks: BTreeMap<NetworkId, Arc<NetworkAssignment>> =
            old.networks.iter().map(|n| (n.id, n.clone())).collect();
        for id in &self.networks_gone {
            networks.remove(id);
        }
        for change in &self.networks {
            let network = match change {
                NetworkChange::Whole(network) => network.clone(),
                NetworkChange::Parts { id, .. } => {
                    let known = networks
                        .get(id)
                        .ok_or(ChangesError::NoNetwork { id: *id })?;
                    Arc::new(change.apply(known))
                }
            };
            networks.insert(network.id, network);
        }
        Ok(Assignments {
            generation: self.to,
            tasks: merged(&old.tasks, &self.tasks, &self.tasks_gone, |task| task.id),
            networks: networks.into_values().collect(),
            secrets: self.secrets.clone().unwrap_or_else(|| old.secrets.clone()),
            configs: self.configs.clone().unwrap_or_else(|| old.configs.clone()),
            role: self.role,
            managers: self
                .managers
                .clone()
                .unwrap_or_else(|| old.managers.clone()),
            peers: self.peers.clone().unwrap_or_else(|| old.peers.clone()),
            data_path_port: self.data_path_port,
        })
    }
}

impl NetworkChange {
    fn between(old: &NetworkAssignment, new: &Arc<NetworkAssignment>) -> Self {
        let frame = |network: &NetworkAssignment| NetworkAssignment {
            services: Vec::new(),
            endpoints: Vec::new(),
            ..network.clone_frame()
        };
        if frame(old) != frame(new) {
            return Self::Whole(new.clone());
        }
        let services = by(&old.services, |service| service.id);
        let endpoints = by(&old.endpoints, |endpoint| endpoint.addr);
        let new_services = new.services.iter();
        let new_endpoints = new.endpoints.iter();
        Self::Parts {
            id: new.id,
            services: new_services
                .filter(|service| services.get(&service.id) != Some(service))
                .cloned()
                .collect(),
            services_gone: gone(&old.services, &new.services, |service| service.id),
            endpoints: new_endpoints
                .filter(|endpoint| endpoints.get(&endpoint.addr) != Some(endpoint))
                .cloned()
                .collect(),
            endpoints_gone: gone(&old.endpoints, &new.endpoints, |endpoint| endpoint.addr),
        }
    }

    fn apply(&self, old: &NetworkAssignment) -> NetworkAssignment {
        let Self::Parts {
            id: _,
            services,
            services_gone,
            endpoints,
            endpoints_gone,
        } = self
        else {
            unreachable!("a whole network replaces the one before");
        };
        NetworkAssignment {
            services: merged(&old.services, services, services_gone, |service| service.id),
            endpoints: merged(&old.endpoints, endpoints, endpoints_gone, |e| e.addr),
            ..old.clone_frame()
        }
    }
}

impl NetworkAssignment {
    /// All but services and endpoints.
    fn clone_frame(&self) -> Self {
        Self {
            id: self.id,
            name: self.name.clone(),
            subnet: self.subnet,
            gateway: self.gateway,
            vni: self.vni,
            internal: self.internal,
            ingress: self.ingress,
            mtu: self.mtu,
            services: Vec::new(),
            endpoints: Vec::new(),
        }
    }
}

fn by<T, K: Ord>(items: &[T], key: impl Fn(&T) -> K) -> BTreeMap<K, &T> {
    items.iter().map(|item| (key(item), item)).collect()
}

/// Keys of what is in `old` and not in `new`.
fn gone<T, K: Ord>(old: &[T], new: &[T], key: impl Fn(&T) -> K + Copy) -> Vec<K> {
    let kept = by(new, key);
    let keys = old.iter().map(key);
    keys.filter(|key| !kept.contains_key(key)).collect()
}

/// `old` without `gone` and with `set` in place of what has the same key, in the order of the keys.
fn merged<T: Clone, K: Ord>(
    old: &[T],
    set: &[T],
    gone: &[K],
    key: impl Fn(&T) -> K + Copy,
) -> Vec<T> {
    let mut items: BTreeMap<K, T> = old.iter().map(|item| (key(item), item.clone())).collect();
    for key in gone {
        items.remove(key);
    }
    items.extend(set.iter().map(|item| (key(item), item.clone())));
    items.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::NodeId;

    fn network(
        id: u8,
        flags: bool,
        services: &[(u8, u8)],
        endpoints: &[(u8, u8)],
    ) -> NetworkAssignment {
        NetworkAssignment {
            id: NetworkId::from_random([id; 17]),
            name: format!("n{id}"),
            subnet: "10.0.1.0/24".parse().expect("a network"),
            gateway: Ipv4Addr::new(10, 0, 1, 1),
            vni: 4096 + u32::from(id),
            internal: flags,
            ingress: false,
            mtu: flags.then_some(1400),
            services: services
                .iter()
                .map(|(id, backends)| NetworkService {
                    id: ServiceId::from_random([*id; 17]),
                    name: format!("s{id}"),
                    aliases: Vec::new(),
                    virtual_ip: None,
                    backends: vec![Ipv4Addr::new(10, 0, 1, *backends)],
                    published: Vec::new(),
                })
                .collect(),
            endpoints: endpoints
                .iter()
                .map(|(addr, node)| NetworkEndpoint {
                    addr: Ipv4Addr::new(10, 0, 1, *addr),
                    task: TaskId::from_random([*addr; 17]),
                    name: "t".to_owned(),
                    node: NodeId::from_random([*node; 17]),
                })
                .collect(),
        }
    }

    fn pairs() -> impl Strategy<Value = Vec<(u8, u8)>> {
        proptest::collection::btree_map(0u8..6, 0u8..3, 0..6).prop_map(|m| m.into_iter().collect())
    }

    prop_compose! {
        fn set(generation: u64)(
            networks in proptest::collection::btree_map(0u8..3, (any::<bool>(), pairs(), pairs()), 0..3),
            managers in 0u8..3,
            port in 0u16..2,
        ) -> Assignments {
            let networks = networks.iter();
            let mut networks: Vec<Arc<NetworkAssignment>> = networks
                .map(|(id, (flags, services, endpoints))| {
                    Arc::new(network(*id, *flags, services, endpoints))
                })
                .collect();
            for network in &mut networks {
                let network = Arc::make_mut(network);
                network.services.sort_by_key(|service| service.id);
            }
            networks.sort_by_key(|network| network.id);
            Assignments {
                generation: Generation(generation),
                networks,
                managers: (0..managers)
                    .map(|n| ManagerPeer {
                        node: NodeId::from_random([n; 17]),
                        addr: format!("10.0.0.{n}:2377"),
                    })
                    .collect(),
                data_path_port: port,
                ..Assignments::default()
            }
        }
    }

    proptest! {
        #[test]
        fn changes_make_the_new_set_of_the_old_one(old in set(3), new in set(4)) {
            let changes = AssignmentChanges::between(&old, &new, |a, b| a == b);
            prop_assert_eq!(changes.apply(&old), Ok(new));
        }
    }

    #[test]
    fn changes_of_another_set_are_refused() {
        let old = Assignments {
            generation: Generation(3),
            ..Assignments::default()
        };
        let changes = AssignmentChanges::between(&old, &old, |a, b| a == b);
        let other = Assignments::default();
        assert_eq!(
            changes.apply(&other),
            Err(ChangesError::Generation {
                from: Generation(3),
                have: Generation(0)
            })
        );
    }

    #[test]
    fn one_backend_among_many_is_a_small_change() {
        let many: Vec<(u8, u8)> = (1..200).map(|n| (n, n)).collect();
        let old = Assignments {
            networks: vec![Arc::new(network(1, false, &many, &many))],
            ..Assignments::default()
        };
        let mut new = old.clone();
        Arc::make_mut(&mut new.networks[0]).services[7]
            .backends
            .clear();
        let changes = AssignmentChanges::between(&old, &new, |a, b| a == b);
        let NetworkChange::Parts {
            services,
            endpoints,
            ..
        } = &changes.networks[0]
        else {
            panic!("{changes:?}");
        };
        assert_eq!((services.len(), endpoints.len()), (1, 0));
    }
}
