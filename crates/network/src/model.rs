//! What the caller wants of the datapath, and what it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use shoal_types::spec::Ipv4Net;

use crate::{ipv6::Prefix, netlink::KernelError};

/// One network as it should be on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// 1 to 64 letters, digits, `-`, `_` and `.`; names the pinned namespace.
    pub id: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// No way out: no uplink, no published ports, no forwarding of names.
    pub internal: bool,
    /// The network that published ports of services go through; has an uplink in any case. Only
    /// here published ports lead to backends on other nodes.
    pub ingress: bool,
    /// Bytes that packets between nodes may have, instead of what the interface to them takes; containers get what
    /// VXLAN leaves of it, also while there are no other nodes.
    pub mtu: Option<u16>,
    /// Containers have an IPv6 address each, too, so that published ports answer clients of IPv6;
    /// names and vips stay of IPv4. Without effect where the host has no IPv6, where no way leads
    /// out, and where the MTU is below 1280.
    pub ipv6: bool,
    pub vips: Vec<Vip>,
    pub published: Vec<Published>,
    /// Names that the network's containers can look up. Case does not matter.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// The way to the network's containers on other nodes; `None` when there are no other nodes.
    pub overlay: Option<Overlay>,
}

impl NetworkState {
    pub(crate) fn has_uplink(&self) -> bool {
        self.ingress || !self.internal
    }

    /// Of the containers' addresses of IPv6, if they have any.
    pub(crate) fn prefix6(&self) -> Option<Prefix> {
        self.ipv6.then(|| Prefix::of(&self.id))
    }

    /// The overlay, if there is anybody at its other end.
    pub(crate) fn tunnel(&self) -> Option<&Overlay> {
        self.overlay
            .as_ref()
            .filter(|overlay| !overlay.peers.is_empty())
    }

    /// Whether connections may enter by one node and be answered on another.
    pub(crate) fn is_mesh(&self) -> bool {
        self.ingress && self.tunnel().is_some()
    }
}

/// How the nodes of a network reach each other: VXLAN (RFC 7348) without learning or flooding.
///
/// The set of every node names the same `vni` and `port`, and every node knows each other's
/// `local` address as one of its `peers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Tells the networks of a cluster apart on the wire; 1 to 2^24 - 1, and no other network's.
    pub vni: u32,
    /// UDP port that every node receives at.
    pub port: u16,
    /// This node's address, as the others know it.
    pub local: IpAddr,
    /// The addresses of all other nodes, of the same version. While it is empty no tunnel is made,
    /// but interfaces are already small enough for one.
    pub peers: BTreeSet<IpAddr>,
    /// The network's addresses that are on other nodes: at which of the peers each is.
    pub remote: BTreeMap<Ipv4Addr, IpAddr>,
}

/// A virtual address whose connections are spread over the backends. It has no ports: whatever
/// reaches it, of any protocol, goes to the same port of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    pub addr: Ipv4Addr,
    /// The order does not matter. Empty: connections are refused at once.
    pub backends: Vec<Ipv4Addr>,
}

/// A port of the host that leads into the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub protocol: Protocol,
    /// Only connections to this address of the host; `None` for all of them.
    pub host_ip: Option<Ipv4Addr>,
    pub port: u16,
    pub to: PublishedTarget,
}

/// Transport protocol, by its IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishedTarget {
    /// A virtual address of the same network.
    Vip { addr: Ipv4Addr, port: u16 },
    /// One container of the same network.
    Container { addr: Ipv4Addr, port: u16 },
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(ip) => write!(f, "{ip}:{}/{}", self.port, self.protocol),
            None => write!(f, "{}/{}", self.port, self.protocol),
        }
    }
}

/// All networks a container is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerEndpoints {
    /// The container's own id. An address belongs to the container that was attached to it last;
    /// another's [`detach`](crate::Datapath::detach) leaves it alone.
    pub owner: String,
    /// In the order of the container's interfaces. That of the ingress network gives the default
    /// route, otherwise the first of a network with an uplink.
    pub endpoints: Vec<Endpoint>,
    /// Names that only this container can look up, such as links. Case does not matter.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Name servers of this container instead of the daemon's.
    pub dns: Option<Vec<SocketAddr>>,
}

/// The container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// [`NetworkState::id`].
    pub network: String,
    pub addr: Ipv4Addr,
}

