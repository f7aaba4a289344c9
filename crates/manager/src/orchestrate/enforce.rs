//! Tasks that their node may no longer run, because its labels or resources changed.

use shoal_raft_store::State;
use shoal_types::{
    TaskId,
    object::{Node, Task},
    spec::Availability,
};

use crate::schedule::Constraint;

/// What the rejected tasks are told.
pub(crate) const REJECTED: &str = "task rejected by constraint enforcer";
pub(crate) const REASON: &str = "assigned node no longer meets constraints";

/// The tasks that `node` may not keep: those whose constraints it fails, and those that its resources
/// do not hold any more, the newest first. A task of an older spec is the updater's affair, unless the
/// service's newer constraints let it stay anyway.
pub(crate) fn enforce(state: &State, node: &Node) -> Vec<TaskId> {
    if node.spec.availability != Availability::Active {
        return Vec::new();
    }
    let mut tasks: Vec<&Task> = state
        .tasks_on(node.id)
        .map(AsRef::as_ref)
        .filter(|task| task.desired.wants_run() && !task.status.state.is_terminal())
        .collect();
    tasks.sort_by_key(|task| (task.meta.created_at, task.id));
    let has = &node.description.resources;
    let (mut cpus, mut memory) = (has.nano_cpus, has.memory_bytes);
    let mut rejected = Vec::new();
    for task in tasks {
        let reserved = &task.spec.reservations;
        let fits = reserved.nano_cpus <= cpus && reserved.memory_bytes <= memory;
        if fits && may_stay(state, node, task) {
            cpus -= reserved.nano_cpus;
            memory -= reserved.memory_bytes;
        } else {
            rejected.push(task.id);
        }
    }
    rejected
}

fn may_stay(state: &State, node: &Node, task: &Task) -> bool {
    let meets = |constraints: &[String]| {
        Constraint::parse_all(constraints)
            .is_ok_and(|constraints| constraints.iter().all(|c| c.matches(node)))
    };
    meets(&task.spec.placement.constraints)
        || state
            .service(&task.service)
            .is_some_and(|service| meets(&service.spec.task.placement.constraints))
}
