//! How members reach each other.
//!
//! [`Peers`] is the seam: it carries bytes to a member and brings the answer, and knows nothing of
//! Raft. What the bytes mean is decided here, on both ends: [`Network`] asks, `Store::answer` and
//! `Store::receive_snapshot` answer.

mod message;
mod pipeline;
mod router;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, future::BoxFuture};
use openraft::{
    OptionalSend,
    base::BoxStream,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    impls::BasicNode,
    network::{RPCOption, RaftNetworkFactory, stream_append_sequential, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use shoal_transport::codec;
use shoal_types::RaftId;
use tokio::io::{AsyncRead, ReadBuf};

pub(crate) use self::message::{Envelope, Request, Response};
pub use self::router::Router;
use crate::{
    config::RaftTuning,
    raft::{LogId, Snapshot, TypeConfig, Vote},
    snapshot::SnapshotFile,
    stored::{Ballot, SnapshotHead},
    wal::Wal,
};

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The transport has to make sure that it is this member that answers.
    pub id: RaftId,
    /// As given to `Store::add_member`.
    pub addr: String,
    pub lane: Lane,
}

/// Messages of one lane must not wait for those of another: give each a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    Log,
    Heartbeat,
    Snapshot,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Not worth trying again at once.
    #[error("raft member {id} cannot be reached at {addr:?}")]
    Unreachable {
        id: RaftId,
        addr: String,
        #[source]
        source: io::Error,
    },
    /// The message or its answer may have been lost.
    #[error("raft member {id} did not answer in time")]
    Timeout { id: RaftId },
    #[error("this member has no way to reach others: raft member {id} at {addr:?}")]
    NoTransport { id: RaftId, addr: String },
    /// It was reached, and could not answer.
    #[error("raft member {id} refused: {reason}")]
    Refused { id: RaftId, reason: String },
}

/// Carries messages to other members, in secret: they hold commands as they are, and the keys of the
/// snapshots that follow them. Both ends of a message run the same release or the one before.
pub trait Peers: Send + Sync + 'static {
    /// Brings `request` to the peer's `Store::answer`, and its answer back within `limit`.
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>>;

    /// Opens a line to the peer, within `limit`.
    fn open<'a>(
        &'a self,
        to: &'a Peer,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>>;

    /// Whether the peer's process has ended for certain: its host answers that nobody listens at its
    /// address.
    fn is_gone<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, bool>;

    /// Brings `request` and the whole of `body` to the peer's `Store::receive_snapshot`. There is no
    /// limit for all of it; give up when the peer has taken nothing for `idle`.
    fn send_snapshot<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        body: SnapshotBody,
        idle: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>>;
}

/// A connection on which more may be said before there is an answer. All that is said reaches the peer's
/// `Store::answer` in order, and is answered in order. After an error it is of no use any more.
pub trait Line: Send {
    /// Takes as long as the peer does not read; nothing more can be said when it was dropped before its
    /// end.
    fn say(&mut self, request: Vec<u8>) -> BoxFuture<'_, Result<(), PeerError>>;

    /// The answer to the oldest request that has none yet; there must be one. May be dropped at any
    /// await without losing anything.
    fn hear(&mut self) -> BoxFuture<'_, Result<Vec<u8>, PeerError>>;
}

/// For a member that is alone in its group.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl NoPeers {
    fn refuse<'a, T: Send + 'a>(to: &Peer) -> BoxFuture<'a, Result<T, PeerError>> {
        let error = PeerError::NoTransport {
            id: to.id,
            addr: to.addr.clone(),
        };
        Box::pin(std::future::ready(Err(error)))
    }
}

impl Peers for NoPeers {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        _request: Vec<u8>,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        Self::refuse(to)
    }

    fn open<'a>(
        &'a self,
        to: &'a Peer,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>> {
        Self::refuse(to)
    }

    fn is_gone<'a>(&'a self, _peer: &'a Peer) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    fn send_snapshot<'a>(
        &'a self,
        to: &'a Peer,
        _request: Vec<u8>,
        _body: SnapshotBody,
        _idle: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        Self::refuse(to)
    }
}

