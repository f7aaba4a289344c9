//! What must hold at every moment, looked at as each entry of the log takes effect for the first time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use shoal_raft_store::{Change, Command, ObjectChange, State};
use shoal_types::{
    NetworkId, NodeId, ServiceId, TaskId, Timestamp,
    object::{NodeState, Service, Task, TaskPlace},
    spec::{PublishMode, UpdateOrder},
};

type Wrong = (&'static str, String);

/// What an entry of the log was: its term, the proposal in it, and whether it took effect.
type Entry = (u64, Option<u64>, bool);

/// The one history that all managers must agree on.
#[derive(Debug)]
pub(crate) struct Witness {
    log: BTreeMap<u64, Entry>,
    last: u64,
    /// Versions that changed something.
    changed: BTreeSet<u64>,
    state: State,
    /// Tasks of which nobody can say whether they run: their node was given up or removed, or a manager
    /// ended them.
    doubtful: BTreeSet<TaskId>,
    start_first: BTreeSet<ServiceId>,
    /// Who has each address, by what the changes say rather than by the state's own index.
    addresses: BTreeMap<(NetworkId, Ipv4Addr), String>,
    removed: Vec<NodeId>,
}

impl Witness {
    pub(crate) fn new(state: State) -> Self {
        Self {
            log: BTreeMap::new(),
            changed: BTreeSet::new(),
            last: state.version().0,
            state,
            doubtful: BTreeSet::new(),
            start_first: BTreeSet::new(),
            addresses: BTreeMap::new(),
            removed: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn doubts(&self, task: &TaskId) -> bool {
        self.doubtful.contains(task)
    }

    /// How many programs may run at once in each place of the service.
    pub(crate) fn at_once(&self, service: ServiceId) -> usize {
        if self.start_first.contains(&service) {
            2
        } else {
            1
        }
    }

    pub(crate) fn take_removed(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.removed)
    }

    /// The proposal that took effect as `version`, if one did.
    pub(crate) fn effect(&self, version: u64) -> Option<u64> {
        let (_, id, effective) = self.log.get(&version)?;
        id.filter(|_| *effective)
    }

    /// The entry was not only accepted, it made a difference.
    pub(crate) fn changed(&self, version: u64) -> bool {
        self.changed.contains(&version)
    }

    /// A manager has applied the entry at `index`; `changes` are `None` when it was refused.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the parts of one moment"
    )]
    pub(crate) fn commit(
        &mut self,
        index: u64,
        term: u64,
        id: Option<u64>,
        command: Option<&Command>,
        changes: Option<&[ObjectChange]>,
        state: &State,
        _now: Timestamp,
    ) -> Option<Wrong> {
        let entry = (term, id, changes.is_some());
        if let Some(before) = self.log.get(&index) {
            return (*before != entry).then(|| {
                let text = format!("at {index} there was {before:?}, now there is {entry:?}");
                ("one history", text)
            });
        }
        if index != self.last + 1 {
            return Some(("one history", format!("{index} follows {}", self.last)));
        }
        self.last = index;
        self.log.insert(index, entry);
        self.state = state.clone();
        if changes.is_some_and(|changes| !changes.is_empty()) {
            self.changed.insert(index);
        }
        if changes.is_some() {
            for change in command.iter().flat_map(|command| &command.changes) {
                self.note_doubts(change);
            }
        }
        changes
            .into_iter()
            .flatten()
            .find_map(|change| self.check(change))
    }

    fn note_doubts(&mut self, change: &Change) {
        match change {
            Change::SetNodeStatus { id, status } if status.state == NodeState::Down => {
                let lost = self.state.tasks_on(*id).map(|task| task.id);
                self.doubtful.extend(lost);
            }
            Change::RemoveNode { id } => {
                let lost = self.state.tasks_on(*id).map(|task| task.id);
                self.doubtful.extend(lost);
                self.removed.push(*id);
            }
            Change::SetTaskStatus {
                id,
                reporter: None,
                status,
            } if status.state.is_terminal() => {
                self.doubtful.insert(*id);
            }
            Change::CreateService { id, spec } | Change::CreateServiceWith { id, spec, .. }
                if spec.update.order == UpdateOrder::StartFirst =>
            {
                self.start_first.insert(*id);
            }
            _other => {}
        }
    }

    fn check(&mut self, change: &ObjectChange) -> Option<Wrong> {
        match change {
            ObjectChange::Task { before, after } => {
                let own = match (before, after) {
                    (Some(before), Some(after)) => only_forward(before, after),
                    (None, Some(after)) => self.born_right(after),
                    _gone => None,
                };
                let addresses = self.give(
                    before.iter().flat_map(|task| held(task)).collect(),
                    after.iter().flat_map(|task| held(task)).collect(),
                    &before
                        .as_ref()
                        .or(after.as_ref())
                        .map_or_else(String::new, |t| t.id.to_string()),
                );
                let places = after.as_ref().and_then(|task| self.place_of(task));
                let ports = after.as_ref().and_then(|task| self.host_ports_of(task));
                own.or(addresses).or(places).or(ports)
            }
            ObjectChange::Service { before, after } => {
                let addresses = self.give(
                    before.iter().flat_map(|service| vips(service)).collect(),
                    after.iter().flat_map(|service| vips(service)).collect(),
                    &before
                        .as_ref()
                        .or(after.as_ref())
                        .map_or_else(String::new, |s| s.id.to_string()),
                );
                addresses.or_else(|| after.as_ref().and_then(|service| self.ports_of(service)))
            }
            _other => None,
        }
    }

    /// A task is made from what its service asks for at that moment.
    fn born_right(&self, task: &Task) -> Option<Wrong> {
        let service = self.state.service(&task.service)?;
        let right = task.spec_version != service.spec_version || task.spec == service.spec.task;
        (!right).then(|| {
            let text = format!("{} claims version {}", task.name(), task.spec_version);
            ("tasks are of their spec", text)
        })
    }

    /// An address has one owner at a time.
    fn give(
        &mut self,
        before: Vec<(NetworkId, Ipv4Addr)>,
        after: Vec<(NetworkId, Ipv4Addr)>,
        owner: &str,
    ) -> Option<Wrong> {
        for at in before {
            if self.addresses.get(&at).is_some_and(|of| of == owner) {
                self.addresses.remove(&at);
            }
        }
        for at in after {
            if let Some(other) = self.addresses.insert(at, owner.to_owned())
                && other != owner
            {
                let text = format!("{} of network {} is {other}'s and {owner}'s", at.1, at.0);
                return Some(("one owner of an address", text));
            }
        }
        None
    }

    /// A place is never to be filled by more tasks at once than the order of updates allows.
    fn place_of(&self, task: &Task) -> Option<Wrong> {
        let fills = |task: &Task| {
            task.desired.wants_run()
                && task.desired != shoal_types::Desired::Ready
                && !task.status.state.is_terminal()
                && !self.doubts(&task.id)
        };
        if !fills(task) {
            return None;
        }
        let same = |other: &&Arc<Task>| other.place == task.place && fills(other);
        let filling: Vec<TaskId> = self
            .state
            .tasks_of(task.service)
            .filter(same)
            .map(|task| task.id)
            .collect();
        let allowed = self.at_once(task.service);
        // Places of a node that left are another's.
        let here = match &task.place {
            TaskPlace::Slot(_) => true,
            TaskPlace::Node(node) => self.state.node(node).is_some(),
        };
        (here && filling.len() > allowed).then(|| {
            let text = format!("{:?} of {}: {filling:?}", task.place, task.service_name);
            ("one task in each place", text)
        })
    }

    /// Two tasks that are to run do not publish one port on one node.
    fn host_ports_of(&self, task: &Task) -> Option<Wrong> {
        let node = task.node?;
        let ports = |task: &Task| -> Vec<_> {
            let ports = task.endpoint.ports.iter();
            ports
                .filter(|port| port.mode == PublishMode::Host && port.published != 0)
                .map(|port| (port.protocol, port.published))
                .collect()
        };
        let mine = ports(task);
        let runs = |task: &Task| task.desired.wants_run() && !task.status.state.is_terminal();
        if mine.is_empty() || !runs(task) {
            return None;
        }
        let other = self.state.tasks_on(node).find(|other| {
            other.id != task.id
                && runs(other)
                && ports(other).iter().any(|port| mine.contains(port))
        });
        other.map(|other| {
            let text = format!("{mine:?} on {node}: {} and {}", other.name(), task.name());
            ("one owner of a port", text)
        })
    }

    /// No two services publish one port through the ingress network.
    fn ports_of(&self, service: &Service) -> Option<Wrong> {
        let ports = |service: &Service| -> Vec<_> {
            let ports = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
            ports
                .filter(|port| port.mode == PublishMode::Ingress && port.published != 0)
                .map(|port| (port.protocol, port.published))
                .collect()
        };
        let mine = ports(service);
        let other = self.state.services().find(|other| {
            other.id != service.id && ports(other).iter().any(|port| mine.contains(port))
        });
        other.map(|other| {
            let text = format!("{mine:?}: {} and {}", other.spec.name, service.spec.name);
            ("one owner of a port", text)
        })
    }
}

/// Nothing about a task ever goes back.
fn only_forward(before: &Task, after: &Task) -> Option<Wrong> {
    let wrong = |what: &str| Some(("status moves up", format!("{what} of {}", after.name())));
    if after.status.state < before.status.state {
        return wrong("the observed state");
    }
    if after.desired < before.desired {
        return wrong("the desired state");
    }
    if before.node.is_some() && after.node != before.node {
        return wrong("the node");
    }
    if before.spec_version != after.spec_version || before.place != after.place {
        return wrong("the spec");
    }
    None
}

fn held(task: &Task) -> Vec<(NetworkId, Ipv4Addr)> {
    if task.status.state.is_terminal() {
        return Vec::new();
    }
    task.attachments
        .iter()
        .map(|a| (a.network, a.addr))
        .collect()
}

fn vips(service: &Service) -> Vec<(NetworkId, Ipv4Addr)> {
    let vips = service
        .endpoint
        .iter()
        .flat_map(|endpoint| &endpoint.virtual_ips);
    vips.map(|vip| (vip.network, vip.addr)).collect()
}
