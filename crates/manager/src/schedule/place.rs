//! Placing a group of tasks that ask for the same, one after the other.
//!
//! Without spread preferences, nodes that have no task of the service come straight from the index,
//! emptiest first; only when these are used up are the others ranked, once for the group. With spread
//! preferences the nodes are split into branches by label value, and each task goes down the branch
//! with the fewest tasks of the service that can take it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use shoal_types::{
    NodeId, Timestamp,
    object::{Node, Task},
};

use super::{
    filter::{Request, explain},
    index::{NodeIndex, Rank},
};

pub(crate) struct Placer {
    request: Request,
    /// Nodes on which this spec keeps failing.
    failing: BTreeMap<NodeId, u64>,
    root: Branch,
    /// Set once no node can take a further task of the group: nothing is freed while it is placed.
    exhausted: Option<String>,
}

enum Branch {
    /// All ready nodes, read from the index as needed.
    Whole {
        cursor: Option<(u64, NodeId)>,
        /// Nodes that have tasks of the service, or keep failing; read when the others are used up.
        rest: Option<BinaryHeap<Reverse<Rank>>>,
    },
    Leaf(BinaryHeap<Reverse<Rank>>),
    Split(Vec<Limb>),
}

struct Limb {
    /// Value of the label that the nodes below here share; empty when they have none.
    value: String,
    /// Tasks of the service below here.
    tasks: u64,
    branch: Branch,
}

impl Placer {
    pub(crate) fn new(index: &NodeIndex, request: Request, now: Timestamp) -> Self {
        let failing = index.failing(request.service, request.spec_version, now);
        let root = if request.spread.is_empty() {
            Branch::Whole {
                cursor: None,
                rest: None,
            }
        } else {
            let nodes = index.ready_after(None).map(|(_, node)| node).collect();
            split(index, &request, &failing, nodes, &request.spread)
        };
        Self {
            request,
            failing,
            root,
            exhausted: None,
        }
    }

    /// Chooses a node for `task`, which asks for what the group asks for, and notes the claim in the
    /// index. The error is Swarm's sentence.
    pub(crate) fn place(&mut self, index: &mut NodeIndex, task: &mut Task) -> Result<(), String> {
        if let Some(reason) = &self.exhausted {
            return Err(reason.clone());
        }
        let Some(node) = self.root.take(index, &self.request, &self.failing) else {
            let why = explain(&self.request, index, index.nodes());
            let reason = if why.is_empty() {
                "no suitable node".to_owned()
            } else {
                format!("no suitable node ({why})")
            };
            self.exhausted = Some(reason.clone());
            return Err(reason);
        };
        assign(index, &self.request, task, node);
        let failures = self.failing.get(&node).copied().unwrap_or(0);
        let rank = index.rank(self.request.service, node, failures);
        let path = index
            .get(node)
            .map(|info| spread_values(&info.node, &self.request.spread))
            .unwrap_or_default();
        self.root.put_back(rank, &path);
        Ok(())
    }

    /// Places a task that may run on `node` alone. The error has no "no suitable node" around it.
    pub(crate) fn place_on(
        index: &mut NodeIndex,
        task: &mut Task,
        node: NodeId,
    ) -> Result<(), String> {
        let request = Request::of(task);
        let Some(info) = index.get(node) else {
            return Err("the node has left the swarm".to_owned());
        };
        if request.rejected_by(index, info).is_some() {
            return Err(explain(&request, index, std::iter::once(info)));
        }
        assign(index, &request, task, node);
        Ok(())
    }
}

fn assign(index: &mut NodeIndex, request: &Request, task: &mut Task, node: NodeId) {
    task.generic = index
        .get(node)
        .and_then(|info| info.claim_generic(request.generic()))
        .unwrap_or_default();
    task.node = Some(node);
    index.set_task(task);
}

