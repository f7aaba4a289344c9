//! Answering other members.

use std::io;

use openraft::{errors::Fatal, raft::VoteRequest};
use shoal_transport::codec::{self, DecodeError, EncodeError};
use shoal_types::RaftId;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::oneshot,
};

use super::Store;
use crate::{
    peers::{Envelope, Request, Response},
    raft::{Snapshot, TypeConfig},
    seal::FileKey,
    snapshot::{Incoming, SnapshotFile},
    stored::{Ballot, SnapshotHead},
    wal::Done,
};

const CHUNK_BYTES: usize = 1 << 20;

/// Why another member gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("understand a request of another member")]
    Decode(#[source] DecodeError),
    #[error("answer another member")]
    Encode(#[source] EncodeError),
    #[error("a request for raft member {meant} reached member {me}")]
    OtherMember { meant: RaftId, me: RaftId },
    /// One of the two was made the only member of a new group.
    #[error(
        "raft member {from} belongs to group {theirs:016x}, this member to {}; a member of another \
         group can only join with an empty directory and a new id",
        mine.map_or_else(|| "none".to_owned(), |mine| format!("{mine:016x}"))
    )]
    OtherGroup {
        from: RaftId,
        theirs: u64,
        mine: Option<u64>,
    },
    #[error("a request that is none of this kind")]
    Unexpected,
    #[error("this member has stopped: {reason}")]
    Stopped { reason: String },
    #[error("receive a snapshot")]
    Snapshot(#[source] io::Error),
}

impl Store {
    /// Answers a request that a `Peers::call` of another member brought here. Whether that member may
    /// ask is for the transport to know.
    pub async fn answer(&self, request: &[u8]) -> Result<Vec<u8>, AnswerError> {
        let raft = &self.0.raft;
        let stopped = |fatal: Fatal<TypeConfig>| AnswerError::Stopped {
            reason: fatal.to_string(),
        };
        let response = match self.open_envelope(request).await? {
            Request::Append(append) => {
                let answer = raft.append_entries(append.into()).await;
                Response::Append(answer.map_err(|e| stopped(e.unwrap_fatal()))?.into())
            }
            Request::Vote(ask) => {
                let mut ask = VoteRequest::from(ask);
                // The promise to a leader that is gone need not be kept.
                ask.leadership_transfer |= self.leader_is_gone();
                let answer = raft.vote(ask).await;
                Response::Vote(answer.map_err(|e| stopped(e.unwrap_fatal()))?.into())
            }
            Request::PreVote(ask) => {
                let ask = VoteRequest::from(ask);
                let answer = if ask.leadership_transfer {
                    self.would_follow(&ask)
                } else {
                    let answer = raft.pre_vote(ask).await;
                    answer.map_err(|e| stopped(e.unwrap_fatal()))?
                };
                Response::Vote(answer.into())
            }
            Request::Transfer(transfer) => {
                let answer = raft.handle_transfer_leader(transfer.into()).await;
                Response::Transfer(answer.map_err(stopped)?.into())
            }
            Request::Snapshot { .. } => return Err(AnswerError::Unexpected),
        };
        codec::encode(&response).map_err(AnswerError::Encode)
    }

    /// Takes in a snapshot that a `Peers::send_snapshot` of another member brings here. What is not
    /// whole leaves no trace.
    pub async fn receive_snapshot(
        &self,
        request: &[u8],
        body: impl AsyncRead + Unpin + Send,
    ) -> Result<Vec<u8>, AnswerError> {
        let Request::Snapshot {
            vote,
            head,
            bytes,
            key,
        } = self.open_envelope(request).await?
        else {
            return Err(AnswerError::Unexpected);
        };
        let snapshot = self.take_in(&head, key, bytes, body).await;
        let snapshot = snapshot.map_err(AnswerError::Snapshot)?;
        let meta = head.meta();
        let raft = &self.0.raft;
        let installed = raft.install_full_snapshot(vote.into(), Snapshot { meta, snapshot });
        let answer = installed.await.map_err(|fatal| AnswerError::Stopped {
            reason: fatal.to_string(),
        })?;
        let response = Response::Snapshot(Ballot::from(&answer.vote));
        codec::encode(&response).map_err(AnswerError::Encode)
    }

    async fn open_envelope(&self, request: &[u8]) -> Result<Request, AnswerError> {
        let envelope: Envelope = codec::decode(request).map_err(AnswerError::Decode)?;
        if envelope.to != self.0.id.0 {
            return Err(AnswerError::OtherMember {
                meant: RaftId(envelope.to),
                me: self.0.id,
            });
        }
        let other = |mine| AnswerError::OtherGroup {
            from: RaftId(envelope.from),
            theirs: envelope.group,
            mine,
        };
        let mine = self.0.wal.marks().group;
        if mine == Some(envelope.group) {
            return Ok(envelope.request);
        }
        // Only a leader that adds this member may give it a group, and only if it has none.
        let is_leaders = matches!(
            envelope.request,
            Request::Append(_) | Request::Snapshot { .. }
        );
        if !is_leaders || envelope.group == 0 {
            return Err(other(mine));
        }
        match self.join_group(envelope.group).await {
            Ok(true) => Ok(envelope.request),
            Ok(false) => Err(other(mine)),
            Err(error) => Err(AnswerError::Stopped {
                reason: error.to_string(),
            }),
        }
    }

    /// Makes the group this member's, for good, unless it has another one already.
    pub(super) async fn join_group(&self, group: u64) -> io::Result<bool> {
        let (done, told) = oneshot::channel();
        let tell = Done::new(move |result| {
            let _ = done.send(result);
        });
        if !self.0.wal.join_group(group, tell)? {
            return Ok(false);
        }
        let written = told.await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(true)
    }

    async fn take_in(
        &self,
        head: &SnapshotHead,
        key: FileKey,
        bytes: u64,
        mut body: impl AsyncRead + Unpin + Send,
    ) -> io::Result<SnapshotFile> {
        let snapshots = &self.0.snapshots;
        let mut incoming = snapshots.receive(key)?;
        let mut received = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let mut part = (&mut body).take(CHUNK_BYTES as u64);
            if part.read_to_end(&mut chunk).await? == 0 {
                break;
            }
            received += chunk.len() as u64;
            if received > bytes {
                break;
            }
            let write = move || -> io::Result<Incoming> {
                incoming.write(&chunk)?;
                Ok(incoming)
            };
            incoming = snapshots.run(write).await?;
        }
        if received != bytes {
            let text = format!("{received} bytes arrived, {bytes} were announced");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let snapshot = snapshots.run(|| incoming.finish()).await?;
        if snapshot.received_head() == Some(head) {
            Ok(snapshot)
        } else {
            let text = "the snapshot is not the one that was announced";
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}
