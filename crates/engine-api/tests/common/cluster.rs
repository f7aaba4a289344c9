//! The managers of a cluster: `State::apply` behind a mutex, and a stand-in for orchestrator, scheduler
//! and agent that runs what is wanted at once. Only the manager that leads takes requests.

use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use rand::random;
use shoal_engine_api::engine::{
    Change as Commit, Changes, ClusterSettings, Control, ControlError, ControlResult, Labels,
    NewFile,
};
use shoal_raft_store::{Change, Command, Rejection, State};
use shoal_types::{
    ClusterId, ConfigId, ContainerId, ContainerStatus, Desired, NetworkId, NodeId, RaftId,
    SecretId, ServiceId, Slot, TaskId, TaskState, TaskStatus, Timestamp, Version,
    object::{
        Cluster, Config, Endpoint, EndpointAtBirth, ManagerStatus, Meta, Network,
        NetworkAttachment, Node, NodeDescription, NodeResources, NodeState, NodeStatus, Secret,
        Task, TaskPlace, Trust, UpdateState, UpdateStatus, VirtualIp,
    },
    spec::{Availability, NetworkSpec, NodeSpec, Platform, Role, ServiceMode, ServiceSpec},
};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// The cluster as the manager on `node` has it.
pub struct MemoryCluster {
    pub node: NodeId,
    shared: Arc<Shared>,
}

/// What all managers have in common.
struct Shared {
    inner: Mutex<Inner>,
    commits: broadcast::Sender<Commit>,
}

struct Inner {
    state: State,
    leader: Option<NodeId>,
    next: u64,
    subnets: u8,
}

fn now() -> Timestamp {
    Timestamp(i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap())
}

impl MemoryCluster {
    pub fn new(node: NodeId, history: i64) -> Self {
        let cluster = Self {
            node,
            shared: Arc::new(Shared {
                inner: Mutex::new(Inner {
                    state: State::default(),
                    leader: Some(node),
                    next: 1,
                    subnets: 0,
                }),
                commits: broadcast::channel(256).0,
            }),
        };
        cluster
            .apply(vec![
                Change::CreateCluster(Box::new(Cluster {
                    id: ClusterId::from_random(random()),
                    meta: Meta::default(),
                    name: "default".into(),
                    labels: Labels::new(),
                    task_history_limit: history,
                    address_pools: vec!["10.0.0.0/8".parse().unwrap()],
                    subnet_prefix: 24,
                    data_path_port: 4789,
                    trust: Trust {
                        worker_secret: random(),
                        manager_secret: random(),
                        ..Trust::default()
                    },
                    epoch: 0,
                    heartbeat_period: Cluster::HEARTBEAT_PERIOD,
                })),
                Change::CreateNode(Box::new(manager(node, "reef", 1))),
            ])
            .expect("an empty state takes its first objects");
        let ingress = NetworkSpec {
            name: "ingress".into(),
            driver: "overlay".into(),
            ingress: true,
            ..NetworkSpec::default()
        };
        cluster
            .add_network(ingress, true)
            .expect("the first network");
        cluster
    }

    /// Another manager of the same cluster.
    pub fn joined(&self, node: NodeId, hostname: &str) -> Self {
        self.apply(vec![Change::CreateNode(Box::new(manager(
            node, hostname, 2,
        )))])
        .expect("a node with an id of its own");
        Self {
            node,
            shared: self.shared.clone(),
        }
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.inner().leader
    }

    pub fn set_leader(&self, leader: Option<NodeId>) {
        self.inner().leader = leader;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap()
    }

    pub fn now(&self) -> State {
        self.inner().state.clone()
    }

    fn leads(&self) -> ControlResult<()> {
        match self.leader() {
            Some(leader) if leader == self.node => Ok(()),
            Some(_) => Err(ControlError::NotLeader),
            None => Err(ControlError::NoLeader),
        }
    }

