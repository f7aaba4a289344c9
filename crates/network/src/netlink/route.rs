//! rtnetlink: links, addresses, routes and neighbours, as rtnetlink(7) and the headers
//! `linux/{if_link,if_addr,rtnetlink,neighbour}.h` describe them.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::errno::Errno;

use super::{
    Attrs, Batch, KernelError, Net, Received, Socket,
    ip::{AF_INET, AF_INET6, family, octets, parse, parse_or_zero},
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
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETNSID: u16 = 90;

/// Of either version.
const AF_UNSPEC: u8 = 0;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
/// No duplicate address detection: packets pass at once.
const IFA_F_NODAD: u32 = 2;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// The entry is the interface's own, not that of a bridge above it.
const NTF_SELF: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
/// Who made a route, as `ip route` shows it; numbers from 20 up are free for programs, and this
/// one makes ours recognisable.
pub(super) const RTPROT_SHOAL: u8 = 83;
/// In a deletion: whatever scope the route has.
const RT_SCOPE_NOWHERE: u8 = 255;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// What an IPv6 route gets that asks for none; the kernel knows no 0 there.
const IPV6_METRIC: u32 = 1024;

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
    pub(crate) mac: Option<Mac>,
    /// The interface's own `rp_filter`.
    pub(crate) rp_filter: u32,
    /// The other end of a veth pair: its index in the namespace of that id.
    pub(crate) peer: Option<(u32, i32)>,
    /// Of a VXLAN interface.
    pub(crate) vxlan: Option<Vxlan>,
}

/// A VXLAN interface, as far as it is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    /// UDP port.
    pub(crate) port: u16,
    pub(crate) local: IpAddr,
    /// It neither learns nor floods.
    pub(crate) is_static: bool,
    /// Where its packets travel: the id of that namespace, `None` for the interface's own.
    pub(crate) underlay: Option<i32>,
}

/// Which peer of a VXLAN interface has a hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forwarding {
    pub(crate) mac: Mac,
    /// `None` in what the kernel has when it is not simply an address.
    pub(crate) to: Option<IpAddr>,
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
    /// To this namespace itself.
    Local = 2,
    Unreachable = 7,
}

/// A route to `to`. Neither gateway nor interface for an unreachable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) kind: RouteKind,
    pub(crate) to: Net,
    pub(crate) via: Option<IpAddr>,
    pub(crate) interface: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
    pub(crate) metric: u32,
}

impl Route {
    pub(crate) fn new(to: Net, interface: u32) -> Self {
        Self {
            kind: RouteKind::Unicast,
            to,
            via: None,
            interface: Some(interface),
            source: None,
            table: TABLE_MAIN,
            metric: 0,
        }
        .metric(0)
    }

    pub(crate) fn unreachable(to: Net) -> Self {
        Self {
            kind: RouteKind::Unreachable,
            interface: None,
            ..Self::new(to, 0)
        }
    }

    /// What arrives by `interface` for `addr` is for this namespace.
    pub(crate) fn local(addr: IpAddr, interface: u32) -> Self {
        Self {
            kind: RouteKind::Local,
            table: TABLE_LOCAL,
            ..Self::new(Net::host(addr), interface)
        }
    }

    pub(crate) fn via(self, gateway: impl Into<IpAddr>) -> Self {
        Self {
            via: Some(gateway.into()),
            ..self
        }
    }

    pub(crate) fn source(self, addr: impl Into<IpAddr>) -> Self {
        Self {
            source: Some(addr.into()),
            ..self
        }
    }

    pub(crate) fn table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    /// How it ranks behind others of the same kind.
    pub(crate) fn metric(self, rank: u32) -> Self {
        let least = if self.to.addr.is_ipv6() {
            IPV6_METRIC
        } else {
            0
        };
        Self {
            metric: least + rank,
            ..self
        }
    }
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