/// The sealed records of a snapshot file, read as they are sent.
#[derive(Debug)]
pub struct SnapshotBody {
    file: SnapshotFile,
    offset: u64,
}

impl SnapshotBody {
    pub fn len(&self) -> u64 {
        self.file.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads block for as long as one read of a local file takes, which the page cache mostly answers.
impl AsyncRead for SnapshotBody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self
            .file
            .read_at(buffer.initialize_unfilled(), self.offset)?;
        buffer.advance(read);
        self.offset += read as u64;
        Poll::Ready(Ok(()))
    }
}

/// Where the group's membership says that a member is.
type Whereabouts = Box<dyn Fn(u64) -> Option<String> + Send + Sync>;

/// openraft's way to other members.
#[derive(Clone)]
pub(crate) struct Network {
    me: u64,
    /// Empty until the group is known.
    whereabouts: Arc<OnceLock<Whereabouts>>,
    /// Knows the group.
    wal: Wal,
    peers: Arc<dyn Peers>,
    /// For one message with entries, which the other side answers from its disk.
    append_limit: Duration,
    snapshot_idle: Duration,
}

impl Network {
    pub(crate) fn new(me: u64, wal: Wal, peers: Arc<dyn Peers>, tuning: &RaftTuning) -> Self {
        Self {
            me,
            whereabouts: Arc::default(),
            wal,
            peers,
            append_limit: tuning.election_max,
            snapshot_idle: tuning.snapshot_idle,
        }
    }

    /// From now on members are looked for where `find` says. Only the first call counts.
    pub(crate) fn follow(&self, find: impl Fn(u64) -> Option<String> + Send + Sync + 'static) {
        // A second one would say the same.
        let _ = self.whereabouts.set(Box::new(find));
    }

    fn client(&self, target: u64, node: &BasicNode, lane: Lane) -> Client {
        Client {
            network: self.clone(),
            peer: peer(target, node, lane),
            line: Mutex::default(),
        }
    }

    /// For questions before an election.
    pub(crate) fn voting_client(&self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Lane::Heartbeat)
    }

    /// The end of this member's log.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.wal.last().map(Into::into)
    }

    pub(crate) async fn is_gone(&self, target: u64, node: &BasicNode) -> bool {
        let peer = peer(target, node, Lane::Heartbeat);
        self.peers.is_gone(&peer).await
    }
}

fn peer(target: u64, node: &BasicNode, lane: Lane) -> Peer {
    Peer {
        id: RaftId(target),
        addr: node.addr.clone(),
        lane,
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Lane::Snapshot)
    }
}

/// openraft's way to one other member.
pub(crate) struct Client {
    network: Network,
    peer: Peer,
    /// From the last stream of entries, with nothing unanswered on it.
    line: Mutex<Option<Box<dyn Line>>>,
}

/// An answer that makes no sense, or none at all.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("ask raft member {id}")]
    Encode {
        id: RaftId,
        #[source]
        source: codec::EncodeError,
    },
    #[error("understand the answer of raft member {id}")]
    Decode {
        id: RaftId,
        #[source]
        source: codec::DecodeError,
    },
    #[error("raft member {id} answered something else than it was asked")]
    Mismatch { id: RaftId },
    #[error(transparent)]
    Peer(#[from] PeerError),
}

