//! A large cluster, placed by the real brain and held by the real state: how fast, in how much memory,
//! and how soon a dead node's tasks are elsewhere.

use std::{
    fs,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shoal_manager::cores::{Brain, create_service};
use shoal_raft_store::{Change, Command, ObjectChange, State};
use shoal_types::{
    NodeId, ServiceId, TaskState, TaskStatus, Timestamp, Version,
    object::{NodeState, NodeStatus},
    spec::{EndpointMode, ServiceMode},
};

use crate::{cluster, world::START};

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub tasks: usize,
    /// Placements a second, over the first and the last tenth: deciding and applying.
    pub first: f64,
    pub last: f64,
    /// From a node's end to the command that has its tasks elsewhere, applied.
    pub reschedule: Duration,
    /// Its tasks.
    pub moved: usize,
    /// The most memory this process ever had.
    pub memory_bytes: u64,
}

struct Leader {
    state: State,
    brain: Brain,
    now: Timestamp,
    rng: StdRng,
}

impl Leader {
    fn apply(&mut self, changes: Vec<Change>) {
        let command = Command {
            at: self.now,
            changes,
        };
        self.commit(&command);
    }

    fn commit(&mut self, command: &Command) {
        let version = Version(self.state.version().0 + 1);
        let (_, changes) = self
            .state
            .apply(version, command)
            .expect("nobody else changes this state");
        for change in &changes {
            self.brain.observe(change);
        }
    }

    /// Passes until nothing is left to do; calls `after` with the number of tasks made so far.
    fn settle(&mut self, mut after: impl FnMut(usize)) {
        loop {
            let plan = self
                .brain
                .decide(&self.state, Vec::new(), self.now, &mut self.rng);
            if plan.commands.is_empty() {
                return;
            }
            for command in &plan.commands {
                self.commit(command);
            }
            after(self.state.task_count());
        }
    }
}

/// `tasks` tasks of services of a thousand replicas on `nodes` nodes.
pub fn measure(nodes: usize, tasks: usize) -> Scale {
    const REPLICAS: usize = 1000;
    let mut rng = StdRng::seed_from_u64(7);
    let mut state = State::default();
    let mut changes = cluster::founding();
    // Tasks need addresses, and the network they are in by default has to hold them all.
    for change in &mut changes {
        if let Change::CreateNetwork(network) = change {
            cluster::widen(network);
        }
    }
    let ids: Vec<NodeId> = (0..nodes)
        .map(|_| NodeId::from_random(rng.random()))
        .collect();
    for (index, id) in ids.iter().enumerate() {
        let addr = std::net::Ipv4Addr::from(0xac10_0000 + u32::try_from(index).expect("few"));
        let mut node = cluster::node(*id, index, None, addr.into());
        node.status.state = NodeState::Ready;
        changes.push(Change::CreateNode(Box::new(node)));
    }
    let found = Command { at: START, changes };
    state
        .apply(Version(1), &found)
        .expect("a new cluster's own objects do not collide");
    let mut leader = Leader {
        brain: Brain::new(&state),
        state,
        now: START,
        rng,
    };
    leader.settle(|_| {});
    let tenth = tasks / 10;
    let mut spent = Duration::ZERO;
    let mut marks = Vec::new();
    for n in 0..tasks / REPLICAS {
        let mode = ServiceMode::Replicated {
            replicas: REPLICAS as u64,
        };
        let mut spec = cluster::service(&format!("s{n}"), "good:1", mode);
        spec.endpoint.mode = EndpointMode::DnsRoundRobin;
        let id = ServiceId::from_random(leader.rng.random());
        let create = create_service(&leader.state, id, spec).expect("the spec is good");
        let begun = Instant::now();
        leader.apply(vec![create]);
        leader.settle(|_| {});
        spent += begun.elapsed();
        if leader.state.task_count() % tenth < REPLICAS {
            marks.push((leader.state.task_count(), spent));
        }
    }
    run_all_tasks(&mut leader);
    let (reschedule, moved) = lose_a_node(&mut leader, ids[nodes / 2]);
    let rate = |from: (usize, Duration), to: (usize, Duration)| {
        #[expect(clippy::cast_precision_loss, reason = "a million is exact")]
        let count = (to.0 - from.0) as f64;
        count / to.1.saturating_sub(from.1).as_secs_f64()
    };
    let begin = (0, Duration::ZERO);
    let (second_last, last) = (marks[marks.len() - 2], marks[marks.len() - 1]);
    Scale {
        tasks: leader.state.task_count(),
        first: rate(begin, marks[0]),
        last: rate(second_last, last),
        reschedule,
        moved,
        memory_bytes: peak_memory(),
    }
}

/// Every agent reports that its tasks run.
fn run_all_tasks(leader: &mut Leader) {
    let tasks: Vec<_> = leader.state.tasks().map(|task| task.id).collect();
    for batch in tasks.chunks(1000) {
        let running = batch.iter().map(|id| Change::SetTaskStatus {
            id: *id,
            reporter: None,
            status: TaskStatus {
                state: TaskState::Running,
                at: leader.now,
                ..TaskStatus::default()
            },
        });
        let running = running.collect();
        leader.apply(running);
    }
    leader.settle(|_| {});
}

fn lose_a_node(leader: &mut Leader, node: NodeId) -> (Duration, usize) {
    leader.now = leader.now.after(Duration::from_mins(1));
    let lost = leader.state.tasks_on(node).count();
    let down = Change::SetNodeStatus {
        id: node,
        status: NodeStatus {
            state: NodeState::Down,
            message: "heartbeat failure".to_owned(),
            addr: String::new(),
            since: leader.now,
        },
    };
    let begun = Instant::now();
    let plan = leader
        .brain
        .decide(&leader.state, vec![down], leader.now, &mut leader.rng);
    let mut elsewhere = 0;
    for command in &plan.commands {
        let version = Version(leader.state.version().0 + 1);
        let (_, changes) = leader
            .state
            .apply(version, command)
            .expect("nobody else changes this state");
        for change in &changes {
            leader.brain.observe(change);
            if let ObjectChange::Task {
                before: None,
                after: Some(task),
            } = change
            {
                elsewhere += usize::from(task.node.is_some_and(|at| at != node));
            }
        }
    }
    let took = begun.elapsed();
    assert_eq!(elsewhere, lost, "every task of the node has a successor");
    (took, elsewhere)
}

/// `VmHWM` of proc(5).
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
