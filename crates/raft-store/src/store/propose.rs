//! Writing to the group, and reading what it has agreed on.

use std::{io, time::Duration};

use openraft::{
    ReadPolicy,
    errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError},
};
use shoal_transport::codec::EncodeError;
use shoal_types::RaftId;

use super::Store;
use crate::{
    command::{Applied, Command, Rejection},
    raft::{Proposal, TypeConfig},
    state::State,
};

/// A leader that is new, or whose lease has just run out, accepts again after a round trip.
const RETRY: Duration = Duration::from_millis(5);

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The group agreed on the command, and its preconditions do not hold. Nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// This member did not take the command. Nothing changed; ask the leader.
    #[error("this manager is not the leader{}", named(leader))]
    NotLeader { leader: Option<RaftId> },
    /// Nothing changed.
    #[error("the store is shut down")]
    Stopped,
    /// This member cannot write. Nothing changed, except if the log failed during this command.
    #[error("the cluster state cannot be stored")]
    Storage(#[source] StorageError),
    /// Nothing changed.
    #[error("the command takes {bytes} bytes, at most {limit} are allowed")]
    TooLarge { bytes: usize, limit: usize },
    /// The majority did not answer in time, or another leader took over meanwhile: the command may
    /// take effect, now or later, or not. Look at the state before trying again.
    #[error("no majority of managers answered in time; the change may or may not take effect")]
    Timeout,
}

/// Why this member's disk is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("encode the command")]
    Encode(#[source] EncodeError),
    #[error(
        "no room for the next file of the raft log; free some space, writing goes on by itself"
    )]
    NoRoom(#[source] io::Error),
    #[error("the raft log cannot be written any more; repair the disk and restart the daemon")]
    Log(#[source] io::Error),
    #[error("this member has stopped: {reason}; restart the daemon")]
    Stopped { reason: String },
}

/// Why the newest state cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("this manager is not the leader{}", named(leader))]
    NotLeader { leader: Option<RaftId> },
    #[error("the store is shut down")]
    Stopped,
    #[error("the cluster state cannot be read")]
    Storage(#[source] StorageError),
    #[error("no majority of managers answered in time")]
    Timeout,
}

fn named(leader: &Option<RaftId>) -> String {
    leader.map_or_else(String::new, |leader| format!(", raft member {leader} is"))
}

impl Store {
    /// Has the group agree on `command` and apply it. Any number may be under way at once; they reach
    /// the log in the order of the calls that run on one task. On `Ok` the result is in `state()`.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let proposal = Proposal::new(command)
            .map_err(|error| ProposeError::Storage(StorageError::Encode(error)))?;
        let bytes = proposal.encoded_len();
        let limit = self.0.tuning.max_command_bytes;
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        if let Some(error) = self.0.wal.low_on_space() {
            return Err(ProposeError::Storage(StorageError::NoRoom(error)));
        }
        let result = tokio::time::timeout(self.0.tuning.propose_timeout, async {
            let _permits = self.in_flight(bytes).await?;
            self.write(proposal).await
        });
        result.await.unwrap_or(Err(ProposeError::Timeout))
    }

    /// Room for a command, among those that are being proposed.
    async fn in_flight(
        &self,
        bytes: usize,
    ) -> Result<tokio::sync::SemaphorePermit<'_>, ProposeError> {
        let permits = u32::try_from(bytes).expect("a command is far smaller than 4 GiB");
        let permits = self.0.in_flight.acquire_many(permits).await;
        permits.map_err(|_closed| ProposeError::Stopped)
    }

    async fn write(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        loop {
            let error = match self.0.raft.client_write(proposal.clone()).await {
                Ok(response) => return Ok(response.data.0?),
                Err(error) => error,
            };
            match error {
                openraft::errors::RaftError::Fatal(fatal) => {
                    return Err(match self.fatal(&fatal) {
                        Some(storage) => ProposeError::Storage(storage),
                        None => ProposeError::Stopped,
                    });
                }
                openraft::errors::RaftError::APIError(error) => match error {
                    // It was refused before it reached the log, so it may be tried again.
                    ClientWriteError::ForwardToLeader(forward) => {
                        if !self.is_momentary(&forward) {
                            return Err(ProposeError::NotLeader {
                                leader: forward.leader_id.map(RaftId),
                            });
                        }
                    }
                    ClientWriteError::LogEntryDiscarded(_) => return Err(ProposeError::Timeout),
                    ClientWriteError::ChangeMembershipError(_)
                    | ClientWriteError::PreconditionFailed(_) => {
                        unreachable!("a command changes no membership and names no precondition")
                    }
                },
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The state that holds everything acknowledged by any member before this call. Only a leader can
    /// tell; it asks a majority whether it still is one.
    pub async fn read(&self) -> Result<std::sync::Arc<State>, ReadError> {
        let confirmed = tokio::time::timeout(self.0.tuning.propose_timeout, self.confirm());
        match confirmed.await {
            Ok(result) => result.map(|()| self.state()),
            Err(_elapsed) => Err(ReadError::Timeout),
        }
    }

    async fn confirm(&self) -> Result<(), ReadError> {
        loop {
            // A lease would do without the question, but a follower that restarts forgets the lease it
            // gave, and may elect another leader before it ends.
            let result = self.0.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
            match result {
                Ok(_index) => return Ok(()),
                Err(openraft::errors::RaftError::Fatal(fatal)) => {
                    return Err(match self.fatal(&fatal) {
                        Some(storage) => ReadError::Storage(storage),
                        None => ReadError::Stopped,
                    });
                }
                Err(openraft::errors::RaftError::APIError(error)) => match error {
                    LinearizableReadError::ForwardToLeader(forward) => {
                        if !self.is_momentary(&forward) {
                            return Err(ReadError::NotLeader {
                                leader: forward.leader_id.map(RaftId),
                            });
                        }
                    }
                    LinearizableReadError::QuorumNotEnough(_) => {}
                },
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether this member is the leader and only cannot say so yet.
    fn is_momentary(&self, forward: &ForwardToLeader<TypeConfig>) -> bool {
        matches!(forward.reason, ForwardReason::LeaseExpired)
            || forward.leader_id == Some(self.0.id.0)
    }

    /// What stopped the member; nothing when it was shut down.
    pub(super) fn fatal(&self, fatal: &Fatal<TypeConfig>) -> Option<StorageError> {
        match (self.0.wal.failure(), fatal) {
            (Some(error), _) => Some(StorageError::Log(error)),
            (None, Fatal::Stopped) => None,
            (None, Fatal::StorageError(_) | Fatal::Panicked) => Some(StorageError::Stopped {
                reason: fatal.to_string(),
            }),
        }
    }
}
