//! `nf_tables`: a table described as data, written as one transaction, and read back.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h` and nfnetlink.h. All integers of `nf_tables`
//! messages are in network byte order; register contents are as the packet path sees them, so
//! addresses and ports are in network order and marks in that of the host.

mod dump;
mod expr;

use std::collections::BTreeMap;

pub(crate) use dump::{Found, dropping_forward_chains, dump, generation, own_generation, tables};
pub(crate) use expr::{Expr, reg};

use super::{
    Batch,
    message::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE},
};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// The family of all our tables, whose rules see packets of both versions.
const NFPROTO_INET: u8 = 1;
/// What a packet is.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

pub(super) const NEWTABLE: u16 = message(0);
pub(super) const GETTABLE: u16 = message(1);
const DELTABLE: u16 = message(2);
pub(super) const NEWCHAIN: u16 = message(3);
pub(super) const GETCHAIN: u16 = message(4);
pub(super) const NEWRULE: u16 = message(6);
pub(super) const GETRULE: u16 = message(7);
pub(super) const NEWSET: u16 = message(9);
pub(super) const GETSET: u16 = message(10);
pub(super) const NEWSETELEM: u16 = message(12);
pub(super) const GETSETELEM: u16 = message(13);
const DELSETELEM: u16 = message(14);
pub(super) const GETGEN: u16 = message(16);

const NFT_SET_MAP: u32 = 0x8;
/// Key type of a map's data when it holds verdicts (`NFT_DATA_VERDICT`).
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// Elements per message: an attribute holds 64 KiB, an element of ours at most 96 bytes.
const CHUNK: usize = 400;

const fn message(number: u16) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | number
}

/// The fixed part of every message here (struct nfgenmsg).
pub(super) fn family(protocol: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [protocol, 0, high, low]
}

/// Contents of one set or map, by key. A set's data is empty.
pub(crate) type Elements = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a set's keys or data are, for sizes and for `nft list` to print them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Address,
    /// Of IPv6.
    Address6,
    Protocol,
    Port,
    Mark,
}

impl Field {
    /// The number `nft` knows the type by (its datatype.h).
    fn number(self) -> u32 {
        match self {
            Self::Address => 7,
            Self::Address6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }

    /// In bytes, a multiple of four.
    fn length(self) -> u32 {
        if self == Self::Address6 { 16 } else { 4 }
    }
}

/// A type of concatenated fields, each padded to four bytes.
fn type_of(fields: &[Field]) -> (u32, u32) {
    // A single port or protocol is shorter than four bytes, but this crate only uses them in
    // concatenations.
    let kind = fields
        .iter()
        .fold(0, |kind, field| kind << 6 | field.number());
    (kind, fields.iter().map(|field| field.length()).sum())
}

/// Tells `nft` in which byte order to print keys and data: those of libnftnl's udata types 0 and 1,
/// with 1 for the host's order and 2 for that of the network.
fn byte_orders(set: &Set) -> Vec<u8> {
    let order = |fields: &[Field]| if fields == [Field::Mark] { 1_u32 } else { 2 };
    let mut orders = vec![(0, order(set.key))];
    if let Data::Fields(fields) = set.data {
        orders.push((1, order(fields)));
    }
    orders
        .iter()
        .flat_map(|(kind, order)| [&[*kind, 4][..], &order.to_ne_bytes()].concat())
        .collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    /// A set, not a map.
    None,
    Fields(&'static [Field]),
    /// A verdict map: goes to a chain.
    Chain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Field],
    pub(crate) data: Data,
}

impl Set {
    pub(super) fn key_length(&self) -> u32 {
        type_of(self.key).1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

/// Hook numbers (linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Vec<Expr>>,
}

/// A table without its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

impl Table {
    pub(crate) fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }
}

/// A transaction being written: everything in it happens, or nothing.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    batch: Batch,
    table: &'a Table,
    empty: bool,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(table: &'a Table) -> Self {
        let mut batch = Batch::default();
        let head = family(0, NFNL_SUBSYS_NFTABLES);
        batch.message("", NFNL_MSG_BATCH_BEGIN, 0, &head);
        Self {
            batch,
            table,
            empty: true,
        }
    }

    /// The finished batch; one without content stays unsent.
    pub(crate) fn finish(mut self) -> Batch {
        if self.empty {
            return Batch::default();
        }
        self.batch
            .message("", NFNL_MSG_BATCH_END, 0, &family(0, NFNL_SUBSYS_NFTABLES));
        self.batch
    }

    pub(crate) fn delete_table(&mut self) {
        let table = self.table;
        self.message(format!("delete table {}", table.name), DELTABLE, 0)
            .attr_str(1, &table.name);
    }

