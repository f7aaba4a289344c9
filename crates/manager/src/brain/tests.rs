use rand::{SeedableRng, rngs::StdRng};
use shoal_types::{
    Slot, Version,
    object::{NodeState, NodeStatus, TaskPlace},
    spec::{EndpointSpec, ServiceMode},
};

use super::*;
use crate::testing;

fn apply(state: &mut State, changes: Vec<Change>) -> Result<(), Rejection> {
    let version = Version(state.version().0 + 1);
    let at = Timestamp::from_unix(i64::try_from(version.0).unwrap_or(0), 0);
    state.apply(version, &Command { at, changes }).map(drop)
}

fn state(replicas: u64) -> State {
    let mut state = State::default();
    let mut changes = testing::cluster_changes();
    changes.push(Change::CreateNode(Box::new(testing::node(1))));
    let mode = ServiceMode::Replicated { replicas };
    changes.push(Change::CreateService {
        id: testing::service_id(1),
        spec: Box::new(testing::service_spec("web", mode)),
    });
    apply(&mut state, changes).expect("fits");
    state
}

fn decide(brain: &mut Brain, state: &State) -> Plan {
    let now = Timestamp::from_unix(1000, 0);
    brain.decide(state, Vec::new(), now, &mut StdRng::seed_from_u64(1))
}

#[test]
fn one_command_takes_a_new_service_all_the_way_to_assigned_tasks() {
    let mut state = state(3);
    let plan = decide(&mut Brain::new(&state), &state);
    assert_eq!(plan.commands.len(), 1);
    for command in plan.commands {
        apply(&mut state, command.changes).expect("the plan fits the state it was made on");
    }
    let service = state.service(&testing::service_id(1)).unwrap();
    assert!(service.endpoint.is_some());
    let tasks: Vec<_> = state.tasks().collect();
    assert_eq!(tasks.len(), 3);
    for task in tasks {
        assert_eq!(task.status.state, TaskState::Assigned);
        assert_eq!(task.node, Some(testing::node_id(1)));
        assert_eq!(task.attachments.len(), 1, "in the bridge network");
    }
}

#[test]
fn a_plan_on_a_stale_state_is_refused_without_effect_and_made_again() {
    let mut state = state(3);
    let mut brain = Brain::new(&state);
    let outdated = decide(&mut brain, &state);
    let service = state.service(&testing::service_id(1)).unwrap().clone();
    let mut spec = service.spec.clone();
    spec.task.force_update = 1;
    let update = Change::UpdateServiceSpec {
        id: service.id,
        version: service.meta.version,
        spec: Box::new(spec),
    };
    apply(&mut state, vec![update]).expect("fits");
    let before = state.clone();
    for command in outdated.commands {
        let refused = apply(&mut state, command.changes);
        assert!(
            matches!(refused, Err(Rejection::OutOfSequence { .. })),
            "{refused:?}"
        );
    }
    assert!(state.tasks().eq(before.tasks()));
    brain.revert(&state);
    for command in decide(&mut brain, &state).commands {
        apply(&mut state, command.changes).expect("the new plan fits");
    }
    assert_eq!(state.task_count(), 3);
    let current = state.service(&service.id).unwrap().spec_version;
    assert!(state.tasks().all(|task| task.spec_version == current));
}

#[test]
fn a_rollback_that_is_refused_pauses_the_update_with_the_reason() {
    let mut state = state(1);
    let id = testing::service_id(1);
    let service = state.service(&id).unwrap().clone();
    let mut draft = Draft::new(state.clone(), Timestamp::from_unix(9, 0));
    let update = UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: draft.now,
        completed_at: None,
        message: String::new(),
    };
    // It has no previous spec.
    Brain::new(&state).roll_back(&mut draft, &service, update);
    apply(&mut state, draft.into_changes()).expect("fits");
    let update = state.service(&id).unwrap().update.clone().unwrap();
    assert_eq!(update.state, UpdateState::Paused);
    assert!(
        update.message.contains("does not have a previous spec"),
        "{}",
        update.message
    );
}

#[test]
fn a_clock_set_forward_does_not_orphan_the_tasks_of_a_node_that_is_down() {
    let mut state = state(1);
    let mut brain = Brain::new(&state);
    for command in decide(&mut brain, &state).commands {
        apply(&mut state, command.changes).expect("fits");
    }
    let down = Change::SetNodeStatus {
        id: testing::node_id(1),
        status: NodeStatus {
            state: NodeState::Down,
            message: String::new(),
            addr: String::new(),
            since: Timestamp::from_unix(1000, 0),
        },
    };
    apply(&mut state, vec![down]).expect("fits");
    let orphaned = |brain: &mut Brain, hours: u64| {
        let now = Timestamp::from_unix(1000, 0).after(Duration::from_hours(hours));
        let plan = brain.decide(&state, Vec::new(), now, &mut StdRng::seed_from_u64(1));
        let changes = plan.commands.iter().flat_map(|command| &command.changes);
        changes
            .filter(|change| {
                matches!(change, Change::SetTaskStatus { status, .. }
                    if status.state == TaskState::Orphaned)
            })
            .count()
    };
    let mut brain = Brain::new(&state);
    assert_eq!(orphaned(&mut brain, 0), 0);
    brain.forget_time();
    assert_eq!(orphaned(&mut brain, 30), 0);
    assert_eq!(orphaned(&mut brain, 53), 0);
    assert_eq!(orphaned(&mut brain, 54), 1);
}

#[test]
fn what_cannot_be_placed_says_why_and_is_placed_when_a_node_comes() {
    let mut state = state(0);
    let service = state.service(&testing::service_id(1)).unwrap().clone();
    let mut spec = service.spec.clone();
    spec.mode = ServiceMode::Replicated { replicas: 1 };
    spec.task.placement.constraints = vec!["node.hostname == node-2".to_owned()];
    spec.endpoint = EndpointSpec::default();
    let update = Change::UpdateServiceSpec {
        id: service.id,
        version: service.meta.version,
        spec: Box::new(spec),
    };
    apply(&mut state, vec![update]).expect("fits");
    let mut brain = Brain::new(&state);
    for command in decide(&mut brain, &state).commands {
        apply(&mut state, command.changes).expect("fits");
    }
    let task = state.tasks().next().expect("made").clone();
    assert_eq!(task.place, TaskPlace::Slot(Slot(1)));
    assert_eq!(task.status.state, TaskState::Pending);
    assert_eq!(
        task.status.err,
        "no suitable node (scheduling constraints not satisfied on 1 node)"
    );
    let node = Arc::new(testing::node(2));
    apply(
        &mut state,
        vec![Change::CreateNode(Box::new((*node).clone()))],
    )
    .expect("fits");
    brain.observe(&ObjectChange::Node {
        before: None,
        after: Some(node),
    });
    for command in decide(&mut brain, &state).commands {
        apply(&mut state, command.changes).expect("fits");
    }
    let task = state.task(&task.id).expect("there");
    assert_eq!(task.node, Some(testing::node_id(2)));
    assert_eq!(task.status.err, "");
}
