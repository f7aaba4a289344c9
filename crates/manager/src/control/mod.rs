//! What users ask for, checked and turned into commands.
//!
//! Keeps true: bad input changes nothing; every write names the version it read, and a write on an
//! older one is refused; `apply` has the last word, so two managers' users cannot both take a name.

mod error;
mod find;
mod runnable;
mod validate;

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use rand::{RngExt, rng};
use shoal_raft_store::{
    Applied, Change, Command, Commits, Kind, MembershipError, ProposeError, Rejection, State, Store,
};
use shoal_types::{
    ClusterId, ConfigId, NetworkId, NodeId, RaftId, SecretId, ServiceId, Version,
    object::{Cluster, Config, Meta, Network, NodeState, Secret, Trust, UpdateState, UpdateStatus},
    spec::{Ipv4Net, NetworkSpec, NodeSpec, Role, ServiceSpec},
};
use tokio::sync::watch;

pub use self::error::{ControlError, Unavailable};
use crate::{allocate, clock::Clock};

/// A decision that is refused because something it chose is taken meanwhile is made again this often.
const ATTEMPTS: usize = 16;

/// The cluster, as its users see it. Copies share one store.
#[derive(Clone)]
pub struct Control {
    store: Store,
    clock: Clock,
}

/// What an operator may change of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    pub labels: BTreeMap<String, String>,
    /// Tasks kept for each slot, the running one included; negative: all.
    pub task_history_limit: i64,
    /// How long a node's certificate is good for.
    pub certificate_life: Duration,
    /// See [`Cluster::HEARTBEAT_PERIOD`].
    pub heartbeat_period: Duration,
}

/// A secret or config to be made.
#[derive(Clone, PartialEq, Eq)]
pub struct NewFile {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub data: Vec<u8>,
}

impl std::fmt::Debug for NewFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewFile")
            .field("name", &self.name)
            .field("data", &format_args!("{} bytes", self.data.len()))
            .finish_non_exhaustive()
    }
}