    pub fn apply(&self, changes: Vec<Change>) -> ControlResult<Version> {
        self.leads()?;
        let mut inner = self.inner();
        inner.next += 1;
        let version = Version(inner.next);
        let at = now();
        let (_, objects) = inner
            .state
            .apply(version, &Command { at, changes })
            .map_err(|rejection| refused(&rejection))?;
        // Nobody may be listening.
        drop(self.shared.commits.send(Commit { at, objects }));
        Ok(version)
    }

    fn add_network(&self, spec: NetworkSpec, predefined: bool) -> ControlResult<NetworkId> {
        let third = {
            let mut inner = self.inner();
            inner.subnets += 1;
            inner.subnets
        };
        let subnet = spec
            .ipam
            .subnet
            .unwrap_or_else(|| format!("10.0.{third}.0/24").parse().unwrap());
        let id = NetworkId::from_random(random());
        let gateway = spec.ipam.gateway.unwrap_or_else(|| subnet.nth(1).unwrap());
        self.apply(vec![Change::CreateNetwork(Box::new(Network {
            id,
            meta: Meta::default(),
            spec,
            subnet,
            gateway,
            vni: 4096 + u32::from(third),
            predefined,
        }))])?;
        Ok(id)
    }

    /// Gives the service addresses and makes what it wants run; what it does not want is shut down.
    pub fn settle(&self, id: ServiceId) {
        let state = self.now();
        let Some(service) = state.service(&id) else {
            for task in state.tasks_of(id) {
                self.stop(task, Desired::Remove);
            }
            return;
        };
        let networks = service.spec.task.networks.iter().map(|n| n.network);
        let vips = networks.clone().enumerate().map(|(n, network)| VirtualIp {
            network,
            addr: state
                .network(&network)
                .unwrap()
                .subnet
                .nth(200 - n as u64)
                .unwrap(),
        });
        let endpoint = Endpoint {
            mode: service.spec.endpoint.mode,
            ports: service.spec.endpoint.ports.clone(),
            virtual_ips: vips.collect(),
        };
        if service.endpoint.as_ref() != Some(&endpoint) {
            self.apply(vec![Change::SetServiceEndpoint {
                id,
                spec_version: service.spec_version,
                endpoint: Some(endpoint),
                err: String::new(),
            }])
            .expect("the allocator's write");
        }
        let replicas = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            _ => 1,
        };
        for task in state.tasks_of(id).filter(|t| t.desired == Desired::Running) {
            let TaskPlace::Slot(slot) = task.place else {
                continue;
            };
            if task.spec_version != service.spec_version || slot.0 > replicas {
                self.stop(task, Desired::Shutdown);
            }
        }
        let state = self.now();
        for slot in 1..=replicas {
            let place = TaskPlace::Slot(Slot(slot));
            let live = state
                .tasks_of(id)
                .any(|t| t.place == place && t.desired == Desired::Running);
            if !live {
                self.start(&state, id, place);
            }
        }
    }

    fn start(&self, state: &State, id: ServiceId, place: TaskPlace) {
        let service = state.service(&id).unwrap();
        let task = TaskId::from_random(random());
        let addresses = self.now();
        let attachments = service.spec.task.networks.iter().map(|n| {
            let network = addresses.network(&n.network).unwrap();
            let free = (2..200).map(|i| network.subnet.nth(i).unwrap());
            let mut free = free.filter(|a| addresses.address_owner(network.id, *a).is_none());
            NetworkAttachment {
                network: network.id,
                addr: free.next().unwrap(),
                aliases: Vec::new(),
            }
        });
        self.apply(vec![Change::CreateTask(Box::new(Task {
            id: task,
            meta: Meta::default(),
            service: id,
            service_name: service.spec.name.clone(),
            place,
            spec: service.spec.task.clone(),
            service_labels: service.spec.labels.clone(),
            spec_version: service.spec_version,
            node: Some(self.node),
            desired: Desired::Running,
            status: TaskStatus {
                state: TaskState::Running,
                at: now(),
                message: "started".into(),
                err: String::new(),
                container: Some(ContainerStatus {
                    id: ContainerId::from_random(random()),
                    pid: 4242,
                    exit_code: 0,
                }),
                ports: Vec::new(),
            },
            attachments: attachments.collect(),
            endpoint: EndpointAtBirth {
                mode: service.spec.endpoint.mode,
                ports: service.spec.endpoint.ports.clone(),
            },
            generic: Vec::new(),
            not_before: Timestamp::EPOCH,
        }))])
        .expect("a task of the service's own spec");
    }

    fn stop(&self, task: &Task, desired: Desired) {
        let status = TaskStatus {
            state: TaskState::Shutdown,
            at: now(),
            message: "shutdown".into(),
            ..task.status.clone()
        };
        self.apply(vec![
            Change::SetTaskDesired {
                id: task.id,
                desired,
            },
            Change::SetTaskStatus {
                id: task.id,
                reporter: Some(self.node),
                status,
            },
        ])
        .expect("the task exists");
    }
}

