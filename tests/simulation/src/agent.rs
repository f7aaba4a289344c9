//! An agent: the shell around the real task machine, translation and outbox, as `agent`, `session` and
//! `task::worker` are around them in a daemon, on a modelled kernel. It decides nothing.

mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, seq::IndexedRandom};
use shoal_node_agent::{
    cores::{Nodes, Outbox, desired, gone, is_newer},
    datapath::NetworkState,
};
use shoal_transport::backoff::Backoff;
use shoal_types::{
    Generation, TaskId, TaskState, TaskStatus, Timestamp,
    object::Task,
    wire::{AgentMessage, Assignments, ManagerMessage},
};

use crate::{
    kernel::Phase,
    mutants::Mutant,
    network::Payload,
    world::{Event, What, World},
};

const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(8));
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
const NETWORK_RETRY: Duration = Duration::from_millis(500);
const RESYNC: Duration = Duration::from_secs(15);
/// An effect that fails so often in a row fails the task.
const ATTEMPTS: u32 = 8;
const EFFECT_RETRY: Duration = Duration::from_millis(200);

pub(crate) struct Agent {
    // On disk.
    saved: Option<Arc<Assignments>>,
    // In memory.
    pub(crate) assignments: Option<Arc<Assignments>>,
    loaded: Option<Generation>,
    workers: BTreeMap<TaskId, Worker>,
    outbox: Outbox,
    session: Option<Session>,
    backoff: Backoff,
    preferred: Option<usize>,
    moved: bool,
    last: Option<Vec<NetworkState>>,
    swept: bool,
    pass_scheduled: bool,
    /// The operator made it leave.
    pub(crate) left: bool,
    /// The highest generation it ever took, whatever it forgot since.
    pub(crate) newest: Generation,
}

struct Session {
    stream: u64,
    period: Option<Duration>,
}

struct Worker {
    wanted: Option<Arc<Task>>,
    task: Arc<Task>,
    status: TaskStatus,
    busy: Option<Busy>,
    failures: u32,
}

struct Busy {
    token: u64,
    what: Work,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Prepare,
    Start,
    Stop,
    /// After a failure.
    Pause,
}

impl Agent {
    pub(crate) fn new() -> Self {
        Self {
            saved: None,
            assignments: None,
            loaded: None,
            workers: BTreeMap::new(),
            outbox: Outbox::default(),
            session: None,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            preferred: None,
            moved: false,
            last: None,
            swept: false,
            pass_scheduled: false,
            left: false,
            newest: Generation(0),
        }
    }

    pub(crate) fn crash(&mut self) {
        *self = Self {
            saved: self.saved.take(),
            left: self.left,
            newest: self.newest,
            ..Self::new()
        };
    }
}

impl Agent {
    /// The saved set cannot be read any more.
    pub(crate) fn lose_records(&mut self) {
        self.saved = None;
        self.newest = Generation(0);
    }
}

impl World {
    fn agent(&mut self, host: usize) -> &mut Agent {
        &mut self.hosts[host].agent
    }

    pub(crate) fn agent_starts(&mut self, host: usize) {
        let agent = self.agent(host);
        if let Some(saved) = &agent.saved {
            let mut set = (**saved).clone();
            // The same set, sent again by a manager, is newer than this copy.
            set.generation.0 = set.generation.0.saturating_sub(1);
            agent.loaded = Some(set.generation);
            agent.assignments = Some(Arc::new(set));
            self.schedule_agent_pass(host);
        }
        self.later(host, RESYNC, What::Resync);
        let pause = self.between(0, 100_000);
        self.later(host, pause, What::Dial);
    }

    // The session.

    pub(crate) fn dial(&mut self, host: usize) {
        let managers = self.managers();
        let node = self.hosts[host].node;
        let description = self.hosts[host].description(host);
        let agent = &mut self.hosts[host].agent;
        if agent.session.is_some() || agent.left {
            return;
        }
        let manager = agent
            .preferred
            .unwrap_or_else(|| self.rng.random_range(0..managers));
        let stream = self.open_stream(host, manager);
        self.agent(host).session = Some(Session {
            stream,
            period: None,
        });
        if !self.hosts[manager].up {
            let latency = self.latency(manager, host);
            self.later(host, latency, What::Closed { stream });
            return;
        }
        let hello = AgentMessage::Hello { node, description };
        self.send(stream, Payload::Agent(hello));
        self.later(host, WELCOME_TIMEOUT, What::Silent { stream });
    }

