//! The manager half of a node: its store, its loops, and the handles on them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use rand::{RngExt, rng};
use shoal_raft_store::{
    BootstrapError, Change, Command, DataKey, MembershipError, ProposeError, RaftTuning, State,
    Store, StoreConfig,
};
use shoal_transport::{
    ca::{Authority, AuthorityError},
    cluster::{ClusterTls, Incoming},
    identity::Identity,
    stream::Stream,
};
use shoal_types::{
    ClusterId, NetworkId, NodeId, RaftId, TaskId,
    object::{
        Cluster, ManagerStatus, Meta, Network, Node, NodeDescription, NodeState, NodeStatus, Trust,
    },
    spec::{Availability, Ipam, Ipv4Net, NetworkSpec, NodeSpec, Role},
    wire::{LogOptions, ManagerPeer, Open, Purpose},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    allocate::BRIDGE,
    clock::Clock,
    cluster::{self, Caller, Port, Reach, TlsPeers},
    control::{Control, ControlError, first_host, new_network},
    dispatch::{self, SessionEnd},
    hub::Hub,
    liveness::LivenessConfig,
    reconcile,
};

/// Address of the network that tasks without networks are in; the one Docker gives its bridge.
const BRIDGE_SUBNET: &str = "172.17.0.0/16";

/// Name of the network that published ports go through.
const INGRESS: &str = "ingress";

/// Docker's.
const CERTIFICATE_LIFE: Duration = Duration::from_hours(24 * 90);

const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(15);

/// An agent that was asked for a task's output connects within this.
const LOGS_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// The store's own directory.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// This manager in the Raft group.
    pub raft: RaftId,
    pub tuning: Tuning,
    /// What the state on disk is sealed under.
    pub key: DataKey,
    /// How other managers are reached; `None` for one that stays alone (local mode).
    pub cluster: Option<ClusterTls>,
    /// Goes on without the other members of a group that has lost its majority for good; see
    /// [`Manager::take_over`].
    pub alone: bool,
}

/// What a new cluster begins with, before there is a manager.
#[derive(Debug, Clone)]
pub struct Founding {
    pub cluster: ClusterId,
    pub trust: Trust,
    /// The first manager's own, X.509 DER.
    pub certificate: Vec<u8>,
}

impl Founding {
    /// Makes a certificate authority, and with it a manager's certificate for `node` with the key of
    /// `signing_request`.
    pub fn new(node: NodeId, signing_request: &[u8]) -> Result<Self, AuthorityError> {
        let now = Clock::start().wall();
        let cluster = ClusterId::from_random(rng().random());
        let (root_certificate, root_key) = Authority::create(cluster, now);
        let authority = Authority::open(&root_certificate, &root_key)?;
        let identity = Identity {
            node,
            role: Role::Manager,
            cluster,
        };
        let certificate = authority.issue(signing_request, &identity, now, CERTIFICATE_LIFE)?;
        let trust = Trust {
            root_certificate,
            root_key,
            worker_secret: rng().random(),
            manager_secret: rng().random(),
            certificate_life: CERTIFICATE_LIFE,
            revoked: Vec::new(),
        };
        Ok(Self {
            cluster,
            trust,
            certificate,
        })
    }
}

/// Times and sizes, with defaults that suit most clusters.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    pub raft: RaftTuning,
    pub liveness: LivenessConfig,
}

/// How a new cluster is made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    pub cluster: ClusterId,
    pub trust: Trust,
    /// This node, its first.
    pub description: NodeDescription,
    /// Address that other nodes see it at; empty in local mode.
    pub addr: String,
    /// `host:port` of its cluster listener; empty in local mode.
    pub manager_addr: String,
    pub availability: Availability,
    /// Networks without a subnet take one of `subnet_prefix` bits from these; ingress takes the first.
    pub address_pools: Vec<Ipv4Net>,
    pub subnet_prefix: u8,
    /// UDP port of the traffic between nodes.
    pub data_path_port: u16,
    /// Subnet of the network for tasks without one.
    pub bridge_subnet: Ipv4Net,
    pub task_history_limit: i64,
    /// See [`Cluster::HEARTBEAT_PERIOD`].
    pub heartbeat_period: Duration,
}

