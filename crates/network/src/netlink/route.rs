//! rtnetlink: links, addresses, routes, neighbours and rules, as rtnetlink(7) and the headers
//! `linux/{if_link,if_addr,rtnetlink,neighbour,fib_rules}.h` describe them.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::errno::Errno;
use shoal_types::spec::Ipv4Net;

use super::{
    Attrs, Batch, KernelError, Received, Socket,
    message::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE},
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;
const RTM_GETNSID: u16 = 90;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const NUD_PERMANENT: u16 = 0x80;
const RTNH_F_ONLINK: u32 = 4;
const FR_ACT_TO_TBL: u8 = 1;
/// Who made a route, as `ip route` shows it; numbers from 20 up are free for programs, and this
/// one makes ours recognisable.
const RTPROT_SHOAL: u8 = 83;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;

pub(crate) const TABLE_MAIN: u32 = 254;
pub(crate) const TABLE_LOCAL: u32 = 255;

pub(crate) type Mac = [u8; 6];

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// The other end of a veth pair: its index in the namespace of that id.
    pub(crate) peer: Option<(u32, i32)>,
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    Unicast = 1,
    Unreachable = 7,
}

/// A route to `to`. Neither gateway nor interface for an unreachable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) kind: RouteKind,
    pub(crate) to: Ipv4Net,
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) interface: Option<u32>,
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) table: u32,
    pub(crate) metric: u32,
}

impl Route {
    pub(crate) fn new(to: Ipv4Net, interface: u32) -> Self {
        Self {
            kind: RouteKind::Unicast,
            to,
            via: None,
            interface: Some(interface),
            source: None,
            table: TABLE_MAIN,
            metric: 0,
        }
    }

    pub(crate) fn unreachable(to: Ipv4Net) -> Self {
        Self {
            kind: RouteKind::Unreachable,
            interface: None,
            ..Self::new(to, 0)
        }
    }

    pub(crate) fn via(self, gateway: Ipv4Addr) -> Self {
        Self {
            via: Some(gateway),
            ..self
        }
    }

    pub(crate) fn source(self, addr: Ipv4Addr) -> Self {
        Self {
            source: Some(addr),
            ..self
        }
    }

    pub(crate) fn table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    pub(crate) fn metric(self, metric: u32) -> Self {
        Self { metric, ..self }
    }
}

pub(crate) fn host_net(addr: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::containing(addr, 32).expect("32 is a prefix length")
}