impl Branch {
    /// The best node that passes all filters; a node that fails one is not asked again, because
    /// nothing is freed while a group is placed.
    fn take(
        &mut self,
        index: &NodeIndex,
        request: &Request,
        failing: &BTreeMap<NodeId, u64>,
    ) -> Option<NodeId> {
        match self {
            Self::Whole { cursor, rest } => {
                if rest.is_none() {
                    for key in index.ready_after(*cursor) {
                        *cursor = Some(key);
                        let node = key.1;
                        let untouched = index.count_of(request.service, node) == 0
                            && !failing.contains_key(&node);
                        let info = index.get(node).filter(|_| untouched);
                        if info.is_some_and(|info| request.rejected_by(index, info).is_none()) {
                            return Some(node);
                        }
                    }
                }
                let rest = rest.get_or_insert_with(|| {
                    let others = index
                        .nodes_of(request.service)
                        .chain(failing.keys().copied());
                    let nodes: std::collections::BTreeSet<NodeId> = others.collect();
                    ranked(index, request, failing, nodes)
                });
                pop_fitting(index, request, rest)
            }
            Self::Leaf(heap) => pop_fitting(index, request, heap),
            Self::Split(limbs) => {
                // Fewest tasks first; a limb that is full gives its share to the next.
                let mut order: Vec<usize> = (0..limbs.len()).collect();
                order.sort_by_key(|at| limbs[*at].tasks);
                order.into_iter().find_map(|at| {
                    let node = limbs[at].branch.take(index, request, failing)?;
                    limbs[at].tasks += 1;
                    Some(node)
                })
            }
        }
    }

    /// A node that was taken may be taken again, with its new rank.
    fn put_back(&mut self, rank: Rank, path: &[String]) {
        match self {
            // Not ranked yet; it will be found with the others.
            Self::Whole { rest: None, .. } => {}
            Self::Whole {
                rest: Some(heap), ..
            }
            | Self::Leaf(heap) => heap.push(Reverse(rank)),
            Self::Split(limbs) => {
                if let Some((value, deeper)) = path.split_first()
                    && let Some(limb) = limbs.iter_mut().find(|limb| limb.value == *value)
                {
                    limb.branch.put_back(rank, deeper);
                }
            }
        }
    }
}

fn pop_fitting(
    index: &NodeIndex,
    request: &Request,
    heap: &mut BinaryHeap<Reverse<Rank>>,
) -> Option<NodeId> {
    while let Some(Reverse(rank)) = heap.pop() {
        let info = index.get(rank.node);
        if info.is_some_and(|info| request.rejected_by(index, info).is_none()) {
            return Some(rank.node);
        }
    }
    None
}

fn ranked(
    index: &NodeIndex,
    request: &Request,
    failing: &BTreeMap<NodeId, u64>,
    nodes: impl IntoIterator<Item = NodeId>,
) -> BinaryHeap<Reverse<Rank>> {
    let rank = |node: NodeId| {
        let failures = failing.get(&node).copied().unwrap_or(0);
        Reverse(index.rank(request.service, node, failures))
    };
    nodes.into_iter().map(rank).collect()
}

/// Splits `nodes` by the values of the first label of `spread`, and each part by the rest.
fn split(
    index: &NodeIndex,
    request: &Request,
    failing: &BTreeMap<NodeId, u64>,
    nodes: Vec<NodeId>,
    spread: &[String],
) -> Branch {
    let Some((label, deeper)) = spread.split_first() else {
        return Branch::Leaf(ranked(index, request, failing, nodes));
    };
    let mut parts: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
    for id in nodes {
        if let Some(info) = index.get(id) {
            let value = spread_value(&info.node, label);
            parts.entry(value).or_default().push(id);
        }
    }
    let limb = |(value, nodes): (String, Vec<NodeId>)| Limb {
        value,
        tasks: nodes
            .iter()
            .map(|node| index.count_of(request.service, *node))
            .sum(),
        branch: split(index, request, failing, nodes, deeper),
    };
    Branch::Split(parts.into_iter().map(limb).collect())
}

fn spread_values(node: &Node, spread: &[String]) -> Vec<String> {
    spread
        .iter()
        .map(|label| spread_value(node, label))
        .collect()
}

