//! What an agent and the leader's dispatcher say to each other.
//!
//! A session is one stream. The agent opens with [`AgentMessage::Hello`]; the manager answers with
//! the node's whole [`Assignments`] and sends a newer set whenever it changes. Sets are complete:
//! what is not in one must not exist on the node. A set with a generation at or below the one the
//! agent has is refused, so a deposed leader does no harm.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Generation, NetworkId, NodeId, ServiceId, TaskId, TaskState, TaskStatus,
    object::{Config, NodeDescription, Secret, Task},
    spec::{Ipv4Net, Protocol},
};

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
    /// The node may not have a session; `reason` says why and what to do.
    Refused { reason: String },
    /// Reports that these tasks are in these states are committed; the agent need not send them again.
    StatusAccepted(Vec<(TaskId, TaskState)>),
}

/// All that one node is to run and know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignments {
    pub generation: Generation,
    /// The node's tasks, those to be stopped included. A task that is absent is to be stopped and forgotten.
    pub tasks: Vec<Arc<Task>>,
    /// Every network that one of the tasks is attached to, and the ingress network.
    pub networks: Vec<NetworkAssignment>,
    /// The secrets and configs that the tasks use.
    pub secrets: Vec<Arc<Secret>>,
    pub configs: Vec<Arc<Config>>,
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
