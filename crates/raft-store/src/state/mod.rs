//! The replicated state and the queries on it.

mod apply;
mod change;
#[cfg(test)]
mod tests;

use std::{net::Ipv4Addr, sync::Arc};

use shoal_types::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp, Version,
    object::{Cluster, Config, Network, Node, Secret, Service, Task},
    spec::Protocol,
};

pub use self::change::ObjectChange;
use crate::Table;

/// Everything the managers agree on, as of one commit. Copies are cheap and never change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    version: Version,
    clock: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: Table<NodeId, Arc<Node>>,
    services: Table<ServiceId, Arc<Service>>,
    /// By service, since that is how they are made and decided about: what is written together shares
    /// nodes of the table.
    tasks: Table<(ServiceId, TaskId), Arc<Task>>,
    networks: Table<NetworkId, Arc<Network>>,
    secrets: Table<SecretId, Arc<Secret>>,
    configs: Table<ConfigId, Arc<Config>>,

    // Derived from the tables above, by `change` alone.
    service_names: Table<String, ServiceId>,
    network_names: Table<String, NetworkId>,
    secret_names: Table<String, SecretId>,
    config_names: Table<String, ConfigId>,
    task_services: Table<TaskId, ServiceId>,
    node_tasks: Table<(NodeId, TaskId), ServiceId>,
    addresses: Table<(NetworkId, Ipv4Addr), AddressOwner>,
    ports: Table<(Protocol, u16), ServiceId>,
    host_ports: Table<(Protocol, u16, ServiceId), ()>,
}

/// Who holds an address of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressOwner {
    /// As its virtual IP.
    Service(ServiceId),
    /// Until it has ended.
    Task(TaskId),
}

impl std::fmt::Display for AddressOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(id) => write!(f, "service {id}"),
            Self::Task(id) => write!(f, "task {id}"),
        }
    }
}

impl State {
    /// The commit this is the state after.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The latest time that a command named. Nothing is dated before it, whatever the clocks of later
    /// leaders say.
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// Names are unique without regard to case.
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.services
            .get(self.service_names.get(&name.to_lowercase())?)
    }

    /// By service, then by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&(*self.task_services.get(id)?, *id))
    }

    /// Tasks made for a service, which itself may be gone, by id.
    pub fn tasks_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks
            .range((service, TaskId::MIN)..=(service, TaskId::MAX))
            .map(|(_, task)| task)
    }

    /// Tasks assigned to a node, ended ones included, by id.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.node_tasks
            .range((node, TaskId::MIN)..=(node, TaskId::MAX))
            .filter_map(|((_, task), service)| self.tasks.get(&(*service, *task)))
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    pub fn network_named(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks
            .get(self.network_names.get(&name.to_lowercase())?)
    }

    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    pub fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    pub fn secret_named(&self, name: &str) -> Option<&Arc<Secret>> {
        self.secrets
            .get(self.secret_names.get(&name.to_lowercase())?)
    }

    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    pub fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    pub fn config_named(&self, name: &str) -> Option<&Arc<Config>> {
        self.configs
            .get(self.config_names.get(&name.to_lowercase())?)
    }

    /// Who holds `addr` in `network`; `None` when it is free.
    pub fn address_owner(&self, network: NetworkId, addr: Ipv4Addr) -> Option<AddressOwner> {
        self.addresses.get(&(network, addr)).copied()
    }

    /// The held addresses of `network`, in order.
    pub fn addresses_in(
        &self,
        network: NetworkId,
    ) -> impl Iterator<Item = (Ipv4Addr, AddressOwner)> {
        let all = (network, Ipv4Addr::UNSPECIFIED)..=(network, Ipv4Addr::BROADCAST);
        self.addresses
            .range(all)
            .map(|((_, addr), owner)| (*addr, *owner))
    }

    /// The service that an ingress port belongs to, because its spec names it or it was given it.
    pub fn port_owner(&self, protocol: Protocol, port: u16) -> Option<ServiceId> {
        self.ports.get(&(protocol, port)).copied()
    }

    /// The services that publish a port on their own nodes, by id.
    pub fn host_port_users(
        &self,
        protocol: Protocol,
        port: u16,
    ) -> impl Iterator<Item = ServiceId> {
        self.host_ports
            .range((protocol, port, ServiceId::MIN)..=(protocol, port, ServiceId::MAX))
            .map(|((_, _, service), ())| *service)
    }

    /// All objects, in an order in which [`State::restore`] takes them back.
    pub fn objects(&self) -> impl Iterator<Item = ObjectChange> {
        let cluster = self
            .cluster
            .iter()
            .map(|c| ObjectChange::cluster(None, Some(c.clone())));
        let nodes = self
            .nodes()
            .map(|n| ObjectChange::node(None, Some(n.clone())));
        let networks = self
            .networks()
            .map(|n| ObjectChange::network(None, Some(n.clone())));
        let secrets = self
            .secrets()
            .map(|s| ObjectChange::secret(None, Some(s.clone())));
        let configs = self
            .configs()
            .map(|c| ObjectChange::config(None, Some(c.clone())));
        let services = self
            .services()
            .map(|s| ObjectChange::service(None, Some(s.clone())));
        let tasks = self
            .tasks()
            .map(|t| ObjectChange::task(None, Some(t.clone())));
        cluster
            .chain(nodes)
            .chain(networks)
            .chain(secrets)
            .chain(configs)
            .chain(services)
            .chain(tasks)
    }

    /// The state at `version` that consists of `objects`, as read back from a snapshot.
    pub fn restore(version: Version, objects: impl IntoIterator<Item = ObjectChange>) -> Self {
        let mut state = Self {
            version,
            ..Self::default()
        };
        for mut object in objects {
            if let ObjectChange::Task {
                after: Some(task), ..
            } = &mut object
            {
                state.share_spec(Arc::make_mut(task));
            }
            state.set(&object);
        }
        state
    }

    /// Lets `task` have its spec in common with its service, where both are the same: a service with
    /// many tasks has one in memory, also where each came in a message of its own.
    fn share_spec(&self, task: &mut Task) {
        let Some(service) = self.service(&task.service) else {
            return;
        };
        let previous = service.previous.iter().map(|previous| &previous.spec);
        let mut specs = std::iter::once(&service.spec).chain(previous.map(AsRef::as_ref));
        if let Some(same) = specs.find(|spec| spec.task == task.spec) {
            task.spec = same.task.clone();
        }
    }

    /// The same state with the clock that it was written down with.
    #[must_use]
    pub(crate) fn with_clock(self, clock: Timestamp) -> Self {
        Self { clock, ..self }
    }
}
