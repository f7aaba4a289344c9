//! Addresses of both versions, as netlink messages carry them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use shoal_types::spec::Ipv4Net;

pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// An address whose host bits are zero, and a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Net {
    pub(crate) addr: IpAddr,
    pub(crate) prefix: u8,
}

impl Net {
    /// Every address of the version of `like`.
    pub(crate) fn everything(like: IpAddr) -> Self {
        let addr = unspecified(family(like));
        Self { addr, prefix: 0 }
    }

    /// This address alone.
    pub(crate) fn host(addr: impl Into<IpAddr>) -> Self {
        let addr = addr.into();
        let prefix = width(addr);
        Self { addr, prefix }
    }

    pub(crate) fn contains(self, addr: IpAddr) -> bool {
        let bits = |addr| match addr {
            IpAddr::V4(addr) => u128::from(u32::from(addr)) << 96,
            IpAddr::V6(addr) => u128::from(addr),
        };
        let differing = bits(self.addr) ^ bits(addr);
        self.addr.is_ipv4() == addr.is_ipv4() && differing.leading_zeros() >= u32::from(self.prefix)
    }

    /// It holds one address.
    pub(crate) fn is_host(self) -> bool {
        self.prefix == width(self.addr)
    }
}

impl From<Ipv4Net> for Net {
    fn from(net: Ipv4Net) -> Self {
        Self {
            addr: net.addr().into(),
            prefix: net.prefix(),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

pub(crate) fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn unspecified(family: u8) -> IpAddr {
    if family == AF_INET6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// Bits of an address.
pub(crate) fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// In network byte order.
pub(crate) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The address that these bytes are, by their number.
pub(crate) fn parse(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// What messages say where an address is left out for being zero.
pub(crate) fn parse_or_zero(family: u8, bytes: Option<&[u8]>) -> Option<IpAddr> {
    bytes.map_or_else(|| Some(unspecified(family)), parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_net_holds_addresses_of_its_own_version() {
        let net = |addr: &str, prefix| Net {
            addr: addr.parse().unwrap(),
            prefix,
        };
        let holds = |net: Net, addr: &str| net.contains(addr.parse().unwrap());
        assert!(holds(net("10.0.1.0", 24), "10.0.1.255"));
        assert!(!holds(net("10.0.1.0", 24), "10.0.2.0"));
        assert!(holds(net("fd00::a00:100", 120), "fd00::10.0.1.7"));
        assert!(!holds(net("fd00::a00:100", 120), "fd00::10.0.2.7"));
        assert!(!holds(net("0.0.0.0", 0), "::1"));
        assert!(holds(
            Net::everything("::1".parse().unwrap()),
            "2001:db8::1"
        ));
        assert!(holds(Net::host(Ipv4Addr::LOCALHOST), "127.0.0.1"));
        assert!(!holds(Net::host(Ipv4Addr::LOCALHOST), "127.0.0.2"));
    }
}
