//! Which addresses this node has, and which of them others are told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};

/// Docker's.
pub(crate) const CLUSTER_PORT: u16 = 2377;

/// Addresses on the way to everywhere (RFC 5737 and 3849): asked of the routing table, never sent to.
const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// Docker's words; its command line adds the flag to name one with.
    #[error("could not find the system's IP address")]
    None,
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses ({list})"
    )]
    Several { list: String },
    #[error("{text:?} is neither an IP address nor an interface of this system with one ({flag})")]
    Unknown { flag: &'static str, text: String },
    /// Docker's words.
    #[error("interface {interface} has more than one IPv{version} address ({first} and {second})")]
    Ambiguous {
        interface: String,
        version: u8,
        first: IpAddr,
        second: IpAddr,
    },
    #[error("{text:?}: the port is not a number from 1 to 65535 ({flag})")]
    Port { flag: &'static str, text: String },
    #[error("{text:?}: others cannot reach an address that stands for all of them ({flag})")]
    Unspecified { flag: &'static str, text: String },
}

/// What `--advertise-addr` and its like say: an address or an interface, perhaps with a port. Empty is
/// whatever address the system reaches others from: those `toward` (`host:port`), if there are any.
/// `flag` names it in errors.
pub(crate) fn resolve<'a>(
    flag: &'static str,
    text: &str,
    default_port: u16,
    toward: impl IntoIterator<Item = &'a str>,
) -> Result<SocketAddr, AddressError> {
    let (host, port) = split(flag, text, default_port)?;
    let ip = if host.is_empty() {
        chosen(toward)?
    } else {
        located(flag, host, text)?
    };
    if ip.is_unspecified() {
        return Err(AddressError::Unspecified {
            flag,
            text: text.to_owned(),
        });
    }
    Ok(SocketAddr::new(ip, port))
}

/// What `--listen-addr` says: an address, that for all of them included, or an interface.
pub(crate) fn listening(text: &str) -> Result<SocketAddr, AddressError> {
    const FLAG: &str = "--listen-addr";
    let (host, port) = split(FLAG, text, CLUSTER_PORT)?;
    Ok(SocketAddr::new(located(FLAG, host, text)?, port))
}

fn located(flag: &'static str, host: &str, text: &str) -> Result<IpAddr, AddressError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(ip);
    }
    let all = getifaddrs().map_err(|_| AddressError::None)?;
    let own = all.filter(|entry| entry.interface_name == host);
    only_address(host, own.filter_map(|entry| ip_of(entry.address?)))?.ok_or_else(|| {
        AddressError::Unknown {
            flag,
            text: text.to_owned(),
        }
    })
}

/// As Docker: an interface's one address of version 4, or else its one of version 6.
fn only_address(
    interface: &str,
    addresses: impl Iterator<Item = IpAddr>,
) -> Result<Option<IpAddr>, AddressError> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.partition(IpAddr::is_ipv4);
    let several = |version, first, second| AddressError::Ambiguous {
        interface: interface.to_owned(),
        version,
        first,
        second,
    };
    match (v4.as_slice(), v6.as_slice()) {
        ([first, second, ..], _) => Err(several(4, *first, *second)),
        (_, [first, second, ..]) => Err(several(6, *first, *second)),
        (of_one, of_other) => Ok(of_one.first().or(of_other.first()).copied()),
    }
}

/// One that leads further than a link.
fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let v6 = address.as_sockaddr_in6().map(|v6| v6.ip());
    v4.or_else(|| v6.filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6))
}

fn split<'a>(
    flag: &'static str,
    text: &'a str,
    default_port: u16,
) -> Result<(&'a str, u16), AddressError> {
    // An address of version 6 has a port only behind brackets.
    let bare = text.parse::<IpAddr>().is_ok() || !text.contains(':');
    if bare {
        return Ok((text, default_port));
    }
    let (host, port) = text.rsplit_once(':').expect("it has a colon");
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok((host, port)),
        _ => Err(AddressError::Port {
            flag,
            text: text.to_owned(),
        }),
    }
}