    /// Makes a VXLAN interface in `namespace` whose packets travel in the socket's namespace; down,
    /// so that nothing is received before it is set up.
    pub(crate) fn add_vxlan(
        &mut self,
        end: End<'_>,
        vxlan: Vxlan,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let label = format!("interface {} with vni {}", end.name, vxlan.vni);
        self.message(label, RTM_NEWLINK, flags, &link(0, 0, 0))
            .attr_str(3, end.name)
            .attr_u32(4, mtu)
            .attr(28, &namespace.as_raw_fd().to_ne_bytes());
        if let Some(mac) = end.mac {
            self.attr(1, &mac);
        }
        self.nest(18, |b| {
            b.attr_str(1, "vxlan").nest(2, |b| {
                b.attr_u32(1, vxlan.vni)
                    .attr(vxlan_local(vxlan.local), &octets(vxlan.local))
                    .attr(7, &[0])
                    .attr(15, &vxlan.port.to_be_bytes());
            });
        });
    }

    /// Gives a VXLAN interface another address to send from.
    pub(crate) fn set_vxlan_local(&mut self, index: u32, local: IpAddr) {
        let label = format!("address {local} of interface {index}");
        self.message(label, RTM_NEWLINK, NLM_F_ACK, &link(index, 0, 0))
            .nest(18, |b| {
                b.attr_str(1, "vxlan").nest(2, |b| {
                    b.attr(vxlan_local(local), &octets(local));
                });
            });
    }

