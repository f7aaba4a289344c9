//! Which backend of a vip has which number.
//!
//! A packet draws a number below the count of backends, so the numbers have no holes. When a
//! backend goes, the last one takes its number: two or three elements change, however many
//! backends there are.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{Content, address, join, number};
use crate::netlink::nft::Elements;

/// Backends of each vip; the place in the list is the number.
pub(crate) type Slots = BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>;

/// Gives `desired` numbers so that as few as possible differ from `current`.
pub(crate) fn place(current: &[Ipv4Addr], desired: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let mut slots = current.to_vec();
    let mut index = 0;
    while index < slots.len() {
        if desired.contains(&slots[index]) && !slots[..index].contains(&slots[index]) {
            index += 1;
        } else {
            slots.swap_remove(index);
        }
    }
    let new: Vec<_> = desired
        .iter()
        .filter(|addr| !slots.contains(addr))
        .copied()
        .collect();
    slots.extend(new);
    slots
}

/// The elements that say this.
pub(crate) fn elements<'a>(
    slots: impl IntoIterator<Item = (&'a Ipv4Addr, &'a Vec<Ipv4Addr>)>,
) -> Content {
    let (mut svc, mut be) = (Elements::new(), Elements::new());
    for (vip, backends) in slots {
        let count = u32::try_from(backends.len()).expect("a subnet has fewer than 2^32 addresses");
        svc.insert(address(*vip).to_vec(), number(count).to_vec());
        for (index, backend) in (0..count).zip(backends) {
            be.insert(
                join([address(*vip), number(index)]),
                address(*backend).to_vec(),
            );
        }
    }
    Content::from([("svc", svc), ("be", be)])
}

/// Reads the numbers back from elements. Whatever makes no sense is left out.
pub(crate) fn read(svc: &Elements, be: &Elements) -> Slots {
    let addr = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let mut slots = Slots::new();
    for vip in svc.keys().filter_map(|key| addr(key)) {
        let backend = |index| {
            be.get(&join([address(vip), number(index)]))
                .and_then(|a| addr(a))
        };
        slots.insert(vip, (0..).map_while(backend).collect());
    }
    slots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addrs(last: &[u8]) -> Vec<Ipv4Addr> {
        last.iter().map(|n| Ipv4Addr::new(10, 0, 0, *n)).collect()
    }

    #[test]
    fn the_last_backend_takes_the_place_of_a_removed_one() {
        assert_eq!(place(&addrs(&[1, 2, 3]), &addrs(&[2, 3])), addrs(&[3, 2]));
        assert_eq!(
            place(&addrs(&[1, 2]), &addrs(&[2, 3, 1])),
            addrs(&[1, 2, 3])
        );
        assert_eq!(place(&addrs(&[1, 1, 2]), &addrs(&[1, 2])), addrs(&[1, 2]));
    }

    proptest! {
        #[test]
        fn every_desired_backend_has_one_number(current: Vec<u8>, desired: std::collections::BTreeSet<u8>) {
            let desired = addrs(&desired.into_iter().collect::<Vec<_>>());
            let mut placed = place(&addrs(&current), &desired);
            placed.sort_unstable();
            prop_assert_eq!(placed, desired);
        }

        #[test]
        fn numbers_survive_the_kernel(slots in prop::collection::btree_map(any::<u8>(), prop::collection::vec(any::<u8>(), 0..5), 0..5)) {
            let slots: Slots = slots.into_iter().map(|(vip, backends)| (Ipv4Addr::new(10, 1, 0, vip), addrs(&backends))).collect();
            let content = elements(&slots);
            prop_assert_eq!(read(&content["svc"], &content["be"]), slots);
        }
    }
}
