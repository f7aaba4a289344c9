//! Stored objects: a spec, plus what the cluster derived from it and observed of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    ClusterId, ConfigId, Desired, NetworkId, NodeId, RaftId, SecretId, ServiceId, Shared, Slot,
    TaskId, TaskStatus, Timestamp, Version, format,
    spec::{
        EndpointMode, GenericResource, Ipv4Net, NetworkSpec, NodeSpec, Platform, PortConfig,
        Resources, Role, ServiceSpec, TaskSpec,
    },
};

/// What every stored object carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Index of the commit that last wrote the object; set by the store.
    pub version: Version,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// The swarm itself; there is exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    /// Always `default`, as in Docker.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Tasks kept for each slot, the running one included; negative: all.
    pub task_history_limit: i64,
    /// Networks without a subnet of their own take one of `subnet_prefix` bits from these.
    pub address_pools: Vec<Ipv4Net>,
    pub subnet_prefix: u8,
    /// UDP port of the traffic between nodes.
    pub data_path_port: u16,
    pub trust: Trust,
    /// How often the cluster was made anew from the state of one manager, which may be behind what
    /// agents have seen.
    pub epoch: u16,
    /// How soon a silent node is given up, in Docker's measure; see [`Cluster::HEARTBEAT_PERIOD`].
    #[serde(with = "format::heartbeat_period")]
    pub heartbeat_period: Duration,
}

impl Cluster {
    /// Docker's default of the dispatcher's heartbeat period. Everything that has to do with the
    /// liveness of nodes is in proportion to it.
    pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(5);
}

/// What makes a node one of the cluster's. The key and the secrets never leave the managers.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// X.509, DER.
    pub root_certificate: Vec<u8>,
    /// PKCS #8, DER.
    pub root_key: Vec<u8>,
    /// The secret halves of the join tokens.
    pub worker_secret: [u8; 16],
    pub manager_secret: [u8; 16],
    /// How long a node's certificate is good for.
    pub certificate_life: Duration,
    /// Nodes that were removed, or were managers and are in the Raft group no more, for as long as a certificate of theirs from
    /// before could be good.
    pub revoked: Vec<Revocation>,
}

/// What only managers may do is refused to certificates of `node` that were made before `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub node: NodeId,
    pub at: Timestamp,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("certificate_life", &self.certificate_life)
            .finish_non_exhaustive()
    }
}

/// A machine of the swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    pub description: NodeDescription,
    pub status: NodeStatus,
    /// Present on managers.
    pub manager: Option<ManagerStatus>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub hostname: String,
    pub platform: Platform,
    /// What the machine has, before any reservation.
    pub resources: NodeResources,
    pub engine_version: String,
    pub engine_labels: BTreeMap<String, String>,
    /// (type, name): `("Volume", "local")`, `("Network", "overlay")`…
    pub plugins: Vec<(String, String)>,
    /// Where other nodes send the traffic of cluster networks; `None` in local mode.
    pub data_addr: Option<IpAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeResources {
    pub nano_cpus: u64,
    pub memory_bytes: u64,
    pub generic: Vec<GenericResource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub state: NodeState,
    /// Why it is not ready; empty when it is.
    pub message: String,
    /// Address that managers see it at; the node's own choice in local mode.
    pub addr: String,
    pub since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    /// Not heard of since the leader changed.
    Unknown,
    /// Heartbeats have stopped.
    Down,
    Ready,
    /// Its session ended; it is looking for a manager.
    Disconnected,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down => "down",
            Self::Ready => "ready",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The manager half of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    pub raft: RaftId,
    /// `host:port` of its cluster listener; empty when it has none (local mode).
    pub addr: String,
}

/// A service: its spec, the one before it, and how far an update has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// Version of the write that last changed `spec`; tasks remember the one they were made from.
    pub spec_version: Version,
    pub previous: Option<PreviousSpec>,
    /// Addresses and ports, once allocated.
    pub endpoint: Option<Endpoint>,
    pub update: Option<UpdateStatus>,
    /// Why the allocator cannot serve it; empty when it can.
    pub err: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviousSpec {
    pub spec: Box<ServiceSpec>,
    pub version: Version,
}

/// What the allocator gave a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub mode: EndpointMode,
    /// As in the spec, with every published port filled in.
    pub ports: Vec<PortConfig>,
    /// One address in each network; empty for DNS round robin, save the one in the ingress network.
    pub virtual_ips: Vec<VirtualIp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub network: NetworkId,
    pub addr: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

impl UpdateState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
}

/// One attempt to run one replica. Its spec never changes: a new spec means a new task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// The service's name when the task was made; tasks outlive their service.
    pub service_name: String,
    pub place: TaskPlace,
    /// The same that the service and its other tasks have.
    pub spec: Shared<TaskSpec>,
    /// The service's labels, for templates.
    pub service_labels: BTreeMap<String, String>,
    pub spec_version: Version,
    /// `None` until the scheduler has chosen.
    pub node: Option<NodeId>,
    pub desired: Desired,
    pub status: TaskStatus,
    /// Addresses, one for each network, once allocated.
    pub attachments: Vec<NetworkAttachment>,
    /// Published ports of the service when the task was made.
    pub endpoint: EndpointAtBirth,
    /// Generic resources claimed on the node.
    pub generic: Vec<GenericResource>,
    /// A task made to replace an ended one starts no earlier than this.
    pub not_before: Timestamp,
}

/// The service's endpoint settings that a task was made under: changing them replaces tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAtBirth {
    pub mode: EndpointMode,
    pub ports: Vec<PortConfig>,
}

impl Task {
    /// Docker's name for the task and its container: `SERVICE.SLOT.ID`, or `SERVICE.NODE.ID`.
    pub fn name(&self) -> String {
        match &self.place {
            TaskPlace::Slot(slot) => format!("{}.{slot}.{}", self.service_name, self.id),
            TaskPlace::Node(node) => format!("{}.{node}.{}", self.service_name, self.id),
        }
    }
}

/// Which of its service's places a task fills.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskPlace {
    /// Replicated services.
    Slot(Slot),
    /// Global services: the one place on this node.
    Node(NodeId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    pub network: NetworkId,
    pub addr: Ipv4Addr,
    pub aliases: Vec<String>,
}

/// A network, with the address range it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// Identifies the network's traffic between nodes, 4096–16777215.
    pub vni: u32,
    /// Made with the cluster and not removable (`ingress`, `bridge`).
    pub predefined: bool,
}

/// A secret; its data leaves the store only towards a node with a task that uses it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub id: SecretId,
    pub meta: Meta,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub data: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("data", &format_args!("{} bytes", self.data.len()))
            .finish_non_exhaustive()
    }
}

/// A config: like a secret, but readable through the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub id: ConfigId,
    pub meta: Meta,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub data: Vec<u8>,
}

impl Node {
    pub fn is_manager(&self) -> bool {
        self.spec.role == Role::Manager
    }
}

impl From<&Resources> for NodeResources {
    fn from(r: &Resources) -> Self {
        Self {
            nano_cpus: r.nano_cpus,
            memory_bytes: r.memory_bytes,
            generic: r.generic.clone(),
        }
    }
}
