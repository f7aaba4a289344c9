//! What a change asks of the state before it takes effect.

use std::{net::Ipv4Addr, sync::Arc};

use shoal_types::{
    NetworkId, NodeId, ServiceId, TaskId, Version,
    object::{Endpoint, NetworkAttachment, Node, Service, Task},
    spec::{PortConfig, PublishMode, ServiceSpec},
};

use super::{
    super::{AddressOwner, State, change::numbered},
    Commit, name_taken, not_found,
};
use crate::command::{Kind, Rejection};

impl Commit<'_> {
    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>, Rejection> {
        self.state
            .node(&id)
            .cloned()
            .ok_or_else(|| not_found(Kind::Node, id))
    }

    pub(super) fn service(&self, id: ServiceId) -> Result<Arc<Service>, Rejection> {
        self.state
            .service(&id)
            .cloned()
            .ok_or_else(|| not_found(Kind::Service, id))
    }

    pub(super) fn task(&self, id: TaskId) -> Result<Arc<Task>, Rejection> {
        self.state
            .task(&id)
            .cloned()
            .ok_or_else(|| not_found(Kind::Task, id))
    }

    /// The service, if a decision on its spec of `spec_version` still holds.
    pub(super) fn service_of_spec(
        &self,
        id: ServiceId,
        spec_version: Version,
    ) -> Result<Arc<Service>, Rejection> {
        self.state.service_of_spec(id, spec_version).cloned()
    }

    /// Whether service `id` may be called `name`.
    pub(super) fn name_is_free(&self, id: ServiceId, name: &str) -> Result<(), Rejection> {
        match self.state.service_named(name) {
            Some(other) if other.id != id => Err(name_taken(Kind::Service, name)),
            _ => Ok(()),
        }
    }

    /// The networks, secrets and configs of `spec` exist.
    pub(super) fn refers_to_what_exists(&self, spec: &ServiceSpec) -> Result<(), Rejection> {
        let (state, container) = (&self.state, &spec.task.container);
        let mut networks = spec.task.networks.iter();
        if let Some(missing) = networks.find(|n| state.network(&n.network).is_none()) {
            return Err(not_found(Kind::Network, missing.network));
        }
        let mut secrets = container.secrets.iter();
        if let Some(missing) = secrets.find(|file| state.secret(&file.id).is_none()) {
            return Err(not_found(Kind::Secret, &missing.name));
        }
        let mut configs = container.configs.iter();
        if let Some(missing) = configs.find(|file| state.config(&file.id).is_none()) {
            return Err(not_found(Kind::Config, &missing.name));
        }
        Ok(())
    }

    pub(super) fn unused_by_services(
        &self,
        kind: Kind,
        name: &str,
        uses: impl Fn(&ServiceSpec) -> bool,
    ) -> Result<(), Rejection> {
        match self.state.services().find(|service| uses(&service.spec)) {
            None => Ok(()),
            Some(service) => Err(Rejection::InUse {
                kind,
                id: name.to_owned(),
                user_kind: Kind::Service,
                user: service.spec.name.clone(),
            }),
        }
    }

    pub(super) fn endpoint_is_free(
        &self,
        service: &Service,
        endpoint: &Endpoint,
    ) -> Result<(), Rejection> {
        let owner = AddressOwner::Service(service.id);
        for vip in &endpoint.virtual_ips {
            self.state.address_is_free(vip.network, vip.addr, owner)?;
        }
        self.ports_are_free(service.id, &endpoint.ports)
    }

    /// No other service has any of the ingress ports among `ports`.
    pub(super) fn ports_are_free(
        &self,
        id: ServiceId,
        ports: &[PortConfig],
    ) -> Result<(), Rejection> {
        for port in numbered(ports).filter(|port| port.mode == PublishMode::Ingress) {
            let owner = self.state.port_owner(port.protocol, port.published);
            if let Some(owner) = owner.filter(|owner| *owner != id) {
                let name = self.state.service(&owner).map(|s| s.spec.name.clone());
                return Err(Rejection::PortTaken {
                    protocol: port.protocol,
                    port: port.published,
                    service: owner,
                    service_name: name.unwrap_or_default(),
                });
            }
        }
        Ok(())
    }
}

impl State {
    /// Whether `task`, whose id is new, can be created now: what `apply` asks of a
    /// [`Change::CreateTask`]. That the id is new is for `apply` alone to see: of all that a task needs,
    /// it takes the longest to find among a million.
    ///
    /// [`Change::CreateTask`]: crate::Change::CreateTask
    pub fn accepts(&self, task: &Task) -> Result<(), Rejection> {
        self.service_of_spec(task.service, task.spec_version)?;
        if let Some(node) = task.node.filter(|node| !self.nodes.contains_key(node)) {
            return Err(not_found(Kind::Node, node));
        }
        self.addresses_are_free(task.id, &task.attachments)
    }

    fn service_of_spec(
        &self,
        id: ServiceId,
        spec_version: Version,
    ) -> Result<&Arc<Service>, Rejection> {
        let service = self.service(&id);
        let service = service.ok_or_else(|| not_found(Kind::Service, id))?;
        if service.spec_version == spec_version {
            Ok(service)
        } else {
            Err(Rejection::OutOfSequence {
                kind: Kind::Service,
                id: id.to_string(),
                current: service.spec_version,
                named: spec_version,
            })
        }
    }

    pub(super) fn addresses_are_free(
        &self,
        task: TaskId,
        attachments: &[NetworkAttachment],
    ) -> Result<(), Rejection> {
        attachments
            .iter()
            .try_for_each(|a| self.address_is_free(a.network, a.addr, AddressOwner::Task(task)))
    }

    fn address_is_free(
        &self,
        network: NetworkId,
        addr: Ipv4Addr,
        wanted_by: AddressOwner,
    ) -> Result<(), Rejection> {
        if self.network(&network).is_none() {
            return Err(not_found(Kind::Network, network));
        }
        match self
            .address_owner(network, addr)
            .filter(|owner| *owner != wanted_by)
        {
            None => Ok(()),
            Some(owner) => Err(Rejection::AddressTaken {
                network,
                addr,
                owner: owner.to_string(),
            }),
        }
    }
}
