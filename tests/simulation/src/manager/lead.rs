//! A term of a manager: the loop of `reconcile`, and what becomes of proposals.

use std::{sync::Arc, time::Duration};

use shoal_manager::{
    LivenessConfig,
    cores::{GATHER, RESYNC, RETRY, observe},
};
use shoal_raft_store::{Change, Command};
use shoal_types::{TaskId, object::NodeState};

use super::{Lead, Outcome, PROPOSE_TIMEOUT, Waiter, Waiting};
use crate::{
    log::Proposal,
    mutants::Mutant,
    users::Answer,
    world::{What, World},
};

impl World {
    pub(super) fn propose(
        &mut self,
        host: usize,
        command: Command,
        what: Waiting,
    ) -> Result<u64, Outcome> {
        let id = self.next_proposal;
        self.next_proposal += 1;
        let command = Arc::new(command);
        let manager = self.manager(host);
        if manager.replica.disk_full {
            return Err(Outcome::NoRoom);
        }
        if manager.lead.is_none() {
            return Err(Outcome::NotLeader);
        }
        let mut out = Vec::new();
        if !manager.replica.propose(Proposal { id, command }, &mut out) {
            return Err(Outcome::NotLeader);
        }
        let life = self.hosts[host].life;
        self.waiters.insert(id, Waiter { host, life, what });
        self.later(host, PROPOSE_TIMEOUT, What::GiveUp { proposal: id });
        // What follows is for the next moment: whoever proposes is in the middle of something. A
        // single manager's commit waits for its flush anyway.
        self.set_off(host, out);
        Ok(id)
    }

    pub(crate) fn proposal_timed_out(&mut self, id: u64) {
        if let Some(waiter) = self.waiters.get(&id) {
            let host = waiter.host;
            self.resolve(host, id, Outcome::Timeout);
        }
    }

    pub(super) fn resolve(&mut self, host: usize, id: u64, outcome: Outcome) {
        let life = self.hosts[host].life;
        let ours = |waiter: &Waiter| waiter.host == host && waiter.life == life;
        if !self.waiters.get(&id).is_some_and(ours) {
            return;
        }
        let Some(waiter) = self.waiters.remove(&id) else {
            return;
        };
        match waiter.what {
            Waiting::Plan => {
                // A term that ended and began again waits for nothing of the one before.
                if self
                    .lead(host)
                    .is_some_and(|lead| lead.awaiting == Some(id))
                {
                    self.plan_resolved(host, outcome);
                }
            }
            Waiting::Reports => {
                let waits = |lead: &mut Lead| lead.batch.as_ref().is_some_and(|b| b.0 == id);
                if self.lead(host).is_some_and(waits) {
                    self.reports_resolved(host, outcome);
                }
            }
            Waiting::User { op } => {
                let answer = match outcome {
                    Outcome::Done(applied) => Answer::Done(applied.version),
                    Outcome::Rejected(_) => Answer::Refused,
                    _unknown => Answer::Unknown,
                };
                self.answer_user(host, op, answer);
            }
        }
    }

    // The leader's loop.

    pub(super) fn wake(&mut self, host: usize, pause: Duration) {
        if let Some(lead) = self.lead(host) {
            lead.wake += 1;
            let wake = lead.wake;
            self.later(
                host,
                pause.max(Duration::from_micros(20)),
                What::Pass { wake },
            );
        }
    }

