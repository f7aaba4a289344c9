//! Which records of ended tasks are forgotten.

use shoal_types::{TaskState, object::UpdateState, spec::ServiceMode};

use super::{Action, ServicePlan, ServiceView, place::Place};

/// Forgets the oldest ended tasks beyond the history limit, which counts the running one too. What a
/// restart policy or a running update still counts is kept.
pub(super) fn decide(view: &ServiceView<'_>, kept: &[Place<'_>], plan: &mut ServicePlan) {
    let limit = view
        .state
        .cluster()
        .map_or(5, |cluster| cluster.task_history_limit);
    let Ok(limit) = usize::try_from(limit) else {
        return;
    };
    let updating = view.service.update.as_ref().is_some_and(|update| {
        matches!(
            update.state,
            UpdateState::Updating | UpdateState::RollbackStarted
        )
    });
    let is_job = matches!(
        view.service.spec.mode,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
    );
    for place in kept {
        let attempts = place
            .tasks
            .last()
            .map_or(0, |t| t.spec.restart.max_attempts);
        let limit = match attempts {
            0 => limit,
            n => limit.max(usize::try_from(n).unwrap_or(usize::MAX).saturating_add(1)),
        };
        let excess = place.tasks.len().saturating_sub(limit);
        // The newest record stays even then: it may be what says that the place is finished.
        let older = &place.tasks[..place.tasks.len().saturating_sub(1)];
        let ended = older.iter().filter(|task| {
            let counted = updating && view.in_update(task);
            // A job counts what it has completed.
            let counted = counted || (is_job && task.status.state == TaskState::Complete);
            task.status.state.is_terminal() && !task.desired.wants_run() && !counted
        });
        for task in ended.take(excess) {
            plan.push(Action::Forget { task: task.id });
        }
    }
}
