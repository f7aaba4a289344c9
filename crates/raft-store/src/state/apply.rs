//! Commands against the state: preconditions, effects, and all-or-nothing.

mod preconditions;

use std::sync::Arc;

use shoal_types::{
    Desired, NetworkId, NodeId, ServiceId, TaskId, TaskState, TaskStatus, Timestamp, Version,
    object::{
        Endpoint, Meta, Network, NetworkAttachment, PreviousSpec, Revocation, Service, Task,
        UpdateStatus,
    },
    spec::{Role, ServiceSpec},
};

use super::{AddressOwner, ObjectChange, State};
use crate::command::{Applied, Change, Command, Kind, Rejection};

impl State {
    /// Applies the command committed at `version`. Gives what changed, or why nothing did; either way
    /// the state is then the one of `version`. The same state and command give the same result on
    /// every manager.
    pub fn apply(
        &mut self,
        version: Version,
        command: &Command,
    ) -> Result<(Applied, Vec<ObjectChange>), Rejection> {
        self.version = version;
        // Leaders' clocks differ, and jump; the times of what is stored only go forward.
        self.clock = self.clock.max(command.at);
        let at = self.clock;
        let mut commit = Commit {
            state: self,
            version,
            at,
            done: Vec::with_capacity(command.changes.len()),
        };
        let result = command
            .changes
            .iter()
            .try_for_each(|change| commit.change(change));
        let done = commit.done;
        match result {
            Ok(()) => Ok((Applied { version }, done)),
            Err(rejection) => {
                for change in done.into_iter().rev() {
                    self.set(&change.inverse());
                }
                Err(rejection)
            }
        }
    }

    /// Marks the state as that of a commit that holds no command (a membership change, a new term).
    pub fn skip_to(&mut self, version: Version) {
        self.version = version;
    }
}

/// One command being applied.
struct Commit<'a> {
    state: &'a mut State,
    version: Version,
    at: Timestamp,
    done: Vec<ObjectChange>,
}

