//! Forgetting connections (`linux/netfilter/nfnetlink_conntrack.h`).

use std::net::IpAddr;

use nix::errno::Errno;

use super::{
    Batch, KernelError, Socket,
    ip::{family, octets},
    message::NLM_F_ACK,
    nft,
};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
/// Of a filter's flags: the source address counts (`net/netfilter/nf_internals.h`).
const FILTER_SOURCE: u32 = 1;

impl Socket {
    /// Forgets the connections that `addr` answers, by whatever vip or port they came. The next
    /// packet of a client counts as a new connection: a datagram goes to another backend, a TCP
    /// client is reset instead of waiting for its retransmissions to end.
    ///
    /// Kernels before 6.11 cannot choose by address; there connections end by their timeouts.
    pub(crate) fn forget_connections_to(&mut self, addr: IpAddr) -> Result<(), KernelError> {
        let mut batch = Batch::default();
        // CTA_IP_V4_SRC and CTA_IP_V6_SRC.
        let source = if addr.is_ipv4() { 1 } else { 3 };
        batch
            .message(
                format!("connections to {addr}"),
                DELETE,
                NLM_F_ACK,
                &nft::family(family(addr), 0),
            )
            .nest(CTA_TUPLE_REPLY, |b| {
                b.nest(1, |b| {
                    b.attr(source, &octets(addr));
                });
            })
            .nest(CTA_FILTER, |b| {
                b.attr_u32(1, 0).attr_u32(2, FILTER_SOURCE);
            });
        let errors = self.transact(batch).err().unwrap_or_default();
        let unexpected = |error: &KernelError| {
            !matches!(
                error.errno(),
                Errno::EINVAL | Errno::ENOENT | Errno::EOPNOTSUPP
            )
        };
        errors.into_iter().find(unexpected).map_or(Ok(()), Err)
    }
}
