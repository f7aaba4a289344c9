//! Whole clusters in one thread and virtual time: users, agents and failures drawn from a seed, the
//! real decisions, and the real state. After the faults stop, every service must come to what was
//! asked for. `SHOAL_SEED=n cargo test -p shoal-manager simulation` runs one seed again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use shoal_raft_store::{Change, Command, ObjectChange, Rejection, State};
use shoal_types::{
    Desired, NodeId, ServiceId, TaskId, TaskState, TaskStatus, Timestamp, Version,
    object::{NodeState, Service, Task, TaskPlace, UpdateState},
    spec::{
        Availability, EndpointSpec, FailureAction, NetworkAttachmentSpec, PortConfig, Protocol,
        PublishMode, ServiceMode, ServiceSpec, UpdateOrder,
    },
};

use crate::{
    brain::Brain,
    dispatch::assignments,
    liveness::{Liveness, LivenessConfig},
    testing,
};

const SEEDS: u64 = 100;

struct Cluster {
    rng: StdRng,
    state: State,
    now: Timestamp,
    brain: Brain,
    liveness: Liveness,
    wake_at: Option<Timestamp>,
    feed: Vec<ObjectChange>,
    agents: BTreeMap<NodeId, Agent>,
    /// Nodes that were down at some time: for their tasks nobody can vouch.
    doubtful: BTreeSet<NodeId>,
    commands: usize,
    faults: bool,
    names: u32,
}

/// A node's worker: the true state of its tasks, and whether managers can reach it.
#[derive(Default)]
struct Agent {
    tasks: BTreeMap<TaskId, TaskStatus>,
    cut_off: bool,
    generation: u64,
}

impl Cluster {
    fn new(seed: u64, nodes: u32) -> Self {
        let now = Timestamp::from_unix(1_800_000_000, 0);
        let mut state = State::default();
        let mut changes = testing::cluster_changes();
        changes.extend((1..=nodes).map(|n| Change::CreateNode(Box::new(testing::node(n)))));
        state
            .apply(Version(1), &Command { at: now, changes })
            .expect("a new cluster");
        let mut cluster = Self {
            rng: StdRng::seed_from_u64(seed),
            brain: Brain::new(&state),
            liveness: Liveness::new(LivenessConfig::default(), now),
            state,
            now,
            wake_at: None,
            feed: Vec::new(),
            agents: (1..=nodes)
                .map(|n| (testing::node_id(n), Agent::default()))
                .collect(),
            doubtful: BTreeSet::new(),
            commands: 0,
            faults: false,
            names: 0,
        };
        cluster.connect_all();
        cluster
    }

    fn connect_all(&mut self) {
        for (id, agent) in &self.agents {
            if !agent.cut_off {
                self.liveness.opened(*id, 1, None, self.now);
            }
        }
    }

    fn commit(&mut self, command: &Command) -> Result<(), Rejection> {
        let version = Version(self.state.version().0 + 1);
        let (_, changes) = self.state.apply(version, command)?;
        self.feed.extend(changes);
        Ok(())
    }

    fn user(&mut self, change: Change) -> Result<(), Rejection> {
        let command = Command {
            at: self.now,
            changes: vec![change],
        };
        self.commit(&command)
    }

    /// One pass of the leader, if something woke it.
    fn pass(&mut self) {
        let (first, live_at) = self.liveness.decide(&self.state, self.now, self.now);
        for change in &first {
            if let Change::SetNodeStatus { id, status } = change
                && status.state == NodeState::Down
            {
                self.doubtful.insert(*id);
            }
        }
        let due = self.wake_at.is_some_and(|at| at <= self.now);
        let _ = live_at;
        if self.feed.is_empty() && first.is_empty() && !due {
            return;
        }
        for change in std::mem::take(&mut self.feed) {
            self.brain.observe(&change);
        }
        let plan = self
            .brain
            .decide(&self.state, first, self.now, &mut self.rng);
        self.wake_at = plan.wake_at;
        for command in plan.commands {
            // Now and then a user is faster than the plan.
            if self.faults && self.rng.random_ratio(1, 50) {
                self.act_as_user();
            }
            self.commands += 1;
            self.check_promotions(&command);
            if self.commit(&command).is_err() {
                for change in std::mem::take(&mut self.feed) {
                    self.brain.observe(&change);
                }
                self.brain.revert(&self.state);
                self.wake_at = Some(self.now);
                return;
            }
        }
    }

