//! The state as it will be once what has been decided so far is committed.

use rand::{Rng, RngExt};
use shoal_raft_store::{Change, Command, ObjectChange, Rejection, State};
use shoal_types::{TaskId, Timestamp, Version, object::Task};

/// A pass decides on this: each decision is applied at once by the same code that will apply the
/// command, so what comes later in the pass sees what came earlier, and nothing is proposed that the
/// state the pass began with refuses.
pub(crate) struct Draft {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    changes: Vec<Change>,
}

impl Draft {
    pub(crate) fn new(state: State, now: Timestamp) -> Self {
        Self {
            state,
            now,
            changes: Vec::new(),
        }
    }

    /// Adds `change`; gives what it changes.
    pub(crate) fn push(&mut self, change: Change) -> Result<Vec<ObjectChange>, Rejection> {
        let mut command = Command {
            at: self.now,
            changes: vec![change],
        };
        let next = Version(self.state.version().0 + 1);
        let version = if self.changes.is_empty() {
            next
        } else {
            self.state.version()
        };
        let (_applied, changed) = self.state.apply(version, &command)?;
        // A change without an effect is not worth a place in the log.
        if !changed.is_empty() {
            self.changes.append(&mut command.changes);
        }
        Ok(changed)
    }

    /// Adds the creation of `task`, which nothing that is decided later in the pass depends on: it is
    /// checked against the state, and not in it afterwards. No two of these may ask for the same
    /// address.
    pub(crate) fn create(&mut self, task: Box<Task>) -> Result<(), Rejection> {
        self.state.accepts(&task)?;
        self.changes.push(Change::CreateTask(task));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

pub(crate) fn new_task_id(rng: &mut impl Rng) -> TaskId {
    TaskId::from_random(rng.random())
}
