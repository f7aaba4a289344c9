//! A large cluster, placed by the real brain and held by the real state: how fast, in how much memory,
//! and how soon a dead node's tasks are elsewhere.

use std::{fs, time::Duration};

use nix::time::{ClockId, clock_gettime};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use shoal_manager::cores::{Brain, create_service};
use shoal_raft_store::{Change, Command, ObjectChange, State};
use shoal_types::{
    NodeId, ServiceId, TaskState, TaskStatus, Timestamp, Version,
    object::{NodeState, NodeStatus},
    spec::{EndpointMode, ServiceMode},
};

use crate::{cluster, world::START};

/// What was measured. Times are the processor's, which other programs on the machine do not stretch.
#[derive(Debug, Clone)]
pub struct Scale {
    pub tasks: usize,
    /// Placements a second, over each tenth of the tasks: deciding and applying.
    pub tenths: Vec<f64>,
    /// From a node's end until its tasks are elsewhere: deciding and applying.
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

    /// Passes until nothing is left to do.
    fn settle(&mut self) {
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
    leader.settle();
    let tenth = tasks / 10;
    let mut tenths = Vec::new();
    let (mut placed, mut spent) = (0, Duration::ZERO);
    for n in 0..tasks / REPLICAS {
        let mode = ServiceMode::Replicated {
            replicas: REPLICAS as u64,
        };
        let mut spec = cluster::service(&format!("s{n}"), "good:1", mode);
        spec.endpoint.mode = EndpointMode::DnsRoundRobin;
        let id = ServiceId::from_random(leader.rng.random());
        let create = create_service(&leader.state, id, spec).expect("the spec is good");
        let begun = processor_time();
        leader.apply(vec![create]);
        leader.settle();
        spent += processor_time().saturating_sub(begun);
        let tasks = leader.state.task_count() - placed;
        if tasks >= tenth {
            #[expect(clippy::cast_precision_loss, reason = "a million is exact")]
            tenths.push(tasks as f64 / spent.as_secs_f64());
            (placed, spent) = (leader.state.task_count(), Duration::ZERO);
        }
    }
    run_all_tasks(&mut leader);
    let (reschedule, moved) = lose_a_node(&mut leader, ids[nodes / 2]);
    Scale {
        tasks: leader.state.task_count(),
        tenths,
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
    leader.settle();
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
    let begun = processor_time();
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
    let took = processor_time().saturating_sub(begun);
    assert_eq!(elsewhere, lost, "every task of the node has a successor");
    (took, elsewhere)
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every Linux has this clock")
        .into()
}

/// `VmHWM` of proc(5).
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
