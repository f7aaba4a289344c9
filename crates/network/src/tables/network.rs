//! The table in a network's namespace: vips, published ports, the way out.
//!
//! ```text
//! svc     vip → number of backends                  a packet to a vip: count, then a random number
//! be      vip . index → backend                     below it, then DNAT
//! pick    count → chain nCOUNT                      (0 → refused at once)
//! svcp    protocol . port → number of backends      the same for what the host sends to a port of
//! bep     protocol . port . index → backend . port  the uplink's address
//! pickp   count → chain pCOUNT
//! direct  protocol . port → container . port        a published port of one container
//! bep6    protocol . port . index → backend . port  the same as `bep` and `direct` for clients of
//! direct6 protocol . port → container . port        IPv6; vips are of IPv4 alone
//! self    backend . backend                         a backend that reached itself by a vip
//! ```
//! In the ingress network of several nodes three chains more see to it that a connection is
//! answered through the node that it entered by.
//!
//! Only `pick` and `pickp` hold verdicts, because the kernel walks a verdict map at each change;
//! they change when a number of backends is seen for the first time, and stay small. Counts and
//! indices travel in the packet's mark, which is how `nft list` can print the rules.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use super::{Content, address, address6, join, number, port, protocol, slots::Slots};
use crate::{
    attach::INTERFACE_PREFIX,
    ipv6::Prefix,
    model::{NetworkState, Protocol, PublishedTarget},
    netlink::Net,
    netlink::nft::{Base, Chain, Data, Elements, Expr, Field, Hook, Set, Table, reg},
    overlay::DEVICE,
};

pub(crate) const TABLE: &str = "shoal";
/// The network's end of its uplink.
pub(crate) const UPLINK: &str = "uplink";
/// Chains for these numbers of backends are made at once; more when they are needed.
const COUNTS_AT_FIRST: u32 = 8;

/// Before connection tracking.
const RAW: i32 = -300;
/// After it, and before addresses are translated.
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
const TCP: u8 = 6;

/// Where a port of the uplink address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) protocol: Protocol,
    /// The port the host sends to. It is the published one, except when several addresses of the
    /// host lead to different targets by the same port.
    pub(crate) port: u16,
    pub(crate) to: PublishedTarget,
}

impl Entry {
    /// No two entries of a network have the same.
    pub(crate) fn key(&self) -> (Protocol, u16) {
        (self.protocol, self.port)
    }

    /// The vip it leads to, if it does not lead to a container.
    pub(crate) fn vip(&self) -> Option<Ipv4Addr> {
        match self.to {
            PublishedTarget::Vip { addr, .. } => Some(addr),
            PublishedTarget::Container { .. } => None,
        }
    }
}

/// Numbers of backends that chains are needed for.
pub(crate) fn counts(backends: impl IntoIterator<Item = usize>) -> BTreeSet<u32> {
    let used = backends
        .into_iter()
        .filter_map(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0);
    (1..=COUNTS_AT_FIRST).chain(used).collect()
}

/// What of a network its rules depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    gateway: Ipv4Addr,
    /// The addresses of its uplink, of which the second is of IPv6.
    uplink: Option<(Ipv4Addr, Option<IpAddr>)>,
    has_v6: bool,
    /// Connections may enter by one node and be answered on another.
    is_mesh: bool,
}

impl Layout {
    /// The uplink's address of IPv6 has the prefix `of_uplinks`.
    pub(crate) fn of(state: &NetworkState, uplink: Option<Ipv4Addr>, of_uplinks: Prefix) -> Self {
        let v6 = |addr| state.ipv6.then(|| of_uplinks.addr(addr).into());
        Self {
            gateway: state.gateway,
            uplink: uplink.map(|addr| (addr, v6(addr))),
            has_v6: state.ipv6,
            is_mesh: state.is_mesh(),
        }
    }
}

/// The table for a network, with chains for these numbers of backends.
pub(crate) fn table(layout: &Layout, counts: &BTreeSet<u32>) -> Table {
    use Field::{Address, Address6, Mark, Port, Protocol};
    let Layout {
        gateway,
        uplink,
        has_v6,
        is_mesh,
    } = *layout;
    let map = |name, key, data| Set {
        name,
        key,
        data: Data::Fields(data),
    };
    let sets = vec![
        map("svc", &[Address], &[Mark]),
        map("be", &[Address, Mark], &[Address]),
        Set {
            name: "pick",
            key: &[Mark],
            data: Data::Chain,
        },
        map("svcp", &[Protocol, Port], &[Mark]),
        map("bep", &[Protocol, Port, Mark], &[Address, Port]),
        Set {
            name: "pickp",
            key: &[Mark],
            data: Data::Chain,
        },
        map("direct", &[Protocol, Port], &[Address, Port]),
        map("bep6", &[Protocol, Port, Mark], &[Address6, Port]),
        map("direct6", &[Protocol, Port], &[Address6, Port]),
        Set {
            name: "self",
            key: &[Address, Address],
            data: Data::None,
        },
    ];
    let nat = |hook, priority| {
        Some(Base {
            kind: "nat",
            hook,
            priority,
        })
    };
    let mut chains = vec![
        Chain {
            name: "pre".to_owned(),
            base: nat(Hook::Prerouting, DSTNAT),
            rules: prerouting(uplink),
        },
        Chain {
            name: "post".to_owned(),
            base: nat(Hook::Postrouting, SRCNAT),
            rules: postrouting(gateway, uplink),
        },
        Chain {
            name: "none".to_owned(),
            base: None,
            rules: vec![
                vec![Expr::ProtocolIs(TCP), Expr::RejectTcp],
                vec![Expr::RejectPort],
            ],
        },
    ];
    for count in counts {
        chains.extend(chains_for(*count));
    }
    if is_mesh {
        chains.extend(mesh());
    }
    if has_v6 {
        chains.push(own_address());
    }
    Table {
        name: TABLE.to_owned(),
        sets,
        chains,
    }
}

