//! Which nodes are alive, as seen by the leader.
//!
//! Anything an agent says proves that its node lives. A node whose session stands may be silent for a
//! while, because a busy machine is not a dead one; a node whose session ended has the time to find its
//! way back. After a change of leader every node gets half as much again. Nobody can be heard while the
//! leader itself does not run (a stopped process, a paused machine, no processor time), so after such a
//! pause the silence of those that were not given up before it counts from its end. The times here are
//! those of a clock that never jumps.

use std::{collections::BTreeMap, time::Duration};

use shoal_raft_store::{Change, State};
use shoal_types::{
    NodeId, Timestamp,
    object::{Cluster, NodeState, NodeStatus},
};

/// How often an agent speaks, and how long it may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessConfig {
    /// What agents are asked for.
    pub heartbeat: Duration,
    /// A node with a session is down after so long without a word.
    pub silence: Duration,
    /// A node without a session is down after this.
    pub reconnect: Duration,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            // Five seconds without a link, the heartbeat that was due, and the way back.
            silence: Duration::from_secs(7),
            reconnect: Duration::from_secs(4),
        }
    }
}

#[derive(Debug)]
pub struct Liveness {
    config: LivenessConfig,
    leader_since: Timestamp,
    /// When the leader is known to have run last.
    pulse: Timestamp,
    nodes: BTreeMap<NodeId, Contact>,
}

#[derive(Debug)]
struct Contact {
    heard: Timestamp,
    /// The session that speaks for the node; `None` once it has ended.
    session: Option<u64>,
    /// When the last session ended.
    closed: Timestamp,
    addr: Option<String>,
}

impl LivenessConfig {
    /// What the cluster's own heartbeat period makes of these times: all of them are in proportion to it.
    #[must_use]
    pub fn in_cluster(self, state: &State) -> Self {
        let default = Cluster::HEARTBEAT_PERIOD;
        let period = state.cluster().map(|cluster| cluster.heartbeat_period);
        let share = period.unwrap_or(default).div_duration_f64(default);
        Self {
            heartbeat: self.heartbeat.mul_f64(share),
            silence: self.silence.mul_f64(share),
            reconnect: self.reconnect.mul_f64(share),
        }
    }

    /// How often the leader must note that it runs; short enough for times that are made shorter later.
    pub fn pulse(&self) -> Duration {
        let (min, max) = (Duration::from_millis(1), Duration::from_secs(1));
        (self.silence / 8).clamp(min, max)
    }

    /// How long a node may stay away from a new leader.
    fn grace(&self) -> Duration {
        self.silence * 3 / 2
    }
}

impl Contact {
    /// When the node is given up if it is not heard before.
    fn deadline(&self, config: &LivenessConfig) -> Timestamp {
        let silent = self.heard.after(config.silence);
        match self.session {
            Some(_) => silent,
            // One that ended because the node was silent gives it no more time.
            None => silent.min(self.closed.after(config.reconnect)),
        }
    }
}

impl Liveness {
    pub fn new(config: LivenessConfig, now: Timestamp) -> Self {
        Self {
            config,
            leader_since: now,
            pulse: now,
            nodes: BTreeMap::new(),
        }
    }

    pub(crate) fn config(&self) -> &LivenessConfig {
        &self.config
    }

    /// The times are these from now on. Who was not given up by the ones before gets all of the new ones,
    /// because agents have yet to hear how often they are to speak; who was stays so until it is heard.
    pub fn configure(&mut self, config: LivenessConfig, now: Timestamp) {
        if config == self.config {
            return;
        }
        for contact in self.nodes.values_mut() {
            if now < contact.deadline(&self.config) {
                contact.heard = now;
                contact.closed = now;
            } else {
                contact.heard = contact.heard.min(now.before(config.silence));
            }
        }
        self.config = config;
    }

    /// `session` speaks for the node from now on.
    pub fn opened(&mut self, node: NodeId, session: u64, addr: Option<String>, now: Timestamp) {
        let contact = Contact {
            heard: now,
            session: Some(session),
            closed: now,
            addr,
        };
        self.nodes.insert(node, contact);
    }

    /// Tells whether the node had been silent for so long that it may have been given up.
    pub fn heard(&mut self, node: NodeId, now: Timestamp) -> bool {
        let Some(contact) = self.nodes.get_mut(&node) else {
            return false;
        };
        let deadline = contact.deadline(&self.config);
        contact.heard = contact.heard.max(now);
        now >= deadline
    }

