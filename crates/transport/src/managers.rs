//! The managers that a node knows, and which of them to try first.

use std::sync::{Arc, Mutex, MutexGuard};

use rand::{Rng, RngExt};
use shoal_types::{NodeId, wire::ManagerPeer};

/// Weights run from `-WEIGHT` to `WEIGHT`.
const WEIGHT: i32 = 128;

/// Shared by everything on the node that connects to managers. A clone is a reference.
#[derive(Debug, Clone, Default)]
pub struct Managers(Arc<Mutex<Table>>);

impl Managers {
    /// These are the managers now. Those known before keep what was learned of them. A cluster without
    /// managers could not say so: an empty list changes nothing.
    pub fn set(&self, peers: Vec<ManagerPeer>) {
        self.table().set(peers);
    }

    /// The manager to try first: the leader, as far as anyone said. It need not be one of the list,
    /// which may be older.
    pub fn prefer(&self, leader: Option<ManagerPeer>) {
        self.table().preferred = leader;
    }

    /// By node.
    pub fn list(&self) -> Vec<ManagerPeer> {
        let table = self.table();
        table.known.iter().map(|known| known.peer.clone()).collect()
    }

    pub fn preferred(&self) -> Option<ManagerPeer> {
        self.table().preferred.clone()
    }

    /// The manager could not be connected to, or did not do as a manager should. It is tried later
    /// than others, and no longer first.
    pub fn failed(&self, node: NodeId) {
        self.table().observe(node, -WEIGHT);
    }

    pub fn succeeded(&self, node: NodeId) {
        self.table().observe(node, WEIGHT);
    }

    /// All of them, in the order to try them in.
    pub(crate) fn order(&self, rng: &mut impl Rng) -> Vec<ManagerPeer> {
        self.table().order(rng)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that holds the lock can panic half way through a change.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Table {
    known: Vec<Known>,
    preferred: Option<ManagerPeer>,
}

#[derive(Debug)]
struct Known {
    peer: ManagerPeer,
    weight: i32,
}

impl Table {
    fn set(&mut self, mut peers: Vec<ManagerPeer>) {
        if peers.is_empty() {
            return;
        }
        peers.sort();
        peers.dedup_by(|a, b| a.node == b.node);
        let old = std::mem::take(&mut self.known);
        let weight_of = |peer: &ManagerPeer| old.iter().find(|old| old.peer == *peer);
        self.known = peers
            .into_iter()
            .map(|peer| Known {
                weight: weight_of(&peer).map_or(0, |old| old.weight),
                peer,
            })
            .collect();
    }

    /// Half of the weight is the latest observation, as in SwarmKit's `remotes`.
    fn observe(&mut self, node: NodeId, observed: i32) {
        if let Some(known) = self.known.iter_mut().find(|known| known.peer.node == node) {
            known.weight = i32::midpoint(known.weight, observed);
        }
        if observed < 0 {
            self.preferred.take_if(|preferred| preferred.node == node);
        }
    }

    /// The preferred one, then the others at random: each next one with a probability that grows with
    /// its weight, and is never zero.
    fn order(&self, rng: &mut impl Rng) -> Vec<ManagerPeer> {
        let mut order: Vec<ManagerPeer> = self.preferred.iter().cloned().collect();
        let mut rest: Vec<&Known> = self
            .known
            .iter()
            .filter(|known| order.iter().all(|first| first.node != known.peer.node))
            .collect();
        let share = |known: &Known| known.weight + WEIGHT + 1;
        while !rest.is_empty() {
            let mut point = rng.random_range(0..rest.iter().map(|known| share(known)).sum());
            let drawn = rest.iter().position(|known| {
                point -= share(known);
                point < 0
            });
            let drawn = rest.swap_remove(drawn.expect("the point is below the sum of the shares"));
            order.push(drawn.peer.clone());
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::testing::node;

    fn peer(n: u8) -> ManagerPeer {
        ManagerPeer {
            node: node(n),
            addr: format!("10.0.0.{n}:2377"),
        }
    }

    /// How often each of three is tried first, of 3000 times.
    fn firsts(managers: &Managers) -> [usize; 3] {
        let mut rng = StdRng::seed_from_u64(11);
        let mut firsts = [0; 3];
        for _ in 0..3000 {
            let order = managers.order(&mut rng);
            assert_eq!(order.len(), 3);
            let first = (1..=3).position(|n| order[0] == peer(n));
            firsts[first.expect("one of the three")] += 1;
        }
        firsts
    }

    #[test]
    fn managers_are_tried_evenly_until_something_is_learned_of_them() {
        let managers = Managers::default();
        assert!(managers.order(&mut rand::rng()).is_empty());
        managers.set(vec![peer(3), peer(1), peer(2), peer(1)]);
        assert_eq!(managers.list(), [peer(1), peer(2), peer(3)]);
        assert!(firsts(&managers).iter().all(|n| (900..1100).contains(n)));

        // 129 + 65 = 194 parts of good against 33 and 129.
        managers.succeeded(peer(1).node);
        managers.failed(peer(2).node);
        managers.failed(peer(2).node);
        let [good, bad, new] = firsts(&managers);
        assert!(good > new && new > bad * 3, "{good} {bad} {new}");
        assert!(bad > 0, "a manager that failed is tried again some day");
    }

    #[test]
    fn the_leader_comes_first_until_it_fails() {
        let managers = Managers::default();
        managers.set(vec![peer(1), peer(2), peer(3)]);
        managers.prefer(Some(peer(2)));
        assert_eq!(firsts(&managers), [0, 3000, 0]);
        managers.failed(peer(1).node);
        assert_eq!(managers.preferred(), Some(peer(2)));
        managers.failed(peer(2).node);
        assert_eq!(managers.preferred(), None);
        assert!(firsts(&managers)[1] < 1000);
    }

    #[test]
    fn a_leader_that_is_not_in_the_list_is_tried_first_and_at_its_new_address() {
        let managers = Managers::default();
        managers.set(vec![peer(1)]);
        managers.prefer(Some(peer(2)));
        assert_eq!(managers.order(&mut rand::rng()), [peer(2), peer(1)]);
        let moved = ManagerPeer {
            addr: "10.9.9.9:1".to_owned(),
            ..peer(1)
        };
        managers.prefer(Some(moved.clone()));
        assert_eq!(managers.order(&mut rand::rng()), [moved]);
    }

    #[test]
    fn a_new_list_keeps_what_was_learned_and_an_empty_one_is_ignored() {
        let managers = Managers::default();
        managers.set(vec![peer(1), peer(2), peer(3)]);
        for _ in 0..9 {
            managers.failed(peer(1).node);
        }
        managers.set(Vec::new());
        managers.set(vec![peer(2), peer(1), peer(3)]);
        assert!(firsts(&managers)[0] < 50);
        // At another address it is a new chance.
        let moved = ManagerPeer {
            addr: "10.9.9.9:1".to_owned(),
            ..peer(1)
        };
        managers.set(vec![moved, peer(2), peer(3)]);
        assert_eq!(managers.table().known[0].weight, 0);
    }

    #[test]
    fn weights_stay_in_their_range() {
        let managers = Managers::default();
        managers.set(vec![peer(1), peer(2)]);
        for _ in 0..100 {
            managers.failed(peer(1).node);
            managers.succeeded(peer(2).node);
            managers.succeeded(peer(9).node);
        }
        let weights: Vec<i32> = managers.table().known.iter().map(|k| k.weight).collect();
        assert!(weights.iter().all(|w| w.abs() <= WEIGHT), "{weights:?}");
        assert!(weights[0] < -120 && weights[1] > 120, "{weights:?}");
    }
}
