//! A leader's conversations with agents, and their reports on the way into the log.

use std::{collections::BTreeMap, time::Duration};

use rand::RngExt;
use shoal_manager::{
    LivenessConfig,
    cores::{assignments, news},
};
use shoal_raft_store::{Change, Command};
use shoal_types::{
    NodeId, TaskId, Timestamp,
    wire::{AgentMessage, ManagerMessage, ManagerPeer},
};

use super::{COALESCE, LEADER_TIMEOUT, Outcome, REPORTS_RETRY, Report, Session, Waiting};
use crate::{
    mutants::Mutant,
    network::Payload,
    world::{What, World},
};

impl World {
    pub(crate) fn manager_receives(&mut self, host: usize, stream: u64, message: AgentMessage) {
        if let AgentMessage::Hello { node, .. } = message {
            let until = self.now.after(LEADER_TIMEOUT);
            self.greet(host, stream, node, until);
            return;
        }
        let now = self.now;
        let Some(lead) = self.lead(host) else { return };
        let session = lead
            .sessions
            .iter()
            .find(|(_, session)| session.stream == stream);
        let Some(node) = session.map(|(node, _)| *node) else {
            return;
        };
        lead.heard.insert(node, (now, None));
        if lead.liveness.heard(node, now) && lead.awaiting.is_none() {
            self.wake(host, Duration::ZERO);
        }
        if let AgentMessage::Status(statuses) = message
            && let Some(lead) = self.lead(host)
        {
            for (task, status) in statuses {
                let report = Report {
                    stream,
                    node,
                    status,
                };
                lead.reports.insert(task, report);
            }
            self.schedule_reports(host, Duration::from_micros(100));
        }
    }

    /// Opens the session, or says who can, or waits for a leader to be known.
    pub(crate) fn greet(&mut self, host: usize, stream: u64, node: NodeId, until: Timestamp) {
        let now = self.now;
        if !self.streams.contains_key(&stream) {
            return;
        }
        let manager = self.manager(host);
        if manager.lead.is_none() {
            // Now and then one that was deposed has a last word. It is too old to count.
            if self.rng.random_ratio(1, 6) {
                let manager = self.manager(host);
                if manager.state.node(&node).is_some() {
                    let set = assignments(&manager.state, node);
                    self.send(stream, Payload::Manager(ManagerMessage::Assignments(set)));
                }
            }
            let manager = self.manager(host);
            let leader = manager.replica.leader().filter(|leader| *leader != host);
            if leader.is_none() && now < until {
                let greet = What::Greet {
                    stream,
                    node,
                    until,
                };
                self.later(host, Duration::from_millis(50), greet);
                return;
            }
            let leader = leader.map(|leader| ManagerPeer {
                node: self.hosts[leader].node,
                addr: format!("host-{leader}:2377"),
            });
            self.send(
                stream,
                Payload::Manager(ManagerMessage::Elsewhere { leader }),
            );
            return;
        }
        if manager.state.node(&node).is_none() {
            let reason = format!("node {node} is not a member of this swarm");
            self.send(stream, Payload::Manager(ManagerMessage::Refused { reason }));
            return;
        }
        let session = Session {
            stream,
            sent: None,
            accepted: Vec::new(),
        };
        let Some(lead) = self.lead(host) else { return };
        let before = lead.sessions.insert(node, session);
        lead.liveness.opened(node, stream, None, now);
        lead.heard.insert(node, (now, None));
        let idle = lead.awaiting.is_none();
        if let Some(before) = before {
            self.hang_up(before.stream, host);
        }
        let heartbeat = LivenessConfig::default().heartbeat;
        let heartbeat = heartbeat.mul_f64(self.rng.random_range(0.9..=1.0));
        self.send(
            stream,
            Payload::Manager(ManagerMessage::Welcome { heartbeat }),
        );
        self.tell(host, node);
        if idle {
            self.wake(host, Duration::ZERO);
        }
    }

    pub(crate) fn manager_closed(&mut self, host: usize, stream: u64) {
        let now = self.now;
        let Some(lead) = self.lead(host) else { return };
        let session = lead
            .sessions
            .iter()
            .find(|(_, session)| session.stream == stream);
        let Some(node) = session.map(|(node, _)| *node) else {
            return;
        };
        lead.sessions.remove(&node);
        lead.liveness.closed(node, stream, now);
        let heard = lead.heard.get(&node).map_or(now, |(heard, _)| *heard);
        lead.heard.insert(node, (heard, Some(now)));
        if lead.awaiting.is_none() {
            self.wake(host, Duration::ZERO);
        }
    }

