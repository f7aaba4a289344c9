//! The leader's decisions, all of them, as one pass over what has changed.
//!
//! A pass orchestrates the services that were touched, gives addresses, chooses nodes, and says why
//! where it cannot. Between passes the brain keeps indices that could be rebuilt from the state at any
//! time, and are when a manager becomes leader. It reads no clock and no randomness of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use rand::Rng;
use shoal_raft_store::{Change, Command, ObjectChange, Rejection, State};
use shoal_types::{
    NodeId, ServiceId, TaskId, TaskState, TaskStatus, Timestamp, Version,
    object::{
        EndpointAtBirth, Meta, Node, NodeState, Service, Task, TaskPlace, UpdateState, UpdateStatus,
    },
    spec::ServiceMode,
};

use crate::{
    allocate::Allocator,
    draft::{Draft, new_task_id},
    orchestrate::{self, Action, ServiceView},
    schedule::{NodeIndex, Placer, Request},
};

/// Larger commands would hold up the log; smaller ones would pay for more entries than needed.
const CHANGES_PER_COMMAND: usize = 1000;

/// A pass that has decided this much proposes it before it looks at further services.
const CHANGES_PER_PASS: usize = 8 * CHANGES_PER_COMMAND;

/// A node that has been down for so long will not say any more what became of its tasks.
const ORPHAN_AFTER: Duration = Duration::from_hours(24);

#[derive(Debug, Default)]
pub struct Brain {
    index: NodeIndex,
    allocator: Allocator,
    /// Services to look at in the next pass.
    services: BTreeSet<ServiceId>,
    /// Nodes that changed in a way that may concern their tasks.
    nodes: BTreeSet<NodeId>,
    /// Wanted tasks without a node.
    waiting: BTreeSet<TaskId>,
    /// Services that the allocator could not serve.
    unserved: BTreeSet<ServiceId>,
    /// Something was given back, or a node came: what waits is worth another try.
    retry: bool,
    /// Look at the service again at this time.
    alarms: BTreeSet<(Timestamp, ServiceId)>,
    alarm_of: HashMap<ServiceId, Timestamp>,
    down: BTreeMap<NodeId, Timestamp>,
    /// Since then time has passed evenly, as far as this leader knows: what is dated before it says
    /// nothing about how long ago it was.
    even_since: Option<Timestamp>,
    /// How long the tasks that were seen to end had been running.
    ran: BTreeMap<TaskId, Duration>,
    /// Services that the pass under way has more to decide about than it takes on.
    unfinished: BTreeSet<ServiceId>,
    /// Tasks of the last plan and their services, until it is committed or refused.
    tentative: Vec<(TaskId, ServiceId)>,
    /// What the last plan is about, besides.
    looked_at: (BTreeSet<ServiceId>, BTreeSet<NodeId>),
}

/// What a pass wants done, in this order, and when the next one is due at the latest.
#[derive(Debug, Default)]
pub struct Plan {
    pub commands: Vec<Command>,
    pub wake_at: Option<Timestamp>,
}

impl Brain {
    /// A new leader looks at everything once.
    pub fn new(state: &State) -> Self {
        let mut brain = Self {
            index: NodeIndex::new(state),
            allocator: Allocator::new(state),
            retry: true,
            ..Self::default()
        };
        brain.resync(state);
        brain.waiting = state
            .tasks()
            .filter(|task| waits(task))
            .map(|task| task.id)
            .collect();
        brain
    }

    /// Looks at everything in the next pass.
    pub fn resync(&mut self, state: &State) {
        self.services.extend(state.services().map(|s| s.id));
        self.services.extend(state.tasks().map(|t| t.service));
        self.nodes.extend(state.nodes().map(|n| n.id));
        self.retry = true;
    }

    /// A clock was set forward: how long anything has waited is counted anew.
    pub fn forget_time(&mut self) {
        self.even_since = None;
    }