pub(crate) fn everything() -> Ipv4Net {
    Ipv4Net::containing(Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length")
}

impl Batch {
    /// Makes a veth pair in one message: `here` up in the socket's namespace, `there` in the
    /// namespace `peer` from the start. Moving it there later would take 34 ms instead of 0.6.
    pub(crate) fn add_veth(
        &mut self,
        here: End<'_>,
        there: End<'_>,
        peer: BorrowedFd<'_>,
        mtu: u32,
    ) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let label = format!("interface {}", here.name);
        self.message(label, RTM_NEWLINK, flags, &link(0, IFF_UP, IFF_UP))
            .attr_str(3, here.name)
            .attr_u32(4, mtu);
        if let Some(mac) = here.mac {
            self.attr(1, &mac);
        }
        self.nest(18, |b| {
            b.attr_str(1, "veth").nest(2, |b| {
                // Up here would be refused with ENOTCONN: the pair is not joined yet.
                b.nest_with(1, &link(0, 0, 0), |b| {
                    b.attr_str(3, there.name)
                        .attr_u32(4, mtu)
                        .attr(28, &peer.as_raw_fd().to_ne_bytes());
                    if let Some(mac) = there.mac {
                        b.attr(1, &mac);
                    }
                });
            });
        });
    }

    pub(crate) fn link_up(&mut self, index: u32, up: bool) {
        let flags = if up { IFF_UP } else { 0 };
        self.message(
            format!("interface {index}"),
            RTM_NEWLINK,
            NLM_F_ACK,
            &link(index, flags, IFF_UP),
        );
    }

    pub(crate) fn rename(&mut self, index: u32, name: &str) {
        self.message(
            format!("rename interface {index}"),
            RTM_NEWLINK,
            NLM_F_ACK,
            &link(index, 0, 0),
        )
        .attr_str(3, name);
    }

    /// Lets 127.0.0.0/8 be routed over the interface (sysctl `route_localnet`).
    pub(crate) fn route_localnet(&mut self, index: u32) {
        let label = format!("route_localnet of interface {index}");
        self.message(label, RTM_NEWLINK, NLM_F_ACK, &link(index, 0, 0))
            .nest(26, |b| {
                b.nest(u16::from(AF_INET), |b| {
                    b.nest(1, |b| {
                        b.attr_u32(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
                    });
                });
            });
    }

    pub(crate) fn delete_link(&mut self, index: u32) {
        self.message(
            format!("delete interface {index}"),
            RTM_DELLINK,
            NLM_F_ACK,
            &link(index, 0, 0),
        );
    }

    /// Adds an address; `net`'s prefix is what programs see, no route comes with it.
    pub(crate) fn add_address(&mut self, index: u32, addr: Ipv4Addr, prefix: u8) {
        let label = format!("address {addr}/{prefix}");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.message(label, RTM_NEWADDR, flags, &address(index, prefix))
            .attr(2, &addr.octets())
            .attr(1, &addr.octets())
            .attr_u32(8, IFA_F_NOPREFIXROUTE);
    }

    pub(crate) fn delete_address(&mut self, index: u32, addr: Ipv4Addr, prefix: u8) {
        let label = format!("delete address {addr}/{prefix}");
        self.message(label, RTM_DELADDR, NLM_F_ACK, &address(index, prefix))
            .attr(2, &addr.octets());
    }

    pub(crate) fn add_route(&mut self, wanted: Route) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.route(
            format!("route to {}", wanted.to),
            RTM_NEWROUTE,
            flags,
            wanted,
        );
    }

    pub(crate) fn delete_route(&mut self, unwanted: Route) {
        self.route(
            format!("delete route to {}", unwanted.to),
            RTM_DELROUTE,
            NLM_F_ACK,
            unwanted,
        );
    }

    fn route(&mut self, label: String, kind: u16, flags: u16, route: Route) {
        let scope = match (route.kind, route.via) {
            (RouteKind::Unicast, None) => 253,
            _ => 0,
        };
        let onlink = if route.via.is_some() {
            RTNH_F_ONLINK
        } else {
            0
        };
        // Tables over 255 do not fit the header; the attribute holds the number in any case.
        let table = u8::try_from(route.table).unwrap_or(0);
        let mut fixed = [
            AF_INET,
            route.to.prefix(),
            0,
            0,
            table,
            RTPROT_SHOAL,
            scope,
            route.kind as u8,
            0,
            0,
            0,
            0,
        ];
        fixed[8..].copy_from_slice(&onlink.to_ne_bytes());
        self.message(label, kind, flags, &fixed)
            .attr(1, &route.to.addr().octets())
            .attr_u32(15, route.table)
            .attr_u32(6, route.metric);
        if let Some(via) = route.via {
            self.attr(5, &via.octets());
        }
        if let Some(interface) = route.interface {
            self.attr_u32(4, interface);
        }
        if let Some(source) = route.source {
            self.attr(7, &source.octets());
        }
    }

    /// A neighbour that is never asked for: no ARP before the first packet.
    pub(crate) fn add_neighbour(&mut self, index: u32, addr: Ipv4Addr, mac: Mac) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut fixed = [0; 12];
        fixed[0] = AF_INET;
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        self.message(format!("neighbour {addr}"), RTM_NEWNEIGH, flags, &fixed)
            .attr(1, &addr.octets())
            .attr(2, &mac);
    }

    /// Packets from `addr` use `table`.
    pub(crate) fn add_source_rule(&mut self, addr: Ipv4Addr, table: u32) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let fixed = [AF_INET, 0, 32, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        self.message(
            format!("rule for packets from {addr}"),
            RTM_NEWRULE,
            flags,
            &fixed,
        )
        .attr(2, &addr.octets())
        .attr_u32(6, table)
        .attr_u32(15, table);
    }
}

