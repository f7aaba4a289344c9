//! What one service wants of its tasks: which to make, to stop, to start, to forget.
//!
//! Keeps true: the same view gives the same plan; applying a plan and what agents do of themselves
//! leads to a state that wants nothing more; a place never gets a second running task, except for the
//! moment in which a start-first update hands over. Everything needed to go on stands in the store,
//! so a new leader resumes a restart delay or an update where the old one was.

mod dirty;
mod enforce;
mod global;
mod job;
mod place;
mod reap;
mod replicated;
mod restart;
mod update;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use shoal_raft_store::State;
use shoal_types::{
    Desired, TaskId, TaskState, Timestamp,
    object::{Node, NodeState, Service, Task, TaskPlace, UpdateStatus},
    spec::{Availability, ServiceMode},
};

pub(crate) use self::enforce::{REASON, REJECTED, enforce};
use self::place::Place;

/// A service and all of its tasks, at one moment.
pub(crate) struct ServiceView<'a> {
    pub(crate) state: &'a State,
    pub(crate) service: &'a Service,
    pub(crate) tasks: Vec<Arc<Task>>,
    pub(crate) now: Timestamp,
    /// Since then time has passed evenly; before, clocks may have been set.
    pub(crate) even_since: Timestamp,
    /// How long the tasks that this leader saw end had been running.
    pub(crate) ran: &'a BTreeMap<TaskId, Duration>,
    /// Places are filled up to this number at a time.
    pub(crate) room: usize,
}

/// One thing to do about a service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Create {
        place: TaskPlace,
        desired: Desired,
        /// The epoch marks a task that does not replace an ended one.
        not_before: Timestamp,
    },
    SetDesired {
        task: TaskId,
        desired: Desired,
    },
    /// The task is to be stopped and no node ever had it.
    Settle {
        task: TaskId,
    },
    /// Its record goes.
    Forget {
        task: TaskId,
    },
    SetUpdate(UpdateStatus),
    /// Back to the previous spec. Nothing else can be decided until that has happened.
    Rollback(UpdateStatus),
}

/// What to do about a service now, and when to look again even if nothing changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ServicePlan {
    pub(crate) actions: Vec<Action>,
    pub(crate) wake_at: Option<Timestamp>,
    /// There was no room for all: decide again once this is done.
    pub(crate) unfinished: bool,
}

impl ServicePlan {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Looks again at `at`, if that is still to come.
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn create(&mut self, place: TaskPlace, desired: Desired) {
        self.push(Action::Create {
            place,
            desired,
            not_before: Timestamp::EPOCH,
        });
    }

    /// Asks for `task` to end; a task that no node has ends by this.
    fn retire(&mut self, task: &Task, desired: Desired) {
        let unheard_of = task.node.is_none();
        if desired == Desired::Remove && (unheard_of || task.status.state.is_terminal()) {
            self.push(Action::Forget { task: task.id });
            return;
        }
        if task.desired < desired {
            self.push(Action::SetDesired {
                task: task.id,
                desired,
            });
        }
        if unheard_of && !task.status.state.is_terminal() {
            self.push(Action::Settle { task: task.id });
        }
    }
}

/// Decides what `view`'s service needs.
pub(crate) fn decide(view: &ServiceView<'_>) -> ServicePlan {
    let mut plan = ServicePlan::default();
    match view.service.spec.mode {
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => {
            job::decide(view, &mut plan);
            return plan;
        }
        ServiceMode::Replicated { .. } | ServiceMode::Global => {}
    }
    let places = Place::all(&view.tasks);
    let choice = match view.service.spec.mode {
        ServiceMode::Replicated { replicas } => replicated::choose(view, &places, replicas),
        _global => global::choose(view, &places),
    };
    for (place, desired) in &choice.surplus {
        for task in &place.tasks {
            plan.retire(task, *desired);
        }
    }
    // What was asked to stop and has no node, or is only waiting for its record to go.
    let going: BTreeSet<&TaskPlace> = choice.surplus.iter().map(|(place, _)| &place.at).collect();
    let staying = places.iter().filter(|place| !going.contains(&place.at));
    for task in staying.flat_map(|place| &place.tasks) {
        if !task.desired.wants_run() {
            plan.retire(task, task.desired);
        }
    }
    let mut tended = BTreeSet::new();
    for place in &choice.kept {
        if restart::tend(view, place, &mut plan) {
            tended.insert(place.at.clone());
        }
    }
    let steps = update::decide(view, &choice, &tended);
    let rolls_back = steps
        .actions
        .iter()
        .any(|action| matches!(action, Action::Rollback(_)));
    if rolls_back {
        return steps;
    }
    if let Some(at) = steps.wake_at {
        plan.wake(at);
    }
    plan.actions.extend(steps.actions);
    // `places` is in the order of the places, as `all` made it.
    let known = |at: &TaskPlace| {
        let found = places.binary_search_by(|place| place.at.cmp(at));
        found.ok().map(|index| &places[index])
    };
    plan.unfinished = choice.missing.len() == view.room;
    for place in choice.missing {
        let stopping = known(&place).is_some_and(|p| p.stopping(view).next().is_some());
        // A predecessor that is still stopping goes first.
        let desired = if stopping {
            Desired::Ready
        } else {
            Desired::Running
        };
        plan.create(place, desired);
    }
    reap::decide(view, &choice.kept, &mut plan);
    plan
}

/// Decides about the tasks of a service that is gone: they stop, and then their records go.
pub(crate) fn decide_removed(tasks: &[Arc<Task>]) -> ServicePlan {
    let mut plan = ServicePlan::default();
    for task in tasks {
        plan.retire(task, Desired::Remove);
    }
    plan
}

/// Which places a service fills.
struct Choice<'a> {
    /// Those that stay.
    kept: Vec<Place<'a>>,
    /// Those that go, and what their tasks become.
    surplus: Vec<(Place<'a>, Desired)>,
    /// Those to be filled anew, as far as there is room.
    missing: Vec<TaskPlace>,
}

impl ServiceView<'_> {
    fn node_of(&self, task: &Task) -> Option<&Arc<Node>> {
        self.state.node(task.node.as_ref()?)
    }

    /// The task runs no more, or its node must not or cannot run it.
    fn is_over(&self, task: &Task) -> bool {
        task.status.state.is_terminal()
            || (task.node.is_some() && self.node_of(task).is_none_or(|node| !keeps_tasks(node)))
    }

    /// Nothing of the task can be running any more, as far as anybody can tell.
    fn has_stopped(&self, task: &Task) -> bool {
        task.status.state.is_terminal()
            || self
                .node_of(task)
                .is_none_or(|node| node.status.state == NodeState::Down)
    }

    fn in_update(&self, task: &Task) -> bool {
        self.service.update.as_ref().is_some_and(|update| {
            task.spec_version == self.service.spec_version
                && task.not_before == Timestamp::EPOCH
                && task.meta.created_at >= update.started_at
        })
    }
}

/// Whether tasks may stay on the node. A paused, silent or reconnecting node keeps what it has.
pub(crate) fn keeps_tasks(node: &Node) -> bool {
    node.status.state != NodeState::Down && node.spec.availability != Availability::Drain
}

/// The task ended without having been asked to.
fn ended_by_itself(task: &Task) -> bool {
    matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected | TaskState::Orphaned
    )
}