    pub(crate) fn set_mac(&mut self, index: u32, mac: Mac) {
        let label = format!("hardware address of interface {index}");
        self.message(label, RTM_NEWLINK, NLM_F_ACK, &link(index, 0, 0))
            .attr(1, &mac);
    }

    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) {
        let label = format!("mtu {mtu} of interface {index}");
        self.message(label, RTM_NEWLINK, NLM_F_ACK, &link(index, 0, 0))
            .attr_u32(4, mtu);
    }

    /// Gives the interface no IPv6 address but those it is told.
    pub(crate) fn no_generated_addresses(&mut self, index: u32) {
        let label = format!("addresses of interface {index}");
        self.message(label, RTM_NEWLINK, NLM_F_ACK, &link(index, 0, 0))
            .nest(26, |b| {
                b.nest(u16::from(AF_INET6), |b| {
                    b.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                });
            });
    }

    /// Lets 127.0.0.0/8 be routed over the interface (sysctl `route_localnet`).
    pub(crate) fn route_localnet(&mut self, index: u32) {
        self.set_devconf(index, "route_localnet", IPV4_DEVCONF_ROUTE_LOCALNET, 1);
    }

    /// Whether packets must come from where their answers would go (sysctl `rp_filter`).
    pub(crate) fn rp_filter(&mut self, index: u32, value: u32) {
        self.set_devconf(index, "rp_filter", IPV4_DEVCONF_RP_FILTER, value);
    }

    fn set_devconf(&mut self, index: u32, name: &str, setting: u16, value: u32) {
        let label = format!("{name} of interface {index}");
        self.message(label, RTM_NEWLINK, NLM_F_ACK, &link(index, 0, 0))
            .nest(26, |b| {
                b.nest(u16::from(AF_INET), |b| {
                    b.nest(1, |b| {
                        b.attr_u32(setting, value);
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

    /// Adds an address; the prefix is what programs see, no route comes with it.
    pub(crate) fn add_address(&mut self, index: u32, addr: impl Into<IpAddr>, prefix: u8) {
        let addr = addr.into();
        let label = format!("address {addr}/{prefix}");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let bytes = octets(addr);
        let no_detection = if addr.is_ipv6() { IFA_F_NODAD } else { 0 };
        self.message(label, RTM_NEWADDR, flags, &address(addr, index, prefix))
            .attr(2, &bytes)
            .attr(1, &bytes)
            .attr_u32(8, IFA_F_NOPREFIXROUTE | no_detection);
    }

    pub(crate) fn delete_address(&mut self, index: u32, addr: IpAddr, prefix: u8) {
        let label = format!("delete address {addr}/{prefix}");
        self.message(label, RTM_DELADDR, NLM_F_ACK, &address(addr, index, prefix))
            .attr(2, &octets(addr));
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
        // A deletion is of this very route, whoever made it.
        let (scope, protocol) = match (kind, route.kind, route.via) {
            (RTM_DELROUTE, ..) => (RT_SCOPE_NOWHERE, 0),
            (_, RouteKind::Unicast, None) => (253, RTPROT_SHOAL),
            (_, RouteKind::Local, _) => (254, RTPROT_SHOAL),
            _ => (0, RTPROT_SHOAL),
        };
        let onlink = if route.via.is_some() {
            RTNH_F_ONLINK
        } else {
            0
        };
        // Tables over 255 do not fit the header; the attribute holds the number in any case.
        let table = u8::try_from(route.table).unwrap_or(0);
        let mut fixed = [
            family(route.to.addr),
            route.to.prefix,
            0,
            0,
            table,
            protocol,
            scope,
            route.kind as u8,
            0,
            0,
            0,
            0,
        ];
        fixed[8..].copy_from_slice(&onlink.to_ne_bytes());
        self.message(label, kind, flags, &fixed)
            .attr(1, &octets(route.to.addr))
            .attr_u32(15, route.table)
            .attr_u32(6, route.metric);
        if let Some(via) = route.via {
            self.attr(5, &octets(via));
        }
        if let Some(interface) = route.interface {
            self.attr_u32(4, interface);
        }
        if let Some(source) = route.source {
            self.attr(7, &octets(source));
        }
    }

    /// A neighbour that is never asked for: no ARP before the first packet.
    pub(crate) fn add_neighbour(&mut self, index: u32, addr: impl Into<IpAddr>, mac: Mac) {
        let addr = addr.into();
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let fixed = neighbour(family(addr), index, NUD_PERMANENT, 0);
        self.message(format!("neighbour {addr}"), RTM_NEWNEIGH, flags, &fixed)
            .attr(1, &octets(addr))
            .attr(2, &mac);
    }

    pub(crate) fn delete_neighbour(&mut self, index: u32, addr: IpAddr) {
        let label = format!("delete neighbour {addr}");
        let fixed = neighbour(family(addr), index, 0, 0);
        self.message(label, RTM_DELNEIGH, NLM_F_ACK, &fixed)
            .attr(1, &octets(addr));
    }

    /// Frames of a VXLAN interface for `mac` go to the node at `to`.
    pub(crate) fn add_forwarding(&mut self, index: u32, mac: Mac, to: IpAddr) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let fixed = neighbour(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
        let label = format!("forwarding entry for {to}");
        self.message(label, RTM_NEWNEIGH, flags, &fixed)
            .attr(1, &octets(to))
            .attr(2, &mac);
    }

    /// Whatever it leads to.
    pub(crate) fn delete_forwarding(&mut self, index: u32, mac: Mac) {
        let label = format!("delete forwarding entry {mac:02x?}");
        let fixed = neighbour(AF_BRIDGE, index, 0, NTF_SELF);
        self.message(label, RTM_DELNEIGH, NLM_F_ACK, &fixed)
            .attr(2, &mac);
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

    /// Interface, address, prefix length. What the kernel gives an interface by itself is left out.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, IpAddr, u8)>, KernelError> {
        let answers = self.query(|batch| {
            batch.message("list of addresses", RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
        })?;
        let given = |addr: &IpAddr| match addr {
            IpAddr::V4(_) => true,
            IpAddr::V6(addr) => !addr.is_unicast_link_local(),
        };
        Ok(answers
            .iter()
            .filter_map(|answer| {
                let index = u32::from_ne_bytes(answer.payload.get(4..8)?.try_into().ok()?);
                let attrs = answer.attrs(8);
                let addr = attrs.get(2).or_else(|| attrs.get(1)).and_then(parse)?;
                Some((index, addr, answer.payload[1]))
            })
            .filter(|(_, addr, _)| given(addr))
            .collect())
    }

    /// Routes of all tables, without those the kernel keeps itself; with who made them.
    pub(crate) fn routes(&mut self) -> Result<Vec<(Route, bool)>, KernelError> {
        let answers = self.query(|batch| {
            let fixed = [AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            batch.message("list of routes", RTM_GETROUTE, NLM_F_DUMP, &fixed);
        })?;
        Ok(answers.iter().filter_map(parse_route).collect())
    }

    /// The forwarding entries of a VXLAN interface.
    pub(crate) fn forwarding(&mut self, index: u32) -> Result<Vec<Forwarding>, KernelError> {
        let answers = self.query(|batch| {
            let mut fixed = link(index, 0, 0);
            fixed[0] = AF_BRIDGE;
            batch.message(
                "list of forwarding entries",
                RTM_GETNEIGH,
                NLM_F_DUMP,
                &fixed,
            );
        })?;
        let is_here = |answer: &&Received| answer.payload.get(4..8) == Some(&index.to_ne_bytes());
        Ok(answers
            .iter()
            .filter(is_here)
            .filter_map(|answer| {
                let attrs = answer.attrs(12);
                // Another port, vni or way out than the interface's own.
                let is_plain = [6, 7, 8].iter().all(|kind| attrs.get(*kind).is_none());
                let to = attrs.get(1).filter(|_| is_plain);
                Some(Forwarding {
                    mac: attrs.array(2)?,
                    to: to.and_then(parse),
                })
            })
            .collect())
    }

    /// Permanent neighbours: interface, address, hardware address.
    pub(crate) fn neighbours(&mut self) -> Result<Vec<(u32, IpAddr, Mac)>, KernelError> {
        let answers = self.query(|batch| {
            let fixed = [AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            batch.message("list of neighbours", RTM_GETNEIGH, NLM_F_DUMP, &fixed);
        })?;
        Ok(answers
            .iter()
            .filter_map(|answer| {
                let payload = &answer.payload;
                let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
                let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
                let attrs = answer.attrs(12);
                let addr = parse(attrs.get(1)?)?;
                (state & NUD_PERMANENT != 0).then_some((index, addr, attrs.array(2)?))
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

fn address(addr: IpAddr, index: u32, prefix: u8) -> [u8; 8] {
    let mut fixed = [family(addr), prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    fixed
}

fn neighbour(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed[10] = flags;
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
        mac: attrs.array(1),
        rp_filter: devconf(attrs, IPV4_DEVCONF_RP_FILTER),
        vxlan: parse_vxlan(attrs),
        peer: attrs.u32(5).zip(attrs.array(37).map(i32::from_ne_bytes)),
    })
}

/// A setting of the interface; the list of them leaves number 0 out.
fn devconf(attrs: Attrs<'_>, setting: u16) -> u32 {
    let settings = attrs.nested(26).nested(u16::from(AF_INET)).get(1);
    let at = 4 * (usize::from(setting) - 1);
    let value = settings.and_then(|settings| settings.get(at..at + 4)?.try_into().ok());
    value.map_or(0, u32::from_ne_bytes)
}

fn parse_vxlan(attrs: Attrs<'_>) -> Option<Vxlan> {
    let info = attrs.nested(18);
    if info.text(1) != Some("vxlan") {
        return None;
    }
    let data = info.nested(2);
    let is_set = |kind| {
        data.get(kind)
            .is_some_and(|value| value.iter().any(|b| *b != 0))
    };
    // A group or default peer, an interface to send by, learning, a proxy, metadata.
    let is_static = ![2, 3, 7, 11, 12, 16, 25].into_iter().any(is_set);
    Some(Vxlan {
        vni: data.u32(1)?,
        port: u16::from_be_bytes(data.array(15)?),
        local: [4, 17]
            .into_iter()
            .find_map(|local| parse(data.get(local)?))
            .unwrap_or_else(|| Ipv4Addr::UNSPECIFIED.into()),
        is_static,
        underlay: attrs.array(37).map(i32::from_ne_bytes),
    })
}

/// The attribute of the address that a VXLAN interface sends from.
fn vxlan_local(local: IpAddr) -> u16 {
    if local.is_ipv4() { 4 } else { 17 }
}

fn parse_route(answer: &Received) -> Option<(Route, bool)> {
    let fixed: &[u8] = answer.payload.get(..12)?;
    let attrs = answer.attrs(12);
    let ours = fixed[5] == RTPROT_SHOAL;
    let kind = match fixed[7] {
        1 => RouteKind::Unicast,
        2 if ours => RouteKind::Local,
        7 => RouteKind::Unreachable,
        _ => return None,
    };
    let route = Route {
        kind,
        to: Net {
            addr: parse_or_zero(fixed[0], attrs.get(1))?,
            prefix: fixed[1],
        },
        via: attrs.get(5).and_then(parse),
        // An unreachable route may show the loopback device.
        interface: attrs.u32(4).filter(|_| kind != RouteKind::Unreachable),
        source: attrs.get(7).and_then(parse),
        table: attrs.u32(15).unwrap_or_else(|| u32::from(fixed[4])),
        metric: attrs.u32(6).unwrap_or(0),
    };
    Some((route, ours))
}
