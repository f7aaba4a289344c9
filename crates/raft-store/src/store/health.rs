//! Who of the group answers, as its leader sees it, and whether enough of them do.

use std::time::Duration;

use openraft::{Instant, async_runtime::WatchReceiver};
use shoal_types::RaftId;

use super::{Store, members::MembershipError};

/// What the leader knows of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    pub id: RaftId,
    /// Where the others reach it; empty for one that was never told.
    pub addr: String,
    /// It counts for majorities.
    pub voter: bool,
    /// Index of the last entry it is known to have on disk.
    pub matched: Option<u64>,
    /// It has answered lately: within twice the time after which followers give up a leader.
    pub reachable: bool,
    /// How long ago the leader sent the last message it answered; zero for the leader itself.
    pub last_contact: Option<Duration>,
}

/// How many of some voters answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quorum {
    pub(super) voters: usize,
    pub(super) reachable: usize,
    pub(super) needed: usize,
}

impl Quorum {
    /// Among the voters, leaving out one if so wanted.
    pub(super) fn among(health: &[MemberHealth], without: Option<RaftId>) -> Self {
        let voters = || health.iter().filter(|m| m.voter && Some(m.id) != without);
        let count = voters().count();
        Self {
            voters: count,
            reachable: voters().filter(|m| m.reachable).count(),
            needed: count / 2 + 1,
        }
    }

    pub(super) fn holds(self) -> bool {
        self.reachable >= self.needed
    }
}

/// Whether enough voters answer to agree on a change of the members at all.
pub(super) fn may_agree(health: &[MemberHealth]) -> Result<(), MembershipError> {
    let Quorum {
        voters,
        reachable,
        needed,
    } = Quorum::among(health, None);
    if reachable >= needed {
        return Ok(());
    }
    Err(MembershipError::NoQuorum {
        voters,
        reachable,
        needed,
    })
}

/// Whether the group can go on without this voter.
pub(super) fn may_lose(health: &[MemberHealth], id: RaftId) -> Result<(), MembershipError> {
    may_agree(health)?;
    let left = Quorum::among(health, Some(id));
    if left.holds() {
        return Ok(());
    }
    Err(MembershipError::WouldLoseQuorum {
        voters: left.voters,
        reachable: left.reachable,
        needed: left.needed,
    })
}

impl Store {
    /// How each member is doing, by id. Only the leader can tell; elsewhere there are none.
    pub fn health(&self) -> Vec<MemberHealth> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (Some(progress), Some(contacts)) = (&metrics.replication, &metrics.heartbeat) else {
            return Vec::new();
        };
        if !metrics.state.is_leader() || metrics.running_state.is_err() {
            return Vec::new();
        }
        let patience = self.answer_patience();
        let me = self.0.id;
        let members = self.members().into_iter().map(|member| {
            let id = member.id.0;
            let (matched, last_contact) = if member.id == me {
                (metrics.last_log_index, Some(Duration::ZERO))
            } else {
                let matched = progress.get(&id).copied().flatten();
                let contact = contacts.get(&id).and_then(Option::as_ref);
                (matched.map(|at| at.index), contact.map(|at| at.elapsed()))
            };
            MemberHealth {
                id: member.id,
                addr: member.addr,
                voter: member.voter,
                matched,
                reachable: last_contact.is_some_and(|ago| ago <= patience),
                last_contact,
            }
        });
        members.collect()
    }

    /// Silence for this long means that a member cannot be reached.
    pub(super) fn answer_patience(&self) -> Duration {
        self.0.tuning.election_max * 2
    }

    /// Asks `allowed` of the health of the group until it agrees, or everyone had time to answer: a
    /// leader that is new has not heard of all others yet.
    pub(super) async fn allowed(
        &self,
        allowed: impl Fn(&[MemberHealth]) -> Result<(), MembershipError>,
    ) -> Result<(), MembershipError> {
        let end = tokio::time::Instant::now() + self.answer_patience();
        let mut changes = self.0.raft.metrics();
        loop {
            self.must_lead()?;
            let refused = match allowed(&self.health()) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            let changed = tokio::time::timeout_at(end, changes.changed()).await;
            match changed {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return Err(MembershipError::Stopped),
                Err(_elapsed) => return Err(refused),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(voters: &[(u64, bool)]) -> Vec<MemberHealth> {
        let member = |&(id, reachable): &(u64, bool)| MemberHealth {
            id: RaftId(id),
            addr: String::new(),
            voter: true,
            matched: None,
            reachable,
            last_contact: None,
        };
        voters.iter().map(member).collect()
    }

    #[test]
    fn a_voter_may_go_only_if_the_others_are_a_majority_of_what_remains() {
        let all = health(&[(1, true), (2, true), (3, true)]);
        assert!(may_lose(&all, RaftId(2)).is_ok());
        let one_away = health(&[(1, true), (2, true), (3, false)]);
        assert!(
            may_lose(&one_away, RaftId(3)).is_ok(),
            "the dead one can go"
        );
        let refused = may_lose(&one_away, RaftId(2)).expect_err("one of two is left");
        assert_eq!(
            refused.to_string(),
            "removing this manager would leave 2 managers of which 1 is reachable; 2 are needed for \
             a quorum: bring the others back first"
        );
        let five = health(&[(1, true), (2, true), (3, true), (4, false), (5, false)]);
        assert!(may_lose(&five, RaftId(4)).is_ok());
        assert!(may_lose(&five, RaftId(1)).is_err());
    }

    #[test]
    fn nothing_can_change_without_a_majority_of_what_is() {
        let refused = may_lose(&health(&[(1, true), (2, false)]), RaftId(2));
        assert_eq!(
            refused.expect_err("nobody can agree").to_string(),
            "1 of 2 managers is reachable, 2 are needed to agree on anything: bring the others back, \
             or make a new cluster of this manager alone"
        );
        assert!(may_agree(&health(&[(1, true)])).is_ok());
        let learner = MemberHealth {
            voter: false,
            ..health(&[(2, false)]).remove(0)
        };
        let with_learner = [health(&[(1, true)]), vec![learner]].concat();
        assert!(may_agree(&with_learner).is_ok(), "learners do not count");
    }
}