    pub(crate) fn tell_all(&mut self, host: usize) {
        let Some(lead) = self.lead(host) else { return };
        lead.telling = false;
        let nodes: Vec<NodeId> = lead.sessions.keys().copied().collect();
        for node in nodes {
            self.tell(host, node);
        }
    }

    pub(super) fn tell(&mut self, host: usize, node: NodeId) {
        let manager = self.hosts[host].manager.as_mut().expect("a manager tells");
        let Some(session) = manager
            .lead
            .as_mut()
            .and_then(|lead| lead.sessions.get_mut(&node))
        else {
            return;
        };
        let stream = session.stream;
        let accepted = std::mem::take(&mut session.accepted);
        let mut messages = Vec::new();
        if !accepted.is_empty() {
            messages.push(ManagerMessage::StatusAccepted(accepted));
        }
        if manager.state.node(&node).is_none() {
            let reason = format!("node {node} is not a member of this swarm any more");
            messages.push(ManagerMessage::Refused { reason });
            if let Some(lead) = &mut manager.lead {
                lead.sessions.remove(&node);
            }
        } else {
            let next = assignments(&manager.state, node);
            if let Some(message) = news(session.sent.as_ref(), &next) {
                session.sent = Some(next);
                messages.push(message);
            }
        }
        for message in messages {
            self.send(stream, Payload::Manager(message));
        }
    }

    // Reports.

    pub(super) fn schedule_reports(&mut self, host: usize, pause: Duration) {
        if let Some(lead) = self.lead(host)
            && lead.batch.is_none()
            && !std::mem::replace(&mut lead.reports_scheduled, true)
        {
            self.later(host, pause, What::Reports);
        }
    }

    pub(crate) fn commit_reports(&mut self, host: usize) {
        let at = self.wall(host);
        let forgets = self.is(Mutant::ForgetReports);
        let Some(lead) = self.lead(host) else { return };
        lead.reports_scheduled = false;
        if lead.batch.is_some() || lead.reports.is_empty() {
            return;
        }
        let reports = std::mem::take(&mut lead.reports);
        let change = |(task, report): (&TaskId, &Report)| Change::SetTaskStatus {
            id: *task,
            reporter: Some(report.node),
            status: report.status.clone(),
        };
        let changes = reports.iter().map(change).collect();
        let proposed = self.propose(host, Command { at, changes }, Waiting::Reports);
        let Some(lead) = self.lead(host) else { return };
        match proposed {
            Ok(id) => lead.batch = Some((id, reports)),
            Err(_no_room) if forgets => {
                for (task, report) in reports {
                    let sessions = lead.sessions.values_mut();
                    let mut ours = sessions.filter(|session| session.stream == report.stream);
                    if let Some(session) = ours.next() {
                        session.accepted.push((task, report.status.state));
                    }
                }
            }
            Err(_no_room) => {
                give_back(&mut lead.reports, reports);
                self.schedule_reports(host, REPORTS_RETRY);
            }
        }
    }

    pub(super) fn reports_resolved(&mut self, host: usize, outcome: Outcome) {
        let early = self.is(Mutant::ForgetReports);
        let Some(lead) = self.lead(host) else { return };
        let Some((_, batch)) = lead.batch.take() else {
            return;
        };
        let committed = matches!(outcome, Outcome::Done(_));
        if committed || early {
            for (task, report) in &batch {
                let session = lead.sessions.values_mut();
                let session = session.into_iter().find(|s| s.stream == report.stream);
                if let Some(session) = session {
                    session.accepted.push((*task, report.status.state));
                }
            }
        } else {
            give_back(&mut lead.reports, batch);
        }
        if !std::mem::replace(&mut lead.telling, true) {
            self.later(host, COALESCE, What::Tell);
        }
        let pause = if committed {
            Duration::from_micros(50)
        } else {
            REPORTS_RETRY
        };
        self.schedule_reports(host, pause);
    }
}

fn give_back(current: &mut BTreeMap<TaskId, Report>, reports: BTreeMap<TaskId, Report>) {
    for (task, report) in reports {
        current.entry(task).or_insert(report);
    }
}
