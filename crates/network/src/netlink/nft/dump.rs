//! Reading a table back from the kernel.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{
    Elements, GETCHAIN, GETGEN, GETRULE, GETSET, GETSETELEM, GETTABLE, Hook, NEWCHAIN, NEWRULE,
    NEWSET, NEWSETELEM, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, Table, family, signature,
};
use crate::netlink::{
    Attrs, KernelError, Socket,
    message::{NLM_F_ACK, NLM_F_DUMP},
};

const FIXED: usize = 4;

/// A table as the kernel has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Chains with their hook and priority if they have one, and the comments of their rules.
    chains: BTreeMap<String, FoundChain>,
    /// Sets with the length of their keys.
    sets: BTreeMap<String, u32>,
    pub(crate) elements: BTreeMap<String, Elements>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct FoundChain {
    hook: Option<(u32, i32)>,
    rules: Vec<Vec<u8>>,
}

impl Found {
    /// Whether chains, rules and sets are as `table` describes them; says what is not.
    pub(crate) fn differences(&self, table: &Table) -> Vec<String> {
        let mut found = Vec::new();
        let names: BTreeSet<_> = table
            .chains
            .iter()
            .map(|chain| chain.name.as_str())
            .collect();
        for chain in &table.chains {
            let wanted = FoundChain {
                hook: chain.base.map(|base| (base.hook as u32, base.priority)),
                rules: chain.rules.iter().map(|rule| signature(rule)).collect(),
            };
            match self.chains.get(&chain.name) {
                None => found.push(format!("chain {} is missing", chain.name)),
                Some(chain_found) if chain_found.hook != wanted.hook => {
                    found.push(format!("chain {} hangs on another hook", chain.name));
                }
                Some(chain_found) if chain_found.rules != wanted.rules => {
                    found.push(format!("chain {} has other rules", chain.name));
                }
                Some(_) => {}
            }
        }
        for name in self
            .chains
            .keys()
            .filter(|name| !names.contains(name.as_str()))
        {
            found.push(format!("chain {name} is not ours"));
        }
        for set in &table.sets {
            match self.sets.get(set.name) {
                None => found.push(format!("set {} is missing", set.name)),
                Some(length) if *length != set.key_length() => {
                    found.push(format!("set {} has other keys", set.name));
                }
                Some(_) => {}
            }
        }
        for name in self.sets.keys().filter(|name| table.set(name).is_none()) {
            found.push(format!("set {name} is not ours"));
        }
        found
    }
}

/// The number of the ruleset's generation in the socket's namespace: it rises by one with each
/// transaction of anybody, so an unchanged number means unchanged tables.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, KernelError> {
    let answers = socket.query(|batch| {
        batch.message("nf_tables generation", GETGEN, 0, &family(0, 0));
    })?;
    Ok(answers
        .first()
        .and_then(|answer| answer.attrs(FIXED).be32(1))
        .unwrap_or(0))
}

/// The generation now, if nobody changed anything since `before` but we ourselves, with one
/// transaction (or with none, when not `sent`); `None` if somebody did.
pub(crate) fn own_generation(
    socket: &mut Socket,
    before: u32,
    sent: bool,
) -> Result<Option<u32>, KernelError> {
    // Each commit counts one further, and leaves 0 out (nf_tables_commit()).
    let ours = if sent {
        before.wrapping_add(1).max(1)
    } else {
        before
    };
    Ok(Some(generation(socket)?).filter(|now| *now == ours))
}

/// Names of all tables of the family of ours in the socket's namespace.
pub(crate) fn tables(socket: &mut Socket) -> Result<Vec<String>, KernelError> {
    let answers = socket.query(|batch| {
        batch.message(
            "list of tables",
            GETTABLE,
            NLM_F_DUMP,
            &family(NFPROTO_INET, 0),
        );
    })?;
    Ok(answers
        .iter()
        .filter_map(|answer| answer.attrs(FIXED).text(1).map(str::to_owned))
        .collect())
}

