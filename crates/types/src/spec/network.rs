//! Networks, as the user describes them, and IPv4 subnets.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A cluster network, as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// `overlay`, and `bridge` of the predefined network of that name; both are routed the same way.
    pub driver: String,
    pub driver_options: BTreeMap<String, String>,
    /// No way out of the network.
    pub internal: bool,
    /// Containers that are not tasks may join: there are none.
    pub attachable: bool,
    /// The one network that published ports go through.
    pub ingress: bool,
    pub ipam: Ipam,
}

impl NetworkSpec {
    /// Docker's name for the option with the MTU of the network between nodes, in bytes.
    pub const MTU: &str = "com.docker.network.driver.mtu";

    /// What packets between nodes may measure in this network, if its driver was told.
    pub fn mtu(&self) -> Option<u16> {
        let told = self.driver_options.get(Self::MTU);
        told.and_then(|text| text.parse().ok())
            .filter(|mtu| *mtu > 0)
    }
}

/// Address range asked for; what is `None` is chosen from the cluster's pools.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    /// Task addresses are taken from here, a part of `subnet`.
    pub range: Option<Ipv4Net>,
}

/// An IPv4 network: an address whose host bits are zero, and a prefix length of 0–32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ipv4Net {
    addr: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Net {
    /// The network of `prefix` bits that `addr` lies in; `None` when `prefix` is over 32.
    pub fn containing(addr: Ipv4Addr, prefix: u8) -> Option<Self> {
        let mask = mask(prefix)?;
        Some(Self {
            addr: Ipv4Addr::from(u32::from(addr) & mask),
            prefix,
        })
    }

    pub fn addr(self) -> Ipv4Addr {
        self.addr
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix).expect("the prefix was checked when this was made"))
    }

    /// How many addresses it holds, network and broadcast address included.
    pub fn len(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// Always false: a network holds at least one address.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The address `index` after the first; `None` past the end.
    pub fn nth(self, index: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(index).ok().filter(|_| index < self.len())?;
        u32::from(self.addr).checked_add(offset).map(Ipv4Addr::from)
    }

    pub fn contains(self, addr: Ipv4Addr) -> bool {
        Self::containing(addr, self.prefix) == Some(self)
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.addr) || other.contains(self.addr)
    }
}

/// The text is not a network in CIDR form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 network: {reason}")]
pub struct ParseNetError {
    text: String,
    reason: &'static str,
}

impl FromStr for Ipv4Net {
    type Err = ParseNetError;

    fn from_str(text: &str) -> Result<Self, ParseNetError> {
        let error = |reason| ParseNetError {
            text: text.to_owned(),
            reason,
        };
        let (addr, prefix) = text
            .split_once('/')
            .ok_or_else(|| error("expected ADDRESS/PREFIX"))?;
        let addr: Ipv4Addr = addr
            .parse()
            .map_err(|_| error("the address is not valid"))?;
        let prefix: u8 = prefix
            .parse()
            .map_err(|_| error("the prefix is not a number"))?;
        let net = Self::containing(addr, prefix).ok_or_else(|| error("the prefix is over 32"))?;
        if net.addr == addr {
            Ok(net)
        } else {
            Err(error("the address has host bits set"))
        }
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

fn mask(prefix: u8) -> Option<u32> {
    match prefix {
        0 => Some(0),
        1..=32 => Some(u32::MAX << (32 - u32::from(prefix))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a valid network")
    }

    #[test]
    fn networks_know_their_addresses() {
        let n = net("10.0.1.0/24");
        assert_eq!(n.to_string(), "10.0.1.0/24");
        assert_eq!(n.nth(1), Some(Ipv4Addr::new(10, 0, 1, 1)));
        assert_eq!(n.nth(256), None);
        assert!(n.contains(Ipv4Addr::new(10, 0, 1, 255)));
        assert!(!n.contains(Ipv4Addr::new(10, 0, 2, 0)));
        assert_eq!(net("0.0.0.0/0").len(), 1 << 32);
        assert_eq!(net("10.0.0.1/32").nth(0), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(net("10.0.0.0/8").overlaps(n) && n.overlaps(net("10.0.0.0/8")));
        assert!(!n.overlaps(net("10.0.2.0/24")));
    }

    #[test]
    fn bad_networks_are_refused_with_the_reason() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/24", "10.0.0.0/x"] {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text}");
        }
        assert_eq!(
            "10.0.0.1/24".parse::<Ipv4Net>().unwrap_err().to_string(),
            "\"10.0.0.1/24\" is not an IPv4 network: the address has host bits set"
        );
    }
}