    /// Every agent that managers can reach takes its assignments, moves its tasks on, and reports.
    fn agents(&mut self) {
        let ids: Vec<NodeId> = self.agents.keys().copied().collect();
        for id in ids {
            let mut agent = self.agents.remove(&id).expect("listed");
            let assigned = (!agent.cut_off).then(|| assignments(&self.state, id));
            if let Some(assigned) = &assigned {
                assert!(assigned.generation.0 >= agent.generation);
                agent.generation = assigned.generation.0;
                let known: BTreeSet<TaskId> = assigned.tasks.iter().map(|t| t.id).collect();
                agent.tasks.retain(|task, _| known.contains(task));
                self.liveness.heard(id, self.now);
                let mut reports = Vec::new();
                for task in &assigned.tasks {
                    let local = agent
                        .tasks
                        .entry(task.id)
                        .or_insert_with(|| task.status.clone());
                    if advance(task, local, self.now, &mut self.rng) || *local != task.status {
                        reports.push(Change::SetTaskStatus {
                            id: task.id,
                            reporter: Some(id),
                            status: local.clone(),
                        });
                    }
                }
                if !reports.is_empty() {
                    let command = Command {
                        at: self.now,
                        changes: reports,
                    };
                    self.commit(&command).expect("reports are never refused");
                }
            }
            self.agents.insert(id, agent);
        }
    }

    fn act_as_user(&mut self) {
        let services: Vec<Service> = self.state.services().map(|s| (**s).clone()).collect();
        let pick = services.choose(&mut self.rng).cloned();
        let choice = self.rng.random_range(0..10);
        let result = match (choice, pick) {
            (0..=2, Some(service)) => {
                let mut spec = service.spec.clone();
                self.change(&mut spec);
                self.user(Change::UpdateServiceSpec {
                    id: service.id,
                    version: service.meta.version,
                    spec: Box::new(spec),
                })
            }
            (3, Some(service)) if services.len() > 1 => {
                self.user(Change::RemoveService { id: service.id })
            }
            (4, _) => {
                let nodes: Vec<_> = self.state.nodes().cloned().collect();
                let node = nodes.choose(&mut self.rng).expect("there is a node");
                let mut spec = node.spec.clone();
                spec.availability = *[
                    Availability::Active,
                    Availability::Active,
                    Availability::Pause,
                    Availability::Drain,
                ]
                .choose(&mut self.rng)
                .expect("not empty");
                self.user(Change::UpdateNodeSpec {
                    id: node.id,
                    version: node.meta.version,
                    spec,
                })
            }
            _create if services.len() < 4 => {
                self.names += 1;
                let mode = if self.rng.random_ratio(1, 4) {
                    ServiceMode::Global
                } else {
                    ServiceMode::Replicated {
                        replicas: self.rng.random_range(0..8),
                    }
                };
                let mut spec = testing::service_spec(&format!("s{}", self.names), mode);
                spec.task.restart.delay = Duration::from_secs(self.rng.random_range(0..6));
                self.change(&mut spec);
                let id = ServiceId::from_random(self.rng.random());
                self.user(Change::CreateService {
                    id,
                    spec: Box::new(spec),
                })
            }
            _nothing => Ok(()),
        };
        result.expect("what a user does on the newest state is accepted");
    }

