//! Expressions: the instructions that rules are made of.

use std::net::Ipv4Addr;

use crate::netlink::Batch;

/// Registers of four bytes; consecutive ones make the fields of a concatenation (`NFT_REG32_00`).
pub(crate) mod reg {
    pub(crate) const VERDICT: u32 = 0;
    pub(crate) const R0: u32 = 8;
    pub(crate) const R1: u32 = 9;
    pub(crate) const R2: u32 = 10;
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
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const ICMP_PORT_UNREACHABLE: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
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
    SourceIn {
        addr: Ipv4Addr,
        prefix: u8,
    },
    DestinationIn {
        addr: Ipv4Addr,
        prefix: u8,
    },
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
    Snat(Ipv4Addr),
    Masquerade,
    Drop,
    RejectTcp,
    RejectPort,
}

impl Expr {
    pub(super) fn encode(&self, batch: &mut Batch) {
        match self {
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
            Self::SourceIn { addr, prefix } => {
                payload(batch, reg::R0, NETWORK_HEADER, 12, 4);
                within(batch, *addr, *prefix);
            }
            Self::DestinationIn { addr, prefix } => {
                payload(batch, reg::R0, NETWORK_HEADER, 16, 4);
                within(batch, *addr, *prefix);
            }
            Self::ProtocolIs(protocol) => {
                meta(batch, META_L4PROTO, reg::R0);
                equals(batch, &[*protocol]);
            }
            Self::DestinationIsLocal => {
                expr(batch, "fib", |b| {
                    b.attr_be32(1, reg::R0)
                        .attr_be32(2, FIB_RESULT_ADDRTYPE)
                        .attr_be32(3, FIB_F_DADDR);
                });
                equals(batch, &RTN_LOCAL.to_ne_bytes());
            }
            Self::NotTranslated => {
                ct(batch, CT_DIRECTION);
                equals(batch, &[0]);
                ct(batch, CT_STATUS);
                mask(batch, IPS_DST_NAT.to_ne_bytes());
                equals(batch, &[0; 4]);
            }
            Self::Dnat { addr, port } => nat(batch, 1, *addr, *port),
            Self::Snat(addr) => {
                expr(batch, "immediate", |b| {
                    b.attr_be32(1, reg::R0).nest(2, |b| {
                        b.attr(1, &addr.octets());
                    });
                });
                nat(batch, 0, reg::R0, None);
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
                b.attr_be32(1, 1);
            }),
            Self::RejectPort => expr(batch, "reject", |b| {
                b.attr_be32(1, 0).attr(2, &[ICMP_PORT_UNREACHABLE]);
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

fn mask(batch: &mut Batch, mask: [u8; 4]) {
    expr(batch, "bitwise", |b| {
        b.attr_be32(1, reg::R0)
            .attr_be32(2, reg::R0)
            .attr_be32(3, 4)
            .nest(4, |b| {
                b.attr(1, &mask);
            })
            .nest(5, |b| {
                b.attr(1, &[0; 4]);
            });
    });
}

fn within(batch: &mut Batch, addr: Ipv4Addr, prefix: u8) {
    let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    mask(batch, bits.to_be_bytes());
    equals(batch, &(u32::from(addr) & bits).to_be_bytes());
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

fn nat(batch: &mut Batch, kind: u32, addr: u32, port: Option<u32>) {
    expr(batch, "nat", |b| {
        b.attr_be32(1, kind)
            .attr_be32(2, u32::from(super::NFPROTO_IPV4))
            .attr_be32(3, addr);
        if let Some(port) = port {
            b.attr_be32(5, port);
        }
    });
}