/// The two chains that draw one of `count` backends: for packets to the vip itself, and for those
/// that came by a published port.
pub(crate) fn chains_for(count: u32) -> [Chain; 2] {
    let draw = |modulus| {
        [
            Expr::Random {
                to: reg::R0,
                modulus,
            },
            Expr::SetMark(reg::R0),
        ]
    };
    let to_vip = |modulus| {
        let find = [
            Expr::DestinationAddress(reg::R0),
            Expr::Mark(reg::R1),
            Expr::Map {
                set: "be",
                from: reg::R0,
                to: reg::R0,
            },
            Expr::Dnat {
                addr: reg::R0,
                port: None,
            },
        ];
        [&draw(modulus)[..], &find].concat()
    };
    let to_port = |modulus, version, set, to| {
        let find = [
            Expr::Protocol(reg::R0),
            Expr::DestinationPort(reg::R1),
            Expr::Mark(reg::R2),
            Expr::Map {
                set,
                from: reg::R0,
                to: reg::R0,
            },
            to,
        ];
        [&[version], &draw(modulus)[..], &find].concat()
    };
    let to_port4 = |modulus| {
        let to = Expr::Dnat {
            addr: reg::R0,
            port: Some(reg::R1),
        };
        to_port(modulus, Expr::IsV4, "bep", to)
    };
    let to_port6 = |modulus| {
        let to = Expr::Dnat6 {
            addr: reg::R0,
            port: Some(reg::R4),
        };
        to_port(modulus, Expr::IsV6, "bep6", to)
    };
    // A transaction may fall between reading the count and the backend; the drawn number may then
    // be one too high, but number 0 is there as long as there is any backend.
    [
        Chain {
            name: format!("n{count}"),
            base: None,
            rules: vec![to_vip(count), to_vip(1)],
        },
        Chain {
            name: format!("p{count}"),
            base: None,
            rules: vec![to_port4(count), to_port4(1), to_port6(count), to_port6(1)],
        },
    ]
}

/// The elements that lead to the chains for these numbers of backends.
pub(crate) fn picks(counts: &BTreeSet<u32>) -> Content {
    let chains = |prefix: char| {
        counts
            .iter()
            .map(move |n| (number(*n).to_vec(), format!("{prefix}{n}").into_bytes()))
    };
    let none = (number(0).to_vec(), b"none".to_vec());
    Content::from([
        ("pick", chains('n').chain([none]).collect()),
        ("pickp", chains('p').collect()),
    ])
}

/// The elements for published ports, given which backend has which number; with `v6`, the prefix of
/// the network's addresses, those for clients of IPv6 as well.
pub(crate) fn ports(entries: &[Entry], slots: &Slots, v6: Option<Prefix>) -> Content {
    let (mut counts, mut backends) = (Elements::new(), Elements::new());
    let (mut direct, mut direct6) = (Elements::new(), Elements::new());
    let mut backends6 = Elements::new();
    for entry in entries {
        let key = [protocol(entry.protocol), port(entry.port)];
        match entry.to {
            PublishedTarget::Vip { addr, port: target } => {
                let slots = slots.get(&addr).map(Vec::as_slice).unwrap_or_default();
                for (index, backend) in (0..).zip(slots) {
                    let key = join([key[0], key[1], number(index)]);
                    if let Some(v6) = v6 {
                        backends6.insert(key.clone(), address6(v6.addr(*backend), target));
                    }
                    backends.insert(key, join([address(*backend), port(target)]));
                }
                let count = u32::try_from(slots.len()).expect("fewer than 2^32 addresses");
                counts.insert(join(key), number(count).to_vec());
            }
            PublishedTarget::Container { addr, port: target } => {
                if let Some(v6) = v6 {
                    direct6.insert(join(key), address6(v6.addr(addr), target));
                }
                direct.insert(join(key), join([address(addr), port(target)]));
            }
        }
    }
    Content::from([
        ("svcp", counts),
        ("bep", backends),
        ("direct", direct),
        ("bep6", backends6),
        ("direct6", direct6),
    ])
}

/// The elements for backends that may reach themselves.
pub(crate) fn selves<'a>(backends: impl IntoIterator<Item = &'a Ipv4Addr>) -> Elements {
    backends
        .into_iter()
        .map(|addr| (join([address(*addr); 2]), Vec::new()))
        .collect()
}