    pub(crate) fn leader_pass(&mut self, host: usize, wake: u64) {
        let now = self.now;
        let wall = self.wall(host);
        let blind = self.is(Mutant::BlindToNodes);
        let twice = self.is(Mutant::PlanTwice);
        let config = LivenessConfig::default();
        let Some(manager) = self.hosts[host].manager.as_mut() else {
            return;
        };
        let Some(lead) = manager.lead.as_mut() else {
            return;
        };
        if lead.wake != wake || lead.awaiting.is_some() {
            return;
        }
        while let Some(mut commit) = lead.feed.pop_front() {
            if blind {
                let is_node = |change: &shoal_raft_store::ObjectChange| {
                    matches!(change, shoal_raft_store::ObjectChange::Node { .. })
                };
                commit.changes.retain(|change| !is_node(change));
            }
            observe(&mut lead.brain, &commit, &mut lead.hurry);
        }
        if !std::mem::take(&mut lead.hurry) && now < lead.gathered {
            let pause = lead.gathered.since(now);
            self.wake(host, pause);
            return;
        }
        if now >= lead.resync_at {
            lead.brain.resync(&manager.state);
            lead.resync_at = now.after(RESYNC);
        }
        lead.liveness.pulse(now);
        let (first, alive_at) = lead.liveness.decide(&manager.state, now, wall);
        let mut wrong = None;
        for change in &first {
            if let Change::SetNodeStatus { id, status } = change
                && status.state == NodeState::Down
            {
                let (heard, earliest) = match lead.heard.get(id) {
                    Some((heard, None)) => (*heard, heard.after(config.silence)),
                    Some((heard, Some(closed))) => {
                        let silent = heard.after(config.silence);
                        (*heard, silent.min(closed.after(config.reconnect)))
                    }
                    None => (lead.since, lead.since.after(config.silence * 3 / 2)),
                };
                if now < earliest {
                    wrong = Some(format!(
                        "{id} is given up {:?} after it spoke",
                        now.since(heard)
                    ));
                }
            }
        }
        let time = lead.pace.advance(now, wall.max(manager.state.clock()));
        if lead.pace.take_jump() {
            lead.brain.forget_time();
        }
        let plan = lead
            .brain
            .decide(&manager.state, first, time, &mut self.rng);
        lead.was_idle = plan.commands.is_empty();
        lead.plan_wake = plan.wake_at;
        lead.plan_at = time;
        lead.plan = plan.commands.into();
        if twice {
            let again: Vec<Command> = lead.plan.iter().filter_map(made_again).collect();
            lead.plan.extend(again);
        }
        let until = [
            plan.wake_at.map(|at| at.since(time)),
            alive_at.map(|at| at.since(now)),
            Some(lead.resync_at.since(now)),
        ];
        let idle = lead.was_idle;
        if let Some(detail) = wrong {
            self.violate("liveness", detail);
        }
        if idle {
            let pause = until.into_iter().flatten().min().unwrap_or(RESYNC);
            self.wake(host, pause.max(Duration::from_millis(1)));
        } else {
            self.next_command(host);
        }
    }

    pub(super) fn next_command(&mut self, host: usize) {
        let now = self.now;
        let Some(lead) = self.lead(host) else { return };
        let Some(command) = lead.plan.pop_front() else {
            lead.gathered = now.after(GATHER);
            lead.hurry = lead.plan_wake.is_some_and(|at| at <= lead.plan_at);
            self.wake(host, Duration::ZERO);
            return;
        };
        let changes = command.changes.len();
        match self.propose(host, command, Waiting::Plan) {
            Ok(id) => {
                self.note(|| format!("leader {host} proposes {changes} changes as {id}"));
                if let Some(lead) = self.lead(host) {
                    lead.awaiting = Some(id);
                }
            }
            Err(Outcome::NotLeader) => {}
            Err(outcome) => self.plan_resolved(host, outcome),
        }
    }

    pub(super) fn plan_resolved(&mut self, host: usize, outcome: Outcome) {
        let manager = self.hosts[host]
            .manager
            .as_mut()
            .expect("a manager proposed");
        let Some(lead) = manager.lead.as_mut() else {
            return;
        };
        lead.awaiting = None;
        match outcome {
            Outcome::Done(_) => self.next_command(host),
            Outcome::Rejected(rejection) => {
                lead.brain.revert(&manager.state);
                lead.plan.clear();
                self.note(|| format!("leader {host}: the plan is refused: {rejection}"));
                self.next_command(host);
            }
            Outcome::NotLeader => {}
            Outcome::NoRoom | Outcome::Timeout => {
                lead.brain.revert(&manager.state);
                lead.plan.clear();
                lead.hurry = true;
                self.note(|| format!("leader {host}: the plan has no result"));
                self.wake(host, RETRY);
            }
        }
    }
}

/// The tasks that a command makes, once more: under other ids, and without addresses, of which each
/// has one owner.
fn made_again(command: &Command) -> Option<Command> {
    let again = |change: &Change| {
        let Change::CreateTask(task) = change else {
            return None;
        };
        let mut task = task.clone();
        let mut bytes = [7; 17];
        bytes[..16].copy_from_slice(&task.id.as_str().as_bytes()[..16]);
        task.id = TaskId::from_random(bytes);
        task.attachments.clear();
        Some(Change::CreateTask(task))
    };
    let changes: Vec<Change> = command.changes.iter().filter_map(again).collect();
    let at = command.at;
    (!changes.is_empty()).then_some(Command { at, changes })
}
