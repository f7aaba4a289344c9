//! The task lifecycle (SwarmKit `design/task_model.md`, `api/types.proto`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ContainerId, Timestamp, spec::PortConfig};

/// Where a task is. Ordered: an observed state only ever moves up.
///
/// | set by | states |
/// |---|---|
/// | orchestrator | New |
/// | allocator | Pending |
/// | scheduler | Assigned |
/// | agent | Accepted … Rejected |
/// | leader, when the node is gone | Orphaned |
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum TaskState {
    /// Created; network and ports not yet allocated.
    #[default]
    New,
    /// Allocated; waits for a node.
    Pending,
    /// Has a node; its agent has not seen it yet.
    Assigned,
    /// The agent has it.
    Accepted,
    /// Image, network endpoint and volumes are being made ready.
    Preparing,
    /// Could start at once; waits until Running is desired.
    Ready,
    /// Its process is being started, or is not healthy yet.
    Starting,
    /// Its process runs (and is healthy, when it has a health check).
    Running,
    /// Ended by itself with exit code 0.
    Complete,
    /// Stopped because it was asked to.
    Shutdown,
    /// Ended with an error at or after Starting.
    Failed,
    /// Could not be started at all.
    Rejected,
    /// Only ever desired: stop the task and forget it.
    Remove,
    /// Its node has been gone for so long that nobody can tell.
    Orphaned,
}

impl TaskState {
    /// Nothing of the task runs any more and nothing will.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Docker's word for it in the API and in `service ps`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a manager wants a task to go. Written by managers only, and only ever moved up.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Desired {
    /// Prepare, then wait.
    #[default]
    Ready,
    /// Run.
    Running,
    /// Run to the end (jobs).
    Complete,
    /// Stop; keep the record as history.
    Shutdown,
    /// Stop; the record goes too.
    Remove,
}

impl Desired {
    /// The task is wanted: preparing, running, or running to its end.
    pub fn wants_run(self) -> bool {
        self <= Self::Complete
    }

    /// The same word as the [`TaskState`] of that name, as Docker shows a desired state.
    pub fn as_state(self) -> TaskState {
        match self {
            Self::Ready => TaskState::Ready,
            Self::Running => TaskState::Running,
            Self::Complete => TaskState::Complete,
            Self::Shutdown => TaskState::Shutdown,
            Self::Remove => TaskState::Remove,
        }
    }
}

/// What is known of a task, as last reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When `state` was entered, by the clock of whoever set it.
    pub at: Timestamp,
    /// What is going on, in a few words ("preparing", "started").
    pub message: String,
    /// Why the task is not where it should be, as a sentence; empty when it is.
    pub err: String,
    /// Present once the agent has made a container for the task.
    pub container: Option<ContainerStatus>,
    /// Host-mode ports, with the number the node chose when none was asked for.
    pub ports: Vec<PortConfig>,
}

/// The container behind a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub id: ContainerId,
    /// Process id of its init in the node's own pid namespace; 0 when it does not run.
    pub pid: u32,
    /// 128 + signal for a process that was killed. Meaningful only once it has ended.
    pub exit_code: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_states_is_the_order_of_the_lifecycle() {
        use TaskState::*;
        let order = [
            New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete,
            Shutdown, Failed, Rejected, Remove, Orphaned,
        ];
        assert!(order.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(order.iter().all(|s| s.is_terminal() == (*s > Running)));
    }
}