    /// A random edit of a service.
    fn change(&mut self, spec: &mut ServiceSpec) {
        let rng = &mut self.rng;
        if let ServiceMode::Replicated { replicas } = &mut spec.mode
            && rng.random_bool(0.5)
        {
            *replicas = rng.random_range(0..8);
        }
        if rng.random_bool(0.5) {
            let image = ["good:1", "good:2", "bad", "quits"].choose(rng);
            (*image.expect("not empty")).clone_into(&mut spec.task.container.image);
        }
        if rng.random_bool(0.3) {
            spec.task.networks = vec![NetworkAttachmentSpec {
                network: testing::network_id(3),
                aliases: Vec::new(),
            }];
        }
        if rng.random_bool(0.2) {
            spec.endpoint = EndpointSpec {
                ports: vec![PortConfig {
                    name: String::new(),
                    protocol: Protocol::Tcp,
                    target: 80,
                    published: 0,
                    mode: PublishMode::Ingress,
                }],
                ..EndpointSpec::default()
            };
        }
        spec.update.order = if rng.random_bool(0.5) {
            UpdateOrder::StopFirst
        } else {
            UpdateOrder::StartFirst
        };
        spec.update.parallelism = rng.random_range(0..4);
        spec.update.delay = Duration::from_millis(rng.random_range(0..3000));
        spec.update.failure_action = *[
            FailureAction::Pause,
            FailureAction::Continue,
            FailureAction::Rollback,
        ]
        .choose(rng)
        .expect("not empty");
        spec.task.reservations.nano_cpus = *[0, 0, 100_000_000].choose(rng).expect("not empty");
    }

    fn act_as_fate(&mut self) {
        let ids: Vec<NodeId> = self.agents.keys().copied().collect();
        let id = *ids.choose(&mut self.rng).expect("there is a node");
        let choice = self.rng.random_range(0..5);
        let agent = self.agents.get_mut(&id).expect("listed");
        match choice {
            0 if !agent.cut_off => {
                agent.cut_off = true;
                if self.rng.random_bool(0.5) {
                    self.liveness.closed(id, 1, self.now);
                }
            }
            1 if agent.cut_off => {
                agent.cut_off = false;
                self.liveness.opened(id, 1, None, self.now);
            }
            // The machine restarts: what ran there has failed.
            2 => fail_all(agent, self.now),
            3 => self.change_leader(),
            _nothing => {}
        }
    }

    /// A new leader knows the store and nothing else.
    fn change_leader(&mut self) {
        self.brain = Brain::new(&self.state);
        self.liveness = Liveness::new(LivenessConfig::default(), self.now);
        self.feed.clear();
        self.wake_at = Some(self.now);
        self.connect_all();
    }

    fn heal(&mut self) {
        for agent in self.agents.values_mut() {
            agent.cut_off = false;
        }
        self.connect_all();
        let nodes: Vec<_> = self.state.nodes().cloned().collect();
        for node in nodes {
            let mut spec = node.spec.clone();
            spec.availability = Availability::Active;
            let version = node.meta.version;
            let id = node.id;
            self.user(Change::UpdateNodeSpec { id, version, spec })
                .expect("accepted");
        }
        let services: Vec<_> = self.state.services().cloned().collect();
        for service in services {
            let mut spec = service.spec.clone();
            "good:3".clone_into(&mut spec.task.container.image);
            self.user(Change::UpdateServiceSpec {
                id: service.id,
                version: service.meta.version,
                spec: Box::new(spec),
            })
            .expect("accepted");
        }
    }

    fn step(&mut self, faults: bool) {
        self.faults = faults;
        self.now = self
            .now
            .after(Duration::from_millis(self.rng.random_range(20..600)));
        if faults {
            if self.rng.random_ratio(1, 12) {
                self.act_as_user();
            }
            if self.rng.random_ratio(1, 25) {
                self.act_as_fate();
            }
        }
        let before = self.state.version();
        self.pass();
        self.agents();
        if self.state.version() != before {
            self.check();
        }
    }