    /// Takes note of a committed change. Repetition does no harm.
    pub fn observe(&mut self, change: &ObjectChange) {
        self.note(change);
        match change {
            ObjectChange::Task { before, after } => {
                if let Some(task) = after.as_ref().or(before.as_ref())
                    && matters(before.as_deref(), after.as_deref())
                {
                    self.services.insert(task.service);
                }
            }
            ObjectChange::Service { before, after } => {
                if let Some(service) = after.as_ref().or(before.as_ref()) {
                    self.services.insert(service.id);
                }
            }
            ObjectChange::Node { before, after } => {
                if let Some(node) = after.as_ref().or(before.as_ref()) {
                    self.nodes.insert(node.id);
                    self.retry = true;
                }
            }
            ObjectChange::Network { .. } | ObjectChange::Cluster { .. } => self.retry = true,
            ObjectChange::Secret { .. } | ObjectChange::Config { .. } => {}
        }
    }

    /// Keeps the indices in step with a change, committed or drafted.
    fn note(&mut self, change: &ObjectChange) {
        match change {
            ObjectChange::Task { before, after } => self.note_task(before.as_ref(), after.as_ref()),
            ObjectChange::Node { before, after } => match (before, after) {
                (_, Some(node)) => self.index.set_node(node),
                (Some(node), None) => self.index.remove_node(node.id),
                (None, None) => {}
            },
            ObjectChange::Service {
                after: Some(service),
                ..
            } => self.allocator.note_service(service),
            ObjectChange::Service {
                before: Some(service),
                after: None,
            } => {
                self.index.forget_service(service.id);
                self.unserved.remove(&service.id);
                self.retry = true;
            }
            _other => {}
        }
    }

    fn note_task(&mut self, before: Option<&Arc<Task>>, after: Option<&Arc<Task>>) {
        let Some(task) = after else {
            if let Some(task) = before {
                self.index.remove_task(task.id);
                self.waiting.remove(&task.id);
                self.ran.remove(&task.id);
                self.retry = true;
            }
            return;
        };
        self.index.set_task(task);
        self.allocator.note_task(task);
        if waits(task) {
            self.waiting.insert(task.id);
        } else {
            self.waiting.remove(&task.id);
        }
        if task.status.state.is_terminal() {
            let Some(before) = before.filter(|b| !b.status.state.is_terminal()) else {
                return;
            };
            self.retry = true;
            let ran = match before.status.state {
                TaskState::Running => task.meta.updated_at.since(before.meta.updated_at),
                _never => Duration::ZERO,
            };
            self.ran.insert(task.id, ran);
        }
    }

    /// The last plan was refused or may not have been committed: forgets what it assumed, and looks
    /// again at what it was about.
    pub fn revert(&mut self, state: &State) {
        for (id, service) in std::mem::take(&mut self.tentative) {
            self.services.insert(service);
            if let Some(task) = state.task(&id) {
                self.note_task(None, Some(task));
            } else {
                self.index.remove_task(id);
                self.waiting.remove(&id);
            }
        }
        let (services, nodes) = std::mem::take(&mut self.looked_at);
        self.services.extend(services);
        for id in &nodes {
            if let Some(node) = state.node(id) {
                self.index.set_node(node);
            }
            // What its end calls for may have been in the plan.
            self.down.remove(id);
        }
        self.nodes.extend(nodes);
        self.retry = true;
    }

