//! Whole plans: a service with its tasks in, everything that is to be done out.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shoal_raft_store::{Change, Command};
use shoal_types::{
    NodeId, ServiceId, Slot, Version,
    object::UpdateState,
    spec::{FailureAction, RestartCondition, UpdateOrder},
};

use super::*;
use crate::testing;

const WEB: u32 = 1;

/// A store with three nodes and a service, and a clock.
struct Scene {
    state: State,
    now: Timestamp,
    ran: BTreeMap<TaskId, Duration>,
}

impl Scene {
    fn new(mode: ServiceMode) -> Self {
        let mut scene = Self {
            state: State::default(),
            now: at(0),
            ran: BTreeMap::new(),
        };
        let mut changes = testing::cluster_changes();
        changes.extend((1..=3).map(|n| Change::CreateNode(Box::new(testing::node(n)))));
        changes.push(Change::CreateService {
            id: service_id(),
            spec: Box::new(testing::service_spec("web", mode)),
        });
        scene.apply(changes);
        scene
    }

    fn replicas(replicas: u64) -> Self {
        Self::new(ServiceMode::Replicated { replicas })
    }

    fn apply(&mut self, changes: Vec<Change>) {
        let version = Version(self.state.version().0 + 1);
        let command = Command {
            at: self.now,
            changes,
        };
        self.state.apply(version, &command).expect("fits");
    }

    fn service(&self) -> &Service {
        self.state.service(&service_id()).expect("there")
    }

    fn edit(&mut self, edit: impl FnOnce(&mut shoal_types::spec::ServiceSpec)) {
        let service = self.service();
        let (version, mut spec) = (service.meta.version, service.spec.clone());
        edit(&mut spec);
        self.apply(vec![Change::UpdateServiceSpec {
            id: service_id(),
            version,
            spec: Box::new(spec),
        }]);
    }

    /// Task `id` in `slot` on `node`, made from the newest spec.
    fn task(&mut self, id: u32, slot: u64, node: u32, state: TaskState) {
        self.task_with(id, slot, node, state, |_| {});
    }

    fn task_with(
        &mut self,
        id: u32,
        slot: u64,
        node: u32,
        state: TaskState,
        edit: impl FnOnce(&mut Task),
    ) {
        let mut task = testing::task(WEB, id);
        task.place = TaskPlace::Slot(Slot(slot));
        task.spec = self.service().spec.task.clone();
        task.endpoint
            .ports
            .clone_from(&self.service().spec.endpoint.ports);
        task.spec_version = self.service().spec_version;
        task.node = (node > 0).then(|| testing::node_id(node));
        task.status.state = state;
        edit(&mut task);
        self.apply(vec![Change::CreateTask(Box::new(task))]);
    }

    fn status(&mut self, id: u32, state: TaskState) {
        let mut status = self
            .state
            .task(&testing::task_id(id))
            .expect("there")
            .status
            .clone();
        status.state = state;
        self.apply(vec![Change::SetTaskStatus {
            id: testing::task_id(id),
            reporter: None,
            status,
        }]);
    }

    fn decide(&self) -> ServicePlan {
        decide(&ServiceView {
            state: &self.state,
            service: self.service(),
            tasks: self.state.tasks_of(service_id()).cloned().collect(),
            now: self.now,
            even_since: Timestamp::EPOCH,
            ran: &self.ran,
            room: 1000,
        })
    }