impl Control {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock }
    }

    /// The state that holds everything acknowledged before this call.
    pub async fn state(&self) -> Result<Arc<State>, ControlError> {
        let state = self.store.read().await?;
        if state.cluster().is_none() {
            return Err(ControlError::NoCluster);
        }
        Ok(state)
    }

    /// The state to check a request against that is to change it. A leader shows what it acknowledges
    /// before it does, so it need not ask the others whether it still leads: if it does not, the change
    /// is refused anyway, and `apply` checks again what another change may have taken in between.
    pub async fn basis(&self) -> Result<Arc<State>, ControlError> {
        if !self.store.leadership().borrow().is_leader() {
            return self.state().await;
        }
        let state = self.store.state();
        if state.cluster().is_none() {
            return Err(ControlError::NoCluster);
        }
        Ok(state)
    }

    /// The newest state this manager has, which may lag behind the leader's.
    pub fn local_state(&self) -> Arc<State> {
        self.store.state()
    }

    /// Wakes after every commit.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.store.watch()
    }

    /// Receives every commit from now on.
    pub fn changes(&self) -> Commits {
        self.store.changes()
    }

    /// Receives every commit after `version`.
    pub fn changes_after(&self, version: Version) -> Commits {
        self.store.changes_after(version)
    }

    pub async fn create_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        let state = self.basis().await?;
        check_service(&state, None, &spec)?;
        let id = ServiceId::from_random(rng().random());
        self.propose(allocate::creation(id, spec)).await?;
        Ok(id)
    }

    /// Replaces the spec of the service if it is still at `version`.
    pub async fn update_service(
        &self,
        id: ServiceId,
        version: Version,
        spec: ServiceSpec,
    ) -> Result<Applied, ControlError> {
        let state = self.basis().await?;
        let service = state
            .service(&id)
            .ok_or_else(|| ControlError::not_found(Kind::Service, id))?;
        if spec.name != service.spec.name {
            return Err(ControlError::NotSupported {
                message: "renaming services is not supported".to_owned(),
            });
        }
        check_service(&state, Some(id), &spec)?;
        self.propose(Change::UpdateServiceSpec {
            id,
            version,
            spec: Box::new(spec),
        })
        .await
    }

    /// Goes back to the spec before the newest one.
    pub async fn rollback_service(
        &self,
        id: ServiceId,
        version: Version,
    ) -> Result<Applied, ControlError> {
        self.basis().await?;
        let update = UpdateStatus {
            state: UpdateState::RollbackStarted,
            started_at: self.clock.wall(),
            completed_at: None,
            message: "manually requested rollback".to_owned(),
        };
        self.propose(Change::RollbackService {
            id,
            version,
            update,
        })
        .await
    }

    pub async fn remove_service(&self, id: ServiceId) -> Result<Applied, ControlError> {
        self.propose(Change::RemoveService { id }).await
    }

    pub async fn update_node(
        &self,
        id: NodeId,
        version: Version,
        spec: NodeSpec,
    ) -> Result<Applied, ControlError> {
        let state = self.basis().await?;
        let node = state
            .node(&id)
            .ok_or_else(|| ControlError::not_found(Kind::Node, id))?;
        if node.is_manager() && spec.role == Role::Worker {
            let managers = state.nodes().filter(|node| node.is_manager()).count();
            if managers == 1 {
                return Err(ControlError::Precondition {
                    message: "attempting to demote the last manager of the swarm".to_owned(),
                });
            }
            if let Some(manager) = &node.manager {
                self.check_demotion(manager.raft).await?;
            }
        }
        self.propose(Change::UpdateNodeSpec { id, version, spec })
            .await
    }

    /// The leader takes a demoted manager out of the raft group afterwards; whether it can is told now.
    async fn check_demotion(&self, raft: RaftId) -> Result<(), ControlError> {
        match self.store.check_removal(raft).await {
            Ok(()) => Ok(()),
            Err(MembershipError::NotLeader { leader }) => Err(ControlError::NoLeader { leader }),
            Err(error) => Err(ControlError::Precondition {
                message: error.to_string(),
            }),
        }
    }

    /// Removes a node that is down; `force` removes one that is not, too.
    pub async fn remove_node(&self, id: NodeId, force: bool) -> Result<Applied, ControlError> {
        let state = self.basis().await?;
        let node = state
            .node(&id)
            .ok_or_else(|| ControlError::not_found(Kind::Node, id))?;
        if node.manager.is_some() {
            return Err(ControlError::Precondition {
                message: format!(
                    "node {id} is a cluster manager and is a member of the raft cluster. It must be \
                     demoted to worker before removal"
                ),
            });
        }
        if node.status.state == NodeState::Ready && !force {
            return Err(ControlError::Precondition {
                message: format!("node {id} is not down and can't be removed"),
            });
        }
        self.propose(Change::RemoveNode { id }).await
    }

    /// Makes a network; a subnet that is not named comes from the cluster's pools.
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        let id = NetworkId::from_random(rng().random());
        for _ in 0..ATTEMPTS {
            let state = self.basis().await?;
            let network = checked_network(&state, id, spec.clone())?;
            let chosen = spec.ipam.subnet.is_none();
            let changes = vec![Change::CreateNetwork(Box::new(network))];
            match self.send(changes).await {
                Ok(_applied) => return Ok(id),
                // Somebody else took what was just chosen.
                Err(ProposeError::Rejected(Rejection::SubnetOverlap { .. })) if chosen => {}
                Err(ProposeError::Rejected(Rejection::VniTaken { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ControlError::Unavailable {
            source: Unavailable::Contention,
        })
    }

    pub async fn remove_network(&self, id: NetworkId) -> Result<Applied, ControlError> {
        let state = self.basis().await?;
        let network = state.network(&id);
        if network.is_some_and(|network| network.spec.ingress && !network.predefined) {
            let publishes = |service: &&Arc<shoal_types::object::Service>| {
                allocate::publishes_ingress(&service.spec.endpoint.ports)
            };
            if let Some(service) = state.services().find(publishes) {
                return Err(ControlError::InUse {
                    kind: Kind::Network,
                    message: format!(
                        "ingress network cannot be removed because service {} depends on it",
                        service.id
                    ),
                });
            }
        }
        self.propose(Change::RemoveNetwork { id }).await
    }

    pub async fn create_secret(&self, file: NewFile) -> Result<SecretId, ControlError> {
        self.basis().await?;
        validate::secret(&file.name, &file.data)?;
        let id = SecretId::from_random(rng().random());
        self.propose(Change::CreateSecret(Box::new(Secret {
            id,
            meta: Meta::default(),
            name: file.name,
            labels: file.labels,
            data: file.data,
        })))
        .await?;
        Ok(id)
    }

    /// Only the labels of a secret can change.
    pub async fn update_secret(
        &self,
        id: SecretId,
        version: Version,
        labels: BTreeMap<String, String>,
    ) -> Result<Applied, ControlError> {
        let labels = labels.into_iter().collect();
        self.propose(Change::UpdateSecretLabels {
            id,
            version,
            labels,
        })
        .await
    }

    pub async fn remove_secret(&self, id: SecretId) -> Result<Applied, ControlError> {
        self.propose(Change::RemoveSecret { id })
            .await
            .map_err(in_use_by_service)
    }

    pub async fn create_config(&self, file: NewFile) -> Result<ConfigId, ControlError> {
        self.basis().await?;
        validate::config(&file.name, &file.data)?;
        let id = ConfigId::from_random(rng().random());
        self.propose(Change::CreateConfig(Box::new(Config {
            id,
            meta: Meta::default(),
            name: file.name,
            labels: file.labels,
            data: file.data,
        })))
        .await?;
        Ok(id)
    }

    /// Only the labels of a config can change.
    pub async fn update_config(
        &self,
        id: ConfigId,
        version: Version,
        labels: BTreeMap<String, String>,
    ) -> Result<Applied, ControlError> {
        let labels = labels.into_iter().collect();
        self.propose(Change::UpdateConfigLabels {
            id,
            version,
            labels,
        })
        .await
    }

    pub async fn remove_config(&self, id: ConfigId) -> Result<Applied, ControlError> {
        self.propose(Change::RemoveConfig { id })
            .await
            .map_err(in_use_by_service)
    }

    pub async fn update_cluster(
        &self,
        version: Version,
        settings: ClusterSettings,
    ) -> Result<Applied, ControlError> {
        let state = self.basis().await?;
        let cluster = state.cluster().ok_or(ControlError::NoCluster)?;
        let cluster = Cluster {
            labels: settings.labels,
            task_history_limit: settings.task_history_limit,
            heartbeat_period: settings.heartbeat_period,
            trust: Trust {
                certificate_life: settings.certificate_life,
                ..cluster.trust.clone()
            },
            ..(**cluster).clone()
        };
        self.propose(Change::UpdateCluster {
            version,
            cluster: Box::new(cluster),
        })
        .await
    }

    /// Gives the join tokens of the named roles new secrets, if the cluster is still at `version`.
    pub async fn rotate_tokens(
        &self,
        version: Version,
        worker: bool,
        manager: bool,
    ) -> Result<Applied, ControlError> {
        let state = self.basis().await?;
        let cluster = state.cluster().ok_or(ControlError::NoCluster)?;
        let mut cluster = (**cluster).clone();
        if worker {
            cluster.trust.worker_secret = rng().random();
        }
        if manager {
            cluster.trust.manager_secret = rng().random();
        }
        self.propose(Change::UpdateCluster {
            version,
            cluster: Box::new(cluster),
        })
        .await
    }

    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.store.state().cluster().map(|cluster| cluster.id)
    }

    async fn propose(&self, change: Change) -> Result<Applied, ControlError> {
        Ok(self.send(vec![change]).await?)
    }

    async fn send(&self, changes: Vec<Change>) -> Result<Applied, ProposeError> {
        let at = self.clock.wall();
        self.store.propose(Command { at, changes }).await
    }
}

/// Whether `spec` may be that of service `id`, or of a new one.
pub(crate) fn check_service(
    state: &State,
    id: Option<ServiceId>,
    spec: &ServiceSpec,
) -> Result<(), ControlError> {
    validate::service(state, id, spec)?;
    runnable::check(&spec.task.container)
}

/// The network that a user's `spec` asks for.
pub(crate) fn checked_network(
    state: &State,
    id: NetworkId,
    spec: NetworkSpec,
) -> Result<Network, ControlError> {
    validate::network(state, &spec)?;
    new_network(state, id, spec)
}

/// Docker's sentence for a secret or config that a service still names.
fn in_use_by_service(error: ControlError) -> ControlError {
    match error {
        ControlError::InUse { kind, message } => {
            // "secret x is in use by service y" becomes what the docker CLI's users know.
            let message =
                message.replacen("in use by service ", "in use by the following service: ", 1);
            ControlError::InUse { kind, message }
        }
        other => other,
    }
}

/// The network that `spec` asks for, with everything filled in.
pub(crate) fn new_network(
    state: &State,
    id: NetworkId,
    mut spec: NetworkSpec,
) -> Result<Network, ControlError> {
    let subnet = if let Some(subnet) = spec.ipam.subnet {
        subnet
    } else {
        let cluster = state.cluster().ok_or(ControlError::NoCluster)?;
        allocate::free_subnet(state, cluster)
            .map_err(|message| ControlError::Precondition { message })?
    };
    let vni = allocate::free_vni(state).ok_or_else(|| ControlError::Precondition {
        message: "all network identifiers are in use: remove networks that nobody uses".to_owned(),
    })?;
    if spec.driver.is_empty() {
        "overlay".clone_into(&mut spec.driver);
    }
    Ok(Network {
        id,
        meta: Meta::default(),
        gateway: spec.ipam.gateway.unwrap_or_else(|| first_host(subnet)),
        spec,
        subnet,
        vni,
        predefined: false,
    })
}

/// The address `.1` of a subnet.
pub(crate) fn first_host(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.nth(1).unwrap_or_else(|| subnet.addr())
}