    /// Decides everything that is due at `now`. `first` are changes that the decisions are to see,
    /// such as a node's new status.
    pub fn decide(
        &mut self,
        state: &State,
        first: Vec<Change>,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Plan {
        // Commands never date anything before what is dated already.
        let now = now.max(state.clock());
        self.even_since.get_or_insert(now);
        let mut draft = Draft::new(state.clone(), now);
        self.tentative.clear();
        self.looked_at = Default::default();
        self.allocator.start_pass();
        for change in first {
            if let Ok(changed) = draft.push(change) {
                for change in &changed {
                    self.observe(change);
                }
            }
        }
        self.look_at_nodes(&mut draft);
        self.take_due_alarms(now);
        if self.retry {
            self.services.append(&mut self.unserved);
        }
        let mut fresh = Vec::new();
        while draft.len() + fresh.len() < CHANGES_PER_PASS
            && let Some(id) = self.services.pop_first()
        {
            self.looked_at.0.insert(id);
            self.look_at_service(&mut draft, id, &mut fresh, rng);
        }
        self.place(&mut draft, fresh);
        self.services.append(&mut self.unfinished);
        let more = !self.services.is_empty();
        let wake_at = if more {
            Some(now)
        } else {
            let orphans = self.down.values().map(|since| self.orphans_at(*since));
            let alarms = self.alarms.first().map(|(at, _)| *at);
            orphans.chain(alarms).min()
        };
        Plan {
            commands: into_commands(draft, now),
            wake_at,
        }
    }

    /// Tells whether the change fits the state.
    fn push(&mut self, draft: &mut Draft, change: Change) -> bool {
        let pushed = self.try_push(draft, change);
        if let Err(rejection) = &pushed {
            tracing::debug!(error = %rejection, "a decision does not fit the state");
        }
        pushed.is_ok()
    }

    fn try_push(&mut self, draft: &mut Draft, change: Change) -> Result<(), Rejection> {
        for change in &draft.push(change)? {
            self.note(change);
            if let ObjectChange::Task { before, after } = change
                && let Some(task) = after.as_ref().or(before.as_ref())
            {
                self.tentative.push((task.id, task.service));
            }
        }
        Ok(())
    }

    /// Rejects the tasks that touched nodes may not keep, and finds the services that are concerned.
    fn look_at_nodes(&mut self, draft: &mut Draft) {
        let due: Vec<NodeId> = self
            .down
            .iter()
            .filter(|(_, since)| draft.now >= self.orphans_at(**since))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.down.remove(&id);
            self.looked_at.1.insert(id);
            self.orphan_tasks(draft, id);
        }
        let touched = std::mem::take(&mut self.nodes);
        if touched.is_empty() {
            return;
        }
        for id in touched {
            self.looked_at.1.insert(id);
            let tasks = draft.state.tasks_on(id);
            self.services.extend(tasks.map(|task| task.service));
            let Some(node) = draft.state.node(&id).cloned() else {
                self.down.remove(&id);
                continue;
            };
            if node.status.state == NodeState::Down {
                if self.down.insert(id, node.status.since) == Some(node.status.since) {
                    continue;
                }
            } else {
                self.down.remove(&id);
            }
            self.reject_tasks(draft, &node);
        }
        let everywhere = draft.state.services().filter(|service| {
            matches!(
                service.spec.mode,
                ServiceMode::Global | ServiceMode::GlobalJob
            )
        });
        self.services.extend(everywhere.map(|service| service.id));
    }

    /// When the tasks of a node that has been down since `down` are given up. Clocks that are set, or
    /// differ between leaders, do not shorten the time.
    fn orphans_at(&self, down: Timestamp) -> Timestamp {
        let seen = self.even_since.map_or(down, |even| even.max(down));
        seen.after(ORPHAN_AFTER)
    }

    fn reject_tasks(&mut self, draft: &mut Draft, node: &Node) {
        for id in orchestrate::enforce(&draft.state, node) {
            let status = TaskStatus {
                state: TaskState::Rejected,
                at: draft.now,
                message: orchestrate::REJECTED.to_owned(),
                err: orchestrate::REASON.to_owned(),
                ..TaskStatus::default()
            };
            self.set_status(draft, id, status);
        }
    }

    fn orphan_tasks(&mut self, draft: &mut Draft, node: NodeId) {
        let running: Vec<TaskId> = draft
            .state
            .tasks_on(node)
            .filter(|task| !task.status.state.is_terminal())
            .map(|task| task.id)
            .collect();
        for id in running {
            let status = TaskStatus {
                state: TaskState::Orphaned,
                at: draft.now,
                err: format!("node {node} has been down for 24 hours"),
                ..TaskStatus::default()
            };
            self.set_status(draft, id, status);
        }
    }

    fn set_status(&mut self, draft: &mut Draft, id: TaskId, mut status: TaskStatus) {
        if let Some(task) = draft.state.task(&id) {
            self.services.insert(task.service);
            status.container.clone_from(&task.status.container);
        }
        self.push(
            draft,
            Change::SetTaskStatus {
                id,
                reporter: None,
                status,
            },
        );
    }

    fn take_due_alarms(&mut self, now: Timestamp) {
        while let Some((at, service)) = self.alarms.first().copied()
            && at <= now
        {
            self.alarms.pop_first();
            self.alarm_of.remove(&service);
            self.services.insert(service);
        }
    }

