//! A leader whose process has ended need not be waited for.
//!
//! A process that is killed takes its connections with it, and its host refuses new ones. Its followers
//! see both at once, long before its silence would tell them; the one whose turn it is asks the others,
//! and stands for election. A host that is gone or cut off refuses nothing: then silence decides, as ever.
//!
//! What it keeps true: a member lets its promise to the leader go only if it has seen itself that the
//! leader is gone. Before a term is begun, a majority has said that it would vote for it. So a connection
//! that only one member has lost, for whatever reason, disturbs nobody.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use openraft::{
    ServerState,
    async_runtime::WatchReceiver,
    impls::BasicNode,
    network::{RPCOption, v2::RaftNetworkV2},
    raft::{VoteRequest, VoteResponse},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::Store;
use crate::{
    config::RaftTuning,
    peers::Network,
    raft::{Raft, TypeConfig, Vote},
};

/// Before the others are asked again: they may not have looked yet.
const RETRY: Duration = Duration::from_millis(20);

/// What this member has seen of its leader's end.
#[derive(Clone)]
pub(super) struct Seen {
    /// The term of the last leader that is gone; none has the number 0.
    gone: Arc<watch::Sender<u64>>,
    /// A connection of another member has ended.
    hung_up: Arc<Notify>,
}

impl Seen {
    pub(super) fn nothing() -> Self {
        Self {
            gone: Arc::new(watch::channel(0).0),
            hung_up: Arc::default(),
        }
    }

    /// Wakes when a leader is found to be gone.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.gone.subscribe()
    }
}

impl Store {
    /// A connection on which another member spoke has ended: looks whether the leader has ended with it.
    pub fn hung_up(&self) {
        self.0.seen.hung_up.notify_one();
    }

    /// Whether this member has seen that the leader it follows is gone.
    pub(super) fn leader_is_gone(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state != ServerState::Leader && *self.0.seen.gone.borrow() == metrics.current_term
    }

    /// Whether it would vote for a member that has seen the end of the leader, having seen it as well.
    pub(super) fn would_follow(&self, ask: &VoteRequest<TypeConfig>) -> VoteResponse<TypeConfig> {
        let knows = self.leader_is_gone();
        if !knows {
            self.hung_up();
        }
        let vote = self.0.raft.metrics().borrow_watched().vote;
        let last = self.0.wal.last().map(Into::into);
        let granted = knows && ask.vote > vote && ask.last_log_id >= last;
        VoteResponse::new(vote, last, granted)
    }
}

/// A leader that this member follows.
struct Led {
    term: u64,
    leader: u64,
    node: BasicNode,
    /// Whose majorities decide, each for itself.
    configs: Vec<BTreeSet<u64>>,
    /// The other voters.
    others: Vec<(u64, BasicNode)>,
    /// How many may stand for election before this member; `None` when it may not.
    turn: Option<u32>,
}

impl Led {
    fn is_majority(&self, votes: &BTreeSet<u64>) -> bool {
        let mut configs = self.configs.iter();
        configs.all(|config| votes.intersection(config).count() > config.len() / 2)
    }
}

pub(super) struct Succession {
    pub(super) me: u64,
    pub(super) raft: Raft,
    pub(super) network: Network,
    pub(super) seen: Seen,
    pub(super) tuning: RaftTuning,
}

impl Succession {
    /// Looks after each connection that ends, until the store is shut down.
    pub(super) async fn run(self, stopped: CancellationToken) {
        // Dropping it at any await loses nothing but an election that others may begin as well.
        let looking = async {
            loop {
                self.seen.hung_up.notified().await;
                self.look().await;
            }
        };
        stopped.run_until_cancelled(looking).await;
    }

    async fn look(&self) {
        let Some(led) = self.led() else { return };
        if !self.network.is_gone(led.leader, &led.node).await || !self.still(&led) {
            return;
        }
        tracing::info!(
            raft.term = led.term,
            raft.leader = led.leader,
            "the leader has ended"
        );
        self.seen.gone.send_replace(led.term);
        let Some(turn) = led.turn else { return };
        // One after the other, for two at once would share the votes.
        sleep(self.tuning.election_min / 2 * turn).await;
        let give_up = Instant::now() + self.tuning.election_max;
        while self.still(&led) && Instant::now() < give_up {
            if self.would_win(&led).await && self.still(&led) {
                // A store that is shut down elects nobody.
                let _ = self.raft.trigger().elect(false).await;
                return;
            }
            sleep(RETRY).await;
        }
    }

    /// Whether nothing has come of it yet.
    fn still(&self, led: &Led) -> bool {
        self.led().is_some_and(|now| now.term == led.term)
    }

    fn led(&self) -> Option<Led> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.filter(|leader| *leader != self.me)?;
        let membership = metrics.membership_config.membership();
        let node = membership.get_node(&leader)?.clone();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let others = voters.iter().filter(|id| **id != self.me);
        let others = others.filter_map(|id| Some((*id, membership.get_node(id)?.clone())));
        let mut heirs = voters.iter().filter(|id| **id != leader);
        let turn = heirs.position(|id| *id == self.me);
        Some(Led {
            term: metrics.current_term,
            leader,
            node,
            configs: membership.get_joint_config().clone(),
            others: others.filter(|(id, _)| *id != leader).collect(),
            turn: turn.and_then(|turn| u32::try_from(turn).ok()),
        })
    }

    /// Asks the others whether they would vote for this member now.
    async fn would_win(&self, led: &Led) -> bool {
        let ask = VoteRequest {
            vote: Vote::new(led.term + 1, self.me),
            last_log_id: self.network.last(),
            // What tells it from a question before an ordinary election.
            leadership_transfer: true,
        };
        let mut asked: FuturesUnordered<_> = led
            .others
            .iter()
            .map(|(id, node)| {
                let ask = ask.clone();
                let mut client = self.network.voting_client(*id, node);
                let option = RPCOption::new(self.tuning.election_min);
                async move {
                    let answer = client.pre_vote(ask, option).await;
                    answer
                        .is_ok_and(|answer| answer.vote_granted)
                        .then_some(*id)
                }
            })
            .collect();
        let mut votes = BTreeSet::from([self.me]);
        while !led.is_majority(&votes) {
            match asked.next().await {
                Some(vote) => votes.extend(vote),
                None => return false,
            }
        }
        true
    }
}