    /// Decides, does it, and gives what was done.
    fn step(&mut self, next_id: u32) -> Vec<Action> {
        let plan = self.decide();
        let service = self.service().clone();
        let mut changes = Vec::new();
        for (id, action) in (next_id..).zip(plan.actions.clone()) {
            changes.push(match action {
                Action::Create {
                    place,
                    desired,
                    not_before,
                } => {
                    let mut task = testing::task(WEB, id);
                    task.spec = service.spec.task.clone();
                    task.spec_version = service.spec_version;
                    task.place = place;
                    task.desired = desired;
                    task.not_before = not_before;
                    task.node = Some(testing::node_id(1 + id % 3));
                    task.status.state = TaskState::Assigned;
                    Change::CreateTask(Box::new(task))
                }
                Action::SetDesired { task, desired } => {
                    Change::SetTaskDesired { id: task, desired }
                }
                Action::Settle { task } => Change::SetTaskStatus {
                    id: task,
                    reporter: None,
                    status: shoal_types::TaskStatus {
                        state: TaskState::Shutdown,
                        ..shoal_types::TaskStatus::default()
                    },
                },
                Action::Forget { task } => Change::RemoveTask { id: task },
                Action::SetUpdate(update) => Change::SetServiceUpdate {
                    id: service.id,
                    spec_version: service.spec_version,
                    update: Some(update),
                },
                Action::Rollback(update) => Change::RollbackService {
                    id: service.id,
                    version: service.meta.version,
                    update,
                },
            });
        }
        self.apply(changes);
        plan.actions
    }

    fn drain(&mut self, node: u32) {
        let mut spec = testing::node(node).spec;
        spec.availability = Availability::Drain;
        let id = testing::node_id(node);
        let version = self.state.node(&id).expect("there").meta.version;
        self.apply(vec![Change::UpdateNodeSpec { id, version, spec }]);
    }