fn manager(id: NodeId, hostname: &str, number: u8) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec {
            name: String::new(),
            labels: Labels::new(),
            role: Role::Manager,
            availability: Availability::Active,
        },
        description: NodeDescription {
            hostname: hostname.into(),
            platform: Platform {
                architecture: "x86_64".into(),
                os: "linux".into(),
            },
            resources: NodeResources {
                nano_cpus: 2_000_000_000,
                memory_bytes: 4 << 30,
                generic: Vec::new(),
            },
            engine_version: "0.1.0".into(),
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: format!("127.0.0.{number}"),
            since: now(),
        },
        manager: Some(ManagerStatus {
            raft: RaftId(number.into()),
            addr: format!("127.0.0.{number}:2377"),
        }),
    }
}

fn refused(rejection: &Rejection) -> ControlError {
    let text = rejection.to_string();
    match rejection.clone() {
        Rejection::NotFound { kind, id } => ControlError::NotFound {
            kind: kind.to_string(),
            reference: id,
        },
        Rejection::NameTaken { kind, name } | Rejection::Exists { kind, id: name } => {
            ControlError::NameConflict {
                kind: kind.to_string(),
                name,
            }
        }
        Rejection::OutOfSequence { .. } => ControlError::OutOfSequence,
        Rejection::InUse { .. } => ControlError::InUse(text),
        Rejection::ModeChange { .. } => ControlError::NotSupported(text),
        _ => ControlError::Invalid {
            field: String::new(),
            message: text,
        },
    }
}

