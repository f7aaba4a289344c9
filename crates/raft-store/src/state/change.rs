//! One object before and after a commit: what watchers get, what a refused command is undone by, and
//! the only way that tables and indices change.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_types::{
    object::{Cluster, Config, Network, Node, Secret, Service, Task},
    spec::{PortConfig, PublishMode},
};

use super::{AddressOwner, State};
use crate::Table;

/// What happened to one object: created (no `before`), updated, or removed (no `after`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ObjectChange {
    Cluster {
        before: Option<Arc<Cluster>>,
        after: Option<Arc<Cluster>>,
    },
    Node {
        before: Option<Arc<Node>>,
        after: Option<Arc<Node>>,
    },
    Service {
        before: Option<Arc<Service>>,
        after: Option<Arc<Service>>,
    },
    Task {
        before: Option<Arc<Task>>,
        after: Option<Arc<Task>>,
    },
    Network {
        before: Option<Arc<Network>>,
        after: Option<Arc<Network>>,
    },
    Secret {
        before: Option<Arc<Secret>>,
        after: Option<Arc<Secret>>,
    },
    Config {
        before: Option<Arc<Config>>,
        after: Option<Arc<Config>>,
    },
}

macro_rules! constructors {
    ($($name:ident => $variant:ident),+ $(,)?) => {$(
        pub(crate) fn $name(
            before: Option<Arc<$variant>>,
            after: Option<Arc<$variant>>,
        ) -> Self {
            Self::$variant { before, after }
        }
    )+};
}

impl ObjectChange {
    constructors! {
        cluster => Cluster,
        node => Node,
        service => Service,
        task => Task,
        network => Network,
        secret => Secret,
        config => Config,
    }

    /// The change that takes this one back.
    pub(crate) fn inverse(self) -> Self {
        match self {
            Self::Cluster { before, after } => Self::cluster(after, before),
            Self::Node { before, after } => Self::node(after, before),
            Self::Service { before, after } => Self::service(after, before),
            Self::Task { before, after } => Self::task(after, before),
            Self::Network { before, after } => Self::network(after, before),
            Self::Secret { before, after } => Self::secret(after, before),
            Self::Config { before, after } => Self::config(after, before),
        }
    }
}

impl State {
    /// Makes the tables and every index show `change`.
    pub(super) fn set(&mut self, change: &ObjectChange) {
        match change {
            ObjectChange::Cluster { after, .. } => self.cluster.clone_from(after),
            ObjectChange::Node { before, after } => {
                replace(&mut self.nodes, before, after, |n| n.id);
            }
            ObjectChange::Network { before, after } => {
                replace(&mut self.networks, before, after, |n| n.id);
                reindex(&mut self.network_names, before, after, |n| {
                    [(n.spec.name.to_lowercase(), n.id)]
                });
            }
            ObjectChange::Secret { before, after } => {
                replace(&mut self.secrets, before, after, |s| s.id);
                reindex(&mut self.secret_names, before, after, |s| {
                    [(s.name.to_lowercase(), s.id)]
                });
            }
            ObjectChange::Config { before, after } => {
                replace(&mut self.configs, before, after, |c| c.id);
                reindex(&mut self.config_names, before, after, |c| {
                    [(c.name.to_lowercase(), c.id)]
                });
            }
            ObjectChange::Service { before, after } => {
                replace(&mut self.services, before, after, |s| s.id);
                reindex(&mut self.service_names, before, after, |s| {
                    [(s.spec.name.to_lowercase(), s.id)]
                });
                reindex(&mut self.addresses, before, after, |s| {
                    let owner = AddressOwner::Service(s.id);
                    let vips = s.endpoint.iter().flat_map(|e| &e.virtual_ips);
                    vips.map(move |vip| ((vip.network, vip.addr), owner))
                });
                reindex(&mut self.ports, before, after, |s| {
                    let given = s.endpoint.iter().flat_map(|e| numbered(&e.ports));
                    given
                        .chain(numbered(&s.spec.endpoint.ports))
                        .filter(|port| port.mode == PublishMode::Ingress)
                        .map(|port| ((port.protocol, port.published), s.id))
                });
                reindex(&mut self.host_ports, before, after, |s| {
                    numbered(&s.spec.endpoint.ports)
                        .filter(|port| port.mode == PublishMode::Host)
                        .map(|port| ((port.protocol, port.published, s.id), ()))
                });
            }
            ObjectChange::Task { before, after } => {
                replace(&mut self.tasks, before, after, |t| (t.service, t.id));
                reindex(&mut self.task_services, before, after, |t| {
                    [(t.id, t.service)]
                });
                reindex(&mut self.node_tasks, before, after, |t| {
                    t.node.map(|node| ((node, t.id), t.service))
                });
                reindex(&mut self.addresses, before, after, |t| {
                    let owner = AddressOwner::Task(t.id);
                    let held = (!t.status.state.is_terminal()).then_some(&t.attachments);
                    held.into_iter()
                        .flatten()
                        .map(move |a| ((a.network, a.addr), owner))
                });
            }
        }
    }
}

/// The ports that have a number.
pub(super) fn numbered(ports: &[PortConfig]) -> impl Iterator<Item = &PortConfig> {
    ports.iter().filter(|port| port.published != 0)
}

fn replace<K: Ord + Clone, V>(
    table: &mut Table<K, Arc<V>>,
    before: &Option<Arc<V>>,
    after: &Option<Arc<V>>,
    key: impl Fn(&V) -> K,
) {
    match (before, after) {
        (_, Some(after)) => {
            table.insert(key(after), after.clone());
        }
        (Some(before), None) => {
            table.remove(&key(before));
        }
        (None, None) => {}
    }
}

/// Rows of `before` that `after` lacks go, rows that it has come. An object has few of them.
fn reindex<'a, K: Ord + Clone, V: Clone, T, R: IntoIterator<Item = (K, V)>>(
    index: &mut Table<K, V>,
    before: &'a Option<Arc<T>>,
    after: &'a Option<Arc<T>>,
    rows: impl Fn(&'a T) -> R,
) {
    let old = || before.as_deref().into_iter().flat_map(&rows);
    let new = || after.as_deref().into_iter().flat_map(&rows);
    for (key, _) in old() {
        if !new().any(|(k, _)| k == key) {
            index.remove(&key);
        }
    }
    for (key, value) in new() {
        if !old().any(|(k, _)| k == key) {
            index.insert(key, value);
        }
    }
}
