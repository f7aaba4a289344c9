//! The tasks that have filled one place of a service.

use std::{collections::BTreeMap, sync::Arc};

use shoal_types::{
    Desired, TaskState,
    object::{Task, TaskPlace},
};

use super::{ServiceView, dirty::is_dirty, restart::should_restart};

/// A slot, or a global service's node, with its tasks from the oldest to the newest.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) at: TaskPlace,
    pub(super) tasks: Vec<&'a Arc<Task>>,
}

impl<'a> Place<'a> {
    /// The places that have tasks which are not being removed; those are history of nothing.
    pub(super) fn all(tasks: &'a [Arc<Task>]) -> Vec<Self> {
        let mut places: BTreeMap<&TaskPlace, Vec<&Arc<Task>>> = BTreeMap::new();
        for task in tasks {
            places.entry(&task.place).or_default().push(task);
        }
        let place = |(at, mut tasks): (&TaskPlace, Vec<&'a Arc<Task>>)| {
            tasks.sort_by_key(|task| (task.meta.created_at, task.id));
            Self {
                at: at.clone(),
                tasks,
            }
        };
        places.into_iter().map(place).collect()
    }

    pub(super) fn wanted(&self) -> impl Iterator<Item = &'a Arc<Task>> {
        self.tasks
            .iter()
            .copied()
            .filter(|task| task.desired.wants_run())
    }

    /// Wanted, and somewhere where they can run.
    pub(super) fn live(&self, view: &ServiceView<'_>) -> impl Iterator<Item = &'a Arc<Task>> {
        self.wanted().filter(|task| !view.is_over(task))
    }

    /// Asked to stop, and maybe still running.
    pub(super) fn stopping(&self, view: &ServiceView<'_>) -> impl Iterator<Item = &'a Arc<Task>> {
        self.tasks
            .iter()
            .copied()
            .filter(|task| !task.desired.wants_run() && !view.has_stopped(task))
    }

    /// The task with which the place has come to its end: the restart policy wants no other. The
    /// place counts as filled, and an update still reaches it.
    pub(super) fn finished(&self, view: &ServiceView<'_>) -> Option<&'a Arc<Task>> {
        if self.wanted().next().is_some() {
            return None;
        }
        let stopped = |task: &&Arc<Task>| task.desired == Desired::Shutdown;
        let newest = self.tasks.iter().copied().rfind(stopped)?;
        (!should_restart(view, newest, self)).then_some(newest)
    }

    pub(super) fn is_running(&self, view: &ServiceView<'_>) -> bool {
        self.live(view)
            .any(|task| task.status.state == TaskState::Running)
    }

    /// What fills the place was made from a spec that differs from the service's.
    pub(super) fn is_dirty(&self, view: &ServiceView<'_>) -> bool {
        let mut live = self.live(view).peekable();
        if live.peek().is_some() {
            return live.all(|task| is_dirty(view, task));
        }
        self.finished(view).is_some_and(|task| is_dirty(view, task))
    }
}
