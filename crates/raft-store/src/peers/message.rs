//! What members say to each other, in forms of our own (see `stored`).

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::{
    raft::{Entry, TypeConfig},
    seal::FileKey,
    stored::{Ballot, Item, Point, SnapshotHead},
};

/// A request and whose it is.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) from: u64,
    /// A member that is asked for another one refuses.
    pub(crate) to: u64,
    /// A member of another group refuses. Groups differ when one was made anew of a single member: what
    /// the others of the old one say, in whatever term, is nothing to it.
    pub(crate) group: u64,
    pub(crate) request: Request,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    Append(Append),
    Vote(VoteAsk),
    PreVote(VoteAsk),
    Transfer(Transfer),
    /// The snapshot itself follows, `bytes` long.
    Snapshot {
        vote: Ballot,
        head: SnapshotHead,
        bytes: u64,
        /// What its records are sealed under.
        key: FileKey,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Append {
    vote: Ballot,
    previous: Option<Point>,
    items: Vec<Item>,
    committed: Option<Point>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VoteAsk {
    vote: Ballot,
    last: Option<Point>,
    transfer: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    from: Ballot,
    to: u64,
    last: Option<Point>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Response {
    Append(AppendAnswer),
    Vote(VoteAnswer),
    Transfer(TransferAnswer),
    /// The vote of the one who got the snapshot.
    Snapshot(Ballot),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum AppendAnswer {
    Success,
    PartialSuccess(Option<Point>),
    Conflict,
    HigherVote(Ballot),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VoteAnswer {
    vote: Ballot,
    granted: bool,
    last: Option<Point>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum TransferAnswer {
    Accepted,
    VoteChanged {
        expected: Ballot,
        actual: Ballot,
    },
    LogNotFlushed {
        expected: Option<Point>,
        actual: Option<Point>,
    },
}

impl From<AppendEntriesRequest<TypeConfig>> for Append {
    fn from(rpc: AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: (&rpc.vote).into(),
            previous: rpc.prev_log_id.map(Into::into),
            items: rpc.entries.into_iter().map(Item::from).collect(),
            committed: rpc.leader_commit.map(Into::into),
        }
    }
}

impl From<Append> for AppendEntriesRequest<TypeConfig> {
    fn from(append: Append) -> Self {
        Self {
            vote: append.vote.into(),
            prev_log_id: append.previous.map(Into::into),
            entries: append.items.into_iter().map(Entry::from).collect(),
            leader_commit: append.committed.map(Into::into),
        }
    }
}

impl From<AppendEntriesResponse<TypeConfig>> for AppendAnswer {
    fn from(answer: AppendEntriesResponse<TypeConfig>) -> Self {
        match answer {
            AppendEntriesResponse::Success => Self::Success,
            AppendEntriesResponse::PartialSuccess(last) => {
                Self::PartialSuccess(last.map(Into::into))
            }
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote((&vote).into()),
        }
    }
}

impl From<AppendAnswer> for AppendEntriesResponse<TypeConfig> {
    fn from(answer: AppendAnswer) -> Self {
        match answer {
            AppendAnswer::Success => Self::Success,
            AppendAnswer::PartialSuccess(last) => Self::PartialSuccess(last.map(Into::into)),
            AppendAnswer::Conflict => Self::Conflict,
            AppendAnswer::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

impl From<VoteRequest<TypeConfig>> for VoteAsk {
    fn from(ask: VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: (&ask.vote).into(),
            last: ask.last_log_id.map(Into::into),
            transfer: ask.leadership_transfer,
        }
    }
}

impl From<VoteAsk> for VoteRequest<TypeConfig> {
    fn from(ask: VoteAsk) -> Self {
        Self {
            vote: ask.vote.into(),
            last_log_id: ask.last.map(Into::into),
            leadership_transfer: ask.transfer,
        }
    }
}

impl From<VoteResponse<TypeConfig>> for VoteAnswer {
    fn from(answer: VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: (&answer.vote).into(),
            granted: answer.vote_granted,
            last: answer.last_log_id.map(Into::into),
        }
    }
}

impl From<VoteAnswer> for VoteResponse<TypeConfig> {
    fn from(answer: VoteAnswer) -> Self {
        Self {
            vote: answer.vote.into(),
            vote_granted: answer.granted,
            last_log_id: answer.last.map(Into::into),
        }
    }
}

impl From<&TransferLeaderRequest<TypeConfig>> for Transfer {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: request.last_log_id().map(Into::into),
        }
    }
}

impl From<Transfer> for TransferLeaderRequest<TypeConfig> {
    fn from(transfer: Transfer) -> Self {
        let last = transfer.last.map(Into::into);
        Self::new(transfer.from.into(), transfer.to, last)
    }
}

impl From<TransferLeaderResponse<TypeConfig>> for TransferAnswer {
    fn from(answer: TransferLeaderResponse<TypeConfig>) -> Self {
        match answer {
            Ok(()) => Self::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Self::VoteChanged {
                expected: (&expected).into(),
                actual: (&actual).into(),
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Self::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            },
        }
    }
}

impl From<TransferAnswer> for TransferLeaderResponse<TypeConfig> {
    fn from(answer: TransferAnswer) -> Self {
        match answer {
            TransferAnswer::Accepted => Ok(()),
            TransferAnswer::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged {
                    expected: expected.into(),
                    actual: actual.into(),
                })
            }
            TransferAnswer::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: actual.map(Into::into),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_transport::codec;

    use super::*;
    use crate::stored::Body;

    #[test]
    fn golden_bytes_of_messages_do_not_change() {
        let vote = Ballot {
            term: 2,
            candidate: 1,
            committed: true,
        };
        let at = |index| Point {
            term: 2,
            leader: 1,
            index,
        };
        let envelope = Envelope {
            from: 1,
            to: 3,
            group: 9,
            request: Request::Append(Append {
                vote,
                previous: Some(at(4)),
                items: vec![Item {
                    at: at(5),
                    body: Body::Blank,
                }],
                committed: None,
            }),
        };
        let golden = [1, 1, 3, 9, 0, 2, 1, 1, 1, 2, 1, 4, 1, 2, 1, 5, 0, 0];
        assert_eq!(codec::encode(&envelope).expect("encodes"), golden);
        let decoded: Envelope = codec::decode(&golden).expect("decodes");
        assert_eq!(decoded, envelope);

        let response = Response::Vote(VoteAnswer {
            vote,
            granted: true,
            last: None,
        });
        let golden = [1, 1, 2, 1, 1, 1, 0];
        assert_eq!(codec::encode(&response).expect("encodes"), golden);
    }
}
