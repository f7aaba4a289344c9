//! What to do next for one task: a function of where it should go, how far it has come, and what the
//! kernel shows of its container.
//!
//! ```text
//!  Assigned → Accepted → Preparing → Ready → Starting → Running → Complete | Failed
//!      └──────────┴──────────┴─────────┴─────────┴─────────┴────→ Shutdown   (when no longer wanted)
//! ```

use shoal_types::{Desired, TaskState};

/// What the runtime shows of the task's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// There is none, or it was lost (a reboot, a dead sandbox).
    Absent,
    /// Everything is set up; the user's program has not been started.
    Created,
    Running,
    Exited {
        code: i32,
        oom_killed: bool,
    },
}

/// The one thing to do now. Each is safe to do again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Move the observed state up.
    Enter {
        state: TaskState,
        message: &'static str,
        err: String,
    },
    /// Get the image, make the sandbox, attach its networks. Then Ready.
    Prepare,
    /// Let the sandbox run the user's program. Then Running.
    Start,
    /// Nothing to do until the desired state changes.
    Wait,
    /// Nothing to do until the container ends or the desired state changes.
    AwaitExit,
    /// Stop signal, grace, SIGKILL.
    Stop,
    /// Take the container away.
    Delete,
}

/// Decides the next step of a task that is assigned to this node.
pub fn decide(desired: Desired, state: TaskState, container: Container) -> Action {
    if state.is_terminal() {
        return match (desired, container) {
            // It ended, as far as anybody was told, but something still runs.
            (_, Container::Running) => Action::Stop,
            // A sandbox that never ran holds namespaces and no history.
            (_, Container::Created) => Action::Delete,
            // What an ended container leaves (its logs) goes with the task's record.
            (_, Container::Absent | Container::Exited { .. }) => Action::Wait,
        };
    }
    if desired.wants_run() {
        run(desired, state, container)
    } else {
        stop(container)
    }
}

fn run(desired: Desired, state: TaskState, container: Container) -> Action {
    match state {
        TaskState::New | TaskState::Pending | TaskState::Assigned => {
            enter(TaskState::Accepted, "accepted")
        }
        TaskState::Accepted => enter(TaskState::Preparing, "preparing"),
        TaskState::Preparing => match container {
            Container::Absent | Container::Created => Action::Prepare,
            Container::Running | Container::Exited { .. } => enter(TaskState::Ready, "prepared"),
        },
        TaskState::Ready if desired == Desired::Ready => match container {
            Container::Absent => Action::Prepare,
            _ => Action::Wait,
        },
        TaskState::Ready => match container {
            Container::Absent => Action::Prepare,
            _ => enter(TaskState::Starting, "starting"),
        },
        TaskState::Starting => match container {
            Container::Created => Action::Start,
            Container::Running => enter(TaskState::Running, "started"),
            Container::Absent => lost(),
            Container::Exited { code, oom_killed } => ended(code, oom_killed),
        },
        _ => match container {
            Container::Running => Action::AwaitExit,
            Container::Exited { code, oom_killed } => ended(code, oom_killed),
            Container::Absent | Container::Created => lost(),
        },
    }
}

fn stop(container: Container) -> Action {
    match container {
        Container::Running => Action::Stop,
        Container::Created => Action::Delete,
        Container::Absent | Container::Exited { .. } => enter(TaskState::Shutdown, "shutdown"),
    }
}

fn enter(state: TaskState, message: &'static str) -> Action {
    Action::Enter {
        state,
        message,
        err: String::new(),
    }
}

fn lost() -> Action {
    Action::Enter {
        state: TaskState::Failed,
        message: "started",
        err: "the container is gone: the node was restarted, or its processes were removed \
              from outside"
            .to_owned(),
    }
}

