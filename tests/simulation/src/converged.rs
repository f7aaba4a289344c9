//! What must hold once nothing has gone wrong for a while, and what the users were told.

use std::{collections::BTreeMap, sync::Arc};

use rand::{SeedableRng, rngs::StdRng};
use shoal_manager::cores::{Brain, assignments};
use shoal_raft_store::State;
use shoal_types::{
    TaskState,
    object::{NodeState, Service, Task, TaskPlace, UpdateState},
    spec::ServiceMode,
};

use crate::{
    cluster,
    users::{Answer, GOOD},
    world::World,
};

impl World {
    /// A service that lacks something and does not say why, or a machine that is no node.
    pub(crate) fn unexplained(&self) -> Option<String> {
        let state = self.witness.state();
        for (host, machine) in self.hosts.iter().enumerate() {
            let node = state.node(&machine.node).map(|node| node.status.state);
            if node != Some(NodeState::Ready) {
                return Some(format!("host {host} is {node:?}"));
            }
        }
        state
            .services()
            .find_map(|service| unfilled(state, service))
    }

    /// What is not as it should be yet; the first thing found.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(leader) = self.leader() else {
            return Some("nobody leads".to_owned());
        };
        let Some(manager) = self.hosts[leader].manager.as_ref() else {
            return Some("the leader is no manager".to_owned());
        };
        let state = &manager.state;
        for (host, machine) in self.hosts.iter().enumerate() {
            if let Some(manager) = &machine.manager
                && manager.state != *state
            {
                let (is, should) = (manager.state.version(), state.version());
                let log = manager.replica.summary();
                let its = self.hosts[leader]
                    .manager
                    .as_ref()
                    .map(|m| m.replica.summary());
                return Some(format!(
                    "manager {host} is at {is} ({log}), the leader at {should} ({its:?})"
                ));
            }
        }
        let unexplained = self.unexplained();
        if unexplained.is_some() {
            return unexplained;
        }
        if state.nodes().count() != self.hosts.len() {
            return Some("there are more nodes than machines".to_owned());
        }
        if let Some(task) = state
            .tasks()
            .find(|task| state.service(&task.service).is_none())
        {
            return Some(format!("{} outlives its service", task.name()));
        }
        for (host, machine) in self.hosts.iter().enumerate() {
            let set = assignments(state, machine.node);
            if let Some(difference) = self.differences(host, &set) {
                return Some(format!("host {host}: {difference}"));
            }
        }
        None
    }

    /// Something that a leader with a fresh mind would still do, although nothing is under way.
    pub(crate) fn undone(&self) -> Option<String> {
        let leader = self.leader()?;
        let state = &self.hosts[leader].manager.as_ref()?.state;
        let mut rng = StdRng::seed_from_u64(1);
        let now = self.wall(leader).max(state.clock());
        let plan = Brain::new(state).decide(state, Vec::new(), now, &mut rng);
        let changes = plan.commands.iter().flat_map(|command| &command.changes);
        let changes: Vec<String> = changes.map(|change| format!("{change:?}")).collect();
        (!changes.is_empty()).then(|| changes.join("\n"))
    }

    /// Each acknowledged write is in the history, where it was said to be, once; and no two writes
    /// both took the place of the same version of an object.
    ///
    /// Writes are totally ordered by their place in the log. An answer carries that place, and is never
    /// below one that somebody was told of before the request was made (checked as answers come in), so
    /// the order of the log agrees with real time; a read shows the state after some place of the log
    /// that obeys the same rule; and an optimistic write succeeds only directly after the write whose
    /// version it names. That is a linearizable register for each object.
    pub(crate) fn check_history(&mut self) {
        let mut replaced: BTreeMap<_, u64> = BTreeMap::new();
        let mut wrong = None;
        for (number, op) in &self.users.ops {
            let Some(Answer::Done(version)) = op.answer else {
                continue;
            };
            if self.witness.effect(version.0) != op.proposal {
                let is = self.witness.effect(version.0);
                let text = format!("{:?} was told {version}, where {is:?} is", op.proposal);
                wrong = wrong.or(Some(("acknowledged writes stay", text)));
            }
            if self.witness.changed(version.0)
                && let Some(names) = op.ask.names()
                && let Some(other) = replaced.insert(names.clone(), *number)
            {
                let text = format!("{other} and {number} both replaced {names:?}");
                wrong = wrong.or(Some(("no lost update", text)));
            }
        }
        if let Some((invariant, text)) = wrong {
            self.violate(invariant, text);
        }
    }
}

/// Why the service has not what it asks for, unless it says so itself.
fn unfilled(state: &State, service: &Service) -> Option<String> {
    let tasks: Vec<&Arc<Task>> = state.tasks_of(service.id).collect();
    let mut places: BTreeMap<&TaskPlace, Vec<&Task>> = BTreeMap::new();
    for task in &tasks {
        places.entry(&task.place).or_default().push(task);
    }
    let updating = service.update.as_ref().is_some_and(|update| {
        matches!(
            update.state,
            UpdateState::Updating | UpdateState::RollbackStarted
        )
    });
    let name = &service.spec.name;
    let good = GOOD.contains(&service.spec.task.container.image.as_str());
    if let Some((place, kept)) = places
        .iter()
        .find(|(_, kept)| kept.len() > cluster::HISTORY)
        && good
        && !updating
    {
        return Some(format!(
            "{} tasks are kept in {place:?} of {name}",
            kept.len()
        ));
    }
    let explained = tasks
        .iter()
        .any(|task| !task.status.err.is_empty() || task.status.state == TaskState::Complete);
    if !good && explained {
        return None;
    }
    let stopping = tasks
        .iter()
        .find(|task| !task.desired.wants_run() && !task.status.state.is_terminal());
    if let Some(task) = stopping {
        return Some(format!(
            "{} is to stop and is {}",
            task.name(),
            task.status.state
        ));
    }
    let running = tasks.iter().filter(|task| {
        task.desired.wants_run()
            && task.status.state == TaskState::Running
            && task.spec == service.spec.task
    });
    let running = running.count();
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => usize::try_from(replicas).unwrap_or(usize::MAX),
        _global => state.nodes().count(),
    };
    if running == wanted && !updating {
        return None;
    }
    // It may be short of what it asks for if it says why.
    let paused = service.update.as_ref().is_some_and(|update| {
        matches!(
            update.state,
            UpdateState::Paused | UpdateState::RollbackPaused
        ) && !update.message.is_empty()
    });
    let excused = paused || !service.err.is_empty() || {
        // Nobody has room for it, and it says so.
        let waits = tasks
            .iter()
            .filter(|task| task.node.is_none() && task.desired.wants_run());
        let waits: Vec<_> = waits.collect();
        !waits.is_empty() && waits.iter().all(|task| !task.status.err.is_empty())
    };
    (!excused).then(|| {
        let states: Vec<String> = tasks
            .iter()
            .map(|task| {
                format!(
                    "{:?} {:?} {} on {:?} spec {} {} {:?}",
                    task.place,
                    task.desired,
                    task.status.state,
                    task.node,
                    task.spec_version,
                    task.spec.container.image,
                    task.status.err
                )
            })
            .collect();
        format!(
            "{running} of {wanted} tasks of {name} run; spec {} {}; update {:?};\n  {}",
            service.spec_version,
            service.spec.task.container.image,
            service.update,
            states.join("\n  ")
        )
    })
}