/// Base chains of forwarding whose policy is to drop, as `table chain`, whoever owns them.
pub(crate) fn dropping_forward_chains(socket: &mut Socket) -> Result<Vec<String>, KernelError> {
    const NF_DROP: u32 = 0;
    let mut found = Vec::new();
    for protocol in [NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_INET] {
        let answers = socket.query(|batch| {
            batch.message("list of chains", GETCHAIN, NLM_F_DUMP, &family(protocol, 0));
        })?;
        for attrs in answers.iter().map(|answer| answer.attrs(FIXED)) {
            let forwards = attrs.nested(4).be32(1) == Some(Hook::Forward as u32);
            if forwards && attrs.be32(5) == Some(NF_DROP) {
                let (table, chain) = (attrs.text(1), attrs.text(3));
                let name = |text: Option<&str>| text.unwrap_or("?").to_owned();
                found.push(format!("{} {}", name(table), name(chain)));
            }
        }
    }
    Ok(found)
}

/// Reads the table `name` with everything in it; `None` when there is none.
pub(crate) fn dump(socket: &mut Socket, name: &str) -> Result<Option<Found>, KernelError> {
    let exists = socket.query(|batch| {
        batch
            .message(
                format!("table {name}"),
                GETTABLE,
                NLM_F_ACK,
                &family(NFPROTO_INET, 0),
            )
            .attr_str(1, name);
    });
    match exists {
        Err(error) if error.errno() == Errno::ENOENT => return Ok(None),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let mut found = Found::default();
    for attrs in list(socket, name, "chains", GETCHAIN, NEWCHAIN)? {
        let attrs = Attrs::of(&attrs);
        let hook = attrs.nested(4);
        let hook = hook.be32(1).zip(hook.array(2).map(i32::from_be_bytes));
        let chain = attrs.text(3).unwrap_or_default().to_owned();
        found.chains.entry(chain).or_default().hook = hook;
    }
    for attrs in list(socket, name, "rules", GETRULE, NEWRULE)? {
        let attrs = Attrs::of(&attrs);
        let chain = attrs.text(2).unwrap_or_default().to_owned();
        let comment = attrs.get(7).unwrap_or_default().to_vec();
        found.chains.entry(chain).or_default().rules.push(comment);
    }
    for attrs in list(socket, name, "sets", GETSET, NEWSET)? {
        let attrs = Attrs::of(&attrs);
        let set = attrs.text(2).unwrap_or_default().to_owned();
        found.sets.insert(set, attrs.be32(5).unwrap_or(0));
    }
    for set in found.sets.keys() {
        found
            .elements
            .insert(set.clone(), elements(socket, name, set)?);
    }
    Ok(Some(found))
}

/// Attributes of all objects of a kind in the table.
fn list(
    socket: &mut Socket,
    table: &str,
    what: &str,
    get: u16,
    new: u16,
) -> Result<Vec<Vec<u8>>, KernelError> {
    let answers = socket.query(|batch| {
        batch
            .message(
                format!("{what} of {table}"),
                get,
                NLM_F_DUMP,
                &family(NFPROTO_INET, 0),
            )
            .attr_str(1, table);
    })?;
    // Old kernels do not filter every kind by table.
    Ok(answers
        .into_iter()
        .filter(|answer| answer.kind == new && answer.attrs(FIXED).text(1) == Some(table))
        .map(|answer| answer.payload[FIXED..].to_vec())
        .collect())
}

fn elements(socket: &mut Socket, table: &str, set: &str) -> Result<Elements, KernelError> {
    let answers = socket.query(|batch| {
        batch
            .message(
                format!("elements of {set}"),
                GETSETELEM,
                NLM_F_DUMP,
                &family(NFPROTO_INET, 0),
            )
            .attr_str(1, table)
            .attr_str(2, set);
    })?;
    let mut found = Elements::new();
    for answer in answers.iter().filter(|answer| answer.kind == NEWSETELEM) {
        for (_, element) in answer.attrs(FIXED).nested(3) {
            let element = Attrs::of(element);
            let key = element.nested(1).get(1).unwrap_or_default().to_vec();
            let data = element.nested(2);
            // A verdict is given back as the name of the chain it goes to.
            let verdict = || {
                data.nested(2)
                    .text(2)
                    .map(|chain| chain.as_bytes().to_vec())
            };
            let value = data.get(1).map(<[u8]>::to_vec).or_else(verdict);
            found.insert(key, value.unwrap_or_default());
        }
    }
    Ok(found)
}