    pub(crate) fn silent(&mut self, host: usize, stream: u64) {
        let session = self.agent(host).session.as_ref();
        if session.is_some_and(|s| s.stream == stream && s.period.is_none()) {
            self.session_ends(host, false);
        }
    }

    /// `known`: another manager was named, which is called at once, the first time.
    fn session_ends(&mut self, host: usize, known: bool) {
        let resend = !self.is(Mutant::NoResend);
        let agent = self.agent(host);
        let Some(session) = agent.session.take() else {
            return;
        };
        if resend {
            agent.outbox.session_lost();
        }
        if known && !std::mem::replace(&mut agent.moved, true) {
            self.hang_up(session.stream, host);
            self.later(host, Duration::from_micros(10), What::Dial);
            return;
        }
        if !known {
            agent.preferred = None;
        }
        agent.moved = false;
        let pause = self.hosts[host].agent.backoff.next(&mut self.rng);
        self.hang_up(session.stream, host);
        self.later(host, pause, What::Dial);
    }

    /// A stream of this host ended.
    pub(crate) fn closed(&mut self, host: usize, stream: u64) {
        let ours = |s: &Session| s.stream == stream;
        if self.agent(host).session.as_ref().is_some_and(ours) {
            self.session_ends(host, false);
        }
        if self.hosts[host].manager.is_some() {
            self.manager_closed(host, stream);
        }
    }

    pub(crate) fn heartbeat(&mut self, host: usize, stream: u64) {
        let session = self.agent(host).session.as_ref();
        let period = session
            .filter(|s| s.stream == stream)
            .and_then(|s| s.period);
        if let Some(period) = period {
            self.send(stream, Payload::Agent(AgentMessage::Heartbeat));
            self.later(host, period, What::Heartbeat { stream });
        }
    }

    fn send_statuses(&mut self, host: usize) {
        let agent = self.agent(host);
        let open = agent.session.as_ref().filter(|s| s.period.is_some());
        let Some(stream) = open.map(|session| session.stream) else {
            return;
        };
        let unsent = agent.outbox.take_unsent();
        if !unsent.is_empty() {
            self.send(stream, Payload::Agent(AgentMessage::Status(unsent)));
        }
    }

    pub(crate) fn agent_receives(&mut self, host: usize, stream: u64, message: ManagerMessage) {
        let any_order = self.is(Mutant::OlderGeneration);
        let agent = self.agent(host);
        let Some(session) = agent.session.as_mut().filter(|s| s.stream == stream) else {
            return;
        };
        let message = match message {
            ManagerMessage::Changes(changes) => {
                let current = agent.assignments.as_deref().cloned().unwrap_or_default();
                match changes.apply(&current) {
                    Ok(set) => ManagerMessage::Assignments(set),
                    Err(_other_set) => return self.session_ends(host, false),
                }
            }
            other => other,
        };
        match message {
            ManagerMessage::Changes(_) => unreachable!("made a whole set of above"),
            ManagerMessage::Welcome { heartbeat } => {
                session.period = Some(heartbeat);
                agent.backoff.reset();
                self.note(|| format!("host {host}: session {stream} is open"));
                self.heartbeat(host, stream);
                self.send_statuses(host);
            }
            ManagerMessage::Assignments(set) => {
                let newer = is_newer(agent.assignments.as_deref(), set.generation);
                if !(newer || any_order) {
                    return;
                }
                let (generation, newest) = (set.generation, agent.newest);
                agent.newest = newest.max(generation);
                agent.assignments = Some(Arc::new(set));
                if generation < newest {
                    let detail = format!("host {host} takes {generation} after {newest}");
                    self.violate("generations", detail);
                }
                self.note(|| format!("host {host} takes set {generation}"));
                self.schedule_agent_pass(host);
            }
            ManagerMessage::StatusAccepted(tasks) => agent.outbox.accepted(&tasks),
            ManagerMessage::Refused { .. } => self.session_ends(host, false),
            ManagerMessage::Elsewhere { leader } => {
                let known = leader.is_some();
                let leader = leader.and_then(|leader| {
                    self.hosts
                        .iter()
                        .position(|other| other.node == leader.node)
                });
                self.agent(host).preferred = leader;
                self.session_ends(host, known);
            }
            ManagerMessage::Open { .. } => {}
        }
    }

