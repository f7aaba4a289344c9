//! A task that runs in memory only: a load generator for managers, which cannot tell it from another.
//!
//! It takes the same decisions as a worker with containers and reports the same states; every effect
//! works at once, and nothing of the node is touched. As after a loss of power, nothing is left when the
//! daemon ends.

use std::sync::{Arc, Mutex, PoisonError};

use shoal_types::{ContainerStatus, TaskId, TaskState, TaskStatus};
use tokio::sync::watch;

use super::{
    container_id,
    machine::{self, Action, Container},
    worker::{Shown, Wanted},
};
use crate::{clock, session::Outbox};

pub(crate) struct MemoryWorker {
    pub(crate) id: TaskId,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) shown: Arc<Mutex<Shown>>,
    /// Told whenever `shown` changes.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) outbox: Arc<Outbox>,
}

impl MemoryWorker {
    /// Runs until the task is forgotten, or the agent goes down.
    pub(crate) async fn run(mut self) {
        let mut container = Container::Absent;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let Wanted::Task(task) = wanted else {
                self.outbox.forget(&self.id);
                return;
            };
            let (desired, state) = (task.desired, self.state());
            self.show(|shown| shown.task = task);
            match machine::decide(desired, state, container, None) {
                Action::Enter {
                    state,
                    message,
                    err,
                } => self.report(state, message, err),
                Action::Prepare => {
                    container = Container::Created;
                    if state < TaskState::Ready {
                        self.report(TaskState::Ready, "prepared", String::new());
                    }
                }
                Action::Start => container = Container::Running,
                Action::Stop => {
                    container = Container::Exited {
                        code: 0,
                        oom_killed: false,
                    };
                }
                Action::Delete => container = Container::Absent,
                Action::Wait | Action::AwaitExit => {
                    if self.wanted.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn report(&self, state: TaskState, message: &str, err: String) {
        let status = TaskStatus {
            state,
            at: clock::now(),
            message: message.to_owned(),
            err,
            // No process: pid 0.
            container: Some(ContainerStatus {
                id: container_id(&self.id),
                pid: 0,
                exit_code: 0,
            }),
            ports: Vec::new(),
        };
        self.show(|shown| shown.status = status.clone());
        self.outbox.put(self.id, status);
    }

    fn state(&self) -> TaskState {
        let shown = self.shown.lock();
        shown.unwrap_or_else(PoisonError::into_inner).status.state
    }

    fn show(&self, edit: impl FnOnce(&mut Shown)) {
        edit(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::{Desired, object::Task};

    use super::*;
    use crate::task::tests;

    /// What is reported until the newest status is in `state`.
    async fn until(outbox: &Outbox, state: TaskState) -> TaskStatus {
        loop {
            let reported = outbox.take_unsent();
            if let Some((_, status)) = reported.into_iter().find(|(_, s)| s.state == state) {
                return status;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_task_runs_until_it_is_no_longer_wanted_and_is_forgotten_at_once() {
        let task = Task {
            status: TaskStatus {
                state: TaskState::Assigned,
                ..TaskStatus::default()
            },
            ..tests::task()
        };
        let (wanted, receiver) = watch::channel(Wanted::Task(Arc::new(task.clone())));
        let shown = Shown {
            task: Arc::new(task.clone()),
            status: task.status.clone(),
            image: None,
            health: None,
            was_healthy: false,
        };
        let outbox = Arc::new(Outbox::default());
        let worker = MemoryWorker {
            id: task.id,
            wanted: receiver,
            shown: Arc::new(Mutex::new(shown)),
            changed: watch::Sender::new(0),
            outbox: outbox.clone(),
        };
        let running = tokio::spawn(worker.run());
        let status = until(&outbox, TaskState::Running).await;
        assert_eq!(status.err, "");
        let stopped = Task {
            desired: Desired::Shutdown,
            ..task
        };
        wanted.send_replace(Wanted::Task(Arc::new(stopped)));
        until(&outbox, TaskState::Shutdown).await;
        wanted.send_replace(Wanted::Nothing);
        running.await.unwrap();
    }
}