    fn set_alarm(&mut self, service: ServiceId, at: Option<Timestamp>) {
        if let Some(old) = self.alarm_of.remove(&service) {
            self.alarms.remove(&(old, service));
        }
        if let Some(at) = at {
            self.alarms.insert((at, service));
            self.alarm_of.insert(service, at);
        }
    }

    fn look_at_service(
        &mut self,
        draft: &mut Draft,
        id: ServiceId,
        fresh: &mut Vec<Task>,
        rng: &mut impl Rng,
    ) {
        let tasks: Vec<Arc<Task>> = draft.state.tasks_of(id).cloned().collect();
        let Some(service) = draft.state.service(&id).cloned() else {
            self.set_alarm(id, None);
            let plan = orchestrate::decide_removed(&tasks);
            for action in plan.actions {
                self.carry_out(draft, None, action, fresh, rng);
            }
            return;
        };
        let service = self.serve(draft, service);
        let plan = orchestrate::decide(&ServiceView {
            state: &draft.state,
            service: &service,
            tasks,
            now: draft.now,
            even_since: self.even_since.unwrap_or(draft.now),
            ran: &self.ran,
            room: CHANGES_PER_PASS,
        });
        self.set_alarm(id, plan.wake_at);
        if plan.unfinished {
            self.unfinished.insert(id);
        }
        for action in plan.actions {
            self.carry_out(draft, Some(&service), action, fresh, rng);
        }
    }

    /// Gives the service what addresses and ports it lacks.
    fn serve(&mut self, draft: &mut Draft, service: Arc<Service>) -> Arc<Service> {
        let (endpoint, err) = match self.allocator.endpoint(&draft.state, &service) {
            Ok(endpoint) => (Some(endpoint), String::new()),
            Err(err) => (service.endpoint.clone(), err),
        };
        if service.endpoint != endpoint || service.err != err {
            let change = |endpoint, err| Change::SetServiceEndpoint {
                id: service.id,
                spec_version: service.spec_version,
                endpoint,
                err,
            };
            if let Err(rejection) = draft.push(change(endpoint, err)) {
                let err = rejection.to_string();
                if service.err != err {
                    self.push(draft, change(service.endpoint.clone(), err));
                }
            }
        }
        let service = draft.state.service(&service.id).cloned().unwrap_or(service);
        if service.err.is_empty() {
            // Tasks may have been waiting for just this.
            self.retry |= service.endpoint.is_some() && self.unserved.remove(&service.id);
        } else {
            self.unserved.insert(service.id);
        }
        service
    }

    fn carry_out(
        &mut self,
        draft: &mut Draft,
        service: Option<&Service>,
        action: Action,
        fresh: &mut Vec<Task>,
        rng: &mut impl Rng,
    ) {
        let change = match (action, service) {
            (
                Action::Create {
                    place,
                    desired,
                    not_before,
                },
                Some(service),
            ) => {
                fresh.push(Task {
                    id: new_task_id(rng),
                    meta: Meta::default(),
                    service: service.id,
                    service_name: service.spec.name.clone(),
                    place,
                    spec: service.spec.task.clone(),
                    service_labels: service.spec.labels.clone(),
                    spec_version: service.spec_version,
                    node: None,
                    desired,
                    status: TaskStatus {
                        at: draft.now,
                        message: "created".to_owned(),
                        ..TaskStatus::default()
                    },
                    attachments: Vec::new(),
                    endpoint: EndpointAtBirth {
                        mode: service.spec.endpoint.mode,
                        ports: service.spec.endpoint.ports.clone(),
                    },
                    generic: Vec::new(),
                    not_before,
                });
                return;
            }
            (Action::SetUpdate(update), Some(service)) => Change::SetServiceUpdate {
                id: service.id,
                spec_version: service.spec_version,
                update: Some(update),
            },
            (Action::Rollback(update), Some(service)) => {
                self.roll_back(draft, service, update);
                return;
            }
            (Action::SetDesired { task, desired }, _) => {
                Change::SetTaskDesired { id: task, desired }
            }
            (Action::Settle { task }, _) => {
                let status = TaskStatus {
                    state: TaskState::Shutdown,
                    at: draft.now,
                    message: "shutdown before it was assigned".to_owned(),
                    ..TaskStatus::default()
                };
                Change::SetTaskStatus {
                    id: task,
                    reporter: None,
                    status,
                }
            }
            (Action::Forget { task }, _) => Change::RemoveTask { id: task },
            // A service that is gone gets neither tasks nor updates.
            (Action::Create { .. } | Action::SetUpdate(_) | Action::Rollback(_), None) => return,
        };
        self.push(draft, change);
    }

