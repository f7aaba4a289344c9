//! What becomes of the tasks of nodes that changed, or have been down for long.

use std::time::Duration;

use shoal_raft_store::Change;
use shoal_types::{
    NodeId, TaskId, TaskState, TaskStatus, Timestamp,
    object::{Node, NodeState},
    spec::ServiceMode,
};

use super::Brain;
use crate::{draft::Draft, orchestrate};

/// A node that has been down for so long will not say any more what became of its tasks.
const ORPHAN_AFTER: Duration = Duration::from_hours(24);

impl Brain {
    /// Rejects the tasks that touched nodes may not keep, and finds the services that are concerned.
    pub(super) fn look_at_nodes(&mut self, draft: &mut Draft) {
        let due: Vec<NodeId> = self
            .down
            .iter()
            .filter(|(_, since)| draft.now >= self.orphans_at(**since))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.down.remove(&id);
            self.looked_at.1.insert(id);
            self.orphan_tasks(draft, id);
        }
        let touched = std::mem::take(&mut self.nodes);
        if touched.is_empty() {
            return;
        }
        for id in touched {
            self.looked_at.1.insert(id);
            let tasks = draft.state.tasks_on(id);
            self.services.extend(tasks.map(|task| task.service));
            let Some(node) = draft.state.node(&id).cloned() else {
                self.down.remove(&id);
                continue;
            };
            if node.status.state == NodeState::Down {
                if self.down.insert(id, node.status.since) == Some(node.status.since) {
                    continue;
                }
            } else {
                self.down.remove(&id);
            }
            self.reject_tasks(draft, &node);
        }
        let everywhere = draft.state.services().filter(|service| {
            matches!(
                service.spec.mode,
                ServiceMode::Global | ServiceMode::GlobalJob
            )
        });
        self.services.extend(everywhere.map(|service| service.id));
    }

    /// When the tasks of a node that has been down since `down` are given up. Clocks that are set, or
    /// differ between leaders, do not shorten the time.
    pub(super) fn orphans_at(&self, down: Timestamp) -> Timestamp {
        let seen = self.even_since.map_or(down, |even| even.max(down));
        seen.after(ORPHAN_AFTER)
    }

    pub(super) fn reject_tasks(&mut self, draft: &mut Draft, node: &Node) {
        for id in orchestrate::enforce(&draft.state, node) {
            let status = TaskStatus {
                state: TaskState::Rejected,
                at: draft.now,
                message: orchestrate::REJECTED.to_owned(),
                err: orchestrate::REASON.to_owned(),
                ..TaskStatus::default()
            };
            self.set_status(draft, id, status);
        }
    }

    pub(super) fn orphan_tasks(&mut self, draft: &mut Draft, node: NodeId) {
        let running: Vec<TaskId> = draft
            .state
            .tasks_on(node)
            .filter(|task| !task.status.state.is_terminal())
            .map(|task| task.id)
            .collect();
        for id in running {
            let status = TaskStatus {
                state: TaskState::Orphaned,
                at: draft.now,
                err: format!("node {node} has been down for 24 hours"),
                ..TaskStatus::default()
            };
            self.set_status(draft, id, status);
        }
    }

    pub(super) fn set_status(&mut self, draft: &mut Draft, id: TaskId, mut status: TaskStatus) {
        if let Some(task) = draft.state.task(&id) {
            self.services.insert(task.service);
            status.container.clone_from(&task.status.container);
        }
        self.push(
            draft,
            Change::SetTaskStatus {
                id,
                reporter: None,
                status,
            },
        );
    }
}
