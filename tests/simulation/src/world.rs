//! Everything there is, and the order in which things happen.
//!
//! One queue of events, ordered by time and then by the order in which they were scheduled; one source
//! of randomness. A process that is frozen gets its events when it thaws, one that has crashed never.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shoal_raft_store::{Command, State};
use shoal_types::{
    NodeId, TaskId, Timestamp, Version,
    object::{Node, NodeDescription},
};

use crate::{
    Options, Violation,
    agent::Agent,
    cluster,
    invariants::Witness,
    kernel::{Kernel, Phase},
    log::{Message, Replica},
    manager::{Manager, Waiter},
    mutants::Mutant,
    network::{Links, Stream},
    trace::Trace,
    users::Users,
};

pub(crate) const START: Timestamp = Timestamp(1_800_000_000_000_000_000);

/// A machine with its daemon: an agent, on some a manager too.
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) up: bool,
    /// Counts the daemon's lives.
    pub(crate) life: u32,
    pub(crate) frozen_until: Timestamp,
    /// What its time of day is ahead, in nanoseconds.
    pub(crate) ahead: i64,
    /// Its effects take so many times longer.
    pub(crate) slow: u32,
    pub(crate) data_addr: IpAddr,
    pub(crate) manager: Option<Manager>,
    pub(crate) agent: Agent,
    pub(crate) kernel: Kernel,
}

impl Host {
    pub(crate) fn description(&self, index: usize) -> NodeDescription {
        cluster::description(index, self.data_addr)
    }
}

pub(crate) enum Event {
    /// Something for a daemon in this life of it.
    Daemon {
        host: usize,
        life: u32,
        what: What,
    },
    /// A container ends, unless it did before.
    Exit {
        host: usize,
        task: TaskId,
        start: u64,
        code: i32,
    },
    /// The first message of a stream's lane arrives.
    Deliver {
        stream: u64,
        to_agent: bool,
    },
    User,
    UserArrives {
        op: u64,
        host: usize,
    },
    UserAnswer {
        op: u64,
        answer: crate::users::Answer,
    },
    UserGivesUp {
        op: u64,
    },
    Fault,
    Mend(Mend),
    /// The operator makes a removed node leave.
    Leave(usize),
    /// It comes back as a new node.
    Rejoin(usize),
}

/// The end of a fault.
pub(crate) enum Mend {
    Boot(usize),
    Link(usize, usize),
    Slow(usize),
    Disk(usize),
}

pub(crate) enum What {
    Raft {
        from: usize,
        message: Message,
    },
    Tick,
    Flushed {
        index: u64,
        term: u64,
    },
    Pass {
        wake: u64,
    },
    Reports,
    Tell,
    Greet {
        stream: u64,
        node: NodeId,
        until: Timestamp,
    },
    GiveUp {
        proposal: u64,
    },
    Closed {
        stream: u64,
    },
    Dial,
    Silent {
        stream: u64,
    },
    Heartbeat {
        stream: u64,
    },
    AgentPass,
    NetworkRetry,
    Resync,
    Step(TaskId),
    Effect {
        task: TaskId,
        token: u64,
    },
}

struct Queued {
    at: Timestamp,
    seq: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) now: Timestamp,
    queue: BinaryHeap<Reverse<Queued>>,
    seq: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) links: Links,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) next_stream: u64,
    pub(crate) waiters: BTreeMap<u64, Waiter>,
    pub(crate) next_proposal: u64,
    pub(crate) users: Users,
    pub(crate) witness: Witness,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    pub(crate) mutant: Option<Mutant>,
    /// Faults and users' whims go on.
    pub(crate) chaos: bool,
    /// Datapaths, images and the like may fail in passing.
    pub(crate) hiccups: bool,
    pub(crate) events: u64,
}