/// The address that this system reaches others from, or its only one.
fn chosen<'a>(toward: impl IntoIterator<Item = &'a str>) -> Result<IpAddr, AddressError> {
    let source = |target: &str| {
        let target: SocketAddr = target.parse().ok()?;
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
    };
    let mut targets = toward.into_iter().chain(ELSEWHERE);
    if let Some(ip) = targets.find_map(source) {
        return Ok(ip);
    }
    let candidates = interfaces();
    match candidates.as_slice() {
        [] => Err(AddressError::None),
        [(_, ip)] => Ok(*ip),
        several => {
            let list = several.iter().map(|(name, ip)| format!("{ip} on {name}"));
            let list = list.collect::<Vec<_>>().join(", ");
            Err(AddressError::Several { list })
        }
    }
}

/// Whether an address is of the range that ways from networks to the host are numbered from (RFC 6598),
/// or one of IPv6 that follows from such an address (`shoal_network`).
fn is_uplink(ip: IpAddr) -> bool {
    let v4 = match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => match ip.segments() {
            [first, _, _, _, 0, 0, high, low] if first >> 8 == 0xfd => {
                Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
            }
            _ => return false,
        },
    };
    v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64
}

/// Interfaces that are up, with their addresses, those of version 4 first; none of containers, none
/// that only this machine has.
fn interfaces() -> Vec<(String, IpAddr)> {
    let Ok(all) = getifaddrs() else {
        return Vec::new();
    };
    let usable = all.filter_map(|entry| {
        let flags = entry.flags;
        let up = flags.contains(InterfaceFlags::IFF_UP)
            && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && !entry.interface_name.starts_with("docker");
        let ip = ip_of(entry.address?).filter(|ip| up && !is_uplink(*ip));
        Some((entry.interface_name, ip?))
    });
    let mut usable: Vec<(String, IpAddr)> = usable.collect();
    usable.sort_by_key(|(_, ip)| ip.is_ipv6());
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<SocketAddr, AddressError> {
        resolve("--advertise-addr", text, CLUSTER_PORT, [])
    }

    #[test]
    fn an_address_may_have_a_port() {
        assert_eq!(at("10.0.0.1").unwrap().to_string(), "10.0.0.1:2377");
        assert_eq!(at("10.0.0.1:99").unwrap().to_string(), "10.0.0.1:99");
        assert_eq!(at("2001:db8::1").unwrap().to_string(), "[2001:db8::1]:2377");
        assert_eq!(
            at("[2001:db8::1]:9").unwrap().to_string(),
            "[2001:db8::1]:9"
        );
    }

    #[test]
    fn ways_to_networks_are_no_addresses_of_the_node() {
        let is = |text: &str| is_uplink(text.parse().unwrap());
        assert!(is("100.64.3.2") && is("100.127.0.1") && is("fd12:3456:789a:bcde::100.64.3.2"));
        assert!(!is("100.128.0.1") && !is("10.64.0.1") && !is("fd12:3456:789a:bcde::10.64.3.2"));
        assert!(!is("2001:db8::100.64.3.2") && !is("fd12::1:0:100.64.3.2"));
    }

    #[test]
    fn interfaces_stand_for_their_only_address() {
        assert_eq!(listening("lo:99").unwrap().to_string(), "127.0.0.1:99");
        assert_eq!(listening("0.0.0.0").unwrap().to_string(), "0.0.0.0:2377");
        assert_eq!(at("lo").unwrap().to_string(), "127.0.0.1:2377");
        let of = |list: &[&str]| only_address("eth0", list.iter().map(|ip| ip.parse().unwrap()));
        let both = of(&["fd00::1", "10.0.0.1"]).unwrap().unwrap();
        assert_eq!(both.to_string(), "10.0.0.1");
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(
            of(&["10.0.0.1", "10.0.0.2"]).unwrap_err().to_string(),
            "interface eth0 has more than one IPv4 address (10.0.0.1 and 10.0.0.2)"
        );
        let error = listening("nosuchif0:1").unwrap_err().to_string();
        assert!(error.contains("--listen-addr"), "{error}");
    }

    #[test]
    fn what_cannot_be_reached_is_told() {
        for bad in [
            "nosuchif0",
            "10.0.0.1:0",
            "10.0.0.1:x",
            "0.0.0.0",
            "[::]:2377",
            "10.0.0.300",
        ] {
            let error = at(bad).expect_err(bad);
            assert!(error.to_string().contains("--advertise-addr"), "{error}");
        }
    }
}