    fn pass_time(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(1_000_000 + seconds, 0)
}

fn service_id() -> ServiceId {
    testing::service_id(WEB)
}

fn create(slot: u64, desired: Desired) -> Action {
    Action::Create {
        place: TaskPlace::Slot(Slot(slot)),
        desired,
        not_before: Timestamp::EPOCH,
    }
}

fn set(task: u32, desired: Desired) -> Action {
    Action::SetDesired {
        task: testing::task_id(task),
        desired,
    }
}

fn updating(action: &Action) -> Option<(UpdateState, &str)> {
    match action {
        Action::SetUpdate(update) | Action::Rollback(update) => {
            Some((update.state, update.message.as_str()))
        }
        _other => None,
    }
}

#[test]
fn free_slots_are_filled_from_the_lowest_number() {
    let mut scene = Scene::replicas(3);
    scene.task(1, 2, 1, TaskState::Running);
    let wanted = [create(1, Desired::Running), create(3, Desired::Running)];
    assert_eq!(scene.decide().actions, wanted);
}

#[test]
fn scaling_down_takes_the_second_copy_on_a_node_first_and_what_does_not_run_before_what_does() {
    let mut scene = Scene::replicas(4);
    scene.task(1, 1, 1, TaskState::Running);
    scene.task(2, 2, 1, TaskState::Running);
    scene.task(3, 3, 2, TaskState::Starting);
    scene.task(4, 4, 3, TaskState::Running);
    for (replicas, removed) in [(3, vec![2]), (2, vec![2, 3]), (1, vec![2, 3, 4])] {
        scene.edit(|s| s.mode = ServiceMode::Replicated { replicas });
        let mut actions = scene.decide().actions;
        actions.sort_by_key(|action| format!("{action:?}"));
        let wanted: Vec<Action> = removed.iter().map(|id| set(*id, Desired::Remove)).collect();
        assert_eq!(actions, wanted, "{replicas} replicas");
    }
}

#[test]
fn a_failed_task_is_replaced_in_its_own_slot_after_the_delay() {
    let mut scene = Scene::replicas(1);
    scene.task(1, 1, 1, TaskState::Failed);
    let due = scene.now.after(Duration::from_secs(5));
    let replacement = Action::Create {
        place: TaskPlace::Slot(Slot(1)),
        desired: Desired::Ready,
        not_before: due,
    };
    assert_eq!(scene.step(2), [set(1, Desired::Shutdown), replacement]);
    assert_eq!(
        scene.decide(),
        ServicePlan {
            actions: vec![],
            wake_at: Some(due),
            unfinished: false,
        }
    );
    scene.pass_time(Duration::from_secs(5));
    assert_eq!(scene.decide().actions, [set(3, Desired::Running)]);
}

#[test]
fn what_cannot_be_prepared_is_tried_again_once_for_each_delay() {
    let mut scene = Scene::replicas(1);
    scene.task(1, 1, 1, TaskState::Rejected);
    scene.step(2);
    let due = scene.now.after(Duration::from_secs(5));
    scene.status(3, TaskState::Rejected);
    let waits = ServicePlan {
        actions: vec![],
        wake_at: Some(due),
        unfinished: false,
    };
    assert_eq!(scene.decide(), waits);
    scene.pass_time(Duration::from_secs(5));
    let replacement = Action::Create {
        place: TaskPlace::Slot(Slot(1)),
        desired: Desired::Ready,
        not_before: due.after(Duration::from_secs(5)),
    };
    assert_eq!(scene.step(4), [set(3, Desired::Shutdown), replacement]);

    // A new version need not wait for the end of the old one's delay.
    scene.status(5, TaskState::Rejected);
    scene.edit(|s| s.task.container.image = "busybox:2".to_owned());
    assert_ne!(scene.decide().actions, []);
}

#[test]
fn the_successor_of_a_task_on_a_drained_node_waits_for_its_end_but_for_no_delay() {
    let mut scene = Scene::replicas(1);
    scene.task(1, 1, 1, TaskState::Running);
    scene.drain(1);
    let made = scene.step(3);
    assert!(
        matches!(made[1], Action::Create { not_before, .. } if not_before == scene.now),
        "{made:?}"
    );
    let stop = Duration::from_secs(70);
    assert_eq!(
        scene.decide(),
        ServicePlan {
            actions: vec![],
            wake_at: Some(scene.now.after(stop)),
            unfinished: false,
        },
        "the old task may still be running"
    );
    scene.status(1, TaskState::Shutdown);
    assert_eq!(scene.decide().actions, [set(4, Desired::Running)]);
}

#[test]
fn a_task_on_a_drained_node_serves_until_its_successor_runs_if_the_service_starts_first() {
    let mut scene = Scene::replicas(1);
    scene.edit(|s| s.update.order = UpdateOrder::StartFirst);
    scene.task(1, 1, 1, TaskState::Running);
    scene.drain(1);
    let made = scene.step(4);
    assert!(
        matches!(
            made[..],
            [Action::Create {
                desired: Desired::Running,
                ..
            }]
        ),
        "{made:?}"
    );
    for state in [TaskState::Preparing, TaskState::Starting] {
        scene.status(4, state);
        assert_eq!(scene.decide(), ServicePlan::default(), "{state:?}");
    }
    // A successor that fails is followed by another, and the old one serves on.
    scene.status(4, TaskState::Failed);
    let made = scene.step(6);
    assert!(
        matches!(made[..], [Action::SetDesired { task, .. }, Action::Create { .. }]
            if task == testing::task_id(4)),
        "{made:?}"
    );
    scene.pass_time(Duration::from_secs(5));
    assert_eq!(scene.step(9), [set(7, Desired::Running)]);
    scene.status(7, TaskState::Running);
    assert_eq!(scene.decide().actions, [set(1, Desired::Shutdown)]);
}

#[test]
fn a_task_on_a_drained_node_is_not_waited_for_where_nothing_may_follow_it() {
    let mut scene = Scene::replicas(1);
    scene.edit(|s| {
        s.update.order = UpdateOrder::StartFirst;
        s.task.restart.condition = RestartCondition::None;
    });
    scene.task(1, 1, 1, TaskState::Running);
    scene.drain(1);
    assert_eq!(scene.decide().actions, [set(1, Desired::Shutdown)]);
}

#[test]
fn an_update_in_the_middle_of_a_drain_never_makes_a_third_running_task() {
    let mut scene = Scene::replicas(1);
    scene.edit(|s| s.update.order = UpdateOrder::StartFirst);
    scene.task(1, 1, 1, TaskState::Running);
    scene.drain(1);
    scene.step(4);
    scene.edit(|s| s.task.force_update += 1);
    let made = scene.step(6);
    let retired = made.contains(&set(4, Desired::Shutdown));
    assert!(
        retired && made.contains(&create(1, Desired::Ready)),
        "{made:?}"
    );
    assert!(!made.contains(&set(1, Desired::Shutdown)), "{made:?}");
    // Back to the spec of the one that leaves: what the update made is replaced, not joined.
    scene.edit(|s| s.task.force_update -= 1);
    let made = scene.step(20);
    let created = |a: &&Action| matches!(a, Action::Create { .. });
    let stopped = |a: &&Action| {
        matches!(
            a,
            Action::SetDesired {
                desired: Desired::Shutdown,
                ..
            }
        )
    };
    let counts = (
        made.iter().filter(created).count(),
        made.iter().filter(stopped).count(),
    );
    assert_eq!(counts, (1, 1), "{made:?}");
}

#[test]
fn tasks_of_a_node_that_is_down_are_replaced_at_once_and_no_end_is_waited_for() {
    let mut scene = Scene::replicas(1);
    scene.task(1, 1, 1, TaskState::Running);
    let mut status = testing::node(1).status;
    status.state = NodeState::Down;
    let id = testing::node_id(1);
    scene.apply(vec![Change::SetNodeStatus { id, status }]);
    scene.step(3);
    scene.pass_time(Duration::from_secs(5));
    assert_eq!(scene.decide().actions, [set(4, Desired::Running)]);
}

#[test]
fn restart_conditions_and_the_number_of_attempts_are_kept() {
    let ended = |condition, state| {
        let mut scene = Scene::replicas(1);
        scene.edit(|s| s.task.restart.condition = condition);
        scene.task(1, 1, 1, state);
        let replaced = scene
            .step(5)
            .iter()
            .any(|a| matches!(a, Action::Create { .. }));
        assert!(
            scene.decide().actions.is_empty(),
            "the place is settled either way"
        );
        replaced
    };
    assert!(ended(RestartCondition::Any, TaskState::Complete));
    assert!(!ended(RestartCondition::OnFailure, TaskState::Complete));
    assert!(ended(RestartCondition::OnFailure, TaskState::Failed));
    assert!(!ended(RestartCondition::None, TaskState::Failed));

    let mut scene = Scene::replicas(1);
    scene.edit(|s| {
        s.task.restart.max_attempts = 2;
        s.task.restart.delay = Duration::ZERO;
    });
    scene.task(1, 1, 1, TaskState::Running);
    for round in 0..6 {
        let live: Vec<TaskId> = scene
            .state
            .tasks_of(service_id())
            .filter(|t| t.desired.wants_run())
            .map(|t| t.id)
            .collect();
        for id in live {
            let mut status = scene.state.task(&id).unwrap().status.clone();
            status.state = TaskState::Failed;
            scene.apply(vec![Change::SetTaskStatus {
                id,
                reporter: None,
                status,
            }]);
        }
        scene.step(100 + round * 10);
        scene.pass_time(Duration::from_secs(1));
    }
    let made = scene.state.tasks_of(service_id()).count();
    assert_eq!(made, 3, "the first and two attempts");
}

#[test]
fn only_what_matters_to_tasks_replaces_them() {
    let dirty = |edit: fn(&mut shoal_types::spec::ServiceSpec)| {
        let mut scene = Scene::replicas(1);
        scene.task(1, 1, 1, TaskState::Running);
        scene.edit(edit);
        !scene.decide().actions.is_empty()
    };
    assert!(!dirty(|s| {
        s.labels.insert("a".to_owned(), "b".to_owned());
    }));
    assert!(!dirty(|s| s.update.parallelism = 7));
    assert!(!dirty(
        |s| s.task.container.registry_auth = Some("x".to_owned())
    ));
    assert!(!dirty(
        |s| s.task.placement.constraints = vec!["node.hostname==node-1".to_owned()]
    ));
    assert!(dirty(
        |s| s.task.placement.constraints = vec!["node.hostname==node-2".to_owned()]
    ));
    assert!(dirty(|s| s.task.force_update = 1));
    assert!(dirty(|s| s.task.container.env = vec!["A=1".to_owned()]));
    assert!(dirty(
        |s| s.endpoint.mode = shoal_types::spec::EndpointMode::DnsRoundRobin
    ));
}

#[test]
fn a_stop_first_update_replaces_one_slot_at_a_time_and_then_says_it_is_done() {
    let mut scene = Scene::replicas(2);
    scene.task(1, 1, 1, TaskState::Running);
    scene.task(2, 2, 2, TaskState::Running);
    scene.pass_time(Duration::from_secs(1));
    scene.edit(|s| s.task.force_update = 1);
    let actions = scene.step(10);
    assert_eq!(
        updating(&actions[0]),
        Some((UpdateState::Updating, "update in progress"))
    );
    assert_eq!(
        actions[1..],
        [set(1, Desired::Shutdown), create(1, Desired::Ready)]
    );
    assert!(
        scene.decide().actions.is_empty(),
        "the old task has not stopped yet"
    );
    scene.status(1, TaskState::Shutdown);
    assert_eq!(scene.step(20), [set(12, Desired::Running)]);
    assert!(
        scene.decide().actions.is_empty(),
        "the new one does not run yet"
    );
    scene.status(12, TaskState::Running);
    assert_eq!(
        scene.step(30),
        [set(2, Desired::Shutdown), create(2, Desired::Ready)]
    );
    scene.status(2, TaskState::Shutdown);
    scene.step(40);
    scene.status(31, TaskState::Running);
    let proven = scene.now.after(Duration::from_secs(5));
    assert_eq!(
        scene.decide(),
        ServicePlan {
            actions: vec![],
            wake_at: Some(proven),
            unfinished: false,
        }
    );
    scene.now = proven;
    let actions = scene.step(50);
    assert_eq!(
        updating(&actions[0]),
        Some((UpdateState::Completed, "update completed"))
    );
    assert!(scene.decide().actions.is_empty());
}

#[test]
fn a_start_first_update_stops_the_old_task_once_the_new_one_runs() {
    let mut scene = Scene::replicas(1);
    scene.edit(|s| s.update.order = UpdateOrder::StartFirst);
    scene.task(1, 1, 1, TaskState::Running);
    scene.pass_time(Duration::from_secs(1));
    scene.edit(|s| s.task.force_update = 1);
    assert_eq!(scene.step(10)[1..], [create(1, Desired::Running)]);
    assert!(scene.decide().actions.is_empty());
    scene.status(11, TaskState::Running);
    assert_eq!(scene.decide().actions, [set(1, Desired::Shutdown)]);
}

/// An update of two slots whose first new task failed.
fn failing_update(action: FailureAction) -> Scene {
    let mut scene = Scene::replicas(2);
    scene.edit(|s| s.update.failure_action = action);
    scene.task(1, 1, 1, TaskState::Running);
    scene.task(2, 2, 2, TaskState::Running);
    scene.pass_time(Duration::from_secs(1));
    scene.edit(|s| s.task.force_update = 1);
    scene.step(10);
    scene.status(1, TaskState::Shutdown);
    scene.step(20);
    scene.status(12, TaskState::Failed);
    scene
}

#[test]
fn a_failed_update_pauses_goes_on_or_rolls_back_as_asked() {
    let failed = testing::task_id(12);
    let mut scene = failing_update(FailureAction::Pause);
    let actions = scene.step(30);
    let message = format!("update paused due to failure or early termination of task {failed}");
    let told = actions.iter().find_map(updating);
    assert_eq!(told, Some((UpdateState::Paused, message.as_str())));
    scene.pass_time(Duration::from_mins(1));
    let actions = scene.decide().actions;
    assert!(
        !actions.contains(&set(2, Desired::Shutdown)),
        "paused: {actions:?}"
    );

    let mut scene = failing_update(FailureAction::Continue);
    let actions = scene.step(30);
    assert!(
        actions.contains(&set(2, Desired::Shutdown)),
        "goes on: {actions:?}"
    );

    let mut scene = failing_update(FailureAction::Rollback);
    let old_spec = scene.state.task(&testing::task_id(2)).unwrap().spec_version;
    let actions = scene.step(30);
    let message =
        format!("update rolled back due to failure or early termination of task {failed}");
    let told = actions.iter().find_map(updating);
    assert_eq!(told, Some((UpdateState::RollbackStarted, message.as_str())));
    assert_eq!(actions.len(), 1, "nothing else until that is done");
    assert_eq!(scene.service().spec_version, old_spec);
    let actions = scene.step(40);
    assert!(
        !actions.contains(&set(2, Desired::Shutdown)),
        "it is up to date: {actions:?}"
    );
}

#[test]
fn a_task_that_ran_long_enough_before_it_failed_does_not_fail_the_update() {
    let mut scene = failing_update(FailureAction::Pause);
    scene
        .ran
        .insert(testing::task_id(12), Duration::from_secs(6));
    let actions = scene.decide().actions;
    assert!(
        !actions
            .iter()
            .filter_map(updating)
            .any(|(s, _)| s == UpdateState::Paused)
    );
}

#[test]
fn a_new_leader_takes_no_long_run_that_it_did_not_see_for_an_early_failure() {
    let mut scene = failing_update(FailureAction::Continue);
    scene.step(30);
    scene.status(2, TaskState::Shutdown);
    scene.edit(|s| s.update.failure_action = FailureAction::Pause);
    scene.edit(|s| s.task.force_update = 2);
    scene.step(40);
    let paused = |scene: &Scene| {
        let actions = scene.decide().actions;
        let mut states = actions.iter().filter_map(updating);
        states.any(|(state, _)| state == UpdateState::Paused)
    };
    let made = |scene: &Scene| {
        let current = scene.service().spec_version;
        let mut tasks = scene.state.tasks_of(service_id());
        tasks
            .find(|t| t.spec_version == current)
            .expect("a step")
            .id
    };
    let new = made(&scene);
    let mut early = Scene {
        state: scene.state.clone(),
        now: scene.now,
        ran: BTreeMap::new(),
    };
    for (scene, lived) in [(&mut early, 1), (&mut scene, 60)] {
        scene.pass_time(Duration::from_secs(lived));
        let mut status = scene.state.task(&new).expect("made").status.clone();
        status.state = TaskState::Failed;
        let (id, reporter) = (new, None);
        scene.apply(vec![Change::SetTaskStatus {
            id,
            reporter,
            status,
        }]);
    }
    assert!(paused(&early));
    assert!(!paused(&scene));
}

#[test]
fn a_new_leader_goes_on_with_an_update_where_the_old_one_was() {
    // Nothing but the state goes in, so deciding twice on the same state is what a new leader does.
    let mut scene = failing_update(FailureAction::Continue);
    scene.step(30);
    let (first, second) = (scene.decide(), scene.decide());
    assert_eq!(first, second);
}

#[test]
fn history_is_kept_to_the_limit_and_the_running_task_counts() {
    let mut scene = Scene::replicas(1);
    for id in 1..=6 {
        scene.pass_time(Duration::from_secs(1));
        scene.task_with(id, 1, 1, TaskState::Failed, |t| {
            t.desired = Desired::Shutdown;
        });
    }
    scene.task(7, 1, 1, TaskState::Running);
    let forgotten: Vec<Action> = [1, 2]
        .map(|id| Action::Forget {
            task: testing::task_id(id),
        })
        .to_vec();
    assert_eq!(scene.decide().actions, forgotten);
}

#[test]
fn a_removed_service_stops_its_tasks_and_forgets_the_ended_ones() {
    let mut scene = Scene::replicas(3);
    scene.task(1, 1, 1, TaskState::Running);
    scene.task(2, 2, 1, TaskState::Complete);
    scene.task(3, 3, 0, TaskState::Pending);
    let tasks: Vec<_> = scene.state.tasks_of(service_id()).cloned().collect();
    let forget = |id| Action::Forget {
        task: testing::task_id(id),
    };
    let wanted = [set(1, Desired::Remove), forget(2), forget(3)];
    assert_eq!(decide_removed(&tasks).actions, wanted);
}

#[test]
fn a_global_service_has_one_task_on_each_matching_node() {
    let mut scene = Scene::new(ServiceMode::Global);
    scene.edit(|s| s.task.placement.constraints = vec!["node.hostname!=node-2".to_owned()]);
    let places = |actions: &[Action]| -> Vec<NodeId> {
        let place = |action: &Action| match action {
            Action::Create {
                place: TaskPlace::Node(node),
                ..
            } => Some(*node),
            _other => None,
        };
        actions.iter().filter_map(place).collect()
    };
    let created = places(&scene.decide().actions);
    assert_eq!(created, [testing::node_id(1), testing::node_id(3)]);
    let id = testing::node_id(3);
    let version = scene.state.node(&id).unwrap().meta.version;
    let mut spec = testing::node(3).spec;
    spec.availability = Availability::Pause;
    scene.apply(vec![Change::UpdateNodeSpec { id, version, spec }]);
    assert_eq!(
        places(&scene.decide().actions),
        [testing::node_id(1)],
        "none on a paused node"
    );
}

#[test]
fn a_plan_makes_no_more_tasks_than_there_is_room_for() {
    let scene = Scene::replicas(1 << 63);
    let plan = scene.decide();
    assert_eq!(plan.actions.len(), 1000);
    assert!(plan.unfinished);
    let few = Scene::replicas(3).decide();
    assert!(!few.unfinished);
}

#[test]
fn attempts_of_a_job_are_forgotten_beyond_the_history_limit_but_not_what_is_complete() {
    let mut scene = Scene::new(ServiceMode::ReplicatedJob {
        max_concurrent: 1,
        total_completions: 1,
    });
    for attempt in 0..9 {
        scene.step(100 + 10 * attempt);
        let live = scene.state.tasks().find(|t| !t.status.state.is_terminal());
        let live = live.expect("it is tried again").id;
        let mut status = scene.state.task(&live).expect("there").status.clone();
        status.state = if attempt == 8 {
            TaskState::Complete
        } else {
            TaskState::Failed
        };
        scene.apply(vec![Change::SetTaskStatus {
            id: live,
            reporter: None,
            status,
        }]);
        scene.pass_time(Duration::from_secs(10));
    }
    scene.step(900);
    assert_eq!(scene.state.task_count(), 5, "the limit");
    let complete = |task: &&Arc<Task>| task.status.state == TaskState::Complete;
    assert_eq!(scene.state.tasks().filter(complete).count(), 1);
    assert_eq!(scene.decide().actions, []);
}

#[test]
fn a_job_runs_to_its_number_of_completions_and_no_further() {
    let mut scene = Scene::new(ServiceMode::ReplicatedJob {
        max_concurrent: 2,
        total_completions: 3,
    });
    scene.edit(|s| s.task.restart.delay = Duration::ZERO);
    let first = [create(0, Desired::Complete), create(1, Desired::Complete)];
    assert_eq!(scene.step(10), first);
    assert!(scene.decide().actions.is_empty());
    scene.status(10, TaskState::Complete);
    assert_eq!(scene.step(20), [create(2, Desired::Complete)]);
    scene.status(11, TaskState::Failed);
    let again = scene.step(30);
    assert_eq!(again[0], set(11, Desired::Shutdown));
    assert!(matches!(again[1], Action::Create { .. }), "{again:?}");
    assert_eq!(scene.step(40), [set(31, Desired::Complete)]);
    scene.status(31, TaskState::Complete);
    scene.status(20, TaskState::Complete);
    assert!(scene.decide().actions.is_empty());
    scene.edit(|s| s.task.force_update = 1);
    let rerun = scene.decide().actions;
    let created = rerun.iter().filter(|a| matches!(a, Action::Create { .. }));
    assert_eq!(created.count(), 2, "a new iteration: {rerun:?}");
}

#[test]
fn a_node_that_lost_a_label_loses_the_tasks_that_needed_it() {
    let mut scene = Scene::replicas(2);
    scene.task(1, 1, 1, TaskState::Running);
    scene.edit(|s| s.task.placement.constraints = vec!["node.labels.ssd==yes".to_owned()]);
    scene.task(2, 2, 1, TaskState::Running);
    let node = scene.state.node(&testing::node_id(1)).unwrap();
    let rejected = enforce(&scene.state, node);
    assert_eq!(
        rejected,
        [testing::task_id(2)],
        "task 1 is the updater's affair"
    );
}

proptest! {
    /// Whatever state the tasks are in: never more wanted than asked for, and after some rounds with
    /// agents that do as told there is nothing left to do.
    #[test]
    fn plans_reach_a_fixed_point_with_exactly_the_replicas_asked_for(
        replicas in 0u64..6,
        tasks in proptest::collection::vec((1u64..8, 0u32..4, 0usize..14, 0usize..5), 0..14),
        start_first: bool,
        parallelism in 0u64..3,
    ) {
        use TaskState::*;
        let states = [
            New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete,
            Shutdown, Failed, Rejected, Running, Orphaned,
        ];
        let desires = [
            Desired::Ready, Desired::Running, Desired::Running, Desired::Shutdown, Desired::Remove,
        ];
        let mut scene = Scene::replicas(3);
        for (id, (slot, node, state, desired)) in (1..).zip(tasks) {
            let state = states[state];
            let node = match state { New | Pending => 0, _assigned => node.max(1) };
            scene.task_with(id, slot, node, state, |t| t.desired = desires[desired]);
            scene.pass_time(Duration::from_millis(300));
        }
        scene.edit(|s| {
            s.mode = ServiceMode::Replicated { replicas };
            s.task.force_update = 1;
            s.update.parallelism = parallelism;
            s.update.failure_action = FailureAction::Continue;
            s.update.order =
                if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        });
        for round in 0..60u32 {
            scene.step(1000 + round * 100);
            let mut wanted: BTreeMap<TaskPlace, Vec<Arc<Task>>> = BTreeMap::new();
            let all: Vec<Arc<Task>> = scene.state.tasks_of(service_id()).cloned().collect();
            for task in &all {
                if task.desired.wants_run() {
                    wanted.entry(task.place.clone()).or_default().push(task.clone());
                }
            }
            prop_assert!(wanted.len() as u64 <= replicas, "{wanted:#?}");
            for task in all {
                let next = match task.desired {
                    _ if task.status.state.is_terminal() => continue,
                    Desired::Shutdown | Desired::Remove => Shutdown,
                    Desired::Ready => Ready,
                    _runs if task.node.is_none() => {
                        let node = testing::node_id(1);
                        let generic = Vec::new();
                        scene.apply(vec![Change::AssignTask { id: task.id, node, generic }]);
                        continue;
                    }
                    _runs => Running,
                };
                let mut status = task.status.clone();
                status.state = next.max(status.state);
                scene.apply(vec![Change::SetTaskStatus { id: task.id, reporter: None, status }]);
            }
            scene.pass_time(Duration::from_secs(3));
        }
        let plan = scene.decide();
        prop_assert!(plan.actions.is_empty(), "{:#?}", plan.actions);
        let live = scene.state.tasks_of(service_id()).filter(|t| t.desired.wants_run());
        let live: Vec<_> = live.collect();
        prop_assert_eq!(live.len() as u64, replicas);
        let settled = live.iter().all(|t| {
            t.status.state == Running && t.spec_version == scene.service().spec_version
        });
        prop_assert!(settled, "{live:#?}");
    }
}
