//! A node's place in a swarm.

use std::{fmt, net::SocketAddr, sync::Arc};

use shoal_types::{
    NodeId,
    spec::{Availability, Ipv4Net},
};

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
    /// Managers, with their addresses.
    pub managers: Vec<(NodeId, String)>,
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
    /// `None`: 0.0.0.0:2377.
    pub listen: Option<SocketAddr>,
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
    pub labels: std::collections::BTreeMap<String, String>,
}
