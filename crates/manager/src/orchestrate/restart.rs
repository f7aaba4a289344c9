//! What becomes of a place whose task is over, and when a waiting task may start.

use std::{sync::Arc, time::Duration};

use shoal_types::{
    Desired, TaskState, Timestamp,
    object::{NodeState, Task},
    spec::{Availability, RestartCondition, ServiceMode, UpdateOrder},
};

use super::{Action, ServicePlan, ServiceView, dirty::is_dirty, place::Place};

/// A successor waits for its predecessor's end, but not for ever: so long beyond the predecessor's
/// own grace period (SwarmKit `defaultOldTaskTimeout`).
const STOP_TIMEOUT: Duration = Duration::from_mins(1);

/// Replaces what is over, starts what waits, and stops what is superseded. Tells whether a
/// replacement was made, after which nothing else is to be decided for the place.
pub(super) fn tend(view: &ServiceView<'_>, place: &Place<'_>, plan: &mut ServicePlan) -> bool {
    let (over, live): (Vec<_>, Vec<_>) = place.wanted().partition(|task| view.is_over(task));
    if let Some(newest) = over.last()
        && live.is_empty()
        && is_waiting(view, newest, plan)
    {
        return true;
    }
    let replacement = replacement(view, place, &over, &live);
    let replaced = replacement.is_some();
    // One that leaves its node serves until its successor does, if there is to be one. Of several the newest.
    let succeeded = live.iter().any(|t| t.status.state == TaskState::Running);
    let awaited = (replaced || !live.is_empty()) && !succeeded;
    let mut leaving = over.iter().rev().filter(|task| is_leaving(view, task));
    let serves = leaving.next().filter(|_| awaited).map(|task| task.id);
    for task in over.iter().filter(|task| Some(task.id) != serves) {
        plan.retire(task, Desired::Shutdown);
    }
    plan.actions.extend(replacement);
    if !replaced {
        hand_over(view, &live, plan);
    }
    for task in live {
        promote(view, place, task, plan);
    }
    replaced
}

/// Whether a task that ended before it was to start keeps its place until then: one that cannot be prepared is tried again
/// once for each delay, not as fast as it fails.
pub(super) fn is_waiting(view: &ServiceView<'_>, task: &Task, plan: &mut ServicePlan) -> bool {
    let is_waiting =
        task.status.state.is_terminal() && view.now < task.not_before && !is_dirty(view, task);
    if is_waiting {
        plan.wake(task.not_before);
    }
    is_waiting
}

/// The successor of the newest task that is over, if the place needs one.
fn replacement(
    view: &ServiceView<'_>,
    place: &Place<'_>,
    over: &[&Arc<Task>],
    live: &[&Arc<Task>],
) -> Option<Action> {
    let newest = over.last()?;
    // An old task that lives on beside a failed start-first successor does not fill the place.
    let superseded = live.iter().any(|task| !is_dirty(view, task));
    // One that leaves its node has its successor, if an outdated one, which is for the updater to replace.
    let outdated = !live.is_empty() && (is_dirty(view, newest) || is_leaving(view, newest));
    if superseded || outdated || !should_restart(view, newest, place) {
        return None;
    }
    let delay = match view.node_of(newest) {
        Some(node) if node.spec.availability == Availability::Drain => Duration::ZERO,
        _elsewhere => newest.spec.restart.delay,
    };
    let alone = over.len() == 1 && place.stopping(view).next().is_none();
    let starts_beside = alone && is_leaving(view, newest);
    Some(Action::Create {
        place: place.at.clone(),
        desired: if starts_beside {
            Desired::Running
        } else {
            Desired::Ready
        },
        not_before: view.now.after(delay),
    })
}

/// The task runs on a drained node, and the service lets a successor start before it stops.
pub(super) fn is_leaving(view: &ServiceView<'_>, task: &Task) -> bool {
    let spec = &view.service.spec;
    matches!(spec.mode, ServiceMode::Replicated { .. })
        && spec.update.order == UpdateOrder::StartFirst
        && task.desired == Desired::Running
        && task.status.state == TaskState::Running
        && view.node_of(task).is_some_and(|node| {
            node.spec.availability == Availability::Drain && node.status.state != NodeState::Down
        })
}

/// Once an up-to-date task runs, the others of its place stop.
fn hand_over(view: &ServiceView<'_>, live: &[&Arc<Task>], plan: &mut ServicePlan) {
    let current = live
        .iter()
        .filter(|task| !is_dirty(view, task))
        .max_by_key(|task| (task.status.state, std::cmp::Reverse(task.id)));
    let Some(current) = current else { return };
    for task in live.iter().filter(|task| task.id != current.id) {
        let duplicate = !is_dirty(view, task);
        if duplicate || current.status.state == TaskState::Running {
            plan.retire(task, Desired::Shutdown);
        }
    }
}

/// Starts a prepared task once its delay is over and its predecessors have ended.
pub(super) fn promote(
    view: &ServiceView<'_>,
    place: &Place<'_>,
    task: &Task,
    plan: &mut ServicePlan,
) {
    if task.desired != Desired::Ready {
        return;
    }
    if view.now < task.not_before {
        plan.wake(task.not_before);
        return;
    }
    let asked = task.not_before.max(task.meta.created_at);
    // A clock that was set forward must not make a moment of it.
    let waiting_since = asked.max(view.even_since);
    let deadline = place
        .stopping(view)
        .filter(|other| other.id != task.id)
        .map(|other| {
            waiting_since.after(other.spec.container.stop_grace.saturating_add(STOP_TIMEOUT))
        })
        .max();
    match deadline {
        Some(deadline) if view.now < deadline => plan.wake(deadline),
        _nobody_in_the_way => {
            let runs_to_its_end = matches!(
                view.service.spec.mode,
                ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
            );
            plan.push(Action::SetDesired {
                task: task.id,
                desired: if runs_to_its_end {
                    Desired::Complete
                } else {
                    Desired::Running
                },
            });
        }
    }
}

/// Whether the restart policy of `task`, which is over, wants a successor.
pub(super) fn should_restart(view: &ServiceView<'_>, task: &Task, place: &Place<'_>) -> bool {
    let policy = &task.spec.restart;
    let allowed = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => task.status.state != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !allowed || policy.max_attempts == 0 {
        return allowed;
    }
    let counted_from = if policy.window.is_zero() {
        Timestamp::EPOCH
    } else {
        let window = i64::try_from(policy.window.as_nanos()).unwrap_or(i64::MAX);
        let ended = if task.status.state.is_terminal() {
            task.meta.updated_at
        } else {
            view.now
        };
        Timestamp(ended.0.saturating_sub(window))
    };
    // A task that replaced an ended one has a time before which it must not start. The reaper keeps
    // as many records as this needs.
    let attempts = place
        .tasks
        .iter()
        .filter(|t| t.spec_version == task.spec_version && t.not_before != Timestamp::EPOCH)
        .filter(|t| t.meta.created_at > counted_from)
        .count();
    u64::try_from(attempts).unwrap_or(u64::MAX) < policy.max_attempts
}
