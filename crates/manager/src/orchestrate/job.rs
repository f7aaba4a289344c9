//! Services that run to their end. Each change of the spec is a new iteration.

use std::collections::BTreeSet;

use shoal_types::{
    Desired, Slot, TaskState, Timestamp,
    object::TaskPlace,
    spec::{RestartCondition, ServiceMode},
};

use super::{Action, ServicePlan, ServiceView, global, place::Place, reap, restart};
use crate::schedule;

pub(super) fn decide(view: &ServiceView<'_>, plan: &mut ServicePlan) {
    let (current, old): (Vec<_>, Vec<_>) = view
        .tasks
        .iter()
        .cloned()
        .partition(|task| task.spec_version == view.service.spec_version);
    for task in &old {
        plan.retire(task, Desired::Remove);
    }
    let places = Place::all(&current);
    let (mut complete, mut active, mut given_up) = (0u64, 0u64, 0u64);
    for place in &places {
        if place
            .tasks
            .iter()
            .any(|task| task.status.state == TaskState::Complete)
        {
            complete += 1;
        } else if tend(view, place, plan) {
            active += 1;
        } else {
            given_up += 1;
        }
    }
    let taken: BTreeSet<&TaskPlace> = places.iter().map(|place| &place.at).collect();
    let missing: Vec<TaskPlace> = match view.service.spec.mode {
        ServiceMode::ReplicatedJob {
            max_concurrent,
            total_completions,
        } => {
            let left = total_completions.saturating_sub(complete + active + given_up);
            let lanes = match max_concurrent {
                0 => u64::MAX,
                limit => limit.saturating_sub(active),
            };
            (0..total_completions)
                .map(|slot| TaskPlace::Slot(Slot(slot)))
                .filter(|place| !taken.contains(place))
                .take(usize::try_from(left.min(lanes)).unwrap_or(usize::MAX))
                .take(view.room)
                .collect()
        }
        _global => global::eligible(view)
            .into_iter()
            .filter(|node| schedule::takes_new_tasks(node))
            .map(|node| TaskPlace::Node(node.id))
            .filter(|place| !taken.contains(place))
            .collect(),
    };
    plan.unfinished = missing.len() == view.room;
    for place in missing {
        plan.create(place, Desired::Complete);
    }
    reap::decide(view, &places, plan);
}

/// Replaces what failed in the place; tells whether something runs or will run there.
fn tend(view: &ServiceView<'_>, place: &Place<'_>, plan: &mut ServicePlan) -> bool {
    let (over, live): (Vec<_>, Vec<_>) = place.wanted().partition(|task| view.is_over(task));
    for task in &over {
        plan.retire(task, Desired::Shutdown);
    }
    if !live.is_empty() {
        for task in live {
            restart::promote(view, place, task, plan);
        }
        return true;
    }
    let Some(newest) = place.tasks.last() else {
        return false;
    };
    if restart::is_waiting(view, newest, plan) {
        return true;
    }
    let node_stays = match &place.at {
        TaskPlace::Slot(_) => true,
        TaskPlace::Node(id) => global::eligible(view).iter().any(|node| node.id == *id),
    };
    let again = node_stays
        && newest.spec.restart.condition != RestartCondition::None
        && restart::should_restart(view, newest, place);
    if again {
        plan.push(Action::Create {
            place: place.at.clone(),
            desired: Desired::Ready,
            not_before: Timestamp(view.now.after(newest.spec.restart.delay).0.max(1)),
        });
    }
    again
}
