//! The leader's decisions, all of them, as one pass over what has changed.
//!
//! A pass orchestrates the services that were touched, gives addresses, chooses nodes, and says why
//! where it cannot. Between passes the brain keeps indices that could be rebuilt from the state at any
//! time, and are when a manager becomes leader. It reads no clock and no randomness of its own.

mod nodes;
mod place;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use rand::Rng;
use shoal_raft_store::{Change, Command, ObjectChange, Rejection, State};
use shoal_types::{
    NodeId, ServiceId, TaskId, TaskState, TaskStatus, Timestamp,
    object::{EndpointAtBirth, Meta, Service, Task, UpdateState, UpdateStatus},
};

use crate::{
    allocate::Allocator,
    draft::{Draft, new_task_id},
    orchestrate::{self, Action, ServiceView},
    schedule::NodeIndex,
};

/// Larger commands would hold up the log; smaller ones would pay for more entries than needed.
const CHANGES_PER_COMMAND: usize = 1000;

/// A pass that has decided this much proposes it before it looks at further services.
const CHANGES_PER_PASS: usize = 8 * CHANGES_PER_COMMAND;

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

    #[expect(clippy::vec_box, reason = "commands hold boxed tasks")]
    fn look_at_service(
        &mut self,
        draft: &mut Draft,
        id: ServiceId,
        fresh: &mut Vec<Box<Task>>,
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

    #[expect(clippy::vec_box, reason = "commands hold boxed tasks")]
    fn carry_out(
        &mut self,
        draft: &mut Draft,
        service: Option<&Service>,
        action: Action,
        fresh: &mut Vec<Box<Task>>,
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
                fresh.push(Box::new(Task {
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
                }));
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