/// Docker's words for an exit, which tools match.
fn ended(code: i32, oom_killed: bool) -> Action {
    if code == 0 {
        return enter(TaskState::Complete, "finished");
    }
    let why = if oom_killed { ": out of memory" } else { "" };
    Action::Enter {
        state: TaskState::Failed,
        message: "started",
        err: format!("task: non-zero exit ({code}){why}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [TaskState; 10] = [
        TaskState::Assigned,
        TaskState::Accepted,
        TaskState::Preparing,
        TaskState::Ready,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Failed,
        TaskState::Rejected,
    ];

    /// Carries an action out on a model of the world in which every effect works.
    fn perform(action: &Action, state: &mut TaskState, container: &mut Container) {
        match action {
            Action::Enter { state: next, .. } => *state = *next,
            Action::Prepare => {
                *container = Container::Created;
                *state = (*state).max(TaskState::Ready);
            }
            Action::Start => *container = Container::Running,
            Action::Stop => {
                *container = Container::Exited {
                    code: 143,
                    oom_killed: false,
                }
            }
            Action::Delete => *container = Container::Absent,
            Action::Wait | Action::AwaitExit => {}
        }
    }

    fn settle(
        desired: Desired,
        mut state: TaskState,
        mut container: Container,
    ) -> (TaskState, Container) {
        for _ in 0..20 {
            let action = decide(desired, state, container);
            if matches!(action, Action::Wait | Action::AwaitExit) {
                return (state, container);
            }
            let before = state;
            perform(&action, &mut state, &mut container);
            assert!(state >= before, "{action:?} moved {before} down to {state}");
        }
        panic!("{desired:?} from {state} with {container:?} never settles");
    }

    #[test]
    fn a_new_task_comes_to_run() {
        let start = (TaskState::Assigned, Container::Absent);
        assert_eq!(
            settle(Desired::Running, start.0, start.1),
            (TaskState::Running, Container::Running)
        );
    }

    #[test]
    fn a_task_that_should_only_be_ready_waits_with_its_sandbox() {
        assert_eq!(
            settle(Desired::Ready, TaskState::Assigned, Container::Absent),
            (TaskState::Ready, Container::Created)
        );
    }

    #[test]
    fn exits_are_told_in_dockers_words() {
        let action = decide(
            Desired::Running,
            TaskState::Running,
            Container::Exited {
                code: 137,
                oom_killed: true,
            },
        );
        let Action::Enter { state, err, .. } = action else {
            panic!("{action:?}")
        };
        assert_eq!(
            (state, err.as_str()),
            (
                TaskState::Failed,
                "task: non-zero exit (137): out of memory"
            )
        );
        assert_eq!(
            decide(
                Desired::Running,
                TaskState::Running,
                Container::Exited {
                    code: 0,
                    oom_killed: false
                }
            ),
            enter(TaskState::Complete, "finished")
        );
    }

    #[test]
    fn a_lost_container_is_a_failure_not_a_second_start() {
        for state in [TaskState::Starting, TaskState::Running] {
            let action = decide(Desired::Running, state, Container::Absent);
            assert!(
                matches!(
                    action,
                    Action::Enter {
                        state: TaskState::Failed,
                        ..
                    }
                ),
                "{action:?}"
            );
        }
    }

    fn containers() -> impl Strategy<Value = Container> {
        prop_oneof![
            Just(Container::Absent),
            Just(Container::Created),
            Just(Container::Running),
            (0..256, any::<bool>())
                .prop_map(|(code, oom_killed)| Container::Exited { code, oom_killed }),
        ]
    }

    proptest! {
        #[test]
        fn stop_means_stop(index in 0..STATES.len(), container in containers(), remove: bool) {
            let desired = if remove { Desired::Remove } else { Desired::Shutdown };
            let (state, container) = settle(desired, STATES[index], container);
            prop_assert!(state.is_terminal());
            prop_assert!(!matches!(container, Container::Created | Container::Running));
        }

        #[test]
        fn every_start_settles_and_nothing_runs_after_the_end(
            index in 0..STATES.len(),
            container in containers(),
            running: bool,
        ) {
            let desired = if running { Desired::Running } else { Desired::Ready };
            let (state, container) = settle(desired, STATES[index], container);
            if state.is_terminal() {
                prop_assert!(!matches!(container, Container::Created | Container::Running));
            }
        }
    }
}
