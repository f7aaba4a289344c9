//! What our `nf_tables` tables say, as data. Pure: nothing here talks to the kernel.

pub(crate) mod host;
pub(crate) mod network;
pub(crate) mod slots;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    model::Protocol,
    netlink::nft::{Elements, Transaction},
};

/// Elements of several sets, by the set's name.
pub(crate) type Content = BTreeMap<&'static str, Elements>;

/// Adds what turns `old` into `new` to the transaction; sets that `new` does not name are left
/// alone.
pub(crate) fn change(transaction: &mut Transaction<'_>, old: &Content, new: &Content) {
    let none = Elements::new();
    for (set, new) in new {
        let old = old.get(set).unwrap_or(&none);
        // What is replaced must go first: the kernel refuses a second element of the same key.
        let gone = old.iter().filter(|(key, data)| new.get(*key) != Some(data));
        transaction.delete(set, gone.map(|(key, _)| key.as_slice()));
        let added = new.iter().filter(|(key, data)| old.get(*key) != Some(data));
        transaction.add(
            set,
            added.map(|(key, data)| (key.as_slice(), data.as_slice())),
        );
    }
}

/// Adds to `content` what of `more` has a key that it lacks.
pub(crate) fn fill(content: &mut Content, more: Content) {
    for (set, elements) in more {
        let into = content.entry(set).or_default();
        for (key, data) in elements {
            into.entry(key).or_insert(data);
        }
    }
}

/// Says what differs between two contents, at most one sentence per element.
pub(crate) fn differences(old: &Content, new: &Content) -> Vec<String> {
    let none = Elements::new();
    let mut found = Vec::new();
    for (set, new) in new {
        let old = old.get(set).unwrap_or(&none);
        let print = |key: &[u8]| format!("{key:02x?}");
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            found.push(format!(
                "element {} of {set} should not be there",
                print(key)
            ));
        }
        for (key, data) in new {
            match old.get(key) {
                None => found.push(format!("element {} of {set} is missing", print(key))),
                Some(is) if is != data => {
                    found.push(format!("element {} of {set} has other data", print(key)));
                }
                Some(_) => {}
            }
        }
    }
    found
}

/// Fields of keys and data. Each takes four bytes or a multiple, as in the kernel's registers.
pub(crate) fn address(addr: Ipv4Addr) -> [u8; 4] {
    addr.octets()
}

/// An address of four fields, and a port.
pub(crate) fn address6(addr: Ipv6Addr, number: u16) -> Vec<u8> {
    [&addr.octets()[..], &port(number)].concat()
}

pub(crate) fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

pub(crate) fn protocol(protocol: Protocol) -> [u8; 4] {
    [protocol as u8, 0, 0, 0]
}

pub(crate) fn number(number: u32) -> [u8; 4] {
    number.to_ne_bytes()
}

pub(crate) fn join<const N: usize>(fields: [[u8; 4]; N]) -> Vec<u8> {
    fields.concat()
}
