//! The IPv6 addresses of networks: each IPv4 address has one that follows from it.
//!
//! ```text
//!   fdxx:xxxx:xxxx:xxxx::10.0.1.5     the container 10.0.1.5 of a network; x is a hash of its id
//!   fdxx:xxxx:xxxx:xxxx::100.64.0.3   the end of an uplink; x is a hash of the instance
//!   fe80::192.0.2.7                   another node, as a next hop
//! ```
//! They are unique local addresses (RFC 4193), so no node has to be told any, and nobody outside
//! of the node sees one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use shoal_types::spec::Ipv4Net;

use crate::{netlink::Net, sys};

/// The least that links of IPv6 carry in one piece (RFC 8200); on smaller ones the kernel has none.
pub(crate) const LEAST_MTU: u32 = 1280;
/// Bits of the common part of all addresses of a network.
const PREFIX: u8 = 96;

static IS_THERE: LazyLock<bool> = LazyLock::new(|| {
    ["all", "default"].iter().all(|of| {
        let disabled = sys::sysctl(&format!("ipv6/conf/{of}/disable_ipv6"));
        disabled.is_ok_and(|disabled| disabled == "0")
    })
});

/// Whether the host has IPv6, and lets new interfaces have it. First asked by a thread in the
/// host's namespace; what it was then is true until the process ends.
pub(crate) fn is_there() -> bool {
    *IS_THERE
}

/// The first half of IPv6 addresses; the last four bytes are an IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix(u64);

impl Prefix {
    /// Always the same for the same name.
    pub(crate) fn of(name: &str) -> Self {
        // FNV-1a, 64 bits: stable between releases, which std's hasher does not promise.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(0xfd << 56 | hash >> 8)
    }

    pub(crate) fn addr(self, addr: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.0) << 64 | u128::from(u32::from(addr)))
    }

    pub(crate) fn net(self, net: Ipv4Net) -> Net {
        Net {
            addr: self.addr(net.addr()).into(),
            prefix: PREFIX + net.prefix(),
        }
    }
}

/// A node as the next hop of IPv4 packets, and as the mark of connections that came by it: its own
/// address, or for an IPv6 address one of those that nobody has (240.0.0.0/4).
pub(crate) fn next_hop(node: IpAddr) -> Ipv4Addr {
    match node {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => {
            // FNV-1a, 32 bits.
            let hash = addr.octets().iter().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
            Ipv4Addr::from(0xf << 28 | (hash >> 28 ^ hash) & 0x0fff_ffff)
        }
    }
}

/// The same next hop for IPv6 packets.
pub(crate) fn next_hop_v6(hop: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(0xfe80 << 112 | u128::from(u32::from(hop)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_end_in_the_one_they_follow_from() {
        let net = Prefix::of("net");
        let text = net.addr(Ipv4Addr::new(10, 0, 1, 5)).to_string();
        assert!(
            text.starts_with("fd") && text.ends_with("::a00:105"),
            "{text}"
        );
        assert_ne!(net, Prefix::of("other"));
        let subnet = net.net("10.0.1.0/24".parse().unwrap());
        assert_eq!(subnet.prefix, 120);
        assert!(subnet.contains(net.addr(Ipv4Addr::new(10, 0, 1, 7)).into()));
        assert!(!subnet.contains(net.addr(Ipv4Addr::new(10, 0, 2, 7)).into()));
        let hop = next_hop_v6(Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(hop, "fe80::192.0.2.7".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn nodes_of_a_subnet_are_told_apart() {
        let hops: BTreeSet<Ipv4Addr> = (1..=2000_u16)
            .map(|n| next_hop(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into()))
            .collect();
        assert_eq!(hops.len(), 2000);
        assert!(hops.iter().all(|hop| hop.octets()[0] >= 240));
        let v4 = Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!(next_hop(v4.into()), v4);
    }
}