impl Socket {
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let answers = self.query(|batch| {
            batch.message(
                "list of interfaces",
                RTM_GETLINK,
                NLM_F_DUMP,
                &link(0, 0, 0),
            );
        })?;
        Ok(answers.iter().filter_map(parse_link).collect())
    }

    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        let answers = self.query(|batch| {
            batch
                .message(format!("interface {name}"), RTM_GETLINK, 0, &link(0, 0, 0))
                .attr_str(3, name);
        });
        match answers {
            Ok(answers) => Ok(answers.first().and_then(parse_link)),
            Err(error) if error.errno() == Errno::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until an interface that was just brought up carries packets. Its queue is set up by
    /// a worker of the kernel some time after the other end came up, and drops everything until
    /// then; being asked about the interface, the kernel (from 6.8 on) does that work at once.
    pub(crate) fn settle(&mut self, index: u32) -> Result<(), KernelError> {
        self.query(|batch| {
            let label = format!("interface {index}");
            batch.message(label, RTM_GETLINK, 0, &link(index, 0, 0));
        })
        .map(drop)
    }

    /// The socket's namespace's id for `namespace`; `None` when it has none, and so no link to it.
    pub(crate) fn namespace_id(
        &mut self,
        namespace: BorrowedFd<'_>,
    ) -> Result<Option<i32>, KernelError> {
        let answers = self.query(|batch| {
            batch
                .message("namespace id", RTM_GETNSID, 0, &[0; 4])
                .attr(3, &namespace.as_raw_fd().to_ne_bytes());
        })?;
        let id = answers.first().and_then(|answer| answer.attrs(4).array(1));
        Ok(id.map(i32::from_ne_bytes).filter(|id| *id >= 0))
    }

    /// IPv4 addresses: interface, address, prefix length.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Addr, u8)>, KernelError> {
        let answers = self.query(|batch| {
            batch.message("list of addresses", RTM_GETADDR, NLM_F_DUMP, &address(0, 0));
        })?;
        Ok(answers
            .iter()
            .filter_map(|answer| {
                let index = u32::from_ne_bytes(answer.payload.get(4..8)?.try_into().ok()?);
                let addr: [u8; 4] = answer.attrs(8).array(2)?;
                Some((index, addr.into(), answer.payload[1]))
            })
            .collect())
    }

    /// IPv4 routes of all tables, without those the kernel keeps itself; with who made them.
    pub(crate) fn routes(&mut self) -> Result<Vec<(Route, bool)>, KernelError> {
        let answers = self.query(|batch| {
            let fixed = [AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            batch.message("list of routes", RTM_GETROUTE, NLM_F_DUMP, &fixed);
        })?;
        Ok(answers.iter().filter_map(parse_route).collect())
    }

    /// Permanent IPv4 neighbours: interface, address, hardware address.
    pub(crate) fn neighbours(&mut self) -> Result<Vec<(u32, Ipv4Addr, Mac)>, KernelError> {
        let answers = self.query(|batch| {
            let fixed = [AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            batch.message("list of neighbours", RTM_GETNEIGH, NLM_F_DUMP, &fixed);
        })?;
        Ok(answers
            .iter()
            .filter_map(|answer| {
                let payload = &answer.payload;
                let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
                let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
                let attrs = answer.attrs(12);
                let addr: [u8; 4] = attrs.array(1)?;
                (state & NUD_PERMANENT != 0).then_some((index, addr.into(), attrs.array(2)?))
            })
            .collect())
    }
}

fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn address(index: u32, prefix: u8) -> [u8; 8] {
    let mut fixed = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    fixed
}

fn parse_link(answer: &Received) -> Option<Link> {
    if answer.kind != RTM_NEWLINK {
        return None;
    }
    let attrs: Attrs<'_> = answer.attrs(16);
    let flags = u32::from_ne_bytes(answer.payload.get(8..12)?.try_into().ok()?);
    Some(Link {
        index: u32::from_ne_bytes(answer.payload.get(4..8)?.try_into().ok()?),
        name: attrs.text(3)?.to_owned(),
        up: flags & IFF_UP != 0,
        mtu: attrs.u32(4).unwrap_or(0),
        peer: attrs.u32(5).zip(attrs.array(37).map(i32::from_ne_bytes)),
    })
}

fn parse_route(answer: &Received) -> Option<(Route, bool)> {
    let fixed: &[u8] = answer.payload.get(..12)?;
    let attrs = answer.attrs(12);
    let kind = match fixed[7] {
        1 => RouteKind::Unicast,
        7 => RouteKind::Unreachable,
        _ => return None,
    };
    let addr = attrs
        .array::<4>(1)
        .map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
    let route = Route {
        kind,
        to: Ipv4Net::containing(addr, fixed[1])?,
        via: attrs.array::<4>(5).map(Ipv4Addr::from),
        // An unreachable route may show the loopback device.
        interface: attrs.u32(4).filter(|_| kind == RouteKind::Unicast),
        source: attrs.array::<4>(7).map(Ipv4Addr::from),
        table: attrs.u32(15).unwrap_or_else(|| u32::from(fixed[4])),
        metric: attrs.u32(6).unwrap_or(0),
    };
    Some((route, fixed[5] == RTPROT_SHOAL))
}
