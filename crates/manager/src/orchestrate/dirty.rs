//! Whether a task has to be replaced because its service changed (SwarmKit `IsTaskDirty`).

use shoal_types::{TaskState, object::Task, spec::TaskSpec};

use super::ServiceView;
use crate::schedule::Constraint;

/// The task was made from another spec, and the difference matters to it.
pub(super) fn is_dirty(view: &ServiceView<'_>, task: &Task) -> bool {
    let service = view.service;
    if task.spec_version == service.spec_version {
        return false;
    }
    let wanted = &service.spec.task;
    let endpoint = &service.spec.endpoint;
    if task.endpoint.mode != endpoint.mode || task.endpoint.ports != endpoint.ports {
        return true;
    }
    // Credentials are only needed until the image is there.
    let pulled = (TaskState::Ready..=TaskState::Running).contains(&task.status.state);
    if !equal_but_placement(&task.spec, wanted, pulled) {
        return true;
    }
    task.spec.placement != wanted.placement && !satisfies_placement(view, task)
}

fn equal_but_placement(old: &TaskSpec, new: &TaskSpec, ignore_auth: bool) -> bool {
    if old == new {
        return true;
    }
    let mut old = old.clone();
    old.placement.clone_from(&new.placement);
    if ignore_auth {
        let auth = &new.container.registry_auth;
        old.container.registry_auth.clone_from(auth);
    }
    old == *new
}

/// The task's node meets the constraints that the service has now.
fn satisfies_placement(view: &ServiceView<'_>, task: &Task) -> bool {
    let constraints = Constraint::parse_all(&view.service.spec.task.placement.constraints);
    match (view.node_of(task), constraints) {
        (Some(node), Ok(constraints)) => constraints.iter().all(|c| c.matches(node)),
        _nowhere_or_unparsable => false,
    }
}