    /// A task that was made to wait is started only once nothing that was asked to stop runs in its
    /// place any more.
    fn check_promotions(&self, command: &Command) {
        for change in &command.changes {
            let Change::SetTaskDesired { id, desired } = change else {
                continue;
            };
            let Some(task) = self.state.task(id) else {
                continue;
            };
            if task.desired != Desired::Ready || *desired != Desired::Running {
                continue;
            }
            for other in self.state.tasks_of(task.service) {
                let vouched = other.node.filter(|node| !self.doubtful.contains(node));
                let agent = vouched.and_then(|node| self.agents.get(&node));
                let runs = agent
                    .and_then(|agent| agent.tasks.get(&other.id))
                    .is_some_and(|local| local.state == TaskState::Running);
                assert!(
                    other.place != task.place || other.desired.wants_run() || !runs,
                    "{id} is started while {} is still running",
                    other.id
                );
            }
        }
    }

    /// What must hold at every moment.
    fn check(&self) {
        for node in self.state.nodes() {
            let tasks = self.state.tasks_on(node.id);
            let reserved: u64 = tasks
                .filter(|task| !task.status.state.is_terminal())
                .map(|task| task.spec.reservations.nano_cpus)
                .sum();
            assert!(
                reserved <= node.description.resources.nano_cpus,
                "more is reserved on {} than it has",
                node.id
            );
        }
        for network in self.state.networks() {
            for (addr, owner) in self.state.addresses_in(network.id) {
                assert!(
                    network.subnet.contains(addr) && addr != network.gateway,
                    "{owner}"
                );
            }
        }
        for service in self.state.services() {
            self.check_service(service);
        }
    }

    fn check_service(&self, service: &Service) {
        let mut running: BTreeMap<&TaskPlace, Vec<&Task>> = BTreeMap::new();
        let mut wanted: BTreeMap<&TaskPlace, usize> = BTreeMap::new();
        for task in self.state.tasks_of(service.id) {
            if task.desired.wants_run() {
                *wanted.entry(&task.place).or_default() += 1;
            }
            let Some(node) = task.node.filter(|node| !self.doubtful.contains(node)) else {
                continue;
            };
            let local = self.agents.get(&node).and_then(|a| a.tasks.get(&task.id));
            if local.is_some_and(|status| {
                (TaskState::Starting..=TaskState::Running).contains(&status.state)
            }) {
                running.entry(&task.place).or_default().push(task);
            }
        }
        for (place, count) in wanted {
            assert!(count <= 2, "{count} tasks are wanted in {place:?}");
        }
        for (place, tasks) in running {
            // The order may have been changed after two were running, but each of the two has its reason.
            let current = tasks.iter().filter(|t| t.desired.wants_run()).count();
            assert!(
                current <= 2 && tasks.len() <= 3,
                "{} tasks run in {place:?} of {}",
                tasks.len(),
                service.spec.name
            );
            // Of one spec only a task that leaves its node has a successor beside it, where the order allows that.
            let of_one_spec = tasks.iter().all(|t| t.spec_version == service.spec_version);
            let start_first = service.spec.update.order == UpdateOrder::StartFirst;
            assert!(
                !of_one_spec || tasks.len() <= 1 + usize::from(start_first),
                "{} tasks of one spec run in {place:?}: {tasks:#?}",
                tasks.len()
            );
        }
    }

    /// What must hold once nothing has gone wrong for a long time.
    fn check_converged(&mut self) {
        for task in self.state.tasks() {
            assert!(
                self.state.service(&task.service).is_some(),
                "task {task:#?} outlives its service"
            );
        }
        for service in self.state.services() {
            let live: Vec<&Task> = self
                .state
                .tasks_of(service.id)
                .map(AsRef::as_ref)
                .filter(|task| task.desired.wants_run())
                .collect();
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => usize::try_from(replicas).unwrap(),
                _global => self.agents.len(),
            };
            assert!(
                live.len() == wanted && live.iter().all(|t| t.status.state == TaskState::Running),
                "{wanted} tasks of {service:#?} are wanted, these are there: {live:#?}"
            );
            assert!(!is_updating(service), "{service:#?}");
            assert!(
                service
                    .update
                    .as_ref()
                    .is_none_or(|u| u.state != UpdateState::Paused),
                "{service:#?}"
            );
            let mut places: BTreeMap<&TaskPlace, usize> = BTreeMap::new();
            for task in self.state.tasks_of(service.id) {
                *places.entry(&task.place).or_default() += 1;
                let right = !task.desired.wants_run()
                    || task.spec.container.image == service.spec.task.container.image;
                assert!(right, "{task:#?}");
                assert!(
                    task.desired.wants_run() || task.status.state.is_terminal(),
                    "stop means stop: {task:#?}"
                );
            }
            assert!(places.values().all(|count| *count <= 5), "{places:?}");
        }
        let plan = Brain::new(&self.state).decide(&self.state, Vec::new(), self.now, &mut self.rng);
        assert!(
            plan.commands.is_empty(),
            "nothing is left to do: {:#?}",
            plan.commands
        );
    }
}