    /// Back to the previous spec; when that is not possible any more the update stops where it is.
    fn roll_back(&mut self, draft: &mut Draft, service: &Service, update: UpdateStatus) {
        // What was decided about the service in this pass may have touched it.
        let current = draft.state.service(&service.id);
        let rollback = Change::RollbackService {
            id: service.id,
            version: current.map_or(service.meta.version, |service| service.meta.version),
            update,
        };
        let Err(rejection) = self.try_push(draft, rollback) else {
            return;
        };
        let paused = UpdateStatus {
            state: UpdateState::Paused,
            started_at: service.update.as_ref().map_or(draft.now, |u| u.started_at),
            completed_at: None,
            message: format!("update paused: it cannot be rolled back: {rejection}"),
        };
        let change = Change::SetServiceUpdate {
            id: service.id,
            spec_version: service.spec_version,
            update: Some(paused),
        };
        self.push(draft, change);
    }

    /// Gives addresses and nodes to the tasks that were just made, and to those that wait when there is
    /// new hope for them.
    fn place(&mut self, draft: &mut Draft, fresh: Vec<Task>) {
        let mut placers = HashMap::new();
        if std::mem::take(&mut self.retry) {
            let waiting: Vec<TaskId> = self.waiting.iter().copied().collect();
            for id in waiting {
                self.advance(draft, id, &mut placers);
            }
        }
        for mut task in fresh {
            self.try_to_allocate(draft, &mut task);
            if task.status.state == TaskState::Pending {
                self.try_to_place(draft.now, &mut task, &mut placers);
            }
            let id = task.id;
            if !self.push(draft, Change::CreateTask(Box::new(task))) {
                self.index.remove_task(id);
            }
        }
    }

    fn advance(
        &mut self,
        draft: &mut Draft,
        id: TaskId,
        placers: &mut HashMap<(ServiceId, Version), Placer>,
    ) {
        let Some(task) = draft.state.task(&id).cloned().filter(|task| waits(task)) else {
            self.waiting.remove(&id);
            return;
        };
        let mut next = (*task).clone();
        if next.status.state == TaskState::New {
            self.try_to_allocate(draft, &mut next);
            if next.status.state == TaskState::Pending {
                let attachments = next.attachments.clone();
                if !self.push(draft, Change::AllocateTask { id, attachments }) {
                    return;
                }
            }
        }
        if next.status.state == TaskState::Pending {
            self.try_to_place(draft.now, &mut next, placers);
            if let Some(node) = next.node {
                let generic = next.generic;
                if !self.push(draft, Change::AssignTask { id, node, generic }) {
                    self.index.remove_task(id);
                }
                return;
            }
        }
        if next.status.err != task.status.err {
            let err = next.status.err;
            self.push(draft, Change::ExplainTask { id, err });
        }
    }

    /// New → Pending, or the reason why not.
    fn try_to_allocate(&mut self, draft: &Draft, task: &mut Task) {
        let service = draft.state.service(&task.service);
        let unserved = service.map_or("", |service| service.err.as_str());
        if !unserved.is_empty() {
            unserved.clone_into(&mut task.status.err);
            return;
        }
        let ports = &task.endpoint.ports;
        match self.allocator.attachments(&draft.state, &task.spec, ports) {
            Ok(attachments) => {
                task.attachments = attachments;
                task.status.state = TaskState::Pending;
                "pending task scheduling".clone_into(&mut task.status.message);
                task.status.err.clear();
            }
            Err(err) => task.status.err = err,
        }
    }