impl World {
    /// A cluster of `managers` among `hosts` machines that has just been made.
    pub(crate) fn new(seed: u64, managers: usize, hosts: usize, options: Options) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = State::default();
        let mut changes = cluster::founding();
        let nodes: Vec<NodeId> = (0..hosts)
            .map(|_| NodeId::from_random(rng.random()))
            .collect();
        for (index, id) in nodes.iter().enumerate() {
            let manager = (index < managers).then_some(index);
            let node: Node = cluster::node(*id, index, manager, data_addr(index));
            changes.push(shoal_raft_store::Change::CreateNode(Box::new(node)));
        }
        let found = Command { at: START, changes };
        state
            .apply(Version(1), &found)
            .expect("a new cluster's own objects do not collide");
        let members: Vec<usize> = (0..managers).collect();
        let hosts = nodes.into_iter().enumerate().map(|(index, node)| Host {
            node,
            up: true,
            life: 0,
            frozen_until: Timestamp::EPOCH,
            ahead: 0,
            slow: 1,
            data_addr: data_addr(index),
            manager: (index < managers).then(|| {
                let mut replica = Replica::new(index, members.clone(), &state);
                replica.hasty = options.mutant == Some(Mutant::CountUnflushed);
                Manager::new(replica)
            }),
            agent: Agent::new(),
            kernel: Kernel::default(),
        });
        let mut world = Self {
            hosts: hosts.collect(),
            rng,
            now: START,
            queue: BinaryHeap::new(),
            seq: 0,
            links: Links::default(),
            streams: BTreeMap::new(),
            next_stream: 1,
            waiters: BTreeMap::new(),
            next_proposal: 1,
            users: Users::default(),
            witness: Witness::new(state),
            trace: Trace {
                on: options.trace,
                print: options.verbose,
                ..Trace::default()
            },
            violation: None,
            mutant: options.mutant,
            chaos: false,
            hiccups: false,
            events: 0,
        };
        for host in 0..world.hosts.len() {
            world.boot(host);
        }
        world
    }

    pub(crate) fn managers(&self) -> usize {
        self.hosts
            .iter()
            .filter(|host| host.manager.is_some())
            .count()
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(crate) fn violate(&mut self, invariant: &'static str, detail: String) {
        self.trace
            .note(self.now, || format!("VIOLATED {invariant}: {detail}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, detail });
        }
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        self.trace.note(self.now, text);
    }

    /// The time of day at `host`.
    pub(crate) fn wall(&self, host: usize) -> Timestamp {
        Timestamp(self.now.0.saturating_add(self.hosts[host].ahead))
    }

    pub(crate) fn at(&mut self, at: Timestamp, event: Event) {
        self.seq += 1;
        self.queue.push(Reverse(Queued {
            at: at.max(self.now),
            seq: self.seq,
            event,
        }));
    }

    pub(crate) fn after(&mut self, pause: Duration, event: Event) {
        self.at(self.now.after(pause), event);
    }

    /// Schedules something for the daemon of `host` in its present life.
    pub(crate) fn later(&mut self, host: usize, pause: Duration, what: What) {
        let life = self.hosts[host].life;
        self.after(pause, Event::Daemon { host, life, what });
    }

    /// A time between the two, in microseconds, drawn evenly.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(from..=to))
    }

    /// Runs until `end`, or until something that must hold does not.
    pub(crate) fn run_until(&mut self, end: Timestamp) {
        while self.violation.is_none()
            && let Some(Reverse(next)) = self.queue.peek()
            && next.at <= end
        {
            let Some(Reverse(next)) = self.queue.pop() else {
                return;
            };
            self.now = next.at;
            self.events += 1;
            self.trace.mix(next.at.0.cast_unsigned());
            self.trace.mix(next.seq);
            self.happen(next.event);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Daemon { host, life, what } => {
                let machine = &self.hosts[host];
                if !machine.up || machine.life != life {
                    return;
                }
                if machine.frozen_until > self.now {
                    let thaw = machine.frozen_until;
                    self.at(thaw, Event::Daemon { host, life, what });
                    return;
                }
                self.daemon(host, what);
            }
            Event::Exit {
                host,
                task,
                start,
                code,
            } => self.exit(host, task, start, code),
            Event::Deliver { stream, to_agent } => self.deliver(stream, to_agent),
            Event::User => self.user(),
            Event::UserArrives { op, host } => self.user_arrives(op, host),
            Event::UserAnswer { op, answer } => self.user_answer(op, answer),
            Event::UserGivesUp { op } => {
                self.user_answer(op, crate::users::Answer::Unknown);
            }
            Event::Fault => self.fault(),
            Event::Mend(mend) => self.mend(mend),
            Event::Leave(host) => self.leave(host),
            Event::Rejoin(host) => self.rejoin(host),
        }
    }

    fn daemon(&mut self, host: usize, what: What) {
        match what {
            What::Raft { from, message } => self.raft_receive(host, from, message),
            What::Tick => self.raft_tick(host),
            What::Flushed { index, term } => self.raft_flushed(host, index, term),
            What::Pass { wake } => self.leader_pass(host, wake),
            What::Reports => self.commit_reports(host),
            What::Tell => self.tell_all(host),
            What::Greet {
                stream,
                node,
                until,
            } => self.greet(host, stream, node, until),
            What::GiveUp { proposal } => self.proposal_timed_out(proposal),
            What::Closed { stream } => self.closed(host, stream),
            What::Dial => self.dial(host),
            What::Silent { stream } => self.silent(host, stream),
            What::Heartbeat { stream } => self.heartbeat(host, stream),
            What::AgentPass => self.agent_pass(host),
            What::NetworkRetry => self.network_retry(host),
            What::Resync => self.agent_resync(host),
            What::Step(task) => self.step(host, task),
            What::Effect { task, token } => self.effect_done(host, task, token),
        }
    }

    /// The daemon starts: what is on its disk and in the kernel is all it knows.
    pub(crate) fn boot(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        machine.up = true;
        machine.life += 1;
        machine.frozen_until = Timestamp::EPOCH;
        let life = machine.life;
        self.note(|| format!("host {host} starts its daemon (life {life})"));
        self.manager_starts(host);
        self.agent_starts(host);
    }

    /// The daemon is gone. A machine that goes with it tells nobody.
    pub(crate) fn crash(&mut self, host: usize, machine_too: bool) {
        if !self.hosts[host].up {
            return;
        }
        self.note(|| {
            let what = if machine_too { "machine" } else { "daemon" };
            format!("host {host}: the {what} crashes")
        });
        self.end_streams_of(host, machine_too);
        let loses_records = self.rng.random_ratio(1, 6);
        let machine = &mut self.hosts[host];
        machine.up = false;
        machine.life += 1;
        if let Some(manager) = &mut machine.manager {
            manager.crash();
        }
        machine.agent.crash();
        if loses_records {
            machine.agent.lose_records();
        }
        if machine_too {
            machine.kernel.reboot();
        }
    }

    fn exit(&mut self, host: usize, task: TaskId, start: u64, code: i32) {
        let kernel = &mut self.hosts[host].kernel;
        let Some(program) = kernel.containers.get_mut(&task) else {
            return;
        };
        if program.start != start || program.phase != Phase::Running {
            return;
        }
        program.phase = Phase::Exited(code);
        self.note(|| format!("host {host}: container of {task} exits with {code}"));
        self.container_exited(host, task);
    }
}

fn data_addr(index: usize) -> IpAddr {
    let [high, low] = u16::try_from(index + 1).expect("few hosts").to_be_bytes();
    Ipv4Addr::new(192, 0, high + 2, low).into()
}
