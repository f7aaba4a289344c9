//! Who belongs to the group.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    ChangeMembers,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, Fatal, InitializeError, RaftError},
    impls::BasicNode,
};
use shoal_types::RaftId;

use super::{Leadership, StorageError, Store};
use crate::raft::TypeConfig;

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

impl Store {
    /// Makes this member the one voter of a new group, and returns when it leads. Does nothing when it
    /// has a group already; if it is the only voter of it, waits until it leads.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
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
    /// leader can. Doing it again does no harm.
    pub async fn add_member(&self, id: RaftId, addr: String) -> Result<(), MembershipError> {
        let node = BasicNode::new(addr);
        let raft = &self.0.raft;
        self.limited(async {
            let learns = raft.add_learner(id.0, node, true).await;
            learns.map_err(|error| self.refusal(error))?;
            let votes = ChangeMembers::AddVoterIds(BTreeSet::from([id.0]));
            let changed = raft.change_membership(votes, true).await;
            changed.map_err(|error| self.refusal(error)).map(drop)
        })
        .await
    }

    /// Removes a member from the group. A leader that removes itself hands leadership on.
    pub async fn remove_member(&self, id: RaftId) -> Result<(), MembershipError> {
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.id == id) else {
            return Err(MembershipError::NoMember { id });
        };
        let change = if member.voter {
            if members.iter().filter(|member| member.voter).count() == 1 {
                return Err(MembershipError::LastVoter { id });
            }
            ChangeMembers::RemoveVoters(BTreeSet::from([id.0]))
        } else {
            ChangeMembers::RemoveNodes(BTreeSet::from([id.0]))
        };
        self.change(change).await
    }

    /// Tells the group where this or another member is reached from now on.
    pub async fn set_address(&self, id: RaftId, addr: String) -> Result<(), MembershipError> {
        if !self.members().iter().any(|member| member.id == id) {
            return Err(MembershipError::NoMember { id });
        }
        let nodes = BTreeMap::from([(id.0, BasicNode::new(addr))]);
        self.change(ChangeMembers::SetNodes(nodes)).await
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

    /// A member that catches up by snapshot takes its time.
    async fn limited(
        &self,
        work: impl Future<Output = Result<(), MembershipError>>,
    ) -> Result<(), MembershipError> {
        let limit = self.0.tuning.propose_timeout * 6;
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