    // Networks, then tasks.

    pub(crate) fn schedule_agent_pass(&mut self, host: usize) {
        if !std::mem::replace(&mut self.agent(host).pass_scheduled, true) {
            let pause = self.effect(200, 2_000, host);
            self.later(host, pause, What::AgentPass);
        }
    }

    /// How long something takes on this host.
    fn effect(&mut self, from: u64, to: u64, host: usize) -> Duration {
        let slow = self.hosts[host].slow;
        self.between(from, to) * slow
    }

    pub(crate) fn network_retry(&mut self, host: usize) {
        if self.agent(host).last.is_none() {
            self.schedule_agent_pass(host);
        }
    }

    pub(crate) fn agent_resync(&mut self, host: usize) {
        self.agent(host).last = None;
        self.schedule_agent_pass(host);
        self.later(host, RESYNC, What::Resync);
    }

    pub(crate) fn agent_pass(&mut self, host: usize) {
        let (forgets, sweeps) = (
            self.is(Mutant::StopBeforeRemoval),
            !self.is(Mutant::NoSweep),
        );
        let fails = self.hiccups && self.rng.random_ratio(1, 60);
        let machine = &mut self.hosts[host];
        let agent = &mut machine.agent;
        agent.pass_scheduled = false;
        let Some(set) = agent.assignments.clone() else {
            return;
        };
        let saved = agent.saved.as_ref().map(|saved| saved.generation);
        let is_loaded = agent.loaded == Some(set.generation);
        if saved != Some(set.generation) && !is_loaded {
            agent.saved = Some(set.clone());
        }
        if !forgets {
            let nodes = Nodes::of(&set, Some(machine.data_addr));
            let shown = agent.workers.values();
            let gone = gone(&set, shown.map(|w| (&*w.task, w.status.state)));
            let wanted = desired(&set, &gone, &nodes);
            if agent.last.as_ref() != Some(&wanted) {
                if fails {
                    agent.last = None;
                    machine.kernel.torn = true;
                    self.later(host, NETWORK_RETRY, What::NetworkRetry);
                } else {
                    machine.kernel.tables.clone_from(&wanted);
                    machine.kernel.torn = false;
                    agent.last = Some(wanted);
                }
            }
        }
        self.hand_out(host, &set);
        let machine = &mut self.hosts[host];
        if !machine.agent.swept && !is_loaded {
            machine.agent.swept = true;
            if sweeps {
                self.sweep(host, &set);
            }
        }
        if forgets {
            // The mistake: networks after tasks.
            self.agent(host).last = None;
            let machine = &mut self.hosts[host];
            let nodes = Nodes::of(&set, Some(machine.data_addr));
            let wanted = desired(&set, &BTreeSet::new(), &nodes);
            let delayed = machine.kernel.tables != wanted;
            if delayed && self.rng.random_ratio(1, 2) {
                self.schedule_agent_pass(host);
            } else {
                self.hosts[host].kernel.tables = wanted;
            }
        }
    }

    /// Takes away the containers of tasks that were forgotten while no agent ran.
    fn sweep(&mut self, host: usize, set: &Assignments) {
        let wanted: BTreeSet<TaskId> = set.tasks.iter().map(|task| task.id).collect();
        let containers = &mut self.hosts[host].kernel.containers;
        let forgotten: Vec<TaskId> = containers
            .keys()
            .copied()
            .filter(|task| !wanted.contains(task))
            .collect();
        for task in forgotten {
            self.hosts[host].kernel.containers.remove(&task);
            self.container_exited(host, task);
        }
    }

    fn hand_out(&mut self, host: usize, set: &Assignments) {
        let agent = self.agent(host);
        let wanted: BTreeSet<TaskId> = set.tasks.iter().map(|task| task.id).collect();
        let mut told = Vec::new();
        for (id, worker) in &mut agent.workers {
            if !wanted.contains(id) && worker.wanted.take().is_some() {
                told.push(*id);
            }
        }
        for task in &set.tasks {
            let worker = agent.workers.entry(task.id).or_insert_with(|| {
                told.push(task.id);
                Worker {
                    wanted: Some(task.clone()),
                    task: task.clone(),
                    status: task.status.clone(),
                    busy: None,
                    failures: 0,
                }
            });
            let same = worker
                .wanted
                .as_ref()
                .is_some_and(|old| old.desired == task.desired);
            if !same {
                worker.wanted = Some(task.clone());
                told.push(task.id);
            }
        }
        for task in told {
            let pause = self.between(10, 300);
            self.later(host, pause, What::Step(task));
        }
    }

