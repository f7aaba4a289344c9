//! A manager: the shell around the real decisions, as `reconcile`, `hub`, `dispatch::reports` and
//! `dispatch::session` are around them in a daemon. It decides nothing.

mod lead;
mod sessions;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use rand::RngExt;
use shoal_manager::{
    LivenessConfig,
    cores::{Brain, Liveness, Pace, RESYNC},
};
use shoal_raft_store::{Applied, Change, Command, Commit, Rejection, State};
use shoal_types::{
    Desired, NodeId, TaskId, TaskState, TaskStatus, Timestamp, Version, wire::Assignments,
};

use crate::{
    log::{Effect, Message, Replica},
    mutants::Mutant,
    users::Answer,
    world::{Event, What, World},
};

const TICK: Duration = Duration::from_millis(50);
/// A command without a majority for so long has an unknown outcome.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const REPORTS_RETRY: Duration = Duration::from_millis(100);
const COALESCE: Duration = Duration::from_millis(2);
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Entries between two snapshots.
const SNAPSHOT_AFTER: u64 = 64;

pub(crate) struct Manager {
    pub(crate) replica: Replica,
    pub(crate) state: State,
    applied: u64,
    pub(crate) lead: Option<Lead>,
    /// Reads that wait for their round: the operation, the round, and what must be applied.
    reads: Vec<(u64, u64, u64)>,
}

/// A term of this manager.
pub(crate) struct Lead {
    term: u64,
    brain: Brain,
    liveness: Liveness,
    pace: Pace,
    feed: VecDeque<Commit>,
    plan: VecDeque<Command>,
    plan_wake: Option<Timestamp>,
    plan_at: Timestamp,
    was_idle: bool,
    awaiting: Option<u64>,
    resync_at: Timestamp,
    gathered: Timestamp,
    hurry: bool,
    /// Only the newest wake-up counts.
    wake: u64,
    sessions: BTreeMap<NodeId, Session>,
    reports: BTreeMap<TaskId, Report>,
    batch: Option<(u64, BTreeMap<TaskId, Report>)>,
    reports_scheduled: bool,
    telling: bool,
    /// When each node was heard last, and when its session ended if it has: kept beside the real one.
    heard: BTreeMap<NodeId, (Timestamp, Option<Timestamp>)>,
    since: Timestamp,
}

struct Session {
    stream: u64,
    sent: Option<Assignments>,
    accepted: Vec<(TaskId, TaskState)>,
}

#[derive(Clone)]
struct Report {
    stream: u64,
    node: NodeId,
    status: TaskStatus,
}

/// Who wants to know what became of a proposal.
pub(crate) struct Waiter {
    host: usize,
    life: u32,
    what: Waiting,
}

#[derive(Clone, Copy)]
enum Waiting {
    Plan,
    Reports,
    User { op: u64 },
}

#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Done(Applied),
    Rejected(Rejection),
    NoRoom,
    NotLeader,
    Timeout,
}

impl Manager {
    pub(crate) fn new(replica: Replica) -> Self {
        let snapshot = replica.snapshot().clone();
        Self {
            replica,
            state: snapshot.state.clone(),
            applied: snapshot.index,
            lead: None,
            reads: Vec::new(),
        }
    }

    pub(crate) fn crash(&mut self) {
        self.replica.crash();
        self.lead = None;
        self.reads.clear();
    }

    pub(crate) fn is_leading(&self) -> bool {
        self.lead.is_some()
    }
}

/// What a snapshot on disk gives back: the objects, and the state's clock.
fn restored(state: &State) -> State {
    let mut restored = State::restore(state.version(), state.objects());
    let clock = Command {
        at: state.clock(),
        changes: Vec::new(),
    };
    restored
        .apply(state.version(), &clock)
        .expect("a command without changes is never refused");
    restored
}

fn liveness_config(mutant: Option<Mutant>) -> LivenessConfig {
    let mut config = LivenessConfig::default();
    if mutant == Some(Mutant::HalfSilence) {
        config.silence /= 2;
    }
    config
}

impl World {
    fn manager(&mut self, host: usize) -> &mut Manager {
        self.hosts[host]
            .manager
            .as_mut()
            .expect("only managers get events of managers")
    }

