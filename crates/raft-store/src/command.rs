//! The commands that change the state, and the reasons for which they are refused.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_types::{
    ConfigId, Desired, NetworkId, NodeId, SecretId, ServiceId, TaskId, TaskStatus, Timestamp,
    Version,
    object::{
        Cluster, Config, Endpoint, ManagerStatus, Network, NetworkAttachment, Node,
        NodeDescription, NodeStatus, Secret, Task, UpdateStatus,
    },
    spec::{GenericResource, NodeSpec, Protocol, ServiceSpec},
};

/// Changes that take effect together or not at all. One command is one entry of the Raft log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The proposer's clock, the only one that `apply` knows. One that is behind an earlier command's
    /// counts as that one's.
    pub at: Timestamp,
    pub changes: Vec<Change>,
}

/// One change of one object. Versions and times inside the objects are set by `apply`.
///
/// Two kinds of precondition exist. A user's write names the version it read and is refused when the
/// object has moved on. A report or a decision that can only ever move an object forward (an observed
/// or desired state, a removal) is silently dropped when the object is further on already, because
/// whoever sent it will see the newer state and decide again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Refused when there is one already.
    CreateCluster(Box<Cluster>),
    /// Replaces all but the id.
    UpdateCluster {
        version: Version,
        cluster: Box<Cluster>,
    },

    CreateNode(Box<Node>),
    UpdateNodeSpec {
        id: NodeId,
        version: Version,
        spec: NodeSpec,
    },
    SetNodeStatus {
        id: NodeId,
        status: NodeStatus,
    },
    SetNodeDescription {
        id: NodeId,
        description: Box<NodeDescription>,
    },
    SetNodeManager {
        id: NodeId,
        manager: Option<ManagerStatus>,
    },
    /// Its unfinished tasks become Orphaned in the same instant.
    RemoveNode {
        id: NodeId,
    },

    /// Refused when the name or an ingress port is taken, or a network, secret or config of the spec
    /// does not exist.
    CreateService {
        id: ServiceId,
        spec: Box<ServiceSpec>,
    },
    /// The old spec becomes the previous one; a running update is forgotten.
    UpdateServiceSpec {
        id: ServiceId,
        version: Version,
        spec: Box<ServiceSpec>,
    },
    /// Swaps the spec with the previous one, and notes `update`; refused when what that one names is
    /// gone or taken.
    RollbackService {
        id: ServiceId,
        version: Version,
        update: UpdateStatus,
    },
    /// What the allocator gave a service, for the spec of `spec_version`; refused when the spec has
    /// changed since, or an address or port belongs to somebody else.
    SetServiceEndpoint {
        id: ServiceId,
        spec_version: Version,
        endpoint: Option<Endpoint>,
        err: String,
    },
    /// How far an update of the spec of `spec_version` has come; refused when the spec has changed since.
    SetServiceUpdate {
        id: ServiceId,
        spec_version: Version,
        update: Option<UpdateStatus>,
    },
    /// Its tasks stay, for the orchestrator to stop; its addresses and ports are free.
    RemoveService {
        id: ServiceId,
    },

    /// A task in whatever state the decision reached (New, Pending or Assigned). Refused unless the
    /// service exists with the spec the task was made from, and its addresses are free.
    CreateTask(Box<Task>),
    /// New → Pending.
    AllocateTask {
        id: TaskId,
        attachments: Vec<NetworkAttachment>,
    },
    /// Pending → Assigned; refused when the node does not exist.
    AssignTask {
        id: TaskId,
        node: NodeId,
        generic: Vec<GenericResource>,
    },
    /// Why a task that has no node waits. Dropped once it has one.
    ExplainTask {
        id: TaskId,
        err: String,
    },
    /// Only ever moves up.
    SetTaskDesired {
        id: TaskId,
        desired: Desired,
    },
    /// Only ever moves up; dropped when `reporter` is a node that the task is not on.
    SetTaskStatus {
        id: TaskId,
        reporter: Option<NodeId>,
        status: TaskStatus,
    },
    RemoveTask {
        id: TaskId,
    },

    /// Refused when the name or the identifier is taken, the subnet overlaps another network's, or it
    /// would be a second ingress network.
    CreateNetwork(Box<Network>),
    /// Refused while a service or an unfinished task uses it.
    RemoveNetwork {
        id: NetworkId,
    },

    CreateSecret(Box<Secret>),
    /// Only labels can change.
    UpdateSecretLabels {
        id: SecretId,
        version: Version,
        labels: Vec<(String, String)>,
    },
    /// Refused while a service uses it.
    RemoveSecret {
        id: SecretId,
    },
    CreateConfig(Box<Config>),
    UpdateConfigLabels {
        id: ConfigId,
        version: Version,
        labels: Vec<(String, String)>,
    },
    RemoveConfig {
        id: ConfigId,
    },

    /// As `CreateService`, with the endpoint that its spec calls for. The endpoint is dropped when any
    /// of it belongs to somebody else: the allocator finds another.
    CreateServiceWith {
        id: ServiceId,
        spec: Box<ServiceSpec>,
        endpoint: Box<Endpoint>,
    },
}

/// The command took effect as the commit of this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub version: Version,
}

/// What an id or name in a [`Rejection`] is the id or name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Cluster,
    Node,
    Service,
    Task,
    Network,
    Secret,
    Config,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cluster => "swarm",
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

/// Why a command was refused. Nothing of it took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("{kind} {id} not found")]
    NotFound { kind: Kind, id: String },
    #[error("{kind} {id} already exists")]
    Exists { kind: Kind, id: String },
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameTaken { kind: Kind, name: String },
    /// Docker's words for a lost optimistic write.
    #[error("update out of sequence: {kind} {id} is at version {current}, not {named}")]
    OutOfSequence {
        kind: Kind,
        id: String,
        current: Version,
        named: Version,
    },
    #[error("{kind} {id} is in use by {user_kind} {user}")]
    InUse {
        kind: Kind,
        id: String,
        user_kind: Kind,
        user: String,
    },
    #[error("service {id} does not have a previous spec")]
    NoPreviousSpec { id: ServiceId },
    #[error("address {addr} of network {network} belongs to {owner}")]
    AddressTaken {
        network: NetworkId,
        addr: std::net::Ipv4Addr,
        owner: String,
    },
    #[error(
        "port '{port}' is already in use by service '{service_name}' ({service}) as an ingress port"
    )]
    PortTaken {
        protocol: Protocol,
        port: u16,
        service: ServiceId,
        service_name: String,
    },
    #[error("subnet {subnet} overlaps network {other} ({other_subnet})")]
    SubnetOverlap {
        subnet: String,
        other: String,
        other_subnet: String,
    },
    #[error("service {id}: mode change is not allowed")]
    ModeChange { id: ServiceId },
    #[error("{kind} {id} is predefined and can't be removed")]
    Predefined { kind: Kind, id: String },
    #[error("network identifier {vni} belongs to network {other}")]
    VniTaken { vni: u32, other: String },
    /// Docker's words.
    #[error("ingress network ({id}) is already present")]
    IngressExists { id: NetworkId },
}