/// Part of a desired set that could not be applied. The rest was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("network {network}: {reason}")]
    Refused { network: String, reason: Refusal },
    #[error("network {network}: {doing}")]
    Network {
        network: String,
        doing: &'static str,
        #[source]
        source: KernelError,
    },
    #[error("host: {doing}")]
    Host {
        doing: &'static str,
        #[source]
        source: KernelError,
    },
    #[error("network {network}: every pair of addresses of the uplink pool {pool} is taken")]
    PoolExhausted { network: String, pool: Ipv4Net },
    #[error("the datapath has been closed")]
    Closed,
}

/// What is wrong with a desired object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the id must be 1 to 64 letters, digits, '-', '_' and '.', and not start with '.'")]
    Id,
    #[error("a network of this id is already in the set")]
    DuplicateNetwork,
    #[error("subnet {0} must have a prefix length of 8 to 30")]
    Subnet(Ipv4Net),
    #[error("subnet {0} overlaps the uplink pool {1}")]
    SubnetInPool(Ipv4Net, Ipv4Net),
    #[error("gateway {gateway} is not a host address of subnet {subnet}")]
    Gateway { gateway: Ipv4Addr, subnet: Ipv4Net },
    #[error("vip {addr} is not a host address of subnet {subnet}, or is the gateway")]
    VipAddress { addr: Ipv4Addr, subnet: Ipv4Net },
    #[error("vip {0} is given twice")]
    DuplicateVip(Ipv4Addr),
    #[error(
        "backend {backend} of vip {vip} is not a host address of subnet {subnet}, or is the gateway or a vip"
    )]
    Backend {
        vip: Ipv4Addr,
        backend: Ipv4Addr,
        subnet: Ipv4Net,
    },
    #[error("published port {0}: port 0 cannot be published")]
    PortZero(String),
    #[error("published port {0}: the network is internal")]
    PublishedInternal(String),
    #[error("published port {port}: already published by network {by}")]
    PortTaken { port: String, by: String },
    #[error("published port {port}: {addr} is not a vip of the network")]
    NoSuchVip { port: String, addr: Ipv4Addr },
    #[error("published port {port}: {addr} is not a host address of subnet {subnet}")]
    Target {
        port: String,
        addr: Ipv4Addr,
        subnet: Ipv4Net,
    },
    #[error("published port {0}: no free port is left in the network's namespace")]
    PortsExhausted(String),
    #[error(
        "published port {port}: {addr} is on another node, and the network is not the ingress network"
    )]
    PortElsewhere { port: String, addr: Ipv4Addr },
    #[error("vni {0} must be 1 to 16777215")]
    Vni(u32),
    #[error("vni {vni}: network {by} already has it")]
    VniTaken { vni: u32, by: String },
    #[error("the port of the overlay must not be 0")]
    OverlayPort,
    #[error("{0} cannot be the address of a node")]
    NodeAddress(IpAddr),
    #[error(
        "node {node} cannot be reached from this node's address {local}: give all nodes data path \
         addresses of one version"
    )]
    NodeVersion { node: IpAddr, local: IpAddr },
    #[error(
        "the addresses {0} and {1} of nodes cannot be told apart by 28 bits: give one of the nodes another"
    )]
    NodesAlike(IpAddr, IpAddr),
    #[error(
        "a node has the address {0}, which is the network's gateway: give the network another subnet or gateway"
    )]
    NodeIsGateway(IpAddr),
    #[error("another node says that it has this node's address {0}")]
    NodeIsThis(IpAddr),
    #[error("address {addr} is said to be on a node at {node}, which is not among the peers")]
    UnknownPeer { addr: Ipv4Addr, node: IpAddr },
    #[error(
        "address {addr} on another node is not a host address of subnet {subnet}, or is the gateway or a vip"
    )]
    Remote { addr: Ipv4Addr, subnet: Ipv4Net },
}

/// A container could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("network {0} is not on this node")]
    UnknownNetwork(String),
    #[error("network {0} is given twice")]
    DuplicateNetwork(String),
    #[error(
        "address {addr} is not a host address of network {network} ({subnet}), or is its gateway or a vip"
    )]
    Address {
        network: String,
        addr: Ipv4Addr,
        subnet: Ipv4Net,
    },
    #[error("attach {addr} to network {network}: {doing}")]
    Kernel {
        network: String,
        addr: Ipv4Addr,
        doing: &'static str,
        #[source]
        source: KernelError,
    },
    #[error("open the container's namespace")]
    Namespace(#[source] KernelError),
    #[error("the datapath has been closed")]
    Closed,
}

/// Something in the kernel that is not as desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The network, or `None` for the host's namespace.
    pub network: Option<String>,
    /// What differs, as a sentence.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.network {
            Some(network) => write!(f, "network {network}: {}", self.what),
            None => write!(f, "host: {}", self.what),
        }
    }
}