    /// Pending → Assigned, or the reason why not.
    fn try_to_place(
        &mut self,
        now: Timestamp,
        task: &mut Task,
        placers: &mut HashMap<(ServiceId, Version), Placer>,
    ) {
        let placed = match task.place {
            TaskPlace::Node(node) => Placer::place_on(&mut self.index, task, node),
            TaskPlace::Slot(_) => placers
                .entry((task.service, task.spec_version))
                .or_insert_with(|| Placer::new(&self.index, Request::of(task), now))
                .place(&mut self.index, task),
        };
        match placed {
            Ok(()) => {
                task.status.state = TaskState::Assigned;
                task.status.at = now;
                "scheduler assigned task to node".clone_into(&mut task.status.message);
                task.status.err.clear();
                self.tentative.push((task.id, task.service));
            }
            Err(err) => task.status.err = err,
        }
    }
}

/// Cuts the draft into commands.
fn into_commands(draft: Draft, now: Timestamp) -> Vec<Command> {
    let mut changes = draft.into_changes();
    let mut commands = Vec::new();
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().min(CHANGES_PER_COMMAND));
        commands.push(Command { at: now, changes });
        changes = rest;
    }
    commands
}

/// The task wants a node and has none.
fn waits(task: &Task) -> bool {
    task.node.is_none() && task.desired.wants_run() && task.status.state <= TaskState::Pending
}

