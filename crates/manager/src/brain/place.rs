//! Addresses and nodes for tasks.

use std::collections::HashMap;

use shoal_raft_store::Change;
use shoal_types::{
    ServiceId, TaskId, TaskState, Timestamp, Version,
    object::{Task, TaskPlace},
};

use super::{Brain, waits};
use crate::{
    draft::Draft,
    schedule::{Placer, Request},
};

impl Brain {
    /// Gives addresses and nodes to the tasks that were just made, and to those that wait when there is
    /// new hope for them.
    #[expect(clippy::vec_box, reason = "commands hold boxed tasks")]
    pub(super) fn place(&mut self, draft: &mut Draft, fresh: Vec<Box<Task>>) {
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
            self.create(draft, task);
        }
    }

    /// Adds a task that was just made. The allocator gives no address twice in a pass, and new tasks
    /// are the last that a pass decides about.
    fn create(&mut self, draft: &mut Draft, task: Box<Task>) {
        let (id, service, waits) = (task.id, task.service, waits(&task));
        self.allocator.note_task_at(&task, draft.now);
        match draft.create(task) {
            Ok(()) => {
                self.tentative.push((id, service));
                if waits {
                    self.waiting.insert(id);
                }
            }
            Err(rejection) => {
                tracing::debug!(error = %rejection, "a new task does not fit the state");
                self.index.remove_task(id);
            }
        }
    }

    pub(super) fn advance(
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
    pub(super) fn try_to_allocate(&mut self, draft: &Draft, task: &mut Task) {
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
    pub(super) fn try_to_place(
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
            }
            Err(err) => task.status.err = err,
        }
    }
}