impl InitOptions {
    /// Docker's defaults for everything but the cluster and the node themselves.
    pub fn new(founding: &Founding, description: NodeDescription) -> Self {
        let net = |text: &str| text.parse().expect("written as a network");
        Self {
            cluster: founding.cluster,
            trust: founding.trust.clone(),
            description,
            addr: String::new(),
            manager_addr: String::new(),
            availability: Availability::Active,
            address_pools: vec![net("10.0.0.0/8")],
            subnet_prefix: 24,
            data_path_port: 4789,
            bridge_subnet: net(BRIDGE_SUBNET),
            task_history_limit: 5,
            heartbeat_period: Cluster::HEARTBEAT_PERIOD,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("open the cluster state")]
pub struct OpenError(#[from] shoal_raft_store::OpenError);

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{field}: {message}")]
    Invalid {
        field: &'static str,
        message: String,
    },
    #[error("start the raft group")]
    Bootstrap(#[from] BootstrapError),
    #[error("store the new cluster")]
    Propose(#[source] ProposeError),
    #[error("lay out the predefined networks")]
    Networks(#[source] ControlError),
    #[error("tell the raft group where this manager is reached")]
    Address(#[source] MembershipError),
}

/// A running manager. Copies share it.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

struct Inner {
    node: NodeId,
    raft: RaftId,
    port: Arc<Port>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Manager {
    /// Opens the store and starts the loops that work while this manager leads.
    pub async fn open(config: ManagerConfig) -> Result<Self, OpenError> {
        let store_config = StoreConfig {
            dir: config.dir,
            raft: config.raft,
            tuning: config.tuning.raft,
            key: config.key,
            older_keys: Vec::new(),
        };
        let store = match &config.cluster {
            Some(tls) => {
                let peers = Arc::new(TlsPeers::new(tls.clone()));
                if config.alone {
                    Store::open_alone(store_config, peers).await?
                } else {
                    Store::open_with_peers(store_config, peers).await?
                }
            }
            None => Store::open(store_config).await?,
        };
        let hub = Arc::new(Hub::new(Clock::start(), config.tuning.liveness));
        let port = Arc::new(Port {
            store,
            hub,
            tls: config.cluster,
        });
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (reconciler, reporter, roles) = (port.clone(), port.clone(), port.clone());
        let (stop_a, stop_b, stop_c) = (stop.clone(), stop.clone(), stop.clone());
        tasks.spawn(async move {
            reconcile::run(reconciler.store.clone(), &reconciler.hub, stop_a).await;
        });
        tasks.spawn(async move {
            dispatch::reports::run(reporter.store.clone(), &reporter.hub, stop_b).await;
        });
        tasks.spawn(cluster::keep_roles(roles, stop_c));
        Ok(Self(Arc::new(Inner {
            node: config.node,
            raft: config.raft,
            port,
            stop,
            tasks,
        })))
    }

    /// Makes a cluster of this one manager, or tells the id of the one it is in already.
    pub async fn init(&self, options: InitOptions) -> Result<ClusterId, InitError> {
        check(&options)?;
        let store = &self.0.port.store;
        store.bootstrap().await?;
        if let Some(cluster) = store.state().cluster() {
            return Ok(cluster.id);
        }
        let id = options.cluster;
        if !options.manager_addr.is_empty() {
            let reach = Reach {
                node: self.0.node,
                addr: options.manager_addr.clone(),
            };
            let told = store.set_address(self.0.raft, reach.to_string()).await;
            told.map_err(InitError::Address)?;
        }
        let changes = self.first_changes(options)?;
        let at = self.0.port.hub.clock.wall();
        match store.propose(Command { at, changes }).await {
            Ok(_applied) => Ok(id),
            Err(error) => match store.state().cluster() {
                // Another call was faster.
                Some(cluster) => Ok(cluster.id),
                None => Err(InitError::Propose(error)),
            },
        }
    }

    /// After it was opened alone: notes that this is the only manager, reached at `addr`, so that agents
    /// come here and other managers ask for a place of their own when they come back.
    pub async fn take_over(&self, addr: &str) -> Result<(), TakeOverError> {
        let store = &self.0.port.store;
        let mut leadership = store.leadership();
        let leads = leadership.wait_for(|now| now.is_leader());
        let leads = tokio::time::timeout(TAKE_OVER_TIMEOUT, leads).await;
        if !matches!(leads, Ok(Ok(_))) {
            return Err(TakeOverError::NoLeader);
        }
        drop(leads);
        let reach = Reach {
            node: self.0.node,
            addr: addr.to_owned(),
        };
        let told = store.set_address(self.0.raft, reach.to_string()).await;
        told.map_err(TakeOverError::Address)?;
        let state = store.state();
        let cluster = state.cluster().ok_or(TakeOverError::NoCluster)?;
        let managers = state.nodes().filter(|node| node.manager.is_some());
        let others = managers.filter(|node| node.id != self.0.node);
        let forget = others.map(|node| Change::SetNodeManager {
            id: node.id,
            manager: None,
        });
        let mut changes: Vec<Change> = forget.collect();
        changes.push(Change::SetNodeManager {
            id: self.0.node,
            manager: Some(ManagerStatus {
                raft: self.0.raft,
                addr: addr.to_owned(),
            }),
        });
        changes.push(Change::UpdateCluster {
            version: cluster.meta.version,
            cluster: Box::new(Cluster {
                epoch: cluster.epoch.saturating_add(1),
                ..(**cluster).clone()
            }),
        });
        let at = self.0.port.hub.clock.wall();
        let proposed = store.propose(Command { at, changes }).await;
        proposed.map(drop).map_err(TakeOverError::Propose)
    }

    pub fn control(&self) -> Control {
        Control::new(self.0.port.store.clone(), self.0.port.hub.clock)
    }

    /// The node that this manager is a half of.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Serves the agent of this node, over a stream within this process.
    pub async fn serve_local(&self, purpose: Purpose, stream: Stream) {
        let port = &self.0.port;
        match purpose {
            Purpose::Reply { ticket } => port.hub.reply(self.0.node, ticket, stream),
            Purpose::Session => {
                let caller = Caller {
                    node: self.0.node,
                    addr: None,
                };
                // Dropping a session at any await is what a lost connection does, too.
                let end = tokio::select! {
                    end = dispatch::serve(&port.store, &port.hub, Some(caller), stream) => end,
                    () = self.0.stop.cancelled() => SessionEnd::Stopped,
                };
                cluster::log_session(self.0.node, &end);
            }
            other => tracing::warn!(purpose = ?other, "nobody asks for this within a process"),
        }
    }

    /// Serves a connection on the cluster port to its end, except for requests to the API.
    pub async fn serve(&self, incoming: Incoming) {
        tokio::select! {
            () = self.0.port.serve(incoming) => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    /// Whether the caller may use the managers' API over the cluster port.
    pub fn may_use_api(&self, incoming: &Incoming) -> bool {
        let state = self.0.port.store.state();
        let caller = incoming.identity.as_ref();
        caller.is_some_and(|caller| cluster::is_manager(&state, &caller.node))
            && cluster::check_revoked(&state, incoming).is_ok()
    }

    /// Who leads, as far as this manager knows.
    pub fn leader(&self) -> Leader {
        let store = &self.0.port.store;
        if store.leadership().borrow().is_leader() {
            return Leader::Here;
        }
        cluster::leader(store).map_or(Leader::Unknown, Leader::At)
    }

    /// Whether each manager answers, as the leader sees it; empty on managers that do not lead.
    pub fn reachability(&self) -> BTreeMap<NodeId, bool> {
        let store = &self.0.port.store;
        if !store.leadership().borrow().is_leader() {
            return BTreeMap::new();
        }
        let state = store.state();
        let health = store.health();
        let managers = state.nodes().filter_map(|node| {
            let raft = node.manager.as_ref()?.raft;
            let reachable = health.iter().any(|m| m.id == raft && m.reachable);
            Some((node.id, reachable))
        });
        managers.collect()
    }

    /// Waits until somebody leads, or for `limit`.
    pub async fn wait_leader(&self, limit: Duration) -> Leader {
        let mut leadership = self.0.port.store.leadership();
        let known = async {
            loop {
                leadership.mark_unchanged();
                let leader = self.leader();
                if leader != Leader::Unknown || leadership.changed().await.is_err() {
                    return leader;
                }
            }
        };
        let known = tokio::time::timeout(limit, known).await;
        known.unwrap_or(Leader::Unknown)
    }

    /// Waits until somebody else leads than `leader`, or nobody.
    pub async fn no_longer(&self, leader: &Leader) {
        let mut leadership = self.0.port.store.leadership();
        loop {
            leadership.mark_unchanged();
            if self.leader() != *leader || leadership.changed().await.is_err() {
                return;
            }
        }
    }

    /// Output of a task, from the agent of the node it is on: [`shoal_types::wire::LogFrame`]s until the end of the
    /// stream. Only the leader knows the agents.
    pub async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<Stream, LogsError> {
        let port = &self.0.port;
        let state = port.store.state();
        let known = state.task(task).ok_or(LogsError::NoTask { task: *task })?;
        let Some(node) = known.node else {
            return Err(LogsError::NotPlaced { task: *task });
        };
        let open = Open::Logs {
            task: *task,
            options,
        };
        let silent = || {
            let hostname = state.node(&node).map(|n| n.description.hostname.clone());
            LogsError::Silent {
                task: *task,
                node,
                hostname: hostname.unwrap_or_default(),
            }
        };
        let opening = port.hub.open(node, open).ok_or_else(silent)?;
        opening.arrived(LOGS_TIMEOUT).await.ok_or_else(silent)
    }

    /// Ends sessions and loops, then the store, with everything acknowledged on disk.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.port.hub.end_term();
        // The others then need not wait until they miss this one.
        if let Err(error) = self.0.port.store.hand_over().await {
            tracing::warn!(%error, "leadership was not handed on");
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.port.store.shutdown().await;
    }

    /// The cluster, this node, and the predefined networks.
    fn first_changes(&self, options: InitOptions) -> Result<Vec<Change>, InitError> {
        let now = self.0.port.hub.clock.wall();
        let cluster = Cluster {
            id: options.cluster,
            meta: Meta::default(),
            name: "default".to_owned(),
            labels: std::collections::BTreeMap::new(),
            task_history_limit: options.task_history_limit,
            address_pools: options.address_pools,
            subnet_prefix: options.subnet_prefix,
            data_path_port: options.data_path_port,
            trust: options.trust,
            epoch: 0,
            heartbeat_period: options.heartbeat_period,
        };
        let node = Node {
            id: self.0.node,
            meta: Meta::default(),
            spec: NodeSpec {
                name: String::new(),
                labels: std::collections::BTreeMap::new(),
                role: Role::Manager,
                availability: options.availability,
            },
            description: options.description,
            status: NodeStatus {
                state: NodeState::Unknown,
                message: "node has not connected yet".to_owned(),
                addr: options.addr,
                since: now,
            },
            manager: Some(ManagerStatus {
                raft: self.0.raft,
                addr: options.manager_addr,
            }),
        };
        let mut changes = vec![
            Change::CreateCluster(Box::new(cluster)),
            Change::CreateNode(Box::new(node)),
        ];
        // Each network is laid out on the state that the changes so far give.
        let spec = |name: &str, driver: &str, subnet: Option<Ipv4Net>| NetworkSpec {
            name: name.to_owned(),
            driver: driver.to_owned(),
            ingress: name == INGRESS,
            ipam: Ipam {
                subnet,
                gateway: subnet.map(first_host),
                range: None,
            },
            ..NetworkSpec::default()
        };
        for spec in [
            spec(INGRESS, "overlay", None),
            spec(BRIDGE, "bridge", Some(options.bridge_subnet)),
        ] {
            let mut draft = State::default();
            let command = Command {
                at: now,
                changes: changes.clone(),
            };
            draft
                .apply(shoal_types::Version(1), &command)
                .map_err(|rejection| InitError::Networks(rejection.into()))?;
            let network_id = NetworkId::from_random(rng().random());
            let network = new_network(&draft, network_id, spec).map_err(InitError::Networks)?;
            changes.push(Change::CreateNetwork(Box::new(Network {
                predefined: true,
                ..network
            })));
        }
        Ok(changes)
    }
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    Here,
    At(ManagerPeer),
    Unknown,
}

/// Why a manager could not go on alone.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error("this manager did not become the leader of its own group")]
    NoLeader,
    #[error("this manager has no state of the swarm to go on with")]
    NoCluster,
    #[error("note where this manager is reached")]
    Address(#[source] MembershipError),
    #[error("note that this is the only manager")]
    Propose(#[source] ProposeError),
}

/// Why there is no output of a task.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    #[error("task {task} not found")]
    NoTask { task: TaskId },
    #[error("task {task} has not been scheduled")]
    NotPlaced { task: TaskId },
    #[error(
        "node {hostname} ({node}) does not answer, so the output of task {task} cannot be read"
    )]
    Silent {
        task: TaskId,
        node: NodeId,
        hostname: String,
    },
}

fn check(options: &InitOptions) -> Result<(), InitError> {
    let invalid = |field, message| Err(InitError::Invalid { field, message });
    if !(1..=29).contains(&options.subnet_prefix) {
        let message = format!(
            "subnets of /{} cannot be used; choose 1 to 29",
            options.subnet_prefix
        );
        return invalid("SubnetSize", message);
    }
    for (n, pool) in options.address_pools.iter().enumerate() {
        if pool.prefix() > options.subnet_prefix {
            let message = format!(
                "pool {pool} is smaller than one subnet of /{}",
                options.subnet_prefix
            );
            return invalid("DefaultAddrPool", message);
        }
        let earlier = &options.address_pools[..n];
        if let Some(other) = earlier.iter().find(|other| other.overlaps(*pool)) {
            return invalid(
                "DefaultAddrPool",
                format!("pools {other} and {pool} overlap"),
            );
        }
        if pool.overlaps(options.bridge_subnet) {
            let message = format!(
                "pool {pool} overlaps {}, the subnet of the network for tasks without one",
                options.bridge_subnet
            );
            return invalid("DefaultAddrPool", message);
        }
    }
    if options.address_pools.is_empty() {
        return invalid("DefaultAddrPool", "at least one pool is needed".to_owned());
    }
    Ok(())
}
