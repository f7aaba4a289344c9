//! What an agent and the leader's dispatcher say to each other.
//!
//! A session is one stream. The agent opens with [`AgentMessage::Hello`]; the manager answers with
//! the node's whole [`Assignments`] and sends a newer set whenever it changes. Sets are complete:
//! what is not in one must not exist on the node. A set with a generation at or below the one the
//! agent has is refused, so a deposed leader does no harm.
//!
//! On the cluster port every connection begins with one [`Purpose`].

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

mod changes;

pub use self::changes::{AssignmentChanges, ChangesError, NetworkChange};
use crate::{
    ClusterId, Generation, NetworkId, NodeId, RaftId, ServiceId, TaskId, TaskState, TaskStatus,
    Timestamp,
    object::{Config, NodeDescription, Secret, Task},
    spec::{Availability, Ipv4Net, Protocol, Role},
};

/// What a connection on the cluster port is for; its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// One [`JoinRequest`] and its [`JoinAnswer`]. The only one that needs no certificate.
    Join,
    /// One [`RenewRequest`] and its [`JoinAnswer`].
    Renew,
    /// An agent's session.
    Session,
    /// An agent brings what [`ManagerMessage::Open`] asked for.
    Reply { ticket: u64 },
    /// Messages of the Raft group, for the member with this id; managers only.
    Raft { to: RaftId, lane: RaftLane },
    /// Requests to the managers' own API, passed on by another manager.
    Api,
    /// One [`MemberRequest`] and its [`MemberAnswer`]; managers only.
    Member,
}

/// Messages of one lane do not wait for those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RaftLane {
    Log,
    Heartbeat,
    Snapshot,
}

/// A node asks to become one of the cluster's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret half of a join token: it says which role the node gets.
    pub secret: [u8; 16],
    /// Chosen by the node.
    pub node: NodeId,
    /// PKCS #10, DER; only its key is used.
    pub signing_request: Vec<u8>,
    pub availability: Availability,
    pub description: NodeDescription,
    /// The node's own clock.
    pub now: Timestamp,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("node", &self.node)
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

/// A node asks for a new certificate, for the role it has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS #10, DER; only its key is used.
    pub signing_request: Vec<u8>,
}

/// Answer to [`JoinRequest`] and [`RenewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    Accepted(Box<Accepted>),
    Refused {
        reason: String,
    },
    /// This manager does not lead; ask this one, if it is known.
    Elsewhere {
        leader: Option<ManagerPeer>,
    },
}

/// What a node needs to take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub cluster: ClusterId,
    pub role: Role,
    /// X.509, DER.
    pub certificate: Vec<u8>,
    pub root_certificate: Vec<u8>,
    pub managers: Vec<ManagerPeer>,
}

/// A manager asks the leader about its own place in the Raft group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRequest {
    /// It can be reached at `addr` (`host:port`; an unspecified host stands for the one it calls from)
    /// and has an empty store open under `raft`.
    Add { raft: RaftId, addr: String },
    /// It is to be reached elsewhere from now on.
    Move { raft: RaftId, addr: String },
    /// It leaves the cluster.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberAnswer {
    Done,
    Refused {
        reason: String,
    },
    /// This manager does not lead; ask this one, if it is known.
    Elsewhere {
        leader: Option<ManagerPeer>,
    },
}

/// A manager, and where its cluster listener is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManagerPeer {
    pub node: NodeId,
    /// `host:port`.
    pub addr: String,
}

/// What an agent is asked to bring over a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// Output of one of the node's tasks: [`LogFrame`]s until the end of the stream.
    Logs { task: TaskId, options: LogOptions },
}

/// Which records of a task's output are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    /// Go on with what is written from now on; the stream ends with the container.
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// This many of the newest lines; `None`: all.
    pub tail: Option<u64>,
}

/// A piece of a task's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFrame {
    Record {
        at: Timestamp,
        stderr: bool,
        bytes: Vec<u8>,
    },
    /// It cannot be read any further.
    Failed { reason: String },
}

/// From an agent to the dispatcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First message of a session.
    Hello {
        node: NodeId,
        description: NodeDescription,
    },
    /// Sent at the period that the manager asks for.
    Heartbeat,
    /// The newest status of each task that changed since the last report.
    Status(Vec<(TaskId, TaskStatus)>),
    /// The machine changed (hostname, memory, labels).
    Description(NodeDescription),
    /// Everything in the set of this generation has been taken over and the kernel agrees with it.
    Applied(Generation),
}

/// From the dispatcher to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ManagerMessage {
    /// Answer to `Hello`.
    Welcome { heartbeat: Duration },
    /// Everything the node is to run and know, newest wins.
    Assignments(Assignments),
    /// What is otherwise than in the set that was sent before in this session.
    Changes(Box<AssignmentChanges>),
    /// The node may not have a session; `reason` says why and what to do.
    Refused { reason: String },
    /// Reports that these tasks are in these states are committed; the agent need not send them again.
    StatusAccepted(Vec<(TaskId, TaskState)>),
    /// Connect with [`Purpose::Reply`] and this ticket, and bring what is asked for.
    Open { ticket: u64, open: Open },
    /// This manager does not lead (any more); the leader is there, if it is known.
    Elsewhere { leader: Option<ManagerPeer> },
}

/// All that one node is to run and know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignments {
    pub generation: Generation,
    /// The node's tasks, those to be stopped included. A task that is absent is to be stopped and forgotten.
    pub tasks: Vec<Arc<Task>>,
    /// Every network that one of the tasks is attached to, and the ingress network.
    pub networks: Vec<Arc<NetworkAssignment>>,
    /// The secrets and configs that the tasks use.
    pub secrets: Vec<Arc<Secret>>,
    pub configs: Vec<Arc<Config>>,
    /// The node's own role; another one than its certificate says asks for a new certificate.
    pub role: Role,
    /// Every manager, by node.
    pub managers: Vec<ManagerPeer>,
    /// Where the traffic of cluster networks goes for every other node that has such an address, by
    /// node. Nodes that are down are left out.
    pub peers: Vec<DataPeer>,
    /// UDP port of that traffic; 0 when there is none (local mode).
    pub data_path_port: u16,
}

/// Another node, as the datapath reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DataPeer {
    pub node: NodeId,
    pub addr: IpAddr,
}

/// A network as one node needs to know it: with every endpoint in it, on whatever node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkAssignment {
    pub id: NetworkId,
    pub name: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    pub vni: u32,
    pub internal: bool,
    pub ingress: bool,
    /// What packets between nodes may measure, where the user said so.
    pub mtu: Option<u16>,
    pub services: Vec<NetworkService>,
    /// Every task with an address here, by address.
    pub endpoints: Vec<NetworkEndpoint>,
}

/// A service as seen in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkService {
    pub id: ServiceId,
    pub name: String,
    pub aliases: Vec<String>,
    /// `None` for DNS round robin: the name resolves to the backends.
    pub virtual_ip: Option<Ipv4Addr>,
    /// Tasks that take new connections: running, healthy, and not about to stop.
    pub backends: Vec<Ipv4Addr>,
    /// Published ports (in the ingress network only).
    pub published: Vec<PublishedPort>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: Protocol,
    pub published: u16,
    pub target: u16,
}

/// An address in use in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEndpoint {
    pub addr: Ipv4Addr,
    pub task: TaskId,
    /// The container's name, which resolves to `addr`.
    pub name: String,
    pub node: NodeId,
}
