//! A model of one machine's kernel: containers, and the tables of the datapath as last applied.

use std::collections::BTreeMap;

use shoal_node_agent::{cores::Container, datapath::NetworkState};
use shoal_types::{ServiceId, TaskId, object::TaskPlace};

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) containers: BTreeMap<TaskId, Program>,
    pub(crate) tables: Vec<NetworkState>,
    /// The last attempt to write the tables failed part of the way.
    pub(crate) torn: bool,
    /// Counts starts, so that the end of one program is not taken for that of another.
    pub(crate) starts: u64,
}

/// A container, and whose it is.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) phase: Phase,
    pub(crate) service: ServiceId,
    pub(crate) place: TaskPlace,
    /// When it was started, by the count of the kernel.
    pub(crate) start: u64,
    /// It was asked to end.
    pub(crate) signalled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Exited(i32),
}

impl Kernel {
    pub(crate) fn observe(&self, task: &TaskId) -> Container {
        match self.containers.get(task).map(|program| program.phase) {
            None => Container::Absent,
            Some(Phase::Created) => Container::Created,
            Some(Phase::Running) => Container::Running,
            Some(Phase::Exited(code)) => Container::Exited {
                code,
                oom_killed: false,
            },
        }
    }

    pub(crate) fn is_running(&self, task: &TaskId) -> bool {
        self.observe(task) == Container::Running
    }

    /// The machine restarts: nothing is left.
    pub(crate) fn reboot(&mut self) {
        self.containers.clear();
        self.tables.clear();
        self.torn = false;
    }
}
