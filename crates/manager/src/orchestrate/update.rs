//! Rolling updates and rollbacks, one step at a time.
//!
//! Nothing is remembered between steps. A task made by the update is one of the current spec, not a
//! restart, and no older than the update; from these the view shows how many slots are being replaced
//! at the moment, which have failed, and when the next step is due.

use std::{collections::BTreeSet, time::Duration};

use shoal_types::{
    Desired, TaskState, Timestamp,
    object::{Task, TaskPlace, UpdateState, UpdateStatus},
    spec::{Availability, FailureAction, UpdateConfig, UpdateOrder},
};

use super::{
    Action, Choice, ServicePlan, ServiceView, ended_by_itself, place::Place, restart::is_leaving,
};

/// Decides the next step of the service's update. `tended` places are being restarted, which makes
/// them up to date too.
pub(super) fn decide(
    view: &ServiceView<'_>,
    choice: &Choice<'_>,
    tended: &BTreeSet<TaskPlace>,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let state = view.service.update.as_ref().map(|update| update.state);
    if matches!(
        state,
        Some(UpdateState::Paused | UpdateState::RollbackPaused)
    ) {
        return plan;
    }
    let dirty: Vec<&Place<'_>> = choice
        .kept
        .iter()
        .filter(|place| place.is_dirty(view) && takes_updates(view, place))
        .collect();
    let active = matches!(
        state,
        Some(UpdateState::Updating | UpdateState::RollbackStarted)
    );
    if !active {
        if !dirty.is_empty() {
            plan.push(Action::SetUpdate(UpdateStatus {
                state: UpdateState::Updating,
                started_at: view.now,
                completed_at: None,
                message: "update in progress".to_owned(),
            }));
            step(view, &view.service.spec.update, dirty, 0, tended, &mut plan);
        }
        return plan;
    }
    let config = config(view);
    let progress = Progress::of(view, choice, config, &mut plan);
    if let Some(action) = react_to_failures(view, config, &progress, &dirty) {
        return ServicePlan {
            actions: vec![action],
            wake_at: None,
            unfinished: false,
        };
    }
    if dirty.is_empty() {
        if progress.settled && tended.is_empty() {
            plan.push(Action::SetUpdate(completed(view)));
        }
        return plan;
    }
    step(view, config, dirty, progress.in_flight, tended, &mut plan);
    plan
}

/// How far the update in progress has come.
struct Progress<'a> {
    /// Places being replaced at the moment, or waiting out the delay afterwards.
    in_flight: u64,
    /// The newest task of each place that failed the update.
    failed: Vec<&'a Task>,
    /// Places that the update has dealt with.
    places: u64,
    /// All that the update made has run long enough.
    settled: bool,
}

impl<'a> Progress<'a> {
    fn of(
        view: &ServiceView<'_>,
        choice: &Choice<'a>,
        config: &UpdateConfig,
        plan: &mut ServicePlan,
    ) -> Self {
        let mut progress = Self {
            in_flight: 0,
            failed: Vec::new(),
            places: 0,
            settled: true,
        };
        let monitor = monitor(config);
        for place in &choice.kept {
            let made: Vec<&'a Task> = place
                .tasks
                .iter()
                .copied()
                .map(AsRef::as_ref)
                .filter(|task| view.in_update(task))
                .collect();
            let Some(newest) = made.last() else { continue };
            progress.places += 1;
            let early = |task: &&Task| ended_by_itself(task) && ran(view, task) <= monitor;
            progress.failed.extend(made.iter().copied().rfind(early));
            let since = newest.meta.updated_at;
            let running = newest.status.state == TaskState::Running;
            let ended = newest.status.state.is_terminal();
            if !ended && !newest.desired.wants_run() {
                continue;
            }
            if !running && !ended {
                progress.in_flight += 1;
                progress.settled = false;
                continue;
            }
            let next = since.after(config.delay);
            if view.now < next {
                progress.in_flight += 1;
                plan.wake(next);
            }
            let proven = since.after(monitor);
            if running && view.now < proven {
                progress.settled = false;
                plan.wake(proven);
            }
        }
        progress
    }
}

/// How long the ended task ran, at the most: no longer than it lived, if this leader did not see it.
fn ran(view: &ServiceView<'_>, task: &Task) -> Duration {
    if task.status.state == TaskState::Rejected {
        return Duration::ZERO;
    }
    let lived = task.meta.updated_at.since(task.meta.created_at);
    view.ran.get(&task.id).copied().unwrap_or(lived)
}

fn config<'a>(view: &ServiceView<'a>) -> &'a UpdateConfig {
    let rolling_back = view
        .service
        .update
        .as_ref()
        .is_some_and(|update| update.state == UpdateState::RollbackStarted);
    if rolling_back {
        &view.service.spec.rollback
    } else {
        &view.service.spec.update
    }
}