    fn lead(&mut self, host: usize) -> Option<&mut Lead> {
        self.hosts[host].manager.as_mut()?.lead.as_mut()
    }

    /// The manager that leads, as far as it knows.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |host: &&usize| {
            let machine = &self.hosts[**host];
            machine.up && machine.manager.as_ref().is_some_and(Manager::is_leading)
        };
        let hosts: Vec<usize> = (0..self.hosts.len()).collect();
        hosts
            .iter()
            .filter(leads)
            .max_by_key(|host| {
                let manager = self.hosts[**host].manager.as_ref();
                manager.map_or(0, |manager| manager.replica.term())
            })
            .copied()
    }

    pub(crate) fn manager_starts(&mut self, host: usize) {
        let now = self.now;
        let Some(manager) = &mut self.hosts[host].manager else {
            return;
        };
        let snapshot = manager.replica.snapshot().clone();
        manager.state = restored(&snapshot.state);
        manager.applied = snapshot.index;
        manager.replica.start(now, &mut self.rng);
        if manager.state != snapshot.state {
            let version = snapshot.index;
            self.violate(
                "snapshots",
                format!("what comes back from the one of {version} differs"),
            );
        }
        let pause = self.between(0, 50_000);
        self.later(host, pause, What::Tick);
    }

    // The log.

    pub(crate) fn raft_tick(&mut self, host: usize) {
        self.later(host, TICK, What::Tick);
        let now = self.now;
        let mut out = Vec::new();
        let manager = self.hosts[host].manager.as_mut().expect("a manager ticks");
        manager.replica.tick(now, &mut self.rng, &mut out);
        if let Some(lead) = &mut manager.lead {
            lead.liveness.pulse(now);
        }
        self.carry_out(host, out);
    }

    pub(crate) fn raft_receive(&mut self, host: usize, from: usize, message: Message) {
        let now = self.now;
        let mut out = Vec::new();
        let manager = self.hosts[host]
            .manager
            .as_mut()
            .expect("it was sent to a manager");
        manager
            .replica
            .receive(from, message, now, &mut self.rng, &mut out);
        self.carry_out(host, out);
    }

    pub(crate) fn raft_flushed(&mut self, host: usize, index: u64, term: u64) {
        let mut out = Vec::new();
        self.manager(host).replica.flushed(index, term, &mut out);
        self.carry_out(host, out);
    }

    fn carry_out(&mut self, host: usize, out: Vec<Effect>) {
        self.set_off(host, out);
        self.apply_committed(host);
        self.follow_leadership(host);
        self.finish_reads(host);
    }

    /// Sends, flushes and installs; what follows from it is for the next moment.
    fn set_off(&mut self, host: usize, out: Vec<Effect>) {
        for effect in out {
            match effect {
                Effect::Send(to, message) => {
                    self.datagram(
                        host,
                        to,
                        What::Raft {
                            from: host,
                            message,
                        },
                    );
                }
                Effect::Flush { index, term } => {
                    let pause = self.flush_takes(host);
                    self.later(host, pause, What::Flushed { index, term });
                }
                Effect::Installed(snapshot) => {
                    let manager = self.manager(host);
                    manager.state = restored(&snapshot.state);
                    manager.applied = snapshot.index;
                    let index = snapshot.index;
                    self.note(|| format!("manager {host} takes the snapshot of {index}"));
                }
            }
        }
    }

    fn flush_takes(&mut self, host: usize) -> Duration {
        if self.is(Mutant::CountUnflushed) {
            return self.between(1_000_000, 3_000_000);
        }
        let slow = self.hosts[host].slow;
        self.between(300, 4_000) * slow
    }

    fn apply_committed(&mut self, host: usize) {
        let mut changed = false;
        loop {
            let manager = self.manager(host);
            let index = manager.applied + 1;
            if index > manager.replica.commit() {
                break;
            }
            let entry = manager.replica.entry(index).cloned();
            let Some(entry) = entry else {
                let detail = format!("manager {host} has committed {index} and does not have it");
                self.violate("log", detail);
                return;
            };
            changed = true;
            let proposal = entry.proposal;
            let command = proposal.as_ref().map(|p| self.as_applied(host, &p.command));
            let version = Version(index);
            let manager = self.manager(host);
            manager.applied = index;
            let result = if let Some(command) = &command {
                manager.state.apply(version, command).map(Some)
            } else {
                manager.state.skip_to(version);
                Ok(None)
            };
            let state = manager.state.clone();
            if let Some(lead) = &mut manager.lead
                && let Ok(Some((_, changes))) = &result
            {
                let (at, changes) = (state.clock(), changes.clone());
                lead.feed.push_back(Commit {
                    version,
                    at,
                    changes,
                });
            }
            if manager.replica.since_snapshot(index) >= SNAPSHOT_AFTER {
                manager.replica.compact(index, state.clone());
            }
            if self.trace.on
                && let Some(command) = &command
            {
                let refused = result.as_ref().err().map(ToString::to_string);
                let lines: Vec<String> = command.changes.iter().map(brief).collect();
                self.note(|| format!("manager {host} applies {index}: {lines:?} {refused:?}"));
            }
            let id = proposal.map(|p| p.id);
            let term = entry.term;
            let changes = result
                .as_ref()
                .ok()
                .and_then(Option::as_ref)
                .map(|(_, c)| &c[..]);
            if let Some(violation) = self.witness.commit(
                index,
                term,
                id,
                command.as_deref(),
                changes,
                &state,
                self.now,
            ) {
                self.violate(violation.0, violation.1);
            }
            if let Some(id) = id {
                let outcome = match result {
                    Ok(_) => Outcome::Done(Applied { version }),
                    Err(rejection) => Outcome::Rejected(rejection),
                };
                self.resolve(host, id, outcome);
            }
        }
        for node in self.witness.take_removed() {
            let left = self.hosts.iter().position(|machine| machine.node == node);
            if let Some(left) = left {
                // The operator remembers the machine after a while.
                let pause = self.between(300_000, 5_000_000);
                self.after(pause, Event::Leave(left));
            }
        }
        if changed {
            if let Some(lead) = self.lead(host)
                && !std::mem::replace(&mut lead.telling, true)
            {
                self.later(host, COALESCE, What::Tell);
            }
            if self.lead(host).is_some_and(|lead| lead.awaiting.is_none()) {
                self.wake(host, Duration::ZERO);
            }
        }
    }

    /// The command as it is applied: as it is, unless a mistake is switched on.
    fn as_applied(&mut self, host: usize, command: &Arc<Command>) -> Arc<Command> {
        let stale = self.is(Mutant::StalePlan);
        let lost = self.is(Mutant::LostUpdate);
        let at_once = self.is(Mutant::StartAtOnce);
        if !(stale || lost || at_once) {
            return command.clone();
        }
        let state = &self.manager(host).state;
        let mut command = (**command).clone();
        for change in &mut command.changes {
            match change {
                Change::CreateTask(task) => {
                    if stale && let Some(service) = state.service(&task.service) {
                        task.spec_version = service.spec_version;
                    }
                    if at_once && task.desired == Desired::Ready {
                        task.desired = Desired::Running;
                    }
                }
                Change::UpdateServiceSpec { id, version, .. } if lost => {
                    if let Some(service) = state.service(id) {
                        *version = service.meta.version;
                    }
                }
                Change::UpdateNodeSpec { id, version, .. } if lost => {
                    if let Some(node) = state.node(id) {
                        *version = node.meta.version;
                    }
                }
                _other => {}
            }
        }
        Arc::new(command)
    }

    // Leadership.

    fn follow_leadership(&mut self, host: usize) {
        let now = self.now;
        let mutant = self.mutant;
        let wall = self.wall(host);
        let manager = self.manager(host);
        let leads = manager.replica.leads(now) && manager.applied == manager.replica.commit();
        let term = manager.replica.term();
        let led = manager.lead.as_ref().map(|lead| lead.term);
        // A leader that only lags behind its own log goes on.
        let still = led == Some(term) && manager.replica.leads(now);
        if led.is_some() && !still {
            self.note(|| format!("manager {host} does not lead any more"));
            self.end_term(host);
        }
        if led.is_none_or(|led| led != term) && leads {
            self.note(|| format!("manager {host} leads in term {term}"));
            let manager = self.manager(host);
            manager.lead = Some(Lead {
                term,
                brain: Brain::new(&manager.state),
                liveness: Liveness::new(liveness_config(mutant), now),
                pace: Pace::new(wall, now),
                feed: VecDeque::new(),
                plan: VecDeque::new(),
                plan_wake: None,
                plan_at: wall,
                was_idle: true,
                awaiting: None,
                resync_at: now.after(RESYNC),
                gathered: now,
                hurry: true,
                wake: 0,
                sessions: BTreeMap::new(),
                reports: BTreeMap::new(),
                batch: None,
                reports_scheduled: false,
                telling: false,
                heard: BTreeMap::new(),
                since: now,
            });
            self.wake(host, Duration::ZERO);
        }
    }

    fn end_term(&mut self, host: usize) {
        if let Some(lead) = self.manager(host).lead.take() {
            for session in lead.sessions.values() {
                self.hang_up(session.stream, host);
            }
        }
        let reads = std::mem::take(&mut self.manager(host).reads);
        for (op, ..) in reads {
            self.answer_user(host, op, Answer::Refused);
        }
    }

    // Users.

    /// What a user asks this manager for, if it leads.
    pub(crate) fn propose_for_user(&mut self, host: usize, op: u64, change: Change) {
        let at = self.wall(host);
        let command = Command {
            at,
            changes: vec![change],
        };
        let early = self.is(Mutant::AckEarly);
        match self.propose(host, command, Waiting::User { op }) {
            Ok(id) => {
                self.users.proposed(op, id);
                if early {
                    let version = Version(self.manager(host).applied + 1);
                    self.answer_user(host, op, Answer::Done(version));
                }
            }
            Err(_refused) => self.answer_user(host, op, Answer::Refused),
        }
    }

    pub(crate) fn begin_read(&mut self, host: usize, op: u64) {
        let stale = self.is(Mutant::StaleRead);
        let mut out = Vec::new();
        let manager = self.manager(host);
        if stale {
            let version = manager.state.version();
            self.answer_user(host, op, Answer::Read(version));
            return;
        }
        let commit = manager.replica.commit();
        let Some(round) = manager.replica.begin_read(&mut out) else {
            self.answer_user(host, op, Answer::Refused);
            return;
        };
        manager.reads.push((op, round, commit));
        self.carry_out(host, out);
    }

    fn finish_reads(&mut self, host: usize) {
        let manager = self.manager(host);
        if manager.reads.is_empty() {
            return;
        }
        let reads = std::mem::take(&mut manager.reads);
        let (applied, version) = (manager.applied, manager.state.version());
        let (done, wait): (Vec<_>, Vec<_>) = reads.into_iter().partition(|(_, round, commit)| {
            manager.replica.is_confirmed(*round) && applied >= *commit
        });
        manager.reads = wait;
        for (op, ..) in done {
            self.answer_user(host, op, Answer::Read(version));
        }
    }

    fn answer_user(&mut self, host: usize, op: u64, answer: Answer) {
        // Now and then the answer is lost on its way.
        if self.chaos && self.rng.random_ratio(1, 12) {
            return;
        }
        let _ = host;
        let pause = self.between(200, 5_000);
        self.after(pause, Event::UserAnswer { op, answer });
    }
}

/// A change in few words.
fn brief(change: &Change) -> String {
    match change {
        Change::CreateTask(task) => format!(
            "create {} {:?} {:?} {} on {:?} spec {}",
            task.name(),
            task.place,
            task.desired,
            task.status.state,
            task.node,
            task.spec_version
        ),
        Change::SetTaskStatus { id, status, .. } => format!("{id} is {}", status.state),
        Change::SetTaskDesired { id, desired } => format!("{id} to {desired:?}"),
        Change::SetNodeStatus { id, status } => format!("node {id} is {:?}", status.state),
        Change::CreateNode(node) => format!("create node {}", node.id),
        Change::SetServiceUpdate { id, update, .. } => {
            format!(
                "update of {id}: {:?}",
                update.as_ref().map(|update| update.state)
            )
        }
        Change::UpdateServiceSpec { id, version, .. } => format!("update {id} at {version}"),
        Change::CreateService { id, .. } | Change::CreateServiceWith { id, .. } => {
            format!("create {id}")
        }
        other => format!("{other:?}"),
    }
}
