//! Who belongs to the group.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, Fatal, InitializeError, RaftError},
    impls::BasicNode,
};
use shoal_types::RaftId;

use super::{
    Leadership, StorageError, Store,
    alone::new_group,
    health::{may_agree, may_lose},
};
use crate::raft::{Raft, TypeConfig};

/// A new member may be this many entries behind and yet get a vote: under load it always is a little.
const CAUGHT_UP: u64 = 500;
/// A new member that answers but has no more of the state after this time never will: its disk is
/// full, for example. A snapshot of the largest clusters gets to it in less.
const STANDSTILL: Duration = Duration::from_mins(10);

/// One member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: RaftId,
    /// Where the others reach it; empty for one that was never told.
    pub addr: String,
    /// It counts for majorities. One that does not is still catching up.
    pub voter: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the store is shut down")]
    Stopped,
    #[error("the cluster state cannot be stored")]
    Storage(#[source] StorageError),
    #[error("the group has one member, and it did not become its leader in time")]
    Timeout,
}

/// Why the group is as it was.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("this manager is not the leader{}", leader.map_or_else(String::new, |l| format!(", raft member {l} is")))]
    NotLeader { leader: Option<RaftId> },
    #[error("raft member {id} is not a member")]
    NoMember { id: RaftId },
    #[error("raft member {id} is the only voter; the group would be without one")]
    LastVoter { id: RaftId },
    #[error("another change of the members is under way")]
    InProgress,
    #[error(
        "raft member {id} is a member already, at {known:?} and not at {given:?}; change its address \
         or remove it first"
    )]
    OtherAddress {
        id: RaftId,
        known: String,
        given: String,
    },
    /// It was taken out again.
    #[error(
        "raft member {id} did not answer at {addr:?}; see that it runs and can be reached there from \
         this manager, then add it again"
    )]
    NoAnswer { id: RaftId, addr: String },
    #[error(
        "raft member {id} did not answer at {addr:?}, and could not be taken out again; remove it, or \
         see that it can be reached"
    )]
    LeftBehind {
        id: RaftId,
        addr: String,
        #[source]
        source: Box<Self>,
    },
    #[error(
        "removing this manager would leave {voters} managers of which {} reachable; {needed} are \
         needed for a quorum: bring the others back first",
        count_is(*reachable)
    )]
    WouldLoseQuorum {
        voters: usize,
        reachable: usize,
        needed: usize,
    },
    #[error(
        "{reachable} of {voters} managers {} reachable, {needed} are needed to agree on anything: \
         bring the others back, or make a new cluster of this manager alone",
        if *reachable == 1 { "is" } else { "are" }
    )]
    NoQuorum {
        voters: usize,
        reachable: usize,
        needed: usize,
    },
    #[error("the change of the members was refused: {reason}")]
    Refused { reason: String },
    #[error("the store is shut down")]
    Stopped,
    #[error("the cluster state cannot be stored")]
    Storage(#[source] StorageError),
    /// It may still take effect.
    #[error("the change of the members did not finish in time")]
    Timeout,
}

fn count_is(count: usize) -> String {
    format!("{count} {}", if count == 1 { "is" } else { "are" })
}