/// The node's value of a spread descriptor; other descriptors than labels do not tell nodes apart.
fn spread_value(node: &Node, descriptor: &str) -> String {
    let lower = descriptor.to_ascii_lowercase();
    let value = if lower.starts_with("node.labels.") {
        node.spec.labels.get(&descriptor["node.labels.".len()..])
    } else if lower.starts_with("engine.labels.") {
        let label = &descriptor["engine.labels.".len()..];
        node.description.engine_labels.get(label)
    } else {
        None
    };
    value.cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use shoal_raft_store::State;
    use shoal_types::{
        Slot, Version,
        spec::{Availability, PortConfig, Protocol, PublishMode, Resources},
    };

    use super::*;
    use crate::testing;

    fn index(nodes: u8) -> NodeIndex {
        let mut index = NodeIndex::new(&State::default());
        for n in 1..=nodes {
            index.set_node(&Arc::new(testing::node(u32::from(n))));
        }
        index
    }

    /// Places `count` tasks like `task` and gives each one's node, or why it has none.
    fn place(index: &mut NodeIndex, task: &Task, count: u32) -> Vec<Result<NodeId, String>> {
        let mut placer = Placer::new(index, Request::of(task), Timestamp::EPOCH);
        (0..count)
            .map(|n| {
                let mut task = task.clone();
                task.id = testing::task_id(1000 + n);
                task.place = shoal_types::object::TaskPlace::Slot(Slot(u64::from(n) + 1));
                placer.place(index, &mut task)?;
                Ok(task.node.expect("placed"))
            })
            .collect()
    }

    #[test]
    fn replicas_are_spread_evenly_and_the_emptiest_node_comes_first() {
        let mut index = index(3);
        let other = testing::task(1, 9);
        place(&mut index, &other, 1).pop().unwrap().unwrap();
        let mut task = testing::task(2, 8);
        task.id = testing::task_id(5000);
        let mut counts = BTreeMap::new();
        let mut placer = Placer::new(&index, Request::of(&task), Timestamp::EPOCH);
        let mut first = None;
        for n in 0..7 {
            task.id = testing::task_id(5000 + n);
            placer.place(&mut index, &mut task).unwrap();
            let node = task.node.unwrap();
            first.get_or_insert(node);
            *counts.entry(node).or_insert(0) += 1;
        }
        assert_eq!(
            first,
            Some(testing::node_id(2)),
            "node 1 has a task of another service"
        );
        let mut counts: Vec<i32> = counts.into_values().collect();
        counts.sort_unstable();
        assert_eq!(counts, [2, 2, 3]);
    }

    #[test]
    fn tasks_are_spread_over_label_values_before_nodes() {
        let mut index = NodeIndex::new(&State::default());
        for (n, zone) in [(1, "a"), (2, "b"), (3, "b"), (4, "b")] {
            let mut node = testing::node(n);
            node.spec.labels.insert("zone".to_owned(), zone.to_owned());
            index.set_node(&Arc::new(node));
        }
        let mut task = testing::task(1, 1);
        task.spec.placement.spread = vec!["node.labels.zone".to_owned()];
        let nodes = place(&mut index, &task, 6);
        let on_a = nodes.iter().filter(|n| **n == Ok(testing::node_id(1)));
        assert_eq!(on_a.count(), 3);
    }

    #[test]
    fn the_explanation_is_swarms_with_the_most_frequent_reason_first() {
        let mut index = index(3);
        let mut drained = testing::node(4);
        drained.spec.availability = Availability::Drain;
        index.set_node(&Arc::new(drained));
        let mut task = testing::task(1, 1);
        task.spec.reservations = Resources {
            memory_bytes: 1 << 50,
            ..Resources::default()
        };
        assert_eq!(
            place(&mut index, &task, 1),
            [Err("no suitable node (insufficient resources on 3 nodes; \
                  1 node not available for new tasks)"
                .to_owned())]
        );
        assert_eq!(
            place(&mut NodeIndex::default(), &task, 1),
            [Err("no suitable node".to_owned())]
        );
        let mut task = testing::task(1, 1);
        task.spec.placement.constraints = vec!["node.role==worker".to_owned()];
        assert_eq!(
            Placer::place_on(&mut index, &mut task, testing::node_id(1)),
            Err("scheduling constraints not satisfied on 1 node".to_owned())
        );
    }

    #[test]
    fn reservations_host_ports_and_the_replica_limit_are_kept() {
        let mut task = testing::task(1, 1);
        task.spec.reservations.nano_cpus = 1_500_000_000;
        let placed = place(&mut index(2), &task, 3);
        assert!(placed[0].is_ok() && placed[1].is_ok(), "{placed:?}");
        assert_eq!(
            placed[2],
            Err("no suitable node (insufficient resources on 2 nodes)".to_owned())
        );

        let mut task = testing::task(1, 1);
        task.endpoint.ports = vec![PortConfig {
            name: String::new(),
            protocol: Protocol::Tcp,
            target: 80,
            published: 8080,
            mode: PublishMode::Host,
        }];
        let placed = place(&mut index(1), &task, 2);
        assert_eq!(
            placed[1],
            Err("no suitable node (host-mode port already in use on 1 node)".to_owned())
        );

        let mut task = testing::task(1, 1);
        task.spec.placement.max_replicas_per_node = 1;
        let placed = place(&mut index(2), &task, 3);
        assert_eq!(
            placed[2],
            Err("no suitable node (max replicas per node limit exceed)".to_owned())
        );
    }

    #[test]
    fn a_node_where_the_spec_keeps_failing_comes_last() {
        let mut index = index(2);
        for n in 0..5 {
            let mut failed = testing::task(1, 100 + n);
            failed.node = Some(testing::node_id(1));
            failed.status.state = shoal_types::TaskState::Failed;
            failed.status.at = Timestamp::from_unix(10, 0);
            index.set_task(&failed);
        }
        let task = testing::task(1, 1);
        let soon = Timestamp::from_unix(20, 0);
        let mut placer = Placer::new(&index, Request::of(&task), soon);
        for n in 0..3 {
            let mut task = task.clone();
            task.id = testing::task_id(500 + n);
            placer.place(&mut index, &mut task).unwrap();
            assert_eq!(task.node, Some(testing::node_id(2)));
        }
        let late = Timestamp::from_unix(10 + 300, 0);
        let mut placer = Placer::new(&index, Request::of(&task), late);
        let mut task = task.clone();
        placer.place(&mut index, &mut task).unwrap();
        assert_eq!(task.node, Some(testing::node_id(1)));
        let mut other_spec = testing::task(1, 2);
        other_spec.spec_version = Version(77);
        let failing = index.failing(other_spec.service, other_spec.spec_version, soon);
        assert!(failing.is_empty(), "an update starts with a clean sheet");
    }

    #[test]
    fn claims_are_idempotent_and_are_given_back() {
        let mut index = index(1);
        let mut task = testing::task(1, 1);
        task.spec.reservations.nano_cpus = 2_000_000_000;
        task.node = Some(testing::node_id(1));
        index.set_task(&task);
        index.set_task(&task);
        assert_eq!(index.nodes().next().unwrap().nano_cpus_used, 2_000_000_000);
        task.status.state = shoal_types::TaskState::Complete;
        index.set_task(&task);
        index.remove_task(task.id);
        assert_eq!(index.nodes().next().unwrap().nano_cpus_used, 0);
        assert_eq!(index.count_of(task.service, testing::node_id(1)), 0);
    }

    /// Nanoseconds for one placement of a ten-replica service among `nodes` nodes.
    fn cost_per_placement(nodes: u32) -> f64 {
        let mut index = NodeIndex::new(&State::default());
        for n in 1..=nodes {
            index.set_node(&Arc::new(testing::node(n)));
        }
        let best = (0..5).map(|round| {
            let started = Instant::now();
            for service in 0..100 {
                let task = testing::task(round * 1000 + service, 1);
                let mut placer = Placer::new(&index, Request::of(&task), Timestamp::EPOCH);
                for n in 0..10 {
                    let mut task = task.clone();
                    task.id = testing::task_id(round * 100_000 + service * 100 + n);
                    placer.place(&mut index, &mut task).unwrap();
                }
            }
            started.elapsed().as_secs_f64() * 1e9 / 1000.0
        });
        best.fold(f64::MAX, f64::min)
    }

    #[test]
    fn the_cost_of_a_placement_hardly_grows_with_the_number_of_nodes() {
        let (small, large) = (cost_per_placement(100), cost_per_placement(10_000));
        println!("per placement: {small:.0} ns at 100 nodes, {large:.0} ns at 10,000");
        assert!(large < small * 5.0, "{small:.0} ns became {large:.0} ns");
    }
}