impl Commit<'_> {
    fn change(&mut self, change: &Change) -> Result<(), Rejection> {
        match change {
            Change::CreateCluster(cluster) => {
                if let Some(existing) = &self.state.cluster {
                    return Err(exists(Kind::Cluster, existing.id));
                }
                let mut cluster = (**cluster).clone();
                cluster.meta = self.born();
                self.set(ObjectChange::cluster(None, Some(Arc::new(cluster))));
            }
            Change::UpdateCluster { version, cluster } => {
                let before = self.state.cluster.clone();
                let before = before.ok_or_else(|| not_found(Kind::Cluster, cluster.id))?;
                in_sequence(Kind::Cluster, before.id, &before.meta, *version)?;
                let mut after = (**cluster).clone();
                after.id = before.id;
                after.meta = self.touched(&before.meta);
                self.set(ObjectChange::cluster(Some(before), Some(Arc::new(after))));
            }

            Change::CreateNode(node) => {
                if self.state.node(&node.id).is_some() {
                    return Err(exists(Kind::Node, node.id));
                }
                let mut node = (**node).clone();
                node.meta = self.born();
                self.set(ObjectChange::node(None, Some(Arc::new(node))));
            }
            Change::UpdateNodeSpec { id, version, spec } => {
                let node = self.node(*id)?;
                in_sequence(Kind::Node, id, &node.meta, *version)?;
                self.update_node(*id, |node| node.spec.clone_from(spec))?;
            }
            Change::SetNodeStatus { id, status } => {
                self.update_node(*id, |node| node.status.clone_from(status))?;
            }
            Change::SetNodeDescription { id, description } => {
                self.update_node(*id, |node| node.description.clone_from(description))?;
            }
            Change::SetNodeManager { id, manager } => {
                // Until it is out of the Raft group, a demoted manager is needed in it.
                let node = self.node(*id)?;
                if manager.is_none() && node.manager.is_some() && node.spec.role == Role::Worker {
                    self.revoke(*id);
                }
                self.update_node(*id, |node| node.manager.clone_from(manager))?;
            }
            Change::RemoveNode { id } => self.remove_node(*id)?,

            Change::CreateService { id, spec } => self.create_service(*id, spec, None)?,
            Change::CreateServiceWith { id, spec, endpoint } => {
                self.create_service(*id, spec, Some(endpoint))?;
            }
            Change::UpdateServiceSpec { id, version, spec } => {
                self.update_service_spec(*id, *version, spec)?;
            }
            Change::RollbackService {
                id,
                version,
                update,
            } => {
                self.roll_back_service(*id, *version, update)?;
            }
            Change::SetServiceEndpoint {
                id,
                spec_version,
                endpoint,
                err,
            } => {
                let service = self.service_of_spec(*id, *spec_version)?;
                if let Some(endpoint) = endpoint {
                    self.endpoint_is_free(&service, endpoint)?;
                }
                self.update_service(&service, |service| {
                    service.endpoint.clone_from(endpoint);
                    service.err.clone_from(err);
                });
            }
            Change::SetServiceUpdate {
                id,
                spec_version,
                update,
            } => {
                let service = self.service_of_spec(*id, *spec_version)?;
                self.update_service(&service, |service| service.update.clone_from(update));
            }
            Change::RemoveService { id } => {
                let service = self.service(*id)?;
                self.set(ObjectChange::service(Some(service), None));
            }

            Change::CreateTask(task) => self.create_task(task)?,
            Change::AllocateTask { id, attachments } => self.allocate_task(*id, attachments)?,
            Change::AssignTask { id, node, generic } => {
                let task = self.task(*id)?;
                self.node(*node)?;
                if task.node.is_none() && task.status.state <= TaskState::Pending {
                    let at = self.at;
                    self.update_task(&task, |task| {
                        task.node = Some(*node);
                        task.generic.clone_from(generic);
                        task.status.state = TaskState::Assigned;
                        task.status.at = at;
                        "scheduler assigned task to node".clone_into(&mut task.status.message);
                        task.status.err.clear();
                    });
                }
            }
            Change::ExplainTask { id, err } => {
                let task = self.task(*id)?;
                if task.status.state <= TaskState::Pending && task.status.err != *err {
                    self.update_task(&task, |task| task.status.err.clone_from(err));
                }
            }
            Change::SetTaskDesired { id, desired } => self.set_task_desired(*id, *desired),
            Change::SetTaskStatus {
                id,
                reporter,
                status,
            } => {
                self.set_task_status(*id, *reporter, status);
            }
            Change::RemoveTask { id } => {
                if let Some(task) = self.state.task(id).cloned() {
                    self.set(ObjectChange::task(Some(task), None));
                }
            }

            Change::CreateNetwork(network) => self.create_network(network)?,
            Change::RemoveNetwork { id } => self.remove_network(*id)?,

            Change::CreateSecret(secret) => {
                if self.state.secret(&secret.id).is_some() {
                    return Err(exists(Kind::Secret, secret.id));
                }
                if self.state.secret_named(&secret.name).is_some() {
                    return Err(name_taken(Kind::Secret, &secret.name));
                }
                let mut secret = (**secret).clone();
                secret.meta = self.born();
                self.set(ObjectChange::secret(None, Some(Arc::new(secret))));
            }
            Change::UpdateSecretLabels {
                id,
                version,
                labels,
            } => {
                let before = self.state.secret(id).cloned();
                let before = before.ok_or_else(|| not_found(Kind::Secret, id))?;
                in_sequence(Kind::Secret, id, &before.meta, *version)?;
                let mut after = (*before).clone();
                after.labels = labels.iter().cloned().collect();
                after.meta = self.touched(&before.meta);
                self.set(ObjectChange::secret(Some(before), Some(Arc::new(after))));
            }
            Change::RemoveSecret { id } => {
                let secret = self.state.secret(id).cloned();
                let secret = secret.ok_or_else(|| not_found(Kind::Secret, id))?;
                self.unused_by_services(Kind::Secret, &secret.name, |spec| {
                    spec.task
                        .container
                        .secrets
                        .iter()
                        .any(|file| file.id == *id)
                })?;
                self.set(ObjectChange::secret(Some(secret), None));
            }
            Change::CreateConfig(config) => {
                if self.state.config(&config.id).is_some() {
                    return Err(exists(Kind::Config, config.id));
                }
                if self.state.config_named(&config.name).is_some() {
                    return Err(name_taken(Kind::Config, &config.name));
                }
                let mut config = (**config).clone();
                config.meta = self.born();
                self.set(ObjectChange::config(None, Some(Arc::new(config))));
            }
            Change::UpdateConfigLabels {
                id,
                version,
                labels,
            } => {
                let before = self.state.config(id).cloned();
                let before = before.ok_or_else(|| not_found(Kind::Config, id))?;
                in_sequence(Kind::Config, id, &before.meta, *version)?;
                let mut after = (*before).clone();
                after.labels = labels.iter().cloned().collect();
                after.meta = self.touched(&before.meta);
                self.set(ObjectChange::config(Some(before), Some(Arc::new(after))));
            }
            Change::RemoveConfig { id } => {
                let config = self.state.config(id).cloned();
                let config = config.ok_or_else(|| not_found(Kind::Config, id))?;
                self.unused_by_services(Kind::Config, &config.name, |spec| {
                    spec.task
                        .container
                        .configs
                        .iter()
                        .any(|file| file.id == *id)
                })?;
                self.set(ObjectChange::config(Some(config), None));
            }
        }
        Ok(())
    }

    fn create_service(
        &mut self,
        id: ServiceId,
        spec: &ServiceSpec,
        endpoint: Option<&Endpoint>,
    ) -> Result<(), Rejection> {
        if self.state.service(&id).is_some() {
            return Err(exists(Kind::Service, id));
        }
        if self.state.service_named(&spec.name).is_some() {
            return Err(name_taken(Kind::Service, &spec.name));
        }
        self.refers_to_what_exists(spec)?;
        self.ports_are_free(id, &spec.endpoint.ports)?;
        let mut service = Service {
            id,
            meta: self.born(),
            spec: spec.clone(),
            spec_version: self.version,
            previous: None,
            endpoint: None,
            update: None,
            err: String::new(),
        };
        let free = |endpoint: &&Endpoint| self.endpoint_is_free(&service, endpoint).is_ok();
        service.endpoint = endpoint.filter(free).cloned();
        self.set(ObjectChange::service(None, Some(Arc::new(service))));
        Ok(())
    }

    fn update_service_spec(
        &mut self,
        id: ServiceId,
        version: Version,
        spec: &ServiceSpec,
    ) -> Result<(), Rejection> {
        let service = self.service(id)?;
        in_sequence(Kind::Service, id, &service.meta, version)?;
        if std::mem::discriminant(&service.spec.mode) != std::mem::discriminant(&spec.mode) {
            return Err(Rejection::ModeChange { id });
        }
        self.name_is_free(id, &spec.name)?;
        self.refers_to_what_exists(spec)?;
        self.ports_are_free(id, &spec.endpoint.ports)?;
        let new_version = self.version;
        self.update_service(&service, |service| {
            let old = std::mem::replace(&mut service.spec, spec.clone());
            service.previous = Some(PreviousSpec {
                spec: Box::new(old),
                version: service.spec_version,
            });
            service.spec_version = new_version;
            service.update = None;
        });
        Ok(())
    }

    fn roll_back_service(
        &mut self,
        id: ServiceId,
        version: Version,
        update: &UpdateStatus,
    ) -> Result<(), Rejection> {
        let service = self.service(id)?;
        in_sequence(Kind::Service, id, &service.meta, version)?;
        let previous = service
            .previous
            .clone()
            .ok_or(Rejection::NoPreviousSpec { id })?;
        // Another service may have taken the name, when the update changed it.
        self.name_is_free(id, &previous.spec.name)?;
        // What it names may be gone, or somebody else's by now.
        self.refers_to_what_exists(&previous.spec)?;
        self.ports_are_free(id, &previous.spec.endpoint.ports)?;
        self.update_service(&service, |service| {
            let old = std::mem::replace(&mut service.spec, *previous.spec);
            service.previous = Some(PreviousSpec {
                spec: Box::new(old),
                version: service.spec_version,
            });
            // Tasks that were made from the previous spec are up to date again.
            service.spec_version = previous.version;
            service.update = Some(update.clone());
        });
        Ok(())
    }

    fn remove_node(&mut self, id: NodeId) -> Result<(), Rejection> {
        let node = self.node(id)?;
        let tasks: Vec<Arc<Task>> = self.state.tasks_on(id).cloned().collect();
        let at = self.at;
        for task in tasks.iter().filter(|task| !task.status.state.is_terminal()) {
            self.update_task(task, |task| {
                task.status.state = TaskState::Orphaned;
                task.status.at = at;
                task.status.err = format!("node {id} was removed from the swarm");
            });
        }
        self.set(ObjectChange::node(Some(node), None));
        self.revoke(id);
        Ok(())
    }

    /// Notes that the node's certificates of before are no manager's any more, and forgets those notes
    /// that no certificate can outlive. The cluster's version stays: nobody's settings change.
    fn revoke(&mut self, node: NodeId) {
        let Some(before) = self.state.cluster.clone() else {
            return;
        };
        let mut after = (*before).clone();
        let (now, life) = (self.at, after.trust.certificate_life);
        let revoked = &mut after.trust.revoked;
        revoked.retain(|old| old.node != node && now.since(old.at) <= life);
        revoked.push(Revocation { node, at: now });
        self.set(ObjectChange::cluster(Some(before), Some(Arc::new(after))));
    }

    fn create_task(&mut self, task: &Task) -> Result<(), Rejection> {
        if self.state.task_services.contains_key(&task.id) {
            return Err(exists(Kind::Task, task.id));
        }
        self.state.accepts(task)?;
        let mut task = task.clone();
        task.meta = self.born();
        self.state.share_spec(&mut task);
        self.set(ObjectChange::task(None, Some(Arc::new(task))));
        Ok(())
    }

    fn allocate_task(
        &mut self,
        id: TaskId,
        attachments: &[NetworkAttachment],
    ) -> Result<(), Rejection> {
        let task = self.task(id)?;
        if task.status.state != TaskState::New {
            return Ok(());
        }
        self.state.addresses_are_free(id, attachments)?;
        let at = self.at;
        self.update_task(&task, |task| {
            task.attachments = attachments.to_vec();
            task.status.state = TaskState::Pending;
            task.status.at = at;
            "pending task scheduling".clone_into(&mut task.status.message);
            task.status.err.clear();
        });
        Ok(())
    }

    fn set_task_desired(&mut self, id: TaskId, desired: Desired) {
        if let Some(task) = self.state.task(&id).cloned()
            && task.desired < desired
        {
            self.update_task(&task, |task| task.desired = desired);
        }
    }

    fn set_task_status(&mut self, id: TaskId, reporter: Option<NodeId>, status: &TaskStatus) {
        let Some(task) = self.state.task(&id).cloned() else {
            return;
        };
        let owned = reporter.is_none() || reporter == task.node;
        let forward = task.status.state < status.state
            || (task.status.state == status.state && task.status != *status);
        if owned && forward {
            self.update_task(&task, |task| task.status.clone_from(status));
        }
    }

    fn create_network(&mut self, network: &Network) -> Result<(), Rejection> {
        if self.state.network(&network.id).is_some() {
            return Err(exists(Kind::Network, network.id));
        }
        if self.state.network_named(&network.spec.name).is_some() {
            return Err(name_taken(Kind::Network, &network.spec.name));
        }
        for other in self.state.networks() {
            if other.subnet.overlaps(network.subnet) {
                return Err(Rejection::SubnetOverlap {
                    subnet: network.subnet.to_string(),
                    other: other.spec.name.clone(),
                    other_subnet: other.subnet.to_string(),
                });
            }
            if other.vni == network.vni {
                return Err(Rejection::VniTaken {
                    vni: network.vni,
                    other: other.spec.name.clone(),
                });
            }
            if other.spec.ingress && network.spec.ingress {
                return Err(Rejection::IngressExists { id: other.id });
            }
        }
        let mut network = network.clone();
        network.meta = self.born();
        self.set(ObjectChange::network(None, Some(Arc::new(network))));
        Ok(())
    }

    fn remove_network(&mut self, id: NetworkId) -> Result<(), Rejection> {
        let network = self.state.network(&id).cloned();
        let network = network.ok_or_else(|| not_found(Kind::Network, id))?;
        if network.predefined {
            return Err(Rejection::Predefined {
                kind: Kind::Network,
                id: network.spec.name.clone(),
            });
        }
        self.unused_by_services(Kind::Network, &network.spec.name, |spec| {
            spec.task
                .networks
                .iter()
                .any(|attachment| attachment.network == id)
        })?;
        let user = self
            .state
            .addresses_in(id)
            .next()
            .map(|(_, owner)| match owner {
                AddressOwner::Task(task) => (Kind::Task, task.to_string()),
                AddressOwner::Service(service) => (Kind::Service, service.to_string()),
            });
        if let Some((user_kind, user)) = user {
            let id = network.spec.name.clone();
            return Err(Rejection::InUse {
                kind: Kind::Network,
                id,
                user_kind,
                user,
            });
        }
        self.set(ObjectChange::network(Some(network), None));
        Ok(())
    }

    fn update_node(
        &mut self,
        id: NodeId,
        edit: impl FnOnce(&mut shoal_types::object::Node),
    ) -> Result<(), Rejection> {
        let before = self.node(id)?;
        let mut after = (*before).clone();
        edit(&mut after);
        if after != *before {
            after.meta = self.touched(&before.meta);
            self.set(ObjectChange::node(Some(before), Some(Arc::new(after))));
        }
        Ok(())
    }

    fn update_service(&mut self, before: &Arc<Service>, edit: impl FnOnce(&mut Service)) {
        let mut after = (**before).clone();
        edit(&mut after);
        after.meta = self.touched(&before.meta);
        self.set(ObjectChange::service(
            Some(before.clone()),
            Some(Arc::new(after)),
        ));
    }

    fn update_task(&mut self, before: &Arc<Task>, edit: impl FnOnce(&mut Task)) {
        let mut after = (**before).clone();
        edit(&mut after);
        after.meta = self.touched(&before.meta);
        self.set(ObjectChange::task(
            Some(before.clone()),
            Some(Arc::new(after)),
        ));
    }

    fn set(&mut self, change: ObjectChange) {
        self.state.set(&change);
        self.done.push(change);
    }

    fn born(&self) -> Meta {
        Meta {
            version: self.version,
            created_at: self.at,
            updated_at: self.at,
        }
    }

    fn touched(&self, meta: &Meta) -> Meta {
        Meta {
            version: self.version,
            updated_at: self.at,
            ..*meta
        }
    }
}

fn in_sequence(
    kind: Kind,
    id: impl ToString,
    meta: &Meta,
    named: Version,
) -> Result<(), Rejection> {
    if meta.version == named {
        Ok(())
    } else {
        Err(Rejection::OutOfSequence {
            kind,
            id: id.to_string(),
            current: meta.version,
            named,
        })
    }
}

fn not_found(kind: Kind, id: impl ToString) -> Rejection {
    Rejection::NotFound {
        kind,
        id: id.to_string(),
    }
}

fn exists(kind: Kind, id: impl ToString) -> Rejection {
    Rejection::Exists {
        kind,
        id: id.to_string(),
    }
}

fn name_taken(kind: Kind, name: &str) -> Rejection {
    Rejection::NameTaken {
        kind,
        name: name.to_owned(),
    }
}
