//! The datapath of a node: networks, addresses, virtual addresses, published ports and names.
//!
//! It knows no services or tasks, and other nodes by their addresses alone; it brings the kernel to
//! a desired set of networks.
//!
//! ```text
//!      container            network's namespace                    host's namespace
//!   ┌─────────────┐      ┌────────────────────────────┐        ┌─────────────────────────┐
//!   │ eth0 ───────┼──────┤ v0a000105    gateway on lo │        │                         │
//!   │ 10.0.1.5/24 │      │              table shoal   │ uplink │         table shoal-X   │
//!   └─────────────┘      │ v0a000106           uplink ├────────┤ sXu1f   published ports │ eth0
//!                        │   …                        │        │         masquerade      │
//!   other nodes ─────────┤ shoal-vxlan                │        └─────────────────────────┘
//!                        └────────────────────────────┘
//! ```
//!
//! What it keeps true:
//! - Routed, not bridged: each container hangs on its own veth pair with a /32 route. Networks are
//!   namespaces, so two of them may use the same addresses, and neither sees the other.
//! - The host routes to no address of a network. Published ports are sent to the uplink's address,
//!   what leaves is masqueraded to it, so addresses of networks exist in their namespaces alone.
//! - A container on another node is a route to that node; nothing is learned, and nothing flooded.
//! - A connection to a vip or a published port keeps its client's address, whichever nodes it
//!   enters by and is answered on.
//! - The kernel is compared with the desired set; state is found again after a restart, and
//!   traffic never depends on the daemon running.
//! - Everything in the host's namespace carries the instance in its name.

mod attach;
mod check;
mod config;
mod datapath;
mod dns;
mod host;
mod ipv6;
mod model;
mod netlink;
mod network;
mod overlay;
mod state;
mod sys;
mod tables;

pub use config::{ConfigError, NetworkConfig};
pub use datapath::{Datapath, OpenError, RemoveError};
pub use model::{
    ApplyError, AttachError, ContainerEndpoints, Difference, Endpoint, NetworkState, Overlay,
    Protocol, Published, PublishedTarget, Refusal, Vip,
};
pub use netlink::KernelError;
pub use shoal_types::spec::Ipv4Net;