    /// The leader runs. Comes at least every [`LivenessConfig::pulse`]; when it did not, the leader
    /// stood still, and what was said to it meanwhile is still to be read.
    pub fn pulse(&mut self, now: Timestamp) {
        let before = std::mem::replace(&mut self.pulse, now);
        let pause = now.since(before);
        if pause < self.config.silence / 2 {
            return;
        }
        tracing::warn!(
            ?pause,
            "this manager stood still: nodes get time to be heard again"
        );
        if before < self.leader_since.after(self.config.grace()) {
            self.leader_since = now;
        }
        for contact in self.nodes.values_mut() {
            if before < contact.deadline(&self.config) {
                contact.heard = now;
                contact.closed = now;
            }
        }
    }

    /// The session ended; ignored when a newer one speaks for the node already.
    pub fn closed(&mut self, node: NodeId, session: u64, now: Timestamp) {
        if let Some(contact) = self.nodes.get_mut(&node)
            && contact.session == Some(session)
        {
            contact.session = None;
            contact.closed = now;
        }
    }

    /// The statuses that have to change, and when to look again. `now` is by the clock of the other
    /// methods, `wall` is what the new statuses are dated with.
    pub fn decide(
        &self,
        state: &State,
        now: Timestamp,
        wall: Timestamp,
    ) -> (Vec<Change>, Option<Timestamp>) {
        let mut changes = Vec::new();
        let mut wake_at: Option<Timestamp> = None;
        for node in state.nodes() {
            let contact = self.nodes.get(&node.id);
            let (alive, deadline) = match contact {
                None => {
                    let grace = self.config.grace();
                    (node.status.state, self.leader_since.after(grace))
                }
                Some(contact) => {
                    let alive = match contact.session {
                        Some(_) => NodeState::Ready,
                        None => NodeState::Disconnected,
                    };
                    (alive, contact.deadline(&self.config))
                }
            };
            let wanted = if now >= deadline {
                NodeState::Down
            } else if node.status.state == NodeState::Down && alive == NodeState::Disconnected {
                // It was given up before it left; only a new session brings it back.
                NodeState::Down
            } else {
                alive
            };
            if wanted != NodeState::Down {
                wake_at = Some(wake_at.map_or(deadline, |earlier| earlier.min(deadline)));
            }
            let addr = contact
                .and_then(|contact| contact.addr.clone())
                .unwrap_or_else(|| node.status.addr.clone());
            if wanted != node.status.state || addr != node.status.addr {
                let message = match wanted {
                    NodeState::Down => "heartbeat failure",
                    NodeState::Disconnected => "node is currently trying to find new manager",
                    NodeState::Ready | NodeState::Unknown => "",
                };
                let since = if wanted == node.status.state {
                    node.status.since
                } else {
                    wall
                };
                changes.push(Change::SetNodeStatus {
                    id: node.id,
                    status: NodeStatus {
                        state: wanted,
                        message: message.to_owned(),
                        addr,
                        since,
                    },
                });
            }
        }
        (changes, wake_at)
    }
}

#[cfg(test)]
mod tests {
    use shoal_raft_store::Command;
    use shoal_types::Version;

    use super::*;
    use crate::testing;

    const CONFIG: LivenessConfig = LivenessConfig {
        heartbeat: Duration::from_secs(1),
        silence: Duration::from_secs(5),
        reconnect: Duration::from_secs(3),
    };

    #[test]
    fn five_seconds_of_standing_still_are_no_death() {
        let (mut state, node) = (state(), testing::node_id(1));
        let config = LivenessConfig::default();
        let mut liveness = Liveness::new(config, at(0));
        liveness.opened(node, 1, None, at(1));
        // Stopped right before a heartbeat was due, and late with it by a tenth afterwards.
        let stopped = config.heartbeat + Duration::from_secs(5);
        let late = at(1).after(stopped + config.heartbeat / 10);
        assert_eq!(status(&liveness, &mut state, late), NodeState::Ready);
        // Neither does it help or harm when the connection was given up meanwhile.
        liveness.closed(node, 1, at(5));
        assert_eq!(status(&liveness, &mut state, late), NodeState::Disconnected);
        // A dead one is known to be dead in time for its tasks to run elsewhere within eight seconds.
        assert_eq!(status(&liveness, &mut state, at(8)), NodeState::Down);
    }

    #[test]
    fn times_are_in_proportion_to_the_period_of_the_cluster() {
        let base = LivenessConfig::default();
        let mut state = State::default();
        assert_eq!(base.in_cluster(&state), base);
        let mut changes = testing::cluster_changes();
        let Some(Change::CreateCluster(cluster)) = changes.first_mut() else {
            panic!("the cluster comes first: {changes:?}");
        };
        cluster.heartbeat_period = Duration::from_secs(1);
        let command = Command {
            at: Timestamp::EPOCH,
            changes,
        };
        state.apply(Version(1), &command).unwrap();
        let tuned = LivenessConfig {
            heartbeat: Duration::from_millis(200),
            silence: Duration::from_millis(1400),
            reconnect: Duration::from_millis(800),
        };
        assert_eq!(base.in_cluster(&state), tuned);
    }