    /// Creates the table with its sets, chains and rules.
    pub(crate) fn create_table(&mut self) {
        let table = self.table;
        self.message(format!("table {}", table.name), NEWTABLE, NLM_F_CREATE)
            .attr_str(1, &table.name)
            .attr_be32(2, 0);
        for (set, id) in table.sets.iter().zip(1..) {
            self.create_set(set, id);
        }
        for chain in &table.chains {
            self.create_chain(chain);
        }
        // Rules come after all chains because they may go to any of them.
        for chain in &table.chains {
            self.create_rules(chain);
        }
    }

    pub(crate) fn create_chain(&mut self, chain: &Chain) {
        let table = self.table;
        let batch = self
            .message(format!("chain {}", chain.name), NEWCHAIN, NLM_F_CREATE)
            .attr_str(1, &table.name)
            .attr_str(3, &chain.name);
        if let Some(base) = chain.base {
            batch
                .nest(4, |b| {
                    b.attr_be32(1, base.hook as u32)
                        .attr(2, &base.priority.to_be_bytes());
                })
                .attr_str(7, base.kind);
        }
    }

    pub(crate) fn create_rules(&mut self, chain: &Chain) {
        let table = self.table;
        for (rule, number) in chain.rules.iter().zip(1..) {
            let label = format!("rule {number} of chain {}", chain.name);
            self.message(label, NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
                .attr_str(1, &table.name)
                .attr_str(2, &chain.name)
                .nest(4, |b| rule.iter().for_each(|expr| expr.encode(b)))
                .attr(7, &signature(rule));
        }
    }

    fn create_set(&mut self, set: &Set, id: u32) {
        let table = self.table;
        let (key_type, key_length) = type_of(set.key);
        let batch = self
            .message(format!("set {}", set.name), NEWSET, NLM_F_CREATE)
            .attr_str(1, &table.name)
            .attr_str(2, set.name)
            .attr_be32(
                3,
                if set.data == Data::None {
                    0
                } else {
                    NFT_SET_MAP
                },
            )
            .attr_be32(4, key_type)
            .attr_be32(5, key_length);
        match set.data {
            Data::None => {}
            Data::Chain => {
                batch.attr_be32(6, NFT_DATA_VERDICT);
            }
            Data::Fields(fields) => {
                let (data_type, data_length) = type_of(fields);
                batch.attr_be32(6, data_type).attr_be32(7, data_length);
            }
        }
        batch.attr_be32(10, id).attr(13, &byte_orders(set));
    }

    pub(crate) fn add<'e>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = (&'e [u8], &'e [u8])>,
    ) {
        let is_goto = self
            .table
            .set(set)
            .is_some_and(|set| set.data == Data::Chain);
        self.elements(set, NEWSETELEM, NLM_F_CREATE, elements, |batch, data| {
            if is_goto {
                let chain = str::from_utf8(data).expect("chain names are ours");
                batch.nest(2, |b| expr::goto(b, chain));
            } else if !data.is_empty() {
                batch.nest(2, |b| {
                    b.attr(1, data);
                });
            }
        });
    }

    pub(crate) fn delete<'e>(&mut self, set: &str, keys: impl IntoIterator<Item = &'e [u8]>) {
        let keys = keys.into_iter().map(|key| (key, &[][..]));
        self.elements(set, DELSETELEM, 0, keys, |_, _| {});
    }

    fn elements<'e>(
        &mut self,
        set: &str,
        kind: u16,
        flags: u16,
        elements: impl IntoIterator<Item = (&'e [u8], &'e [u8])>,
        data: impl Fn(&mut Batch, &[u8]),
    ) {
        let mut elements = elements.into_iter().peekable();
        let table = self.table;
        while elements.peek().is_some() {
            self.message(format!("elements of {set}"), kind, flags)
                .attr_str(1, &table.name)
                .attr_str(2, set)
                .nest(3, |b| {
                    for (key, value) in elements.by_ref().take(CHUNK) {
                        b.nest(1, |b| {
                            b.nest(1, |b| {
                                b.attr(1, key);
                            });
                            data(b, value);
                        });
                    }
                });
        }
    }

    fn message(&mut self, label: String, kind: u16, flags: u16) -> &mut Batch {
        self.empty = false;
        // Refusals come without asking. The acknowledgement is asked for because only then does
        // the kernel also answer for what it refuses at the very end, when it commits.
        self.batch
            .message(label, kind, flags | NLM_F_ACK, &family(NFPROTO_INET, 0))
    }
}

/// Marks a rule as ours and says what it does: a hash of its expressions, kept by the kernel as
/// the rule's comment. The kernel gives expressions back in its own spelling, so they are not
/// compared; a rule replaced by somebody else has no such comment.
pub(super) fn signature(rule: &[Expr]) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.message("", 0, 0, &[]);
    for expr in rule {
        expr.encode(&mut batch);
    }
    // FNV-1a, 64 bits: stable between releases, which std's hasher does not promise.
    let hash = batch
        .bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let comment = format!("shoal {hash:016x}\0");
    // Type 0 is the comment in the format of libnftnl's udata.
    let mut bytes = vec![0, u8::try_from(comment.len()).expect("a short comment")];
    bytes.extend_from_slice(comment.as_bytes());
    bytes
}