    /// A program that runs somewhere ends by itself.
    pub(crate) fn kill_something(&mut self) {
        let running = self.hosts.iter().enumerate().flat_map(|(host, machine)| {
            let programs = machine.kernel.containers.iter();
            let running = programs.filter(|(_, program)| program.phase == Phase::Running);
            running.map(move |(task, program)| (host, *task, program.start))
        });
        let running: Vec<(usize, TaskId, u64)> = running.collect();
        if let Some((host, task, start)) = running.choose(&mut self.rng).copied() {
            let exit = Event::Exit {
                host,
                task,
                start,
                code: 137,
            };
            self.after(Duration::ZERO, exit);
        }
    }

    // Membership.

    /// The operator makes the node leave: all of its tasks stop, and nothing of them remains.
    pub(crate) fn leave(&mut self, host: usize) {
        if !self.hosts[host].up {
            self.after(Duration::from_secs(1), Event::Leave(host));
            return;
        }
        self.note(|| format!("host {host} leaves"));
        let agent = self.agent(host);
        agent.left = true;
        agent.assignments = Some(Arc::default());
        agent.saved = None;
        agent.loaded = None;
        agent.newest = Generation(0);
        agent.swept = false;
        let session = agent.session.take();
        if let Some(session) = session {
            self.hang_up(session.stream, host);
        }
        self.schedule_agent_pass(host);
        self.after(Duration::from_secs(2), Event::Rejoin(host));
    }

    /// Joins again as a new node, once nothing of the old one is left.
    pub(crate) fn rejoin(&mut self, host: usize) {
        let machine = &self.hosts[host];
        let left = (machine.agent.workers.len(), machine.kernel.containers.len());
        if !machine.up || left != (0, 0) {
            self.note(|| format!("host {host} has {left:?} tasks and containers left"));
            // Its agent was restarted in the middle: the operator has it leave once more.
            if self.hosts[host].up && self.hosts[host].agent.assignments.is_none() {
                self.after(Duration::ZERO, Event::Leave(host));
                return;
            }
            self.after(Duration::from_secs(1), Event::Rejoin(host));
            return;
        }
        self.join_as_new(host);
    }

    pub(crate) fn has_joined(&mut self, host: usize, node: shoal_types::NodeId) {
        self.hosts[host].node = node;
        let agent = self.agent(host);
        agent.left = false;
        agent.assignments = None;
        agent.saved = None;
        agent.last = None;
        agent.swept = false;
        self.later(host, Duration::from_millis(5), What::Dial);
    }

    /// Differences between the kernel of `host` and what the final state asks for.
    pub(crate) fn differences(&self, host: usize, set: &Assignments) -> Option<String> {
        let machine = &self.hosts[host];
        let nodes = Nodes::of(set, Some(machine.data_addr));
        let shown = set.tasks.iter().map(|task| (&**task, task.status.state));
        let wanted = desired(set, &gone(set, shown), &nodes);
        if machine.kernel.tables != wanted {
            let of = |tables: &[NetworkState]| {
                let tables = tables.iter();
                tables
                    .map(|t| format!("{t:?}"))
                    .collect::<Vec<_>>()
                    .join("\n  ")
            };
            return Some(format!(
                "tables:\n  {}\nwanted:\n  {}",
                of(&machine.kernel.tables),
                of(&wanted)
            ));
        }
        let known: BTreeMap<TaskId, &Arc<Task>> = set.tasks.iter().map(|t| (t.id, t)).collect();
        for (id, program) in &machine.kernel.containers {
            let Some(task) = known.get(id) else {
                return Some(format!("container of {id} has no task"));
            };
            let runs = task.status.state == TaskState::Running;
            if runs != (program.phase == Phase::Running) {
                return Some(format!(
                    "{id} is {:?}, its task {}",
                    program.phase, task.status.state
                ));
            }
        }
        let lost = set.tasks.iter().find(|task| {
            task.status.state == TaskState::Running && !machine.kernel.is_running(&task.id)
        });
        lost.map(|task| format!("{} does not run", task.id))
    }

    /// When `host` is expected to act again.
    pub(crate) fn thaw(&mut self, host: usize, at: Timestamp) {
        self.hosts[host].frozen_until = at;
    }
}
