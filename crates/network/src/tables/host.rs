//! The table in the host's namespace: published ports in, masquerade out.
//!
//! The host sends a published port to the address of the network's uplink, where the network's
//! own table goes on; it routes to no address of a network. Connections keep their source, so the
//! container sees the client. The filters of others decide as for any forwarded connection: this
//! table holds no verdict that accepts, and its forward chain only drops what nobody published.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Content, address, address6, join, port, protocol};
use crate::{
    config::NetworkConfig,
    model::Protocol,
    netlink::Net,
    netlink::nft::{Base, Chain, Data, Elements, Expr, Field, Hook, Set, Table, reg},
};

/// Before connection tracking: what must never enter leaves no trace there.
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// A published port, and the port of which uplink address it is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) protocol: Protocol,
    pub(crate) host_ip: Option<Ipv4Addr>,
    pub(crate) port: u16,
    pub(crate) uplink: Ipv4Addr,
    /// The same uplink's other address, if clients of IPv6 are let in.
    pub(crate) uplink6: Option<Ipv6Addr>,
    pub(crate) uplink_port: u16,
}

pub(crate) fn table(config: &NetworkConfig) -> Table {
    use Field::{Address, Address6, Port, Protocol};
    let uplinks = config.uplink_prefix();
    let pool = config.uplink_pool;
    let loopback = Net {
        addr: Ipv4Addr::new(127, 0, 0, 0).into(),
        prefix: 8,
    };
    let from = |version: &Expr, to_uplinks: bool, net| {
        let to_uplinks = to_uplinks.then(|| Expr::ToPrefix(uplinks.clone()));
        let mut rule = vec![version.clone()];
        rule.extend(to_uplinks);
        rule.extend([Expr::SourceIn(net), Expr::Masquerade]);
        rule
    };
    let data = Data::Fields(&[Address, Port]);
    let chain = |name: &str, kind, hook, priority, rules| Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind,
            hook,
            priority,
        }),
        rules,
    };
    Table {
        name: config.host_table(),
        sets: vec![
            Set {
                name: "pub",
                key: &[Protocol, Port],
                data: data.clone(),
            },
            Set {
                name: "pubip",
                key: &[Address, Protocol, Port],
                data,
            },
            Set {
                name: "pub6",
                key: &[Protocol, Port],
                data: Data::Fields(&[Address6, Port]),
            },
        ],
        chains: vec![
            // Uplinks route 127.0.0.0/8 for the answers to the host itself; a container must not
            // reach the host's loopback that way.
            chain(
                "raw",
                "filter",
                Hook::Prerouting,
                RAW,
                vec![vec![
                    Expr::IsV4,
                    Expr::FromPrefix(uplinks.clone()),
                    Expr::DestinationIn(loopback),
                    Expr::Drop,
                ]],
            ),
            chain("pre", "nat", Hook::Prerouting, DSTNAT, published()),
            chain("out", "nat", Hook::Output, DSTNAT, published()),
            // Nobody reaches an uplink except by a published port or in answer.
            chain(
                "guard",
                "filter",
                Hook::Forward,
                FILTER,
                vec![vec![
                    Expr::ToPrefix(uplinks.clone()),
                    Expr::NotTranslated,
                    Expr::Drop,
                ]],
            ),
            chain(
                "post",
                "nat",
                Hook::Postrouting,
                SRCNAT,
                vec![
                    from(&Expr::IsV4, false, pool.into()),
                    from(&Expr::IsV6, false, config.uplink_prefix6().net(pool)),
                    from(&Expr::IsV4, true, loopback),
                    from(&Expr::IsV6, true, Net::host(Ipv6Addr::LOCALHOST)),
                ],
            ),
        ],
    }
}

pub(crate) fn ports(entries: &[Entry]) -> Content {
    let (mut any, mut by_address) = (Elements::new(), Elements::new());
    let mut any6 = Elements::new();
    for entry in entries {
        let data = join([address(entry.uplink), port(entry.uplink_port)]);
        let (protocol, port) = (protocol(entry.protocol), port(entry.port));
        match entry.host_ip {
            None => any.insert(join([protocol, port]), data),
            Some(ip) => by_address.insert(join([address(ip), protocol, port]), data),
        };
        if let Some(uplink) = entry.uplink6.filter(|_| entry.host_ip.is_none()) {
            let data = address6(uplink, entry.uplink_port);
            any6.insert(join([protocol, port]), data);
        }
    }
    Content::from([("pub", any), ("pubip", by_address), ("pub6", any6)])
}

/// The elements that send to none of these uplinks.
pub(crate) fn leading_elsewhere(content: &Content, uplinks: &BTreeSet<Ipv4Addr>) -> Content {
    // The IPv4 address, or the end of the IPv6 address, which is the same.
    let is_elsewhere = |data: &[u8]| {
        let end = data.len().checked_sub(8);
        let uplink = end.and_then(|at| <[u8; 4]>::try_from(&data[at..at + 4]).ok());
        uplink.is_some_and(|octets| !uplinks.contains(&octets.into()))
    };
    let of = |elements: &Elements| {
        let elsewhere = elements.iter().filter(|(_, data)| is_elsewhere(data));
        elsewhere.map(|(k, d)| (k.clone(), d.clone())).collect()
    };
    content
        .iter()
        .map(|(set, elements)| (*set, of(elements)))
        .collect()
}

/// The port of the uplink that an element of `pubip` names.
pub(crate) fn uplink_port(content: &Content, entry: (Protocol, Ipv4Addr, u16)) -> Option<u16> {
    let key = join([address(entry.1), protocol(entry.0), port(entry.2)]);
    let data = content.get("pubip")?.get(&key)?;
    Some(u16::from_be_bytes(data.get(4..6)?.try_into().ok()?))
}

fn published() -> Vec<Vec<Expr>> {
    vec![
        vec![
            Expr::IsV4,
            Expr::DestinationIsLocal,
            Expr::DestinationAddress(reg::R0),
            Expr::Protocol(reg::R1),
            Expr::DestinationPort(reg::R2),
            Expr::Map {
                set: "pubip",
                from: reg::R0,
                to: reg::R0,
            },
            Expr::Dnat {
                addr: reg::R0,
                port: Some(reg::R1),
            },
        ],
        vec![
            Expr::IsV4,
            Expr::DestinationIsLocal,
            Expr::Protocol(reg::R0),
            Expr::DestinationPort(reg::R1),
            Expr::Map {
                set: "pub",
                from: reg::R0,
                to: reg::R0,
            },
            Expr::Dnat {
                addr: reg::R0,
                port: Some(reg::R1),
            },
        ],
        vec![
            Expr::IsV6,
            Expr::DestinationIsLocal,
            Expr::Protocol(reg::R0),
            Expr::DestinationPort(reg::R1),
            Expr::Map {
                set: "pub6",
                from: reg::R0,
                to: reg::R0,
            },
            Expr::Dnat6 {
                addr: reg::R0,
                port: Some(reg::R4),
            },
        ],
    ]
}