/// How long a task must run to have been updated well; never shorter than the delay, or nobody would
/// look at the last task before the next is replaced.
fn monitor(config: &UpdateConfig) -> Duration {
    if config.delay >= config.monitor {
        config.delay + Duration::from_secs(1)
    } else {
        config.monitor
    }
}

/// Replaces as many of the `dirty` places as may be replaced at once, those that do not run first.
fn step(
    view: &ServiceView<'_>,
    config: &UpdateConfig,
    mut dirty: Vec<&Place<'_>>,
    in_flight: u64,
    tended: &BTreeSet<TaskPlace>,
    plan: &mut ServicePlan,
) {
    let lanes = match config.parallelism {
        0 => u64::MAX,
        limit => limit.saturating_sub(in_flight),
    };
    dirty.retain(|place| !tended.contains(&place.at));
    dirty.sort_by_key(|place| (place.is_running(view), place.at.clone()));
    for place in dirty
        .into_iter()
        .take(usize::try_from(lanes).unwrap_or(usize::MAX))
    {
        let old: Vec<_> = place.live(view).collect();
        let start_first = config.order == UpdateOrder::StartFirst;
        // Of several outdated tasks (an update overtaken by another) the best one keeps serving, unless one
        // that leaves its node does.
        let served = place.wanted().any(|task| is_leaving(view, task));
        let keeper = old
            .iter()
            .max_by_key(|task| task.status.state)
            .filter(|task| start_first && (!served || task.status.state == TaskState::Running));
        for task in &old {
            if keeper.is_none_or(|keeper| keeper.id != task.id) {
                plan.retire(task, Desired::Shutdown);
            }
        }
        // One that is asked to stop only now may run for a while, too.
        let superseded = old.len() > usize::from(keeper.is_some());
        let stopping = superseded || served || place.stopping(view).next().is_some();
        plan.create(
            place.at.clone(),
            if stopping {
                Desired::Ready
            } else {
                Desired::Running
            },
        );
    }
}

/// What the update's failures call for, if they are too many.
fn react_to_failures(
    view: &ServiceView<'_>,
    config: &UpdateConfig,
    progress: &Progress<'_>,
    dirty: &[&Place<'_>],
) -> Option<Action> {
    let newest = progress.failed.iter().max_by_key(|t| t.meta.updated_at)?;
    let fresh = u64::try_from(dirty.iter().filter(|p| !has_made(view, p)).count()).unwrap_or(0);
    let total = progress.places + fresh;
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of places are far below 2^24 or the error is far below the ratio's meaning"
    )]
    let ratio = progress.failed.len() as f32 / total.max(1) as f32;
    if ratio <= config.max_failure_ratio {
        return None;
    }
    let update = view.service.update.as_ref()?;
    let rolling_back = update.state == UpdateState::RollbackStarted;
    let failed = format!("due to failure or early termination of task {}", newest.id);
    let paused = |state, word| {
        Action::SetUpdate(UpdateStatus {
            state,
            message: format!("{word} paused {failed}"),
            ..update.clone()
        })
    };
    match config.failure_action {
        FailureAction::Continue => None,
        FailureAction::Rollback if !rolling_back && view.service.previous.is_some() => {
            Some(Action::Rollback(UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: view.now,
                completed_at: None,
                message: format!("update rolled back {failed}"),
            }))
        }
        // A rollback that fails is never rolled back.
        FailureAction::Pause | FailureAction::Rollback if rolling_back => {
            Some(paused(UpdateState::RollbackPaused, "rollback"))
        }
        FailureAction::Pause | FailureAction::Rollback => {
            Some(paused(UpdateState::Paused, "update"))
        }
    }
}

fn has_made(view: &ServiceView<'_>, place: &Place<'_>) -> bool {
    place.tasks.iter().any(|task| view.in_update(task))
}

/// Tasks on a paused node are not updated.
fn takes_updates(view: &ServiceView<'_>, place: &Place<'_>) -> bool {
    let TaskPlace::Node(node) = &place.at else {
        return true;
    };
    view.state
        .node(node)
        .is_some_and(|node| node.spec.availability == Availability::Active)
}

fn completed(view: &ServiceView<'_>) -> UpdateStatus {
    let update = view.service.update.as_ref();
    let rolling_back = update.is_some_and(|u| u.state == UpdateState::RollbackStarted);
    let (state, message) = if rolling_back {
        (UpdateState::RollbackCompleted, "rollback completed")
    } else {
        (UpdateState::Completed, "update completed")
    };
    UpdateStatus {
        state,
        started_at: update.map_or(Timestamp::EPOCH, |update| update.started_at),
        completed_at: Some(view.now),
        message: message.to_owned(),
    }
}