    #[test]
    fn shorter_times_give_nobody_up_before_agents_have_heard_of_them() {
        let (mut state, node) = (state(), testing::node_id(1));
        let long = LivenessConfig {
            heartbeat: Duration::from_secs(10),
            silence: Duration::from_secs(70),
            reconnect: Duration::from_secs(40),
        };
        let mut liveness = Liveness::new(long, at(0));
        liveness.opened(node, 1, None, at(1));
        assert_eq!(status(&liveness, &mut state, at(40)), NodeState::Ready);
        liveness.configure(CONFIG, at(40));
        assert_eq!(status(&liveness, &mut state, at(44)), NodeState::Ready);
        assert_eq!(status(&liveness, &mut state, at(45)), NodeState::Down);
        // Nobody is taken back for longer ones.
        liveness.configure(long, at(46));
        assert_eq!(status(&liveness, &mut state, at(46)), NodeState::Down);
    }

    fn state() -> State {
        let mut state = State::default();
        let command = Command {
            at: Timestamp::EPOCH,
            changes: vec![Change::CreateNode(Box::new(testing::node(1)))],
        };
        state.apply(Version(1), &command).unwrap();
        state
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(1000 + seconds, 0)
    }

    fn status(liveness: &Liveness, state: &mut State, now: Timestamp) -> NodeState {
        let (changes, _) = liveness.decide(state, now, now);
        if !changes.is_empty() {
            let version = Version(state.version().0 + 1);
            state.apply(version, &Command { at: now, changes }).unwrap();
        }
        state.node(&testing::node_id(1)).unwrap().status.state
    }

    #[test]
    fn a_late_heartbeat_is_not_a_death() {
        let (mut state, node) = (state(), testing::node_id(1));
        let mut liveness = Liveness::new(CONFIG, at(0));
        liveness.opened(node, 1, None, at(1));
        assert_eq!(status(&liveness, &mut state, at(5)), NodeState::Ready);
        liveness.heard(node, at(5));
        assert_eq!(status(&liveness, &mut state, at(9)), NodeState::Ready);
        assert_eq!(status(&liveness, &mut state, at(10)), NodeState::Down);
        liveness.heard(node, at(11));
        assert_eq!(status(&liveness, &mut state, at(11)), NodeState::Ready);
    }

    #[test]
    fn nobody_is_given_up_for_a_pause_of_the_leader_itself() {
        let (mut state, node) = (state(), testing::node_id(1));
        let mut liveness = Liveness::new(CONFIG, at(0));
        liveness.opened(node, 1, None, at(1));
        liveness.pulse(at(1));
        liveness.pulse(at(60));
        assert_eq!(status(&liveness, &mut state, at(60)), NodeState::Ready);
        for second in 61..65 {
            liveness.pulse(at(second));
        }
        assert_eq!(status(&liveness, &mut state, at(64)), NodeState::Ready);
        assert_eq!(status(&liveness, &mut state, at(65)), NodeState::Down);
        // Who was given up before the pause is not alive because of it.
        liveness.pulse(at(65));
        liveness.pulse(at(100));
        assert_eq!(status(&liveness, &mut state, at(100)), NodeState::Down);
        assert!(liveness.heard(node, at(101)), "it is worth a look at once");
        assert!(!liveness.heard(node, at(102)));
        assert_eq!(status(&liveness, &mut state, at(102)), NodeState::Ready);
    }

    #[test]
    fn a_node_that_lost_its_session_has_time_to_come_back() {
        let (mut state, node) = (state(), testing::node_id(1));
        let mut liveness = Liveness::new(CONFIG, at(0));
        liveness.opened(node, 1, None, at(1));
        liveness.opened(node, 2, None, at(2));
        liveness.closed(node, 1, at(2));
        assert_eq!(status(&liveness, &mut state, at(2)), NodeState::Ready);
        liveness.closed(node, 2, at(3));
        assert_eq!(
            status(&liveness, &mut state, at(4)),
            NodeState::Disconnected
        );
        assert_eq!(status(&liveness, &mut state, at(6)), NodeState::Down);
        assert_eq!(status(&liveness, &mut state, at(7)), NodeState::Down);
        liveness.opened(node, 3, None, at(8));
        assert_eq!(status(&liveness, &mut state, at(8)), NodeState::Ready);
    }

    #[test]
    fn a_new_leader_waits_longer_before_it_gives_a_node_up() {
        let mut state = state();
        let liveness = Liveness::new(CONFIG, at(0));
        assert_eq!(status(&liveness, &mut state, at(7)), NodeState::Ready);
        let (_, wake_at) = liveness.decide(&state, at(7), at(7));
        assert_eq!(wake_at, Some(at(0).after(CONFIG.grace())));
        assert_eq!(status(&liveness, &mut state, at(8)), NodeState::Down);
    }
}
