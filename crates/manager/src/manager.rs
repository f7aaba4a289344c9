//! The manager half of a node: its store, its loops, and the handles on them.

use std::{path::PathBuf, sync::Arc};

use rand::{RngExt, rng};
use shoal_raft_store::{
    BootstrapError, Change, Command, ProposeError, RaftTuning, State, Store, StoreConfig,
};
use shoal_types::{
    ClusterId, NetworkId, NodeId, RaftId,
    object::{
        Cluster, ManagerStatus, Meta, Network, Node, NodeDescription, NodeState, NodeStatus, Trust,
    },
    spec::{Availability, Ipam, Ipv4Net, NetworkSpec, NodeSpec, Role},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    allocate::BRIDGE,
    clock::Clock,
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

#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// The store's own directory.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// This manager in the Raft group.
    pub raft: RaftId,
    pub tuning: Tuning,
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
}

impl InitOptions {
    /// Docker's defaults for everything but the node itself.
    pub fn new(description: NodeDescription) -> Self {
        let net = |text: &str| text.parse().expect("written as a network");
        Self {
            description,
            addr: String::new(),
            manager_addr: String::new(),
            availability: Availability::Active,
            address_pools: vec![net("10.0.0.0/8")],
            subnet_prefix: 24,
            data_path_port: 4789,
            bridge_subnet: net(BRIDGE_SUBNET),
            task_history_limit: 5,
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
}

/// A running manager. Copies share it.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

struct Inner {
    node: NodeId,
    raft: RaftId,
    store: Store,
    hub: Arc<Hub>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Manager {
    /// Opens the store and starts the loops that work while this manager leads.
    pub async fn open(config: ManagerConfig) -> Result<Self, OpenError> {
        let store = Store::open(StoreConfig {
            dir: config.dir,
            raft: config.raft,
            tuning: config.tuning.raft,
        })
        .await?;
        let hub = Arc::new(Hub::new(Clock::start(), config.tuning.liveness));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (reconciler, reporter) = (hub.clone(), hub.clone());
        let (stop_a, stop_b) = (stop.clone(), stop.clone());
        let (store_a, store_b) = (store.clone(), store.clone());
        tasks.spawn(async move { reconcile::run(store_a, &reconciler, stop_a).await });
        tasks.spawn(async move { dispatch::reports::run(store_b, &reporter, stop_b).await });
        Ok(Self(Arc::new(Inner {
            node: config.node,
            raft: config.raft,
            store,
            hub,
            stop,
            tasks,
        })))
    }

    /// Makes a cluster of this one manager, or tells the id of the one it is in already.
    pub async fn init(&self, options: InitOptions) -> Result<ClusterId, InitError> {
        check(&options)?;
        self.0.store.bootstrap().await?;
        if let Some(cluster) = self.0.store.state().cluster() {
            return Ok(cluster.id);
        }
        let id = ClusterId::from_random(rng().random());
        let changes = self.first_changes(id, options)?;
        let at = self.0.hub.clock.wall();
        match self.0.store.propose(Command { at, changes }).await {
            Ok(_applied) => Ok(id),
            Err(error) => match self.0.store.state().cluster() {
                // Another call was faster.
                Some(cluster) => Ok(cluster.id),
                None => Err(InitError::Propose(error)),
            },
        }
    }

    pub fn control(&self) -> Control {
        Control::new(self.0.store.clone(), self.0.hub.clock)
    }

    /// The node that this manager is a half of.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Serves an agent over `stream` until it leaves, is superseded, or the manager stops.
    pub async fn serve_agent<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // Dropping a session at any await is what a lost connection does, too.
        let end = tokio::select! {
            end = dispatch::serve(&self.0.store, &self.0.hub, stream) => end,
            () = self.0.stop.cancelled() => SessionEnd::Stopped,
        };
        tracing::debug!(reason = %end, "a session with an agent ended");
    }

    /// Ends sessions and loops, then the store, with everything acknowledged on disk.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.hub.end_term();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.store.shutdown().await;
    }

    /// The cluster, this node, and the predefined networks.
    fn first_changes(&self, id: ClusterId, options: InitOptions) -> Result<Vec<Change>, InitError> {
        let now = self.0.hub.clock.wall();
        let cluster = Cluster {
            id,
            meta: Meta::default(),
            name: "default".to_owned(),
            labels: std::collections::BTreeMap::new(),
            task_history_limit: options.task_history_limit,
            address_pools: options.address_pools,
            subnet_prefix: options.subnet_prefix,
            data_path_port: options.data_path_port,
            trust: Trust::default(),
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
