//! Expressions: the instructions that rules are made of.

use std::net::IpAddr;

use super::{NFPROTO_IPV4, NFPROTO_IPV6};
use crate::netlink::{Batch, Net, octets};

/// Registers of four bytes; consecutive ones make the fields of a concatenation (`NFT_REG32_00`).
pub(crate) mod reg {
    pub(crate) const VERDICT: u32 = 0;
    pub(crate) const R0: u32 = 8;
    pub(crate) const R1: u32 = 9;
    pub(crate) const R2: u32 = 10;
    /// Behind an IPv6 address in `R0`.
    pub(crate) const R4: u32 = 12;
}

const NF_DROP: u32 = 0;
const NFT_GOTO: u32 = (-4_i32).cast_unsigned();
const NFT_REG_VERDICT: u32 = 0;
const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_META`_* keys.
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_CT`_* keys.
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
const IP_CT_DIR_ORIGINAL: u8 = 0;
const NTOH: u32 = 0;
/// The connection's destination was translated (`IPS_DST_NAT`).
const IPS_DST_NAT: u32 = 1 << 5;
const FIB_RESULT_OIF: u32 = 1;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_SADDR: u32 = 1;
const FIB_F_DADDR: u32 = 2;
const FIB_F_IIF: u32 = 8;
const RTN_LOCAL: u32 = 2;
const NFT_REJECT_TCP_RST: u32 = 1;
/// Of either version, with a code of its own for each reason.
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
const ICMPX_PORT_UNREACHABLE: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    /// The packet is of IPv4; before whatever reads an address.
    IsV4,
    IsV6,
    /// Of IPv4, as the next.
    SourceAddress(u32),
    DestinationAddress(u32),
    DestinationPort(u32),
    Protocol(u32),
    /// Keeps a register's value with the packet, which loses it when it leaves the namespace.
    SetMark(u32),
    Mark(u32),
    /// Takes the mark away.
    Unmark,
    /// Bytes three to six of the Ethernet address a packet came from, as a number.
    Sender(u32),
    /// The last two of them.
    SenderLow(u32),
    /// Whether the packet goes against the direction of its connection's first one.
    IsReply(bool),
    /// Keeps a register's value with the connection.
    SetConnectionMark(u32),
    ConnectionMark(u32),
    /// Before connection tracking: connections that begin with such packets are told apart from
    /// all others by this number of 16 bits, but their replies are not.
    SetOriginalZone(u32),
    /// A random number below `modulus`.
    Random {
        to: u32,
        modulus: u32,
    },
    /// Finds the key in `from`…; the rule ends where it is absent. `to` may be the verdict.
    Map {
        set: &'static str,
        from: u32,
        to: u32,
    },
    /// The rule goes on only if the key is in the set.
    In {
        set: &'static str,
        from: u32,
    },
    /// The interface's name starts with this.
    FromPrefix(String),
    ToPrefix(String),
    /// The interface has this name.
    From(&'static str),
    To(&'static str),
    SourceIn(Net),
    DestinationIn(Net),
    /// Answers to the source would not leave by the interface that the packet came in on.
    SourceIsElsewhere,
    ProtocolIs(u8),
    /// The destination is an address of this namespace.
    DestinationIsLocal,
    /// The first packet's direction of a connection whose destination was not translated.
    NotTranslated,
    /// Translates the destination to the address in `addr`, and the port in `port` if given.
    Dnat {
        addr: u32,
        port: Option<u32>,
    },
    /// The same, to an address of IPv6.
    Dnat6 {
        addr: u32,
        port: Option<u32>,
    },
    Snat(IpAddr),
    Masquerade,
    Drop,
    RejectTcp,
    RejectPort,
}

impl Expr {
    pub(super) fn encode(&self, batch: &mut Batch) {
        match self {
            Self::IsV4 => version(batch, NFPROTO_IPV4),
            Self::IsV6 => version(batch, NFPROTO_IPV6),
            Self::SourceAddress(to) => payload(batch, *to, NETWORK_HEADER, 12, 4),
            Self::DestinationAddress(to) => payload(batch, *to, NETWORK_HEADER, 16, 4),
            // The same place in the headers of TCP, UDP and SCTP.
            Self::DestinationPort(to) => payload(batch, *to, TRANSPORT_HEADER, 2, 2),
            Self::Protocol(to) => meta(batch, META_L4PROTO, *to),
            Self::SetMark(from) => expr(batch, "meta", |b| {
                b.attr_be32(2, META_MARK).attr_be32(3, *from);
            }),
            Self::Mark(to) => meta(batch, META_MARK, *to),
            Self::Unmark => {
                expr(batch, "immediate", |b| {
                    b.attr_be32(1, reg::R0).nest(2, |b| {
                        b.attr(1, &[0; 4]);
                    });
                });
                Self::SetMark(reg::R0).encode(batch);
            }
            Self::Sender(to) => link_number(batch, *to, 8, 4),
            Self::SenderLow(to) => link_number(batch, *to, 10, 2),
            Self::IsReply(is_reply) => {
                ct(batch, CT_DIRECTION);
                equals(batch, &[u8::from(*is_reply)]);
            }
            Self::SetConnectionMark(from) => expr(batch, "ct", |b| {
                b.attr_be32(2, CT_MARK).attr_be32(4, *from);
            }),
            Self::ConnectionMark(to) => expr(batch, "ct", |b| {
                b.attr_be32(1, *to).attr_be32(2, CT_MARK);
            }),
            Self::SetOriginalZone(from) => expr(batch, "ct", |b| {
                b.attr_be32(2, CT_ZONE)
                    .attr(3, &[IP_CT_DIR_ORIGINAL])
                    .attr_be32(4, *from);
            }),
            Self::Random { to, modulus } => expr(batch, "numgen", |b| {
                b.attr_be32(1, *to)
                    .attr_be32(2, *modulus)
                    .attr_be32(3, 1)
                    .attr_be32(4, 0);
            }),
            Self::Map { set, from, to } => expr(batch, "lookup", |b| {
                b.attr_str(1, set).attr_be32(2, *from).attr_be32(3, *to);
            }),
            Self::In { set, from } => expr(batch, "lookup", |b| {
                b.attr_str(1, set).attr_be32(2, *from);
            }),
            Self::FromPrefix(name) => interface(batch, META_IIFNAME, name.as_bytes()),
            Self::ToPrefix(name) => interface(batch, META_OIFNAME, name.as_bytes()),
            Self::From(name) => interface(batch, META_IIFNAME, &padded(name)),
            Self::To(name) => interface(batch, META_OIFNAME, &padded(name)),
            Self::SourceIn(net) => within(batch, *net, [12, 8]),
            Self::DestinationIn(net) => within(batch, *net, [16, 24]),
            Self::SourceIsElsewhere => {
                fib(batch, FIB_RESULT_OIF, FIB_F_SADDR | FIB_F_IIF);
                equals(batch, &[0; 4]);
            }
            Self::ProtocolIs(protocol) => {
                meta(batch, META_L4PROTO, reg::R0);
                equals(batch, &[*protocol]);
            }
            Self::DestinationIsLocal => {
                fib(batch, FIB_RESULT_ADDRTYPE, FIB_F_DADDR);
                equals(batch, &RTN_LOCAL.to_ne_bytes());
            }
            Self::NotTranslated => {
                ct(batch, CT_DIRECTION);
                equals(batch, &[0]);
                ct(batch, CT_STATUS);
                mask(batch, &IPS_DST_NAT.to_ne_bytes());
                equals(batch, &[0; 4]);
            }
            Self::Dnat { addr, port } => nat(batch, 1, NFPROTO_IPV4, *addr, *port),
            Self::Dnat6 { addr, port } => nat(batch, 1, NFPROTO_IPV6, *addr, *port),
            Self::Snat(addr) => {
                expr(batch, "immediate", |b| {
                    b.attr_be32(1, reg::R0).nest(2, |b| {
                        b.attr(1, &octets(*addr));
                    });
                });
                let version = if addr.is_ipv4() {
                    NFPROTO_IPV4
                } else {
                    NFPROTO_IPV6
                };
                nat(batch, 0, version, reg::R0, None);
            }
            Self::Masquerade => expr(batch, "masq", |_| {}),
            Self::Drop => expr(batch, "immediate", |b| {
                b.attr_be32(1, NFT_REG_VERDICT).nest(2, |b| {
                    b.nest(2, |b| {
                        b.attr_be32(1, NF_DROP);
                    });
                });
            }),
            Self::RejectTcp => expr(batch, "reject", |b| {
                b.attr_be32(1, NFT_REJECT_TCP_RST);
            }),
            Self::RejectPort => expr(batch, "reject", |b| {
                b.attr_be32(1, NFT_REJECT_ICMPX_UNREACH)
                    .attr(2, &[ICMPX_PORT_UNREACHABLE]);
            }),
        }
    }
}

/// The data of a verdict map's element: go to `chain` and do not come back.
pub(super) fn goto(batch: &mut Batch, chain: &str) {
    batch.nest(2, |b| {
        b.attr_be32(1, NFT_GOTO).attr_str(2, chain);
    });
}

fn expr(batch: &mut Batch, name: &str, inside: impl FnOnce(&mut Batch)) {
    batch.nest(1, |b| {
        b.attr_str(1, name).nest(2, inside);
    });
}

fn payload(batch: &mut Batch, to: u32, base: u32, offset: u32, length: u32) {
    expr(batch, "payload", |b| {
        b.attr_be32(1, to)
            .attr_be32(2, base)
            .attr_be32(3, offset)
            .attr_be32(4, length);
    });
}

/// A number of `length` bytes in the Ethernet header, in the host's byte order.
fn link_number(batch: &mut Batch, to: u32, offset: u32, length: u32) {
    payload(batch, to, LINK_HEADER, offset, length);
    expr(batch, "byteorder", |b| {
        b.attr_be32(1, to)
            .attr_be32(2, to)
            .attr_be32(3, NTOH)
            .attr_be32(4, length)
            .attr_be32(5, length);
    });
}

fn meta(batch: &mut Batch, key: u32, to: u32) {
    expr(batch, "meta", |b| {
        b.attr_be32(1, to).attr_be32(2, key);
    });
}

fn ct(batch: &mut Batch, key: u32) {
    expr(batch, "ct", |b| {
        b.attr_be32(1, reg::R0).attr_be32(2, key);
    });
}

fn equals(batch: &mut Batch, value: &[u8]) {
    expr(batch, "cmp", |b| {
        b.attr_be32(1, reg::R0).attr_be32(2, 0).nest(3, |b| {
            b.attr(1, value);
        });
    });
}

fn mask(batch: &mut Batch, mask: &[u8]) {
    let length = u32::try_from(mask.len()).expect("at most an address");
    expr(batch, "bitwise", |b| {
        b.attr_be32(1, reg::R0)
            .attr_be32(2, reg::R0)
            .attr_be32(3, length)
            .nest(4, |b| {
                b.attr(1, mask);
            })
            .nest(5, |b| {
                b.attr(1, &vec![0; mask.len()]);
            });
    });
}

/// Whether the address at an offset, that of IPv4 or that of IPv6, is in `net`.
fn within(batch: &mut Batch, net: Net, [v4, v6]: [u32; 2]) {
    let (offset, length, bits) = match net.addr {
        IpAddr::V4(_) => (v4, 4, 32_u8),
        IpAddr::V6(_) => (v6, 16, 128),
    };
    payload(batch, reg::R0, NETWORK_HEADER, offset, length);
    if net.prefix < bits {
        let ones = u128::MAX.checked_shl(128 - u32::from(net.prefix));
        let bytes = ones.unwrap_or(0).to_be_bytes();
        mask(batch, &bytes[..usize::from(bits / 8)]);
    }
    equals(batch, &octets(net.addr));
}

/// Goes on if the packet is of this version.
fn version(batch: &mut Batch, version: u8) {
    meta(batch, META_NFPROTO, reg::R0);
    equals(batch, &[version]);
}

fn fib(batch: &mut Batch, result: u32, flags: u32) {
    expr(batch, "fib", |b| {
        b.attr_be32(1, reg::R0)
            .attr_be32(2, result)
            .attr_be32(3, flags);
    });
}

/// Compares as many bytes of the name as are given: fewer than 16 make a prefix.
fn interface(batch: &mut Batch, key: u32, name: &[u8]) {
    meta(batch, key, reg::R0);
    equals(batch, name);
}

fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

fn nat(batch: &mut Batch, kind: u32, version: u8, addr: u32, port: Option<u32>) {
    expr(batch, "nat", |b| {
        b.attr_be32(1, kind)
            .attr_be32(2, u32::from(version))
            .attr_be32(3, addr);
        if let Some(port) = port {
            b.attr_be32(5, port);
        }
    });
}