impl Store {
    /// Makes this member the one voter of a new group, and returns when it leads. Does nothing when it
    /// has a group already; if it is the only voter of it, waits until it leads.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
        if self.0.wal.marks().group.is_none() {
            // Before there is anything of the group, so that it never is without.
            let joined = self.join_group(new_group()).await;
            joined.map_err(|error| BootstrapError::Storage(StorageError::Log(error)))?;
        }
        let members = BTreeMap::from([(self.0.id.0, BasicNode::default())]);
        match self.0.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                unreachable!("the members are this one")
            }
            Err(RaftError::Fatal(fatal)) => {
                return Err(match self.fatal(&fatal) {
                    Some(storage) => BootstrapError::Storage(storage),
                    None => BootstrapError::Stopped,
                });
            }
        }
        match self.is_alone().await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(fatal) => {
                return Err(match self.fatal(&fatal) {
                    Some(storage) => BootstrapError::Storage(storage),
                    None => BootstrapError::Stopped,
                });
            }
        }
        let mut leadership = self.leadership();
        let leads = leadership.wait_for(|now| now.is_leader());
        match tokio::time::timeout(self.0.tuning.propose_timeout, leads).await {
            Ok(Ok(_leads)) => Ok(()),
            Ok(Err(_closed)) => Err(BootstrapError::Stopped),
            Err(_elapsed) => Err(match self.0.wal.failure() {
                Some(error) => BootstrapError::Storage(StorageError::Log(error)),
                None => BootstrapError::Timeout,
            }),
        }
    }

    /// The members of the group, by id.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.0.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let nodes = metrics.membership_config.nodes();
        nodes
            .map(|(id, node)| Member {
                id: RaftId(*id),
                addr: node.addr.clone(),
                voter: voters.contains(id),
            })
            .collect()
    }

    /// Adds a member that can be reached at `addr`: it gets the state first and a vote then. Only the
    /// leader can. Doing it again does no harm, and finishes what a leader before has begun. A member
    /// that does not answer is taken out again.
    pub async fn add_member(
        &self,
        id: RaftId,
        addr: impl Into<String>,
    ) -> Result<(), MembershipError> {
        self.add_learner(id, addr).await?;
        self.promote(id).await
    }

    /// Adds a member without a vote, and returns when it has caught up with the group. One that is a
    /// member already, with or without a vote, is left as it is.
    pub async fn add_learner(
        &self,
        id: RaftId,
        addr: impl Into<String>,
    ) -> Result<(), MembershipError> {
        let addr = addr.into();
        self.must_lead()?;
        match self.member(id) {
            Some(known) if known.addr != addr => {
                return Err(MembershipError::OtherAddress {
                    id,
                    known: known.addr,
                    given: addr,
                });
            }
            Some(known) if known.voter => return Ok(()),
            Some(_learns) => {}
            None => {
                self.allowed(may_agree).await?;
                let node = BasicNode::new(addr);
                self.limited(async {
                    let added = self.0.raft.add_learner(id.0, node, false).await;
                    added.map_err(|error| self.refusal(error)).map(drop)
                })
                .await?;
            }
        }
        match self.caught_up(id).await {
            Err(MembershipError::NoAnswer { id, addr }) => {
                let removed = ChangeMembers::RemoveNodes(BTreeSet::from([id.0]));
                match self.change(removed).await {
                    Ok(()) => Err(MembershipError::NoAnswer { id, addr }),
                    Err(source) => Err(MembershipError::LeftBehind {
                        id,
                        addr,
                        source: Box::new(source),
                    }),
                }
            }
            result => result,
        }
    }

    /// Gives a vote to a member that has none, once it has caught up. Nothing changes if it has one,
    /// or does not answer.
    pub async fn promote(&self, id: RaftId) -> Result<(), MembershipError> {
        self.must_lead()?;
        self.finish_change().await?;
        let member = self.member(id).ok_or(MembershipError::NoMember { id })?;
        if member.voter {
            return Ok(());
        }
        self.caught_up(id).await?;
        // One that answers, more than before, leaves a group that has a majority with one.
        self.allowed(may_agree).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0])))
            .await
    }

    /// Whether the group could go on without the member as things stand.
    pub async fn check_removal(&self, id: RaftId) -> Result<(), MembershipError> {
        self.must_lead()?;
        let voters = self.members().iter().filter(|m| m.voter).count();
        match self.member(id) {
            Some(member) if member.voter && voters == 1 => Err(MembershipError::LastVoter { id }),
            Some(member) if member.voter => self.allowed(|health| may_lose(health, id)).await,
            _ => Ok(()),
        }
    }

    /// Removes a member, alive or dead. A leader that removes itself hands leadership on. Refused when
    /// those who remain and can be reached are no majority.
    pub async fn remove_member(&self, id: RaftId) -> Result<(), MembershipError> {
        self.must_lead()?;
        self.finish_change().await?;
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.id == id) else {
            return Err(MembershipError::NoMember { id });
        };
        if !member.voter {
            self.allowed(may_agree).await?;
            let removed = ChangeMembers::RemoveNodes(BTreeSet::from([id.0]));
            return self.change(removed).await;
        }
        if members.iter().filter(|member| member.voter).count() == 1 {
            return Err(MembershipError::LastVoter { id });
        }
        self.allowed(|health| may_lose(health, id)).await?;
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id.0])))
            .await
    }

    /// Tells the group where this or another member is reached from now on.
    pub async fn set_address(
        &self,
        id: RaftId,
        addr: impl Into<String>,
    ) -> Result<(), MembershipError> {
        let addr = addr.into();
        self.must_lead()?;
        let member = self.member(id).ok_or(MembershipError::NoMember { id })?;
        if member.addr == addr {
            return Ok(());
        }
        self.finish_change().await?;
        self.allowed(may_agree).await?;
        let nodes = BTreeMap::from([(id.0, BasicNode::new(addr))]);
        self.change(ChangeMembers::SetNodes(nodes)).await
    }

    /// Gives leadership to the voter that is most up to date, and returns when this member does not
    /// lead any more; does nothing when it does not, or nobody else could. For a member that is about
    /// to stop: the others need not wait until they miss it. Takes no longer than an election.
    pub async fn hand_over(&self) -> Result<(), MembershipError> {
        if self.must_lead().is_err() {
            return Ok(());
        }
        let health = self.health();
        let others = health.iter().filter(|m| m.id != self.0.id);
        let next = others
            .filter(|m| m.voter && m.reachable)
            .max_by_key(|m| (m.matched, std::cmp::Reverse(m.id)));
        let Some(next) = next else {
            return Ok(());
        };
        let limit = self.0.tuning.election_max * 2;
        let handed = tokio::time::timeout(limit, self.transfer_leader(next.id)).await;
        match handed {
            Ok(Err(MembershipError::NotLeader { .. })) => Ok(()),
            Ok(result) => result,
            Err(_elapsed) => Err(MembershipError::Timeout),
        }
    }

    fn member(&self, id: RaftId) -> Option<Member> {
        self.members().into_iter().find(|member| member.id == id)
    }

    pub(super) fn must_lead(&self) -> Result<(), MembershipError> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        if let Err(fatal) = &metrics.running_state {
            return Err(match self.fatal(fatal) {
                Some(storage) => MembershipError::Storage(storage),
                None => MembershipError::Stopped,
            });
        }
        if metrics.state.is_leader() {
            return Ok(());
        }
        Err(MembershipError::NotLeader {
            leader: metrics.current_leader.map(RaftId),
        })
    }

    /// Waits until a member has what the group has, as long as it gives signs of life.
    async fn caught_up(&self, id: RaftId) -> Result<(), MembershipError> {
        let patience = self.0.tuning.propose_timeout;
        let mut changes = self.0.raft.metrics();
        let mut matched = None;
        let started = tokio::time::Instant::now();
        let (mut alive_at, mut moved_at) = (started, started);
        loop {
            self.must_lead()?;
            let health = self.health();
            let mine = health.iter().find(|m| m.id == self.0.id);
            let newest = mine.and_then(|m| m.matched);
            let now = tokio::time::Instant::now();
            let Some(it) = health.iter().find(|m| m.id == id) else {
                // What is known of the members may lag a little behind the change that added it.
                if now >= started + self.answer_patience() {
                    return Err(MembershipError::NoMember { id });
                }
                if let Ok(Err(_closed)) = tokio::time::timeout(patience, changes.changed()).await {
                    return Err(MembershipError::Stopped);
                }
                continue;
            };
            if it.matched.is_some() && it.matched.map(|m| m + CAUGHT_UP) >= newest && it.reachable {
                return Ok(());
            }
            if it.matched > matched {
                (matched, moved_at, alive_at) = (it.matched, now, now);
            }
            if it.reachable {
                alive_at = now;
            }
            let waits = (alive_at + patience).min(moved_at + STANDSTILL);
            if now >= waits {
                return Err(MembershipError::NoAnswer {
                    id,
                    addr: it.addr.clone(),
                });
            }
            let changed = tokio::time::timeout_at(waits, changes.changed()).await;
            if let Ok(Err(_closed)) = changed {
                return Err(MembershipError::Stopped);
            }
        }
    }

    /// Finishes a change that a leader before left half done.
    async fn finish_change(&self) -> Result<(), MembershipError> {
        if !is_half_done(&self.0.raft) {
            return Ok(());
        }
        self.allowed(may_agree).await?;
        self.change(finish()).await
    }

    /// Hands leadership to another voter; returns when this member does not lead any more.
    pub async fn transfer_leader(&self, to: RaftId) -> Result<(), MembershipError> {
        let members = self.members();
        if !members.iter().any(|member| member.id == to && member.voter) {
            return Err(MembershipError::NoMember { id: to });
        }
        let mut leadership = self.leadership();
        if let Leadership::Follower { leader } = *leadership.borrow_and_update() {
            return Err(MembershipError::NotLeader { leader });
        }
        if to == self.0.id {
            return Ok(());
        }
        self.limited(async {
            let asked = self.0.raft.trigger().transfer_leader(to.0).await;
            asked.map_err(|fatal| match self.fatal(&fatal) {
                Some(storage) => MembershipError::Storage(storage),
                None => MembershipError::Stopped,
            })?;
            let lost = leadership.wait_for(|now| !now.is_leader()).await;
            lost.map(drop).map_err(|_closed| MembershipError::Stopped)
        })
        .await
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), MembershipError> {
        self.limited(async {
            let changed = self.0.raft.change_membership(change, false).await;
            changed.map_err(|error| self.refusal(error)).map(drop)
        })
        .await
    }

    /// A change is two entries that a majority has to write, one after the other.
    async fn limited(
        &self,
        work: impl Future<Output = Result<(), MembershipError>>,
    ) -> Result<(), MembershipError> {
        let limit = self.0.tuning.propose_timeout * 2;
        let result = tokio::time::timeout(limit, work).await;
        result.unwrap_or(Err(MembershipError::Timeout))
    }

    fn refusal(
        &self,
        error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
    ) -> MembershipError {
        use openraft::errors::ChangeMembershipError as Change;
        match error {
            RaftError::Fatal(fatal) => match self.fatal(&fatal) {
                Some(storage) => MembershipError::Storage(storage),
                None => MembershipError::Stopped,
            },
            RaftError::APIError(error) => match error {
                ClientWriteError::ForwardToLeader(forward) => MembershipError::NotLeader {
                    leader: forward.leader_id.map(RaftId),
                },
                ClientWriteError::LogEntryDiscarded(_) => MembershipError::Timeout,
                ClientWriteError::ChangeMembershipError(Change::InProgress(_)) => {
                    MembershipError::InProgress
                }
                other @ (ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_)) => MembershipError::Refused {
                    reason: other.to_string(),
                },
            },
        }
    }

    /// Whether this member is the only voter of a group.
    pub(super) async fn is_alone(&self) -> Result<bool, Fatal<TypeConfig>> {
        let id = self.0.id.0;
        // Asked of raft itself: its metrics may lag behind what it has just done.
        let asked = self.0.raft.with_raft_state(move |state| {
            let members = state.membership_state.effective();
            members.voter_ids().eq([id])
        });
        asked.await
    }
}

/// The members are still those from before and those from after a change, together. A leader that
/// died between the two steps of a change leaves it so.
pub(super) fn is_half_done(raft: &Raft) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let members = metrics.membership_config.membership();
    members.get_joint_config().len() > 1
}

/// The change that only finishes the one before.
pub(super) fn finish() -> ChangeMembers<u64, BasicNode> {
    ChangeMembers::AddVoterIds(BTreeSet::new())
}