/// Moves one task of a model agent on. Tells whether its status changed.
fn advance(task: &Task, local: &mut TaskStatus, now: Timestamp, rng: &mut impl Rng) -> bool {
    if local.state.is_terminal() || rng.random_bool(0.3) {
        return false;
    }
    let next = if task.desired >= Desired::Shutdown {
        TaskState::Shutdown
    } else {
        match local.state {
            TaskState::Assigned => TaskState::Accepted,
            TaskState::Accepted => TaskState::Preparing,
            TaskState::Preparing => TaskState::Ready,
            TaskState::Ready if task.desired == Desired::Ready => return false,
            TaskState::Ready => TaskState::Starting,
            TaskState::Starting if task.spec.container.image == "bad" => TaskState::Failed,
            TaskState::Starting => TaskState::Running,
            TaskState::Running if task.spec.container.image == "quits" => TaskState::Complete,
            TaskState::Running if task.desired == Desired::Complete => TaskState::Complete,
            _other => return false,
        }
    };
    local.state = next;
    local.at = now;
    true
}

fn fail_all(agent: &mut Agent, now: Timestamp) {
    for status in agent.tasks.values_mut() {
        if status.state >= TaskState::Starting && !status.state.is_terminal() {
            status.state = TaskState::Failed;
            status.at = now;
        }
    }
}

fn run(seed: u64) {
    let mut nodes = StdRng::seed_from_u64(seed ^ 0x5eed);
    let mut cluster = Cluster::new(seed, nodes.random_range(1..6));
    for _ in 0..250 {
        cluster.step(true);
    }
    cluster.heal();
    for _ in 0..500 {
        cluster.step(false);
    }
    cluster.check_converged();
}

#[test]
fn clusters_hold_their_promises_under_failures_and_heal() {
    let seeds = match std::env::var("SHOAL_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("SHOAL_SEED is a number");
            seed..seed + 1
        }
        Err(_unset) => 0..SEEDS,
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = std::sync::Mutex::new(seeds);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = { next.lock().expect("no panic while locked").next() } {
                    let outcome = std::panic::catch_unwind(|| run(seed));
                    assert!(
                        outcome.is_ok(),
                        "reproduce: SHOAL_SEED={seed} cargo test -p shoal-manager simulation"
                    );
                }
            });
        }
    });
}

#[test]
fn a_hundred_replicas_on_one_node_take_at_most_three_commands() {
    let mut cluster = Cluster::new(1, 1);
    let spec = testing::service_spec("web", ServiceMode::Replicated { replicas: 100 });
    cluster
        .user(Change::CreateService {
            id: testing::service_id(1),
            spec: Box::new(spec),
        })
        .unwrap();
    for _ in 0..60 {
        cluster.now = cluster.now.after(Duration::from_millis(100));
        cluster.pass();
        cluster.agents();
    }
    let running = cluster.state.tasks();
    assert_eq!(
        running
            .filter(|t| t.status.state == TaskState::Running)
            .count(),
        100
    );
    assert!(cluster.commands <= 3, "{} commands", cluster.commands);
}

fn is_updating(service: &Service) -> bool {
    service.update.as_ref().is_some_and(|update| {
        matches!(
            update.state,
            UpdateState::Updating | UpdateState::RollbackStarted
        )
    })
}