/// All backends of a state.
pub(crate) fn backends(state: &NetworkState) -> impl Iterator<Item = &Ipv4Addr> {
    state.vips.iter().flat_map(|vip| &vip.backends)
}

fn prerouting(uplink: Option<(Ipv4Addr, Option<IpAddr>)>) -> Vec<Vec<Expr>> {
    // The count goes through the mark: a map's result cannot be printed as the key of another.
    let pick = |set, chains| {
        [
            Expr::Map {
                set,
                from: reg::R0,
                to: reg::R0,
            },
            Expr::SetMark(reg::R0),
            Expr::Mark(reg::R0),
            Expr::Map {
                set: chains,
                from: reg::R0,
                to: reg::VERDICT,
            },
        ]
    };
    let mut rules = vec![
        [
            &[Expr::IsV4, Expr::DestinationAddress(reg::R0)][..],
            &pick("svc", "pick"),
        ]
        .concat(),
    ];
    let mut from_host = |version, addr, direct, to| {
        let from_host = [
            version,
            Expr::From(UPLINK),
            Expr::DestinationIn(Net::host(addr)),
            Expr::Protocol(reg::R0),
            Expr::DestinationPort(reg::R1),
        ];
        let to_container = [
            Expr::Map {
                set: direct,
                from: reg::R0,
                to: reg::R0,
            },
            to,
        ];
        rules.push([&from_host[..], &pick("svcp", "pickp")].concat());
        rules.push([&from_host[..], &to_container].concat());
    };
    if let Some((addr, v6)) = uplink {
        let to = Expr::Dnat {
            addr: reg::R0,
            port: Some(reg::R1),
        };
        from_host(Expr::IsV4, addr.into(), "direct", to);
        if let Some(addr) = v6 {
            let to = Expr::Dnat6 {
                addr: reg::R0,
                port: Some(reg::R4),
            };
            from_host(Expr::IsV6, addr, "direct6", to);
        }
    }
    rules
}

/// A container sends from its own address or not at all; IPv6 has no `rp_filter`.
fn own_address() -> Chain {
    Chain {
        name: "own".to_owned(),
        base: Some(Base {
            kind: "filter",
            hook: Hook::Prerouting,
            priority: RAW,
        }),
        rules: vec![vec![
            Expr::IsV6,
            Expr::FromPrefix(INTERFACE_PREFIX.to_owned()),
            Expr::SourceIsElsewhere,
            Expr::Drop,
        ]],
    }
}

/// Sees to it that a connection from another node is answered through that node, which is known by
/// the hardware address of its end of the tunnel: the last four bytes are the node's address.
///
/// The mark that a packet got here must not be seen by the host's rules, when they decide where the
/// tunnel's own packets go.
fn mesh() -> [Chain; 3] {
    let base = |hook, priority| {
        Some(Base {
            kind: "filter",
            hook,
            priority,
        })
    };
    let zone = Chain {
        name: "zone".to_owned(),
        base: base(Hook::Prerouting, RAW),
        // One client may use one port of his to ask two nodes that choose the same backend. Each
        // node's connections are their own; where they would look the same to the backend,
        // connection tracking gives one of them another port.
        rules: vec![vec![
            Expr::From(DEVICE),
            Expr::SenderLow(reg::R0),
            Expr::SetOriginalZone(reg::R0),
        ]],
    };
    let node = Chain {
        name: "node".to_owned(),
        base: base(Hook::Prerouting, MANGLE),
        rules: vec![
            vec![
                Expr::From(DEVICE),
                Expr::IsReply(false),
                Expr::Sender(reg::R0),
                Expr::SetConnectionMark(reg::R0),
                Expr::SetMark(reg::R0),
            ],
            vec![
                Expr::IsReply(true),
                Expr::ConnectionMark(reg::R0),
                Expr::SetMark(reg::R0),
            ],
        ],
    };
    let leave = Chain {
        name: "leave".to_owned(),
        base: base(Hook::Postrouting, MANGLE),
        rules: vec![vec![Expr::To(DEVICE), Expr::Unmark]],
    };
    [zone, node, leave]
}

fn postrouting(gateway: Ipv4Addr, uplink: Option<(Ipv4Addr, Option<IpAddr>)>) -> Vec<Vec<Expr>> {
    // A backend that drew itself would answer itself without passing the translation back; with
    // the gateway as source it answers the gateway.
    let mut rules = vec![vec![
        Expr::IsV4,
        Expr::SourceAddress(reg::R0),
        Expr::DestinationAddress(reg::R1),
        Expr::In {
            set: "self",
            from: reg::R0,
        },
        Expr::Snat(gateway.into()),
    ]];
    // The host never sees addresses of the network, so networks may overlap.
    let mut leaving = |version, addr| rules.push(vec![version, Expr::To(UPLINK), Expr::Snat(addr)]);
    if let Some((addr, v6)) = uplink {
        leaving(Expr::IsV4, addr.into());
        if let Some(addr) = v6 {
            leaving(Expr::IsV6, addr);
        }
    }
    rules
}