/// Whether a change of a task can make its service want something. A task on its way up does not,
/// until it runs.
fn matters(before: Option<&Task>, after: Option<&Task>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return true;
    };
    before.desired != after.desired
        || before.node != after.node
        || (before.status.state != after.status.state && after.status.state >= TaskState::Running)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use shoal_types::{Slot, object::NodeStatus, spec::EndpointSpec};

    use super::*;
    use crate::testing;

    fn apply(state: &mut State, changes: Vec<Change>) -> Result<(), Rejection> {
        let version = Version(state.version().0 + 1);
        let at = Timestamp::from_unix(i64::try_from(version.0).unwrap_or(0), 0);
        state.apply(version, &Command { at, changes }).map(drop)
    }

    fn state(replicas: u64) -> State {
        let mut state = State::default();
        let mut changes = testing::cluster_changes();
        changes.push(Change::CreateNode(Box::new(testing::node(1))));
        let mode = ServiceMode::Replicated { replicas };
        changes.push(Change::CreateService {
            id: testing::service_id(1),
            spec: Box::new(testing::service_spec("web", mode)),
        });
        apply(&mut state, changes).expect("fits");
        state
    }

    fn decide(brain: &mut Brain, state: &State) -> Plan {
        let now = Timestamp::from_unix(1000, 0);
        brain.decide(state, Vec::new(), now, &mut StdRng::seed_from_u64(1))
    }

    #[test]
    fn one_command_takes_a_new_service_all_the_way_to_assigned_tasks() {
        let mut state = state(3);
        let plan = decide(&mut Brain::new(&state), &state);
        assert_eq!(plan.commands.len(), 1);
        for command in plan.commands {
            apply(&mut state, command.changes).expect("the plan fits the state it was made on");
        }
        let service = state.service(&testing::service_id(1)).unwrap();
        assert!(service.endpoint.is_some());
        let tasks: Vec<_> = state.tasks().collect();
        assert_eq!(tasks.len(), 3);
        for task in tasks {
            assert_eq!(task.status.state, TaskState::Assigned);
            assert_eq!(task.node, Some(testing::node_id(1)));
            assert_eq!(task.attachments.len(), 1, "in the bridge network");
        }
    }

    #[test]
    fn a_plan_on_a_stale_state_is_refused_without_effect_and_made_again() {
        let mut state = state(3);
        let mut brain = Brain::new(&state);
        let outdated = decide(&mut brain, &state);
        let service = state.service(&testing::service_id(1)).unwrap().clone();
        let mut spec = service.spec.clone();
        spec.task.force_update = 1;
        let update = Change::UpdateServiceSpec {
            id: service.id,
            version: service.meta.version,
            spec: Box::new(spec),
        };
        apply(&mut state, vec![update]).expect("fits");
        let before = state.clone();
        for command in outdated.commands {
            let refused = apply(&mut state, command.changes);
            assert!(
                matches!(refused, Err(Rejection::OutOfSequence { .. })),
                "{refused:?}"
            );
        }
        assert!(state.tasks().eq(before.tasks()));
        brain.revert(&state);
        for command in decide(&mut brain, &state).commands {
            apply(&mut state, command.changes).expect("the new plan fits");
        }
        assert_eq!(state.task_count(), 3);
        let current = state.service(&service.id).unwrap().spec_version;
        assert!(state.tasks().all(|task| task.spec_version == current));
    }

    #[test]
    fn a_rollback_that_is_refused_pauses_the_update_with_the_reason() {
        let mut state = state(1);
        let id = testing::service_id(1);
        let service = state.service(&id).unwrap().clone();
        let mut draft = Draft::new(state.clone(), Timestamp::from_unix(9, 0));
        let update = UpdateStatus {
            state: UpdateState::RollbackStarted,
            started_at: draft.now,
            completed_at: None,
            message: String::new(),
        };
        // It has no previous spec.
        Brain::new(&state).roll_back(&mut draft, &service, update);
        apply(&mut state, draft.into_changes()).expect("fits");
        let update = state.service(&id).unwrap().update.clone().unwrap();
        assert_eq!(update.state, UpdateState::Paused);
        assert!(
            update.message.contains("does not have a previous spec"),
            "{}",
            update.message
        );
    }

    #[test]
    fn a_clock_set_forward_does_not_orphan_the_tasks_of_a_node_that_is_down() {
        let mut state = state(1);
        let mut brain = Brain::new(&state);
        for command in decide(&mut brain, &state).commands {
            apply(&mut state, command.changes).expect("fits");
        }
        let down = Change::SetNodeStatus {
            id: testing::node_id(1),
            status: NodeStatus {
                state: NodeState::Down,
                message: String::new(),
                addr: String::new(),
                since: Timestamp::from_unix(1000, 0),
            },
        };
        apply(&mut state, vec![down]).expect("fits");
        let orphaned = |brain: &mut Brain, hours: u64| {
            let now = Timestamp::from_unix(1000, 0).after(Duration::from_hours(hours));
            let plan = brain.decide(&state, Vec::new(), now, &mut StdRng::seed_from_u64(1));
            let changes = plan.commands.iter().flat_map(|command| &command.changes);
            changes
                .filter(|change| {
                    matches!(change, Change::SetTaskStatus { status, .. }
                        if status.state == TaskState::Orphaned)
                })
                .count()
        };
        let mut brain = Brain::new(&state);
        assert_eq!(orphaned(&mut brain, 0), 0);
        brain.forget_time();
        assert_eq!(orphaned(&mut brain, 30), 0);
        assert_eq!(orphaned(&mut brain, 53), 0);
        assert_eq!(orphaned(&mut brain, 54), 1);
    }

    #[test]
    fn what_cannot_be_placed_says_why_and_is_placed_when_a_node_comes() {
        let mut state = state(0);
        let service = state.service(&testing::service_id(1)).unwrap().clone();
        let mut spec = service.spec.clone();
        spec.mode = ServiceMode::Replicated { replicas: 1 };
        spec.task.placement.constraints = vec!["node.hostname == node-2".to_owned()];
        spec.endpoint = EndpointSpec::default();
        let update = Change::UpdateServiceSpec {
            id: service.id,
            version: service.meta.version,
            spec: Box::new(spec),
        };
        apply(&mut state, vec![update]).expect("fits");
        let mut brain = Brain::new(&state);
        for command in decide(&mut brain, &state).commands {
            apply(&mut state, command.changes).expect("fits");
        }
        let task = state.tasks().next().expect("made").clone();
        assert_eq!(task.place, TaskPlace::Slot(Slot(1)));
        assert_eq!(task.status.state, TaskState::Pending);
        assert_eq!(
            task.status.err,
            "no suitable node (scheduling constraints not satisfied on 1 node)"
        );
        let node = Arc::new(testing::node(2));
        apply(
            &mut state,
            vec![Change::CreateNode(Box::new((*node).clone()))],
        )
        .expect("fits");
        brain.observe(&ObjectChange::Node {
            before: None,
            after: Some(node),
        });
        for command in decide(&mut brain, &state).commands {
            apply(&mut state, command.changes).expect("fits");
        }
        let task = state.task(&task.id).expect("there");
        assert_eq!(task.node, Some(testing::node_id(2)));
        assert_eq!(task.status.err, "");
    }
}
