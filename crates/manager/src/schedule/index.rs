//! What the scheduler remembers of the nodes: who is ready, what is claimed, what failed lately.
//!
//! Kept up to date task by task and node by node, so that one placement never reads all tasks.
//! Telling it the same thing twice changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use shoal_raft_store::State;
use shoal_types::{
    NodeId, ServiceId, TaskId, TaskState, Timestamp, Version,
    object::{Node, NodeState, Task},
    spec::{Availability, GenericResource, PortConfig, Protocol, PublishMode},
};

/// Failures of a service on a node count for this long against the node.
const FAILURE_WINDOW: Duration = Duration::from_mins(5);
/// So many failures within the window move a node behind all that have fewer.
const FAILURE_LIMIT: u64 = 5;

#[derive(Debug, Default)]
pub(crate) struct NodeIndex {
    nodes: BTreeMap<NodeId, NodeInfo>,
    /// Nodes that take new tasks, by how many they have.
    ready: BTreeSet<(u64, NodeId)>,
    /// What each unfinished task takes of its node.
    claims: HashMap<TaskId, Claim>,
    /// Nodes with at least one wanted task of the service.
    by_service: HashMap<ServiceId, BTreeMap<NodeId, u64>>,
    failures: HashMap<(ServiceId, Version), Vec<Failure>>,
}

#[derive(Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    pub(crate) nano_cpus_used: u64,
    pub(crate) memory_used: u64,
    pub(crate) generic_used: Vec<GenericResource>,
    ports: BTreeMap<(Protocol, u16), u32>,
    /// Wanted tasks.
    total: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct Claim {
    node: NodeId,
    service: ServiceId,
    /// Still wanted, so that it counts in the rank; a task that is stopping only holds its resources.
    wanted: bool,
    nano_cpus: u64,
    memory: u64,
    /// Most tasks take none.
    special: Option<Box<Special>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Special {
    generic: Vec<GenericResource>,
    ports: Vec<(Protocol, u16)>,
}

#[derive(Debug)]
struct Failure {
    task: TaskId,
    node: NodeId,
    at: Timestamp,
}

/// Which of two nodes is better: the lesser one. Ends in the node's id, so ties never depend on chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Recent failures of the same service and spec, 0 below [`FAILURE_LIMIT`].
    failures: u64,
    /// Tasks of the same service.
    service: u64,
    /// All tasks.
    total: u64,
    pub(crate) node: NodeId,
}

impl NodeIndex {
    pub(crate) fn new(state: &State) -> Self {
        let mut index = Self::default();
        for node in state.nodes() {
            index.set_node(node);
        }
        for task in state.tasks() {
            index.set_task(task);
        }
        index
    }

    pub(crate) fn set_node(&mut self, node: &Arc<Node>) {
        let info = self.nodes.entry(node.id).or_insert_with(|| NodeInfo {
            node: node.clone(),
            nano_cpus_used: 0,
            memory_used: 0,
            generic_used: Vec::new(),
            ports: BTreeMap::new(),
            total: 0,
        });
        info.node = node.clone();
        let key = (info.total, node.id);
        if takes_new_tasks(node) {
            self.ready.insert(key);
        } else {
            self.ready.remove(&key);
        }
    }

    pub(crate) fn remove_node(&mut self, id: NodeId) {
        if let Some(info) = self.nodes.remove(&id) {
            self.ready.remove(&(info.total, id));
        }
    }

    /// Notes what `task` takes of its node now; nothing, once it has ended.
    pub(crate) fn set_task(&mut self, task: &Task) {
        let claim = Claim::of(task);
        if claim.is_some() && self.claims.get(&task.id) == claim.as_ref() {
            return;
        }
        self.remove_task(task.id);
        if let Some(node) = task.node
            && matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
        {
            self.note_failure(task, node);
        }
        if let Some(claim) = claim {
            self.claim(task.id, claim);
        }
    }

