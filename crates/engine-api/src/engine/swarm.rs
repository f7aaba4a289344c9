//! A node's place in a swarm.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, sync::Arc, time::Duration};

use shoal_types::{
    NetworkId, NodeId,
    spec::{Availability, Ipv4Net},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Control;

/// Where a node stands.
#[derive(Clone)]
pub enum SwarmState {
    /// In none.
    Inactive,
    /// Joining or starting.
    Pending,
    /// In one that it cannot take part in; the text says why and what to do.
    Error(String),
    Active(Box<ActiveSwarm>),
}

/// A node that takes part.
#[derive(Clone)]
pub struct ActiveSwarm {
    pub node: NodeId,
    /// Address that others reach it at, without a port; `127.0.0.1` in local mode.
    pub node_addr: String,
    /// Present on managers.
    pub control: Option<Arc<dyn Control>>,
    /// The manager that leads, when one is known.
    pub leader: Option<NodeId>,
    /// Managers, with their addresses (`host:port`).
    pub managers: Vec<(NodeId, String)>,
    /// Which managers answer, as the one that leads sees it; empty elsewhere. A manager that is not
    /// named counts as reachable while its node is not down.
    pub reachability: BTreeMap<NodeId, bool>,
    /// The swarm's root certificate in PEM; empty in local mode.
    pub trust_root: String,
    /// What others join with; empty in local mode.
    pub tokens: Tokens,
}

impl fmt::Debug for SwarmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inactive => f.write_str("Inactive"),
            Self::Pending => f.write_str("Pending"),
            Self::Error(text) => f.debug_tuple("Error").field(text).finish(),
            Self::Active(swarm) => f.debug_tuple("Active").field(&swarm.node).finish(),
        }
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    pub worker: String,
    pub manager: String,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// A new swarm, with this node as its first manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitRequest {
    /// Address or interface, with a port; `None`: 0.0.0.0:2377.
    pub listen: Option<String>,
    /// Address or interface, perhaps with a port; empty: chosen from the routes of the machine.
    pub advertise: String,
    /// Address or interface for traffic between containers; empty: as `advertise`.
    pub data_path: String,
    /// UDP port of that traffic.
    pub data_path_port: u16,
    pub force_new_cluster: bool,
    pub availability: Availability,
    /// Empty: 10.0.0.0/8.
    pub address_pools: Vec<Ipv4Net>,
    /// Of each network made from the pools.
    pub subnet_prefix: u8,
    pub task_history_limit: i64,
    /// How long a node's certificate is good for; at least an hour.
    pub certificate_life: Duration,
    /// How soon silent nodes are given up, in proportion to Docker's default of five seconds.
    pub heartbeat_period: Duration,
    pub labels: BTreeMap<String, String>,
}

/// This node is to become one of a swarm that exists.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Address or interface, with a port; `None`: 0.0.0.0:2377.
    pub listen: Option<String>,
    /// Address or interface, perhaps with a port; empty: as the manager sees the node.
    pub advertise: String,
    /// Address or interface for traffic between containers; empty: as `advertise`.
    pub data_path: String,
    /// Managers to ask, each `host:port`; at least one.
    pub remotes: Vec<String>,
    /// Of the shape `SWMTKN-1-digest-secret`; it says which role the node gets.
    pub token: String,
    pub availability: Availability,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("data_path", &self.data_path)
            .field("remotes", &self.remotes)
            .field("availability", &self.availability)
            .finish_non_exhaustive()
    }
}

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub type BoxDuplex = Box<dyn Duplex>;

/// Who answers for the cluster.
pub enum Forward {
    /// This node.
    Here,
    /// The manager that leads. What is written to the stream is HTTP/1.1 for its API, served there by
    /// [`serve_stream`](crate::serve_stream) with [`router_for_managers`](crate::router_for_managers).
    To(BoxDuplex),
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "Here",
            Self::To(_) => "To(..)",
        })
    }
}

/// A network, as a node that only runs tasks knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNetwork {
    pub id: NetworkId,
    pub name: String,
    /// `overlay` or `bridge`.
    pub driver: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// Identifies its traffic between nodes.
    pub vni: u32,
    pub internal: bool,
    pub ingress: bool,
}