impl Control for MemoryCluster {
    fn state(&self) -> BoxFuture<'_, ControlResult<Arc<State>>> {
        async { self.leads().map(|()| Arc::new(self.now())) }.boxed()
    }

    fn changes(&self) -> Changes {
        let commits = BroadcastStream::new(self.shared.commits.subscribe());
        commits.filter_map(|commit| async { commit.ok() }).boxed()
    }

    fn local_state(&self) -> Arc<State> {
        Arc::new(self.now())
    }

    fn rotate_tokens(
        &self,
        version: Version,
        worker: bool,
        manager: bool,
    ) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            let mut cluster = (**self.now().cluster().unwrap()).clone();
            if worker {
                cluster.trust.worker_secret = random();
            }
            if manager {
                cluster.trust.manager_secret = random();
            }
            let cluster = Box::new(cluster);
            self.apply(vec![Change::UpdateCluster { version, cluster }])?;
            Ok(())
        }
        .boxed()
    }

    fn update_cluster(
        &self,
        version: Version,
        settings: ClusterSettings,
    ) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            let mut cluster = (**self.now().cluster().unwrap()).clone();
            cluster.labels = settings.labels;
            cluster.task_history_limit = settings.task_history_limit;
            cluster.trust.certificate_life = settings.certificate_life;
            cluster.heartbeat_period = settings.heartbeat_period;
            self.apply(vec![Change::UpdateCluster {
                version,
                cluster: Box::new(cluster),
            }])?;
            Ok(())
        }
        .boxed()
    }

    fn create_service(&self, spec: ServiceSpec) -> BoxFuture<'_, ControlResult<ServiceId>> {
        async move {
            let id = ServiceId::from_random(random());
            self.apply(vec![Change::CreateService {
                id,
                spec: Box::new(spec),
            }])?;
            self.settle(id);
            Ok(id)
        }
        .boxed()
    }

    fn update_service(
        &self,
        id: ServiceId,
        version: Version,
        spec: ServiceSpec,
    ) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            self.apply(vec![Change::UpdateServiceSpec {
                id,
                version,
                spec: Box::new(spec),
            }])?;
            self.settle(id);
            Ok(())
        }
        .boxed()
    }

    fn rollback_service(
        &self,
        id: ServiceId,
        version: Version,
    ) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            let update = UpdateStatus {
                state: UpdateState::RollbackCompleted,
                started_at: now(),
                completed_at: Some(now()),
                message: "rollback completed".into(),
            };
            self.apply(vec![Change::RollbackService {
                id,
                version,
                update,
            }])?;
            self.settle(id);
            Ok(())
        }
        .boxed()
    }

    fn remove_service(&self, id: ServiceId) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            self.apply(vec![Change::RemoveService { id }])?;
            self.settle(id);
            Ok(())
        }
        .boxed()
    }

    fn update_node(
        &self,
        id: NodeId,
        version: Version,
        spec: NodeSpec,
    ) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            self.apply(vec![Change::UpdateNodeSpec { id, version, spec }])
                .map(drop)
        }
        .boxed()
    }

    fn remove_node(&self, id: NodeId, force: bool) -> BoxFuture<'_, ControlResult<()>> {
        async move {
            if !force {
                return Err(ControlError::InUse(format!(
                    "node {id} is not down and can't be removed"
                )));
            }
            self.apply(vec![Change::RemoveNode { id }]).map(drop)
        }
        .boxed()
    }

    fn create_network(&self, spec: NetworkSpec) -> BoxFuture<'_, ControlResult<NetworkId>> {
        async move {
            self.leads()?;
            self.add_network(spec, false)
        }
        .boxed()
    }

    fn remove_network(&self, id: NetworkId) -> BoxFuture<'_, ControlResult<()>> {
        async move { self.apply(vec![Change::RemoveNetwork { id }]).map(drop) }.boxed()
    }

    fn create_secret(&self, file: NewFile) -> BoxFuture<'_, ControlResult<SecretId>> {
        async move {
            let id = SecretId::from_random(random());
            let NewFile { name, labels, data } = file;
            let secret = Secret {
                id,
                meta: Meta::default(),
                name,
                labels,
                data,
            };
            self.apply(vec![Change::CreateSecret(Box::new(secret))])?;
            Ok(id)
        }
        .boxed()
    }

    fn update_secret(
        &self,
        id: SecretId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>> {
        let labels = labels.into_iter().collect();
        async move {
            self.apply(vec![Change::UpdateSecretLabels {
                id,
                version,
                labels,
            }])
            .map(drop)
        }
        .boxed()
    }

    fn remove_secret(&self, id: SecretId) -> BoxFuture<'_, ControlResult<()>> {
        async move { self.apply(vec![Change::RemoveSecret { id }]).map(drop) }.boxed()
    }

    fn create_config(&self, file: NewFile) -> BoxFuture<'_, ControlResult<ConfigId>> {
        async move {
            let id = ConfigId::from_random(random());
            let NewFile { name, labels, data } = file;
            let config = Config {
                id,
                meta: Meta::default(),
                name,
                labels,
                data,
            };
            self.apply(vec![Change::CreateConfig(Box::new(config))])?;
            Ok(id)
        }
        .boxed()
    }

    fn update_config(
        &self,
        id: ConfigId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>> {
        let labels = labels.into_iter().collect();
        async move {
            self.apply(vec![Change::UpdateConfigLabels {
                id,
                version,
                labels,
            }])
            .map(drop)
        }
        .boxed()
    }

    fn remove_config(&self, id: ConfigId) -> BoxFuture<'_, ControlResult<()>> {
        async move { self.apply(vec![Change::RemoveConfig { id }]).map(drop) }.boxed()
    }
}