    pub(crate) fn remove_task(&mut self, id: TaskId) {
        let Some(claim) = self.claims.remove(&id) else {
            return;
        };
        if claim.wanted {
            let nodes = self.by_service.entry(claim.service).or_default();
            if let Some(count) = nodes.get_mut(&claim.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&claim.node);
                }
            }
            if nodes.is_empty() {
                self.by_service.remove(&claim.service);
            }
        }
        let Some(info) = self.nodes.get_mut(&claim.node) else {
            return;
        };
        info.nano_cpus_used = info.nano_cpus_used.saturating_sub(claim.nano_cpus);
        info.memory_used = info.memory_used.saturating_sub(claim.memory);
        if let Some(special) = claim.special {
            info.give_back(&special);
        }
        if claim.wanted {
            let ready = self.ready.remove(&(info.total, claim.node));
            info.total -= 1;
            if ready {
                self.ready.insert((info.total, claim.node));
            }
        }
    }

    fn claim(&mut self, task: TaskId, claim: Claim) {
        // A node whose removal was seen before its tasks' end.
        let Some(info) = self.nodes.get_mut(&claim.node) else {
            return;
        };
        info.nano_cpus_used += claim.nano_cpus;
        info.memory_used += claim.memory;
        if let Some(special) = &claim.special {
            info.generic_used.extend(special.generic.iter().cloned());
            for port in &special.ports {
                *info.ports.entry(*port).or_default() += 1;
            }
        }
        if claim.wanted {
            let ready = self.ready.remove(&(info.total, claim.node));
            info.total += 1;
            if ready {
                self.ready.insert((info.total, claim.node));
            }
            let nodes = self.by_service.entry(claim.service).or_default();
            *nodes.entry(claim.node).or_default() += 1;
        }
        self.claims.insert(task, claim);
    }

    fn note_failure(&mut self, task: &Task, node: NodeId) {
        let failures = self
            .failures
            .entry((task.service, task.spec_version))
            .or_default();
        if !failures.iter().any(|failure| failure.task == task.id) {
            let newest = task.status.at;
            failures.retain(|failure| newest.since(failure.at) < FAILURE_WINDOW);
            failures.push(Failure {
                task: task.id,
                node,
                at: newest,
            });
        }
    }

    pub(crate) fn forget_service(&mut self, service: ServiceId) {
        self.failures.retain(|(id, _), _| *id != service);
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&NodeInfo> {
        self.nodes.get(&node)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values()
    }

    /// Nodes that take new tasks, the emptiest first, from after `cursor` on.
    pub(crate) fn ready_after(
        &self,
        cursor: Option<(u64, NodeId)>,
    ) -> impl Iterator<Item = (u64, NodeId)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = cursor.map_or(Unbounded, Excluded);
        self.ready.range((start, Unbounded)).copied()
    }

    /// Nodes that have wanted tasks of the service.
    pub(crate) fn nodes_of(&self, service: ServiceId) -> impl Iterator<Item = NodeId> {
        self.by_service
            .get(&service)
            .into_iter()
            .flat_map(|nodes| nodes.keys().copied())
    }

    pub(crate) fn count_of(&self, service: ServiceId, node: NodeId) -> u64 {
        let nodes = self.by_service.get(&service);
        nodes
            .and_then(|nodes| nodes.get(&node))
            .copied()
            .unwrap_or(0)
    }

    /// Nodes on which tasks of this spec have failed so often that others come first.
    pub(crate) fn failing(
        &self,
        service: ServiceId,
        spec: Version,
        now: Timestamp,
    ) -> BTreeMap<NodeId, u64> {
        let mut counts = BTreeMap::new();
        for failure in self.failures.get(&(service, spec)).into_iter().flatten() {
            if now.since(failure.at) < FAILURE_WINDOW {
                *counts.entry(failure.node).or_default() += 1;
            }
        }
        counts.retain(|_, count| *count >= FAILURE_LIMIT);
        counts
    }

    pub(crate) fn rank(&self, service: ServiceId, node: NodeId, failures: u64) -> Rank {
        Rank {
            failures,
            service: self.count_of(service, node),
            total: self.nodes.get(&node).map_or(0, |info| info.total),
            node,
        }
    }
}

impl Claim {
    /// What `task` takes of its node; `None` when it has none, or has ended.
    fn of(task: &Task) -> Option<Self> {
        let node = task.node.filter(|_| !task.status.state.is_terminal())?;
        let special = Special {
            generic: task.generic.clone(),
            ports: host_ports(&task.endpoint.ports),
        };
        let none = special.generic.is_empty() && special.ports.is_empty();
        Some(Self {
            node,
            service: task.service,
            wanted: task.desired.wants_run(),
            nano_cpus: task.spec.reservations.nano_cpus,
            memory: task.spec.reservations.memory_bytes,
            special: (!none).then(|| Box::new(special)),
        })
    }
}

impl NodeInfo {
    fn give_back(&mut self, special: &Special) {
        for generic in &special.generic {
            if let Some(at) = self.generic_used.iter().position(|used| used == generic) {
                self.generic_used.swap_remove(at);
            }
        }
        for port in &special.ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }

    pub(crate) fn uses_port(&self, port: (Protocol, u16)) -> bool {
        self.ports.contains_key(&port)
    }

    /// The named or counted things of the node that satisfy `wanted` and that nobody has.
    pub(crate) fn claim_generic(&self, wanted: &[GenericResource]) -> Option<Vec<GenericResource>> {
        let mut claimed = Vec::new();
        for want in wanted {
            let (kind, mut missing) = match want {
                GenericResource::Discrete { kind, count } => (kind, *count),
                GenericResource::Named { kind, .. } => (kind, 1),
            };
            let mut pool: u64 = 0;
            for have in &self.node.description.resources.generic {
                match have {
                    GenericResource::Named { kind: k, .. } if k == kind => {
                        let free = !self.generic_used.contains(have) && !claimed.contains(have);
                        if free && missing > 0 {
                            claimed.push(have.clone());
                            missing -= 1;
                        }
                    }
                    GenericResource::Discrete { kind: k, count } if k == kind => pool += count,
                    _other_kind => {}
                }
            }
            let counted = |list: &[GenericResource]| {
                let counts = list.iter().map(|used| match used {
                    GenericResource::Discrete { kind: k, count } if k == kind => *count,
                    _other => 0,
                });
                counts.sum::<u64>()
            };
            let used = counted(&self.generic_used) + counted(&claimed);
            if missing > pool.saturating_sub(used) {
                return None;
            }
            if missing > 0 {
                claimed.push(GenericResource::Discrete {
                    kind: kind.clone(),
                    count: missing,
                });
            }
        }
        Some(claimed)
    }
}

/// Ports that the task takes on its node and that it named; those the node chooses cannot conflict.
pub(crate) fn host_ports(ports: &[PortConfig]) -> Vec<(Protocol, u16)> {
    let host = ports
        .iter()
        .filter(|p| p.mode == PublishMode::Host && p.published != 0);
    host.map(|p| (p.protocol, p.published)).collect()
}

pub(crate) fn takes_new_tasks(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}