impl Client {
    /// openraft keeps a client for as long as its member is one, and members move.
    fn find_peer(&mut self) {
        let find = self.network.whereabouts.get();
        let Some(addr) = find.and_then(|find| find(self.peer.id.0)) else {
            return;
        };
        if addr != self.peer.addr {
            self.peer.addr = addr;
            *self.line.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn envelope(&self, request: Request) -> Result<Vec<u8>, CallError> {
        let envelope = Envelope {
            from: self.network.me,
            to: self.peer.id.0,
            // One that has no group has nobody to talk to.
            group: self.network.wal.marks().group.unwrap_or_default(),
            request,
        };
        codec::encode(&envelope).map_err(|source| CallError::Encode {
            id: self.peer.id,
            source,
        })
    }

    fn response(&self, bytes: &[u8]) -> Result<Response, CallError> {
        codec::decode(bytes).map_err(|source| CallError::Decode {
            id: self.peer.id,
            source,
        })
    }

    async fn call(&mut self, request: Request, option: &RPCOption) -> Result<Response, CallError> {
        self.find_peer();
        // openraft allows every message the time between two heartbeats. For entries that is too short
        // when a disk is slow, and each would be sent again and again; it holds no stream to it.
        let limit = match (&request, self.peer.lane) {
            (Request::Append(_), Lane::Log) => self.network.append_limit,
            _ => option.soft_ttl(),
        };
        let request = self.envelope(request)?;
        let answer = self.network.peers.call(&self.peer, request, limit).await?;
        self.response(&answer)
    }

    async fn line(&mut self) -> Result<Box<dyn Line>, CallError> {
        self.find_peer();
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = line.take() {
            return Ok(line);
        }
        let limit = self.network.append_limit;
        Ok(self.network.peers.open(&self.peer, limit).await?)
    }

    fn keep(&mut self, line: Box<dyn Line>) {
        let kept = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(line);
    }

    fn mismatch(&self) -> RPCError<TypeConfig> {
        CallError::Mismatch { id: self.peer.id }.into()
    }
}

impl From<CallError> for RPCError<TypeConfig> {
    fn from(error: CallError) -> Self {
        match &error {
            // Lost in between: try again at once.
            CallError::Peer(PeerError::Timeout { .. }) => Self::Network(NetworkError::new(&error)),
            _ => Self::Unreachable(Unreachable::new(&error)),
        }
    }
}

/// What openraft wants for a stream of requests: answers in their order, once there is a way to the peer.
type Answers<'s> = BoxFuture<
    's,
    Result<
        BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
        RPCError<TypeConfig>,
    >,
>;

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::Append(rpc.into()), &option).await? {
            Response::Append(answer) => Ok(answer.into()),
            _ => Err(self.mismatch()),
        }
    }

    fn stream_append<S>(&mut self, input: S, option: RPCOption) -> Answers<'_>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.peer.lane != Lane::Log {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let line = self.line().await?;
            Ok(pipeline::run(self, line, input))
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::Vote(rpc.into()), &option).await? {
            Response::Vote(answer) => Ok(answer.into()),
            _ => Err(self.mismatch()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::PreVote(rpc.into()), &option).await? {
            Response::Vote(answer) => Ok(answer.into()),
            _ => Err(self.mismatch()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = Request::Transfer((&request).into());
        match self.call(request, &option).await? {
            Response::Transfer(answer) => Ok(answer.into()),
            _ => Err(self.mismatch()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let request = Request::Snapshot {
            vote: Ballot::from(&vote),
            head: SnapshotHead::new(
                snapshot.meta.last_log_id.as_ref(),
                &snapshot.meta.last_membership,
            ),
            bytes: snapshot.snapshot.len(),
            key: snapshot.snapshot.key().clone(),
        };
        self.find_peer();
        let request = self.envelope(request).map_err(RPCError::from)?;
        let body = SnapshotBody {
            file: snapshot.snapshot,
            offset: 0,
        };
        let peers = &self.network.peers;
        let idle = self.network.snapshot_idle;
        // The transfer may be dropped at any point: the other side throws away what is not whole.
        let answer = tokio::select! {
            answer = peers.send_snapshot(&self.peer, request, body, idle) => answer,
            closed = cancel => return Err(closed.into()),
        };
        let answer = answer.map_err(|error| RPCError::from(CallError::from(error)))?;
        match self.response(&answer).map_err(RPCError::from)? {
            Response::Snapshot(vote) => Ok(SnapshotResponse::new(vote.into())),
            _ => Err(self.mismatch().into()),
        }
    }
}
